"""Writing files, read back with pyarrow, on disk and on a real S3."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest
from pyspark.errors import PySparkException

from devstack.s3 import S3Server
from pipeline_assets.errors import (
    ConfigurationError,
    DataFrameResolutionError,
    PipelineExecutionError,
    RetryableError,
)
from pipeline_assets.partitions import Partitions
from pipeline_assets.steps import file_systems
from pipeline_assets.steps.base import LoadResult, StepContext, Transaction
from pipeline_assets.steps.counted_rows import CountedRows
from pipeline_assets.steps.extract_files import FromFile
from pipeline_assets.steps.file_systems import Folder
from pipeline_assets.steps.load_files import ToS3
from pipeline_assets_tests.spark_jobs import jobs
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order, rows_of

OLD: Rows = [(1, "a"), (2, "b")]
NEW: Rows = [(3, "c"), (4, "a")]


def load(rows: Rows, context: StepContext, path: str, **config: Any) -> LoadResult:
    method = ToS3.model_validate({"path": path, **config})
    return method.load(frame_of(context.spark, "id INT, name STRING", rows), context)


def contents(files: dict[str, bytes]) -> Rows:
    """Return the rows of parquet files, with the values that are in their folders' names."""
    rows: Rows = []
    for name, data in files.items():
        assert name.endswith(".parquet"), name
        folders = dict(part.split("=") for part in name.split("/")[:-1])
        for row in pyarrow.parquet.ParquetFile(io.BytesIO(data)).read().to_pylist():
            rows.append(tuple((row | folders).values()))
    return in_order(rows)


def on_disk(folder: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones of Spark's checksums apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".crc")
    }


def on_s3(s3: S3Server, prefix: str) -> dict[str, bytes]:
    client = s3.client()
    listed = client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {
        entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=s3.bucket, Key=entry["Key"])["Body"].read()
        for entry in listed
        if not entry["Key"].endswith("/")
    }


@pytest.mark.parametrize(("mode", "expected"), [("append", [*OLD, *NEW]), ("overwrite", NEW)])
def test_modes_on_disk(mode: str, expected: Rows, context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert load(OLD, context, str(folder)).rows == 2
    result = load(NEW, context, f"file://{folder}", mode=mode)
    assert contents(on_disk(folder)) == in_order(expected)
    assert (result.rows, result.uri) == (2, f"file://{folder}")
    assert not list(folder.glob("_staging_*"))


@pytest.mark.parametrize(("mode", "expected"), [("append", [*OLD, *NEW]), ("overwrite", NEW)])
def test_modes_on_s3(mode: str, expected: Rows, s3: S3Server, s3_context: StepContext) -> None:
    path = f"s3a://{s3.bucket}/load/{mode}"
    load(OLD, s3_context, path)
    result = load(NEW, s3_context, path, mode=mode)
    files = on_s3(s3, f"load/{mode}")
    assert contents(files) == in_order(expected)
    assert (result.rows, result.uri) == (2, path)


@pytest.mark.parametrize("scheme", ["file://", "file:"])
@pytest.mark.parametrize(("name", "other"), [("a%20b", "a b"), ("run#1", "run")])
def test_a_uri_is_taken_literally(name: str, other: str, scheme: str, context: StepContext, tmp_path: Path) -> None:
    load(OLD, context, str(tmp_path / other))
    for rows in (OLD, NEW):
        result = load(rows, context, f"{scheme}{tmp_path}/{name}", mode="overwrite")
    assert contents(on_disk(tmp_path / name)) == NEW
    assert result.uri == f"file://{tmp_path}/{name}"
    assert contents(on_disk(tmp_path / other)) == OLD


def test_error_if_exists(context: StepContext, tmp_path: Path) -> None:
    load(OLD, context, str(tmp_path / "out"), mode="errorIfExists")
    with pytest.raises(PipelineExecutionError, match="files already: mode 'errorIfExists'"):
        load(NEW, context, str(tmp_path / "out"), mode="errorIfExists")
    assert contents(on_disk(tmp_path / "out")) == OLD


def test_json_and_csv(context: StepContext, tmp_path: Path) -> None:
    load(OLD, context, str(tmp_path / "json"), format="json", numFiles=1)
    (text,) = on_disk(tmp_path / "json").values()
    assert [json.loads(line) for line in sorted(text.decode().splitlines())] == [
        {"id": number, "name": name} for number, name in OLD
    ]
    load(OLD, context, str(tmp_path / "csv"), format="csv", numFiles="1", options={"compression": "gzip", "sep": ";"})
    (packed,) = on_disk(tmp_path / "csv").values()
    header, *rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()), delimiter=";")
    assert (header, sorted(rows)) == (["id", "name"], [["1", "a"], ["2", "b"]])


TIMES = "id INT, name STRING, at TIMESTAMP, noted TIMESTAMP_NTZ"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMED: Rows = [
    (1, " a ", datetime(2024, 5, 1, 10, 0, 0, 123456, tzinfo=UTC), datetime(2024, 5, 1, 10, 0, 0, 1)),
    (2, "", datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(2024, 5, 1)),
    (3, None, None, None),
    (4, "\ttab", datetime(2024, 5, 1, tzinfo=UTC), None),
    (5, 'a "b", c', None, None),
    (6, '\\"', None, None),
]


def read_plainly(format_: str, text: str) -> Rows:
    """Return the rows of TIMES in a file, by Python's own readers, to which no value is an empty text."""
    records = csv.DictReader(io.StringIO(text)) if format_ == "csv" else map(json.loads, text.splitlines())
    rows: Rows = []
    for record in records:
        times = (datetime.fromisoformat(record[name]) if record.get(name) else None for name in ("at", "noted"))
        rows.append((int(record["id"]), record.get("name") or None, *times))
    return in_order(rows)


@pytest.mark.parametrize("schema", [TIMES, None])
@pytest.mark.parametrize("format_", ["csv", "json"])
def test_texts_and_times_are_written_as_they_are(
    format_: str, schema: str | None, context: StepContext, tmp_path: Path
) -> None:
    path = str(tmp_path / "out")
    method = ToS3.model_validate({"path": path, "format": format_, "numFiles": 1})
    method.load(frame_of(context.spark, TIMES, TIMED), context)
    (text,) = on_disk(tmp_path / "out").values()
    plain = in_order((id_, name or None, *times) for id_, name, *times in TIMED)
    assert read_plainly(format_, text.decode()) == plain
    options = {} if schema or format_ == "csv" else {"inferTimestamp": True}
    config = {"path": path, "format": format_, "options": options} | ({"schema": schema} if schema else {})
    found = FromFile.model_validate(config).extract(context)
    found = found.selectExpr("id", "name", "unix_micros(at)", "CAST(noted AS TIMESTAMP_NTZ)")
    # To Spark's reader of CSV an empty text is null.
    assert rows_of(found) == in_order(
        (id_, name if format_ == "json" else name or None, at and (at - EPOCH) // timedelta(microseconds=1), noted)
        for id_, name, at, noted in TIMED
    )


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_options_go_before_the_formats_own(format_: str, context: StepContext, tmp_path: Path) -> None:
    options = {"TimestampFormat": "yyyy", "IGNORELEADINGWHITESPACE": True, "Header": False, "ESCAPE": "\\"}
    method = ToS3.model_validate({"path": str(tmp_path / "out"), "format": format_, "options": options})
    method.load(frame_of(context.spark, "name STRING, at TIMESTAMP", [(' a"b ', TIMED[0][2])]), context)
    (text,) = on_disk(tmp_path / "out").values()
    assert text.decode() == ('"a\\"b ",2024\n' if format_ == "csv" else '{"name":" a\\"b ","at":"2024"}\n')


def test_partition_by_replaces_old_folders(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    load(OLD, context, str(folder), partitionBy=["name"])
    assert contents(on_disk(folder)) == OLD
    load(NEW, context, str(folder), partitionBy=["name"], mode="overwrite")
    assert contents(on_disk(folder)) == NEW


@pytest.mark.parametrize("format_", ["parquet", "csv", "json"])
def test_texts_in_the_names_of_folders(format_: str, context: StepContext, tmp_path: Path) -> None:
    rows: Rows = [(1, "007"), (2, "1e3"), (3, "2024-05-01"), (4, "a b/c=%")]
    config = {"path": str(tmp_path / "out"), "format": format_}
    load(rows, context, partitionBy=["name"], **config)
    found = FromFile.model_validate({**config, "schema": "id INT, name STRING"}).extract(context)
    assert rows_of(found) == rows
    load(rows[:1], context, partitionBy=["name"], mode="overwrite", **config)
    assert rows_of(FromFile.model_validate(config).extract(context)) == [(1, 7)]


@pytest.mark.parametrize(("mode", "expected"), [("append", [*OLD, *NEW]), ("overwrite", NEW)])
def test_a_column_whose_name_begins_with_an_underscore(
    mode: str, expected: Rows, context: StepContext, tmp_path: Path
) -> None:
    folder = str(tmp_path / "out")
    for rows in (OLD, NEW):
        frame = frame_of(context.spark, "id INT, _name STRING", rows)
        result = ToS3.model_validate({"path": folder, "partitionBy": ["_name"], "mode": mode}).load(frame, context)
    assert contents(on_disk(tmp_path / "out")) == in_order(expected)
    assert result.metrics["numFiles"] == 2
    read_back = context.spark.read.parquet(folder).select("id", "_name")
    assert in_order(tuple(row) for row in read_back.collect()) == in_order(expected)


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        (True, PipelineExecutionError, "written 2 rows"),
        (False, RetryableError, "does not tell how many rows"),
    ],
)
def test_rows_that_no_reader_would_see_are_refused(
    told: bool,
    error: type[PipelineExecutionError],
    message: str,
    context: StepContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    load(OLD, context, str(folder))
    before = on_disk(folder)
    frame = frame_of(context.spark, "id INT, `.name` STRING", NEW)
    method = ToS3.model_validate({"path": str(folder), "partitionBy": [".name"], "mode": "overwrite"})
    if not told:
        monkeypatch.setattr(CountedRows, "get", lambda self: None)
    with pytest.raises(error, match=f"{message} .*begin with a dot.*No file was moved") as caught:
        method.load(frame, context)
    assert type(caught.value) is error
    assert on_disk(folder) == before


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_failed_job_leaves_the_files(mode: str, context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    load(OLD, context, str(folder))
    before = on_disk(folder)
    failing = frame_of(context.spark, "id INT, name STRING", NEW).where("assert_true(id < 4) IS NULL")
    with pytest.raises(PySparkException, match="id < 4"):
        ToS3.model_validate({"path": str(folder), "mode": mode}).load(failing, context)
    assert on_disk(folder) == before
    with pytest.raises(PySparkException, match="id < 4"):
        ToS3.model_validate({"path": str(tmp_path / "new"), "mode": mode}).load(failing, context)
    assert not (tmp_path / "new").exists()


def test_a_failed_job_leaves_the_files_on_s3(s3: S3Server, s3_context: StepContext) -> None:
    path = f"s3a://{s3.bucket}/load/failed"
    load(OLD, s3_context, path)
    before = on_s3(s3, "load/failed")
    failing = frame_of(s3_context.spark, "id INT, name STRING", NEW).where("assert_true(id < 4) IS NULL")
    with pytest.raises(PySparkException, match="id < 4"):
        ToS3.model_validate({"path": path, "mode": "overwrite"}).load(failing, s3_context)
    assert on_s3(s3, "load/failed") == before


def test_a_failed_move_is_taken_back(context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    load(OLD, context, str(folder))
    before = on_disk(folder)
    take = Folder.take

    def with_a_missing_file(self: Folder, source: Folder, names: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        (Path(source.path) / next(reversed(names))).unlink()
        take(self, source, names, sizes)

    monkeypatch.setattr(Folder, "take", with_a_missing_file)
    with pytest.raises(PipelineExecutionError, match=str(folder)):
        load([(number, "x") for number in range(100)], context, str(folder), mode="overwrite", numFiles=5)
    assert on_disk(folder) == before


class SmallCopies:
    """A file system on S3 where the limit for copies is 10 MB, and may be told to lose the connection."""

    limit = 10_000_000

    def __init__(self, files: Any, *, fails: bool = False) -> None:
        self._files, self._fails = files, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def move(self, source: str, target: str) -> None:
        if self._files.get_file_info(source).size > self.limit:
            raise OSError("the specified copy source is larger than the maximum allowable size for a copy source")
        self._files.move(source, target)

    @contextmanager
    def open_input_file(self, path: str) -> Iterator[Any]:
        with self._files.open_input_file(path) as file:
            yield BrokenOff(file) if self._fails else file


class BrokenOff:
    """A file that can be read from once."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if self._file.tell():
            raise OSError("curlCode: 56, Failure when receiving data from the peer")
        return bytes(self._file.read(size))


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_that_s3_does_not_copy_at_once(
    fails: bool, s3: S3Server, s3_context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "_MOST_COPIED", SmallCopies.limit)
    # Compressed by their names.
    new = {"small.gz": random.Random(1).randbytes(1000), "b/large.csv.gz": random.Random(2).randbytes(25_000_000)}
    prefix = f"load/large-{fails}"
    for name, content in ({"old": b"old"} | {f"_staging/{name}": content for name, content in new.items()}).items():
        s3.client().put_object(Bucket=s3.bucket, Key=f"{prefix}/{name}", Body=content)
    opened = file_systems.open_folder(f"s3a://{s3.bucket}/{prefix}", "default", s3_context.connections)
    assert isinstance(opened, file_systems.S3Folder)
    folder = dataclasses.replace(opened, files=SmallCopies(opened.files, fails=fails))
    staging = folder.below("_staging")
    sizes = {name: len(content) for name, content in new.items()}
    if fails:
        with pytest.raises(PipelineExecutionError, match="receiving data"):
            folder.take(staging, {name: name for name in new}, sizes)
        assert set(on_s3(s3, prefix)) == {"old", "_staging/b/large.csv.gz"}
    else:
        folder.take(staging, {name: name for name in new}, sizes)
        assert on_s3(s3, prefix) == new | {"old": b"old"}


@pytest.mark.parametrize("mode", ["append", "overwrite", "errorIfExists"])
def test_what_an_earlier_try_has_left_is_replaced(mode: str, s3: S3Server, s3_context: StepContext) -> None:
    """A run that is killed while files are moved leaves some of them; the one that resumes it may write fewer."""
    prefix = f"load/resumed-{mode}"
    path = f"s3a://{s3.bucket}/{prefix}"
    others = [] if mode == "errorIfExists" else OLD
    if others:
        load(others, s3_context, path, partitionBy=["name"])
    killed = dataclasses.replace(s3_context, transaction=Transaction("run-1:step", "run-1:step"))
    load([(number, "z") for number in range(100)], killed, path, mode=mode, partitionBy=["name"], numFiles=5)
    left = on_s3(s3, prefix)
    resumed = dataclasses.replace(s3_context, transaction=Transaction("run-2:step", "run-1:step"))
    load(NEW, resumed, path, mode=mode, partitionBy=["name"])
    assert contents(on_s3(s3, prefix)) == in_order([*others, *NEW] if mode == "append" else NEW)
    assert len(left) >= 5
    other = dataclasses.replace(s3_context, transaction=Transaction("run-3:step", "run-3:step"))
    load(NEW, other, path, partitionBy=["name"])
    assert contents(on_s3(s3, prefix)) == in_order([*(others if mode == "append" else []), *NEW, *NEW])


def in_partition(context: StepContext, key: str) -> StepContext:
    partitions = Partitions.model_validate({"type": "hourly", "start": "2024-01-01"})
    return dataclasses.replace(context, partition=partitions.slice(key))


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_partition_is_a_folder(mode: str, context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first, second = "2024-01-01-05:00", "2024-01-01-06:00"
    for key, rows in ((first, OLD), (second, OLD), (second, NEW)):
        result = load(rows, in_partition(context, key), str(folder), mode=mode)
    read_back = context.spark.read.parquet(str(folder))
    assert in_order(tuple(row) for row in read_back.collect()) == in_order(
        [(*row, first) for row in OLD] + [(*row, second) for row in NEW]
    )
    assert result.uri == f"{folder}/partition_key=2024-01-01-06%3A00"


def test_a_path_that_names_the_partition_is_its_own(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "2024-01-01"
    inside = dataclasses.replace(in_partition(context, "2024-01-01-05:00"), by_partition=frozenset({"path"}))
    load(OLD, inside, str(folder))
    load(NEW, inside, str(folder))
    assert contents(on_disk(folder)) == NEW


def test_a_key_that_is_in_the_path_by_chance(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "europe"
    partitions = Partitions(type="static", values=("eu", "us"))
    for key in ("us", "eu", "us"):
        load(OLD, dataclasses.replace(context, partition=partitions.slice(key)), str(folder), mode="overwrite")
    assert {file.parent.name for file in folder.rglob("*.parquet")} == {"partition_key=eu", "partition_key=us"}


DAYS = "id INT, day DATE"
FIRST, SECOND = date(2024, 1, 1), date(2024, 1, 2)


def on_day(context: StepContext, key: str, **more: Any) -> StepContext:
    daily = Partitions.model_validate({"type": "daily", "start": "2024-01-01", "column": "day"})
    return dataclasses.replace(context, partition=daily.slice(key), **more)


@pytest.mark.parametrize("mode", ["append", "overwrite", "errorIfExists"])
@pytest.mark.parametrize("names_partition", [False, True])
def test_rows_of_another_partition_are_refused(
    mode: str, names_partition: bool, context: StepContext, tmp_path: Path
) -> None:
    by_partition = frozenset({"path"} if names_partition else ())
    method = ToS3.model_validate({"path": str(tmp_path / "out"), "mode": mode, "partitionBy": ["day"]})
    inside = on_day(context, "2024-01-01", by_partition=by_partition, optimize=True)
    for rows in ([(1, FIRST), (2, SECOND)], [(1, FIRST), (2, None)]):
        with pytest.raises(PipelineExecutionError, match="rows outside partition '2024-01-01' .*nothing was written"):
            method.load(frame_of(context.spark, DAYS, rows), inside)
        assert not (tmp_path / "out").exists()
    assert method.load(frame_of(context.spark, DAYS, [(1, FIRST), (3, FIRST)]), inside).rows == 2
    written = on_disk(tmp_path / "out")
    with pytest.raises(PipelineExecutionError, match="rows outside partition|files already"):
        method.load(frame_of(context.spark, DAYS, [(2, SECOND)]), inside)
    assert on_disk(tmp_path / "out") == written


def test_rows_are_held_to_the_partition_by_the_write_itself(context: StepContext, tmp_path: Path) -> None:
    """Also those of a join, which leaves out what is outside: what it takes is not asked."""
    left = [(number, date(2024, 1, 1 + number % 3)) for number in range(9)]
    frame = frame_of(context.spark, DAYS, left).join(frame_of(context.spark, "id INT", [(0,), (3,)]), "id")
    counts: list[int] = []
    for inside in (context, on_day(context, "2024-01-01")):
        before = jobs(context.spark)
        ToS3(path=str(tmp_path / "out")).load(frame, inside)
        counts.append(len(jobs(context.spark) - before))
    expected = pd.DataFrame(left, columns=["id", "day"]).merge(pd.DataFrame({"id": [0, 3]}))
    found = pd.read_parquet(tmp_path / "out" / "partition_key=2024-01-01").sort_values("id", ignore_index=True)
    assert [*found.itertuples(index=False)] == [*expected.itertuples(index=False)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("column", [None, "Partition_Key"])
def test_a_column_called_as_the_folder_of_the_partition(
    column: str | None, context: StepContext, tmp_path: Path
) -> None:
    daily = Partitions.model_validate({"type": "daily", "start": "2024-01-01", "column": column})
    inside = dataclasses.replace(context, partition=daily.slice("2024-01-01"))
    frame = frame_of(context.spark, "id INT, Partition_Key STRING", [(1, "2024-01-01-05:00")])
    method = ToS3(path=str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="column 'Partition_Key', .*rename .* into 'path'"):
        method.load(frame, inside)
    assert not (tmp_path / "out").exists()
    method.load(frame, dataclasses.replace(inside, by_partition=frozenset({"path"})))
    assert contents(on_disk(tmp_path / "out")) == [(1, "2024-01-01-05:00")]


def test_a_partition_column_that_is_not_there(context: StepContext, tmp_path: Path) -> None:
    with pytest.raises(DataFrameResolutionError, match="no column 'day'"):
        load(OLD, on_day(context, "2024-01-01"), str(tmp_path / "out"))


def test_an_hour_that_clocks_show_twice(context: StepContext, tmp_path: Path) -> None:
    hourly = Partitions(type="hourly", start=datetime(2024, 10, 1), timezone="Europe/Berlin", column="at")
    inside = dataclasses.replace(context, partition=hourly.slice("2024-10-27-02:00+0100"))
    method = ToS3(path=str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="make it a TIMESTAMP"):
        method.load(frame_of(context.spark, "at TIMESTAMP_NTZ", [(datetime(2024, 10, 27, 2, 30),)]), inside)
    hours = [(datetime(2024, 10, 27, hour, 30, tzinfo=UTC),) for hour in (0, 1)]
    with pytest.raises(PipelineExecutionError, match=r"outside partition '2024-10-27-02:00\+0100'"):
        method.load(frame_of(context.spark, "at TIMESTAMP", hours), inside)
    assert not (tmp_path / "out").exists()
    assert method.load(frame_of(context.spark, "at TIMESTAMP", hours[1:]), inside).rows == 1


def test_unknown_partition_column(context: StepContext, tmp_path: Path) -> None:
    with pytest.raises(DataFrameResolutionError, match="'nam', did you mean 'name'"):
        load(OLD, context, str(tmp_path / "out"), partitionBy=["nam"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "kind", "parts"),
    [("s3://data/a/b", "s3", ("data", "a", "b")), ("/data/a", "file", ("data", "a"))],
)
def test_sinks(path: str, kind: str, parts: tuple[str, ...]) -> None:
    (sink,) = ToS3(path=path).sinks()
    assert (sink.kind, sink.parts) == (kind, parts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "hdfs://a/b"}, "neither on S3 nor local"),
        ({"path": "dbfs:/a/b"}, "neither on S3 nor local"),
        ({"path": "s3a:/a/b"}, "expected two slashes after the colon"),
        ({"path": "s3a://data/*.json"}, "contains a glob"),
        ({"path": "s3a://"}, "names no bucket"),
        ({"path": "/a", "partitionBy": ["x", "X"]}, "names a column twice"),
        ({"path": "/a", "format": "orc"}, "'parquet', 'json' or 'csv'"),
        ({"path": "/a", "numFiles": 0}, "greater than 0"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToS3.model_validate(config)
