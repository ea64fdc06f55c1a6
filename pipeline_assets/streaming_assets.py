"""A streaming pipeline as one multi-asset, whose op lives as long as the pipeline's streaming queries."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into assets.
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from pipeline_assets.asset_keys import dead_letters_key, quarantine_key
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
from pipeline_assets.plan import PipelinePlan, Role
from pipeline_assets.settings import Settings
from pipeline_assets.step_op import told_to_dagster
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.stream_checks import StreamChecks, stream_check_specs
from pipeline_assets.streaming.checkpoint_lease import Process
from pipeline_assets.streaming.process_tags import process_tags
from pipeline_assets.validation_assets import quarantine_properties, set_aside_properties

if TYPE_CHECKING:
    from pipeline_assets.streaming.micro_batches import BatchChecks
    from pipeline_assets.streaming.queries import BatchProgress

DEAD_LETTERS_CHECK = "no_dead_letters"
_DEAD_LETTERS_TOLD = "Every record that was read has parsed; those that have not are in the dead-letter table."
_REPORT_SECONDS = 5.0
_MAX_PARTITIONS_SHOWN = 200

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


def streaming_asset(
    plan: PipelinePlan,
    specs: Sequence[dg.AssetSpec],
    keys: Mapping[int, dg.AssetKey],
    sources: Mapping[int, SourceAssets],
    settings: Settings,
) -> dg.AssetsDefinition:
    """Return the multi-asset of ``plan``.

    ``specs`` are those of its steps, ``keys`` their keys by step index, ``sources`` the assets that each reads.
    """
    letters = {step.name: dead_letters_key(keys[step.index]) for step in plan.steps if step.dead_letters is not None}
    names = {step.name: keys[step.index] for step in plan.steps}

    @dg.multi_asset(
        # Not the job's name: a code location has each once.
        name=plan.stream_op_name,
        # Its outputs come as events, while it runs: when it is stopped it has materialized them all the same.
        specs=[
            spec.replace_attributes(skippable=True)
            for spec in (
                *specs,
                *_dead_letter_specs(plan, keys, settings),
                *_quarantine_specs(plan, keys, settings),
            )
        ],
        check_specs=[
            *stream_check_specs(plan, keys),
            *(
                dg.AssetCheckSpec(
                    DEAD_LETTERS_CHECK,
                    asset=names[name],
                    description=_DEAD_LETTERS_TOLD,
                )
                for name in letters
            ),
        ],
        required_resource_keys={"spark"},
        pool=pool_name(plan, settings),
    )
    def stream(context: dg.AssetExecutionContext) -> Iterator[Any]:
        instance = context.instance
        # That of a step ends before its run does, which would be taken for killed: then the lease tells.
        if settings.in_one_process:
            instance.add_run_tags(context.run.run_id, process_tags(Process.this(), context.run.run_id))
        spark = context.resources.spark
        # Its sensor starts a stream again that failed.
        with (
            told_to_dagster(context.get_step_execution_context(), spark.cancellation),
            spark.run_log.of_step(context.log),
        ):
            with spark.cancellation.guard():
                run: PipelineRun = spark.pipeline_run(plan, context.run.run_id)
            # Here, as a batch needs none of it.
            from pipeline_assets.streaming.queries import StreamingPipeline

            pipeline = StreamingPipeline(run, lambda run_id: _is_finished(instance, run_id), spark.stream_grace_seconds)
            report = _Report(run, keys, sources, letters, names, pipeline.made_up)
            watching = pipeline.watch()
            # Dagster does not come back to an op that has yielded when a stop arrives just then.
            spark.at_end(watching.close)
            for progress in watching:
                for event in report.take(progress):
                    yield event
                    spark.cancellation.reassert()
            for event in report.rest():
                yield event
                spark.cancellation.reassert()
            spark.cancellation.check()
        yield from report.checks.results()
        for name in letters:
            count = report.dead_letters.get(name, 0)
            yield dg.AssetCheckResult(
                check_name=DEAD_LETTERS_CHECK,
                asset_key=names[name],
                passed=count == 0,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"dead_letters": count},
            )

    return stream


def pool_name(plan: PipelinePlan, settings: Settings) -> str:
    """Return the pool that runs of ``plan`` wait for one another in.

    Pools are those of the whole instance. A pipeline of the same name in another code location has its own, unless it
    writes to the same checkpoints.
    """
    loads = (step.method for step in plan.stream_loads())
    paths = [settings.resolve(load.checkpoint_location or "") for load in loads if isinstance(load, StreamingLoad)]
    return f"{plan.name}-{hashlib.sha256(json.dumps(sorted(paths)).encode()).hexdigest()[:8]}"


def _dead_letter_specs(
    plan: PipelinePlan, keys: Mapping[int, dg.AssetKey], settings: Settings
) -> Iterator[dg.AssetSpec]:
    for step in plan.steps:
        if step.dead_letters is not None:
            key, own = keys[step.index], cast(FromKafka, step.method).dead_letter_path
            description = f"Records that {step.name} could not parse, with topic, partition, offset and the reason."
            told = set_aside_properties(plan, step.dead_letters, own, description, settings)
            yield dg.AssetSpec(dead_letters_key(key), deps=[key], **told)


def _quarantine_specs(
    plan: PipelinePlan, keys: Mapping[int, dg.AssetKey], settings: Settings
) -> Iterator[dg.AssetSpec]:
    for step in plan.steps:
        if step.quarantine is not None:
            key = keys[step.index]
            deps = [keys[index] for index in step.inputs]
            yield dg.AssetSpec(quarantine_key(key), deps=deps, **quarantine_properties(plan, step, settings))


def _is_finished(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.is_finished


@dataclass
class _Interval:
    """What a load's query did since the last report."""

    rows: int = 0
    is_complete: bool = True  # whether ``rows`` are all of them
    dead_letters: dict[str, int] = field(default_factory=dict)
    last: "BatchProgress | None" = None
    reported_at: float = 0.0


class _Report:
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

    def take(self, progress: "BatchProgress | BatchChecks") -> Iterator[Event]:
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
            interval.rows += _rows(progress.written.metrics)
        for name, count in progress.dead_letters.items():
            interval.dead_letters[name] = interval.dead_letters.get(name, 0) + count
            self.dead_letters[name] = self.dead_letters.get(name, 0) + count
        if not progress.is_written_known:
            interval.is_complete = False
        elif interval.last is not None and interval.last.written is not None and progress.written is None:
            progress = replace(progress, written=interval.last.written)
        interval.last = progress
        if time.monotonic() - interval.reported_at >= _REPORT_SECONDS:
            yield from self._told(interval)

    def rest(self) -> Iterator[Event]:
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
        metadata = {**_progress_metadata(progress), **({"failed_rows": failed} if failed else {})}
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


def _rows(metrics: Mapping[str, str]) -> int:
    names = ("numTargetRowsInserted", "numTargetRowsUpdated") if "numSourceRows" in metrics else ("numOutputRows",)
    return sum(int(metrics.get(name, 0)) for name in names)


def _progress_metadata(progress: "BatchProgress") -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "batch_id": progress.batch_id,
        "input_rows": progress.input_rows,
        "input_rows_per_second": progress.input_rows_per_second,
        "processed_rows_per_second": progress.processed_rows_per_second,
        "batch_duration_ms": progress.duration_ms,
        OPERATION_TIMES: progress.operation_ms,
        # A number, so that the metrics have it: one that has ended by itself is not missing.
        "continuous": int(not cast(StreamingLoad, progress.load.method).takes_what_there_is),
    }
    if progress.end_offsets:
        metadata["lag"] = sum(progress.lag.values())
        metadata["lag_by_partition"] = dict(sorted(progress.lag.items())[:_MAX_PARTITIONS_SHOWN])
        metadata["end_offsets"] = dict(sorted(progress.end_offsets.items())[:_MAX_PARTITIONS_SHOWN])
    return metadata
