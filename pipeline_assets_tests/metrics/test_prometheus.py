"""The runs' metrics as Prometheus sees them: by its own tool, and scraped by a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from devstack.prometheus import PrometheusServer
from pipeline_assets.code_location import build_definitions
from pipeline_assets.metrics import run_files
from pipeline_assets.metrics.prometheus import RecordedMetrics, RunMetrics
from pipeline_assets.metrics.records import LATEST, Status
from pipeline_assets.metrics.run_files import RunFile, RunFilesReader
from pipeline_assets.metrics_commands import in_configs
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, extract_file, write_config
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.metrics.records import record


def documented(heading: str) -> str:
    """Return what docs/metrics.md has below a heading."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    return text.partition(f"## {heading}\n")[2]


def test_the_documented_metrics_are_those_there_are() -> None:
    types = re.findall(r"^# TYPE pipeline_assets_(\w+) ", generate_latest(RunMetrics().registry).decode(), re.MULTILINE)
    rows = [line for line in documented("To Prometheus").partition("\n## ")[0].splitlines() if line.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(told) == sorted(types)


def test_prometheus_own_tool_finds_nothing_to_say(folder: Path) -> None:
    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(folder)))
    text = generate_latest(registry)
    assert text.count(b"# TYPE") > 20
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_real_prometheus_answers_from_what_runs_have_recorded(
    folder: Path, exporter: str, prometheus_of: Callable[[str], PrometheusServer]
) -> None:
    prometheus = prometheus_of(exporter)

    def answer(expression: str) -> float | None:
        found = prometheus.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def told(expression: str, value: float) -> None:
        # At a scrape that the exporter has not answered in time Prometheus has no value of anything.
        wait_until(lambda: answer(expression) == value)

    orders = '{pipeline="orders", step="load"}'
    told(f"pipeline_assets_step_written_rows_total{orders}", 340)
    told(f"pipeline_assets_step_written_bytes_total{orders}", 3400)
    told(f"pipeline_assets_step_peak_memory_bytes{orders}", 40)
    told('pipeline_assets_step_attempts_total{step="load", status="failed"}', 1)
    told(f"sum(pipeline_assets_step_attempts_total{orders})", 3)
    told(f"pipeline_assets_step_duration_seconds_sum{orders}", 44)
    told('pipeline_assets_step_duration_seconds_bucket{step="load", le="2.5"}', 2)
    (alert,) = re.findall(r"```promql\n(.+?)```", documented("Alerts and dashboards"), re.DOTALL)
    alerts = {("load", "9"), ("never", "3")}
    wait_until(lambda: {(found["metric"]["step"], found["value"][1]) for found in prometheus.query(alert)} == alerts)
    told("pipeline_assets_check_passed", 0)
    told("pipeline_assets_check_failed_rows", 4)
    told('pipeline_assets_stream_lag_records{pipeline="clicks"}', 20)
    told('pipeline_assets_secret_requests_total{source="vault", status="failed"}', 1)
    told("pipeline_assets_secret_last_failure_timestamp_seconds", 8)
    told("pipeline_assets_stream_batch_duration_seconds", 1.5)
    assert prometheus.query('{__name__=~"pipeline_assets_.*(batch_id|version).*"}') == [], "numbers of no meaning here"

    RunFile(folder, "third").append(record(numbers={"rows_written": 2}))
    told(f"pipeline_assets_step_written_rows_total{orders}", 342)


def test_rows_of_a_check_are_those_that_are_known(tmp_path: Path) -> None:
    file = RunFile(tmp_path, "a")
    for check, numbers in {"few": {"failed_rows": 3}, "letters": {"dead_letters": 7}, "none": {}}.items():
        file.append(record(kind="check", check=check, status="failed", numbers=numbers))
    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(tmp_path)))
    found = {
        check: registry.get_sample_value(
            "pipeline_assets_check_failed_rows", {"pipeline": "orders", "step": "load", "check": check}
        )
        for check in ("few", "letters", "none")
    }
    assert found == {"few": 3, "letters": 7, "none": None}


def test_of_runs_that_overlap_the_last_word_counts(tmp_path: Path) -> None:
    def write(run_id: str, time: float, value: int, status: str) -> None:
        file = RunFile(tmp_path, run_id)
        file.append(record(run_id=run_id, time=time, numbers={"peak_memory_bytes": value, "rows_written": value}))
        file.append(record(kind="step", run_id=run_id, time=time, status=status, numbers={"seconds": 1.0}))
        numbers = {"failed_rows": value}
        file.append(record(kind="check", run_id=run_id, check="c", time=time, status=status, numbers=numbers))
        file.append(record(kind="progress", run_id=run_id, time=time, numbers={"lag": value}))
        file.append(record(kind="secret", run_id=run_id, step="", source="vault", time=time, status="failed"))

    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(tmp_path)))
    labels = {"pipeline": "orders", "step": "load"}

    def told() -> list[float | None]:
        return [
            registry.get_sample_value("pipeline_assets_step_peak_memory_bytes", labels),
            registry.get_sample_value("pipeline_assets_step_last_success_timestamp_seconds", labels),
            registry.get_sample_value("pipeline_assets_check_passed", {**labels, "check": "c"}),
            registry.get_sample_value("pipeline_assets_check_failed_rows", {**labels, "check": "c"}),
            registry.get_sample_value("pipeline_assets_stream_lag_records", labels),
            registry.get_sample_value("pipeline_assets_stream_last_progress_timestamp_seconds", labels),
            registry.get_sample_value(
                "pipeline_assets_secret_last_failure_timestamp_seconds", {"pipeline": "orders", "source": "vault"}
            ),
            registry.get_sample_value("pipeline_assets_step_written_rows_total", labels),
        ]

    # In one batch, the file that was written to last has the older records; then the same over two batches.
    write("long", 20.0, 2, "succeeded")
    write("other", 10.0, 1, "failed")
    os.utime(tmp_path / "long.jsonl", (1, 1))
    assert told() == [2, 20, 1, 2, 2, 20, 20, 3]
    write("late", 15.0, 5, "failed")
    assert told() == [2, 20, 1, 2, 2, 20, 20, 8]
    write("last", 30.0, 0, "succeeded")
    assert told() == [0, 30, 1, 0, 0, 30, 30, 8]


def streams_of(metrics: RunMetrics) -> dict[str, set[str]]:
    """Return which streams have series, by what those are about: how they go, and that they failed."""
    samples = [found for family in metrics.registry.collect() for found in family.samples]
    failed = "pipeline_assets_step_last_failure_timestamp_seconds"
    return {
        "progress": {found.labels["pipeline"] for found in samples if "_assets_stream_" in found.name},
        "failure": {found.labels["pipeline"] for found in samples if found.name == failed},
    }


PROGRESS = dict.fromkeys(
    ("lag", "input_rows_per_second", "processed_rows_per_second", "batch_duration_ms", "continuous"), 1
)


def samples(metrics: RecordedMetrics) -> dict[tuple[str, ...], float]:
    """Return the value of each series."""
    found = (sample for family in metrics.collect() for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def test_an_exporter_that_is_started_again_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not read the files that had to make room; the one that has run all the time has."""
    monkeypatch.setattr(run_files, "_FILES_KEPT", 4)
    exporter = RecordedMetrics(RunFilesReader(tmp_path))
    statuses: list[Status] = ["succeeded", "failed", "retried", "canceled", "succeeded"]
    for number in range(40):
        status = statuses[number % 5]
        told = {"run_id": f"run{number}", "time": float(number)}
        numbers = {"rows_written": number, "spark_seconds": 0.1, "peak_memory_bytes": 100 - number, "table_version": 7}
        file = RunFile(tmp_path, f"run{number}")
        file.append(record(**told, step=f"step{number % 2}", numbers=numbers))
        # On the bounds of buckets, too.
        seconds = {"seconds": (0.1, 0.5, 0.6, 7200.0, 9000.0, 0.0)[number % 6]}
        file.append(record(**told, kind="step", status=status, numbers=seconds))
        if status in ("succeeded", "failed"):
            failed = {"failed_rows": number, "dead_letters": number}
            file.append(record(**told, kind="check", check=f"c{number % 3}", status=status, numbers=failed))
            file.append(record(**told, kind="secret", step="", source="vault", status=status, numbers=seconds))
        file.append(record(**told, kind="progress", pipeline=f"p{number % 3}", numbers={**PROGRESS, "lag": number}))
        if number in (20, 39):
            file.append(record(**told, kind="step", pipeline="p2", step="stream", status=status, numbers=seconds))
        os.utime(tmp_path / f"run{number}.jsonl", (number, number))
        list(exporter.collect())
    assert len(list(tmp_path.glob("*.jsonl"))) == 4
    expected = samples(exporter)
    assert len(expected) > 50
    assert samples(RecordedMetrics(RunFilesReader(tmp_path))) == pytest.approx(expected)


def test_numbers_that_add_up_are_those_of_counters() -> None:
    gauges = {found.name for found in RunMetrics().registry.collect() if found.type == "gauge"}
    assert {f"pipeline_assets_step_{name}" for name in LATEST} == {name for name in gauges if name.endswith("_bytes")}


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_the_progress_of_a_stream_goes_when_its_run_ends(tmp_path: Path, status: str) -> None:
    recorded = RecordedMetrics(RunFilesReader(tmp_path))
    for pipeline in ("clicks", "orders"):
        for step in ("out", "letters"):
            row = record(kind="progress", pipeline=pipeline, step=step, run_id=pipeline, time=5.0, numbers=PROGRESS)
            RunFile(tmp_path, pipeline).append(row)
    list(recorded.collect())
    assert streams_of(recorded._metrics)["progress"] == {"clicks", "orders"}
    end = record(kind="step", pipeline="clicks", step="stream", run_id="clicks", time=9.0, status=status)
    RunFile(tmp_path, "clicks").append(end)
    list(recorded.collect())
    assert streams_of(recorded._metrics)["progress"] == {"orders"}
    again = record(kind="progress", pipeline="clicks", step="out", run_id="next", time=10.0, numbers=PROGRESS)
    RunFile(tmp_path, "next").append(again)
    list(recorded.collect())
    assert streams_of(recorded._metrics)["progress"] == {"clicks", "orders"}


def test_the_end_of_a_run_takes_nothing_of_one_that_came_later() -> None:
    metrics = RunMetrics()
    metrics.take(record(kind="progress", pipeline="clicks", run_id="later", time=20.0, numbers=PROGRESS))
    metrics.take(record(kind="progress", pipeline="clicks", run_id="first", time=5.0, numbers=PROGRESS))
    metrics.take(record(kind="step", pipeline="clicks", step="stream", run_id="first", time=9.0, status="canceled"))
    assert streams_of(metrics)["progress"] == {"clicks"}


def test_a_stream_that_was_stopped_is_not_one_that_has_failed() -> None:
    metrics = RunMetrics()
    for pipeline, time, status in (
        ("stopped", 1.0, "failed"),
        ("stopped", 9.0, "canceled"),
        ("failed", 9.0, "failed"),
        ("failed", 1.0, "canceled"),
    ):
        metrics.take(record(kind="step", pipeline=pipeline, step="stream", time=time, status=status))
    metrics.take(record(kind="step", pipeline="batch", step="load", time=1.0, status="failed"))
    metrics.take(record(kind="step", pipeline="batch", step="load", time=9.0, status="canceled"))
    assert streams_of(metrics)["failure"] == {"failed", "batch"}


@pytest.mark.parametrize(
    ("told", "counter", "labels", "statuses"),
    [
        (
            {"kind": "step"}, "step_attempts", {"pipeline": "orders", "step": "load"},
            {"succeeded", "failed", "retried", "canceled"},
        ),
        (
            {"kind": "check", "check": "c"}, "check_evaluations", {"pipeline": "orders", "step": "load", "check": "c"},
            {"succeeded", "failed"},
        ),
        (
            {"kind": "secret", "step": "", "source": "vault"}, "secret_requests",
            {"pipeline": "orders", "source": "vault"}, {"succeeded", "failed"},
        ),
    ],
)  # fmt: skip
def test_what_has_not_happened_yet_is_there_as_none(
    told: dict[str, str], counter: str, labels: dict[str, str], statuses: set[str]
) -> None:
    metrics = RunMetrics()
    for _ in range(2):
        metrics.take(record(**told, status="succeeded"))
    (family,) = (found for found in metrics.registry.collect() if found.name == f"pipeline_assets_{counter}")
    assert {found.labels.pop("status"): (found.value, found.labels) for found in family.samples} == {
        status: (2 if status == "succeeded" else 0, labels) for status in statuses
    }
    written = {found.name for family in metrics.registry.collect() for found in family.samples}
    assert "pipeline_assets_step_written_rows_total" not in written, "an alert goes by that: it is of steps that write"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A stream, and a batch that puts rows aside."""
    folder = tmp_path / "configs"
    folder.mkdir()
    checks = [
        {"type": "validate", "method": "notNull", "name": name, "config": {"columns": ["id"], "onFailure": reaction}}
        for name, reaction in (("whole", "warn"), ("good", "quarantine"))
    ]
    write_config(folder, batch("a-b", extract_file("rows", "/in.csv"), *checks))
    write_config(folder, EVENT_STREAM)
    return folder


def test_all_that_dagster_knows_of_the_configs_is_known(configs: Path) -> None:
    definitions = build_definitions(Settings(configs=configs))
    is_known, graph = in_configs(configs), definitions.resolve_asset_graph()
    assets = [key.path for key in graph.materializable_asset_keys]
    checks = [(*key.asset_key.path, key.name) for key in graph.asset_check_keys]
    ops = [node.name.split("__") for job in ("a_b", "event_stream") for node in definitions.resolve_job_def(job).nodes]
    assert min(len(assets), len(checks), len(ops)) > 2
    for pipeline, step, *check in (*assets, *checks, *ops):
        labels = {"pipeline": pipeline, "step": step}
        assert is_known({**labels, **({"check": check[0]} if check else {})}), (pipeline, step, check)
        assert not is_known({"pipeline": pipeline, "step": f"{step}_2"})
        assert not is_known({**labels, "check": f"{step}_2"})


def left(registry: CollectorRegistry) -> set[tuple[str, ...]]:
    """Return what there are gauges of."""
    families = [family for family in registry.collect() if family.type == "gauge"]
    return {tuple(found.labels.values()) for family in families for found in family.samples}


def test_gauges_of_what_no_config_has_are_left_out(configs: Path, tmp_path: Path) -> None:
    file = RunFile(tmp_path / "metrics", "a")
    steps = {("a_b", "rows"), ("a_b", "renamed"), ("event_stream", "stream"), ("orders", "load")}
    for pipeline, step in steps:
        file.append(record(kind="step", pipeline=pipeline, step=step, status="failed"))
    for check in ("whole", "renamed"):
        file.append(record(kind="check", pipeline="a_b", step="rows", check=check, status="failed"))
    for pipeline in ("a_b", "orders", ""):
        file.append(record(kind="secret", pipeline=pipeline, step="", source="vault", status="failed"))
    secrets = {("a_b", "vault"), ("orders", "vault"), ("", "vault")}
    checks = {("a_b", "rows", "whole"), ("a_b", "rows", "renamed")}
    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(tmp_path / "metrics"), lambda: in_configs(configs)))
    known = {("a_b", "rows"), ("event_stream", "stream"), ("a_b", "rows", "whole"), ("a_b", "vault"), ("", "vault")}
    assert left(registry) == known
    labels = {"pipeline": "orders", "step": "load", "status": "failed"}
    assert registry.get_sample_value("pipeline_assets_step_attempts_total", labels) == 1, "sums stay"
    # Of a config that does not load, nobody knows what it has.
    write_config(configs, "{", "orders.json")
    assert left(registry) == known | {("orders", "load"), ("orders", "vault")}
    write_config(configs, batch("orders", extract_file("load", "/in.csv")), "orders.json")
    assert left(registry) == known | {("orders", "load"), ("orders", "vault")}
    shutil.rmtree(configs)
    assert left(registry) == steps | checks | secrets


class Meeting(dict[str, int]):
    """How far files were read. Two threads that look it up meet there, if both can be there."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2, timeout=0.5)

    def get(self, name: str, default: Any = None) -> Any:
        found = super().get(name, default)
        with suppress(threading.BrokenBarrierError):
            self.both.wait()
        return found


def test_two_scrapes_at_once_count_nothing_twice(folder: Path) -> None:
    reader, registry = RunFilesReader(folder), CollectorRegistry()
    registry.register(RecordedMetrics(reader))
    reader._read = Meeting()
    written = 'pipeline_assets_step_written_rows_total{pipeline="orders",step="load"} '
    with ThreadPoolExecutor(2) as pool:
        texts = [text.decode() for text in pool.map(lambda _: generate_latest(registry), range(2))]
    assert {text.partition(written)[2].partition("\n")[0] for text in texts} == {"340.0"}


def test_without_a_folder_it_says_what_to_set() -> None:
    command = [Path(sys.executable).parent / "pipeline-assets", "metrics", "serve"]
    environment = {name: value for name, value in os.environ.items() if name != "PIPELINE_ASSETS_METRICS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PIPELINE_ASSETS_METRICS is not set" in done.stderr
