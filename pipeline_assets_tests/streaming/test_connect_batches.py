"""What the server gets for ``foreachBatch``, and what becomes of it without answers. Whole streams: integration."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pyspark.serializers import CloudPickleSerializer

from pipeline_assets.streaming.connect_batches import _asking

# A process that has PySpark, as the server's has, and not this package.
SERVER = """
import pickle, sys
sys.modules["pipeline_assets"] = None
ask = pickle.loads(sys.stdin.buffer.read())

class Session:
    conf = catalog = property(lambda self: self)
    answers = {answers!r}
    def set(self, key, value): print("set", key, value)
    def get(self, key): return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
    def dropGlobalTempView(self, name): print("dropped", name)

class Frame:
    sparkSession = Session()
    def createOrReplaceGlobalTempView(self, name): print("named", name)

try:
    ask(Frame(), 7)
except RuntimeError as error:
    print("raised", error)
"""


def answer(beats: int, batch: int, failure: str = "") -> str:
    return json.dumps({"beats": beats, "batch": batch, "failure": failure})


@pytest.mark.parametrize(
    ("answers", "end"),
    [
        ([answer(1, 6), answer(2, 6), answer(3, 7)], []),
        ([answer(1, 6), answer(2, 7, "DataValidationError: 3 rows")], ["raised DataValidationError: 3 rows"]),
        ([answer(1, 6)], ["raised the run that writes this query's batches was not heard of for 0 s"]),
    ],
)
def test_the_function_on_the_server(answers: list[str], end: list[str]) -> None:
    sent: Any = CloudPickleSerializer().dumps(_asking("batches", 0.3))
    command = [sys.executable, "-c", SERVER.format(answers=answers)]
    done = subprocess.run(command, input=sent, capture_output=True, check=True, timeout=120)
    assert done.stdout.decode().splitlines() == [
        "named batches", "set batches.asked 7", "dropped batches", *end
    ]  # fmt: skip
