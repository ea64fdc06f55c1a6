"""Job and script are compared at the same work, with the same memory: else nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from benchmarks.customer_360 import JOB, TABLE, Workplace, compare
from benchmarks.measured_process import ProcessCost, ProgramFailedError

COST = ProcessCost(0.0, 1.0, 1.0, 1, 1, "")


class WithoutPrograms(Workplace):
    """Writes at once what the programs would."""

    def __init__(self, folder: Path, script_rows: list[int], script_memory: int) -> None:
        self.folder = folder
        self.warehouse = folder / "warehouse"
        self.script_table = folder / "script_table"
        self._script_rows = script_rows
        self._script_memory = script_memory

    def run_job(self, spark_conf: Mapping[str, str] | None = None, *_: Any, **__: Any) -> ProcessCost:
        return written(self.warehouse / JOB / TABLE, [1, 2], spark_conf, 1000)

    def run_script(self, spark_conf: Mapping[str, str] | None = None) -> ProcessCost:
        return written(self.script_table, self._script_rows, spark_conf, self._script_memory)


def written(table: Path, rows: list[int], spark_conf: Mapping[str, str] | None, memory: int) -> ProcessCost:
    """Write a table, and the event log of its making."""
    write_deltalake(table, pa.table({"id": pa.array(rows, pa.int64())}))
    assert spark_conf is not None, "the programs are compared before they are measured"
    event = {"Event": "SparkListenerBlockManagerAdded", "Maximum Memory": memory}
    Path(urlsplit(spark_conf["spark.eventLog.dir"]).path, "log").write_text(json.dumps(event))
    return COST


@pytest.mark.parametrize(
    ("script_rows", "script_memory", "problem"),
    [([1, 3], 1000, "not written the same rows"), ([2, 1], 999, "1000 bytes for data, the script 999")],
)
def test_what_is_not_the_same_is_not_compared(
    tmp_path: Path, script_rows: list[int], script_memory: int, problem: str
) -> None:
    workplace = WithoutPrograms(tmp_path, script_rows, script_memory)
    with pytest.raises(ProgramFailedError, match=problem):
        compare(workplace, 2, 2, with_empty=True, report=lambda _: None)
