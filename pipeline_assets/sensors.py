"""One sensor per streaming pipeline: it keeps the pipeline's run alive, or starts one when there is new data."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into sensors.
import random as random_numbers
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import dagster as dg
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG, RUN_KEY_TAG, SENSOR_NAME_TAG

from pipeline_assets.config import Sensor, load_connections
from pipeline_assets.connections import Connections
from pipeline_assets.credentials.secrets import Consumer, Secrets
from pipeline_assets.errors import CredentialUnavailableError, PipelineExecutionError
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.settings import Settings
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.streaming.backlog import read_backlog
from pipeline_assets.streaming.checkpoint_lease import Holder, Process
from pipeline_assets.streaming.restart_policy import Life, RunStatus, RunView, State, decide, read_state
from pipeline_assets.streaming_assets import tagged_process
from pipeline_assets.vault_resource import VaultResource, audit_file

RESTART_TAG = "pipeline_assets/restart"
# For each request to Vault, and for all that brokers are asked together. What comes before takes nothing of that:
# Dagster's storage may be slow, and a broker that is left no time to answer would be taken for one that is down.
_VAULT_SECONDS = 0.5
_BROKER_SECONDS = 0.5
_ENDED_RUNS = 20
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
    streaming = [plan for plan in plans if plan.pipeline.config.mode == "streaming"]
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
        location = _location(context)
        state = read_state(context.cursor) or State(since=now, number=self._next_number(instance, location))
        records = self._records(instance, location)
        unsubmitted = self._unsubmitted(records)
        if unsubmitted is not None:
            # The daemon ended between making the run and launching it: asked for again, Dagster launches that one.
            return _result(state, dg.RunRequest(run_key=unsubmitted))
        views, known = list(self._views(instance, records, state)), {*state.counted}
        decision, state = decide(state, views, now, self.random, self.policy)
        for run_id, message in decision.dead.items():
            _report_dead(instance, run_id, message)
        for run_id in {*state.counted} - known - decision.dead.keys():
            # A worker that was killed has not given back its place in the pool.
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        if not decision.launch:
            return _result(state, decision.reason)
        tags = {RESTART_TAG: f"{state.failures} of {self.policy.max_restarts}"} if state.failures else {}
        if self.keeps_alive:
            state = state.model_copy(update={"number": state.number + 1})
            return _result(state, dg.RunRequest(run_key=f"{self.plan.name}/{state.number}", tags=tags))
        try:
            with self._connections(_VAULT_SECONDS) as connections:
                backlog = read_backlog(self.plan, self.settings, connections, _BROKER_SECONDS)
        except (PipelineExecutionError, CredentialUnavailableError) as error:
            return _result(state, error.message)
        if not backlog.has_news:
            return _result(state, f"no new records: {backlog}")
        run_key = f"{self.plan.name}/{state.number}/{backlog.fingerprint}"
        return _result(state, dg.RunRequest(run_key=run_key, tags=tags))

    @contextmanager
    def _connections(self, vault_seconds: float | None = None) -> Iterator[Connections]:
        """Give connections, with ``vault_seconds`` for each request to Vault; what that leases goes back at the end."""
        connections = load_connections(self.settings.configs)
        vault = self.vault.resolved()
        if vault_seconds is not None:
            vault = replace(vault, timeout_seconds=vault_seconds, retry_seconds=vault_seconds)
        consumer = Consumer(pipeline=self.plan.pipeline.config.name)
        audit = audit_file(self.settings)
        policy = connections.secrets.policy
        with Secrets(policy, vault=vault, audit=audit, consumer=consumer, upkeep=False) as secrets:
            yield replace(connections, secrets=secrets)

    def _next_number(self, instance: dg.DagsterInstance, location: str | None) -> int:
        """Return a number that no run key of this sensor has: Dagster launches nothing for a key that it knows."""
        of_location = {REPOSITORY_LABEL_TAG: location} if location is not None else {}
        own = dg.RunsFilter(job_name=self.plan.name, tags={SENSOR_NAME_TAG: self.name, **of_location})
        for record in instance.get_run_records(own, limit=1):
            match = re.match(rf"{re.escape(self.plan.name)}/(\d+)", record.dagster_run.tags.get(RUN_KEY_TAG, ""))
            return int(match[1]) + 1 if match else 0
        return 0

    def _records(self, instance: dg.DagsterInstance, location: str | None) -> list[dg.RunRecord]:
        job = self.plan.name
        in_progress = dg.RunsFilter(job_name=job, statuses=list(_IN_PROGRESS))
        ended = dg.RunsFilter(job_name=job, statuses=list(_ENDED))
        found = [*instance.get_run_records(in_progress), *instance.get_run_records(ended, limit=_ENDED_RUNS)]
        return [record for record in found if _may_be_of(location, record.dagster_run)]

    def _unsubmitted(self, records: Sequence[dg.RunRecord]) -> str | None:
        for record in records:
            run = record.dagster_run
            if run.status is dg.DagsterRunStatus.NOT_STARTED and run.tags.get(SENSOR_NAME_TAG) == self.name:
                return run.tags.get(RUN_KEY_TAG)
        return None

    def _views(self, instance: dg.DagsterInstance, records: Sequence[dg.RunRecord], state: State) -> Iterator[RunView]:
        for record in records:
            run = record.dagster_run
            view = RunView(
                run_id=run.run_id,
                status=_STATUS[run.status],
                created=record.create_timestamp.timestamp(),
                started=record.start_time,
                ended=(record.end_time or record.update_timestamp.timestamp()) if run.is_finished else None,
            )
            if view.status == "started":
                life, sign = self._life(run)
                view = replace(view, life=life, sign=sign)
            elif view.status == "failed" and run.run_id not in state.counted and (view.ended or 0.0) >= state.since:
                view = replace(view, error=_error_of(instance, run.run_id))
            yield view

    def _life(self, run: dg.DagsterRun) -> tuple[Life, str]:
        """Return whether the worker of a started run lives, and by what that is known."""
        process = tagged_process(run.tags)
        if process is not None and process.machine is not None and process.is_gone():
            return "gone", _ended(process)
        now = datetime.fromtimestamp(self.clock(), UTC)
        states: list[str] = []
        with self._connections() as connections:
            holders = [Holder.of(load.checkpoint(self.settings, connections)) for load in self._loads()]
        for holder in holders:
            if holder is not None and holder.run_id == run.run_id:
                states.append(holder.state(now))
                if states[-1] == "gone":
                    return "gone", _ended(holder.process)
        if "alive" in states:
            return "alive", ""
        if "expired" in states:
            return "gone", "it has stopped renewing its lease on the checkpoint"
        # Last: where the tags do not say which machine, the number alone may be that of another process.
        if process is not None and process.is_gone():
            return "gone", _ended(process)
        return ("alive" if process is not None and process.is_here() else "unknown"), ""


def _location(context: dg.SensorEvaluationContext) -> str | None:
    """Return what Dagster calls the sensor's repository and code location; None where it does not say, as in tests."""
    origin = context.code_location_origin
    return f"{context.repository_name}@{origin.location_name}" if origin is not None else None


def _may_be_of(location: str | None, run: dg.DagsterRun) -> bool:
    """Whether ``run`` may be of the code location. One of `dagster job execute` is of none, and may."""
    origin = run.remote_job_origin
    return location is None or origin is None or origin.repository_origin.get_label() == location


def _ended(process: Process) -> str:
    return f"process {process.pid} on host {process.host} has ended"


def _result(state: State, outcome: dg.RunRequest | str) -> dg.SensorResult:
    cursor = state.model_dump_json()
    if isinstance(outcome, str):
        return dg.SensorResult(skip_reason=outcome, cursor=cursor)
    return dg.SensorResult(run_requests=[outcome], cursor=cursor)


def _report_dead(instance: dg.DagsterInstance, run_id: str, message: str) -> None:
    """File the run as failed, and give back what it held: nobody else would."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, message)
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _error_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return the first line of what made the run fail."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for record in instance.all_logs(run_id, of_type=kinds):
        event = record.dagster_event
        if event is None:
            continue
        failure = event.step_failure_data if event.is_step_failure else None
        told = failure.user_failure_data.description if failure and failure.user_failure_data else None
        error = failure.error if failure else None
        while error is not None and error.cause is not None:
            error = error.cause
        text = told or (error.message if error else event.message) or ""
        if text.strip():
            return text.strip().splitlines()[0]
    return ""
