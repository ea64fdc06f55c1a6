"""Reading files that pyarrow, pandas and plain Python wrote, from disk and from a real S3."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest

from devstack.s3 import S3Server
from pipeline_assets.errors import ConfigurationError, PipelineError
from pipeline_assets.settings import Settings
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.extract_files import FromFile, FromS3
from pipeline_assets_tests.steps.frames import in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = [(1, "a"), (2, "b")]
TABLE = pa.table({"id": [1, 2], "name": ["a", "b"]})
LINES = "".join(json.dumps({"id": number, "name": name}) + "\n" for number, name in ROWS)
CSV = "id,name\n1,a\n2,b\n"


def write_files(folder: Path) -> None:
    pyarrow.parquet.write_table(TABLE, folder / "plain.parquet")
    pyarrow.orc.write_table(TABLE, folder / "plain.orc")
    (folder / "plain.json").write_text(LINES)
    (folder / "lines.ndjson").write_text(LINES)
    (folder / "packed.json.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "plain.csv").write_text(CSV)
    (folder / "bare.csv").write_text("1;a\n2;b\n")
    (folder / "words.txt").write_text("a\nb\n")
    (folder / "no_extension").write_text(LINES)
    (folder / "empty.parquet").mkdir()


@pytest.mark.parametrize(
    "config",
    [
        {"path": "plain.parquet"},
        {"path": "plain.orc"},
        {"path": "plain.json"},
        {"path": "lines.ndjson"},
        {"path": "packed.json.gz"},
        {"path": "plain.csv"},
        {"path": "plain.csv", "schema": "id INT, name STRING"},
        {"path": "bare.csv", "options": {"header": False, "sep": ";"}, "schema": "id BIGINT, name STRING"},
        {"path": "no_extension", "format": "json"},
        {"path": "pl*.parquet"},
        {"paths": ["plain.json", "packed.json.gz"], "schema": "id INT, name STRING"},
    ],
    ids=str,
)
def test_every_format(config: dict[str, Any], context: StepContext, tmp_path: Path) -> None:
    write_files(tmp_path)
    where = {
        "path": f"{tmp_path}/{config['path']}" if "path" in config else None,
        "paths": [f"file://{tmp_path}/{path}" for path in config.get("paths", ())],
    }
    frame = FromFile.model_validate(config | where).extract(context)
    assert frame.columns == ["id", "name"]
    assert sorted(set(rows_of(frame))) == ROWS
    assert len(rows_of(frame)) == len(ROWS) * max(1, len(where["paths"] or ()))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [(1,), (2,)]),
        ({"options": {"mergeSchema": True}}, [(1, None), (2, "b")]),
        ({"schema": "id BIGINT, name STRING"}, [(1, None), (2, "b")]),
    ],
    ids=str,
)
def test_parquet_files_whose_columns_differ(
    config: dict[str, Any], expected: list[Any], context: StepContext, tmp_path: Path
) -> None:
    pyarrow.parquet.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pa.table({"id": [2], "name": ["b"]}), tmp_path / "b.parquet")
    method = FromFile.model_validate({"path": f"{tmp_path}/*.parquet", **config})
    assert rows_of(method.extract(context)) == expected


def test_text(context: StepContext, tmp_path: Path) -> None:
    write_files(tmp_path)
    assert rows_of(FromFile(path=f"{tmp_path}/words.txt").extract(context)) == [("a",), ("b",)]


def test_avro(context: StepContext, tmp_path: Path) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    path = str(tmp_path / "written.avro")
    context.spark.range(3).select(F.col("id")).write.format("avro").save(path)
    assert rows_of(FromFile(path=path).extract(context)) == [(0,), (1,), (2,)]


def test_schema_decides_over_inference(context: StepContext, tmp_path: Path) -> None:
    write_files(tmp_path)
    given = FromFile.model_validate({"path": f"{tmp_path}/plain.csv", "schema": "id STRING, name STRING"})
    assert rows_of(given.extract(context)) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize("schema", [None, 'id INT, `na"me, x` STRING'])
@pytest.mark.parametrize("line_breaks", [False, True])
def test_quotes_in_csv_are_doubled(line_breaks: bool, schema: str | None, context: StepContext, tmp_path: Path) -> None:
    texts = ['say "hi", now', '"', '""', '"a', 'a"', '","', "\\", "a,\\", '\\"', '"\\', *(['a\n"b"\n'] * line_breaks)]
    rows = list(enumerate(texts))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", 'na"me, x'), *rows])
    config = {"path": f"{tmp_path}/rows.csv", "schema": schema, "options": {"multiLine": True} if line_breaks else {}}
    found = FromFile.model_validate(config).extract(context)
    assert rows_of(found) == in_order(rows)
    assert rows_of(found.select("id")) == in_order((number,) for number, _ in rows)
    assert rows_of(found.where("id > 0").select('`na"me, x`')) == in_order((text,) for text in texts[1:])
    assert found.count() == len(rows)


FITTING = {
    "no value": ("csv", "id,name\n,a\n2,\n", [(None, "a"), (2, None)]),
    "names in another case, after a byte order mark": ("csv", "\ufeffID,Name\r\n1,a\r\n", [(1, "a")]),
    "empty lines": ("csv", "id,name\n\n1,a\n\n", [(1, "a")]),
    "header alone": ("csv", "id,name\n", []),
    "fields that are missing, null or not named": (
        "json",
        '{"id": 1, "x": 2}\n\n{"name": null}\n',
        [(1, None), (None, None)],
    ),
}


@pytest.mark.parametrize(("format_", "content", "rows"), FITTING.values(), ids=FITTING.keys())
def test_what_fits_a_schema(format_: str, content: str, rows: list[Any], context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(content, newline="")
    method = FromFile.model_validate({"path": f"{tmp_path}/rows", "format": format_, "schema": "id INT, name STRING"})
    assert rows_of(method.extract(context)) == in_order(rows)


OTHER = {
    "other order": ("csv", "name,id\na,1\n", "has name, id where 'schema' .* has id, name: .*enforceSchema"),
    "another column": ("csv", "id,nick\n1,a\n", "has id, nick where 'schema' .* has id, name"),
    "fewer columns": ("csv", "id\n1\n", "has 1 columns where 'schema' .* has 2"),
    "more columns": ("csv", "id,name,x\n1,a,b\n", "has 3 columns where 'schema' .* has 2"),
    "no number": ("csv", "id,name\nx,a\n", "fit 'schema' .For input string: \"x\".: .*PERMISSIVE"),
    "longer record": ("csv", "id,name\n1,a,b\n", "does not fit 'schema' .more or fewer values than columns."),
    "text": ("json", '{"id": "x"}', "does not fit 'schema' .Cannot parse the field name 'id' and the value x"),
    "half": ("json", '{"id": 1', "does not fit 'schema' .Unexpected end-of-input"),
}


@pytest.mark.parametrize(("format_", "content", "message"), OTHER.values(), ids=OTHER.keys())
def test_what_does_not_fit_a_schema(
    format_: str, content: str, message: str, any_spark: SparkSession, context: StepContext, tmp_path: Path
) -> None:
    (tmp_path / "rows").write_text(content)
    method = FromFile.model_validate({"path": f"{tmp_path}/rows", "format": format_, "schema": "id INT, name STRING"})
    frame = method.extract(dataclasses.replace(context, spark=any_spark))
    with pytest.raises(PipelineError, match=f"^file://{tmp_path}/rows: .*{message}") as caught, spark_errors():
        frame.collect()
    assert "\n" not in caught.value.message


def test_headers_that_differ(any_spark: SparkSession, context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("name,id\nc,3\n")
    found = FromFile(path=f"{tmp_path}/*.csv").extract(dataclasses.replace(context, spark=any_spark))
    message = "header has (name, id|id, name) where 'schema' .if there is none, the first file. has (id, name|name, id)"
    with pytest.raises(PipelineError, match=message), spark_errors():
        found.collect()


@pytest.mark.parametrize("header", ["id,,name", "id,id,name", "id,ID,name"])
def test_headers_that_spark_completes(header: str, context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\n1,2,a\n")
    assert rows_of(FromFile(path=f"{tmp_path}/rows.csv").extract(context)) == [(1, 2, "a")]


@pytest.mark.parametrize(
    ("content", "schema", "options", "rows"),
    [
        ("name,id\n1,a\n", "id INT, name STRING", {"EnforceSchema": True}, [(1, "a")]),
        ("id,name\nx,a\n", "id INT, name STRING", {"MODE": "PERMISSIVE"}, [(None, "a")]),
        ("id,name\nx,a\n", "id INT, name STRING, _corrupt_record STRING", {}, [(None, "a", "x,a")]),
        ("id,name\nx,a\n", "id INT, name STRING, b STRING", {"columnNameOfCorruptRecord": "b"}, [(None, "a", "x,a")]),
        ("id,name\n1,a,b\n", None, {}, [(1, "a")]),
        ("id,name\n1,a\n", None, {"HEADER": False}, [("1", "a"), ("id", "name")]),
        ('id,name\n1,"a \\"b\\", c"\n', "id INT, name STRING", {"Escape": "\\"}, [(1, 'a "b", c')]),
    ],
)
def test_options_have_the_last_word(
    content: str, schema: str | None, options: dict[str, Any], rows: list[Any], context: StepContext, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    config = {"path": f"{tmp_path}/rows.csv", "schema": schema, "options": options}
    assert rows_of(FromFile.model_validate(config).extract(context)) == rows


def test_prefix_of_the_settings(context: StepContext, tmp_path: Path) -> None:
    write_files(tmp_path)
    inside = dataclasses.replace(context, settings=Settings(path_prefix=str(tmp_path)))
    assert rows_of(FromFile(path="/plain.parquet").extract(inside)) == ROWS


@pytest.mark.parametrize("schema", [None, "id INT"], ids=["inferred", "given"])
@pytest.mark.parametrize(
    ("path", "format_", "message"),
    [
        ("nowhere.parquet", None, "nowhere.parquet does not exist"),
        ("nowhere/*.json", None, "does not exist, or no file matches"),
        ("empty.parquet", None, "holds no parquet files with any data"),
        ("empty.parquet", "csv", "holds no csv files with any data"),
        ("empty.parquet", "json", "holds no json files with any data"),
    ],
)
def test_nothing_there(
    path: str, format_: str | None, message: str, schema: str | None, context: StepContext, tmp_path: Path
) -> None:
    write_files(tmp_path)
    config = {"path": f"{tmp_path}/{path}", "format": format_, "schema": schema}
    with pytest.raises(ConfigurationError, match=message):
        FromFile.model_validate(config).extract(context)


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_a_file_without_a_byte(format_: str, context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=f"holds no {format_} files with any data"):
        FromFile(path=f"{tmp_path}/empty", format=format_).extract(context)


def test_a_schema_that_is_none(context: StepContext, tmp_path: Path) -> None:
    write_files(tmp_path)
    method = FromFile.model_validate({"path": f"{tmp_path}/plain.csv", "schema": "id INTT"})
    with pytest.raises(ConfigurationError, match="'schema' is no list of columns: 'id INTT'"):
        method.extract(context)


def test_empty_folder_of_text(context: StepContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no text files"):
        FromFile(path=str(tmp_path), format="text").extract(context)


@pytest.fixture
def orders_on_s3(s3: S3Server, tmp_path: Path) -> None:
    write_files(tmp_path)
    client = s3.client()
    for number in (1, 2):
        client.upload_file(str(tmp_path / "plain.parquet"), s3.bucket, f"extract/orders/part-{number}.parquet")
    client.upload_file(str(tmp_path / "plain.json"), s3.bucket, "extract/logs/a.json")


@pytest.mark.usefixtures("orders_on_s3")
@pytest.mark.parametrize("scheme", ["s3a", "s3", "s3n"])
def test_glob_on_s3(scheme: str, s3: S3Server, s3_context: StepContext) -> None:
    method = FromS3(path=f"{scheme}://{s3.bucket}/extract/orders/*.parquet")
    assert method.path == f"s3a://{s3.bucket}/extract/orders/*.parquet"
    assert rows_of(method.extract(s3_context)) == sorted(ROWS * 2)


@pytest.mark.usefixtures("orders_on_s3")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("extract/orders/*.json", "does not exist, or no file matches"),
        ("extract/nothing.csv", "does not exist"),
    ],
)
def test_nothing_on_s3(path: str, message: str, s3: S3Server, s3_context: StepContext) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FromS3(path=f"s3a://{s3.bucket}/{path}").extract(s3_context)


def test_no_s3_connection(context: StepContext) -> None:
    with pytest.raises(ConfigurationError, match="there is no s3 connection 'default'.*connections.json"):
        FromS3(path="s3a://data/a.json").extract(context)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("s3a://data/orders/*.parquet", ("data", "orders")),
        ("s3://data/orders/2024/part-1.parquet", ("data", "orders", "2024", "part-1.parquet")),
        ("s3a://data/*.json", ("data",)),
        ("s3a://data/a/{b,c}/d.csv", ("data", "a")),
    ],
)
def test_sources_on_s3(path: str, parts: tuple[str, ...]) -> None:
    (source,) = FromS3(path=path).sources()
    assert (source.kind, source.parts) == ("s3", parts)
    assert source.uri == "s3a://" + "/".join(parts)


def test_sources_of_files() -> None:
    paths = ("/data/in/*.csv", "/data/in/b*.csv", "file:///data/out/c.csv")
    sources = FromFile(paths=paths).sources()
    assert [(source.kind, source.parts) for source in sources] == [
        ("file", ("data", "in")),
        ("file", ("data", "out", "c.csv")),
    ]


def test_sources_of_files_on_other_file_systems() -> None:
    paths = ("gs://a/in/*.csv", "gs://b/in/c.csv", "dbfs:/in/c.csv", "dbfs:///in/c.csv", "file:/in/c.csv")
    sources = FromFile(paths=paths).sources()
    assert [(source.kind, source.parts) for source in sources] == [
        ("file", ("gs://a", "in")),
        ("file", ("gs://b", "in", "c.csv")),
        ("file", ("dbfs:", "in", "c.csv")),
        ("file", ("dbfs:", "in", "c.csv")),
        ("file", ("in", "c.csv")),
    ]


@pytest.mark.parametrize(
    ("cls", "config", "message"),
    [
        (FromS3, {}, "exactly one of 'path' and 'paths'"),
        (FromS3, {"path": "s3a://a/b.csv", "paths": ["s3a://a/b.csv"]}, "exactly one of 'path' and 'paths'"),
        (FromS3, {"path": "/data/a.csv"}, "is not a path on S3: expected s3a://bucket/key"),
        (FromS3, {"path": "s3a:///a.csv"}, "names no bucket"),
        (FromS3, {"path": "s3a://data/orders"}, "can't be told.*parquet, json, csv, orc, text, avro"),
        (FromS3, {"path": "s3a://data/a.parqet"}, "can't be told.*did you mean 'parquet'"),
        (FromS3, {"paths": ["s3a://d/a.csv", "s3a://d/a.json"]}, "different formats .csv, json"),
        (FromS3, {"path": "s3a://d/a.csv", "options": {"fs.s3a.secret.key": "x"}}, "looks like a secret"),
        (FromS3, {"path": "s3a://d/a.csv", "format": "xlsx"}, "'avro'"),
        (FromFile, {"path": "s3a://d/a.csv"}, "is on S3: use the method 'fromS3'"),
        (FromFile, {"path": "/data/../etc/a.csv"}, "contains '..'"),
        (FromFile, {"path": " "}, "the path is empty"),
    ],
)
def test_invalid_config(cls: type[FromS3 | FromFile], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.model_validate(config)
