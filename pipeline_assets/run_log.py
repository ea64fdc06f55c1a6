"""Log lines that say which run, pipeline and step they are about, as text or as JSON.

While a run is on, the lines of this package are lines of the run in Dagster: its UI shows what standard error has.
Dagster's own lines get the same form here. As JSON it is the schema of Spark's structured log, so that both can be read
as one: https://spark.apache.org/docs/latest/configuration.html#structured-logging.
"""

# No postponed annotations here, as in all modules that define what Dagster runs.
import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.log_manager import LOG_RECORD_METADATA_ATTR, DagsterLogManager
from dagster._utils.log import define_default_formatter

from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.settings import Settings
from pipeline_assets.spark.jvm_log import log_as

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PACKAGE = "pipeline_assets"
_LOGGER = "logged_by"
_SPARK_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}


def log_fields(plan: PipelinePlan, step: PlannedStep) -> dict[str, str]:
    """Return what a log line tells of ``step``, beside its run and its pipeline."""
    shown = plan.steps[step.inputs[0]] if step.role is Role.CHECK else step
    return {
        "step_index": str(step.index),
        "step": step.name,
        "method": step.method.method,
        "asset": f"{plan.name}/{shown.name}",
    }


class RunLog:
    """The log lines of this process while it works for ``run``. ``log`` is Dagster's logger of the run."""

    def __init__(self, settings: Settings, run: dg.DagsterRun, log: DagsterLogManager) -> None:
        self._settings = settings
        self._run_id = run.run_id
        self._partition = run.tags.get("dagster/partition")
        self._log = log
        self._steps: dict[str, Mapping[str, str]] = {}
        self._spark_tells: Mapping[str, str] = {}

    def know(self, plan: PipelinePlan) -> None:
        """Have lines about the steps of ``plan`` tell more of them than their keys. It is planned on a Spark anew."""
        self._spark_tells = {}
        self._steps |= {plan.op_name(step): log_fields(plan, step) for step in plan.steps}

    @contextmanager
    def of_step(self, log: DagsterLogManager) -> Iterator[None]:
        """Make ``log``, Dagster's logger of a step, the one that lines inside go to."""
        before, self._log = self._log, log
        try:
            yield
        finally:
            self._log = before

    def tell_spark(self, spark: "SparkSession") -> None:
        """Have the lines of Spark's JVM tell the step that it works for now."""
        fields = {**self._steps.get(self._log.metadata["step_key"] or "", {}), "run_id": self._run_id}
        if fields != self._spark_tells:
            log_as(spark, fields)
            self._spark_tells = fields

    def dress_console(self) -> None:
        """Give the lines that Dagster writes from now on by its logger their form."""
        # No public way leads to a run's console: another logger has to be named in the run config of each launch.
        for logger in self._log._dagster_handler._loggers:
            for console in logger.handlers:
                console.setFormatter(self._formatter(console.formatter))

    @contextmanager
    def written(self) -> Iterator[None]:
        """Give the lines that are written inside their form, and Dagster's of the run's steps."""
        self.dress_console()
        root, package = logging.getLogger(), logging.getLogger(_PACKAGE)
        handler = _RootHandler(self)
        handler.setFormatter(self._formatter(None))
        level = package.level
        package.setLevel(self._settings.log_level or logging.INFO)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            package.setLevel(level)

    def _formatter(self, form: logging.Formatter | None) -> logging.Formatter:
        if self._settings.log_format == "json":
            return _JsonFormatter(self)
        return _TextFormatter(self, form or define_default_formatter())

    def hand_on(self, record: logging.LogRecord) -> bool:
        """Make ``record`` a line of the run in Dagster; False when Dagster does not take it now.

        It does not while it files another: what a listener of its events has to say is no event.
        """
        if _is_own(record) and self._log.isEnabledFor(record.levelno):
            setattr(record, _LOGGER, record.name)
            self._log.handle(record)
        return hasattr(record, LOG_RECORD_METADATA_ATTR)

    def metadata(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """Return what Dagster says of a line: of one that it has not made, what it would."""
        found: Mapping[str, Any] = getattr(record, LOG_RECORD_METADATA_ATTR, self._log.metadata)
        return found

    def fields(self, metadata: Mapping[str, Any]) -> dict[str, str]:
        """Return the step that a line is about, and what else is known of it."""
        key = metadata["step_key"] or ""
        fields = dict(self._steps.get(key) or ({"step": key.partition("__")[2]} if "__" in key else {}))
        if self._partition is not None:
            fields["partition"] = self._partition
        event = metadata.get("dagster_event")
        if event is not None:
            # As Dagster's UI and its text have them: what was called a pipeline there is a job.
            fields["event"] = event.event_type_value.replace("PIPELINE_", "RUN_")
            if event.asset_key is not None:
                fields["asset"] = event.asset_key.to_user_string()
            if (batch := _batch_id(event)) is not None:
                fields["batch_id"] = str(batch)
        return fields


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _PACKAGE


def _batch_id(event: dg.DagsterEvent) -> Any:
    if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
        told = event.asset_observation_data.asset_observation.metadata
    elif event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
        told = event.step_materialization_data.materialization.metadata
    else:
        return None
    return told["batch_id"].value if "batch_id" in told else None


class _RootHandler(logging.StreamHandler[Any]):
    """Hands the lines of this package on to Dagster, and writes those that Dagster does not take."""

    def __init__(self, run_log: RunLog) -> None:
        super().__init__()
        self._run_log = run_log

    def createLock(self) -> None:  # noqa: N802  (as in logging)
        # Dagster's handler has one, and a listener of its events may log while another thread is here.
        self.lock = _NoLock()  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        # Others' lines are written once: by the handlers that somebody has put here, if there are any.
        if not self._run_log.hand_on(record) and (_is_own(record) or len(logging.getLogger().handlers) == 1):
            super().emit(record)


class _NoLock:
    """Keeps nobody out: logging takes a lock as a context manager from Python 3.13 on, and none is none there."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


class _TextFormatter(logging.Formatter):
    """Dagster's form, with what it does not tell in brackets after the first line."""

    def __init__(self, run_log: RunLog, form: logging.Formatter) -> None:
        super().__init__()
        self._run_log = run_log
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        metadata = self._run_log.metadata(record)
        # The step is in its key, the event in its type.
        fields = {
            name: value for name, value in self._run_log.fields(metadata).items() if name not in ("step", "event")
        }
        message = record.getMessage()
        if not hasattr(record, LOG_RECORD_METADATA_ATTR):
            known = (metadata["job_name"], metadata["run_id"], str(os.getpid()), metadata["step_key"], message)
            message = " - ".join(filter(None, known))
        first, newline, rest = message.partition("\n")
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        dressed = copy.copy(record)
        dressed.msg, dressed.args = f"{first} [{told}]{newline}{rest}" if told else message, None
        return self._form.format(dressed)


class _JsonFormatter(logging.Formatter):
    """A line of JSON in the schema of Spark's structured log, ``pyspark.logger.SPARK_LOG_SCHEMA``, and whose it is."""

    def __init__(self, run_log: RunLog) -> None:
        super().__init__()
        self._run_log = run_log

    def format(self, record: logging.LogRecord) -> str:
        metadata = self._run_log.metadata(record)
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": _SPARK_LEVELS.get(record.levelname, record.levelname),
            "msg": getattr(record, LOG_RECORD_METADATA_ATTR, {}).get("orig_message") or record.getMessage(),
            "context": self._run_log.fields(metadata),
            "exception": self._exception(record, metadata),
            "logger": getattr(record, _LOGGER, record.name),
            "pipeline": (metadata["step_key"] or "").partition("__")[0] or metadata["job_name"],
            "run_id": metadata["run_id"],
        }
        return json.dumps({name: value for name, value in line.items() if value}, ensure_ascii=False, default=str)

    def _exception(self, record: logging.LogRecord, metadata: Mapping[str, Any]) -> dict[str, str] | None:
        event = metadata.get("dagster_event") if hasattr(record, LOG_RECORD_METADATA_ATTR) else None
        error = getattr(event.event_specific_data, "error", None) if event is not None else None
        if error is not None:
            return {"class": error.cls_name or "", "msg": error.to_string()}
        if record.exc_info and record.exc_info[0] is not None:
            text = record.exc_text or self.formatException(record.exc_info)
            return {"class": record.exc_info[0].__name__, "msg": text}
        return None
