"""The records that Dagster's events of a run hold: all that is recorded is also seen in Dagster's UI."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import ErrorSource

from pipeline_assets.dagster_failures import failure_kind
from pipeline_assets.errors import first_line
from pipeline_assets.metrics.records import MetricsRecord, Status
from pipeline_assets.spark.job_metrics import WORK_NUMBERS, JobMetrics

_log = logging.getLogger(__name__)

ROW_COUNTS = ("dagster/row_count", "dagster/partition_row_count")
"""Dagster's own keys for the rows of a table, and of a partition."""
QUARANTINE_OF = "quarantine_of"
"""Has the metadata of a quarantine table: the name of the step that puts rows there."""
WAIT = "seconds_before_next_try"
"""Has an engine event of a step that tells when its attempt has failed: Dagster knows of that after the wait."""
_CHECKED = ("failed_rows", "total_rows", "quarantined_rows_of_run", "dead_letters")
# What a failed attempt has written is not in the target, and a check writes nothing.
_UNTOLD = WORK_NUMBERS - {"bytes_written"}
_ENDS: Mapping[dg.DagsterEventType, Status] = {
    dg.DagsterEventType.STEP_SUCCESS: "succeeded",
    dg.DagsterEventType.STEP_FAILURE: "failed",
    dg.DagsterEventType.STEP_UP_FOR_RETRY: "retried",
}


def is_wait(event: dg.DagsterEvent) -> bool:
    """Whether ``event`` is the one with ``WAIT``."""
    told = event.event_specific_data
    return (
        event.event_type is dg.DagsterEventType.ENGINE_EVENT
        and isinstance(told, EngineEventData)
        and WAIT in told.metadata
    )


class RunRecords:
    """Turns one run's events, as they come, into records. What other processes of the run have seen, its log says."""

    def __init__(self, run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
        self._run_id = run.run_id
        self._instance = instance
        self._partition = run.tags.get("dagster/partition")
        self._starts: dict[str, list[float]] = {}
        self._waits_since: dict[str, float] = {}
        self._untold: dict[str, JobMetrics] = {}  # what Spark did for a step that no asset tells of, by its key

    def records_of(self, entry: dg.EventLogEntry) -> Iterator[MetricsRecord]:
        """Yield the records that the event holds."""
        event = entry.dagster_event
        if event is None or event.step_key is None:
            return
        match event.event_type:
            case dg.DagsterEventType.STEP_START:
                self._starts[event.step_key] = [entry.timestamp]
            case dg.DagsterEventType.STEP_RESTARTED:
                self._starts[event.step_key] = [*self._starts_of(event.step_key, entry.timestamp), entry.timestamp]
            case dg.DagsterEventType.ENGINE_EVENT if is_wait(event):
                self._waits_since[event.step_key] = entry.timestamp
                self._add_work(event.step_key, event.event_specific_data.metadata)  # type: ignore[union-attr]
            case end if end in _ENDS:
                yield self._end(entry, event, _ENDS[end])
            case dg.DagsterEventType.ASSET_MATERIALIZATION:
                told = event.step_materialization_data.materialization
                yield self._numbers("asset", entry, event.step_key, told.asset_key, told.metadata)
            case dg.DagsterEventType.ASSET_OBSERVATION:
                seen = event.asset_observation_data.asset_observation
                if any(isinstance(value.value, int | float) for value in seen.metadata.values()):
                    yield self._numbers("progress", entry, event.step_key, seen.asset_key, seen.metadata)
            case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                self._add_work(event.step_key, event.asset_check_evaluation_data.metadata)
                yield self._check(entry, event.step_key, event.asset_check_evaluation_data)

    def _end(self, entry: dg.EventLogEntry, event: Any, status: Status) -> MetricsRecord:
        key = event.step_key
        error = None
        if status == "failed":
            failure = event.step_failure_data
            if failure.user_failure_data is not None:
                self._add_work(key, failure.user_failure_data.metadata)
            if failure.error_source is ErrorSource.INTERRUPT:
                status = "canceled"
            else:
                error = failure_kind(failure)
        starts = self._starts_of(key, entry.timestamp)
        end = self._waits_since.pop(key, entry.timestamp)
        seconds = max(0.0, end - starts[-1]) if starts else 0.0
        work = self._untold.pop(key, None)
        numbers = {name: number for name, number in asdict(work).items() if name in _UNTOLD} if work else {}
        pipeline, _, step = key.partition("__")
        return MetricsRecord(
            "step", entry.timestamp, self._run_id, pipeline, step, partition=self._partition,
            attempt=max(1, len(starts)), status=status, error=error, numbers={"seconds": round(seconds, 3), **numbers},
        )  # fmt: skip

    def _add_work(self, key: str, metadata: Mapping[str, Any]) -> None:
        found = {name: metadata[name].value for name in WORK_NUMBERS if name in metadata}
        if found:
            self._untold[key] = self._untold.get(key, JobMetrics()).plus(JobMetrics(**found))

    def _starts_of(self, key: str, before: float) -> list[float]:
        """Return when the attempts of a step began."""
        if key not in self._starts:
            began = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED}
            try:
                entries = self._instance.all_logs(self._run_id, of_type=began)
            except Exception as error:  # noqa: BLE001  (what only tells of the run may not fail it)
                _log.warning("attempts of %s before this one are not known: %s", key, first_line(str(error)))
                entries = []
            self._starts[key] = [
                entry.timestamp for entry in entries if entry.step_key == key and entry.timestamp < before
            ]
        return self._starts[key]

    def _attempt(self, key: str) -> int:
        return max(1, len(self._starts.get(key, ())))

    def _numbers(
        self, kind: Any, entry: dg.EventLogEntry, step_key: str, asset: Any, metadata: Mapping[str, Any]
    ) -> MetricsRecord:
        numbers = {}
        for name, value in metadata.items():
            if isinstance(value.value, int | float) and not isinstance(value.value, bool):
                numbers["rows_written" if name in ROW_COUNTS else name] = value.value
        pipeline, step = _names(asset)
        if QUARANTINE_OF in metadata:
            # Its rows are not what the step has written to the target: they are counted by themselves.
            step = metadata[QUARANTINE_OF].value
            numbers.pop("rows_written", None)
        return MetricsRecord(
            kind, entry.timestamp, self._run_id, pipeline, step, asset=asset.to_user_string(),
            partition=self._partition, attempt=self._attempt(step_key), numbers=numbers,
        )  # fmt: skip

    def _check(self, entry: dg.EventLogEntry, step_key: str, told: Any) -> MetricsRecord:
        numbers = {name: told.metadata[name].value for name in _CHECKED if name in told.metadata}
        pipeline, step = _names(told.asset_key)
        return MetricsRecord(
            "check", entry.timestamp, self._run_id, pipeline, step, asset=told.asset_key.to_user_string(),
            check=told.check_name, partition=self._partition, attempt=self._attempt(step_key),
            status="succeeded" if told.passed else "failed", numbers=numbers,
        )  # fmt: skip


def _names(asset: dg.AssetKey) -> tuple[str, str]:
    return asset.path[0], asset.path[-1]
