"""What every op does around its step: it can be stopped, and what goes wrong reaches Dagster in one form."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import json
import random
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.execution.plan.objects import ErrorSource

from pipeline_assets.asset_keys import asset_key
from pipeline_assets.asset_metadata import Metadata, work_metadata
from pipeline_assets.cancellation import Cancellation
from pipeline_assets.config import Retry
from pipeline_assets.errors import PipelineCancelledError, PipelineError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.metrics.dagster_events import WAIT
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role, check_name
from pipeline_assets.retries import seconds_before_retry
from pipeline_assets.run_log import RunLog
from pipeline_assets.spark.failures import is_spark_error, original_error, spark_failure
from pipeline_assets.steps.base import ExtractMethod


class RunSource(Protocol):
    """Where the runs of pipelines are to be had in this process: the Spark resource."""

    @property
    def cancellation(self) -> Cancellation:
        """Whether the process's run is to end."""

    @property
    def run_log(self) -> RunLog:
        """The log lines of the process's run."""

    @property
    def stream_grace_seconds(self) -> float:
        """How long a streaming query may take to end its micro-batch when the run is cancelled."""

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called when the run ends, before its Spark does."""

    def pipeline_run(
        self,
        plan: PipelinePlan,
        run_id: str,
        partition_key: str | None = None,
        selected: Collection[int] | None = None,
        waiting: Collection[int] = (),
    ) -> PipelineRun:
        """Return the run of ``plan`` as PipelineRun takes it; the same one in one run."""


@contextmanager
def step_op(
    spark: RunSource,
    context: StepExecutionContext,
    plan: PipelinePlan,
    step: PlannedStep,
    partition_key: str | None,
) -> Iterator[PipelineRun]:
    """Give the op of ``step``, or the IO manager on its behalf, the run of ``plan`` to work with inside.

    A stop ends what is inside within seconds, and the run is filed as CANCELED. A failure that may pass by itself is
    tried again as the config says. Raises what ``told_to_dagster`` does; every error names the step.
    """
    retry = plan.pipeline.retry_of(step.index)
    run: PipelineRun | None = None

    def work() -> Metadata:
        return work_metadata(run, step) if run is not None else {}

    with (
        told_to_dagster(context, spark.cancellation, retry, work),
        spark.run_log.of_step(context.log),
        spark.cancellation.guard(),
    ):
        try:
            selected, waiting = _selected(context, plan), _waiting(context, plan)
            run = spark.pipeline_run(plan, context.run_id, partition_key, selected, waiting)
            spark.run_log.tell_spark(run.context.spark)
            with run.scope.interruptible():
                yield run
        except PipelineError as error:
            error.located(plan.location(step), run_id=context.run_id)
            raise
        except Exception as error:
            # While a step works, its run tells these; Spark is asked for what is shown of it, too.
            if not is_spark_error(error):
                raise
            failure = spark_failure(error).located(plan.location(step), run_id=context.run_id)
            raise failure from original_error(error)


def _selected(context: StepExecutionContext, plan: PipelinePlan) -> frozenset[int]:
    """Return the steps of ``plan`` that the run materializes, and those that make all of their checks of these.

    A run from the failure of another is for what is left of that one alone.
    """
    layer, left = context.job_def.asset_layer, context.dagster_run.step_keys_to_execute
    keys = layer.selected_asset_keys
    shown = (step if step.role is not Role.CHECK else plan.steps[step.inputs[0]] for step in plan.steps)
    # Whoever starts a run may leave out checks of what is in it.
    checks = {key for data in layer.data for key in data.assets_def.check_keys}
    return frozenset(
        step.index
        for step, asset in zip(plan.steps, map(partial(asset_key, plan), shown), strict=True)
        if asset in keys and checks.issuperset(_checks(step, asset)) and (left is None or plan.op_name(step) in left)
    )


def _checks(step: PlannedStep, asset: dg.AssetKey) -> list[dg.AssetCheckKey]:
    names = step.validate_method.expectation_names() if step.role is Role.CHECK else ()
    return [dg.AssetCheckKey(asset, check_name(step.name, name)) for name in names]


def _waiting(context: StepExecutionContext, plan: PipelinePlan) -> frozenset[int]:
    """Return the steps of ``plan`` that read what the run writes for another pipeline."""
    layer = context.job_def.asset_layer
    keys = {step.index: asset_key(plan, step) for step in plan.steps if isinstance(step.method, ExtractMethod)}
    return frozenset(
        index
        for index, key in keys.items()
        if layer.asset_graph.has(key)
        and any(
            parent in layer.selected_asset_keys and parent.path[0] != plan.name
            for parent in layer.asset_graph.get(key).parent_keys
        )
    )


@contextmanager
def told_to_dagster(
    context: StepExecutionContext,
    cancellation: Cancellation,
    retry: Retry | None = None,
    work: Callable[[], Metadata] = dict,
) -> Iterator[None]:
    """Turn this package's errors into Dagster's.

    A PipelineError becomes a ``dagster.Failure`` that starts with the line to act on and has the facts as metadata,
    with ``work``, what was done until then; or a ``dagster.RetryRequested`` when trying again may help and ``retry``
    allows it, once the wait before that is over, of which an event tells, with ``work`` too. A PipelineCancelledError
    becomes the end of a run that is CANCELED.
    """
    try:
        yield
    except PipelineCancelledError as error:
        raise DagsterExecutionInterruptedError(str(error)) from error
    except PipelineError as error:
        done = work()
        failure = _failure(error, done)
        failure.__cause__ = error
        tries = context.previous_attempt_count
        wait = seconds_before_retry(retry, tries, _seconds_since_start(context), error, random.random)
        if wait is None or retry is None:
            raise failure from error
        context.log.warning(f"{failure.description}; tried again in {wait:.1f} s ({tries + 1} of {retry.max_retries})")
        told = EngineEventData({WAIT: wait, **done})
        dg.DagsterEvent.engine_event(context, f"Waits {wait:.1f} s before the next try.", told)
        # Here, and not by Dagster, whose wait a stop can't end.
        if cancellation.stop.wait(wait):
            raise DagsterExecutionInterruptedError("the run was asked to stop before the next try") from error
        raise dg.RetryRequested(max_retries=retry.max_retries) from failure


def _seconds_since_start(context: StepExecutionContext) -> float:
    """Return for how long the step has been tried, waits included, in whatever processes."""
    starts = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.STEP_START)
    own = [entry.timestamp for entry in starts if entry.step_key == context.step.key]
    return max(0.0, time.time() - min(own, default=time.time()))


def _failure(error: PipelineError, work: Metadata) -> dg.Failure:
    location = error.location
    metadata: Metadata = {"error": type(error).__name__, "transient": error.transient_kind or "no"}
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
    metadata |= work
    if error.__cause__ is not None:
        # Last, since it is long.
        metadata["trace"] = dg.MetadataValue.md(f"```\n{error.__cause__}\n```")
    return dg.Failure(str(error).partition("\n")[0], metadata, allow_retries=False)


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
