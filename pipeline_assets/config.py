"""What a pipeline's config may say: its model. The configs of steps are their methods'."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from pipeline_assets.errors import TransientKind
from pipeline_assets.json_models import JsonModel
from pipeline_assets.partitions import Partitions, TimeZone
from pipeline_assets.steps.base import StepType
from pipeline_assets.steps.paths import OptionValue, check_options


def _check_cron(text: str) -> str:
    from croniter import CroniterBadDateError, croniter

    if not croniter.is_valid(text) or len(croniter.expand(text)[0]) != 5:
        raise ValueError(f"{text!r} is not a cron expression (expected five fields, as in '0 2 * * *')")
    try:
        # To Dagster a day of the month that never comes is an error, beside a day of the week too. Its one sensor looks
        # for the times of all pipelines with 'on_cron', and an error of one stops them all.
        croniter(text, day_or=False).get_next()
    except CroniterBadDateError:
        raise ValueError(f"{text!r} names a day that never comes: none of its months has it") from None
    return text


def _check_owner(text: str) -> str:
    # The e-mail addresses that Dagster takes.
    if not re.fullmatch(r"team:[A-Za-z0-9_./-]+|\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", text):
        raise ValueError(f"{text!r} is no owner: expected an e-mail address or 'team:NAME'")
    return text


def _check_name(text: str) -> str:
    if text.replace("-", "_") in _RESERVED_NAMES:
        raise ValueError(f"a pipeline can't be called {text!r}: the word is reserved")
    if "__" in (name := text.replace("-", "_")) or name.endswith("_"):
        raise ValueError(
            f"a pipeline can't be called {text!r}: two dashes or underscores in a row, and one at the end, are what "
            "parts it from the names of its steps in Dagster (<pipeline>__<step>)"
        )
    return text


def _check_spark_conf(conf: dict[str, OptionValue]) -> dict[str, OptionValue]:
    for name in conf:
        if not name.startswith(("spark.sql.", "spark.databricks.delta.")):
            raise ValueError(
                f"{name!r} is no setting of a session, as spark.sql.* and spark.databricks.delta.* are: it belongs "
                "where Spark is started, in spark-defaults.conf or in the Spark resource's spark_conf"
            )
        if name.startswith("spark.sql.redaction."):
            raise ValueError(f"{name!r} is what keeps secrets out of Spark's plans: leave it out")
        if name == "spark.sql.session.timeZone":
            raise ValueError(
                f"{name!r} is UTC in all sessions, so that partitions mean the same everywhere: leave it out, and use "
                "from_utc_timestamp where local times are wanted"
            )
    return check_options(conf)


# Dagster's own words, Python's, and the first parts of the keys of assets that are no pipeline's.
_RESERVED_NAMES = {
    *("context", "conf", "config", "meta", "arg_dict", "dict", "input_arg_dict", "output_arg_dict"),
    *("int", "str", "float", "bool", "input", "output", "type"),
    *keyword.kwlist,
    *("broken_configs", "deltalake", "file", "kafka", "postgres", "s3"),
}

PIPELINE_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"
Cron = Annotated[str, AfterValidator(_check_cron)]
Owner = Annotated[str, AfterValidator(_check_owner)]
# Dagster's own rule for tag keys and values.
TagKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
TagText = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,63}$")]
StepName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", max_length=100)]


class Schedule(JsonModel):
    """When a pipeline's job runs."""

    cron: Cron
    timezone: TimeZone = "UTC"


class Retry(JsonModel):
    """When a failed step is tried again: only for a failure that passes by itself, never for bad SQL, a missing table,
    a refused password."""

    max_retries: int = Field(default=0, ge=0, le=100)
    """How often a step is tried again at most."""
    delay: float = Field(default=10.0, ge=0)
    """Seconds before the first retry at most; doubled for each further one. The wait is drawn from 0 to that."""
    max_delay: float = Field(default=300.0, ge=0)
    """Seconds that this doubling ends at."""
    time_budget: float | None = Field(default=None, gt=0)
    """Seconds from the start of the first try after which none begins any more; no limit when left out."""
    on: tuple[TransientKind, ...] = Field(default=get_args(TransientKind), min_length=1)
    """The failures that are tried again: `connection` (refused, reset), `timeout`, `throttled` (HTTP 429, quotas),
    `unavailable` (HTTP 5xx, a server that starts or stops), `conflict` (deadlocks, concurrent commits) and
    `lostExecutor`; all of them when left out."""


class Sensor(JsonModel):
    """The sensor of a streaming pipeline: it keeps the stream's run alive, or starts one when there is new data."""

    status: Literal["running", "stopped"] = "stopped"
    """Whether the sensor runs from the start, or from when it is switched on in the UI."""
    max_restarts: int = Field(default=10, ge=0)
    """How often a failed run is replaced before the sensor gives up."""
    delay: float = Field(default=10.0, gt=0)
    """Seconds before the first restart at most; doubled for each further one. The wait is drawn from 0 to that."""
    max_delay: float = Field(default=300.0, gt=0)
    """Seconds that this doubling ends at."""
    healthy_minutes: float = Field(default=10.0, gt=0)
    """After a run has lived for so long, restarts are counted anew."""
    interval: int = Field(default=15, ge=1)
    """Seconds between two looks of the sensor."""
    broker_timeout: float = Field(default=0.5, gt=0, le=20)
    """Seconds that Kafka's brokers have to say what is new, all together: more for brokers that are far away. Sensors
    wait for one another meanwhile."""


class StepEnvelope(JsonModel):
    """One step: what it is (`type`, `method`), how its asset is called, and the config of its method."""

    type: StepType
    method: str
    name: StepName | None = None
    """Name of the step's asset; `registerAs`, or else the method's name in snake_case, when left out."""
    description: str | None = None
    retry: Retry | None = None
    """When this step is tried again, in place of what the pipeline's `retry` says."""
    config: dict[str, Any] = {}


class PipelineConfig(JsonModel):
    """A pipeline."""

    schema_: str | None = Field(default=None, alias="$schema")
    """Path or URL of the JSON Schema, for editors."""
    version: Literal[1] = 1
    """Version of this format; a later version of the project keeps reading it."""
    name: Annotated[str, AfterValidator(_check_name)] = Field(pattern=PIPELINE_NAME, max_length=100)
    """Name of the pipeline; with underscores for dashes it is the name of its job."""
    mode: Literal["batch", "streaming"]
    description: str | None = None
    owners: tuple[Owner, ...] = ()
    """E-mail addresses, or teams as `team:NAME`."""
    tags: dict[TagKey, TagText] = {}
    schedule: Cron | Schedule | None = None
    """A cron expression (UTC), or an object of `cron` and `timezone`."""
    automation: Literal["eager", "on_cron"] | None = None
    """Dagster's declarative automation: `eager` runs after its upstream assets, `on_cron` by `schedule`."""
    partitions: Partitions | None = None
    retry: Retry | None = None
    """When a failed step is tried again; never when left out."""
    sensor: Sensor | None = None
    spark_conf: Annotated[dict[str, OptionValue], AfterValidator(_check_spark_conf)] = {}
    """Settings of Spark for this pipeline's session, e.g. `{"spark.sql.shuffle.partitions": 64}`."""
    optimize: bool = True
    """Whether what the steps leave open is decided from the whole pipeline: which DataFrames are kept while several
    steps read them, what is read once, how partitioned targets are written. What a step says itself always holds."""
    steps: tuple[StepEnvelope, ...] = Field(min_length=1)

    @property
    def asset_prefix(self) -> str:
        """The pipeline's name as Dagster takes it: the job's name and the first part of its asset keys."""
        return self.name.replace("-", "_")

    @property
    def cron_schedule(self) -> Schedule | None:
        """The schedule in its long form."""
        return Schedule(cron=self.schedule) if isinstance(self.schedule, str) else self.schedule
