"""What the event log of a run has of the assets of one pipeline."""

# No postponed annotations here, as in all modules that know Dagster's events.
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from pipeline_assets.asset_metadata import OPERATION_TIMES, STAGE_TIMES
from pipeline_assets.report.event_log import values_of
from pipeline_assets.report.model import CheckReport, ProgressPoint
from pipeline_assets.spark.job_metrics import WORK_NUMBERS

_PER_CHECK = (
    "failed_rows", "total_rows", "failed_percent", "failed_sample", "quarantined_rows_of_run", "dead_letters",
)  # fmt: skip


@dataclass
class MadeAsset:
    """An asset that the run has materialized: how it was the last time, and sums of what a stream has told."""

    metadata: dict[str, Any] = field(default_factory=dict)
    first_time: float = 0.0
    streamed_rows: int | None = None


class AssetEvents:
    """What a run's materializations, observations and checks tell of the assets of one pipeline."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self.made: dict[str, MadeAsset] = {}
        self.checks: dict[tuple[str, str], CheckReport] = {}
        self.progress: dict[str, list[ProgressPoint]] = {}
        self.operation_seconds: dict[str, dict[str, float]] = {}
        self.work: dict[str, dict[str, Any]] = {}  # of Spark jobs that no materialization tells of, by the op's key

    def take(self, record: dg.EventLogRecord) -> None:
        entry = record.event_log_entry
        event = entry.get_dagster_event()
        match event.event_type:
            case dg.DagsterEventType.ASSET_MATERIALIZATION:
                told = event.step_materialization_data.materialization
                if self._is_own(told.asset_key):
                    self._made(entry.timestamp, told)
            case dg.DagsterEventType.ASSET_OBSERVATION:
                seen = event.asset_observation_data.asset_observation
                if self._is_own(seen.asset_key) and "batch_id" in seen.metadata:
                    load, values = seen.asset_key.path[-1], values_of(seen.metadata)
                    self.progress.setdefault(load, []).append(_point(entry.timestamp, values))
                    # Each tells of all since the query's start.
                    self.operation_seconds[load] = {
                        name: milliseconds / 1000 for name, milliseconds in values.get(OPERATION_TIMES, {}).items()
                    }
            case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                if self._is_own(check.asset_key):
                    asset = check.asset_key.path[-1]
                    values = values_of(check.metadata)
                    self.checks[asset, check.check_name] = _check(asset, check, values)
                    if STAGE_TIMES in values:
                        self.work[event.step_key or ""] = values

    def _is_own(self, key: dg.AssetKey) -> bool:
        return len(key.path) == 2 and key.path[0] == self.pipeline

    def _made(self, at: float, told: dg.AssetMaterialization) -> None:
        made = self.made.setdefault(told.asset_key.path[-1], MadeAsset())
        values = values_of(told.metadata)
        made.metadata |= values
        made.metadata["code_version"] = (told.tags or {}).get("dagster/code_version")
        made.first_time = made.first_time or at
        rows = values.get("rows_written")
        if rows is not None:
            made.streamed_rows = (made.streamed_rows or 0) + int(rows)


def _point(at: float, values: Mapping[str, Any]) -> ProgressPoint:
    rates = ("input_rows_per_second", "processed_rows_per_second")
    return ProgressPoint(at, values.get("lag"), *(float(values.get(name) or 0.0) for name in rates))


def _check(asset: str, told: Any, values: Mapping[str, Any]) -> CheckReport:
    # The numbers of its Spark jobs are shown with the step.
    about_work = STAGE_TIMES in values
    facts = {
        name: str(value)
        for name, value in values.items()
        if name not in _PER_CHECK and isinstance(value, int | float | str) and not (about_work and name in WORK_NUMBERS)
    }
    failed = values.get("failed_rows", values.get("dead_letters"))
    return CheckReport(
        name=told.check_name,
        asset=asset,
        passed=told.passed,
        severity="warn" if told.severity is dg.AssetCheckSeverity.WARN else "error",
        failed_rows=failed,
        total_rows=values.get("total_rows"),
        percent=values.get("failed_percent"),
        facts=facts,
        sample=_table(values["failed_sample"]) if "failed_sample" in values else (),
    )


def _table(markdown: str) -> tuple[tuple[str, ...], ...]:
    """Return the cells of a table as ``markdown_table`` writes it, without the line under its head."""
    lines = [line for index, line in enumerate(markdown.splitlines()) if index != 1]
    return tuple(
        tuple(
            re.sub(r"\\([\\|])", r"\1", cell.strip())
            for cell in re.findall(r"((?:[^|\\]|\\.)*)\|", line.strip().removeprefix("|"))
        )
        for line in lines
    )
