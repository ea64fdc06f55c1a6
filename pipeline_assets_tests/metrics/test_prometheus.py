"""The runs' metrics as Prometheus sees them: by its own tool, and scraped by a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from devstack.prometheus import PrometheusServer
from pipeline_assets.metrics.prometheus import RecordedMetrics, RunMetrics
from pipeline_assets.metrics.run_files import RunFile, RunFilesReader
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

    orders = '{pipeline="orders", step="load"}'
    wait_until(lambda: answer(f"pipeline_assets_step_written_rows_total{orders}") == 340)
    assert answer(f"pipeline_assets_step_written_bytes_total{orders}") == 3400
    assert answer(f"pipeline_assets_step_peak_memory_bytes{orders}") == 40
    assert answer('pipeline_assets_step_attempts_total{step="load", status="failed"}') == 1
    assert answer(f"sum(pipeline_assets_step_attempts_total{orders})") == 3
    assert answer(f"pipeline_assets_step_duration_seconds_sum{orders}") == 44
    assert answer('pipeline_assets_step_duration_seconds_bucket{step="load", le="2.5"}') == 2
    (alert,) = re.findall(r"```promql\n(.+?)```", documented("Alerts and dashboards"), re.DOTALL)
    assert {(found["metric"]["step"], found["value"][1]) for found in prometheus.query(alert)} == {
        ("load", "9"),
        ("never", "3"),
    }
    assert answer("pipeline_assets_check_passed") == 0
    assert answer("pipeline_assets_check_failed_rows") == 4
    assert answer('pipeline_assets_stream_lag_records{pipeline="clicks"}') == 20
    assert answer('pipeline_assets_secret_requests_total{source="vault", status="failed"}') == 1
    assert answer("pipeline_assets_secret_last_failure_timestamp_seconds") == 8
    assert answer("pipeline_assets_stream_batch_duration_seconds") == 1.5
    assert prometheus.query('{__name__=~"pipeline_assets_.*(batch_id|version).*"}') == [], "numbers of no meaning here"

    RunFile(folder, "third").append(record(numbers={"rows_written": 2}))
    wait_until(lambda: answer(f"pipeline_assets_step_written_rows_total{orders}") == 342)


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
