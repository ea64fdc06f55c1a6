"""What runs record of themselves, against the data and the files that there are."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.loopback_http import open_without_proxy
from devstack.ports import free_port
from devstack.prometheus import PushgatewayServer
from pipeline_assets.config_loading import load_file
from pipeline_assets.errors import RetryableError
from pipeline_assets.metrics.prometheus import RunMetrics
from pipeline_assets.metrics.records import MetricsRecord
from pipeline_assets.metrics.run_files import RunFilesReader
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.report.run_history import read_run
from pipeline_assets.steps.base import LoadResult, StepContext
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets_tests.config_documents import CUSTOMER_360, batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import delta_files
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess, wait_until
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS = pd.DataFrame({"id": range(5000), "kind": [number % 7 for number in range(5000)]})


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFilesReader:
    """Reads what runs of the location record from now on."""
    monkeypatch.setenv("PIPELINE_ASSETS_METRICS", str(tmp_path / "metrics"))
    return RunFilesReader(tmp_path / "metrics")


def counted(location: Location, *more: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline that counts the rows of a file by kind."""
    file = location.folder / "rows.parquet"
    ROWS.to_parquet(file, index=False)
    return batch(
        "counted",
        extract_file("rows", f"file://{file}"),
        transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds"),
        *more,
    )


def by_kind(reader: RunFilesReader) -> dict[tuple[str, str], MetricsRecord]:
    return {(found.kind, found.step): found for found in reader.new_records()}


def samples(text: str) -> dict[tuple[str, str], float]:
    """Return the samples that Prometheus would take from ``text``, by name and step."""
    families = text_string_to_metric_families(text)
    return {(found.name, found.labels["step"]): found.value for each in families for found in each.samples
            if "step" in found.labels}  # fmt: skip


def test_what_a_table_took_and_gave(location: Location, recorded: RunFilesReader) -> None:
    location.write(counted(location))
    run = location.run("counted")
    found = by_kind(recorded)
    table = found["asset", "kinds"]
    files = delta_files(location.table("counted", "kinds"))
    assert (table.run_id, table.asset, table.attempt) == (run.run_id, "counted/kinds", 1)
    assert table.numbers["rows_read"] == len(ROWS)
    assert table.numbers["rows_written"] == ROWS["kind"].nunique()
    assert table.numbers["bytes_written"] == sum(os.path.getsize(file) for file in files)
    assert table.numbers["files_written"] == len(files)
    assert table.numbers["shuffle_write_bytes"] == table.numbers["shuffle_read_bytes"] > 0
    assert 0 < table.numbers["spark_seconds"] <= found["step", "kinds"].numbers["seconds"]
    assert {key: record.status for key, record in found.items() if record.kind == "step"} == {
        ("step", "rows"): "succeeded",
        ("step", "kinds"): "succeeded",
    }
    shown = location.metadata("counted", "kinds")
    assert {name: shown[name] for name in ("rows_read", "bytes_written", "spark_seconds")} == {
        name: table.numbers[name] for name in ("rows_read", "bytes_written", "spark_seconds")
    }


def test_what_loads_gave(location: Location, recorded: RunFilesReader) -> None:
    to_table = load("toDeltaLake", path="/table", inputDataFrame="kinds")
    to_files = load("toS3", path="/files", inputDataFrame="kinds")
    location.write(counted(location, to_table, to_files))
    location.run("counted")
    found = by_kind(recorded)
    root = location.folder / "root"
    written = {"to_delta_lake": delta_files(root / "table"), "to_s3": list((root / "files").rglob("*.parquet"))}
    for step, files in written.items():
        numbers = found["asset", step].numbers
        assert numbers["rows_written"] == ROWS["kind"].nunique()
        assert numbers["files_written"] == len(files) > 0
        assert numbers["bytes_written"] == sum(os.path.getsize(file) for file in files)


def test_delta_reading_its_own_log_is_no_row_of_a_source(location: Location, recorded: RunFilesReader) -> None:
    location.write(counted(location))
    for _ in range(3):
        location.run("counted")
    assert by_kind(recorded)["asset", "kinds"].numbers["rows_read"] == len(ROWS)


@pytest.fixture
def retried(location: Location, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pipeline whose load fails once, when it has read all rows."""
    done = ToDeltaLake.load
    tries: list[int] = []

    def read_and_fail_once(self: ToDeltaLake, frame: DataFrame, context: StepContext) -> LoadResult:
        tries.append(1)
        if len(tries) == 1:
            frame.collect()
            raise RetryableError("nobody answers", kind="connection")
        return done(self, frame, context)

    monkeypatch.setattr(ToDeltaLake, "load", read_and_fail_once)
    kinds = load("toDeltaLake", path="/table", inputDataFrame="kinds")
    return {**counted(location, kinds), "retry": {"maxRetries": 1, "delay": 0}}


def test_what_an_attempt_did_is_none_of_the_next(
    location: Location, recorded: RunFilesReader, retried: dict[str, Any]
) -> None:
    location.write(retried)
    location.run("counted")
    found = [record for record in recorded.new_records() if record.step == "to_delta_lake"]
    assert [(record.kind, record.status) for record in found] == [
        ("step", "retried"), ("asset", None), ("step", "succeeded"),
    ]  # fmt: skip
    assert (found[1].attempt, found[1].numbers["rows_read"]) == (2, len(ROWS))
    assert (found[0].attempt, found[0].numbers["rows_read"]) == (1, len(ROWS))
    assert found[2].numbers.keys() == {"seconds"}


def test_a_check_that_fails_and_the_step_that_fails_by_it(location: Location, recorded: RunFilesReader) -> None:
    expectations = {"type": "validate", "method": "expectations", "config": {"expectations": {"few": "n < 715"}}}
    location.write(counted(location, expectations))
    location.run("counted", fail=True)
    found = by_kind(recorded)
    failed = int((ROWS.groupby("kind").size() >= 715).sum())
    assert 0 < failed < ROWS["kind"].nunique()
    check = found["check", "kinds"]
    assert (check.check, check.status, check.numbers["failed_rows"]) == ("expectations_few", "failed", failed)
    step = found["step", "expectations"]
    assert (step.status, step.error) == ("failed", "DataValidationError")


@pytest.mark.parametrize("reaction", ["warn", "fail"])
def test_what_spark_did_for_a_check_is_of_its_step(location: Location, recorded: RunFilesReader, reaction: str) -> None:
    config = {"expectations": {"few": "n < 715", "some": "n > 0"}, "onFailure": reaction}
    location.write(counted(location, {"type": "validate", "method": "expectations", "config": config}))
    location.run("counted", fail=reaction == "fail")
    report = read_run(location.instance, plan_pipeline(load_file(location.configs / "counted.json")))
    shown = {step.name: step.numbers.get("spark_task_seconds", 0) for step in report.steps}
    assert shown["expectations"] > 0
    records, metrics = list(recorded.new_records()), RunMetrics()
    for record in records:
        metrics.take(record)
    assert sum(record.numbers.get("spark_task_seconds", 0) for record in records) == pytest.approx(sum(shown.values()))
    for step in ("kinds", "expectations"):
        name, labels = "pipeline_assets_step_spark_task_seconds_total", {"pipeline": "counted", "step": step}
        assert metrics.registry.get_sample_value(name, labels) == pytest.approx(shown[step])


def test_batches_of_a_cache_are_no_rows(location: Location, recorded: RunFilesReader) -> None:
    count = 25_000
    pd.DataFrame({"id": range(count)}).to_parquet(location.folder / "many.parquet", index=False)
    few = {"column": "id", "max": 24_000, "onFailure": "quarantine"}
    location.write(
        batch(
            "many",
            extract_file("rows", f"file://{location.folder}/many.parquet"),
            {"type": "validate", "method": "inRange", "name": "good", "config": few},
            load("toDeltaLake", path="/table"),
        )
    )
    location.run("many")
    read = {
        step: record.numbers["rows_read"] for (kind, step), record in by_kind(recorded).items()
        if kind == "asset" and "rows_read" in record.numbers
    }  # fmt: skip
    assert read == {"rows": 0, "good": count, "to_delta_lake": 0}
    stages = location.metadata("many", "to_delta_lake")["spark_stage_times"].records
    assert stages
    assert {stage.data["rows_read"] for stage in stages if stage.data["what"] != "Delta reads its log"} == {0}


def test_quarantine_is_told_the_same_way_of_batches_and_streams(
    location: Location, recorded: RunFilesReader, spark: SparkSession
) -> None:
    spark.createDataFrame(ROWS).write.format("delta").save(str(location.folder / "root" / "rows"))
    few = {"column": "id", "max": 4899, "onFailure": "quarantine"}
    steps = [
        {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/rows", "registerAs": "rows"}},
        {"type": "validate", "method": "inRange", "name": "good", "config": few},
    ]
    location.write(batch("nightly", *steps, load("toDeltaLake", path="/nightly")))
    to_table = load("toDeltaLake", path="/stream", checkpointLocation="/checkpoint", trigger="availableNow")
    location.write(stream(*steps, to_table))
    metrics = RunMetrics()
    for pipeline in ("nightly", "stream"):
        location.run(pipeline)
    for record in recorded.new_records():
        metrics.take(record)
    found = {
        (sample.name, sample.labels["pipeline"], sample.labels["step"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name.endswith(("quarantined_rows_total", "written_rows_total"))
    }
    assert found == {
        (f"pipeline_assets_step_{name}_total", pipeline, step): number
        for pipeline in ("nightly", "stream")
        for name, step, number in (("quarantined_rows", "good", 100), ("written_rows", "to_delta_lake", 4900))
    }


@pytest.mark.usefixtures("reach_sources")
def test_secrets_that_were_asked_for(
    location: Location, recorded: RunFilesReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.write(CUSTOMER_360)
    location.run("customer_360")
    found = [record for record in recorded.new_records() if record.kind == "secret"]
    assert {(record.pipeline, record.source, record.status) for record in found} == {
        ("customer_360", "env", "succeeded")
    }
    assert all(record.numbers["seconds"] >= 0 for record in found)
    monkeypatch.delenv("PGPASSWORD")
    location.run("customer_360", fail=True)
    assert ("failed", "CredentialError") in {
        (record.status, record.error) for record in recorded.new_records() if record.kind == "secret"
    }


def test_a_partition_is_named(location: Location, recorded: RunFilesReader) -> None:
    location.write({**counted(location), "partitions": {"type": "static", "values": ["a", "b"]}})
    location.run("counted", partition="b")
    assert {found.partition for found in recorded.new_records()} == {"b"}


def test_a_folder_that_cannot_be_written_fails_no_run(
    location: Location, recorded: RunFilesReader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics").write_text("a file")
    location.write(counted(location))
    location.run("counted")
    assert caplog.text.count("the metrics of this run can't be recorded") == 1


def test_a_step_whose_process_dies_has_failed(location: Location, tmp_path: Path) -> None:
    """Which that process can't tell any more: the run's own does."""
    location.write(counted(location))
    home = tmp_path / "dagster_home"
    home.mkdir()
    environment = {
        **location.environment,
        "DAGSTER_HOME": str(home),
        "SPARK_MASTER": "local[2]",
        "PIPELINE_ASSETS_EXECUTOR": "multiprocess",
        "PIPELINE_ASSETS_METRICS": str(tmp_path / "metrics"),
    }
    job = JobProcess("counted", environment, tmp_path / "run.log")
    try:
        job.wait_until(lambda: "Spark 4." in job.output)
        job.kill_step()
        assert job.end() != 0
    finally:
        job.kill_all()
    (found,) = RunFilesReader(tmp_path / "metrics").new_records()
    assert (found.kind, found.pipeline, found.step) == ("step", "counted", "rows")
    assert (found.status, found.attempt) == ("failed", 1)
    assert found.numbers["seconds"] > 0


def test_a_batch_run_pushes(
    location: Location, pushgateway: PushgatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_PUSHGATEWAY", pushgateway.url)
    location.write(counted(location))
    location.run("counted")
    text = pushgateway.exposition()
    assert 'pipeline="counted",step="kinds"' in text
    found = samples(text)
    assert found["pipeline_assets_step_written_rows_total", "kinds"] == ROWS["kind"].nunique()
    assert found["pipeline_assets_step_attempts_total", "rows"] == 1


def test_a_gateway_that_is_away_fails_no_run(
    location: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_PUSHGATEWAY", f"http://127.0.0.1:{free_port()}")
    location.write(counted(location))
    location.run("counted")
    assert caplog.text.count("could not be pushed") == 1


def test_a_running_stream_answers(location: Location, topic: Topic, tmp_path: Path) -> None:
    """Until it is stopped; then it leaves a report."""
    sent = events(0, 60)
    topic.send([*sent, "no JSON"])
    location.write(stream(from_kafka(topic), to_delta(trigger="1 second")))
    port = free_port()
    environment = {
        **location.environment,
        "DAGSTER_HOME": str(tmp_path / "home"),
        "PIPELINE_ASSETS_METRICS_LISTEN": f"127.0.0.1:{port}",
        "PIPELINE_ASSETS_REPORTS": str(tmp_path / "reports"),
    }
    (tmp_path / "home").mkdir()
    job = JobProcess("stream", environment, tmp_path / "log")

    def found() -> dict[tuple[str, str], float]:
        try:
            with open_without_proxy(f"http://127.0.0.1:{port}/metrics") as answer:
                return samples(answer.read().decode())
        except OSError:
            return {}

    try:
        wait_until(lambda: found().get(("pipeline_assets_step_written_rows_total", "out")) == len(sent))
        letters = ("pipeline_assets_step_dead_letter_records_total", "events_dead_letters")
        wait_until(lambda: found().get(letters) == 1)
        now = found()
        assert now["pipeline_assets_stream_lag_records", "out"] == 0
        assert now["pipeline_assets_stream_last_progress_timestamp_seconds", "out"] > 0
        job.signal(signal.SIGTERM)
        job.end()
        assert found() == {}
    finally:
        job.kill_all()
    (file,) = (tmp_path / "reports").glob("stream-*.html")
    page = file.read_text()
    assert re.search(r"<title>stream: run [0-9a-f]{8}, canceled</title>", page)
    assert f"<b>{len(sent)}</b>rows written" in page
