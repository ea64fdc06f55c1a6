"""Dagster resources: Spark for a run, and the IO manager that hands DataFrames on by name."""

# No postponed annotations here: Dagster reads those of resources and IO managers when it loads them.
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.connections import Connections
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.credentials.policy import SecretsPolicy, option_issues
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.metrics.publishing import RunPublisher
from pipeline_assets.openlineage.publishing import LineagePublisher, lineage_publisher
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.redacted_output import RedactedOutput, redacted_logs
from pipeline_assets.report.run_reports import write_reports
from pipeline_assets.resumed_runs import ResumedRuns
from pipeline_assets.run_log import RunLog
from pipeline_assets.settings import Settings
from pipeline_assets.spark.caching import DataFrameCache
from pipeline_assets.spark.driver_start import bounded
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets.step_op import file_stops_as_canceled, step_op
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.paths import option_texts
from pipeline_assets.vault_resource import VaultResource, run_secrets


class SparkResource(dg.ConfigurableResource[Any]):
    """Owns the Spark sessions of a run: embedded, on a cluster (SPARK_MASTER) or over Connect (SPARK_REMOTE).

    A session is opened when a step first needs it and released when the run ends, however it ends. Only what was
    started here is stopped.
    """

    spark_conf: dict[str, str] = {}
    """Spark settings that win over those of this project."""
    stream_grace_seconds: float = 30.0
    """How long a streaming query may take to end the micro-batch that it is in when its run is cancelled."""

    vault: VaultResource
    """Where the secrets are that connections refer to by `vault:`; what the environment says when left out."""

    _settings: Settings = PrivateAttr()
    _sessions: SparkSessions = PrivateAttr()
    _runs: dict[tuple[str, str, str | None], PipelineRun] = PrivateAttr(default_factory=dict)
    _connections: Connections | None = PrivateAttr(default=None)
    _cancellation: Cancellation = PrivateAttr(default_factory=Cancellation)
    _output: RedactedOutput = PrivateAttr(default_factory=RedactedOutput)
    _context: dg.InitResourceContext = PrivateAttr()
    _plans: dict[str, PipelinePlan] = PrivateAttr(default_factory=dict)
    _publisher: RunPublisher | None = PrivateAttr(default=None)
    _lineage: LineagePublisher | None = PrivateAttr(default=None)
    _ending: ExitStack = PrivateAttr()
    _run_log: RunLog | None = PrivateAttr(default=None)
    _resumed: ResumedRuns | None = PrivateAttr(default=None)

    def __init__(self, **data: Any) -> None:
        """Take the fields, by name. (Dagster does not take a resource as the default of a field.)"""
        super().__init__(**{"vault": VaultResource(), **data})

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["SparkResource"]:
        """Give the resource to a run, and clean up on every way out."""
        self._settings = Settings.from_environment()
        self._sessions = SparkSessions(self._settings, self.spark_conf)
        self._runs = {}
        self._plans = {}
        self._connections = None
        self._cancellation = Cancellation()
        self._output = RedactedOutput()
        self._context = context
        self._run_log = None
        self._resumed = None
        # Each is done, the last first, whatever goes wrong in another: the output ends after the JVM that writes to it.
        with ExitStack() as ending:
            self._ending = ending
            ending.enter_context(redacted_logs())
            if context.run is not None and context.log is not None:
                self._run_log = RunLog(self._settings, context.run, context.log)
                ending.enter_context(self._run_log.written())
            if context.instance is not None and context.run is not None:
                self._resumed = ResumedRuns(context.instance, context.run)
                ending.callback(self._write_reports, context.instance, context.run)
                file_stops_as_canceled(context.instance, context.run.run_id)
                self._publisher = RunPublisher(self._settings, context.run, context.instance)
                context.instance.add_event_listener(context.run.run_id, self._publisher.take)
                ending.callback(self._publisher.end)
                self._lineage = lineage_publisher(
                    self._settings,
                    context.run,
                    context.instance,
                    # In the multiprocess executor, the run's process does.
                    warns=self._settings.in_one_process,
                )
                if self._lineage is not None:
                    context.instance.add_event_listener(context.run.run_id, self._lineage.take)
                    ending.callback(self._lineage.end)
            ending.callback(self._output.end)
            # In the multiprocess executor other processes of the run still need the server's session, and the
            # credentials that the DataFrames in it are read with.
            alone = self._settings.in_one_process
            ending.callback(self._close_secrets, revoke=alone or self._settings.spark_remote is None)
            ending.callback(self._sessions.close, release=alone)
            # PySpark asks a Connect server that is gone for minutes, for each DataFrame.
            ending.callback(bounded, self._release_caches, "letting go of what is cached")
            with self._cancellation:
                yield self

    def _close_secrets(self, revoke: bool) -> None:
        if self._connections is not None:
            self._connections.secrets.close(revoke=revoke)

    def _write_reports(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        # Of what has worked in this process alone: Dagster also makes a run's resources to look at them.
        if self._settings.reports is not None:
            write_reports(instance, run, self._plans.values(), self._settings)

    def _release_caches(self) -> None:
        for run in self._runs.values():
            run.release_cache()

    @property
    def cancellation(self) -> Cancellation:
        """Whether the run is to end."""
        return self._cancellation

    @property
    def run_log(self) -> RunLog:
        """The log lines of the process's run."""
        assert self._run_log is not None  # noqa: S101  (steps have a run)
        return self._run_log

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called when the run ends, before its Spark does."""
        self._ending.callback(callback)

    def pipeline_run(
        self,
        plan: PipelinePlan,
        run_id: str,
        partition_key: str | None = None,
        selected: Collection[int] | None = None,
        waiting: Collection[int] = (),
    ) -> PipelineRun:
        """Return the run of ``plan`` in this process, as PipelineRun takes it; the same one in one run."""
        key = (run_id, plan.name, partition_key)
        self._plans[plan.name] = plan
        if self._sessions.has_died():
            # A step that is tried again gets another JVM, and plans what others had planned in this one. A Connect
            # server that has been started anew would not take the ids of sessions again that it is to release.
            self._runs.clear()
            self._sessions.close(release=False)
        if key not in self._runs:
            if self._run_log is not None:
                self._run_log.know(plan)
            # Not before: Dagster has redirected the output to the compute log by now, and the JVM is yet to start.
            self._output.begin()
            if self._publisher is not None and plan.is_streaming:
                self._publisher.listen()
            partitions = plan.pipeline.config.partitions
            if partitions is not None:
                partition_key = _given(partition_key, plan)
                partitions.check_key(partition_key)
                plan = plan_pipeline(plan.pipeline.for_partition(partition_key))
            # Before Spark is started: the policy on secrets refuses what it has to here.
            connections = self._loaded_connections()
            if self._lineage is not None:
                self._lineage.planned(plan, connections)
            self._runs[key] = PipelineRun(
                plan,
                StepContext(
                    pipeline=plan.name,
                    run_id=run_id,
                    spark=self._sessions.session(
                        run_id,
                        plan.name,
                        option_texts(plan.pipeline.config.spark_conf),
                        is_stream=plan.is_streaming,
                    ),
                    settings=self._settings,
                    connections=connections,
                    cache=DataFrameCache(),
                    cancellation=self._cancellation,
                    partition=partitions.slice(partition_key) if partitions and partition_key else None,
                ),
                selected,
                waiting,
                in_one_process=self._settings.in_one_process,
                first_try=self._resumed.first_try if self._resumed is not None else None,
            )
        return self._runs[key]

    def _loaded_connections(self) -> Connections:
        if self._connections is None:
            loaded = load_connections(self._settings.configs)
            if loaded.secrets.policy is SecretsPolicy.VAULT_ONLY:
                issues = list(option_issues("spark_conf of the Spark resource", self.spark_conf))
                if issues:
                    raise ConfigurationError.from_issues(issues)
            told = (self._publisher.accessed,) if self._publisher is not None else ()
            secrets = run_secrets(loaded.secrets.policy, self.vault.settings(), self._settings, self._context, *told)
            self._connections = replace(loaded, secrets=secrets)
        return self._connections


class DataFrameIOManager(dg.IOManager):
    """Hands DataFrames between assets by name; the data stay in Spark, and a whole pipeline is one Spark plan.

    ``steps``: the step behind each asset. The asset's op has built (views) or written (tables) the DataFrame;
    loading gives it to any asset downstream, also to one written in Python that takes a Spark DataFrame.
    """

    def __init__(self, steps: Mapping[dg.AssetKey, tuple[PipelinePlan, PlannedStep]]) -> None:
        self._steps = steps

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Register a view under its name. A table has been written by its op, and comes as None."""
        if obj is not None:
            plan, step = self._steps[context.asset_key]
            with self._step_op(context, plan, step) as run:
                run.register(run.plan.steps[step.index], obj)

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the upstream asset's DataFrame."""
        plan, step = self._steps[context.asset_key]
        with self._step_op(context, plan, step) as run:
            # The run plans the step for its partition.
            return run.dataframe(run.plan.steps[step.index])

    def _step_op(
        self, context: dg.InputContext | dg.OutputContext, plan: PipelinePlan, step: PlannedStep
    ) -> AbstractContextManager[PipelineRun]:
        key = context.asset_partition_key if context.has_asset_partitions else None
        return step_op(context.resources.spark, context.step_context, plan, step, key)


def dataframe_io_manager(
    steps: Mapping[dg.AssetKey, tuple[PipelinePlan, PlannedStep]],
) -> dg.IOManagerDefinition:
    """Return the definition of the IO manager over ``steps``; it takes the resource ``spark``."""

    @dg.io_manager(required_resource_keys={"spark"})
    def build(_: dg.InitResourceContext) -> DataFrameIOManager:
        return DataFrameIOManager(steps)

    return build


def _given(partition_key: str | None, plan: PipelinePlan) -> str:
    """Return the run's partition. Raises ConfigurationError without one: the run would take the place of them all."""
    if partition_key is None:
        raise ConfigurationError(
            f"pipeline {plan.name} is partitioned, and this run is for none of its partitions: launch it for one "
            f"(`dg launch -m pipeline_assets.definitions --job {plan.name} --partition KEY`), or as a backfill in "
            "Dagster's UI"
        )
    return partition_key
