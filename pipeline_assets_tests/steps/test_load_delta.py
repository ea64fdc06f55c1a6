"""Writing Delta tables, read back by DuckDB-free means: the log by hand, the files by pyarrow."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow.parquet
import pytest
from pyspark.errors import PySparkException

from devstack.spark_servers import SparkConnectServer
from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError, PipelineError, PipelineExecutionError
from pipeline_assets.partitions import Partitions
from pipeline_assets.settings import Settings
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets.steps import delta_table
from pipeline_assets.steps.base import LoadResult, StepContext, Transaction
from pipeline_assets.steps.delta_stream import MergeBatch, append_once, rows_of_append
from pipeline_assets.steps.delta_table import DeltaWrite, write_delta
from pipeline_assets.steps.file_systems import LocalFolder
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

SCHEMA = "id INT, day STRING, amount INT"
OLD: Rows = [(1, "mon", 10), (2, "mon", 20), (3, "tue", 30)]
NEW: Rows = [(3, "tue", 33), (4, "wed", 40)]


def table_rows(path: Path, columns: tuple[str, ...] = ("id", "day", "amount")) -> Rows:
    """Read a Delta table without Spark: replay its JSON log, read the files that are left with pyarrow."""
    live: dict[str, dict[str, str | None]] = {}
    for log in sorted((path / "_delta_log").glob("*.json")):
        for action in map(json.loads, log.read_text().splitlines()):
            if "add" in action:
                assert not action["add"].get("deletionVector")
                live[action["add"]["path"]] = action["add"]["partitionValues"]
            if "remove" in action:
                live.pop(action["remove"]["path"])
    rows: Rows = []
    for name, values in live.items():
        for row in pyarrow.parquet.ParquetFile(path / unquote(name)).read().to_pylist():
            rows.append(tuple((row | values).get(column) for column in columns))
    return in_order(rows)


def versions(path: Path) -> int:
    return len(list((path / "_delta_log").glob("*.json")))


def load(rows: Rows, context: StepContext, path: Path, schema: str = SCHEMA, **config: Any) -> LoadResult:
    method = ToDeltaLake.model_validate({"path": str(path), **config})
    return method.load(frame_of(context.spark, schema, rows), context)


@pytest.fixture
def table(context: StepContext, tmp_path: Path) -> Path:
    frame_of(context.spark, SCHEMA, OLD).write.format("delta").partitionBy("day").save(str(tmp_path / "table"))
    return tmp_path / "table"


@pytest.mark.parametrize(
    ("config", "expected", "written"),
    [
        ({}, [*OLD, *NEW], 2),
        ({"mode": "overwrite"}, NEW, 2),
        ({"mode": "merge", "mergeKeys": ["id"]}, [*OLD[:2], *NEW], 2),
        ({"mode": "merge", "mergeKeys": ["ID", "day"]}, [*OLD[:2], *NEW], 2),
        ({"mode": "overwrite", "replaceWhere": "day IN ('tue', 'wed')"}, [*OLD[:2], *NEW], 2),
        ({"mode": "overwrite", "partitionOverwriteMode": "dynamic"}, [*OLD[:2], *NEW], 2),
        ({"mode": "overwrite", "overwriteSchema": True}, NEW, 2),
    ],
)
def test_modes(config: dict[str, Any], expected: Rows, written: int, table: Path, context: StepContext) -> None:
    result = load(NEW, context, table, **config)
    assert table_rows(table) == in_order(expected)
    assert (result.rows, result.version, result.uri) == (written, 1, str(table))
    assert versions(table) == 2


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"mode": "overwrite"},
        {"mode": "errorIfExists"},
        {"mode": "merge", "mergeKeys": ["id"]},
        {"mode": "overwrite", "replaceWhere": "id > 2"},
        {"partitionBy": ["day"]},
    ],
)
def test_a_missing_table_is_created(config: dict[str, Any], context: StepContext, tmp_path: Path) -> None:
    result = load(NEW, context, tmp_path / "new", **config)
    assert table_rows(tmp_path / "new") == NEW
    assert (result.rows, result.version) == (2, 0)
    assert (tmp_path / "new" / "day=tue").exists() is ("partitionBy" in config)


def test_nothing_to_write(table: Path, context: StepContext) -> None:
    assert (load([], context, table).rows, table_rows(table)) == (0, OLD)
    merged = load([], context, table, mode="merge", mergeKeys=["id"])
    assert (merged.rows, merged.version) == (0, versions(table) - 1)


def test_what_a_stream_puts_aside_gets_new_columns_and_is_there_once(context: StepContext, tmp_path: Path) -> None:
    path, spark = tmp_path / "aside", context.spark
    wider = frame_of(spark, f"{SCHEMA}, note STRING", [(4, "wed", 40, "x")])
    append_once(frame_of(spark, SCHEMA, OLD), str(path), "stream", 0)
    for _ in range(2):
        append_once(wider, str(path), "stream", 1)
    append_once(frame_of(spark, SCHEMA, [(5, "wed", 50)]), str(path), "stream", 2)
    expected = [*((*row, None) for row in OLD), (4, "wed", 40, "x"), (5, "wed", 50, None)]
    assert table_rows(path, ("id", "day", "amount", "note")) == in_order(expected)
    appended = rows_of_append(spark, str(path), LocalFolder(str(path)), "stream", 1, 0)
    assert appended is not None
    assert rows_of(appended) == [(4, "wed", 40, "x")]


def test_null_keys_never_match(table: Path, context: StepContext) -> None:
    rows: Rows = [(None, "mon", 1)]
    load(rows, context, table, mode="merge", mergeKeys=["id"])
    load(rows, context, table, mode="merge", mergeKeys=["id"])
    assert table_rows(table) == in_order([*OLD, *rows, *rows])


def test_merges_of_two_processes_in_one_session_of_a_server_keep_their_marks(
    spark_connect_server: SparkConnectServer, tmp_path: Path
) -> None:
    """A slow one that begins while the other is at work, and ends after it."""
    remote = Settings(spark_remote=spark_connect_server.remote)

    def merge(spark: SparkSession, name: str, seconds: int) -> DeltaWrite:
        slow = f"reflect('java.lang.Thread', 'sleep', {seconds}000L) IS NULL OR id >= 0"
        frame = spark.sql(f"SELECT id FROM range(1) WHERE {slow}")
        return write_delta(
            frame, str(tmp_path / name), mode="merge", merge_keys=["id"], transaction=Transaction(name, name)
        )

    with SparkSessions(remote) as first, ThreadPoolExecutor() as pool, ExitStack() as ending:
        second = SparkSessions(remote)
        ending.callback(second.close, release=False)
        one, other = first.session("run", "p"), second.session("run", "p")
        for name in "ab":
            write_delta(one.range(1), str(tmp_path / name), mode="overwrite")
        merging = pool.submit(merge, one, "a", 4)
        wait_until(lambda: one.conf.get("spark.databricks.delta.commitInfo.userMetadata", None) == "a")
        assert [merge(other, "b", 6).rows, merging.result().rows] == [1, 1]
        assert one.conf.get("spark.databricks.delta.commitInfo.userMetadata", None) is None
    for name in "ab":
        log = (tmp_path / name / "_delta_log" / f"{1:020}.json").read_text().splitlines()
        (commit,) = (json.loads(line)["commitInfo"] for line in log if "commitInfo" in line)
        assert commit["userMetadata"] == name


def test_merge_schema(table: Path, context: StepContext) -> None:
    schema = "id INT, day STRING, amount INT, note STRING"
    columns = ("id", "day", "amount", "note")
    with pytest.raises(ConfigurationError, match="do not fit the table at .*mergeSchema"):
        load([(4, "wed", 1, "x")], context, table, schema)
    rows = [(1, "mon", 2, "y")]
    with pytest.raises(ConfigurationError, match="do not fit the table at .*mergeSchema"):
        load(rows, context, table, schema, mode="merge", mergeKeys=["id"])
    with pytest.raises(ConfigurationError, match="do not fit the table at .*mergeSchema"):
        MergeBatch(str(table), ("id",), (), merge_schema=False, app_id="x")(frame_of(context.spark, schema, rows), 0)
    assert table_rows(table) == in_order(OLD)
    load([(4, "wed", 1, "x")], context, table, schema, mergeSchema=True)
    load([(1, "mon", 2, "y")], context, table, schema, mode="merge", mergeKeys=["id"], mergeSchema=True)
    old = [(*row, None) for row in OLD[1:]]
    assert table_rows(table, columns) == in_order([*old, (4, "wed", 1, "x"), (1, "mon", 2, "y")])


MISFITS: dict[str, tuple[str, str, Rows, str, str]] = {
    "a value": (
        "day STRING, amount INT", "SELECT 'mon' AS day, 1 AS amount",
        [("mon", Decimal("12.75"))], "day STRING, amount DECIMAL(10, 2)", "amount: decimal(10,2), int in the table",
    ),
    "a key": (
        "day DATE, amount INT", "SELECT DATE '2024-05-01' AS day, 1 AS amount",
        [(datetime(2024, 5, 1, 10, tzinfo=UTC), 2)], "Day TIMESTAMP, amount INT", "Day: timestamp, date in the table",
    ),
    "in a struct": (
        "day STRING, amount STRUCT<X: INT>", "SELECT 'mon' AS day, named_struct('X', 1) AS amount",
        [("mon", {"x": 12.75})], "day STRING, amount STRUCT<x: DOUBLE>",
        "amount: struct<x:double>, struct<X:int> in the table",
    ),
    "in an array": (
        "day STRING, amount ARRAY<INT>", "SELECT 'mon' AS day, array(1) AS amount",
        [("mon", [Decimal("12.75")])], "day STRING, amount ARRAY<DECIMAL(10, 2)>",
        "amount: array<decimal(10,2)>, array<int> in the table",
    ),
    "in a map, deeper": (
        "day STRING, amount MAP<STRING, STRUCT<at: DATE>>",
        "SELECT 'mon' AS day, map('a', named_struct('at', DATE '2024-05-01')) AS amount",
        [("mon", [("a", {"at": datetime(2024, 5, 1, 10, tzinfo=UTC)})])],
        "day STRING, amount MAP<STRING, STRUCT<at: TIMESTAMP>>", "amount: map<string,struct<at:timestamp>>, ",
    ),
    "keys of a map": (
        "day STRING, amount MAP<INT, INT>", "SELECT 'mon' AS day, map(1, 1) AS amount",
        [("mon", [(12.75, 1)])], "day STRING, amount MAP<DOUBLE, INT>", "amount: map<double,int>, map<int,int> in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("merge_schema", [False, True])
@pytest.mark.parametrize(("there", "query", "rows", "schema", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_merge_converts_nothing(
    there: str, query: str, rows: Rows, schema: str, message: str, merge_schema: bool, context: StepContext,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "table"
    context.spark.sql(query).write.format("delta").save(str(path))
    columns = ("day", "amount")
    old = table_rows(path, columns)
    with pytest.raises(ConfigurationError, match=f"(?s)do not fit the table at .*{re.escape(message)}"):
        load(rows, context, path, schema, mode="merge", mergeKeys=["day"], mergeSchema=merge_schema)
    batch = MergeBatch(str(path), ("day",), (), merge_schema, app_id="x")
    with pytest.raises(ConfigurationError, match=f"(?s)do not fit the table at .*{re.escape(message)}"):
        batch(frame_of(context.spark, schema, rows), 0)
    assert (table_rows(path, columns), versions(path)) == (old, 1)


@pytest.mark.parametrize("merge_schema", [False, True])
def test_merge_takes_types_that_the_table_holds(merge_schema: bool, context: StepContext, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    old = (
        "0 AS id, 1L AS count, CAST(1 AS DECIMAL(12, 4)) AS amount, 'a' AS name, named_struct('x', 1L) AS nested, "
        "array(1L) AS list, map('a', named_struct('x', array(1D))) AS deep, named_struct('x', 1) AS gone"
    )
    new = (
        "0 AS id, 2 AS count, 2.25 AS amount, NULL AS name, named_struct('X', 2) AS nested, array(2, NULL) AS list, "
        "map('b', named_struct('x', array(2))) AS deep, NULL AS gone"
    )
    context.spark.sql(f"SELECT {old}").write.format("delta").save(path)
    frame = context.spark.sql(f"SELECT {new}")
    write_delta(frame, path, mode="merge", merge_keys=["id"], merge_schema=merge_schema)
    read = context.spark.read.format("delta").load(path)
    assert dict(read.dtypes)["count"] == "bigint"
    (row,) = rows_of(read.select("id", "count", "amount", "name", "nested.x", "list", "deep.b.x", "gone"))
    assert row == (0, 2, Decimal("2.2500"), None, 2, [2, None], [2.0], None)


def test_merge_schema_of_a_table_that_widens_types(context: StepContext, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    old = (
        "0 AS id, 1 AS count, CAST(1 AS FLOAT) AS part, CAST(1 AS DECIMAL(10, 2)) AS amount, DATE '2024-05-01' AS at, "
        "array(named_struct('x', 1, 'y', 1L)) AS nested"
    )
    new = (
        "0L AS id, 3000000000L AS count, 0.1D AS part, CAST(1.2345 AS DECIMAL(12, 4)) AS amount, "
        "TIMESTAMP_NTZ '2024-05-01 10:00:00' AS at, array(named_struct('x', 3000000000L, 'y', 2)) AS nested"
    )
    writer = context.spark.sql(f"SELECT {old}").write.format("delta")
    features = {"delta.enableTypeWidening": "true", "delta.feature.timestampNtz": "supported"}
    writer.options(**features).save(path)

    def merge(query: str, *, merge_schema: bool) -> None:
        frame = context.spark.sql(f"SELECT {query}")
        write_delta(frame, path, mode="merge", merge_keys=["id"], merge_schema=merge_schema)

    with pytest.raises(ConfigurationError, match="(?s)do not fit .*count: bigint, int in the table"):
        merge(new, merge_schema=False)
    with pytest.raises(ConfigurationError, match="(?s)do not fit .*count: decimal.2,1., int in the table"):
        merge("0 AS id, 1.5 AS count", merge_schema=True)
    with pytest.raises(
        ConfigurationError, match="(?s)do not fit .*nested: array<struct<x:double>>, array<struct<x:int"
    ):
        merge("0 AS id, array(named_struct('x', 1.5D)) AS nested", merge_schema=True)
    merge(new, merge_schema=True)
    found = rows_of(context.spark.read.format("delta").load(path))
    assert found == [(0, 3_000_000_000, 0.1, Decimal("1.2345"), datetime(2024, 5, 1, 10), [(3_000_000_000, 2)])]


FAILING = "assert_true(id < 4) IS NULL"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"mode": "overwrite"},
        {"mode": "overwrite", "overwriteSchema": True},
        {"mode": "overwrite", "replaceWhere": "day = 'tue' OR day = 'wed'"},
        {"mode": "merge", "mergeKeys": ["id"]},
    ],
)
def test_a_failed_load_leaves_the_table(config: dict[str, Any], table: Path, context: StepContext) -> None:
    method = ToDeltaLake.model_validate({"path": str(table), **config})
    frame = frame_of(context.spark, SCHEMA, NEW).where(FAILING)
    views = context.spark.sql("SHOW VIEWS").collect()
    with pytest.raises(PySparkException, match="id < 4"):
        method.load(frame, context)
    assert table_rows(table) == OLD
    assert versions(table) == 1
    assert context.spark.sql("SHOW VIEWS").collect() == views
    assert context.spark.conf.get("spark.databricks.delta.commitInfo.userMetadata", None) is None


@pytest.mark.parametrize(
    ("rows", "config", "kind", "message"),
    [
        (NEW, {"mode": "errorIfExists"}, PipelineExecutionError, "there is a table at .* already"),
        ([(1, "x", 1)] * 2, {"mode": "merge", "mergeKeys": ["id"]}, PipelineExecutionError, "the same mergeKeys"),
        (NEW, {"mode": "merge", "mergeKeys": ["idd"]}, DataFrameResolutionError, "'idd', did you mean 'id'"),
        (NEW, {"partitionBy": ["dya"]}, DataFrameResolutionError, "'dya', did you mean 'day'"),
        (NEW, {"mode": "overwrite", "replaceWhere": "id = 3"}, PipelineExecutionError, "do not meet replaceWhere"),
    ],
)
def test_refused(
    rows: Rows, config: dict[str, Any], kind: type[PipelineError], message: str, table: Path, context: StepContext
) -> None:
    with pytest.raises(kind, match=message):
        load(rows, context, table, **config)
    assert table_rows(table) == OLD


@pytest.mark.parametrize("partition_by", [[], ["day"]], ids=str)
def test_dynamic_overwrite_of_a_table_without_partitions(
    partition_by: list[str], context: StepContext, tmp_path: Path
) -> None:
    path = tmp_path / "table"
    frame_of(context.spark, SCHEMA, OLD).write.format("delta").save(str(path))
    config = {"mode": "overwrite", "partitionOverwriteMode": "dynamic", "partitionBy": partition_by}
    with pytest.raises(ConfigurationError, match="'dynamic' needs partitions, and the table at .* has none"):
        load(NEW, context, path, **config)
    assert (table_rows(path), versions(path)) == (OLD, 1)


def test_dynamic_overwrite_where_there_is_no_table(context: StepContext, tmp_path: Path) -> None:
    path, config = tmp_path / "new", {"mode": "overwrite", "partitionOverwriteMode": "dynamic"}
    with pytest.raises(ConfigurationError, match="there is no table at .* yet: give 'partitionBy'"):
        load(OLD, context, path, **config)
    assert not path.exists()
    load(OLD, context, path, partitionBy=["day"], **config)
    load(NEW, context, path, **config)
    assert table_rows(path) == in_order([*OLD[:2], *NEW])


def test_rows_outside_replace_where_do_not_create_a_table(context: StepContext, tmp_path: Path) -> None:
    with pytest.raises(PipelineExecutionError, match="do not meet replaceWhere"):
        load(NEW, context, tmp_path / "new", mode="overwrite", replaceWhere="id = 3")
    assert versions(tmp_path / "new") == 0
    load(NEW[:1], context, tmp_path / "new", mode="overwrite", replaceWhere="id = 3")
    assert table_rows(tmp_path / "new") == NEW[:1]


def in_partition(context: StepContext, key: str, **config: Any) -> StepContext:
    partitions = Partitions.model_validate({"type": "static", "values": ["mon", "tue", "o'clock"], **config})
    return dataclasses.replace(context, partition=partitions.slice(key))


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_partitions_without_a_column(mode: str, context: StepContext, tmp_path: Path) -> None:
    path = tmp_path / "table"
    columns = ("id", "partition_key")
    for key, rows in {"mon": [(1,)], "o'clock": [(2,)], "tue": [(3,), (4,)]}.items():
        for _ in range(2):  # a run repeated
            load(rows, in_partition(context, key), path, "id INT", mode=mode)
    assert table_rows(path, columns) == [(1, "mon"), (2, "o'clock"), (3, "tue"), (4, "tue")]
    result = load([(5,)], in_partition(context, "tue"), path, "id INT", mode=mode)
    assert result.rows == 1
    assert table_rows(path, columns) == [(1, "mon"), (2, "o'clock"), (5, "tue")]
    assert {folder.name for folder in path.glob("partition_key=*")} >= {"partition_key=mon", "partition_key=tue"}


def test_partitions_with_a_column(context: StepContext, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for key in ("mon", "tue", "mon"):
        load([row for row in OLD if row[1] == key], in_partition(context, key, column="day"), path)
    assert table_rows(path) == OLD
    with pytest.raises(PipelineExecutionError, match="rows outside partition 'mon'"):
        load(NEW, in_partition(context, "mon", column="day"), path)
    assert table_rows(path) == OLD


def test_merge_takes_rows_of_any_partition(context: StepContext, tmp_path: Path) -> None:
    """The first run, which makes the table, as the later ones."""
    path = tmp_path / "table"
    expected = pd.DataFrame(columns=["id", "day", "amount"])
    for key, rows in {"mon": OLD, "tue": NEW}.items():
        load(rows, in_partition(context, key, column="day"), path, mode="merge", mergeKeys=["id"])
        new = pd.DataFrame(rows, columns=expected.columns)
        expected = pd.concat([expected[~expected["id"].isin(new["id"])], new])
        assert table_rows(path) == in_order(expected.itertuples(index=False, name=None))


def test_a_first_write_does_not_ask_rows_that_a_join_leaves_out(context: StepContext, tmp_path: Path) -> None:
    frame = frame_of(context.spark, SCHEMA, OLD).join(frame_of(context.spark, "id INT", [(1,), (2,)]), "id")
    inside = in_partition(context, "mon", column="day")
    assert ToDeltaLake(path=str(tmp_path / "table")).load(frame, inside).rows == 2
    assert table_rows(tmp_path / "table") == OLD[:2]


def test_hours_that_clocks_show_twice(context: StepContext, tmp_path: Path) -> None:
    path = tmp_path / "hours"
    zone = ZoneInfo("Europe/Berlin")
    midnight = datetime(2024, 10, 27, tzinfo=zone).astimezone(UTC)
    rows = [(number, midnight + timedelta(minutes=15 * number)) for number in range(20)]
    keys = ["00:00", "01:00", "02:00", "02:00+0100", "03:00"]
    hourly = Partitions(type="hourly", start=datetime(2024, 10, 1), timezone="Europe/Berlin", column="at")

    def write(index: int, rows: Rows, schema: str = "id INT, at TIMESTAMP") -> None:
        partition = hourly.slice(f"2024-10-27-{keys[index]}")
        load(rows, dataclasses.replace(context, partition=partition), path, schema, mode="overwrite")

    for index in range(5):
        write(index, rows[4 * index : 4 * index + 4])
    found = sorted(table_rows(path, ("id", "at")))
    assert found == [(number, at.replace(tzinfo=None)) for number, at in rows]
    write(3, [(100, rows[13][1])])
    assert sorted(table_rows(path, ("id",))) == [(number,) for number in (*range(12), *range(16, 20), 100)]
    with pytest.raises(PipelineExecutionError, match=r"outside partition '2024-10-27-02:00' .*02:00:00\+01:00"):
        write(2, rows[12:13])
    with pytest.raises(ConfigurationError, match="make it a TIMESTAMP"):
        write(3, [(1, datetime(2024, 10, 27, 2, 30))], "id INT, at TIMESTAMP_NTZ")


def test_first_write_of_a_partition_with_rows_outside(context: StepContext, tmp_path: Path) -> None:
    """Spark reports the failed row bare or inside a failed task, whichever of two tasks is first: try both."""
    for attempt in range(8):
        new = tmp_path / f"new{attempt}"
        with pytest.raises(PipelineExecutionError, match="rows outside partition 'mon'"):
            load(NEW, in_partition(context, "mon", column="day"), new)
        assert versions(new) == 0


@pytest.mark.parametrize("overwrite_schema", [False, True])
@pytest.mark.parametrize("column", [None, "day"])
def test_a_table_that_another_run_makes_first_keeps_its_partition(
    context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str | None, overwrite_schema: bool
) -> None:
    """The first runs of a backfill: each finds no table, and one has made it by the time that the other writes."""
    monkeypatch.setattr(delta_table, "table_columns", lambda spark, path: None)
    for key in ("mon", "tue", "mon"):
        frame = frame_of(context.spark, SCHEMA, [row for row in OLD if row[1] == key])
        partition = in_partition(context, key, column=column).partition
        path = str(tmp_path / "new")
        write_delta(frame, path, mode="overwrite", overwrite_schema=overwrite_schema, partition=partition)
    assert table_rows(tmp_path / "new") == [row for row in OLD if row[1] in ("mon", "tue")]


def test_first_writes_at_the_same_time(context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delta lets one of them make the table, and refuses those that began before it was there."""
    keys = ("mon", "tue")
    together = threading.Barrier(len(keys))
    looked: set[int] = set()
    look = delta_table.table_columns

    def look_together(spark: SparkSession, path: str) -> StructType | None:
        found = look(spark, path)
        if threading.get_ident() not in looked:
            looked.add(threading.get_ident())
            together.wait(60)
        return found

    monkeypatch.setattr(delta_table, "table_columns", look_together)

    def write(key: str) -> int:
        frame = frame_of(context.spark, SCHEMA, [row for row in OLD if row[1] == key])
        partition = in_partition(context, key).partition
        path = str(tmp_path / "new")
        return write_delta(frame, path, mode="overwrite", overwrite_schema=True, partition=partition).rows

    with ThreadPoolExecutor(len(keys)) as pool:
        assert list(pool.map(write, keys)) == [2, 1]
    assert table_rows(tmp_path / "new") == OLD


def test_partition_that_exists(context: StepContext, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for key in ("mon", "tue"):
        load([(1,)], in_partition(context, key), path, "id INT", mode="errorIfExists")
    with pytest.raises(PipelineExecutionError, match="has rows of partition 'mon' already"):
        load([(2,)], in_partition(context, "mon"), path, "id INT", mode="errorIfExists")
    assert table_rows(path, ("id", "partition_key")) == [(1, "mon"), (1, "tue")]


@pytest.mark.parametrize(
    "config", [{}, {"mode": "overwrite"}, {"mode": "errorIfExists"}, {"mode": "merge", "mergeKeys": ["id"]}]
)
def test_a_column_called_as_the_key_of_the_partition(
    config: dict[str, Any], context: StepContext, tmp_path: Path
) -> None:
    path, schema = tmp_path / "table", "id INT, Partition_Key STRING"
    with pytest.raises(ConfigurationError, match="column 'Partition_Key', .*rename .* 'column' 'partition_key'"):
        load([(1, "jan")], in_partition(context, "mon"), path, schema, **config)
    assert not path.exists()
    load([(1, "mon")], in_partition(context, "mon", column="partition_key"), path, schema, **config)
    assert table_rows(path, ("id", "Partition_Key")) == [(1, "mon")]


def test_partition_into_a_table_without_partitions(table: Path, context: StepContext) -> None:
    with pytest.raises(ConfigurationError, match="has no column 'partition_key'"):
        load(NEW, in_partition(context, "mon"), table)
    assert table_rows(table) == OLD


def test_warehouse_table_takes_new_columns(context: StepContext, tmp_path: Path) -> None:
    """As leaf tables are written: overwrite with overwriteSchema, in partitioned runs too."""
    path = str(tmp_path / "leaf")

    def write(key: str | None, schema: str, rows: Rows) -> int:
        partition = in_partition(context, key).partition if key else None
        frame = frame_of(context.spark, schema, rows)
        return write_delta(frame, path, mode="overwrite", overwrite_schema=True, partition=partition).version

    assert write(None, "id INT", [(1,)]) == 0
    assert write(None, "name STRING", [("a",)]) == 1
    assert table_rows(tmp_path / "leaf", ("id", "name")) == [(None, "a")]
    path = str(tmp_path / "sliced")
    assert write("mon", "id INT", [(1,)]) == 0
    assert write("tue", "id INT, name STRING", [(2, "b")]) == 1
    columns = ("id", "name", "partition_key")
    assert table_rows(tmp_path / "sliced", columns) == [(1, None, "mon"), (2, "b", "tue")]


def test_counts_are_those_of_our_own_commit(table: Path, context: StepContext) -> None:
    result = load(NEW, context, table)
    frame_of(context.spark, SCHEMA, OLD * 5).write.format("delta").mode("append").save(str(table))
    assert (result.rows, result.version) == (2, 1)
    assert result.metrics["numOutputRows"] == 2


@pytest.mark.parametrize("deletion_vectors", ["false", "true"])
@pytest.mark.parametrize("is_sliced", [False, True])
def test_rows_that_delta_only_copies_are_not_counted(
    is_sliced: bool, deletion_vectors: str, context: StepContext, tmp_path: Path
) -> None:
    path = tmp_path / "table"
    writer = frame_of(context.spark, SCHEMA, OLD).coalesce(1).write.format("delta")
    writer.option("delta.enableDeletionVectors", deletion_vectors).save(str(path))
    if is_sliced:
        result = load(NEW[:1], in_partition(context, "tue", column="day"), path)
    else:
        result = load(NEW[:1], context, path, mode="overwrite", replaceWhere="id > 2")
    assert (result.rows, result.metrics["numCopiedRows"]) == (1, 2)
    assert rows_of(context.spark.read.format("delta").load(str(path))) == [*OLD[:2], NEW[0]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"mode": "append"}, [*OLD, *NEW]),
        ({"mode": "overwrite"}, NEW),
        ({"mode": "overwrite", "replace_where": "day IN ('tue', 'wed')"}, [*OLD[:2], *NEW]),
        ({"mode": "merge", "merge_keys": ["id"]}, [*OLD[:2], *NEW]),
    ],
)
def test_a_write_that_is_tried_again_is_made_once(
    config: dict[str, Any], expected: Rows, any_spark: SparkSession, tmp_path: Path
) -> None:
    path = str(tmp_path / "table")
    # A null key never matches: a merge that is made again adds its row again.
    rows = [*NEW, (None, "tue", 0)]
    frame_of(any_spark, SCHEMA, OLD).write.format("delta").partitionBy("day").save(path)
    frame = frame_of(any_spark, SCHEMA, rows)
    first, second = (Transaction(name, name, has_retries=True) for name in ("run-1:step", "run-2:step"))
    written = [write_delta(frame, path, transaction=first, **config) for _ in range(2)]
    assert [(found.rows, found.version) for found in written] == [(3, 1), (3, 1)]
    assert table_rows(tmp_path / "table") == in_order([*expected, rows[-1]])
    again = write_delta(frame, path, transaction=second, **config)
    assert again.version == 2


@pytest.mark.parametrize("mode", ["append", "overwrite", "merge"])
def test_a_write_that_a_run_has_made_is_not_added_by_one_that_resumes_it(
    mode: Literal["append", "overwrite", "merge"], any_spark: SparkSession, tmp_path: Path
) -> None:
    path = str(tmp_path / "table")
    frame_of(any_spark, SCHEMA, OLD).write.format("delta").save(path)
    rows = [*NEW, (None, "tue", 0)]
    keys = ["id"] if mode == "merge" else []
    first = Transaction("run-1:step", "run-1:step")
    written = write_delta(frame_of(any_spark, SCHEMA, rows), path, mode=mode, merge_keys=keys, transaction=first)
    for number in range(60):  # more than are looked at one by one
        frame_of(any_spark, SCHEMA, [(1000 + number, "sun", 0)]).write.format("delta").mode("append").save(path)
    before = table_rows(tmp_path / "table")
    resumed = Transaction("run-3:step", "run-1:step")
    later = frame_of(any_spark, SCHEMA, [*rows, (9, "wed", 9)])
    again = write_delta(later, path, mode=mode, merge_keys=keys, transaction=resumed)
    if mode == "overwrite":
        assert table_rows(tmp_path / "table") == in_order([*rows, (9, "wed", 9)])
    else:
        assert table_rows(tmp_path / "table") == before
        assert (again.version, again.rows) == (written.version, written.rows) == (1, len(rows))


@pytest.mark.parametrize("mode", ["append", "errorIfExists", "merge"])
def test_a_table_that_an_earlier_try_has_made(mode: str, context: StepContext, tmp_path: Path) -> None:
    again = dataclasses.replace(context, transaction=Transaction("run:step", "run:step", has_retries=True))
    config = {"mode": mode, **({"mergeKeys": ["id"]} if mode == "merge" else {})}
    for number in range(2):
        path = tmp_path / "new"
        assert (load([(None, "mon", 1)], again, path, **config).rows, versions(path)) == (1, 1), number
        path = tmp_path / "sliced"
        result = load([(1, "mon", 1)], in_partition(again, "mon", column="day"), path, **config)
        assert (result.rows, versions(path)) == (1, 1), number
    assert table_rows(tmp_path / "new") == [(None, "mon", 1)]


def test_sinks() -> None:
    (sink,) = ToDeltaLake(path="/data/purchases").sinks()
    assert (sink.kind, sink.parts) == ("deltalake", ("data", "purchases"))


def test_streaming_config_of_the_design() -> None:
    method = ToDeltaLake.model_validate(
        {
            "path": "/data/purchases",
            "checkpointLocation": "/checkpoints/purchases",
            "outputMode": "append",
            "trigger": "5 seconds",
        }
    )
    assert (method.mode, method.output_mode, method.trigger) == ("append", "append", "5 seconds")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "merge"}, "mode 'merge' needs 'mergeKeys'"),
        ({"mergeKeys": ["id"]}, "'mergeKeys' need mode 'merge'"),
        ({"replaceWhere": "a = 1"}, "'replaceWhere' needs mode 'overwrite' .it is 'append'"),
        ({"overwriteSchema": True}, "'overwriteSchema' needs mode 'overwrite'"),
        (
            {"mode": "overwrite", "replaceWhere": "a = 1", "partitionOverwriteMode": "dynamic"},
            "replaceWhere and partitionOverwriteMode exclude one another",
        ),
        ({"mode": "upsert"}, "'merge'"),
        ({"path": "/a/../b"}, "contains '..'"),
        ({"path": "/a/*"}, "contains a glob"),
        ({"path": " s3a://bucket/a"}, "begins or ends with white space"),
        ({"path": "/a\n"}, "begins or ends with white space"),
        ({"path": "~/a"}, "'~' stands for no home directory here, write "),
        ({"path": "s3a:bucket/a"}, "expected two slashes after the colon, as in s3a://bucket/key"),
        ({"path": "S3:/bucket/a"}, "expected two slashes after the colon"),
        ({"path": "file:a"}, "expected two slashes after the colon"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToDeltaLake.model_validate({"path": "/a", **config})
