"""The asset factory: planned pipelines become Dagster assets, checks, jobs and schedules."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into assets.
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from pipeline_assets.asset_graph import AssetGraph
from pipeline_assets.asset_keys import asset_key, quarantine_key
from pipeline_assets.asset_metadata import (
    cache_metadata,
    column_origins,
    columns_metadata,
    dataframe_metadata,
    load_metadata,
    loaded_metadata,
    optimization_metadata,
    quarantine_metadata,
    quarantine_origins,
    table_columns_metadata,
    table_location,
    table_metadata,
    work_metadata,
)
from pipeline_assets.dagster_partitions import partitions_definition
from pipeline_assets.execution import PipelineRun
from pipeline_assets.links import Links
from pipeline_assets.pipeline_job import PipelineJob
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role, check_name
from pipeline_assets.redaction import redact
from pipeline_assets.report.run_reports import report_metadata
from pipeline_assets.schedules import schedules_of
from pipeline_assets.settings import Settings
from pipeline_assets.step_op import step_op
from pipeline_assets.steps.base import ExtractMethod
from pipeline_assets.streaming_assets import streaming_asset
from pipeline_assets.validation import raise_for_failures
from pipeline_assets.validation_assets import (
    check_results,
    check_specs,
    quarantine_properties,
)

IO_MANAGER_KEY = "dataframe_io_manager"


@dataclass
class PipelineDefinitions:
    """What one or more pipelines are to Dagster. ``steps`` is what the IO manager looks assets up in."""

    assets: list[dg.AssetsDefinition | dg.AssetSpec] = field(default_factory=list)
    checks: list[dg.AssetChecksDefinition] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    schedules: list[Any] = field(default_factory=list)
    steps: dict[dg.AssetKey, tuple[PipelinePlan, PlannedStep]] = field(default_factory=dict)


def build_pipelines(plans: Sequence[PipelinePlan], links: Links, settings: Settings) -> PipelineDefinitions:
    """Return the assets, checks, jobs and schedules of ``plans``, with the external assets that they read."""
    found = PipelineDefinitions()
    by_name = {plan.name: plan for plan in plans}
    external: dict[dg.AssetKey, dg.AssetSpec] = {}
    for plan in plans:
        factory = _PipelineFactory(plan, by_name, links, settings)
        for spec in factory.graph.external_assets():
            external.setdefault(spec.key, spec)
        if plan.is_streaming:
            stream = factory.stream()
            found.assets.append(stream)
            job = factory.job(stream.keys)
            found.jobs.append(job)
            found.schedules += schedules_of(plan, job, factory.partitions_def)
            continue
        found.steps.update({asset_key(plan, step): (plan, step) for step in plan.steps})
        assets = list(factory.assets())
        found.assets += assets
        found.checks += factory.checks()
        job = factory.job(key for asset in assets for key in asset.keys)
        found.jobs.append(job)
        found.schedules += schedules_of(plan, job, factory.partitions_def)
    found.assets += (dg.AssetsDefinition(specs=[spec]) for spec in external.values())
    return found


class _PipelineFactory:
    def __init__(self, plan: PipelinePlan, plans: Mapping[str, PipelinePlan], links: Links, settings: Settings) -> None:
        self.plan = plan
        self.settings = settings
        self.config = plan.pipeline.config
        self.graph = AssetGraph(plan, plans, links)
        self.partitions_def = partitions_definition(self.config.partitions)

    def assets(self) -> Iterator[dg.AssetsDefinition]:
        for step in self.plan.steps:
            match step.role:
                case Role.VIEW | Role.TABLE if step.quarantine is not None:
                    yield self._quarantine_asset(step)
                case Role.VIEW | Role.TABLE:
                    yield self._dataframe_asset(step)
                case Role.LOAD:
                    yield self._load_asset(step)
                case Role.CONTROL:
                    yield self._control_asset(step)
                case Role.CHECK:
                    pass

    def stream(self) -> dg.AssetsDefinition:
        """Return the multi-asset of a streaming pipeline."""
        specs = [
            dg.AssetSpec(
                asset_key(self.plan, step),
                deps=[*(self.graph.key(index) for index in step.inputs), *self.graph.source_deps(step)],
                **self._common(step),
            )
            for step in self.plan.steps
            if step.role is not Role.CHECK
        ]
        keys = {step.index: self.graph.key(step.index) for step in self.plan.steps}
        sources = {step.index: self.graph.source_assets(step) for step in self.plan.steps}
        return streaming_asset(self.plan, specs, keys, sources, self.settings)

    def checks(self) -> Iterator[dg.AssetChecksDefinition]:
        return (self._check(step) for step in self.plan.steps if step.role is Role.CHECK)

    def job(self, keys: Iterable[dg.AssetKey]) -> Any:
        return PipelineJob(
            self.plan.name,
            selection=dg.AssetSelection.assets(*keys),
            description=self.config.description,
            tags={"pipeline": self.config.name, **self.config.tags},
            partitions_def=self.partitions_def,
        )

    def _dataframe_asset(self, step: PlannedStep) -> dg.AssetsDefinition:
        plan = self.plan
        upstream = {index: self.graph.key(index) for index in step.inputs}
        sources = self.graph.source_assets(step)
        external = [spec.key for spec in self.graph.external_sources(step)]

        def dataframe(context: dg.AssetExecutionContext, **frames: Any) -> Any:
            with _step_op(context, plan, step) as run:
                here = run.plan.steps[step.index]
                inputs = {index: frames[_input_name(index)] for index in upstream}
                frame = run.build(here, inputs)
                for source in external:
                    context.log_event(dg.AssetObservation(source))
                origins = column_origins(run, here, frame, inputs, upstream, sources)
                if isinstance(step.method, ExtractMethod) and here.method != step.method:
                    # The assets stand for what the config names: with the partition's key, the name is another one.
                    origins = {**column_origins(run, step, frame, inputs, upstream, sources), **origins}
                about_cache = {**cache_metadata(run, here), **optimization_metadata(run, here)}
                if step.role is Role.VIEW:
                    metadata = {**work_metadata(run, here), **about_cache, **dataframe_metadata(frame, origins)}
                    return dg.MaterializeResult(value=frame, metadata=metadata)
                metadata = {**about_cache, **table_columns_metadata(run, here, frame, origins)}
                written = run.write_table(here, frame)
                metadata = {**table_metadata(run, here, written), **_report_link(run), **metadata}
                return dg.MaterializeResult(value=None, metadata=metadata)

        return self._asset(
            step, dataframe, ins=self._ins(step), deps=self.graph.deps(step), io_manager_key=IO_MANAGER_KEY
        )

    def _load_asset(self, step: PlannedStep) -> dg.AssetsDefinition:
        plan = self.plan
        name = _input_name(step.inputs[0])
        upstream = {index: self.graph.key(index) for index in step.inputs}

        def load(context: dg.AssetExecutionContext, **frames: Any) -> dg.MaterializeResult[Any]:
            with _step_op(context, plan, step) as run:
                here = run.plan.steps[step.index]
                result = run.load(here, frames[name])
                about_load = {
                    **load_metadata(run, here, result), **optimization_metadata(run, here), **_report_link(run),
                }  # fmt: skip
                shown = loaded_metadata(run, here, frames[name], upstream)
                return dg.MaterializeResult(metadata={**about_load, **shown})

        return self._asset(step, load, ins=self._ins(step), deps=self.graph.deps(step))

    def _control_asset(self, step: PlannedStep) -> dg.AssetsDefinition:
        plan = self.plan
        deps = [*self.graph.deps(step), *(self.graph.key(index) for index in step.inputs)]

        def control(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            with _step_op(context, plan, step) as run:
                run.control(run.plan.steps[step.index])
                cached = run.context.cache.cached()
            return dg.MaterializeResult(
                metadata={
                    "cached_dataframes": ", ".join(f"{frame.name} ({frame.level})" for frame in cached) or "none",
                    "cached_memory_bytes": sum(frame.memory_bytes or 0 for frame in cached),
                    "cached_disk_bytes": sum(frame.disk_bytes or 0 for frame in cached),
                }
            )

        return self._asset(step, control, deps=deps)

    def _check(self, step: PlannedStep) -> dg.AssetChecksDefinition:
        plan = self.plan
        checked, *references = (self.graph.key(index) for index in step.inputs)

        @dg.multi_asset_check(
            name=plan.op_name(step),
            specs=check_specs(step, checked, references),
            required_resource_keys={"spark"},
            can_subset=True,
        )
        def check(context: dg.AssetCheckExecutionContext) -> Iterable[dg.AssetCheckResult]:
            wanted = {key.name for key in context.selected_asset_check_keys}
            with _step_op(context, plan, step) as run:
                here = run.plan.steps[step.index]
                results = run.check(here)
            chosen = [result for result in results if check_name(here.name, result.name) in wanted]
            yield from check_results(here, checked, chosen, work_metadata(run, here))
            if here.validate_method.reaction == "fail":
                # What is expected has been told by now; this stops what comes after, and says why.
                with _step_op(context, plan, step) as run, run.scope.errors_of(here):
                    raise_for_failures(here, chosen)

        return check

    def _quarantine_asset(self, step: PlannedStep) -> dg.AssetsDefinition:
        """Return the asset of the rows that meet what a step expects, with that of the others."""
        plan, key = self.plan, asset_key(self.plan, step)
        aside = quarantine_key(key)
        names = {index: _input_name(index) for index in step.inputs}
        upstream = {index: self.graph.key(index) for index in step.inputs}

        @dg.multi_asset(
            name=plan.op_name(step),
            ins=self._ins(step),
            deps=self.graph.deps(step),
            outs={
                "good": dg.AssetOut(
                    key=key,
                    io_manager_key=IO_MANAGER_KEY,
                    automation_condition=self._automation_condition,
                    **self._common(step),
                ),
                "quarantine": dg.AssetOut(
                    key=aside,
                    io_manager_key=IO_MANAGER_KEY,
                    automation_condition=self._automation_condition,
                    **quarantine_properties(plan, step, self.settings),
                ),
            },
            check_specs=check_specs(step, key),
            partitions_def=self.partitions_def,
            required_resource_keys={"spark"},
        )
        def quarantine(context: dg.AssetExecutionContext, **frames: Any) -> Iterator[dg.MaterializeResult[Any]]:
            with _step_op(context, plan, step) as run:
                here = run.plan.steps[step.index]
                inputs = {index: frames[name] for index, name in names.items()}
                found = run.quarantine(here, inputs)
                about_bad = {
                    **quarantine_metadata(run, here, found.path, found.written),
                    **columns_metadata(found.bad, quarantine_origins(run, here, inputs, upstream)),
                }
            yield dg.MaterializeResult(asset_key=aside, value=None, metadata=about_bad)
            with _step_op(context, plan, step) as run:
                origins = column_origins(run, here, found.good, inputs, upstream)
                about_good = dataframe_metadata(found.good, origins)
                value: Any = found.good
                if step.role is Role.TABLE:
                    written = run.write_table(here, found.good)
                    value, about_write = None, {**table_metadata(run, here, written), **_report_link(run)}
                    about_good = table_columns_metadata(run, here, found.good, origins)
                else:
                    about_write = work_metadata(run, here)
                metadata = {
                    "quarantined_rows": found.written.rows,
                    **about_write,
                    **cache_metadata(run, here),
                    **about_good,
                }
            yield dg.MaterializeResult(
                asset_key=key,
                value=value,
                metadata=metadata,
                check_results=list(check_results(here, key, found.results)),
            )

        return quarantine

    def _asset(self, step: PlannedStep, compute: Callable[..., Any], **specific: Any) -> dg.AssetsDefinition:
        """Return the asset of ``step``, with what all assets of the pipeline have in common."""
        return dg.asset(
            compute,
            key=asset_key(self.plan, step),
            partitions_def=self.partitions_def,
            automation_condition=self._automation_condition,
            required_resource_keys={"spark"},
            **self._common(step),
            **specific,
        )

    def _common(self, step: PlannedStep) -> dict[str, Any]:
        """Return what Dagster is told about the asset of ``step``, whoever materializes it."""
        return {
            "group_name": self.plan.name,
            "description": self._description(step),
            "kinds": self._kinds(step),
            "owners": list(self.config.owners),
            "tags": dict(self.config.tags),
            "code_version": step.code_version,
            "metadata": self._location_metadata(step),
        }

    def _ins(self, step: PlannedStep) -> dict[str, dg.AssetIn]:
        return {
            _input_name(index): dg.AssetIn(self.graph.key(index), input_manager_key=IO_MANAGER_KEY)
            for index in step.inputs
        }

    def _description(self, step: PlannedStep) -> str:
        what = step.description or (step.method.__doc__ or "").partition("\n")[0]
        return f"{what}\n\nStep {step.index} of {self.plan.pipeline.file}: {step.method.type} `{step.method.method}`"

    def _location_metadata(self, step: PlannedStep) -> dict[str, Any]:
        if step.role is Role.TABLE:
            return table_location(self.settings.table_path(self.plan.name, step.name), self.plan.name, step.name)
        sinks = step.method.sinks()
        return {"dagster/uri": redact(sinks[0].uri)} if sinks else {}

    def _kinds(self, step: PlannedStep) -> set[str]:
        # Dagster takes three.
        kinds = step.method.kinds | ({"deltalake"} if step.role is Role.TABLE else set())
        return set(sorted(kinds)[:3])

    @cached_property
    def _automation_condition(self) -> dg.AutomationCondition[Any] | None:
        schedule = self.config.cron_schedule
        if self.config.automation == "eager":
            # A view that is missing is planned by the run that needs it.
            views = [asset_key(self.plan, step) for step in self.plan.steps if step.role is Role.VIEW]
            missing = dg.AutomationCondition.any_deps_missing()
            found = dg.AutomationCondition.eager().replace(missing, missing.ignore(dg.AssetSelection.assets(*views)))
        elif self.config.automation == "on_cron" and schedule is not None:
            found = dg.AutomationCondition.on_cron(schedule.cron, schedule.timezone).ignore(
                dg.AssetSelection.assets(*self.graph.put_aside_by_streams())
            )
        else:
            return None
        # Nothing looks at what no pipeline writes: to Dagster it is missing, and never updated.
        return found.ignore(dg.AssetSelection.assets(*(spec.key for spec in self.graph.external_assets())))


def _input_name(index: int) -> str:
    return f"step_{index}"


def _step_op(context: Any, plan: PipelinePlan, step: PlannedStep) -> AbstractContextManager[PipelineRun]:
    key = context.partition_key if context.has_partition_key else None
    return step_op(context.resources.spark, context.get_step_execution_context(), plan, step, key)


def _report_link(run: PipelineRun) -> dict[str, Any]:
    return report_metadata(run.context.settings, run.plan.name, run.context.run_id)
