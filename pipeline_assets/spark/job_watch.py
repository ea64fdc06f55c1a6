"""What Spark's jobs do for a step: they are told from others by a tag, and looked up in the end without a job more."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline_assets.errors import error_line
from pipeline_assets.redaction import redact
from pipeline_assets.spark.job_metrics import JobMetrics, StageTime, work_of_jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

JOBS_PORT = "spark.pipelineAssets.jobsPort"
"""The setting of a Spark server by which its runs know at which port it tells what their jobs have done."""
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 15.0
_TEXT_LENGTH = 120

Told = Callable[[JobMetrics, tuple[StageTime, ...]], None]
"""Takes what jobs have done, and the longest of their stages."""


class JobWatch:
    """Watches the jobs of one session. Over Connect nothing is told, unless the server says where to ask."""

    def __init__(self, spark: SparkSession) -> None:
        from pyspark.sql import SparkSession as ClassicSession

        self._jobs = _ClassicJobs(spark) if isinstance(spark, ClassicSession) else _ConnectJobs(spark)

    @contextmanager
    def watched(self, told: Told) -> Iterator[None]:
        """Watch the jobs that this thread has Spark run inside, and tell of them in the end, also when that fails."""
        tag = f"pipeline-assets-work-{uuid.uuid4()}"
        self._jobs.add_tag(tag)
        try:
            yield
        except Exception:
            self._tell(tag, told, logging.DEBUG)  # Spark may be gone: that is told already
            raise
        else:
            self._tell(tag, told, logging.WARNING)
        finally:
            with suppress(Exception):  # Spark may be gone
                self._jobs.remove_tag(tag)

    def _tell(self, tag: str, told: Told, level: int) -> None:
        try:
            work = self._jobs.work(tag)
            if work is not None:
                metrics, stages = work
                told(metrics, tuple(replace(stage, what=_shown(stage.what)) for stage in stages))
        except Exception as error:  # noqa: BLE001  (what only tells of the work may not fail the run, nor hide what has)
            _log.log(level, "no metrics of Spark's jobs: %s", error_line(error))


class _ClassicJobs:
    def __init__(self, spark: Any) -> None:
        self._context = spark.sparkContext

    def add_tag(self, tag: str) -> None:
        self._context.addJobTag(tag)

    def remove_tag(self, tag: str) -> None:
        self._context.removeJobTag(tag)

    def work(self, tag: str) -> tuple[JobMetrics, tuple[StageTime, ...]]:
        return work_of_jobs(self._context._jsc.sc(), tag)


class _ConnectJobs:
    """The driver's status store is out of reach, but a server of ``pipeline-assets spark-server`` reads it for us.

    One failure is enough: no other step is to wait for an answer.
    """

    def __init__(self, spark: Any) -> None:
        self._spark = spark
        # What stands before a server with TLS or a token does not stand before its other port.
        told = "" if spark.client._builder.secure else str(spark.conf.get(JOBS_PORT, ""))
        self._port: int | None = int(told) if told.isdecimal() else None

    def add_tag(self, tag: str) -> None:
        self._spark.addTag(tag)

    def remove_tag(self, tag: str) -> None:
        self._spark.removeTag(tag)

    def work(self, tag: str) -> tuple[JobMetrics, tuple[StageTime, ...]] | None:
        port, self._port = self._port, None
        if port is None:
            return None
        client = self._spark.client
        # What Spark Connect's server makes of it: ExecuteSessionTag in its source.
        full_tag = f"SparkConnect_SessionTag_User_{client._user_id or ''}_Session_{client._session_id}_Tag_{tag}"
        answer = json.loads(_answer(client.host.strip("[]"), port, f"/jobs?tag={quote(full_tag)}"))
        try:
            work = JobMetrics(**answer["metrics"]), tuple(StageTime(**stage) for stage in answer["stages"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the Spark server is of another version ({error}): start it anew") from None
        self._port = port
        return work


def _answer(host: str, port: int, path: str) -> bytes:
    connection = HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER_SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"the Spark server does not tell them: {body.decode(errors='replace')}")
        return body
    finally:
        connection.close()


def _shown(what: str) -> str:
    text = redact(what)
    return text if len(text) <= _TEXT_LENGTH else f"{text[: _TEXT_LENGTH - 1]}…"
