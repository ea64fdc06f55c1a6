"""What the event log of a run has of its ops."""

# No postponed annotations here, as in all modules that know Dagster's events.
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource, StepFailureData

from pipeline_assets.asset_metadata import STAGE_TIMES
from pipeline_assets.dagster_failures import error_text, failure_kind, failure_text, own_words
from pipeline_assets.errors import first_line
from pipeline_assets.metrics.dagster_events import is_wait
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.report.event_log import values_of
from pipeline_assets.report.model import Attempt, Failure, OpReport, Status
from pipeline_assets.spark.job_metrics import WORK_NUMBERS


class OpEvents:
    """How the ops of a run went."""

    def __init__(self, selected: Iterable[str]) -> None:
        self._attempts: dict[str, list[Attempt]] = {key: [] for key in selected}
        self._skipped: set[str] = set()
        self._waits_since: dict[str, float] = {}
        self._failures: dict[str | None, Failure] = {}
        self.work: dict[str, dict[str, Any]] = {}  # of the Spark jobs of those that failed, by key

    def keys(self) -> list[str]:
        return list(self._attempts)

    def attempts(self, key: str) -> tuple[Attempt, ...]:
        return tuple(self._attempts[key])

    def take(self, entry: dg.EventLogEntry) -> None:
        event = entry.get_dagster_event()
        if event.event_type is dg.DagsterEventType.RUN_FAILURE:
            error = event.job_failure_data.error
            message = error_text(error) if error else first_line(event.message or "the run has failed")
            self._failures[None] = Failure(message, more={"trace": error.to_string()} if error else {})
            return
        key = event.step_key or ""
        if event.event_type is dg.DagsterEventType.ENGINE_EVENT:
            if is_wait(event):
                self._waits_since[key] = entry.timestamp
            return
        attempts = self._attempts.setdefault(key, [])
        match event.event_type:
            case dg.DagsterEventType.STEP_START | dg.DagsterEventType.STEP_RESTARTED:
                attempts.append(Attempt(entry.timestamp, None, "running"))
                self._failures.pop(key, None)
            case dg.DagsterEventType.STEP_SKIPPED:
                self._skipped.add(key)
            case dg.DagsterEventType.STEP_SUCCESS:
                self._end(key, entry.timestamp, "succeeded")
            case dg.DagsterEventType.STEP_UP_FOR_RETRY:
                error = event.step_retry_data.error
                self._end(key, entry.timestamp, "retried", error_text(error) if error else None)
            case dg.DagsterEventType.STEP_FAILURE:
                data = event.step_failure_data
                stopped = data.error_source is ErrorSource.INTERRUPT
                failure = _failure(key, data)
                if work := _work(data.user_failure_data):
                    self.work[key] = work
                self._end(key, entry.timestamp, "canceled" if stopped else "failed", failure.message)
                self._failures[key] = failure

    def _end(self, key: str, at: float, status: Status, error: str | None = None) -> None:
        attempts = self._attempts[key]
        # A step whose process could not start fails without having started.
        last = attempts.pop() if attempts and attempts[-1].end is None else Attempt(at, None, "running")
        attempts.append(replace(last, end=self._waits_since.pop(key, at), status=status, error=error))

    def report(self, key: str, plan: PipelinePlan) -> OpReport:
        attempts = self.attempts(key)
        status: Status = "skipped" if key in self._skipped else "not started"
        if attempts:
            status = attempts[-1].status
        return OpReport(key, key.removeprefix(f"{plan.name}__"), status, attempts)

    def failures(self, own: Iterable[str]) -> Iterator[Failure]:
        """Yield those of the ops ``own``, or else that of the run itself."""
        found = [self._failures[key] for key in own if key in self._failures]
        yield from found
        if not found and None in self._failures:
            yield self._failures[None]


def _failure(key: str, data: StepFailureData) -> Failure:
    told = data.user_failure_data
    texts = {} if told is None else {name: plain_text(value.value) for name, value in told.metadata.items()}
    more = {name: texts[name] for name in ("details", "config", "trace") if texts.get(name)}
    if data.error is not None and own_words(data) is None:
        more["trace"] = data.error.to_string()
    return Failure(failure_text(data), key, failure_kind(data), more)


def _work(told: Any) -> dict[str, Any]:
    """Return what a failure tells of the Spark jobs before it."""
    names = {*WORK_NUMBERS, STAGE_TIMES}
    return {} if told is None else {name: value for name, value in values_of(told.metadata).items() if name in names}


def plain_text(value: object) -> str:
    """Return a text without the fences that Markdown shows it in."""
    text = str(value).strip()
    lines = text.splitlines()
    fenced = len(lines) > 1 and lines[0].startswith("```") and lines[-1] == "```"
    return "\n".join(lines[1:-1]) if fenced else text
