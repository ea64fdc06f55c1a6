"""What Dagster's event log has of a run, as a RunReport. Reads the log, and nothing else."""

# No postponed annotations here, as in all modules that know Dagster's events.
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource

from pipeline_assets.asset_metadata import OPERATION_TIMES, STAGE_TIMES
from pipeline_assets.errors import first_line
from pipeline_assets.metrics.dagster_events import ROW_COUNTS, is_wait
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.report.model import (
    Attempt,
    CheckReport,
    Column,
    Failure,
    OpReport,
    Place,
    Progress,
    ProgressPoint,
    RunReport,
    SchemaComparison,
    Status,
    StepReport,
)
from pipeline_assets.report.runs import find_run, own_ops, selected_ops
from pipeline_assets.report.schema_changes import schema_changes
from pipeline_assets.spark.job_metrics import JobMetrics, StageTime

_Kinds = frozenset[dg.DagsterEventType]
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
_RUN_STATUS: Mapping[dg.DagsterRunStatus, Status] = {
    dg.DagsterRunStatus.QUEUED: "not started",
    dg.DagsterRunStatus.NOT_STARTED: "not started",
    dg.DagsterRunStatus.STARTING: "not started",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
    dg.DagsterRunStatus.CANCELING: "canceled",
}
_WORK = frozenset(field.name for field in fields(JobMetrics))
_PER_CHECK = ("failed_rows", "total_rows", "failed_percent", "failed_sample", "dead_letters")
# How far to look back for another run's materialization that tells columns: not each one does.
_LOOK_BACK = 25


@dataclass(frozen=True)
class _Records:
    """Events as the log has them, and whether some between the first and the last ones are left out."""

    records: Sequence[dg.EventLogRecord]
    is_cut: bool


class EventLog:
    """The event log of one run, read once for all pipelines that were in it."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self._instance = instance
        self._run_id = run_id
        self._found: dict[tuple[_Kinds, int | None], _Records] = {}
        self.last_time = 0.0

    def records(self, kinds: _Kinds, most: int | None = None) -> _Records:
        """Return all events of these kinds, or the first and the last of those that are too many."""
        if (kinds, most) not in self._found:
            found = self._read(kinds, most)
            self.last_time = max([self.last_time, *(each.event_log_entry.timestamp for each in found.records)])
            self._found[kinds, most] = found
        return self._found[kinds, most]

    def _read(self, kinds: _Kinds, most: int | None) -> _Records:
        half = None if most is None else max(1, most // 2)
        first = self._instance.get_records_for_run(self._run_id, of_type=set(kinds), limit=half).records
        found = {record.storage_id: record for record in first}
        is_cut = False
        if half is not None and len(first) == half:
            last = self._instance.get_records_for_run(
                self._run_id, of_type=set(kinds), limit=half, ascending=False
            ).records
            is_cut = not any(record.storage_id in found for record in last)
            found |= {record.storage_id: record for record in last}
        return _Records([found[storage_id] for storage_id in sorted(found)], is_cut)


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
    is_stream = plan.pipeline.config.mode == "streaming"
    is_cut = False
    ops = _Ops(selected_ops(instance, run))
    for step_event in log.records(_STEP_EVENTS).records:
        ops.take(step_event.event_log_entry)
    told = _Told(plan)
    for kind in (
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_OBSERVATION,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    ):
        found = log.records(frozenset({kind}), most_events if is_stream else None)
        is_cut = is_cut or found.is_cut
        for each in found.records:
            told.take(each)
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
        steps=tuple(_steps(plan, reports, told, is_stream)),
        checks=tuple(told.checks.values()),
        schemas=tuple(_schemas(instance, run.run_id, told)),
        progress=tuple(
            Progress(load, tuple(points), told.operation_seconds[load]) for load, points in told.progress.items()
        ),
        is_cut=is_cut,
    )


class _Ops:
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
            message = _root_message(error) if error else first_line(event.message or "the run has failed")
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
                self._end(key, entry.timestamp, "retried", _root_message(error) if error else None)
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


def _failure(key: str, data: Any) -> Failure:
    told = data.user_failure_data
    texts = {} if told is None else {name: _plain(value.value) for name, value in told.metadata.items()}
    kind = texts.pop("error", None)
    message = told.description if told is not None and told.description else None
    more = {name: texts[name] for name in ("details", "config", "trace") if texts.get(name)}
    if message is None:
        message = _root_message(data.error) if data.error else "the step has failed"
        kind = kind or (_root(data.error).cls_name if data.error else None)
        if data.error:
            more["trace"] = data.error.to_string()
    return Failure(message, key, kind, more)


def _work(told: Any) -> dict[str, Any]:
    """Return what a failure tells of the Spark jobs before it."""
    names = {*_WORK, STAGE_TIMES}
    return {} if told is None else {name: value for name, value in _values(told.metadata).items() if name in names}


def _root(error: Any) -> Any:
    """Return the Failure in a chain of errors, which says what to do, or the error at its root."""
    while error.cause is not None and error.cls_name != "Failure":
        error = error.cause
    return error


def _root_message(error: Any) -> str:
    root = _root(error)
    # Dagster has put the name of the class before the text.
    return re.sub(r"^[\w.]+: ", "", first_line(root.message)) or str(root.cls_name)


def _plain(value: object) -> str:
    """Return a text without the fences that Markdown shows it in."""
    text = str(value).strip()
    lines = text.splitlines()
    fenced = len(lines) > 1 and lines[0].startswith("```") and lines[-1] == "```"
    return "\n".join(lines[1:-1]) if fenced else text


@dataclass
class _Made:
    """An asset that the run has materialized: how it was the last time, and sums of what a stream has told."""

    metadata: dict[str, Any] = field(default_factory=dict)
    first_time: float = 0.0
    streamed_rows: int | None = None


class _Told:
    """What a run's materializations, observations and checks tell of the assets of one pipeline."""

    def __init__(self, plan: PipelinePlan) -> None:
        self._plan = plan
        self.made: dict[str, _Made] = {}
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
                    load, values = seen.asset_key.path[-1], _values(seen.metadata)
                    self.progress.setdefault(load, []).append(_point(entry.timestamp, values))
                    # Each tells of all since the query's start.
                    self.operation_seconds[load] = {
                        name: milliseconds / 1000 for name, milliseconds in values.get(OPERATION_TIMES, {}).items()
                    }
            case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                if self._is_own(check.asset_key):
                    asset = check.asset_key.path[-1]
                    values = _values(check.metadata)
                    self.checks[asset, check.check_name] = _check(asset, check, values)
                    if STAGE_TIMES in values:
                        self.work[event.step_key or ""] = values

    def _is_own(self, key: dg.AssetKey) -> bool:
        return len(key.path) == 2 and key.path[0] == self._plan.name

    def _made(self, at: float, told: dg.AssetMaterialization) -> None:
        made = self.made.setdefault(told.asset_key.path[-1], _Made())
        values = _values(told.metadata)
        made.metadata |= values
        made.metadata["code_version"] = (told.tags or {}).get("dagster/code_version")
        made.first_time = made.first_time or at
        rows = values.get("rows_written")
        if rows is not None:
            made.streamed_rows = (made.streamed_rows or 0) + int(rows)


def _values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _point(at: float, values: Mapping[str, Any]) -> ProgressPoint:
    rates = ("input_rows_per_second", "processed_rows_per_second")
    return ProgressPoint(at, values.get("lag"), *(float(values.get(name) or 0.0) for name in rates))


def _check(asset: str, told: Any, values: Mapping[str, Any]) -> CheckReport:
    # The numbers of its Spark jobs are shown with the step.
    about_work = STAGE_TIMES in values
    facts = {
        name: str(value)
        for name, value in values.items()
        if name not in _PER_CHECK and isinstance(value, int | float | str) and not (about_work and name in _WORK)
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


def _steps(plan: PipelinePlan, ops: Mapping[str, OpReport], told: _Told, is_stream: bool) -> Iterator[StepReport]:
    stream = ops.get(plan.stream_op_name)
    known: set[str] = {plan.stream_op_name} if is_stream else set()
    for step in plan.steps:
        key = plan.op_name(step)
        known.add(key)
        missing = OpReport(key, step.name, "not selected")
        yield _step(plan, step, (stream if is_stream else ops.get(key)) or missing, told)
    for key, op in ops.items():
        if key not in known:
            made = told.made.get(op.name, _Made())
            yield replace(_filled(StepReport(op.name, op), made, {}), is_todays=False)


def _step(plan: PipelinePlan, step: PlannedStep, op: OpReport, told: _Told) -> StepReport:
    made = told.made.get(step.name, _Made())
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


def _filled(report: StepReport, made: _Made, work: Mapping[str, Any]) -> StepReport:
    values = {**work, **made.metadata}
    rows = made.streamed_rows if made.streamed_rows is not None else _first(made.metadata, ROW_COUNTS)
    table = values.get(STAGE_TIMES)
    plan = values.get("physical_plan")
    return replace(
        report,
        rows=rows,
        numbers=_numbers(values),
        stages=tuple(_stage(entry.data) for entry in table.records) if table is not None else (),
        physical_plan=_plain(plan) if plan else None,
        uri=values.get("dagster/uri"),
        table_version=values.get("table_version"),
    )


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if name in values), None)


def _stage(data: Mapping[str, Any]) -> StageTime:
    return StageTime(**{**data, "start": datetime.fromisoformat(str(data["start"])).timestamp()})


def _schemas(instance: dg.DagsterInstance, run_id: str, told: _Told) -> Iterator[SchemaComparison]:
    for name, made in told.made.items():
        schema = made.metadata.get("dagster/column_schema")
        if schema is None:
            continue
        key = dg.AssetKey([told._plan.name, name])
        for record, before in _earlier_schemas(instance, key, made.first_time):
            if record.run_id != run_id:
                changes = schema_changes(_columns(before), _columns(schema))
                yield SchemaComparison(name, record.run_id, record.timestamp, changes)
                break
        else:
            yield SchemaComparison(name)


def _earlier_schemas(
    instance: dg.DagsterInstance, key: dg.AssetKey, before: float
) -> Iterator[tuple[dg.EventLogRecord, Any]]:
    """Yield the materializations before ``before`` that tell columns, and what they tell, the last one first."""
    # Not by their ids: in SQLite, a run's events have others in its own log.
    filtered = dg.AssetRecordsFilter(key, before_timestamp=before)
    # Mostly the last one will do, and each has a plan that is long.
    for skipped, limit in ((0, 1), (1, _LOOK_BACK)):
        for record in instance.fetch_materializations(filtered, limit=limit).records[skipped:]:
            found = record.asset_materialization
            schema = found.metadata.get("dagster/column_schema") if found is not None else None
            if schema is not None:
                yield record, schema.value


def _columns(schema: Any) -> list[Column]:
    return [Column(column.name, column.type, column.constraints.nullable) for column in schema.columns]


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
