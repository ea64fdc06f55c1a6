"""From Dagster's events of a run to OpenLineage's.

The run of a job is an OpenLineage run, and so is each attempt of a step, with the job's as its parent. What is told in
a process is what that process hears: in the multiprocess executor a step's process tells of the step, and that of the
run tells of the run. All ids follow from the run's, so that these meet.
"""

# No postponed annotations here, as in all modules that define what Dagster runs.
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import RunFacet

from pipeline_assets.asset_keys import asset_key, pipeline_key
from pipeline_assets.connections import Connections
from pipeline_assets.dagster_failures import error_text, failure_text
from pipeline_assets.openlineage import facets as f
from pipeline_assets.openlineage.datasets import DatasetName, Origins, PipelineDatasets
from pipeline_assets.optimizer import kept_by_config, optimize
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import ExtractMethod, ValidateMethod
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.extract_postgres import FromPostgres

_RUNNING_SECONDS = 300.0
_PARTITION = "dagster/partition"
_SCHEDULED = ".dagster/scheduled_execution_time"
# In a stream each materialization tells of what came since the one before.
_SUMMED = ("rows_written",)
_RUN_STATES = {
    dg.DagsterEventType.RUN_START: RunState.START,
    dg.DagsterEventType.RUN_SUCCESS: RunState.COMPLETE,
    dg.DagsterEventType.RUN_FAILURE: RunState.FAIL,
    dg.DagsterEventType.RUN_CANCELED: RunState.ABORT,
}

Metadata = dict[str, Any]
Deps = Mapping[str, list[dg.TableColumnDep]]
MetadataLookup = Callable[[dg.AssetKey], Mapping[str, Any]]


def run_uuid(run_id: str) -> str:
    """Return the OpenLineage id of a Dagster run: its own, which is a UUID unless someone chose another."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dagster:{run_id}"))


def attempt_uuid(run_id: str, step_key: str, attempt: int) -> str:
    """Return the OpenLineage id of an attempt of a step, which counts from 1: the same in every process."""
    return str(uuid.uuid5(uuid.UUID(run_uuid(run_id)), f"{step_key}/{attempt}"))


@dataclass
class _Attempt:
    """An attempt of a step, and what it has told so far."""

    step_key: str
    number: int
    started: float
    is_told: bool = False
    metadata: dict[dg.AssetKey, Metadata] = field(default_factory=dict)
    checks: dict[tuple[dg.AssetKey, str], dg.AssetCheckEvaluation] = field(default_factory=dict)
    running_told: float | None = None


@dataclass(frozen=True)
class _Op:
    """What an op runs: a step of a pipeline, or a stream as a whole."""

    datasets: PipelineDatasets
    step: PlannedStep | None
    kept: frozenset[int]
    """The steps of the pipeline whose rows may be read from a cache."""

    @property
    def plan(self) -> PipelinePlan:
        return self.datasets.plan

    @property
    def steps(self) -> tuple[PlannedStep, ...]:
        return self.plan.steps if self.step is None else (self.step,)

    @property
    def name(self) -> str:
        return f"{self.plan.name}.{self.step.name if self.step is not None else 'stream'}"


class LineageEvents:
    """Turns one run's events, as they come, into OpenLineage's.

    ``metadata_of``: what an asset was last materialized with, for those that are none of this process; ``retries``:
    how often a step has been tried in vain before a time, in whatever process.
    """

    def __init__(
        self, run: dg.DagsterRun, namespace: str, metadata_of: MetadataLookup, retries: Callable[[str, float], int]
    ) -> None:
        self._run = run
        self._namespace = namespace
        self._metadata_of = metadata_of
        self._retries = retries
        self._tells_run, self._tells_steps = False, True
        self._job_plan: PipelinePlan | None = None
        self._ops: dict[str, _Op] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._metadata: dict[dg.AssetKey, Metadata] = {}
        self._error: str | None = None

    def planned(self, plan: PipelinePlan, settings: Settings, connections: Connections) -> Iterator[RunEvent]:
        """Take what the run will do, which its first events come before; yield the events that have waited for it."""
        datasets = PipelineDatasets(plan, settings, connections)
        kept = _may_be_kept(plan)
        self._ops[plan.stream_op_name] = _Op(datasets, None, kept)
        self._ops |= {plan.op_name(step): _Op(datasets, step, kept) for step in plan.steps}
        for attempt in self._attempts.values():
            if self._op(attempt.step_key) is not None:
                yield from self._start(attempt)

    def of_job(self, plan: PipelinePlan | None, *, tells_steps: bool) -> None:
        """Take the run to tell of as a whole; ``tells_steps``: and of steps that can't do so themselves any more.

        ``plan``: the job's, where it is that of a pipeline.
        """
        self._job_plan = plan
        self._tells_run, self._tells_steps = True, tells_steps

    def events_of(self, entry: dg.EventLogEntry) -> Iterator[RunEvent]:
        """Yield the OpenLineage events that a Dagster event makes."""
        event = entry.dagster_event
        if event is None:
            return
        if event.step_key is None:
            if self._tells_run:
                yield from self._of_run(entry, event)
        elif self._tells_steps:
            yield from self._of_attempt(event.step_key, event, entry.timestamp)
        elif event.event_type is dg.DagsterEventType.STEP_FAILURE:
            self._error = self._error or failure_text(event.step_failure_data)

    def _of_attempt(self, step_key: str, event: dg.DagsterEvent, at: float) -> Iterator[RunEvent]:
        match event.event_type:
            case dg.DagsterEventType.STEP_START | dg.DagsterEventType.STEP_RESTARTED:
                attempt = self._began(step_key, at)
                if self._op(step_key) is not None:
                    yield from self._start(attempt)
            case dg.DagsterEventType.ASSET_MATERIALIZATION:
                told = event.step_materialization_data.materialization
                yield from self._materialized(step_key, told, at)
            case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                self._attempt(step_key, at).checks[check.asset_key, check.check_name] = check
            case dg.DagsterEventType.STEP_SUCCESS:
                yield from self._end(step_key, at, RunState.COMPLETE, None)
            case dg.DagsterEventType.STEP_FAILURE:
                data = event.step_failure_data
                state = RunState.ABORT if data.error_source is ErrorSource.INTERRUPT else RunState.FAIL
                yield from self._end(step_key, at, state, failure_text(data))
            case dg.DagsterEventType.STEP_UP_FOR_RETRY:
                text = error_text(event.step_retry_data.error)
                yield from self._end(step_key, at, RunState.FAIL, text, is_last=False)

    def _of_run(self, entry: dg.EventLogEntry, event: dg.DagsterEvent) -> Iterator[RunEvent]:
        state = _RUN_STATES.get(event.event_type)
        if state is None:
            return
        told = self._run_facets(self._job_plan)
        if state is RunState.FAIL:
            told["errorMessage"] = f.error_facet(self._error or event.message or "the run has failed")
        yield RunEvent(
            eventType=state,
            eventTime=f.time_text(entry.timestamp),
            run=Run(run_uuid(self._run.run_id), facets=told),
            job=Job(self._namespace, self._run.job_name, facets=f.job_facets(self._job_plan, None, "JOB")),
            producer=f.PRODUCER,
        )

    def _run_facets(self, plan: PipelinePlan | None) -> dict[str, RunFacet]:
        partitions = plan.pipeline.config.partitions if plan is not None else None
        return f.run_facets(partitions, self._run.tags.get(_PARTITION), self._run.tags.get(_SCHEDULED))

    def _op(self, step_key: str) -> _Op | None:
        """Return what runs under ``step_key``: Dagster adds to the name of an op of which it runs a part."""
        if step_key in self._ops:
            return self._ops[step_key]
        names = [name for name in self._ops if step_key.startswith(f"{name}_")]
        return self._ops[max(names, key=len)] if names else None

    def _began(self, step_key: str, at: float) -> _Attempt:
        attempt = self._attempts[step_key] = _Attempt(step_key, 1 + self._retries(step_key, at), at)
        return attempt

    def _attempt(self, step_key: str, at: float) -> _Attempt:
        return self._attempts.get(step_key) or self._began(step_key, at)

    def _start(self, attempt: _Attempt) -> Iterator[RunEvent]:
        if not attempt.is_told:
            attempt.is_told = True
            yield self._of_step(attempt, attempt.started, RunState.START)

    def _end(
        self, step_key: str, at: float, state: RunState, error: str | None, *, is_last: bool = True
    ) -> Iterator[RunEvent]:
        known = step_key in self._attempts
        attempt = self._attempt(step_key, at)
        if known:  # else its own process has told of its start, and then has gone
            yield from self._start(attempt)
        told: dict[str, RunFacet] = {}
        if error is not None and state is RunState.FAIL:
            told["errorMessage"] = f.error_facet(error)
            if is_last:
                self._error = self._error or error
        yield self._of_step(attempt, at, state, told)
        self._attempts.pop(step_key, None)

    def _materialized(self, step_key: str, told: dg.AssetMaterialization, at: float) -> Iterator[RunEvent]:
        attempt = self._attempt(step_key, at)
        before, now = attempt.metadata.get(told.asset_key, {}), dict(told.metadata)
        for name in _SUMMED:
            if name in before and name in now:
                now[name] = dg.MetadataValue.int(before[name].value + now[name].value)
        self._metadata[told.asset_key] = attempt.metadata[told.asset_key] = {**before, **now}
        op = self._op(step_key)
        if op is None or op.step is not None or op.datasets.written_as(told.asset_key.path[-1]) is None:
            return
        moment = time.monotonic()
        if attempt.running_told is None or moment - attempt.running_told >= _RUNNING_SECONDS:
            attempt.running_told = moment
            yield from self._start(attempt)
            yield self._of_step(attempt, at, RunState.RUNNING)

    def _of_step(
        self, attempt: _Attempt, at: float, state: RunState, told: dict[str, RunFacet] | None = None
    ) -> RunEvent:
        op = self._op(attempt.step_key)
        plan, step = (op.plan, op.step) if op is not None else (None, None)
        name = op.name if op is not None else attempt.step_key.replace("__", ".", 1)
        parent = f.parent_facet(run_uuid(self._run.run_id), self._namespace, self._run.job_name)
        facets = {**self._run_facets(plan), "parent": parent, **(told or {})}
        if op is not None and attempt.checks:
            facets["test"] = f.test_facet(op.steps, attempt.checks.values())
        return RunEvent(
            eventType=state,
            eventTime=f.time_text(at),
            run=Run(attempt_uuid(self._run.run_id, attempt.step_key, attempt.number), facets=facets),
            job=Job(self._namespace, name, facets=f.job_facets(plan, step, "STEP")),
            inputs=self._inputs(op, attempt) if op is not None else [],
            outputs=self._outputs(op, attempt) if op is not None else [],
            producer=f.PRODUCER,
        )

    def _inputs(self, op: _Op, attempt: _Attempt) -> list[InputDataset]:
        names = {name: None for step in op.steps for name in op.datasets.read_by(step)}
        checked, facet = None, None
        step = op.step
        if step is not None and isinstance(step.method, ValidateMethod) and attempt.checks:
            checked, facet = op.datasets.checked_by(step), f.assertions_facet(step, attempt.checks.values())
        statistics = self._read_statistics(op, attempt) if len(names) == 1 else {}
        return [
            f.input_dataset(
                name,
                metadata=self._metadata_of_source(op, name),
                checks=facet if name == checked else None,
                statistics=statistics,
            )
            for name in names
        ]

    def _metadata_of_source(self, op: _Op, name: DatasetName) -> Mapping[str, Any]:
        """Return the metadata of the extract that reads all columns of the dataset, and nothing else."""
        steps = op.steps if op.step is None else (*op.plan.upstream_of(op.step), op.step)
        for step in steps:
            method = step.method
            partly = isinstance(method, FromPostgres) and (method.query is not None or method.columns)
            whole = isinstance(method, ExtractMethod) and not isinstance(method, FromKafka) and not partly
            if whole and op.datasets.read_by(step) == (name,):
                return self._metadata.get(asset_key(op.plan, step), {})
        return {}

    def _read_statistics(self, op: _Op, attempt: _Attempt) -> dict[str, int]:
        """Return how much was read of a step's one source, where nothing is kept that could have been read instead."""
        step = op.step
        if step is None or not op.kept.isdisjoint(other.index for other in (*op.plan.upstream_of(step), step)):
            return {}
        told = attempt.metadata.get(asset_key(op.plan, step), {})
        keys = {"rows": "rows_read", "bytes": "bytes_read"}
        # None are told where the source does not count them, as PostgreSQL's JDBC driver does not count bytes.
        return {name: int(told[key].value) for name, key in keys.items() if key in told and told[key].value}

    def _outputs(self, op: _Op, attempt: _Attempt) -> list[OutputDataset]:
        """Return what is written, with what the assets have told of it.

        Quarantine and dead letters are told of once there are some.
        """
        found = []
        for step in op.steps:
            for asset in op.datasets.assets_of(step):
                name = op.datasets.written_as(asset)
                told = attempt.metadata.get(pipeline_key(op.plan.name, asset))
                if name is not None and (told is not None or asset == step.name):
                    origins = self._origins_of(op, asset, told) if told else None
                    found.append(f.output_dataset(name, told, origins))
        return found

    def _origins_of(self, op: _Op, asset: str, told: Mapping[str, Any]) -> dict[str, Origins]:
        """Return the columns of datasets that each column of what an asset writes comes from."""
        known: dict[tuple[str, str], Origins | None] = {}

        def column(name: str, of: str) -> Origins | None:
            if (name, of) not in known:
                known[name, of] = united(self._deps(op, of).get(name))
            return known[name, of]

        def united(deps: list[dg.TableColumnDep] | None) -> Origins | None:
            if deps is None:
                return None
            found = [source(dep.column_name, dep.asset_key.path[-1]) for dep in deps]
            return frozenset(origin for some in found for origin in some or ()) if None not in found else None

        def source(name: str, of: str) -> Origins | None:
            step = steps.get(of)
            if step is None:
                return None
            table = op.datasets.written_as(of) if step.role is Role.TABLE else None
            if table is not None:
                return frozenset({(table, name)})
            if isinstance(step.method, ExtractMethod):
                return op.datasets.sources_of(step.method.column_sources([name])).get(name)
            return column(name, of)

        steps = {step.name: step for step in op.plan.steps}
        extract = op.datasets.extract_of(asset)
        if extract is not None:
            method = extract.method
            if isinstance(method, FromKafka) and asset != extract.name:
                return op.datasets.sources_of(method.dead_letter_sources())
            assert isinstance(method, ExtractMethod)  # noqa: S101  (it is what has been asked for)
            columns = [entry.name for entry in told["dagster/column_schema"].value.columns]
            return op.datasets.sources_of(method.column_sources(columns))
        resolved = {name: column(name, asset) for name in self._deps(op, asset)}
        return {name: origins for name, origins in resolved.items() if origins is not None}

    def _deps(self, op: _Op, asset: str) -> Deps:
        key = pipeline_key(op.plan.name, asset)
        if key not in self._metadata:
            self._metadata[key] = dict(self._metadata_of(key))
        lineage = self._metadata[key].get("dagster/column_lineage")
        deps: Deps = lineage.value.deps_by_column if lineage is not None else {}
        return deps


def _may_be_kept(plan: PipelinePlan) -> frozenset[int]:
    """Return the steps whose rows are kept by the config, by decision, or since they are told good from bad."""
    every = range(len(plan.steps))
    decided = optimize(plan)
    sorted_out = (step.index for step in plan.steps if step.quarantine is not None)
    return kept_by_config(plan, every).union(decided.kept, decided.same, sorted_out)
