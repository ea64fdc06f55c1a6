"""What every op does around its step: it can be stopped, and what goes wrong reaches Dagster in one form."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.execution.plan.objects import ErrorSource

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.errors import PipelineCancelledError, PipelineError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PipelinePlan


class RunSource(Protocol):
    """Where the runs of pipelines are to be had in this process: the Spark resource."""

    @property
    def cancellation(self) -> Cancellation:
        """Whether the process's run is to end."""

    def pipeline_run(self, plan: PipelinePlan, run_id: str, partition_key: str | None = None) -> PipelineRun:
        """Return the run of ``plan``; the same one for the same arguments."""


@contextmanager
def step_op(
    spark: RunSource, context: StepExecutionContext, plan: PipelinePlan, partition_key: str | None
) -> Iterator[PipelineRun]:
    """Give an op, or the IO manager on its behalf, the run of ``plan`` to work with inside.

    A stop ends what is inside within seconds, and the run is filed as CANCELED. Raises what ``told_to_dagster`` does.
    """
    with told_to_dagster(), spark.cancellation.guard():
        run = spark.pipeline_run(plan, context.run_id, partition_key)
        with run.interruptible():
            yield run


@contextmanager
def told_to_dagster() -> Iterator[None]:
    """Turn this package's errors into Dagster's.

    A PipelineError becomes a ``dagster.Failure`` that starts with the line to act on and has the facts as metadata, and
    a PipelineCancelledError the end of a run that is CANCELED.
    """
    try:
        yield
    except PipelineCancelledError as error:
        raise DagsterExecutionInterruptedError(str(error)) from error
    except PipelineError as error:
        raise _failure(error) from error


def _failure(error: PipelineError) -> dg.Failure:
    location = error.location
    metadata: dict[str, Any] = {"error": type(error).__name__}
    if location is not None:
        metadata |= {
            "pipeline": location.pipeline,
            "step_index": location.index,
            "step_type": location.type,
            "method": location.method,
        }
    if error.config is not None:
        metadata["config"] = dg.MetadataValue.md(f"```json\n{json.dumps(error.config, indent=2)}\n```")
    if error.details:
        metadata["details"] = dg.MetadataValue.md(f"```\n{error.details}\n```")
    if error.__cause__ is not None:
        # Last, since it is long.
        metadata["trace"] = dg.MetadataValue.md(f"```\n{error.__cause__}\n```")
    return dg.Failure(str(error).partition("\n")[0], metadata)


def file_stops_as_canceled(instance: dg.DagsterInstance, run_id: str) -> None:
    """Have Dagster file the run as CANCELED whenever an interrupt ends a step of it.

    One that Dagster did not ask for, by a signal to the process, counts as a failure otherwise: also where it arrives
    between two ops, when no code of ours runs.
    """

    def on_event(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None or not event.is_step_failure:
            return
        run = instance.get_run_by_id(run_id)
        is_interrupt = event.step_failure_data.error_source is ErrorSource.INTERRUPT
        if is_interrupt and run is not None and run.status != dg.DagsterRunStatus.CANCELING and not run.is_finished:
            instance.report_run_canceling(run, message="Asked to stop by a signal.")

    instance.add_event_listener(run_id, on_event)
