"""A run of a pipeline as a RunReport: from what Dagster's instance has of it, and of earlier ones."""

# No postponed annotations here, as in all modules that know Dagster's events.
import json
import time
from collections.abc import Iterable, Mapping

import dagster as dg

from pipeline_assets.plan import PipelinePlan
from pipeline_assets.report.asset_events import AssetEvents
from pipeline_assets.report.event_log import EventLog
from pipeline_assets.report.model import OpReport, Progress, RunReport, Status
from pipeline_assets.report.op_events import OpEvents
from pipeline_assets.report.runs import find_run, own_ops, selected_ops
from pipeline_assets.report.schema_history import schema_comparisons
from pipeline_assets.report.step_reports import step_reports

_STEP_EVENTS = frozenset(
    {
        dg.DagsterEventType.STEP_START,
        dg.DagsterEventType.STEP_RESTARTED,
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.STEP_UP_FOR_RETRY,
        dg.DagsterEventType.STEP_SKIPPED,
        dg.DagsterEventType.ENGINE_EVENT,
        dg.DagsterEventType.RUN_FAILURE,
    }
)
_ASSET_EVENTS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
)
_RUN_STATUS: Mapping[dg.DagsterRunStatus, Status] = {
    dg.DagsterRunStatus.QUEUED: "not started",
    dg.DagsterRunStatus.NOT_STARTED: "not started",
    dg.DagsterRunStatus.STARTING: "not started",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
    dg.DagsterRunStatus.CANCELING: "canceled",
}


def read_run(
    instance: dg.DagsterInstance,
    plan: PipelinePlan,
    run_id: str | None = None,
    most_events: int | None = None,
    log: EventLog | None = None,
) -> RunReport:
    """Return what the event log has of a run of ``plan``: of ``run_id``, or of the last one.

    ``most_events``: how many events of a kind to read of a stream, the first and the last ones, as it may have a
    million of them; all by default. ``log``: that run's, if it has been read for another pipeline. Raises
    RunNotFoundError as ``find_run`` does.
    """
    record = find_run(instance, plan, run_id)
    run = record.dagster_run
    log = log or EventLog(instance, run.run_id)
    is_stream = plan.is_streaming
    ops = OpEvents(selected_ops(instance, run))
    for step_event in log.records(_STEP_EVENTS).records:
        ops.take(step_event.event_log_entry)
    told, is_cut = _told_of(log, plan, most_events if is_stream else None)
    told.work |= ops.work
    own = own_ops(plan, run, ops.keys())
    start = record.start_time or record.create_timestamp.timestamp()
    ends = [attempt.end for key in own for attempt in ops.attempts(key) if attempt.end]
    reports = {key: ops.report(key, plan) for key in own}
    return RunReport(
        pipeline=plan.pipeline.config.name,
        run_id=run.run_id,
        job=run.job_name,
        mode=plan.pipeline.config.mode,
        status=_status(run, reports.values()),
        is_finished=run.is_finished,
        start=start,
        end=record.end_time or max([*ends, log.last_time, start]),
        made=time.time(),
        launched_by=_launched_by(run),
        description=plan.pipeline.config.description,
        partition=run.tags.get("dagster/partition"),
        tags={key: value for key, value in sorted(run.tags.items()) if not key.startswith((".dagster/", "dagster/"))},
        run_config=json.dumps(run.run_config, indent=2) if run.run_config else None,
        failures=tuple(ops.failures(own)),
        ops=tuple(reports.values()),
        steps=tuple(step_reports(plan, reports, told, is_stream)),
        checks=tuple(told.checks.values()),
        schemas=tuple(schema_comparisons(instance, run.run_id, told)),
        progress=tuple(
            Progress(load, tuple(points), told.operation_seconds[load]) for load, points in told.progress.items()
        ),
        is_cut=is_cut,
    )


def _told_of(log: EventLog, plan: PipelinePlan, most: int | None) -> tuple[AssetEvents, bool]:
    """Return what ``log`` tells of the assets of ``plan``, and whether some is left out: ``most`` is for each kind."""
    told, is_cut = AssetEvents(plan.name), False
    for kind in _ASSET_EVENTS:
        found = log.records(frozenset({kind}), most)
        is_cut = is_cut or found.is_cut
        for each in found.records:
            told.take(each)
    return told, is_cut


def _status(run: dg.DagsterRun, ops: Iterable[OpReport]) -> Status:
    filed = _RUN_STATUS.get(run.status)
    if filed is not None:
        return filed
    # A run writes its own report before Dagster has filed how it ended.
    found = {op.status for op in ops}
    for status in ("failed", "canceled"):
        if status in found:
            return status
    return "succeeded" if found and found <= {"succeeded", "skipped"} else "running"


def _launched_by(run: dg.DagsterRun) -> str:
    tags = run.tags
    for tag, told in (
        ("dagster/backfill", "the backfill"),
        ("dagster/schedule_name", "the schedule"),
        ("dagster/sensor_name", "the sensor"),
    ):
        if tag in tags:
            return f"{told} {tags[tag]}"
    if run.parent_run_id is not None:
        return f"hand, as another try of run {run.parent_run_id}"
    return "hand"
