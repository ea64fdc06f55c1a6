"""Reports of runs that really ran, against the data that they ran on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
import pytest
from click.testing import CliRunner

from pipeline_assets.cli import main
from pipeline_assets.config_loading import load_file
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.report.model import RunReport
from pipeline_assets.report.run_history import read_run
from pipeline_assets_tests.config_documents import batch, extract_file, transform
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

if TYPE_CHECKING:
    from pyspark.sql.streaming.query import StreamingQuery

ROWS = pd.DataFrame({"id": range(500), "kind": [number % 7 for number in range(500)]})
COUNTS = transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds")


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs of the location write reports from now on."""
    monkeypatch.setenv("PIPELINE_ASSETS_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def rows(location: Location) -> dict[str, object]:
    file = location.folder / "rows.parquet"
    ROWS.to_parquet(file, index=False)
    return extract_file("rows", f"file://{file}")


def expectations(**config: object) -> dict[str, object]:
    return {"type": "validate", "method": "expectations", "name": "ids", "config": config}


def read(location: Location, name: str) -> RunReport:
    return read_run(location.instance, plan_pipeline(load_file(location.configs / f"{name}.json")))


def links(instance: dg.DagsterInstance, run_id: str) -> list[object]:
    """Return what the run's log links to under ``report``, outside of its assets."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    told = [entry.get_dagster_event().engine_event_data.metadata for entry in entries]
    return [metadata["report"].value for metadata in told if "report" in metadata]


def test_what_spark_did_for_a_check_is_in_its_step(location: Location) -> None:
    check = expectations(onFailure="warn", expectations={"small": "id < 400", "any": "id IS NOT NULL"})
    location.write(batch("counted", rows(location), check, COUNTS))
    location.run("counted")
    report = read(location, "counted")
    steps = {step.name: step for step in report.steps}
    assert steps["ids"].numbers["rows_read"] == len(ROWS)
    assert steps["kinds"].rows == ROWS["kind"].nunique()
    for name in ("ids", "kinds"):
        assert steps[name].stages
        assert len(steps[name].stages) + steps[name].stages_left_out == steps[name].numbers["spark_stages"]
        assert steps[name].stages[0].seconds == max(stage.seconds for stage in steps[name].stages)
        (attempt,) = steps[name].op.attempts
        assert attempt.end is not None
        for stage in steps[name].stages:
            assert attempt.start - 1 < stage.start <= stage.start + stage.seconds < attempt.end + 1
    assert {check.name: check.failed_rows for check in report.checks} == {
        "ids_small": int((ROWS["id"] >= 400).sum()),
        "ids_any": 0,
    }


def test_what_spark_did_before_a_step_failed_is_in_its_step(location: Location) -> None:
    late = transform("withColumns", columns={"checked": "if(n > 0, raise_error('too late'), n)"}, registerAs="late")
    location.write(batch("counted", rows(location), COUNTS, late))
    location.run("counted", fail=True)
    report = read(location, "counted")
    assert report.failures[0].step == "counted__late"
    (step,) = [step for step in report.steps if step.name == "late"]
    assert step.op.status == "failed"
    # The groups were made: what failed is the stage after that.
    assert step.numbers["rows_read"] == len(ROWS)
    assert step.rows is None
    (attempt,) = step.op.attempts
    assert attempt.end is not None
    assert len(step.stages) >= 2
    for stage in step.stages:
        assert attempt.start - 1 < stage.start <= stage.start + stage.seconds < attempt.end + 1


def test_rows_in_quarantine(location: Location) -> None:
    check = expectations(onFailure="quarantine", expectations={"small": "id < 400"})
    location.write(batch("counted", rows(location), check, COUNTS))
    location.run("counted")
    (step,) = [step for step in read(location, "counted").steps if step.name == "ids"]
    assert (step.set_aside, step.set_aside_as) == (int((ROWS["id"] >= 400).sum()), "in quarantine")


def test_a_run_that_fails_writes_its_report_too(location: Location, reports: Path) -> None:
    check = expectations(expectations={"small": "id < 400"})
    location.write(batch("counted", rows(location), check, COUNTS))
    result = location.run("counted", fail=True)
    (file,) = reports.glob("*.html")
    assert file.name == f"counted-{result.run_id}.html"
    assert links(location.instance, result.run_id) == [str(file)]
    page = file.read_text()
    assert re.search(r"<title>counted: run [0-9a-f]{8}, failed</title>", page)
    assert page.index("counted: step 1 (validate expectations): ") < page.index("rows written")


def test_a_folder_that_cannot_be_written_fails_no_run(
    location: Location, reports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports.write_text("a file")
    location.write(batch("counted", rows(location), COUNTS))
    location.run("counted")
    assert caplog.text.count("no report of counted in this run") == 1


def test_what_a_run_made_leads_to_its_report(
    location: Location, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_REPORTS_URL", "https://reports.example/of/")
    location.write(batch("counted", rows(location), COUNTS))
    result = location.run("counted")
    url = f"https://reports.example/of/counted-{result.run_id}.html"
    assert location.metadata("counted", "kinds")["report"] == url
    assert links(location.instance, result.run_id) == [url]
    assert (reports / url.rpartition("/")[2]).exists()


def test_a_stream(location: Location, topic: Topic, reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, broken = events(0, 80), ["no JSON", "[1]", "{"]
    topic.send([*sent, *broken])
    location.write(stream(from_kafka(topic, maxOffsetsPerTrigger=20), to_delta()))
    started: list[StreamingQuery] = []
    start_stream = PipelineRun.start_stream

    def kept(run: PipelineRun, load: PlannedStep, query_name: str) -> StreamingQuery:
        started.append(start_stream(run, load, query_name))
        return started[-1]

    monkeypatch.setattr(PipelineRun, "start_stream", kept)
    location.run("stream")
    report = read(location, "stream")
    steps = {step.name: step for step in report.steps}
    assert (report.mode, report.status, report.rows_written) == ("streaming", "succeeded", len(sent))
    assert (steps["events"].set_aside, steps["events"].set_aside_as) == (len(broken), "dead letters")
    (progress,) = report.progress
    assert progress.load == "out"
    assert progress.points[-1].lag == 0
    (query,) = started
    told = Counter[str]()
    for event in query.recentProgress:
        told.update(json.loads(event.json)["durationMs"])
    assert told["addBatch"] > 0
    assert progress.operation_seconds == {name: milliseconds / 1000 for name, milliseconds in told.items()}
    (check,) = report.checks
    assert (check.name, check.passed, check.failed_rows) == ("no_dead_letters", False, len(broken))
    (file,) = reports.glob("stream-*.html")
    page = file.read_text()
    assert f"{len(broken)} dead letters" in page
    assert "<td>addBatch</td>" in page


def test_what_the_command_says_when_there_is_no_report(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.write(batch("counted", rows(location), COUNTS))
    home = tmp_path / "home"

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["report", *arguments])
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        return result.stderr

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert said("counted").startswith("Error: DAGSTER_HOME is not set")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert "is not a directory" in said("counted")
    home.mkdir()
    assert said("countd").startswith("Error: there is no pipeline 'countd', did you mean 'counted'?")
    assert "has not run yet" in said("counted")
    assert "there is no run 'abc'" in said("counted", "--run", "abc")
