"""What sensors make of the runs of their streams, on real Dagster instances."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType

from pipeline_assets import sensors
from pipeline_assets.code_location import build_definitions
from pipeline_assets.connections import Connections
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming import backlog
from pipeline_assets.streaming.checkpoint_lease import Holder, Process
from pipeline_assets.streaming.process_tags import process_tags, tagged_process
from pipeline_assets.streaming.restart_policy import GRACE_SECONDS
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.sensors.bench import Bench, connect, document


@dataclass
class MonotonicClock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


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
    assert re.fullmatch(r"restart 1 of 2 waits until .* UTC, the last run failed: no space left", said), said
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


@pytest.mark.parametrize("assets", [[("stream", "events"), ("other", "table")], []], ids=["some", "all"])
def test_a_stream_that_runs_with_other_assets_is_not_started_again(bench: Bench, assets: list[tuple[str, str]]) -> None:
    """As by "Materialize all": the stream's step may begin late, and tells nothing before."""
    run = bench.run_of_assets(*assets)
    for bench.ahead in (0, GRACE_SECONDS + 10):
        assert f"run {run.run_id} is in progress" in bench.tick()


def test_a_run_of_several_assets_whose_worker_was_killed_is_replaced(bench: Bench) -> None:
    bench.tick()
    run = bench.run_of_assets(("stream", "events"), process=replace(THIS, pid=ended_process()))
    assert "restart 1 of 2 waits until" in bench.tick()
    assert bench.status(run) is dg.DagsterRunStatus.FAILURE
    bench.ahead = 11
    assert bench.tick().startswith("stream/")


def test_a_run_of_other_assets_is_left_alone(bench: Bench) -> None:
    run = bench.run_of_assets(("streams", "events"), process=replace(THIS, pid=ended_process()))
    assert bench.tick().startswith("stream/")
    assert bench.status(run) is dg.DagsterRunStatus.STARTED


def test_in_a_run_of_several_assets_the_streams_step_counts(bench: Bench) -> None:
    """Where each has a process of its own, others go on when that of the stream is gone."""
    run = bench.run_of_assets(("stream", "events"), ("other", "table"))
    checkpoint = Checkpoint.at(bench.settings.resolve("/checkpoints/stream"), "default", Connections())
    now = datetime.now(UTC)
    bench.step_event(run, DagsterEventType.STEP_SUCCESS, "other__table")
    bench.step_event(run, DagsterEventType.STEP_START, "stream__stream")
    assert f"run {run.run_id} is in progress" in bench.tick()
    Holder(run.run_id, replace(THIS, pid=ended_process()), "token", now, now, 60).write(checkpoint)
    bench.step_event(run, DagsterEventType.STEP_SKIPPED, "stream__stream")
    assert bench.tick().startswith("stream/")
    assert bench.status(run) is dg.DagsterRunStatus.STARTED


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


def test_pools_are_those_of_checkpoints(bench: Bench) -> None:
    """Staging and production in one instance do not keep each other waiting; two of the same checkpoints do."""
    write_config(bench.settings.configs, document())

    def pool(prefix: str) -> str:
        definitions = build_definitions(replace(bench.settings, path_prefix=prefix))
        (op,) = definitions.resolve_job_def("stream").nodes_in_topological_order
        return op.definition.pool or ""  # type: ignore[attr-defined]

    assert pool("/staging") == pool("/staging/")
    assert pool("/staging") != pool("/production")
