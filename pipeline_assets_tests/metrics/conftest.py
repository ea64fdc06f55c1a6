"""What some runs have recorded, and the exporter that shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_assets.metrics.run_files import RunFile
from pipeline_assets_tests.metrics.records import record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What two runs of a pipeline and a stream have recorded."""
    folder = tmp_path / "metrics"
    for run_id, rows in (("first", 300), ("second", 40)):
        file = RunFile(folder, run_id)
        numbers = {"rows_written": rows, "bytes_written": rows * 10, "spark_seconds": 1.5, "peak_memory_bytes": rows}
        numbers |= dict.fromkeys(
            ("rows_read", "bytes_read", "files_written", "spark_task_seconds", "shuffle_write_bytes",
             "disk_spilled_bytes", "quarantined_rows"), 5,
        )  # fmt: skip
        file.append(record(run_id=run_id, numbers={**numbers, "table_version": 7}))
        file.append(record(kind="step", run_id=run_id, status="succeeded", time=5.0, numbers={"seconds": 2.0}))
    file.append(record(kind="step", run_id="second", status="failed", time=9.0, numbers={"seconds": 40.0}))
    file.append(record(kind="step", step="never", status="failed", time=3.0, numbers={"seconds": 1.0}))
    file.append(record(kind="check", check="not_null", status="failed", numbers={"failed_rows": 4}))
    for status in ("succeeded", "failed"):
        file.append(record(kind="secret", step="", source="vault", status=status, time=8.0, numbers={"seconds": 0.1}))
    stream = RunFile(folder, "stream")
    rates = {"input_rows_per_second": 10.0, "processed_rows_per_second": 20.0}
    for lag in (500, 20):
        numbers = {"lag": lag, "batch_duration_ms": 1500, "batch_id": 3, "continuous": 1, **rates}
        stream.append(record(kind="progress", pipeline="clicks", time=7.0, numbers=numbers))
    stream.append(record(pipeline="clicks", step="events_dead_letters", numbers={"dead_letters": 2}))
    return folder


@pytest.fixture
def exporter(folder: Path) -> Iterator[str]:
    """``pipeline-assets metrics serve`` on the folder, without configs; its ``host:port``."""
    command = [Path(sys.executable).parent / "pipeline-assets", "metrics", "serve", "--port", "0"]
    environment = {
        **os.environ, "PIPELINE_ASSETS_METRICS": str(folder), "PIPELINE_ASSETS_CONFIGS": str(folder.parent / "configs"),
    }  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://(127\.0\.0\.1:\d+)/metrics", process.stdout.readline())
        assert found is not None
        yield found[1]
        process.terminate()
        assert process.wait(60) == 0
