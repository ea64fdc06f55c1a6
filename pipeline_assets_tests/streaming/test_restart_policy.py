"""When a stream is started again: whole histories of runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline_assets.config import Sensor
from pipeline_assets.streaming.restart_policy import GRACE_SECONDS, RunView, State, decide, read_state

POLICY = Sensor(max_restarts=3, delay=10, max_delay=60, healthy_minutes=10)
T0 = 1_000_000.0


def started(at: float, run_id: str = "run", **more: Any) -> RunView:
    return RunView(run_id, "started", at, at, **{"life": "alive", **more})


def failed(at: float, lived: float = 1, run_id: str = "run", error: str = "boom") -> RunView:
    return RunView(run_id, "failed", at - lived, at - lived, at, error=error)


def never() -> float:
    raise AssertionError("no random number is needed here")


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
