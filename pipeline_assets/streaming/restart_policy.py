"""When a streaming pipeline is started again: from the runs there are to what to do. Pure: no clock, no Dagster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline_assets.config import Sensor

# How long a run that is said to be in progress may show no sign of life.
GRACE_SECONDS = 300.0
# How long a lease that has run out may still be renewed: whoever holds it tries that every ten seconds, also after a
# suspended machine has woken up, or the storage of checkpoints is back.
LATE_SECONDS = 12.0
RunStatus = Literal["pending", "started", "canceling", "success", "failed", "canceled"]
Life = Literal["alive", "gone", "expired", "unknown"]


@dataclass(frozen=True)
class RunView:
    """A run of the pipeline's job, as the sensor sees it. Times are seconds since the epoch.

    ``life`` is that of the worker of a started run, with ``sign`` saying how that is known. ``expired``: its lease has
    run out, which was renewed last at ``renewed``. ``error`` is one line.
    """

    run_id: str
    status: RunStatus
    created: float
    started: float | None = None
    ended: float | None = None
    life: Life = "unknown"
    sign: str = ""
    renewed: float = 0.0
    error: str = ""

    @property
    def in_progress(self) -> bool:
        """Whether Dagster takes it for one that has not ended."""
        return self.status in ("pending", "started", "canceling")

    def lived(self, until: float) -> float:
        """Return for how long it had run by ``until``."""
        return max(0.0, until - self.started) if self.started else 0.0


class State(BaseModel):
    """What the sensor remembers between ticks: its cursor."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    since: float
    """When it was begun. Runs that ended before this time are no concern."""
    number: int = 0
    """The number in run keys: with each launch that did not go well it grows, and with each change of the backlog, so
    that no such key comes twice."""
    backlog: str = ""
    """What the data was like when it was last looked at: a fingerprint."""
    failures: int = 0
    """Failed runs one after the other."""
    retry_at: float = 0.0
    last_error: str = ""
    counted: tuple[str, ...] = ()
    """Ended runs that have been seen: they are in these numbers already, or are no concern."""
    counted_until: float = 0.0
    """When the last of them ended. Those that ended before are no concern, also when later ones are deleted."""
    signs: Mapping[str, float] = {}
    """When each run in progress was last seen alive."""
    late: Mapping[str, tuple[float, float]] = {}
    """Of each run whose lease has run out: when it was renewed last, and when that was first seen."""

    @property
    def concerned_from(self) -> float:
        """Runs that ended before this time are no concern."""
        return max(self.since, self.counted_until)


@dataclass(frozen=True)
class Decision:
    """What to do now: launch a run, or not and why; and before that, report as failed the runs in ``dead``."""

    launch: bool
    reason: str
    dead: Mapping[str, str] = field(default_factory=dict)


def read_state(cursor: str | None) -> State | None:
    """Return the state in ``cursor``; None when there is none, as after a reset."""
    try:
        return State.model_validate_json(cursor) if cursor else None
    except ValidationError:
        return None  # of an older version, or written by hand: as if it had been reset


def decide(
    state: State, runs: Sequence[RunView], now: float, random: Callable[[], float], policy: Sensor
) -> tuple[Decision, State]:
    """Return what to do at ``now`` and the state after it, which does not count a launch yet.

    ``runs``: those in progress and the last that ended, in any order. ``random`` returns numbers from 0 to 1.
    """
    # One that lives keeps others from the pool's slot, and they can't say that they wait.
    signs = {run.run_id: now for run in runs if run.in_progress and any(other.life == "alive" for other in runs)}
    late = {run.run_id: _late_since(state, run, now) for run in runs if run.life == "expired"}
    state = state.model_copy(update={"signs": {**state.signs, **signs}, "late": late})
    dead = {run.run_id: reason for run in runs if (reason := _death(run, state, now))}
    alive = [run for run in runs if run.in_progress and run.run_id not in dead]
    for run in sorted(runs, key=lambda run: run.ended or now):
        ended = lived_until = run.ended or now
        if run.run_id in dead:
            # The time in which nobody has seen it alive is no health.
            lived_until = max(run.renewed, state.signs.get(run.run_id, 0.0))
            run = replace(run, status="failed", ended=ended, error=dead[run.run_id])
        if run.in_progress or run.run_id in state.counted:
            continue
        if ended >= state.concerned_from:
            state = _count(state, run, lived_until, now, random, policy).model_copy(update={"counted_until": ended})
        state = state.model_copy(update={"counted": (*state.counted, run.run_id)})
    if any(run.life == "alive" and run.lived(now) >= policy.healthy_minutes * 60 for run in alive):
        state = state.model_copy(update={"failures": 0, "retry_at": 0.0, "last_error": ""})
    here = {run.run_id for run in runs}
    state = state.model_copy(
        update={
            "signs": {run.run_id: state.signs[run.run_id] for run in alive if run.run_id in state.signs},
            "counted": tuple(run_id for run_id in state.counted if run_id in here),
        }
    )
    launch, reason = _next_step(state, alive, now, policy)
    return Decision(launch, reason, dead), state


def _late_since(state: State, run: RunView, now: float) -> tuple[float, float]:
    """Return when the lease of ``run`` was renewed last, and since when it is known to have run out since then."""
    renewed, seen = state.late.get(run.run_id, (0.0, now))
    return run.renewed, seen if renewed == run.renewed else now


def _death(run: RunView, state: State, now: float) -> str | None:
    """Return why a run in progress counts as dead; None when it does not."""
    if run.status != "started" or run.life == "alive":
        return None
    if run.life == "gone":
        return f"the run's worker was killed ({run.sign}): the run is replaced"
    if run.life == "expired":
        if now - state.late[run.run_id][1] < LATE_SECONDS:
            return None
        return "the run's worker was killed (it has stopped renewing its lease on the checkpoint): the run is replaced"
    last = max(run.started or run.created, state.signs.get(run.run_id, 0.0))
    if now - last <= GRACE_SECONDS:
        return None
    return f"the run's worker has shown no sign of life for {GRACE_SECONDS:g} s: the run is replaced"


def _count(
    state: State, run: RunView, lived_until: float, now: float, random: Callable[[], float], policy: Sensor
) -> State:
    """Return the state after the end of ``run``, which is known to have lived until ``lived_until``."""
    healthy = run.lived(lived_until) >= policy.healthy_minutes * 60
    failures = 0 if healthy or run.status == "success" else state.failures
    if run.status == "success":
        return state.model_copy(update={"failures": failures})
    if run.status == "canceled":
        return state.model_copy(update={"failures": failures, "number": state.number + 1})
    ceiling = min(policy.max_delay, policy.delay * 2.0 ** min(failures, 60))
    # Full jitter: pipelines that failed together do not come back together.
    retry_at = (run.ended or now) + random() * ceiling
    return state.model_copy(
        update={
            "failures": failures + 1,
            "number": state.number + 1,
            "retry_at": retry_at,
            "last_error": run.error,
        }
    )


def _next_step(state: State, alive: Sequence[RunView], now: float, policy: Sensor) -> tuple[bool, str]:
    if alive:
        run = min(alive, key=lambda run: run.created)
        return False, f"run {run.run_id} is in progress since {clock_time(run.started or run.created)}"
    error = f": {state.last_error}" if state.last_error else ""
    if state.failures > policy.max_restarts:
        return False, (
            f"gave up after {policy.max_restarts} restarts, the last run failed{error}. Fix the cause, then switch "
            f"this sensor off and on, or launch the job by hand: when its run has lived for {policy.healthy_minutes:g} "
            "minutes, restarts are counted anew"
        )
    attempt = f"restart {state.failures} of {policy.max_restarts}"
    if state.failures and now < state.retry_at:
        return False, f"{attempt} waits until {clock_time(state.retry_at)}, the last run failed{error}"
    return True, f"{attempt}, the last run failed{error}" if state.failures else "no run is in progress"


def clock_time(seconds: float) -> str:
    """Return a time for a person to read."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
