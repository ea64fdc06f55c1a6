"""What Spark's jobs do for a step: they are told from others by a tag, and looked up in the end without a job more."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

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
        from py4j.protocol import Py4JError

        try:
            work = self._jobs.work(tag)
        except (Py4JError, OSError, HTTPException, ValueError) as error:
            # What only tells of the work may not fail the run, nor take the place of what has.
            _log.log(level, "no metrics of Spark's jobs: %s", str(error).partition("\n")[0])
            return
        if work is not None:
            metrics, stages = work
            told(metrics, tuple(replace(stage, what=_shown(stage.what)) for stage in stages))


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
    """The driver's status store is out of reach, but a server of ``pipeline-assets spark-server`` reads it for us."""

    def __init__(self, spark: Any) -> None:
        self._spark = spark
        self._port = int(spark.conf.get(JOBS_PORT, "0"))

    def add_tag(self, tag: str) -> None:
        self._spark.addTag(tag)

    def remove_tag(self, tag: str) -> None:
        self._spark.removeTag(tag)

    def work(self, tag: str) -> tuple[JobMetrics, tuple[StageTime, ...]] | None:
        client = self._spark.client
        if not self._port:
            return None
        # What Spark Connect's server makes of it: ExecuteSessionTag in its source.
        full_tag = f"SparkConnect_SessionTag_User_{client._user_id or ''}_Session_{client._session_id}_Tag_{tag}"
        try:
            answer = json.loads(_answer(client.host, self._port, f"/jobs?tag={quote(full_tag)}"))
            return JobMetrics(**answer["metrics"]), tuple(StageTime(**stage) for stage in answer["stages"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the Spark server is of another version ({error}): start it anew") from None
        except OSError:
            # Behind a tunnel, say: no other step is to wait for it.
            self._port = 0
            raise


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
