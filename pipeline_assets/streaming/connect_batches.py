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
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipeline_assets.errors import error_line
from pipeline_assets.spark.connect_sessions import cloned_session
from pipeline_assets.spark.driver_start import bounded

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_IDLE_SECONDS = 0.25
_BUSY_SECONDS = 5.0
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
            # All sessions of a server see it, and the server's process is ended without notice when its query stops.
            bounded(lambda: own.catalog.dropGlobalTempView(answers.name), "dropping the name of a micro-batch")


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
        if self._thread.is_alive():
            _log.warning("a micro-batch takes longer than %.0f s to give up and is not waited for", _CLOSE_SECONDS)

    def _run(self) -> None:
        work: Future[None] | None = None
        asked, asked_at, told_at = -1, 0.0, 0.0
        while not self._closed.is_set():
            try:
                if work is None:
                    self._closed.wait(_pause(asked_at))
                    if (batch := self._asked()) != asked:
                        asked, asked_at, work = batch, time.monotonic(), self._begin(batch)
                elif wait([work], _POLL_SECONDS).done:
                    failed = work.exception()
                    self._answer = {"batch": asked, "failure": error_line(failed) if failed is not None else ""}
                    work, told_at = None, 0.0
                if time.monotonic() > told_at + _BEAT_SECONDS:
                    self._tell()
                    told_at = time.monotonic()
            except Exception as error:  # noqa: BLE001  (of a server that is gone the query tells, and ends the block)
                _log.warning("the Spark server could not be asked for a micro-batch: %s", error_line(error))
                self._closed.wait(_BEAT_SECONDS)
        while work is not None and not wait([work], _POLL_SECONDS).done:
            with suppress(Exception):  # of a server that is gone there is nothing to interrupt
                self._own.interruptAll()

    def _begin(self, batch: int) -> Future[None]:
        done: Future[None] = Future()
        # Not an executor's: Python would wait for it at its exit, also for one that waits for a server that is gone.
        threading.Thread(target=self._write, args=(batch, done), name="micro-batch", daemon=True).start()
        return done

    def _write(self, batch: int, done: Future[None]) -> None:
        try:
            self._each(self._own.table(f"global_temp.{self.name}"), batch)
            done.set_result(None)
        except Exception as error:  # noqa: BLE001  (it is what the server is answered)
            done.set_exception(error)

    def _asked(self) -> int:
        return int(self._spark.conf.get(f"{self.name}.asked", "-1") or -1)

    def _tell(self) -> None:
        self._beats += 1
        self._spark.conf.set(f"{self.name}.answer", json.dumps({"beats": self._beats, **self._answer}))


def _pause(asked_at: float) -> float:
    return _POLL_SECONDS if time.monotonic() < asked_at + _BUSY_SECONDS else _IDLE_SECONDS


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
