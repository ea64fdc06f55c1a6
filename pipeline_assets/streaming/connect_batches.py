"""Micro-batches over Spark Connect: the server hands each to this process, which writes it, and waits for its answer.

``foreachBatch`` runs a copy of its function in a process of the server's, which has neither this run's connections nor,
on a server that others keep, this package. So the function does no more than name the micro-batch and wait. Both sides
are in one session, and talk by its conf.

Source: https://spark.apache.org/docs/latest/streaming/apis-on-dataframes-and-datasets.html#foreachbatch
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline_assets.errors import first_line
from pipeline_assets.redaction import redact
from pipeline_assets.spark.session import cloned_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_BEAT_SECONDS = 1.0
# With the 45 s after which our server lets go of a session that nothing asks for, all that is of a run that was killed
# has gone within a minute.
_PATIENCE_SECONDS = 15.0
_CLOSE_SECONDS = 20.0


@contextmanager
def connect_batches(
    spark: SparkSession, each: Callable[[DataFrame, int], None]
) -> Iterator[Callable[[DataFrame, int], None]]:
    """Give the function for ``foreachBatch`` of one query that has ``each`` called in this process.

    As in classic Spark, the micro-batch is in a session of its own: the names that steps give to its DataFrames are not
    seen by the pipeline's other queries. At the end of the block a micro-batch that is being written is given up.
    """
    with cloned_session(spark) as own:
        answers = _Answers(spark, own, each)
        answers.start()
        try:
            yield _asking(answers.name, _PATIENCE_SECONDS)
        finally:
            answers.close()


class _Answers:
    """Looks for a micro-batch in the conf of ``spark``, has it written in the session ``own``, and answers there."""

    def __init__(self, spark: SparkSession, own: SparkSession, each: Callable[[DataFrame, int], None]) -> None:
        self.name = f"pipeline_assets_batches_{uuid.uuid4().hex}"
        self._spark = spark
        self._own = own
        self._each = each
        self._beats = 0
        self._closed = threading.Event()
        self._answer: dict[str, int | str] = {"batch": -1, "failure": ""}
        self._thread = threading.Thread(target=self._run, name="connect-batches", daemon=True)

    def start(self) -> None:
        self._tell()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(1, "micro-batch") as pool:
                self._answer_all(pool)
        except Exception as error:  # noqa: BLE001  (the query ends for want of an answer, and says so)
            _log.warning("no micro-batch is written any more: %s", redact(first_line(str(error))))

    def _answer_all(self, pool: ThreadPoolExecutor) -> None:
        work: Future[None] | None = None
        asked, told_at = -1, 0.0
        try:
            while not self._closed.is_set():
                if work is None:
                    self._closed.wait(_POLL_SECONDS)
                    if (batch := self._asked()) != asked:
                        asked, work = batch, pool.submit(self._write, batch)
                elif wait([work], _POLL_SECONDS).done:
                    self._answer = {"batch": asked, "failure": _told(work.exception())}
                    work, told_at = None, 0.0
                if time.monotonic() > told_at + _BEAT_SECONDS:
                    self._tell()
                    told_at = time.monotonic()
        finally:
            while work is not None and not wait([work], _POLL_SECONDS).done:
                self._own.interruptAll()

    def _write(self, batch: int) -> None:
        self._each(self._own.table(f"global_temp.{self.name}"), batch)

    def _asked(self) -> int:
        return int(self._spark.conf.get(f"{self.name}.asked", "-1") or -1)

    def _tell(self) -> None:
        self._beats += 1
        self._spark.conf.set(f"{self.name}.answer", json.dumps({"beats": self._beats, **self._answer}))


def _told(error: BaseException | None) -> str:
    return redact(f"{type(error).__name__}: {first_line(str(error))}") if error is not None else ""


def _asking(name: str, patience: float) -> Callable[[DataFrame, int], None]:
    # A function inside another is sent as a whole, not as a name in a module of this package.
    def ask(frame: DataFrame, batch: int) -> None:
        session = frame.sparkSession
        frame.createOrReplaceGlobalTempView(name)
        try:
            session.conf.set(f"{name}.asked", str(batch))
            beats, deadline = -1, time.monotonic() + patience
            while True:
                answer = json.loads(session.conf.get(f"{name}.answer") or "{}")
                if answer["batch"] == batch:
                    break
                if answer["beats"] != beats:
                    beats, deadline = answer["beats"], time.monotonic() + patience
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the run that writes this query's batches was not heard of for {patience:.0f} s"
                    )
                time.sleep(0.02)
        finally:
            session.catalog.dropGlobalTempView(name)
        if answer["failure"]:
            raise RuntimeError(answer["failure"])

    return ask
