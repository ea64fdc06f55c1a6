"""What a run writes to its log, in Python and in Spark's JVM: found by the run's id, and about which step it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline_assets_tests.config_documents import batch, extract_file, transform
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

Execute = Callable[..., tuple[str, dg.DagsterRun, dg.DagsterInstance]]


@pytest.fixture
def execute(location: Location, tmp_path: Path) -> Iterator[Execute]:
    """Run a job in a process of its own; returns what it has printed, its run, and the instance that has filed it."""
    home = tmp_path / "home"
    home.mkdir()

    def executed(job: str, **environment: str) -> tuple[str, dg.DagsterRun, dg.DagsterInstance]:
        given = {**location.environment, "DAGSTER_HOME": str(home), **environment}
        process = JobProcess(job, given, tmp_path / "log")
        process.end()
        (run,) = instance.get_runs()
        return process.output, run, instance

    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield executed


def write_counted(location: Location) -> None:
    (location.folder / "rows.csv").write_text("id,kind\n1,a\n2,b\n3,a\n")
    location.write(
        batch(
            "counted",
            extract_file("rows", f"file://{location.folder}/rows.csv", options={"header": "true"}),
            transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds"),
            transform("filterRows", condition="n > raise_error('no luck')"),
        )
    )


def as_json(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_one_search_by_run_id_finds_python_and_jvm(location: Location, execute: Execute) -> None:
    write_counted(location)
    output, run, instance = execute("counted", PIPELINE_ASSETS_LOG_FORMAT="json", PIPELINE_ASSETS_LOG_LEVEL="INFO")
    assert run.status is dg.DagsterRunStatus.FAILURE
    lines = as_json(output)
    assert {line["run_id"] for line in lines} == {run.run_id}
    assert {line["pipeline"] for line in lines} == {"counted"}
    assert "RUN_FAILURE" in {line.get("context", {}).get("event") for line in lines}
    undressed = [line for line in output.splitlines() if " - dagster - " in line and not line.startswith("{")]
    assert [
        line for line in undressed if " - RUN_START - " not in line and " - RESOURCE_INIT_STARTED - " not in line
    ] == []
    loggers = {line["logger"] for line in lines}
    assert {"dagster", "pipeline_assets.spark.session", "DAGScheduler", "Executor"} <= loggers

    # The step that failed is told by Python, by the driver's thread and by the tasks, which have Spark's prefix.
    failing = {"step_index": "2", "step": "filter_rows", "method": "filterRows", "asset": "counted/filter_rows"}
    (end,) = [line for line in lines if line.get("context", {}).get("event") == "STEP_FAILURE"]
    assert end["context"].items() >= failing.items()
    assert "no luck" in end["exception"]["msg"]
    (task,) = [line for line in lines if line["msg"].startswith("Exception in task")]
    told = {name.removeprefix("mdc."): value for name, value in task["context"].items()}
    assert told.items() >= {**failing, "run_id": run.run_id}.items()
    (driver,) = [line for line in lines if line["msg"].startswith("Aborting job")]
    assert driver["context"].items() >= failing.items()

    # What this package says is in Dagster too, at its step.
    (started,) = [line for line in lines if line["logger"] == "pipeline_assets.spark.session"]
    filed = [entry.step_key for entry in instance.all_logs(run.run_id) if entry.user_message == started["msg"]]
    assert filed == ["counted__rows"]
    assert started["context"]["step"] == "rows"


def test_text_of_python_and_jvm_has_one_form(location: Location, execute: Execute) -> None:
    write_counted(location)
    output, run, _ = execute("counted")
    lines = output.splitlines()
    (jvm,) = [line for line in lines if "Exception in task" in line]
    assert " - spark.Executor - ERROR - counted - " in jvm
    assert f"{run.run_id} - filter_rows - Exception in task" in jvm
    assert "[step_index=2] [method=filterRows]" in jvm
    (python,) = [line for line in lines if "STEP_FAILURE" in line]
    assert python.endswith("[step_index=2 method=filterRows asset=counted/filter_rows]")
    assert run.run_id in python


def test_a_micro_batch_is_told_by_both(location: Location, topic: Topic, execute: Execute) -> None:
    topic.send(events(0, 60))
    location.write(stream(from_kafka(topic), to_delta()))
    output, run, _ = execute("stream", PIPELINE_ASSETS_LOG_FORMAT="json", PIPELINE_ASSETS_LOG_LEVEL="INFO")
    assert run.status is dg.DagsterRunStatus.SUCCESS
    lines = [line for line in as_json(output) if line.get("context", {}).get("batch_id") == "0"]
    assert {line["run_id"] for line in lines} == {run.run_id}
    by_python = [line for line in lines if line["logger"] == "dagster"]
    assert {line["context"]["asset"] for line in by_python} == {"stream/out"}
    assert {"ASSET_OBSERVATION", "ASSET_MATERIALIZATION"} == {line["context"]["event"] for line in by_python}
    assert any(line["logger"] == "MicroBatchExecution" for line in lines)
    # Its tasks say whose they are, although its thread is Spark's.
    tasks = [line for line in as_json(output) if line["msg"].startswith("Running task")]
    assert {line["context"].get("mdc.asset") for line in tasks} >= {"stream/out"}
