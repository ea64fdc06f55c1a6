"""The files of runs' metrics: each line is read once, whatever happens to the files meanwhile."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline_assets.metrics import run_files
from pipeline_assets.metrics.records import MetricsRecord
from pipeline_assets.metrics.run_files import RunFile, RunFilesReader
from pipeline_assets_tests.metrics.records import record


def test_a_line_says_what_is_known() -> None:
    told = record(time=1_700_000_000.25, numbers={"rows_written": 3}, partition="2024-01-01")
    assert json.loads(told.line()) == {
        "schema": 1,
        "kind": "asset",
        "time": "2023-11-14T22:13:20.250+00:00",
        "run_id": "r",
        "pipeline": "orders",
        "step": "load",
        "partition": "2024-01-01",
        "attempt": 1,
        "numbers": {"rows_written": 3},
    }
    assert MetricsRecord.parse(told.line()) == told


@pytest.mark.parametrize(
    "line", ["", "{", "3", "null", '{"schema": 2, "kind": "asset"}', '{"schema": 1, "kind": "asset", "time": "x"}']
)
def test_what_is_no_line_of_this_schema(line: str) -> None:
    assert MetricsRecord.parse(line) is None


def test_each_line_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    reader = RunFilesReader(folder)
    assert list(reader.new_records()) == [], "there is no folder yet"
    first, second = RunFile(folder, "a"), RunFile(folder, "b")
    first.append(record(attempt=1))
    second.append(record(attempt=2))
    assert {found.attempt for found in reader.new_records()} == {1, 2}
    first.append(record(attempt=3))
    with (folder / "b.jsonl").open("a") as file:
        file.write(record(attempt=4).line()[:20])
        file.flush()
        assert [found.attempt for found in reader.new_records()] == [3]
        file.write(record(attempt=4).line()[20:])
    assert [found.attempt for found in reader.new_records()] == [4]
    assert list(reader.new_records()) == []


def test_a_run_goes_on_after_its_file_had_to_make_room(tmp_path: Path) -> None:
    file, reader = RunFile(tmp_path, "a"), RunFilesReader(tmp_path)
    for attempt in range(5):
        file.append(record(attempt=attempt))
    assert len(list(reader.new_records())) == 5
    (tmp_path / "a.jsonl").unlink()
    file.append(record(attempt=7))
    assert [found.attempt for found in reader.new_records()] == [7]
    file.append(record(attempt=8))
    assert [found.attempt for found in reader.new_records()] == [8]


def test_a_key_of_a_later_version_is_left_out() -> None:
    told = record(attempt=3)
    line = json.dumps({**json.loads(told.line()), "cluster": "b", "numbers": {}})
    assert MetricsRecord.parse(line) == replace(told, numbers={})


def test_a_long_file_is_rotated_and_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_FILE_BYTES", 500)
    file, reader = RunFile(tmp_path, "a"), RunFilesReader(tmp_path)
    read = []
    for attempt in range(10):
        file.append(record(attempt=attempt))
        read += [found.attempt for found in reader.new_records()]
    assert read == list(range(10))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 2
    assert max(sizes) < 1000
    RunFile(tmp_path, "a").append(record(attempt=10))
    assert [found.attempt for found in reader.new_records()] == [10], "another process of the run goes on at its end"


def test_the_oldest_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_FILES_KEPT", 3)
    for number in range(6):
        RunFile(tmp_path, str(number)).append(record())
        os.utime(tmp_path / f"{number}.jsonl", (number, number))
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["3.jsonl", "4.jsonl", "5.jsonl"]


def test_runs_that_start_at_once_make_room_without_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_FILES_KEPT", 20)

    def write(number: int) -> None:
        RunFile(tmp_path, str(number)).append(record(time=float(number), numbers={"rows_written": 1}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert len(list(tmp_path.glob("*.jsonl"))) <= 20 + 8
    assert sum(found.numbers["rows_written"] for found in RunFilesReader(tmp_path).new_records()) == 200
