"""What a report tells of a run, as plain data. Times are in seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline_assets.spark.job_metrics import StageTime

Status = Literal["succeeded", "failed", "retried", "canceled", "running", "skipped", "not started", "not selected"]
"""``retried`` is an attempt that another one came after; ``not selected`` a step that the run was not asked for."""


@dataclass(frozen=True)
class Failure:
    """Why a step, or the run, has failed: ``message`` is the line to act on, ``kind`` the class of the error.

    ``more``: texts that may help, by what they are.
    """

    message: str
    step: str | None = None
    kind: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """One try of an op; ``end`` is None when the log has none, as it is still running or its process is gone."""

    start: float
    end: float | None
    status: Status
    error: str | None = None


@dataclass(frozen=True)
class OpReport:
    """What Dagster ran, by its step key: an op for each step of a batch, one for all steps of a stream."""

    key: str
    name: str
    status: Status
    attempts: tuple[Attempt, ...] = ()

    @property
    def seconds(self) -> float | None:
        """From the start of the first try to the end of the last; None when it has not ended."""
        if not self.attempts or self.attempts[-1].end is None:
            return None
        return self.attempts[-1].end - self.attempts[0].start


@dataclass(frozen=True)
class Place:
    """Data outside the pipeline."""

    kind: str
    uri: str


@dataclass(frozen=True)
class StepReport:
    """A step of the pipeline in the run.

    ``inputs`` are names of other steps; ``rows`` is how many it has written, None for what writes none.
    ``set_aside``: how many rows it has put into quarantine or among the dead letters; ``set_aside_as`` says which.
    ``numbers`` are those of its metadata. ``is_todays``: whether it is in the config as that is now, and as it was.
    """

    name: str
    op: OpReport
    type: str | None = None
    method: str | None = None
    role: str | None = None
    inputs: tuple[str, ...] = ()
    sources: tuple[Place, ...] = ()
    sinks: tuple[Place, ...] = ()
    rows: int | None = None
    set_aside: int | None = None
    set_aside_as: str = "in quarantine"
    numbers: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    physical_plan: str | None = None
    uri: str | None = None
    table_version: int | None = None
    is_todays: bool = True

    @property
    def stages_left_out(self) -> int:
        """How many stages there were beside those that are known one by one."""
        return max(0, int(self.numbers.get("spark_stages", 0)) - len(self.stages))


@dataclass(frozen=True)
class CheckReport:
    """How a check came out; ``sample`` is a table of rows that did not meet it, its head first."""

    name: str
    asset: str
    passed: bool
    severity: Literal["error", "warn"]
    failed_rows: int | None = None
    total_rows: int | None = None
    percent: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    sample: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Column:
    """A column of an asset."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True)
class ColumnChange:
    """``before`` and ``after`` say what a column was and is; one of them is None for one that was added or removed."""

    column: str
    kind: Literal["added", "removed", "type", "nullability"]
    before: str | None
    after: str | None


@dataclass(frozen=True)
class SchemaComparison:
    """The columns of an asset beside those that ``previous_run`` made, the last one before; None when none did."""

    asset: str
    previous_run: str | None = None
    previous_time: float | None = None
    changes: tuple[ColumnChange, ...] = ()


@dataclass(frozen=True)
class ProgressPoint:
    """How a stream's load went at ``time``; ``lag`` is None where its source does not tell."""

    time: float
    lag: float | None
    input_rows_per_second: float
    processed_rows_per_second: float


@dataclass(frozen=True)
class Progress:
    """How a stream's load went.

    ``operation_seconds``: how long its query has spent on each of Spark's operations, and in all.
    """

    load: str
    points: tuple[ProgressPoint, ...]
    operation_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """All that a report tells.

    ``status`` is that of the run, or what its steps come to where Dagster has not filed it yet. ``end`` is that of the
    last event as long as ``is_finished`` is not so. ``is_cut``: whether some of what a stream told has been left out.
    """

    pipeline: str
    run_id: str
    job: str
    mode: Literal["batch", "streaming"]
    status: Status
    is_finished: bool
    start: float
    end: float
    made: float
    launched_by: str
    description: str | None = None
    partition: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    run_config: str | None = None
    failures: tuple[Failure, ...] = ()
    ops: tuple[OpReport, ...] = ()
    steps: tuple[StepReport, ...] = ()
    checks: tuple[CheckReport, ...] = ()
    schemas: tuple[SchemaComparison, ...] = ()
    progress: tuple[Progress, ...] = ()
    is_cut: bool = False

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken so far."""
        return max(0.0, self.end - self.start)

    @property
    def rows_written(self) -> int:
        """All rows that its steps have written, without those that they put aside."""
        return sum(step.rows or 0 for step in self.steps)

    @property
    def retries(self) -> int:
        """How often a step was tried again."""
        return sum(attempt.status == "retried" for op in self.ops for attempt in op.attempts)

    def total(self, number: str) -> float | None:
        """Return the sum of a number over all steps; None when no step has told it."""
        return _sum(step.numbers[number] for step in self.steps if number in step.numbers)


def _sum(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return sum(found) if found else None
