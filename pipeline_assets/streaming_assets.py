"""A streaming pipeline as one multi-asset, whose op lives as long as the pipeline's streaming queries."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into assets.
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import dagster as dg

from pipeline_assets.asset_keys import dead_letters_key, quarantine_key
from pipeline_assets.asset_metadata import SourceAssets
from pipeline_assets.plan import DEAD_LETTERS_CHECK, PipelinePlan
from pipeline_assets.settings import Settings
from pipeline_assets.step_op import RunSource, told_to_dagster
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.stream_checks import stream_check_specs
from pipeline_assets.stream_report import StreamReport
from pipeline_assets.streaming.checkpoint_lease import Process
from pipeline_assets.streaming.process_tags import process_tags
from pipeline_assets.validation_assets import quarantine_properties, set_aside_properties

_DEAD_LETTERS_TOLD = "Every record that was read has parsed; those that have not are in the dead-letter table."


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
        specs=_all_specs(plan, specs, keys, settings),
        check_specs=_all_check_specs(plan, keys, names, letters),
        required_resource_keys={"spark"},
        pool=pool_name(plan, settings),
    )
    def stream(context: dg.AssetExecutionContext) -> Iterator[Any]:
        instance = context.instance
        # That of a step ends before its run does, which would be taken for killed: then the lease tells.
        if settings.in_one_process:
            instance.add_run_tags(context.run.run_id, process_tags(Process.this(), context.run.run_id))
        spark: RunSource = context.resources.spark
        # Its sensor starts a stream again that failed.
        with (
            told_to_dagster(context.get_step_execution_context(), spark.cancellation),
            spark.run_log.of_step(context.log),
        ):
            with spark.cancellation.guard():
                run = spark.pipeline_run(plan, context.run.run_id)
            # Here, as a batch needs none of it.
            from pipeline_assets.streaming.queries import StreamingPipeline

            pipeline = StreamingPipeline(run, lambda run_id: _is_finished(instance, run_id), spark.stream_grace_seconds)
            report = StreamReport(run, keys, sources, letters, names, pipeline.made_up)
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
        yield from _dead_letter_results(report, names, letters)

    return stream


def pool_name(plan: PipelinePlan, settings: Settings) -> str:
    """Return the pool that runs of ``plan`` wait for one another in.

    Pools are those of the whole instance. A pipeline of the same name in another code location has its own, unless it
    writes to the same checkpoints.
    """
    loads = (step.method for step in plan.stream_loads())
    paths = [settings.resolve(load.checkpoint_location or "") for load in loads if isinstance(load, StreamingLoad)]
    return f"{plan.name}-{hashlib.sha256(json.dumps(sorted(paths)).encode()).hexdigest()[:8]}"


def _all_specs(
    plan: PipelinePlan, specs: Sequence[dg.AssetSpec], keys: Mapping[int, dg.AssetKey], settings: Settings
) -> list[dg.AssetSpec]:
    """Return ``specs``, those of the steps, and those of what ``plan`` puts aside."""
    put_aside = (*_dead_letter_specs(plan, keys, settings), *_quarantine_specs(plan, keys, settings))
    # Its outputs come as events, while it runs: when it is stopped it has materialized them all the same.
    return [spec.replace_attributes(skippable=True) for spec in (*specs, *put_aside)]


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


def _all_check_specs(
    plan: PipelinePlan,
    keys: Mapping[int, dg.AssetKey],
    names: Mapping[str, dg.AssetKey],
    letters: Mapping[str, dg.AssetKey],
) -> list[dg.AssetCheckSpec]:
    """Return the checks of the validate steps, and one of each extract that has dead ``letters``."""
    return [
        *stream_check_specs(plan, keys),
        *(dg.AssetCheckSpec(DEAD_LETTERS_CHECK, asset=names[name], description=_DEAD_LETTERS_TOLD) for name in letters),
    ]


def _dead_letter_results(
    report: StreamReport, names: Mapping[str, dg.AssetKey], letters: Mapping[str, dg.AssetKey]
) -> Iterator[dg.AssetCheckResult]:
    """Yield for each extract that has dead ``letters`` whether there have been any in the run."""
    for name in letters:
        count = report.dead_letters.get(name, 0)
        yield dg.AssetCheckResult(
            check_name=DEAD_LETTERS_CHECK,
            asset_key=names[name],
            passed=count == 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"dead_letters": count},
        )


def _is_finished(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.is_finished
