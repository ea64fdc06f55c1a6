"""What the page about a run says of each step of its pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pipeline_assets.asset_metadata import STAGE_TIMES
from pipeline_assets.metrics.dagster_events import ROW_COUNTS
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.report.asset_events import AssetEvents, MadeAsset
from pipeline_assets.report.model import OpReport, Place, StepReport
from pipeline_assets.report.op_events import plain_text
from pipeline_assets.spark.job_metrics import StageTime


def step_reports(
    plan: PipelinePlan, ops: Mapping[str, OpReport], told: AssetEvents, is_stream: bool
) -> Iterator[StepReport]:
    """Yield a report of each step of ``plan``, and of each op of the run that is none of its steps any more."""
    stream = ops.get(plan.stream_op_name)
    known: set[str] = {plan.stream_op_name} if is_stream else set()
    for step in plan.steps:
        key = plan.op_name(step)
        known.add(key)
        missing = OpReport(key, step.name, "not selected")
        yield _step(plan, step, (stream if is_stream else ops.get(key)) or missing, told)
    for key, op in ops.items():
        if key not in known:
            made = told.made.get(op.name, MadeAsset())
            yield replace(_filled(StepReport(op.name, op), made, {}), is_todays=False)


def _step(plan: PipelinePlan, step: PlannedStep, op: OpReport, told: AssetEvents) -> StepReport:
    made = told.made.get(step.name, MadeAsset())
    report = StepReport(
        name=step.name,
        op=op,
        type=step.method.type,
        method=step.method.method,
        role=step.role.value,
        inputs=tuple(plan.steps[index].name for index in step.inputs),
        sources=tuple(Place(source.kind, source.uri) for source in step.method.sources()),
        sinks=tuple(Place(sink.kind, sink.uri) for _, sink in plan.written_by(step)),
        is_todays=made.metadata.get("code_version") in (None, step.code_version),
    )
    tells_itself = op.status == "succeeded" and step.role.value != "check"
    report = _filled(report, made, {} if tells_itself else told.work.get(op.key, {}))
    letters = told.made.get(step.dead_letters or "")
    if letters is not None:
        return replace(report, set_aside=letters.metadata.get("dead_letters_of_run"), set_aside_as="dead letters")
    aside = told.made.get(step.quarantine or "")
    if aside is not None:
        rows = aside.metadata.get("quarantined_rows_of_run", _first(aside.metadata, ROW_COUNTS))
        return replace(report, set_aside=rows)
    return report


def _filled(report: StepReport, made: MadeAsset, work: Mapping[str, Any]) -> StepReport:
    values = {**work, **made.metadata}
    rows = made.streamed_rows if made.streamed_rows is not None else _first(made.metadata, ROW_COUNTS)
    table = values.get(STAGE_TIMES)
    plan = values.get("physical_plan")
    return replace(
        report,
        rows=rows,
        numbers=_numbers(values),
        stages=tuple(_stage(entry.data) for entry in table.records) if table is not None else (),
        physical_plan=plain_text(plan) if plan else None,
        uri=values.get("dagster/uri"),
        table_version=values.get("table_version"),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if name in values), None)


def _stage(data: Mapping[str, Any]) -> StageTime:
    return StageTime(**{**data, "start": datetime.fromisoformat(str(data["start"])).timestamp()})
