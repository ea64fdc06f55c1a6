"""Dagster's executors, which also tell of the run what neither its steps nor their resources can: start and end."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import (
    IN_PROC_CONFIG,
    MULTI_PROC_CONFIG,
    multiple_process_executor_requirements,
)
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.base import Executor

from pipeline_assets.metrics.dagster_events import ROW_COUNTS
from pipeline_assets.metrics.publishing import RunPublisher
from pipeline_assets.openlineage.publishing import lineage_publisher
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.run_log import RunLog
from pipeline_assets.settings import Settings
from pipeline_assets.shared_views import release_shared, shared_views
from pipeline_assets.spark.connect_sessions import KeptSessions
from pipeline_assets.spark.driver_start import bounded
from pipeline_assets.spark.session import SparkSessions

_log = logging.getLogger(__name__)


def executor_of(settings: Settings, plans: Mapping[str, PipelinePlan]) -> dg.ExecutorDefinition:
    """Return the executor that ``settings`` name; ``plans`` are those of the jobs, by name."""

    @dg.executor(name="in_process", config_schema=IN_PROC_CONFIG)
    def in_process(context: dg.InitExecutorContext) -> Executor:
        return _TellingExecutor(_created(dg.in_process_executor, context), plans, own_processes=False)

    @dg.executor(
        name="multiprocess", config_schema=MULTI_PROC_CONFIG, requirements=multiple_process_executor_requirements()
    )
    def multiprocess(context: dg.InitExecutorContext) -> Executor:
        return _TellingExecutor(_created(dg.multiprocess_executor, context), plans, own_processes=True)

    return multiprocess if settings.executor == "multiprocess" else in_process


def _created(definition: dg.ExecutorDefinition, context: dg.InitExecutorContext) -> Executor:
    create = definition.executor_creation_fn
    assert create is not None  # noqa: S101  (for the type checker: Dagster's have one)
    return create(context)


class _Outcome:
    """What came out of a run, as a line: Dagster's own, that it has succeeded, is of level DEBUG."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rows: dict[str, int | None] = {}
        self._checks: dict[dg.AssetCheckKey, bool] = {}
        self.failed = False

    def take(self, event: dg.DagsterEvent) -> None:
        match event.event_type:
            case dg.DagsterEventType.ASSET_MATERIALIZATION:
                told = event.step_materialization_data.materialization
                rows = (told.metadata[name].value for name in ROW_COUNTS if name in told.metadata)
                found = next(rows, None)
                self._rows[told.asset_key.to_user_string()] = found if isinstance(found, int) else None
            case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                self._checks[check.asset_check_key] = check.passed
            case dg.DagsterEventType.STEP_FAILURE:
                self.failed = True

    def __str__(self) -> str:
        rows = ", ".join(f"{asset}: {count:,} rows" for asset, count in self._rows.items() if count is not None)
        assets = f"{len(self._rows)} {'asset' if len(self._rows) == 1 else 'assets'} materialized"
        made = f"{assets} ({rows})" if rows else assets
        checks = f", {sum(self._checks.values())} of {len(self._checks)} checks passed" if self._checks else ""
        return f"succeeded in {time.monotonic() - self._began:.1f} s: {made}{checks}"


class _TellingExecutor(Executor):
    """An executor whose run is told of. ``own_processes``: whether its steps have processes of their own, which tell
    of them, and may die.
    """

    def __init__(self, executor: Executor, plans: Mapping[str, PipelinePlan], *, own_processes: bool) -> None:
        self._executor = executor
        self._plans = plans
        self._own_processes = own_processes

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._executor.step_dependency_config

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[Any]:
        settings = Settings.from_environment()
        self._dress_console(settings, plan_context)
        self._tell(settings, plan_context.instance, plan_context.dagster_run)
        outcome = _Outcome()
        with (
            self._published(settings, plan_context.instance, plan_context.dagster_run),
            self._kept_sessions(settings, plan_context.dagster_run) as keep,
        ):
            for event in self._executor.execute(plan_context, execution_plan):
                outcome.take(event)
                keep(event)
                yield event
        if not outcome.failed:  # Dagster tells of that at a level that is always shown
            plan_context.log.info(str(outcome))

    def _dress_console(self, settings: Settings, context: PlanOrchestrationContext) -> None:
        log = RunLog(settings, context.dagster_run, context.log)
        plan = self._plans.get(context.dagster_run.job_name)
        if plan is not None:
            log.know(plan)
        log.dress_console()

    @contextmanager
    def _published(self, settings: Settings, instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
        """Publish the metrics of what this process files itself: that a step's process has died, or did not start."""
        if not self._own_processes:  # the Spark resource does
            yield
            return
        publisher = RunPublisher(settings, run, instance)
        instance.add_event_listener(run.run_id, publisher.take)
        try:
            yield
        finally:
            publisher.end()

    @contextmanager
    def _kept_sessions(self, settings: Settings, run: dg.DagsterRun) -> Iterator[Callable[[dg.DagsterEvent], None]]:
        """Keep the sessions on a Connect server of the pipelines that the events tell of, while the run lasts."""
        if not self._own_processes or settings.spark_remote is None:
            yield lambda _: None
            return
        kept = KeptSessions(settings.spark_remote, run.run_id)
        own = {plan.name: plan for plan in self._plans.values()}
        pipeline_of = {plan.op_name(step): plan.name for plan in own.values() for step in plan.steps}
        pipeline_of |= {plan.stream_op_name: plan.name for plan in own.values()}

        def keep(event: dg.DagsterEvent) -> None:
            # Not by its asset: a step that is to be tried again tells of none, and has opened the session.
            pipeline = pipeline_of.get(event.step_key or "")
            if pipeline is not None:
                kept.keep(pipeline)

        try:
            yield keep
        finally:
            plans = [own[pipeline] for pipeline in kept.pipelines]
            bounded(partial(self._release_shared, settings, run, plans), "letting go of what is cached")
            kept.end()

    def _release_shared(self, settings: Settings, run: dg.DagsterRun, plans: Sequence[PipelinePlan]) -> None:
        """Let go of what the steps' processes have left in Spark's cache for each other, and of those sessions."""
        keeping = [plan for plan in plans if shared_views(plan, range(len(plan.steps)))]
        sessions = SparkSessions(settings)
        try:
            for plan in keeping:
                release_shared(sessions.session(run.run_id, plan.name), plan)
        except Exception as error:  # noqa: BLE001  (a run must be able to end when its Spark has)
            _log.debug("what the run has cached was not released: %s", type(error).__name__)
        finally:
            sessions.close()

    def _tell(self, settings: Settings, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        publisher = lineage_publisher(settings, run, instance)
        if publisher is None:
            return
        publisher.of_job(self._plans.get(run.job_name), tells_steps=self._own_processes)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_START):
            publisher.take(entry)  # it is over by now
        instance.add_event_listener(run.run_id, publisher.take)
