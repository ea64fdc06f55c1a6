"""What the event log has of runs: real ones of Dagster, whose assets are written out here."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into assets.
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.config import Retry
from pipeline_assets.config_loading import load_file
from pipeline_assets.errors import PipelineExecutionError, RetryableError, RunNotFoundError, StepLocation
from pipeline_assets.metrics.dagster_events import RunRecords
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.report.event_log import EventLog
from pipeline_assets.report.model import ColumnChange, RunReport
from pipeline_assets.report.run_history import read_run
from pipeline_assets.spark.description import markdown_table
from pipeline_assets.step_op import told_to_dagster
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, extract_file, transform, write_config

COUNTED = batch(
    "counted",
    extract_file("rows", "/rows.csv"),
    transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds"),
)
QUICK = Retry(max_retries=2, delay=0.001)
Does = Callable[[dg.AssetExecutionContext], None]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as found:
        yield found


@pytest.fixture
def plan(tmp_path: Path) -> PipelinePlan:
    return plan_pipeline(load_file(write_config(tmp_path, COUNTED)))


def schema(**columns: str) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])


def run(
    instance: dg.DagsterInstance,
    *,
    job: str = "counted",
    pipeline: str = "counted",
    rows: Does | None = None,
    only: list[str] | None = None,
    tags: dict[str, str] | None = None,
    columns: dg.TableSchema | None = None,
) -> str:
    """Run the assets ``rows`` and ``kinds`` of a pipeline, and return the run's id."""

    @dg.asset(key=[pipeline, "rows"])
    def first(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        if rows is not None:
            rows(context)
        return dg.MaterializeResult(metadata={"dagster/column_schema": columns or schema(id="int"), "rows_read": 70})

    @dg.asset(key=[pipeline, "kinds"], deps=[first])
    def second() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(metadata={"dagster/row_count": 7, "table_version": 3, "rows_read": 70})

    chosen = dg.AssetSelection.assets(*([pipeline, name] for name in only or ["rows", "kinds"]))
    defined = dg.Definitions(assets=[first, second], jobs=[dg.define_asset_job(job, chosen)])
    found = defined.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, tags=tags)
    return found.run_id


def statuses(report: RunReport) -> dict[str, str]:
    return {step.name: step.op.status for step in report.steps}


def test_a_run_that_went_well(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    run_id = run(instance, tags={"dagster/partition": "b", "dagster/schedule_name": "nightly", "team": "x"})
    report = read_run(instance, plan)
    assert (report.run_id, report.status, report.is_finished) == (run_id, "succeeded", True)
    assert statuses(report) == {"rows": "succeeded", "kinds": "succeeded"}
    assert (report.rows_written, report.total("rows_read"), report.retries) == (7, 140, 0)
    assert (report.partition, report.launched_by, report.tags) == ("b", "the schedule nightly", {"team": "x"})
    assert report.steps[1].inputs == ("rows",)
    assert report.steps[1].table_version == 3
    ended = {
        entry.step_key: entry.get_dagster_event().step_success_data.duration_ms
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    }
    for op in report.ops:
        assert op.seconds is not None
        assert op.seconds * 1000 == pytest.approx(ended[op.key], abs=1000)


def test_the_last_run_may_be_of_any_job(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    run(instance)
    ad_hoc = run(instance, job="some_of_them", only=["rows"])
    report = read_run(instance, plan)
    assert (report.run_id, report.job) == (ad_hoc, "some_of_them")
    assert statuses(report) == {"rows": "succeeded", "kinds": "not selected"}
    later = run(instance)
    assert read_run(instance, plan).run_id == later


def test_a_run_is_found_by_the_start_of_its_id(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    first = run(instance)
    run(instance)
    assert read_run(instance, plan, first[:8]).run_id == first
    assert read_run(instance, plan, first).run_id == first


def test_runs_that_are_none(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    with pytest.raises(RunNotFoundError, match="'counted' has not run yet"):
        read_run(instance, plan)
    other = run(instance, job="other", pipeline="other")
    with pytest.raises(RunNotFoundError, match=r"is one of 'other': no step of 'counted'"):
        read_run(instance, plan, other)
    with pytest.raises(RunNotFoundError, match="has not run yet"):
        read_run(instance, plan)
    with pytest.raises(RunNotFoundError, match="there is no run 'abcdef01'"):
        read_run(instance, plan, "abcdef01")


def test_a_failure_and_what_did_not_start_for_it(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    def fails(context: dg.AssetExecutionContext) -> None:
        error = PipelineExecutionError("the disk is full: make room at /data", details="no space left")
        error.located(StepLocation("counted", 0, "extract", "fromFile"), {"path": "/rows.csv"})
        with told_to_dagster(context.get_step_execution_context(), Cancellation()):
            raise error

    run(instance, rows=fails)
    report = read_run(instance, plan)
    assert report.status == "failed"
    (failure,) = report.failures
    assert failure.message == "counted: step 0 (extract fromFile): the disk is full: make room at /data"
    assert (failure.step, failure.kind) == ("counted__rows", "PipelineExecutionError")
    assert failure.more["details"] == "no space left"
    assert failure.more["config"] == '{\n  "path": "/rows.csv"\n}'
    assert statuses(report)["rows"] == "failed"
    assert statuses(report)["kinds"] in ("skipped", "not started")


def test_a_failure_of_no_class_of_ours(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    def fails(context: dg.AssetExecutionContext) -> None:
        raise ZeroDivisionError("division by nothing")

    run(instance, rows=fails)
    (failure,) = read_run(instance, plan).failures
    assert (failure.message, failure.kind) == ("division by nothing", "ZeroDivisionError")
    assert "test_run_history" in failure.more["trace"]


def test_tries(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    left: list[Exception | None] = [RetryableError("nobody answers", kind="connection"), None]

    def fails_once(context: dg.AssetExecutionContext) -> None:
        with told_to_dagster(context.get_step_execution_context(), Cancellation(), QUICK):
            if (error := left.pop(0)) is not None:
                raise error

    run(instance, rows=fails_once)
    report = read_run(instance, plan)
    assert (report.status, report.retries, report.failures) == ("succeeded", 1, ())
    first, second = report.ops[0].attempts
    assert (first.status, first.error, second.status) == ("retried", "nobody answers", "succeeded")
    assert first.end is not None
    assert first.start <= first.end <= second.start


def test_the_wait_before_the_next_try_is_no_part_of_one(
    instance: dg.DagsterInstance, plan: PipelinePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 86400
    left: list[Exception | None] = [RetryableError("come again", kind="throttled", retry_after=day), None]

    class Waited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            before = time.time
            monkeypatch.setattr(time, "time", lambda: before() + (timeout or 0))
            return False

    def fails_once(context: dg.AssetExecutionContext) -> None:
        cancellation = Cancellation()
        cancellation.stop = Waited()
        with told_to_dagster(context.get_step_execution_context(), cancellation, QUICK):
            if (error := left.pop(0)) is not None:
                raise error

    run_id = run(instance, rows=fails_once)
    report = read_run(instance, plan)
    first, second = report.ops[0].attempts
    assert first.end is not None
    assert second.start - first.start >= second.start - first.end >= day
    assert first.end - first.start < day
    dagster_run = instance.get_run_by_id(run_id)
    assert dagster_run is not None
    records = RunRecords(dagster_run, instance)
    ended = [record for entry in instance.all_logs(run_id) for record in records.records_of(entry)]
    seconds = {record.status: record.numbers["seconds"] for record in ended if record.step == "rows" and record.status}
    assert seconds.keys() == {"retried", "succeeded"}
    assert seconds["retried"] == pytest.approx(first.end - first.start, abs=0.002)


def test_columns_beside_those_of_the_run_before(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    first = run(instance, columns=schema(id="int", name="string"))
    assert [found.previous_run for found in read_run(instance, plan).schemas] == [None]
    second = run(instance, columns=schema(id="bigint", kind="string"))
    (compared,) = read_run(instance, plan).schemas
    assert (compared.asset, compared.previous_run) == ("rows", first)
    assert compared.changes == (
        ColumnChange("id", "type", "int", "bigint"),
        ColumnChange("kind", "added", None, "string"),
        ColumnChange("name", "removed", "string", None),
    )
    run(instance, columns=schema(id="bigint", kind="string"))
    (compared,) = read_run(instance, plan).schemas
    assert (compared.previous_run, compared.changes) == (second, ())
    # A report of an earlier run knows nothing of later ones.
    assert read_run(instance, plan, first).schemas[0].previous_run is None


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_columns_of_a_stream_beside_those_of_the_run_before(
    is_on_disk: bool, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    plan = plan_pipeline(load_file(write_config(tmp_path, EVENT_STREAM)))
    load = plan.steps[-1].name

    def streamed(home: dg.DagsterInstance, count: int, columns: dg.TableSchema) -> str:
        @dg.multi_asset(name=f"{plan.name}__stream", specs=[dg.AssetSpec([plan.name, load], skippable=True)])
        def stream() -> Iterator[Any]:
            for _ in range(count):
                yield dg.AssetMaterialization([plan.name, load], metadata={"dagster/column_schema": columns})

        defined = dg.Definitions(assets=[stream], jobs=[dg.define_asset_job(plan.name, [stream])])
        return defined.resolve_job_def(plan.name).execute_in_process(instance=home).run_id

    # Dagster keeps events otherwise in memory than in the files that are its default.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) if is_on_disk else instance as home:
        first = streamed(home, 2, schema(a="int"))
        second = streamed(home, 30, schema(a="int", b="int"))
        third = streamed(home, 1, schema(a="int", b="int"))
        compared = [read_run(home, plan, run_id).schemas[0] for run_id in (first, second, third)]
    assert [each.previous_run for each in compared] == [None, first, second]
    assert [tuple(each.changes) for each in compared] == [(), (ColumnChange("b", "added", None, "int"),), ()]


def test_a_run_that_is_still_on(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    seen: list[RunReport] = []
    run(instance, rows=lambda context: seen.append(read_run(context.instance, plan)))
    (report,) = seen
    assert (report.status, report.is_finished) == ("running", False)
    assert statuses(report) == {"rows": "running", "kinds": "not started"}
    assert report.ops[0].seconds is None
    assert report.seconds >= 0


def test_a_check_with_rows_that_failed_it(instance: dg.DagsterInstance, plan: PipelinePlan) -> None:
    sample = markdown_table(["id", "note"], [(1, "a|b"), (2, "back\\slash"), (None, "")])

    @dg.asset(key=["counted", "rows"], check_specs=[dg.AssetCheckSpec("positive", asset=["counted", "rows"])])
    def rows() -> dg.MaterializeResult:
        metadata = {"failed_rows": 3, "total_rows": 4, "failed_percent": 75.0, "mean": 0.5}
        result = dg.AssetCheckResult(
            check_name="positive", passed=False, severity=dg.AssetCheckSeverity.WARN,
            metadata={**metadata, "failed_sample": dg.MetadataValue.md(sample)},
        )  # fmt: skip
        return dg.MaterializeResult(check_results=[result])

    job = dg.Definitions(assets=[rows], jobs=[dg.define_asset_job("counted", [rows])]).resolve_job_def("counted")
    job.execute_in_process(instance=instance)
    (check,) = read_run(instance, plan).checks
    assert (check.name, check.asset, check.passed, check.severity) == ("positive", "rows", False, "warn")
    assert (check.failed_rows, check.total_rows, check.percent, dict(check.facts)) == (3, 4, 75.0, {"mean": "0.5"})
    assert check.sample == (("id", "note"), ("1", "a|b"), ("2", "back\\slash"), ("NULL", ""))


@pytest.mark.parametrize("most", [None, 20])
def test_a_stream_that_has_told_much(instance: dg.DagsterInstance, tmp_path: Path, most: int | None) -> None:
    plan = plan_pipeline(load_file(write_config(tmp_path, EVENT_STREAM)))
    extract, load = plan.steps[0].name, plan.steps[-1].name
    count = 50

    @dg.multi_asset(
        name=f"{plan.name}__stream",
        specs=[dg.AssetSpec([plan.name, name], skippable=True) for name in (extract, load, f"{extract}_dead_letters")],
    )
    def stream(context: dg.AssetExecutionContext) -> Iterator[Any]:
        for number in range(count):
            told = {"batch_id": number, "lag": count - number, "input_rows_per_second": 1.0 * number}
            spent = {"spark_operation_ms": {"addBatch": 500 * (number + 1)}}  # since the start; not in runs of before
            yield dg.AssetObservation([plan.name, load], metadata={**told, **(spent if number else {})})
            yield dg.AssetMaterialization([plan.name, load], metadata={"rows_written": 10, "table_version": number})
        yield dg.AssetMaterialization([plan.name, f"{extract}_dead_letters"], metadata={"dead_letters_of_run": 4})

    defined = dg.Definitions(assets=[stream], jobs=[dg.define_asset_job(plan.name, [stream])])
    defined.resolve_job_def(plan.name).execute_in_process(instance=instance)
    report = read_run(instance, plan, most_events=most)
    (progress,) = report.progress
    lags = [point.lag for point in progress.points]
    steps = {step.name: step for step in report.steps}
    assert set(statuses(report).values()) == {"succeeded"}
    assert steps[load].table_version == count - 1
    assert (steps[extract].set_aside, steps[extract].set_aside_as) == (4, "dead letters")
    assert (lags[0], lags[-1]) == (count, 1)
    assert progress.operation_seconds == {"addBatch": 25.0}
    if most is None:
        assert (report.is_cut, len(lags), report.rows_written) == (False, count, 10 * count)
    else:
        assert (report.is_cut, len(lags)) == (True, most)
        assert report.rows_written < 10 * count


def test_rows_of_a_stream_count_once_when_some_are_not_known(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """What a batch has committed can't be looked up while its target is away: it is told of without a number."""
    plan = plan_pipeline(load_file(write_config(tmp_path, EVENT_STREAM)))
    load = plan.steps[-1].name

    @dg.multi_asset(name=f"{plan.name}__stream", specs=[dg.AssetSpec([plan.name, load], skippable=True)])
    def stream() -> Iterator[Any]:
        for rows in (1000, None, None, 5):
            told = {} if rows is None else {"rows_written": rows}
            yield dg.AssetMaterialization([plan.name, load], metadata={"batch_id": 1, **told})

    defined = dg.Definitions(assets=[stream], jobs=[dg.define_asset_job(plan.name, [stream])])
    defined.resolve_job_def(plan.name).execute_in_process(instance=instance)
    assert read_run(instance, plan).rows_written == 1005


def test_a_run_of_many_pipelines_is_told_of_in_whole(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(7)]
    plans = [plan_pipeline(load_file(write_config(tmp_path, {**COUNTED, "name": name}))) for name in names]

    def asset(key: list[str]) -> dg.AssetsDefinition:
        @dg.asset(key=key)
        def made() -> dg.MaterializeResult[Any]:
            return dg.MaterializeResult(metadata={"dagster/row_count": 7})

        return made

    assets = [asset([name, step]) for name in names for step in ("rows", "kinds")]
    assert dg.materialize(assets, instance=instance).success
    (filed,) = instance.get_runs()
    log = EventLog(instance, filed.run_id)
    for plan in plans:
        for report in (
            read_run(instance, plan, filed.run_id, most_events=4),
            read_run(instance, plan, filed.run_id, most_events=4, log=log),
        ):
            assert {step.name: step.rows for step in report.steps} == {"rows": 7, "kinds": 7}
            assert not report.is_cut
