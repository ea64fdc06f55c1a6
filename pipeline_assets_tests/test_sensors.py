"""When streaming pipelines are started: whole histories of runs, real Dagster instances, a real Kafka."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from devstack.kafka import KafkaServer
from devstack.topics import new_topic
from pipeline_assets import sensors
from pipeline_assets.code_location import build_definitions
from pipeline_assets.config import Sensor
from pipeline_assets.config_loading import load_folder
from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.sensors import build_sensors
from pipeline_assets.settings import Settings
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming import backlog
from pipeline_assets.streaming.checkpoint_lease import Holder, Process
from pipeline_assets.streaming.restart_policy import GRACE_SECONDS, RunView, State, decide, read_state
from pipeline_assets.streaming_assets import process_tags, tagged_process
from pipeline_assets_tests.config_documents import write_config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POLICY = Sensor(max_restarts=3, delay=10, max_delay=60, healthy_minutes=10)
T0 = 1_000_000.0


def started(at: float, run_id: str = "run", **more: Any) -> RunView:
    return RunView(run_id, "started", at, at, **{"life": "alive", **more})


def failed(at: float, lived: float = 1, run_id: str = "run", error: str = "boom") -> RunView:
    return RunView(run_id, "failed", at - lived, at - lived, at, error=error)


def never() -> float:
    raise AssertionError("no random number is needed here")


@dataclass
class MonotonicClock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_first_tick_launches_and_a_live_run_is_left_alone() -> None:
    decision, state = decide(State(since=T0), [], T0, never, POLICY)
    assert decision.launch
    decision, state = decide(state, [started(T0)], T0 + 15, never, POLICY)
    assert not decision.launch
    assert decision.reason == "run run is in progress since 1970-01-12 13:46:40 UTC"
    assert decision.dead == {}


@pytest.mark.parametrize("status", ["pending", "started", "canceling"])
def test_any_run_in_progress_counts_whoever_launched_it(status: Any) -> None:
    decision, _ = decide(State(since=T0), [RunView("x", status, T0, T0)], T0 + 5, never, POLICY)
    assert not decision.launch


def test_a_failure_is_waited_out_with_exponential_back_off_then_given_up() -> None:
    state, now, runs = State(since=T0), T0, []
    waits = []
    for number in range(4):
        decision, state = decide(state, runs, now, never, POLICY)
        assert decision.launch, decision.reason
        ended = now + 1
        runs = [*runs, failed(ended, run_id=f"run-{number}", error=f"error {number}")]
        decision, state = decide(state, runs, ended, lambda: 1.0, POLICY)
        assert not decision.launch
        if number < 3:
            until = datetime.fromtimestamp(state.retry_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            assert decision.reason == (
                f"restart {number + 1} of 3 waits until {until}, the last run failed: error {number}"
            )
            waits.append(state.retry_at - ended)
            assert not decide(state, runs, state.retry_at - 0.1, never, POLICY)[0].launch
            now = state.retry_at
    assert waits == [10, 20, 40]
    decision, state = decide(state, runs, now + 10_000, never, POLICY)
    assert not decision.launch
    assert decision.reason.startswith(
        "gave up after 3 restarts, the last run failed: error 3. Fix the cause, then switch"
    )
    # By hand: once its run is healthy, all begins anew.
    by_hand = started(now + 10_000, "by-hand")
    decision, state = decide(state, [*runs, by_hand], by_hand.created + 599, never, POLICY)
    assert state.failures == 4
    decision, state = decide(state, [*runs, by_hand], by_hand.created + 600, never, POLICY)
    assert state.failures == 0
    end = failed(by_hand.created + 700, 700, "by-hand", "later")
    decision, state = decide(state, [*runs, end], by_hand.created + 700, lambda: 0.5, POLICY)
    assert "restart 1 of 3" in decision.reason
    assert state.retry_at == by_hand.created + 705


def test_a_run_that_was_healthy_between_two_ticks_counts_anew() -> None:
    state = State(since=T0, failures=3)
    _, state = decide(state, [failed(T0 + 601, lived=600)], T0 + 601, lambda: 1.0, POLICY)
    assert state.failures == 1


def test_a_canceled_run_is_started_again_and_is_no_failure() -> None:
    state = State(since=T0, failures=2, retry_at=T0)
    canceled = RunView("run", "canceled", T0, T0, T0 + 5)
    decision, state = decide(state, [canceled], T0 + 6, never, POLICY)
    assert decision.launch
    assert state.failures == 2


def test_runs_of_before_the_cursor_are_no_concern() -> None:
    old = [failed(T0 - 1, run_id=str(number)) for number in range(20)]
    decision, state = decide(State(since=T0), old, T0, never, POLICY)
    assert decision.launch
    assert state.failures == 0


def test_a_killed_worker_is_replaced_and_counted_once() -> None:
    dead = started(T0, life="gone", sign="process 7 on host h has ended")
    decision, state = decide(State(since=T0), [dead], T0 + 20, lambda: 1.0, POLICY)
    assert decision.dead == {"run": "the run's worker was killed (process 7 on host h has ended): the run is replaced"}
    assert state.failures == 1
    assert not decision.launch  # by the rules of the back-off
    filed = failed(T0 + 20.5, lived=20.5)
    decision, state = decide(state, [filed], T0 + 30, never, POLICY)
    assert state.failures == 1
    assert decision.launch


def test_a_lease_that_has_run_out_may_still_be_renewed() -> None:
    """As by a machine that was suspended, once it has woken up."""
    late = started(T0, life="expired", renewed=T0 + 10)
    decision, state = decide(State(since=T0), [late], T0 + 1000, never, POLICY)
    assert decision.dead == {}
    decision, state = decide(state, [late], T0 + 1005, never, POLICY)
    assert decision.dead == {}
    # It was, and has run out again.
    decision, state = decide(state, [replace(late, renewed=T0 + 1006)], T0 + 1070, never, POLICY)
    assert decision.dead == {}
    decision, state = decide(state, [replace(late, renewed=T0 + 1006)], T0 + 1085, lambda: 0.0, POLICY)
    assert list(decision.dead) == ["run"]
    assert "it has stopped renewing its lease" in decision.dead["run"]


def test_failures_of_before_what_was_counted_stay_so_when_later_runs_are_deleted() -> None:
    old = [failed(T0 + number, run_id=f"old-{number}") for number in range(5)]
    state = State(since=T0)
    for _ in range(2):  # a window of runs moves on
        _, state = decide(state, [failed(T0 + 1000, lived=600, run_id="healthy")], T0 + 1001, lambda: 0.0, POLICY)
    assert state.failures == 1
    decision, state = decide(state, old, T0 + 1020, never, POLICY)
    assert state.failures == 1
    assert decision.launch


def test_no_sign_of_life_is_borne_for_some_minutes() -> None:
    silent = started(T0, life="unknown")
    state = State(since=T0)
    decision, state = decide(state, [silent], T0 + GRACE_SECONDS, never, POLICY)
    assert decision.dead == {}
    # One sign, and the time runs anew from there.
    _, state = decide(state, [replace(silent, life="alive")], T0 + GRACE_SECONDS + 10, never, POLICY)
    decision, state = decide(state, [silent], T0 + 2 * GRACE_SECONDS + 5, never, POLICY)
    assert decision.dead == {}
    decision, state = decide(state, [silent], T0 + 2 * GRACE_SECONDS + 11, lambda: 0.0, POLICY)
    assert set(decision.dead) == {"run"}


def test_a_run_that_waits_for_a_live_one_is_not_dead() -> None:
    waiting = started(T0, "waiting", life="unknown")
    decision, _ = decide(State(since=T0), [waiting, started(T0 - 9999)], T0 + 9999, never, POLICY)
    assert decision.dead == {}


def test_the_cursor_comes_back_as_it_was() -> None:
    state = State(
        since=T0,
        number=4,
        failures=2,
        retry_at=T0 + 1,
        last_error="x",
        counted=("a",),
        signs={"b": T0},
        late={"b": (T0, T0)},
    )
    assert read_state(state.model_dump_json()) == state
    assert [read_state(cursor) for cursor in (None, "", "42", "{}", "no JSON")] == [None] * 5


@dataclass
class World:
    """Runs as Dagster would have them, each with a fate; ticks come every 15 s."""

    now: float = T0
    runs: dict[str, tuple[float, str, float]] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)

    def views(self) -> list[RunView]:
        return [self.view(run_id) for run_id in self.runs]

    def view(self, run_id: str) -> RunView:
        start, fate, life = self.runs[run_id]
        if run_id in self.reported:
            return RunView(run_id, "failed", start, start, self.reported[run_id], error="killed")
        if fate == "never seen":
            return RunView(run_id, "started", start, start)
        if self.now < start + life:
            return RunView(run_id, "started", start, start, life="alive")
        if fate == "killed":
            return RunView(run_id, "started", start, start, life="gone")
        status: Any = fate
        return RunView(run_id, status, start, start, start + life, error="error")


_TICKS = 12 * (700 + 2 * 60) // 15


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    fates=st.lists(
        st.tuples(st.sampled_from(["failed", "killed", "canceled"]), st.sampled_from([1.0, 40.0, 550.0, 700.0])),
        min_size=1,
        max_size=12,
    ),
    lost=st.sets(st.integers(0, _TICKS - 1), max_size=20),
    seed=st.integers(0, 1000),
)
def test_whole_histories(fates: list[tuple[str, float]], lost: set[int], seed: int) -> None:
    """Never two at once, no key twice, never more failures in a row than allowed, even when cursors get lost."""
    world, chance = World(), random.Random(seed)
    cursor = State(since=T0).model_dump_json()
    keys: list[str] = []
    for tick in range(_TICKS):
        in_progress = [view for view in world.views() if view.in_progress]
        state = read_state(cursor)
        assert state is not None
        decision, state = decide(state, world.views(), world.now, chance.random, POLICY)
        for run_id in decision.dead:
            assert world.view(run_id).life == "gone"
            world.reported[run_id] = world.now
        if decision.launch:
            assert all(view.run_id in decision.dead for view in in_progress)
            state = state.model_copy(update={"number": state.number + 1})
            key = f"p/{state.number}"
            if key not in keys and len(keys) < len(fates):  # Dagster launches nothing for a key that it knows
                fate, life = fates[len(keys)]
                world.runs[key] = (world.now, fate, life)
                keys.append(key)
        if tick not in lost or not decision.launch:
            cursor = state.model_dump_json()
        world.now += 15
    # Computed another way: how many of the fates come to pass before four failures in a row end it.
    row, expected = 0, 0
    for fate, life in fates:
        expected += 1
        row = (0 if life >= 600 else row) + (fate != "canceled")
        if row > POLICY.max_restarts:
            break
    assert len(keys) == expected


@pytest.mark.parametrize(("fate", "life"), [("never seen", 0.0), ("killed", 20.0)])
def test_workers_that_die_at_once_are_given_up(fate: str, life: float) -> None:
    """Also where that is seen late: four hours in which the next of them would be launched."""
    policy = POLICY.model_copy(update={"healthy_minutes": 5.0})
    world, state, looks = World(), State(since=T0), 15.0 if fate == "never seen" else 400.0
    while world.now < T0 + 4 * 3600:
        decision, state = decide(state, world.views(), world.now, lambda: 1.0, policy)
        world.reported |= dict.fromkeys(decision.dead, world.now)
        if decision.launch:
            world.runs[f"run-{len(world.runs)}"] = (world.now, fate, life)
        world.now += looks
    assert len(world.runs) == 4
    assert decision.reason.startswith("gave up after 3 restarts")


def test_a_run_that_was_seen_healthy_and_then_no_more_counts_anew() -> None:
    state = State(since=T0, failures=3)
    _, state = decide(state, [started(T0)], T0 + 599, never, POLICY)
    silent = started(T0, life="unknown")
    _, state = decide(state, [silent], T0 + 700, never, POLICY)
    assert state.failures == 3
    _, seen = decide(state, [started(T0)], T0 + 601, never, POLICY)
    assert seen.failures == 0
    # Its lease tells until when it lived, whenever somebody looks.
    for renewed, failures in ((T0 + 599, 4), (T0 + 601, 1)):
        late = state.model_copy(update={"late": {"run": (renewed, T0 + 700)}})
        expired = started(T0, life="expired", renewed=renewed)
        decision, after = decide(late, [expired], T0 + 720, lambda: 0.0, POLICY)
        assert set(decision.dead) == {"run"}
        assert after.failures == failures


# Real instances.


def document(name: str = "stream", trigger: str | None = "5 seconds", **extract: Any) -> dict[str, Any]:
    load: dict[str, Any] = {"path": f"/data/{name}", "checkpointLocation": f"/checkpoints/{name}"}
    if trigger:
        load["trigger"] = trigger
    return {
        "name": name,
        "mode": "streaming",
        "sensor": {"delay": 10, "maxRestarts": 2, "interval": 5},
        "steps": [
            {"type": "extract", "method": "fromKafka", "config": {"topic": "events", "format": "text", **extract}},
            {"type": "load", "method": "toDeltaLake", "config": load},
        ],
    }


def origin_of(location: str) -> CodeLocationOrigin:
    return GrpcServerCodeLocationOrigin(host="localhost", port=4000, location_name=location)


@dataclass
class Bench:
    """The sensor of one pipeline on an instance, with a clock that can be put forward."""

    settings: Settings
    instance: dg.DagsterInstance
    ahead: float = 0.0
    cursor: str | None = None
    name: str = "stream"
    location: str | None = None
    switched_on: float | None = None

    def clock(self) -> float:
        return time.time() + self.ahead

    def sensor(self) -> dg.SensorDefinition:
        plans = plan_folder(load_folder(self.settings.configs)).plans
        (sensor,) = build_sensors(plans, self.settings, clock=self.clock, random=lambda: 1.0)
        return sensor

    def tick(self, *, save: bool = True) -> Any:
        """Return the key of the run that is requested, or the reason why there is none."""
        sensor = self.sensor()
        context = dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            log_key=None,
            repository_name="__repository__",
            instance=self.instance,
            sensor_name=sensor.name,
            last_sensor_start_time=self.switched_on,
            code_location_origin=origin_of(self.location) if self.location else None,
        )
        data = sensor.evaluate_tick(context)
        if save:
            self.cursor = data.cursor
        return data.run_requests[0].run_key if data.run_requests else data.skip_message

    def run(
        self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, process: Process | None = None, **tags: str
    ) -> dg.DagsterRun:
        """Make a run of the pipeline's job, with the events that such a one has, and tags that tell of ``process``."""
        run = create_run_for_test(
            self.instance,
            job_name=self.name,
            tags={key.replace("__", "/"): value for key, value in tags.items()},
            remote_job_origin=self._job_origin() if self.location else None,
        )
        if process is not None:
            self.instance.add_run_tags(run.run_id, process_tags(process, run.run_id))
        events = [DagsterEventType.PIPELINE_START] if status is not dg.DagsterRunStatus.NOT_STARTED else []
        if status is dg.DagsterRunStatus.CANCELED:
            events.append(DagsterEventType.PIPELINE_CANCELED)
        for kind in events:
            self.instance.report_dagster_event(DagsterEvent(kind.value, self.name), run.run_id)
        return run

    def _job_origin(self) -> RemoteJobOrigin:
        return RemoteRepositoryOrigin(origin_of(self.location or ""), "__repository__").get_job_origin(self.name)

    def executed(self, error: str | None, key: str | None = None) -> str:
        """Run a job of the pipeline's name to its end, by Dagster, and return the run's id."""

        @dg.op
        def work() -> None:
            if error:
                try:
                    raise ValueError(error)
                except ValueError as cause:
                    raise RuntimeError("wrapped") from cause

        @dg.job(name=self.name)
        def job() -> None:
            work()

        tags = {"dagster/run_key": key, "dagster/sensor_name": f"{self.name}_sensor"} if key else {}
        return job.execute_in_process(instance=self.instance, raise_on_error=False, tags=tags).run_id

    def status(self, run: dg.DagsterRun) -> dg.DagsterRunStatus:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status


@pytest.fixture
def bench(settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    settings.configs.mkdir()
    write_config(settings.configs, document())
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Bench(settings, instance)


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_definition(bench: Bench) -> None:
    sensor = bench.sensor()
    assert sensor.name == "stream_sensor"
    assert sensor.job_name == "stream"
    assert sensor.minimum_interval_seconds == 5
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert "stop this sensor first" in (sensor.description or "")
    write_config(bench.settings.configs, {**document(), "sensor": {"status": "running"}})
    assert bench.sensor().default_status is dg.DefaultSensorStatus.RUNNING


def test_keeps_one_run_alive(bench: Bench) -> None:
    assert re.fullmatch(r"stream/\d+/1", bench.tick())
    run = bench.run(process=Process(socket.gethostname(), os.getpid()))
    assert f"run {run.run_id} is in progress" in bench.tick()
    bench.ahead = 10_000
    assert f"run {run.run_id} is in progress" in bench.tick()


def test_a_repeated_tick_asks_for_the_same_run(bench: Bench) -> None:
    bench.tick()
    bench.run(dg.DagsterRunStatus.CANCELED)
    second = bench.tick(save=False)
    assert second.endswith("/3")
    assert bench.tick(save=False) == second


def test_a_failed_run_is_replaced_after_a_while(bench: Bench) -> None:
    key = bench.tick()
    bench.executed("no space left\non device", key)
    said = bench.tick()
    assert re.fullmatch(r"restart 1 of 2 waits until .* UTC, the last run failed: .*no space left", said), said
    bench.ahead = 11
    assert bench.tick() == f"{key.removesuffix('/1')}/3"


def test_after_a_reset_keys_do_not_come_again(bench: Bench) -> None:
    keys = [bench.tick()]
    bench.executed("boom", keys[0])
    bench.ahead = 11
    keys.append(bench.tick())
    # As the UI's "re-execute" of an early run does: it has the key of that one.
    bench.executed("boom", keys[0])
    bench.cursor = None
    bench.ahead = 100
    assert bench.tick() not in keys
    assert bench.tick() not in keys


def test_a_sensor_is_switched_on_once_where_clocks_differ(bench: Bench) -> None:
    bench.switched_on = bench.clock() + 60
    first = bench.tick()
    bench.run(dg.DagsterRunStatus.CANCELED)
    assert bench.tick() == f"{first.removesuffix('/1')}/2"


@pytest.mark.parametrize("trigger", ["5 seconds", "availableNow"])
def test_a_sensor_that_is_switched_on_begins_anew(bench: Bench, trigger: str) -> None:
    write_config(bench.settings.configs, document(trigger=trigger, missingTopic="wait"))
    connect(bench, "127.0.0.1:1")
    for number in range(3):
        bench.tick()
        bench.executed(f"boom {number}")
    assert bench.tick().startswith("gave up after 2 restarts")
    bench.switched_on = bench.clock()
    begun = bench.tick()
    assert begun.startswith("stream/" if trigger == "5 seconds" else "no Kafka broker at 127.0.0.1:1")
    bench.executed("boom again")
    assert "restart 1 of 2" in bench.tick()


def test_a_canceled_run_is_started_again_at_once(bench: Bench) -> None:
    bench.tick()
    bench.run(dg.DagsterRunStatus.CANCELED)
    assert bench.tick().startswith("stream/")


def test_a_killed_worker_is_reported_and_replaced(bench: Bench) -> None:
    bench.tick()
    instance = bench.instance
    run = bench.run(process=Process(socket.gethostname(), ended_process()))
    instance.event_log_storage.set_concurrency_slots("pool", 1)
    claim = instance.event_log_storage.claim_concurrency_slot("pool", run.run_id, "step")
    assert claim.is_claimed
    assert "restart 1 of 2 waits until" in bench.tick()
    assert bench.status(run) is dg.DagsterRunStatus.FAILURE
    assert instance.event_log_storage.get_concurrency_info("pool").active_slot_count == 0
    bench.ahead = 11
    assert bench.tick().startswith("stream/")


def test_places_in_the_pool_are_given_back_once_for_each_run_that_has_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bench.executed("boom")
    freed: list[str] = []
    monkeypatch.setattr(bench.instance.event_log_storage, "free_concurrency_slots_for_run", freed.append)
    key = bench.tick()
    assert freed == [old]
    run_id = bench.executed("boom", key)
    freed.clear()
    assert "restart 1 of 2 waits until" in bench.tick()
    assert freed == [run_id]
    bench.ahead = 11
    assert bench.tick().startswith("stream/")
    assert freed == [run_id]


@pytest.mark.parametrize(
    ("process", "age", "dead"),
    [
        (Process("elsewhere.example", 1), 0, False),
        (Process("elsewhere.example", 1), 61, True),
        (None, 0, True),
    ],
    ids=["renewed", "expired", "ended here"],
)
def test_the_lease_tells_whether_a_run_lives(bench: Bench, process: Process | None, age: float, dead: bool) -> None:
    bench.tick()
    run = bench.run(process=Process("elsewhere.example", 1))
    checkpoint = Checkpoint.at(bench.settings.resolve("/checkpoints/stream"), "default", Connections())
    then = datetime.now(UTC) - timedelta(seconds=age)
    holder = process or replace(Process.this(), pid=ended_process())
    Holder(run.run_id, holder, "token", then, then, 60).write(checkpoint)
    said = bench.tick()
    if age > 60:
        assert f"run {run.run_id} is in progress" in said
        bench.ahead = 15
        said = bench.tick()
    assert (bench.status(run) is dg.DagsterRunStatus.FAILURE) is dead
    assert ("restart 1 of 2" in said) is dead


def test_a_worker_that_is_seen_to_live_is_alive_whatever_its_lease_says(bench: Bench) -> None:
    """As after the machine was suspended, or the storage of checkpoints was away: nor is it asked then."""
    bench.tick()
    run = bench.run(process=THIS)
    checkpoint = Checkpoint.at(bench.settings.resolve("/checkpoints/stream"), "default", Connections())
    then = datetime.now(UTC) - timedelta(hours=1)
    Holder(run.run_id, THIS, "token", then, then, 60).write(checkpoint)
    for bench.ahead in (0, 15, 400):
        assert f"run {run.run_id} is in progress" in bench.tick()


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tick()
    run = bench.run(process=replace(THIS, pid=ended_process()))
    is_gone = Process.is_gone

    def ends(process: Process) -> bool:
        canceled = DagsterEvent(DagsterEventType.PIPELINE_CANCELED.value, bench.name)
        bench.instance.report_dagster_event(canceled, run.run_id)
        return is_gone(process)

    monkeypatch.setattr(Process, "is_gone", ends)
    assert bench.tick().startswith("stream/")
    assert bench.status(run) is dg.DagsterRunStatus.CANCELED


THIS = Process.this()
PROC = pytest.mark.skipif(THIS.machine is None, reason="without /proc a process is known by its number alone")


@PROC
@pytest.mark.parametrize(
    ("process", "said"),
    [
        (THIS, "is in progress"),
        # As after a reboot or a restart of the container: the number is another process's.
        (replace(THIS, started=0), f"process {THIS.pid} on host {THIS.host} has ended"),
        (replace(THIS, machine="another boot"), "no sign of life for 300 s"),
        # Of another container with the same name: its numbers are not ours.
        (replace(THIS, machine="another namespace", pid=2**22 + 1), "no sign of life for 300 s"),
    ],
    ids=["this one", "number taken again", "other boot", "other namespace"],
)
def test_a_run_is_known_by_more_than_the_number_of_its_process(bench: Bench, process: Process, said: str) -> None:
    bench.tick()
    bench.run(process=process)
    found = bench.tick()
    if said.startswith("no sign"):
        assert "is in progress" in found
        bench.ahead = 310
        found = bench.tick()
    assert said in found


def test_tags_of_processes_come_back() -> None:
    for process in (THIS, Process("host", 7), Process("host", 7, "machine", 9)):
        tags = process_tags(process, "own")
        assert tagged_process(dg.DagsterRun("job", run_id="own", tags=tags)) == process
        assert tagged_process(dg.DagsterRun("job", run_id="other", tags=tags)) is None
    assert tagged_process(dg.DagsterRun("job", run_id="own")) is None


@pytest.mark.parametrize(("executor", "told"), [("in_process", THIS), ("multiprocess", None)])
def test_a_run_tells_its_process_where_it_has_but_one(bench: Bench, executor: str, told: Process | None) -> None:
    """That of a step ends before its run does."""
    job = build_definitions(replace(bench.settings, executor=executor)).resolve_job_def("stream")
    # It fails for want of Spark.
    result = job.execute_in_process(instance=bench.instance, resources={"spark": object()}, raise_on_error=False)
    run = bench.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert tagged_process(run) == told


def test_a_run_that_is_executed_again_is_not_taken_for_the_process_of_the_first(bench: Bench) -> None:
    bench.tick()
    first = bench.run(process=replace(THIS, pid=ended_process()))
    assert "restart 1 of 2" in bench.tick()
    ended = bench.instance.get_run_by_id(first.run_id)
    assert ended is not None
    again = bench.run(**ended.tags)
    assert f"run {again.run_id} is in progress" in bench.tick()
    assert bench.status(again) is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize(("age", "dead"), [(0, False), (61, True)], ids=["renewed", "expired"])
@pytest.mark.parametrize("number", [os.getpid, ended_process], ids=["taken again", "free"])
def test_a_lease_counts_more_than_the_number_of_a_process(
    bench: Bench, number: Callable[[], int], age: float, dead: bool
) -> None:
    """The run's tags were written without /proc, and the machine is another one with the same name."""
    bench.tick()
    process = Process(socket.gethostname(), number())
    run = bench.run(process=process)
    checkpoint = Checkpoint.at(bench.settings.resolve("/checkpoints/stream"), "default", Connections())
    then = datetime.now(UTC) - timedelta(seconds=age)
    Holder(run.run_id, replace(process, machine="another"), "token", then, then, 60).write(checkpoint)
    bench.tick()
    bench.ahead = 15
    said = bench.tick()
    assert ("it has stopped renewing its lease" in said) is dead
    assert (bench.status(run) is dg.DagsterRunStatus.FAILURE) is dead


def test_a_run_of_another_code_location_is_left_alone(bench: Bench) -> None:
    """As with staging and production in one instance: the checkpoint of the one is not that of the other."""
    production, staging = replace(bench, location="production"), replace(bench, location="staging")
    run = production.run(dagster__sensor_name="stream_sensor", dagster__run_key="stream/1/7")
    assert staging.tick().endswith("/1")
    # By now one that shows no lease would be filed as failed.
    staging.ahead = GRACE_SECONDS + 10
    assert staging.tick().endswith("/2")
    assert bench.status(run) is dg.DagsterRunStatus.STARTED
    staging.ahead = 0
    own = staging.run()
    assert f"run {own.run_id} is in progress" in staging.tick()
    assert f"run {run.run_id} is in progress" in production.tick()


def test_failures_are_counted_however_many_runs_another_location_has_had_since(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_ENDED_RUNS", 2)
    production, staging = replace(bench, location="production"), replace(bench, location="staging")
    production.tick()
    own = production.run()
    for _ in range(3):
        staging.run(dg.DagsterRunStatus.CANCELED)
    bench.instance.report_run_failed(own)
    assert "restart 1 of 2 waits until" in production.tick()


@pytest.mark.parametrize("location", ["staging", None])
def test_a_run_that_no_code_location_has_launched_is_looked_after(bench: Bench, location: str | None) -> None:
    """As one of `dagster job execute`."""
    run = bench.run()
    bench.location = location
    assert f"run {run.run_id} is in progress" in bench.tick()


def test_without_tags_and_lease_a_run_has_five_minutes(bench: Bench) -> None:
    bench.tick()
    run = bench.run()
    bench.ahead = 290
    assert "is in progress" in bench.tick()
    bench.ahead = 310
    assert "no sign of life for 300 s" in bench.tick()
    assert bench.status(run) is dg.DagsterRunStatus.FAILURE


def test_a_run_that_was_made_and_not_launched_is_asked_for_again(bench: Bench) -> None:
    key = bench.tick(save=False)
    bench.run(dg.DagsterRunStatus.NOT_STARTED, dagster__run_key=key, dagster__sensor_name="stream_sensor")
    assert bench.tick() == key


def test_brokers_have_their_time_however_long_the_rest_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(bench.settings.configs, document(trigger="availableNow", startingOffsets="earliest"))
    connect(bench, "127.0.0.1:1")
    clock = MonotonicClock()
    for module in (sensors, backlog):
        monkeypatch.setattr(module, "time", clock)
    allowed: list[float] = []
    run_records = bench.instance.get_run_records

    def slow_storage(*args: Any, **more: Any) -> Any:
        clock.now += 10
        return run_records(*args, **more)

    def slow_vault(*_: Any) -> dict[str, Any]:
        clock.now += 3
        return {}

    def answer(*_: Any, timeout: float, **__: Any) -> dict[str, dict[int, int]]:
        allowed.append(timeout)
        clock.now += 0.2
        return {"events": {0: 4}}

    monkeypatch.setattr(bench.instance, "get_run_records", slow_storage)
    monkeypatch.setattr(backlog, "client_settings", slow_vault, raising=False)
    monkeypatch.setattr(backlog, "read_offsets", answer)
    assert bench.tick() == "no new records: events/0 at 4 of 4"
    assert allowed == pytest.approx([0.5, 0.3])


# New data, with a real broker.


@pytest.fixture
def produce(kafka: KafkaServer) -> Callable[[str, int, int], None]:
    from confluent_kafka import Producer

    def send(topic: str, partition: int, count: int) -> None:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for number in range(count):
            producer.produce(topic, str(number), partition=partition)
        assert producer.flush(30) == 0

    return send


@pytest.fixture
def topic(kafka: KafkaServer) -> str:
    name = f"sensor-{uuid.uuid4().hex[:8]}"
    new_topic(kafka, name, 2)
    return name


@pytest.fixture
def on_data(bench: Bench, kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The sensor of a pipeline that takes what there is in a topic of two partitions, from its beginning."""
    # What is right does not depend on how busy the machine is.
    monkeypatch.setattr(Sensor.model_fields["broker_timeout"], "default", 5.0)
    connect(bench, kafka.bootstrap_servers)
    write_config(bench.settings.configs, document(trigger="availableNow", topic=topic, startingOffsets="earliest"))
    return bench


def connect(bench: Bench, servers: str) -> None:
    write_config(bench.settings.configs, {"kafka": {"default": {"bootstrapServers": servers}}}, "connections.json")


def commit(bench: Bench, batch: int, *sources: str, committed: bool = True, name: str = "stream") -> None:
    """Write what Spark writes for a micro-batch."""
    folder = Path(bench.settings.resolve(f"/checkpoints/{name}"))
    for kind, lines in (("offsets", ["v1", "{}", *sources]), ("commits", ["v1", "{}"])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if kind == "offsets" or committed:
            (folder / kind / str(batch)).write_text("\n".join(lines))


def test_a_run_for_new_records_only(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    assert on_data.tick() == f"no new records: {topic}/0 at 0 of 0, {topic}/1 at 0 of 0"
    produce(topic, 1, 3)
    key = on_data.tick()
    assert re.fullmatch(r"stream/\d+/\d+/[0-9a-f]{16}", key), key
    assert on_data.tick() == key  # nothing has changed: Dagster launches it once
    commit(on_data, 0, f'{{"{topic}":{{"0":0,"1":3}}}}', committed=False)
    assert on_data.tick() == key  # planned is not processed
    commit(on_data, 0, f'{{"{topic}":{{"0":0,"1":3}}}}')
    assert on_data.tick() == f"no new records: {topic}/0 at 0 of 0, {topic}/1 at 3 of 3"
    produce(topic, 0, 2)
    assert on_data.tick() not in (key, None)


def test_a_run_for_another_checkpoint(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    """In which nothing is yet, as there was nothing in the one before: Dagster knows that one's key."""
    produce(topic, 1, 3)
    first = on_data.tick()
    config = document(trigger="availableNow", topic=topic, startingOffsets="earliest")
    config["steps"][1]["config"]["checkpointLocation"] = "/checkpoints/other"
    write_config(on_data.settings.configs, config)
    second = on_data.tick()
    assert second.startswith("stream/")
    assert second != first
    # What Spark writes at a first start, which may read nothing.
    folder = Path(on_data.settings.resolve("/checkpoints/other"))
    folder.mkdir(parents=True)
    keys = [first, second]
    for query in ("a", "b"):
        (folder / "metadata").write_text(json.dumps({"id": query}))
        keys.append(on_data.tick())
        assert on_data.tick() == keys[-1]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("looked", [True, False], ids=["at rest", "never at rest"])
def test_a_run_for_a_checkpoint_that_was_deleted(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None], looked: bool
) -> None:
    """Also where it is deleted again, and when what there is never gets read to its end."""
    produce(topic, 0, 3)
    keys = []
    for _ in range(3):
        keys.append(on_data.tick())
        on_data.executed(None, keys[-1])
        commit(on_data, 0, f'{{"{topic}":{{"0":{3 if looked else 2},"1":0}}}}')
        if looked:
            assert on_data.tick().startswith("no new records")
        else:
            keys.append(on_data.tick())
            on_data.executed(None, keys[-1])
            assert on_data.tick() == keys[-1]
        shutil.rmtree(on_data.settings.resolve("/checkpoints/stream"))
    assert all(key.startswith("stream/") for key in keys)
    assert len(set(keys)) == (3 if looked else 6)


def test_a_failed_run_for_new_records_is_tried_again(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    produce(topic, 0, 1)
    key = on_data.tick()
    on_data.executed("boom", key)
    assert "restart 1 of 2 waits until" in on_data.tick()
    on_data.ahead = 11
    second = on_data.tick()
    assert second.rpartition("/")[2] == key.rpartition("/")[2]
    assert second != key
    on_data.executed(None, second)
    commit(on_data, 0, f'{{"{topic}":{{"0":1,"1":0}}}}')
    assert on_data.tick().startswith("no new records")


def test_no_run_while_one_is_in_progress(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    produce(topic, 0, 1)
    on_data.run(process=Process(socket.gethostname(), os.getpid()))
    assert "is in progress" in on_data.tick()


def test_a_stream_from_the_latest_offsets_starts_once(on_data: Bench, topic: str) -> None:
    write_config(on_data.settings.configs, document(trigger="once", topic=topic, startingOffsets="latest"))
    assert on_data.tick().startswith("stream/")
    # Its first start keeps where it begins, and there may be no batch.
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_from_kafka", {"startingOffsets": {topic: {"0": 0, "1": 0}}})
    assert on_data.tick().startswith("no new records")


def test_another_beginning_before_anything_was_read(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    produce(topic, 0, 2)
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    asked = {"topic": topic, "connection": "default", "startingOffsets": "latest"}
    kept = {"startingOffsets": {topic: {"0": 2, "1": 0}}, "configured": asked}
    checkpoint.write_document("source_from_kafka", kept)
    assert on_data.tick().startswith("stream/")  # from the earliest
    checkpoint.write_document("source_from_kafka", {**kept, "configured": {**asked, "startingOffsets": "earliest"}})
    assert on_data.tick() == f"no new records: {topic}/0 at 2 of 2, {topic}/1 at 0 of 0"


def test_a_topic_that_ends_before_what_was_read_is_started_for(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    """It was made again: the run says so."""
    produce(topic, 0, 2)
    commit(on_data, 0, f'{{"{topic}":{{"0":3,"1":0}}}}')
    assert on_data.tick().startswith("stream/")
    produce(topic, 0, 1)
    assert on_data.tick() == f"no new records: {topic}/0 at 3 of 3, {topic}/1 at 0 of 0"


def test_starting_offsets_by_partition(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    produce(topic, 0, 2)
    produce(topic, 1, 2)
    starting = {topic: {"0": 2, "1": -1}}
    write_config(on_data.settings.configs, document(trigger="once", topic=topic, startingOffsets=starting))
    assert on_data.tick() == f"no new records: {topic}/0 at 2 of 2, {topic}/1 at 2 of 2"
    produce(topic, 0, 1)
    assert on_data.tick().startswith("stream/")


def test_the_load_that_is_furthest_behind_counts(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    config = document(trigger="once", topic=topic, startingOffsets="earliest")
    config["steps"].append({
        "type": "load", "method": "toDeltaLake",
        "config": {"path": "/data/b", "checkpointLocation": "/checkpoints/b", "trigger": "availableNow"},
    })  # fmt: skip
    write_config(on_data.settings.configs, config)
    produce(topic, 0, 2)
    commit(on_data, 0, f'{{"{topic}":{{"0":2,"1":0}}}}')
    commit(on_data, 0, f'{{"{topic}":{{"0":1,"1":0}}}}', name="b")
    assert on_data.tick().startswith("stream/")
    commit(on_data, 1, f'{{"{topic}":{{"0":2,"1":0}}}}', name="b")
    assert on_data.tick().startswith("no new records")


def test_a_missing_topic_fails_the_tick_unless_it_is_waited_for(on_data: Bench) -> None:
    write_config(on_data.settings.configs, document(trigger="once", topic="not-there"))
    with pytest.raises(ConfigurationError, match="there is no Kafka topic 'not-there'"):
        on_data.tick()
    waits = document(trigger="once", topic="not-there", missingTopic="wait", startingOffsets="earliest")
    write_config(on_data.settings.configs, waits)
    assert on_data.tick() == "waiting for Kafka topic 'not-there' to be there"


@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_stream_that_waits_begins_before_its_topic(
    on_data: Bench, kafka: KafkaServer, by_pattern: bool, produce: Callable[[str, int, int], None]
) -> None:
    """So that what is in the topic when it comes is read, where the stream begins at the latest offsets."""
    name = f"later-{uuid.uuid4().hex[:8]}"
    which = {"topicPattern": name, "topic": None} if by_pattern else {"topic": name}
    write_config(on_data.settings.configs, document(trigger="once", missingTopic="wait", **which))
    assert on_data.tick().startswith("stream/")
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_from_kafka", {"startingOffsets": {}})
    awaited = f"a topic like '{name}'" if by_pattern else f"topic '{name}'"
    assert on_data.tick() == f"waiting for Kafka {awaited} to be there"
    new_topic(kafka, name, 2)
    assert on_data.tick() == f"no new records: {name}/0 at 0 of 0, {name}/1 at 0 of 0"
    produce(name, 1, 3)
    assert on_data.tick().startswith("stream/")


def test_a_stream_begins_whichever_of_its_topics_is_there(on_data: Bench, topic: str) -> None:
    awaited = {"topic": "not-there", "missingTopic": "wait", "registerAs": "awaited"}
    config = document(trigger="once", startingOffsets="earliest", **awaited)
    latest = {"topic": topic, "format": "text", "registerAs": "others"}
    config["steps"][1:1] = [
        {"type": "extract", "method": "fromKafka", "config": latest},
        {"type": "transform", "method": "union", "config": {"inputDataFrames": ["awaited", "others"]}},
    ]
    write_config(on_data.settings.configs, config)
    assert on_data.tick().startswith("stream/")
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_others", {"startingOffsets": {topic: {"0": 0, "1": 0}}})
    assert on_data.tick() == "waiting for Kafka topic 'not-there' to be there"


def test_brokers_that_do_not_answer_are_skipped(on_data: Bench, topic: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connect(on_data, f"127.0.0.1:{port}")
        assert f"no Kafka broker at 127.0.0.1:{port} answered" in on_data.tick()
    assert f"no Kafka broker at 127.0.0.1:{port} answered" in on_data.tick()


def test_many_partitions_are_shortened(on_data: Bench, kafka: KafkaServer) -> None:
    name = f"wide-{uuid.uuid4().hex[:8]}"
    new_topic(kafka, name, 12)
    write_config(on_data.settings.configs, document(trigger="once", topic=name, startingOffsets="earliest"))
    said = on_data.tick()
    assert said.count(" of 0") == 8
    assert said.endswith(", and 4 more")


# New data in Delta tables, which a real Spark writes and streams.


def test_a_run_for_new_versions_of_a_table(bench: Bench, spark: SparkSession) -> None:
    config = document(trigger="availableNow")
    config["steps"][0] = {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/in"}}
    write_config(bench.settings.configs, config)
    table, checkpoint = bench.settings.resolve("/in"), bench.settings.resolve("/checkpoints/stream")

    def stream() -> None:
        changes = spark.readStream.format("delta").load(table)
        written = changes.writeStream.format("noop").option("checkpointLocation", checkpoint)
        assert written.trigger(availableNow=True).start().awaitTermination(60)

    assert "there is no Delta table at" in bench.tick()
    for _ in range(2):
        spark.range(3).write.format("delta").mode("append").save(table)
    key = bench.tick()
    assert re.fullmatch(r"stream/\d+/\d+/[0-9a-f]{16}", key)
    stream()
    assert bench.tick() == "no new records: /in version at 1 of 1"
    spark.range(3).write.format("delta").mode("append").save(table)
    second = bench.tick()
    assert second.startswith("stream/")
    assert second != key
    stream()
    assert bench.tick() == "no new records: /in version at 2 of 2"


def test_pools_are_those_of_checkpoints(bench: Bench) -> None:
    """Staging and production in one instance do not keep each other waiting; two of the same checkpoints do."""
    write_config(bench.settings.configs, document())

    def pool(prefix: str) -> str:
        definitions = build_definitions(replace(bench.settings, path_prefix=prefix))
        (op,) = definitions.resolve_job_def("stream").nodes_in_topological_order
        return op.definition.pool or ""  # type: ignore[attr-defined]

    assert pool("/staging") == pool("/staging/")
    assert pool("/staging") != pool("/production")
