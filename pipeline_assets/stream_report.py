"""The progress of a stream as Dagster is told it: in events, now and then and at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from pipeline_assets.asset_keys import quarantine_key
from pipeline_assets.asset_metadata import (
    OPERATION_TIMES,
    Metadata,
    SourceAssets,
    column_origins,
    columns_metadata,
    dataframe_metadata,
    letters_metadata,
    quarantine_origins,
)
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import DEAD_LETTERS_CHECK, Role
from pipeline_assets.steps.delta_log import rows_written
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.stream_checks import REPORT_SECONDS, StreamChecks

if TYPE_CHECKING:
    from pipeline_assets.streaming.micro_batches import BatchChecks
    from pipeline_assets.streaming.queries import BatchProgress

_MAX_PARTITIONS_SHOWN = 200
Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dataclass
class _Interval:
    """What a load's query did since the last report."""

    rows: int = 0
    is_complete: bool = True  # whether ``rows`` are all of them
    dead_letters: dict[str, int] = field(default_factory=dict)
    last: BatchProgress | None = None
    reported_at: float = 0.0


class StreamReport:
    """Turns progress into Dagster's events: not one for each micro-batch, which may be many in a second."""

    def __init__(
        self,
        run: PipelineRun,
        keys: Mapping[int, dg.AssetKey],
        sources: Mapping[int, SourceAssets],
        letters: Mapping[str, dg.AssetKey],
        names: Mapping[str, dg.AssetKey],
        made_up: Mapping[str, int],
    ) -> None:
        self._run = run
        self._keys = keys
        self._sources = sources
        self._letters = letters
        self._names = names
        self._made_up = made_up  # the start fills it, before there is anything to take
        self._intervals: dict[int, _Interval] = {}
        self._views_told = False
        self._columns: dict[dg.AssetKey, Metadata] = {}  # of what is written; the same as long as the stream runs
        self.dead_letters: dict[str, int] = {}
        self.checks = StreamChecks(run.plan, keys, self._columns)

    def take(self, progress: BatchProgress | BatchChecks) -> Iterator[Event]:
        """Add what a query, or the checks of a micro-batch, tell; yield the events that are due."""
        if not self._views_told:
            self._views_told = True
            yield from self._views()
        yield from self._before_the_start()
        from pipeline_assets.streaming.micro_batches import BatchChecks

        if isinstance(progress, BatchChecks):
            yield from self.checks.take(progress)
            return
        interval = self._intervals.setdefault(progress.load.index, _Interval())
        if progress.written is not None:
            interval.rows += rows_written(progress.written.metrics)
        for name, count in progress.dead_letters.items():
            interval.dead_letters[name] = interval.dead_letters.get(name, 0) + count
            self.dead_letters[name] = self.dead_letters.get(name, 0) + count
        if not progress.is_written_known:
            interval.is_complete = False
        elif interval.last is not None and interval.last.written is not None and progress.written is None:
            progress = replace(progress, written=interval.last.written)
        interval.last = progress
        if time.monotonic() - interval.reported_at >= REPORT_SECONDS:
            yield from self._told(interval)

    def rest(self) -> Iterator[Event]:
        """Yield what has not been told yet."""
        yield from self._before_the_start()
        yield from self.checks.rest()
        for interval in self._intervals.values():
            if interval.last is not None:
                yield from self._told(interval)

    def _views(self) -> Iterator[Event]:
        for step in self._run.plan.steps:
            inputs = self._run.inputs(step)
            if step.role is Role.VIEW:
                frame = self._run.dataframe(step)
                origins = column_origins(self._run, step, frame, inputs, self._keys, self._sources[step.index])
                yield dg.AssetMaterialization(self._keys[step.index], metadata=dataframe_metadata(frame, origins))
            elif step.role is Role.LOAD:
                written = self._run.written(step, inputs[step.inputs[0]])
                origins = column_origins(self._run, step, written, inputs, self._keys)
                self._columns[self._keys[step.index]] = columns_metadata(written, origins)
            if step.dead_letters is not None:
                letters = cast(FromKafka, step.method).dead_letter_sources()
                self._columns[self._letters[step.name]] = letters_metadata(letters, self._sources[step.index])
            if step.quarantine is not None:
                bad = self._run.checked_rows.bad(step, inputs)
                origins = quarantine_origins(self._run, step, inputs, self._keys)
                self._columns[quarantine_key(self._keys[step.index])] = columns_metadata(bad, origins)

    def _before_the_start(self) -> Iterator[Event]:
        """Tell, once, of the dead letters that the start has made up for."""
        made_up, self._made_up = self._made_up, {}
        for name, count in made_up.items():
            self.dead_letters[name] = self.dead_letters.get(name, 0) + count
            yield from self._letters_told(name, count)

    def _told(self, interval: _Interval) -> Iterator[Event]:
        progress = interval.last
        assert progress is not None  # noqa: S101  (the callers look)
        key = self._keys[progress.load.index]
        failed = self.checks.failed_since(progress.load)
        metadata = {**progress_metadata(progress), **({"failed_rows": failed} if failed else {})}
        yield dg.AssetObservation(key, metadata=metadata)
        if progress.written is not None or not interval.is_complete:
            yield dg.AssetMaterialization(
                key,
                metadata={
                    **({"rows_written": interval.rows} if interval.is_complete else {}),
                    **({"table_version": progress.written.version} if progress.written is not None else {}),
                    "batch_id": progress.batch_id,
                    **self._columns.get(key, {}),
                },
            )
        for name, count in interval.dead_letters.items():
            yield from self._letters_told(name, count)
        self._intervals[progress.load.index] = _Interval(reported_at=time.monotonic())

    def _letters_told(self, name: str, count: int) -> Iterator[Event]:
        total = self.dead_letters[name]
        if count:
            letters = self._letters[name]
            told = {"dead_letters": count, "dead_letters_of_run": total, **self._columns.get(letters, {})}
            yield dg.AssetMaterialization(letters, metadata=told)
        yield dg.AssetCheckEvaluation(
            asset_key=self._names[name],
            check_name=DEAD_LETTERS_CHECK,
            passed=total == 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"dead_letters": dg.MetadataValue.int(total)},
        )


def progress_metadata(progress: BatchProgress) -> dict[str, Any]:
    """Return what is shown of a micro-batch: how much it read, how long it took, and how far it is behind."""
    metadata: dict[str, Any] = {
        "batch_id": progress.batch_id,
        "input_rows": progress.input_rows,
        "input_rows_per_second": progress.input_rows_per_second,
        "processed_rows_per_second": progress.processed_rows_per_second,
        "batch_duration_ms": progress.duration_ms,
        OPERATION_TIMES: progress.operation_ms,
        # A number, so that the metrics have it: one that has ended by itself is not missing.
        "continuous": int(not progress.load.streaming_load.takes_what_there_is),
    }
    if progress.end_offsets:
        metadata["lag"] = sum(progress.lag.values())
        metadata["lag_by_partition"] = dict(sorted(progress.lag.items())[:_MAX_PARTITIONS_SHOWN])
        metadata["end_offsets"] = dict(sorted(progress.end_offsets.items())[:_MAX_PARTITIONS_SHOWN])
    return metadata
