"""What surrounds each step of a run: errors that say where they come from, and what Spark's jobs do for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeline_assets.credentials.secrets import secrets_needed_by
from pipeline_assets.errors import PipelineError, PipelineExecutionError, error_line
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.redaction import redact_data
from pipeline_assets.spark.failures import is_spark_error, original_error, spark_errors, spark_failure
from pipeline_assets.spark.job_metrics import JobMetrics, StageTime, longest
from pipeline_assets.spark.job_watch import JobWatch
from pipeline_assets.steps.base import StepContext

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class RunScope:
    """Where the steps of one pipeline run: whatever they do, it is known of which step, pipeline and run."""

    def __init__(self, plan: PipelinePlan, context: StepContext) -> None:
        self.plan = plan
        self.context = context
        self._work: dict[int, JobMetrics] = {}
        self._stages: dict[int, tuple[StageTime, ...]] = {}
        self._watch: JobWatch | None = None

    def take_work(self, step: PlannedStep) -> tuple[JobMetrics | None, tuple[StageTime, ...]]:
        """Return what Spark's jobs have done for ``step`` since the last call, and the longest of their stages.

        What an attempt has told is none of the next one's. None where Spark does not tell.
        """
        return self._work.pop(step.index, None), self._stages.pop(step.index, ())

    @contextmanager
    def working(self, step: PlannedStep) -> Iterator[None]:
        """Add what Spark's jobs do inside to the work of ``step``."""
        if self.plan.is_streaming:
            # A stream tells of itself by its progress, and a micro-batch is not to wait for the jobs' events.
            yield
            return

        def add(work: JobMetrics, stages: tuple[StageTime, ...]) -> None:
            self._work[step.index] = self._work.get(step.index, JobMetrics()).plus(work)
            self._stages[step.index] = longest((*self._stages.get(step.index, ()), *stages))

        if self._watch is None:
            self._watch = JobWatch(self.context.spark)
        with self._watch.watched(add):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have a stop of the run cancel what Spark does inside, by a tag of the run's own."""
        spark: Any = self.context.spark
        tag = f"pipeline-assets-{self.context.run_id}"
        if self.context.settings.spark_remote is None:
            # The session's own tags are those of one thread: another can't interrupt by them.
            add, remove, interrupt = (
                spark.sparkContext.addJobTag, spark.sparkContext.removeJobTag, spark.sparkContext.cancelJobsWithTag,
            )  # fmt: skip
        else:
            add, remove, interrupt = spark.addTag, spark.removeTag, spark.interruptTag
        with spark_errors():  # it may be gone since the step before
            add(tag)
        try:
            with self.context.cancellation.interrupting(lambda: interrupt(tag)):
                yield
        finally:
            with suppress(Exception):  # Spark may be gone
                remove(tag)

    @contextmanager
    def errors_of(self, step: PlannedStep, frames: Iterable[DataFrame] = ()) -> Iterator[None]:
        """Turn what any library raises inside into this package's errors, with the step, its config and the run."""
        location, run_id = self.plan.location(step), self.context.run_id
        try:
            with secrets_needed_by(location):
                yield
        except PipelineError as error:
            error.located(location, _shown_config(step), run_id)
            raise
        except Exception as error:  # noqa: BLE001  (it is raised again as one of this package's)
            failure: PipelineError
            if is_spark_error(error):
                columns = tuple(dict.fromkeys(column for frame in frames for column in frame.columns))
                failure = spark_failure(error, columns=columns)
            else:
                failure = PipelineExecutionError(error_line(error))
            # The original is not chained, only its text: it may show a secret.
            raise failure.located(location, _shown_config(step), run_id) from original_error(error)


def _shown_config(step: PlannedStep) -> dict[str, Any]:
    config = step.method.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    shown: dict[str, Any] = redact_data(config)
    return shown
