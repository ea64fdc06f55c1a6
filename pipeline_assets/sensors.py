"""One sensor per streaming pipeline: it keeps the pipeline's run alive, or starts one when there is new data."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into sensors.
import random as random_numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG, RUN_KEY_TAG, SENSOR_NAME_TAG

from pipeline_assets.config import Sensor
from pipeline_assets.connections import Connections
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.credentials.secrets import Consumer, Secrets
from pipeline_assets.dagster_failures import failure_text
from pipeline_assets.errors import CredentialUnavailableError, PipelineExecutionError, first_line
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.settings import Settings
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.streaming.backlog import read_backlog
from pipeline_assets.streaming.checkpoint_lease import Holder, Process
from pipeline_assets.streaming.process_tags import tagged_process
from pipeline_assets.streaming.restart_policy import Life, RunStatus, RunView, State, decide, read_state
from pipeline_assets.vault_resource import VaultResource, audit_file

RESTART_TAG = "pipeline_assets/restart"
_VAULT_SECONDS = 0.5  # for each request
_ENDED_RUNS = 20
# A backfill may have thousands in the queue; a stream's run is among the oldest.
_RUNS_OF_ASSETS = 200
_IN_PROGRESS: dict[dg.DagsterRunStatus, RunStatus] = {
    dg.DagsterRunStatus.NOT_STARTED: "pending",
    dg.DagsterRunStatus.QUEUED: "pending",
    dg.DagsterRunStatus.STARTING: "pending",
    dg.DagsterRunStatus.STARTED: "started",
    dg.DagsterRunStatus.CANCELING: "canceling",
}
_ENDED: dict[dg.DagsterRunStatus, RunStatus] = {
    dg.DagsterRunStatus.SUCCESS: "success",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
}
_STATUS = _IN_PROGRESS | _ENDED
_STEP_EVENTS = {
    dg.DagsterEventType.STEP_START,
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.STEP_SKIPPED,
}
# Of a run that writes several checkpoints: what the first of these is that any of its leases tells.
_LIVES_BY_LEASE: tuple[Life, ...] = ("gone", "alive", "expired")


def build_sensors(
    plans: Sequence[PipelinePlan],
    settings: Settings,
    *,
    vault: VaultResource | None = None,
    clock: Callable[[], float] = time.time,
    random: Callable[[], float] = random_numbers.random,
) -> list[dg.SensorDefinition]:
    """Return a sensor for each streaming pipeline of ``plans``.

    ``vault`` is where their secrets are, ``clock`` and ``random`` are for tests.
    """
    streaming = [plan for plan in plans if plan.is_streaming]
    return [_StreamSensor(plan, settings, vault or VaultResource(), clock, random).definition() for plan in streaming]


@dataclass(frozen=True)
class _StreamSensor:
    plan: PipelinePlan
    settings: Settings
    vault: VaultResource
    clock: Callable[[], float]
    random: Callable[[], float]

    @property
    def name(self) -> str:
        return f"{self.plan.name}_sensor"

    @property
    def policy(self) -> Sensor:
        return self.plan.pipeline.config.sensor or Sensor()

    @property
    def keeps_alive(self) -> bool:
        return not all(load.takes_what_there_is for load in self._loads())

    def _loads(self) -> Iterator[StreamingLoad]:
        for step in self.plan.stream_loads():
            if isinstance(step.method, StreamingLoad):
                yield step.method

    def definition(self) -> dg.SensorDefinition:
        running = self.policy.status == "running"
        return dg.SensorDefinition(
            name=self.name,
            evaluation_fn=self.tick,
            job_name=self.plan.name,
            minimum_interval_seconds=self.policy.interval,
            default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
            description=self._description(),
        )

    def _description(self) -> str:
        restarts = (
            f"A run that failed is replaced up to {self.policy.max_restarts} times, with growing pauses of up to "
            f"{self.policy.max_delay:g} s."
        )
        if self.keeps_alive:
            return (
                f"Keeps exactly one run of {self.plan.name} alive. {restarts} A run that was terminated is started "
                "again as well: **to stop the stream, stop this sensor first**, then terminate the run."
            )
        return (
            f"Starts {self.plan.name} when its sources have something new and no run of it is in progress. {restarts}"
        )

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Look at the runs, and for a pipeline whose runs end, at the data; request a run or say why not."""
        try:
            return self._tick(context)
        except (PipelineExecutionError, CredentialUnavailableError) as error:
            # What is not reachable now may be so at the next tick. A wrong config is not: it fails the tick.
            return dg.SensorResult(skip_reason=str(error).partition("\n")[0], cursor=context.cursor)

    def _tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instance, now = context.instance, self.clock()
        state, switched_on = read_state(context.cursor), context.last_sensor_start_time or 0.0
        if state is None or switched_on > state.since:
            # The later one: where it was switched on, the clock may be ahead.
            state = State(since=max(now, switched_on))
        records = self._records(instance, _location(context))
        unsubmitted = self._unsubmitted(records)
        if unsubmitted is not None:
            # The daemon ended between making the run and launching it: asked for again, Dagster launches that one.
            return _result(state, dg.RunRequest(run_key=unsubmitted))
        found = (self._view(instance, record, state) for record in records)
        views, known = [view for view in found if view is not None], {*state.counted}
        decision, state = decide(state, views, now, self.random, self.policy)
        for run_id, message in decision.dead.items():
            _report_dead(instance, run_id, message)
        for run_id in {*state.counted} - known:
            # A worker that was killed has not given back its place in the pool.
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        if not decision.launch:
            return _result(state, decision.reason)
        tags = {RESTART_TAG: f"{state.failures} of {self.policy.max_restarts}"} if state.failures else {}
        # Dagster launches nothing for a key that it knows: those of one beginning are not those of another.
        keys = f"{self.plan.name}/{int(state.since)}"
        if self.keeps_alive:
            state = state.model_copy(update={"number": state.number + 1})
            return _result(state, dg.RunRequest(run_key=f"{keys}/{state.number}", tags=tags))
        try:
            with self._connections() as connections:
                # What comes before takes nothing of their time: Dagster's storage may be slow, and a broker that is
                # left no time to answer would be taken for one that is down.
                backlog = read_backlog(self.plan, self.settings, connections, self.policy.broker_timeout)
        except (PipelineExecutionError, CredentialUnavailableError) as error:
            return _result(state, error.message)
        if backlog.fingerprint != state.backlog:
            # What it was before may come again, such as when a checkpoint is deleted: that is another launch.
            state = state.model_copy(update={"number": state.number + 1, "backlog": backlog.fingerprint})
        if not backlog.has_news:
            return _result(state, f"no new records: {backlog}")
        return _result(state, dg.RunRequest(run_key=f"{keys}/{state.number}/{backlog.fingerprint}", tags=tags))

    @contextmanager
    def _connections(self) -> Iterator[Connections]:
        """Give connections; what Vault leases for them goes back at the end."""
        connections = load_connections(self.settings.configs)
        # The sensors behind this one wait meanwhile.
        vault = replace(self.vault.resolved(), timeout_seconds=_VAULT_SECONDS, retry_seconds=_VAULT_SECONDS)
        consumer = Consumer(pipeline=self.plan.pipeline.config.name)
        audit = audit_file(self.settings)
        policy = connections.secrets.policy
        with Secrets(policy, vault=vault, audit=audit, consumer=consumer, upkeep=False) as secrets:
            yield replace(connections, secrets=secrets)

    def _records(self, instance: dg.DagsterInstance, location: str | None) -> list[dg.RunRecord]:
        """Return the runs in progress and the last that have ended, each once."""
        job, ended = self.plan.name, list(_ENDED)
        found = [*instance.get_run_records(dg.RunsFilter(job_name=job, statuses=list(_IN_PROGRESS)))]
        # As "Materialize all" starts them, and `dagster asset materialize`.
        of_assets = dg.RunsFilter(job_name=IMPLICIT_ASSET_JOB_NAME, statuses=list(_IN_PROGRESS))
        oldest = instance.get_run_records(of_assets, limit=_RUNS_OF_ASSETS, ascending=True)
        found += [record for record in oldest if self._is_selected(record.dagster_run)]
        if location is not None:
            # Those of another location may be so many that none of this one is among the last of all.
            own = dg.RunsFilter(job_name=job, statuses=ended, tags={REPOSITORY_LABEL_TAG: location})
            found += instance.get_run_records(own, limit=_ENDED_RUNS)
        found += instance.get_run_records(dg.RunsFilter(job_name=job, statuses=ended), limit=_ENDED_RUNS)
        # One that ends between two of these questions is in the answers to both: the later one holds.
        unique = {record.dagster_run.run_id: record for record in found}
        return [record for record in unique.values() if _may_be_of(location, record.dagster_run)]

    def _is_selected(self, run: dg.DagsterRun) -> bool:
        """Whether the stream is among the assets of ``run``."""
        return run.asset_selection is None or any(key.path[0] == self.plan.name for key in run.asset_selection)

    def _unsubmitted(self, records: Sequence[dg.RunRecord]) -> str | None:
        for record in records:
            run = record.dagster_run
            if run.status is dg.DagsterRunStatus.NOT_STARTED and run.tags.get(SENSOR_NAME_TAG) == self.name:
                return run.tags.get(RUN_KEY_TAG)
        return None

    def _view(self, instance: dg.DagsterInstance, record: dg.RunRecord, state: State) -> RunView | None:
        """Return what is to be known of a run; None when only others of its assets are in progress."""
        run = record.dagster_run
        view = RunView(
            run_id=run.run_id,
            status=_STATUS[run.status],
            created=record.create_timestamp.timestamp(),
            started=record.start_time,
            ended=(record.end_time or record.update_timestamp.timestamp()) if run.is_finished else None,
        )
        if view.status == "started":
            view = self._with_life(view, run)
            now = instance.get_run_record_by_id(run.run_id) if view.life == "gone" else None
            if now is not None and now.dagster_run.status is not run.status:
                return self._view(instance, now, state)  # it has ended in order since
            if run.job_name != self.plan.name and view.life != "alive":
                return self._beside_others(instance, view)
        elif (
            view.status == "failed" and run.run_id not in state.counted and (view.ended or 0.0) >= state.concerned_from
        ):
            view = replace(view, error=_error_of(instance, run.run_id))
        return view

    def _beside_others(self, instance: dg.DagsterInstance, view: RunView) -> RunView | None:
        """Return ``view`` of a started run of several assets by how far it is with the stream; None when that is over.

        Of the stream's step alone is there a sign of life.
        """
        started: float | None = None
        for record in instance.all_logs(view.run_id, of_type=_STEP_EVENTS):
            event = record.dagster_event
            if event is not None and event.step_key == self.plan.stream_op_name:
                if not event.is_step_start:
                    return None
                started = record.timestamp
        if started is None and view.life == "unknown":
            return replace(view, status="pending")
        return replace(view, started=started or view.started)

    def _with_life(self, view: RunView, run: dg.DagsterRun) -> RunView:
        """Return ``view`` of a started run with whether its worker lives, and by what that is known."""
        process = tagged_process(run)
        # Where the tags do not say which machine, the number alone may be that of another process.
        if process is not None and process.machine is not None and (told := _seen(view, process)) is not None:
            return told
        with self._connections() as connections:
            found = [Holder.of(load.checkpoint(self.settings, connections)) for load in self._loads()]
        holders = [holder for holder in found if holder is not None and holder.run_id == run.run_id]
        now = datetime.fromtimestamp(self.clock(), UTC)
        for life in _LIVES_BY_LEASE:
            for holder in holders:
                if holder.state(now) == life:
                    sign = _ended(holder.process) if life == "gone" else ""
                    return replace(view, life=life, sign=sign, renewed=holder.renewed_at.timestamp())
        return (_seen(view, process) if process is not None else None) or view


def _location(context: dg.SensorEvaluationContext) -> str | None:
    """Return what Dagster calls the sensor's repository and code location; None where it does not say, as in tests."""
    origin = context.code_location_origin
    return f"{context.repository_name}@{origin.location_name}" if origin is not None else None


def _may_be_of(location: str | None, run: dg.DagsterRun) -> bool:
    """Whether ``run`` may be of the code location. One of `dagster job execute` is of none, and may."""
    origin = run.remote_job_origin
    return location is None or origin is None or origin.repository_origin.get_label() == location


def _seen(view: RunView, process: Process) -> RunView | None:
    """Return ``view`` with the life that ``process`` is seen to have; None where it can't be looked at from here."""
    if process.is_gone():
        return replace(view, life="gone", sign=_ended(process))
    return replace(view, life="alive") if process.is_here() else None


def _ended(process: Process) -> str:
    return f"process {process.pid} on host {process.host} has ended"


def _result(state: State, outcome: dg.RunRequest | str) -> dg.SensorResult:
    cursor = state.model_dump_json()
    if isinstance(outcome, str):
        return dg.SensorResult(skip_reason=outcome, cursor=cursor)
    return dg.SensorResult(run_requests=[outcome], cursor=cursor)


def _report_dead(instance: dg.DagsterInstance, run_id: str, message: str) -> None:
    """File the run as failed: nobody else would."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, message)


def _error_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return the first line of what made the run fail."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for record in instance.all_logs(run_id, of_type=kinds):
        event = record.dagster_event
        if event is None:
            continue
        text = failure_text(event.step_failure_data) if event.is_step_failure else event.message
        if line := first_line(text or ""):
            return line
    return ""
