"""Transforms of one DataFrame, their results computed another way by DuckDB."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pytest
from pyspark.errors import AnalysisException

from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError
from pipeline_assets.steps.base import SingleInputTransform, StepContext
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets.steps.transform import (
    AggregateData,
    Cache,
    Coalesce,
    DropDuplicates,
    DropDuplicatesWithinWatermark,
    FilterRows,
    Repartition,
    RepartitionByColumns,
    SelectColumns,
    Sql,
    Uncache,
    UncacheAll,
    Union,
    WithColumns,
    WithWatermark,
)
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SCHEMA = "id INT, region STRING, amount INT"
SALES: Rows = [
    (1, "north", 10),
    (2, "south", 20),
    (3, "north", None),
    (4, None, 40),
    (4, None, 40),
    (5, "south", 0),
]


def by_duckdb(query: str) -> Rows:
    """Run a query on SALES, as table ``sales``, in DuckDB."""
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE sales (id INT, region TEXT, amount INT)")
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?)", SALES)
        return in_order(connection.execute(query).fetchall())


@pytest.fixture
def sales(context: StepContext) -> DataFrame:
    return frame_of(context.spark, SCHEMA, SALES)


CASES: list[tuple[SingleInputTransform, str]] = [
    (FilterRows(condition="amount > 5"), "SELECT * FROM sales WHERE amount > 5"),
    (FilterRows(condition="region = 'north' OR amount = 0"), "FROM sales WHERE region = 'north' OR amount = 0"),
    (
        AggregateData(
            group_by=("region",), aggregations={"total": "sum(amount)", "ids": "count(distinct id)", "n": "count(*)"}
        ),
        "SELECT region, sum(amount), count(DISTINCT id), count(*) FROM sales GROUP BY region",
    ),
    (AggregateData(aggregations={"most": "max(amount) + 1"}), "SELECT max(amount) + 1 FROM sales"),
    (
        AggregateData(group_by=("region",), aggregations={"n": "count(*)"}, having="n > 1 AND region IS NOT NULL"),
        "SELECT region, count(*) FROM sales GROUP BY region HAVING count(*) > 1 AND region IS NOT NULL",
    ),
    (
        AggregateData(group_by=("id % 2 AS odd",), aggregations={"n": "sum(amount) FILTER (WHERE amount > 10)"}),
        "SELECT id % 2, sum(amount) FILTER (WHERE amount > 10) FROM sales GROUP BY id % 2",
    ),
    (SelectColumns(columns=("region", "amount * 2 AS twice")), "SELECT region, amount * 2 FROM sales"),
    (SelectColumns(columns=("*", "id + 1 AS next")), "SELECT *, id + 1 FROM sales"),
    (
        WithColumns(columns={"amount": "coalesce(amount, 0)", "was": "amount"}),
        "SELECT id, region, coalesce(amount, 0), amount FROM sales",
    ),
    (DropDuplicates(), "SELECT DISTINCT * FROM sales"),
    (Repartition(num_partitions=3), "FROM sales"),
    (RepartitionByColumns(columns=("region", "id"), num_partitions=4), "FROM sales"),
    (RepartitionByColumns(columns=("region",)), "FROM sales"),
    (Coalesce(num_partitions=1), "FROM sales"),
]


@pytest.mark.parametrize(("method", "query"), CASES, ids=lambda value: getattr(value, "method", ""))
def test_result(method: SingleInputTransform, query: str, sales: DataFrame, context: StepContext) -> None:
    result = method.transform({"sales": sales}, context)
    assert rows_of(result) == by_duckdb(query)


def test_names_of_the_result(sales: DataFrame, context: StepContext) -> None:
    method = AggregateData(group_by=("region", "year(now()) AS year"), aggregations={"total events": "count(*)"})
    assert method.transform({"sales": sales}, context).columns == ["region", "year", "total events"]


def test_columns_with_odd_names(context: StepContext) -> None:
    frame = frame_of(context.spark, "`order id` INT, `a.b` STRING", [(1, "x"), (2, "x"), (2, "y")])
    inputs = {"orders": frame}
    assert rows_of(SelectColumns(columns=("order id",)).transform(inputs, context)) == [(1,), (2,), (2,)]
    grouped = AggregateData(group_by=("a.b",), aggregations={"n": "max(`order id`)"}).transform(inputs, context)
    assert rows_of(grouped) == [("x", 2), ("y", 2)]
    spread = RepartitionByColumns(columns=("a.b",), num_partitions=2).transform(inputs, context)
    assert rows_of(spread) == [(1, "x"), (2, "x"), (2, "y")]


def test_drop_duplicates_by_columns_keeps_one_row_each(sales: DataFrame, context: StepContext) -> None:
    kept = DropDuplicates(columns=("region",)).transform({"sales": sales}, context)
    assert sorted(str(row["region"]) for row in kept.collect()) == ["None", "north", "south"]


@pytest.mark.parametrize(
    ("method", "partitions"),
    [
        (Repartition(num_partitions=3), 3),
        (RepartitionByColumns(columns=("id",), num_partitions=5), 5),
        (Coalesce(num_partitions=1), 1),
    ],
    ids=["repartition", "repartitionByColumns", "coalesce"],
)
def test_partitions(method: SingleInputTransform, partitions: int, context: StepContext, sales: DataFrame) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    many = frame_of(context.spark, "id INT", [(number,) for number in range(1000)])
    found = method.transform({"many": many}, context).select(F.spark_partition_id()).distinct().collect()
    assert len(found) == partitions


def test_rows_with_equal_keys_share_a_partition(context: StepContext) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    many = frame_of(context.spark, "id INT, region STRING", [(n, f"r{n % 7}") for n in range(200)])
    method = RepartitionByColumns(columns=("region",), num_partitions=4)
    spread = method.transform({"many": many}, context).select("region", F.spark_partition_id()).distinct().collect()
    assert len(spread) == 7


@pytest.mark.parametrize(
    "method",
    [
        RepartitionByColumns(columns=("regoin",)),
        DropDuplicates(columns=("regoin",)),
        AggregateData(group_by=("regoin",), aggregations={"n": "count(*)"}),
    ],
    ids=lambda method: method.method,
)
def test_unknown_column(method: SingleInputTransform, sales: DataFrame, context: StepContext) -> None:
    with pytest.raises(DataFrameResolutionError, match="'sales' has no column 'regoin', did you mean 'region'"):
        method.transform({"sales": sales}, context)


@pytest.mark.parametrize(
    "method",
    [
        FilterRows(condition="regoin = 1"),
        WithColumns(columns={"x": "regoin"}),
        SelectColumns(columns=("regoin",)),
        AggregateData(aggregations={"n": "sum(regoin)"}),
    ],
    ids=lambda method: method.method,
)
def test_unknown_column_in_an_expression_is_found_without_an_action(
    method: SingleInputTransform, sales: DataFrame, context: StepContext
) -> None:
    with pytest.raises(AnalysisException) as caught:
        _ = method.transform({"sales": sales}, context).schema
    assert (caught.value.getCondition() or "").startswith("UNRESOLVED_COLUMN")


def test_sql_sees_dataframes_by_name(sales: DataFrame, context: StepContext) -> None:
    regions = frame_of(context.spark, "region STRING, country STRING", [("north", "NO"), ("south", "IT")])
    method = Sql(
        query="WITH big AS (SELECT * FROM sales WHERE amount >= 10) "
        "SELECT country, sum(amount) AS total FROM big JOIN regions USING (region) GROUP BY country"
    )
    assert method.table_names() == ("sales", "regions")
    assert method.input_names() == ("sales", "regions")
    assert rows_of(method.transform({"sales": sales, "regions": regions}, context)) == [("IT", 20), ("NO", 10)]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("TABLE regions", [("north", "NO")]),
        ("FROM sales |> JOIN regions USING (region) |> AGGREGATE count(*) AS n GROUP BY country", [("NO", 1)]),
        (
            "SELECT /*+ BROADCAST(r) */ window.start AS day, trim(BOTH 'N' FROM r.country) AS country, count(*) AS n "
            "FROM sales s, regions r WHERE s.region = r.region AND extract(year FROM s.at) = 2024 "
            "GROUP BY window(s.at, '1 day'), r.country",
            [(datetime(2024, 1, 1), "O", 1)],
        ),
    ],
)
def test_sql_that_spark_alone_understands(context: StepContext, query: str, rows: list[tuple[object, ...]]) -> None:
    frames = {
        "sales": context.spark.sql("SELECT 'north' AS region, TIMESTAMP '2024-01-01 05:00:00' AS at"),
        "regions": frame_of(context.spark, "region STRING, country STRING", [("north", "NO")]),
    }
    method = Sql(query=query)
    inputs = {name: frames[name] for name in method.table_names()}
    assert rows_of(method.transform(inputs, context)) == rows


def test_union_matches_by_name(context: StepContext) -> None:
    first = frame_of(context.spark, "id INT, name STRING", [(1, "a")])
    second = frame_of(context.spark, "NAME STRING, id INT", [("b", 2), ("a", 1)])
    inputs = {"first": first, "second": second}
    method = Union(input_data_frames=("first", "second"))
    assert method.input_names() == ("first", "second")
    assert rows_of(method.transform(inputs, context)) == [(1, "a"), (1, "a"), (2, "b")]


def test_union_of_different_columns(context: StepContext) -> None:
    first = frame_of(context.spark, "id INT, name STRING", [(1, "a")])
    second = frame_of(context.spark, "id INT, age INT", [(2, 30)])
    inputs = {"first": first, "second": second}
    names = ("first", "second")
    with pytest.raises(ConfigurationError, match="'name' is only in 'first', 'age' is only in 'second'"):
        Union(input_data_frames=names).transform(inputs, context)
    filled = Union(input_data_frames=names, allow_missing_columns=True).transform(inputs, context)
    assert filled.columns == ["id", "name", "age"]
    assert rows_of(filled) == [(1, "a", None), (2, None, 30)]


@pytest.mark.parametrize("others", [("INT",), ("STRING", "DATE"), ("ARRAY<STRING>",)])
def test_union_of_texts_and_other_types(others: tuple[str, ...], context: StepContext) -> None:
    zips = frame_of(context.spark, "id INT, Zip STRING", [(1, "01234")])
    inputs = {"zips": zips} | {kind: frame_of(context.spark, f"zip {kind}, id INT", []) for kind in others}
    wrong = others[-1]
    wanted = re.escape(f"'zip' is string in 'zips' and {wrong.lower()} in '{wrong}'")
    for missing in (False, True):
        method = Union(input_data_frames=tuple(inputs), allow_missing_columns=missing)
        with pytest.raises(ConfigurationError, match=f"{wanted}.* withColumns .*AS STRING.* on '{re.escape(wrong)}'"):
            method.transform(inputs, context)
    turned = dict(reversed(inputs.items()))
    with pytest.raises(ConfigurationError, match=f"AS STRING.* on '{re.escape(wrong)}'"):
        Union(input_data_frames=tuple(turned)).transform(turned, context)


@pytest.mark.parametrize(
    ("kinds", "wrong"),
    [
        (("ARRAY<STRING>", "ARRAY<INT>"), (0, 1)),
        (("STRUCT<x: STRUCT<y: INT>>", "STRUCT<X: STRUCT<Y: STRING>>"), (0, 1)),
        (("MAP<STRING, STRING>", "MAP<INT, STRING>"), (0, 1)),
        (("ARRAY<VOID>", "ARRAY<STRING>", "ARRAY<DATE>"), (1, 2)),
        (("DECIMAL(38,18)", "DECIMAL(38,0)"), (0, 1)),
        (("DECIMAL(5,1)", "BIGINT", "DECIMAL(38,19)"), (1, 2)),
        (("ARRAY<DECIMAL(38,18)>", "ARRAY<DECIMAL(38,0)>"), (0, 1)),
    ],
    ids=str,
)
def test_union_of_types_by_which_spark_changes_values(
    kinds: tuple[str, ...], wrong: tuple[int, int], context: StepContext
) -> None:
    inputs = {f"f{at}": context.spark.sql(f"SELECT CAST(NULL AS {kind}) AS c") for at, kind in enumerate(kinds)}
    first, second = (f"{inputs[f'f{at}'].dtypes[0][1]} in 'f{at}'" for at in wrong)
    with pytest.raises(
        ConfigurationError, match=f"'c' is {re.escape(first)} and {re.escape(second)}, and .*cast one of"
    ):
        Union(input_data_frames=tuple(inputs)).transform(inputs, context)


def test_union_of_types_that_lose_nothing(context: StepContext) -> None:
    first = context.spark.sql(
        "SELECT 1 AS id, NULL AS name, DATE '2024-05-01' AS at, 7L AS amount, array(named_struct('x', 'a')) AS list"
    )
    second = context.spark.sql(
        "SELECT 2L AS id, 'b' AS name, TIMESTAMP_NTZ '2024-05-01 10:00:00' AS at, CAST(12.75 AS DECIMAL(38,18)) AS "
        "amount, array() AS list"
    )
    united = Union(input_data_frames=("first", "second")).transform({"first": first, "second": second}, context)
    assert dict(united.dtypes)["id"] == "bigint"
    assert rows_of(united) == [
        (1, None, datetime(2024, 5, 1), Decimal(7), [("a",)]),
        (2, "b", datetime(2024, 5, 1, 10), Decimal("12.75"), []),
    ]


def test_cache_and_uncache(sales: DataFrame, context: StepContext) -> None:
    other = sales.where("amount > 0")
    Cache(data_frames=("sales", "other"), storage_level="DISK_ONLY").transform(
        {"sales": sales, "other": other}, context
    )
    assert [(cached.name, cached.level) for cached in context.cache.cached()] == [
        ("sales", "DISK_ONLY"),
        ("other", "DISK_ONLY"),
    ]
    Uncache(data_frames=("sales",)).transform({"sales": sales}, context)
    assert [cached.name for cached in context.cache.cached()] == ["other"]
    UncacheAll().transform({}, context)
    assert context.cache.cached() == ()


INVALID: list[tuple[type[Any], dict[str, Any], str]] = [
    (FilterRows, {"condition": ""}, "at least 1 character"),
    (AggregateData, {"groupBy": ["a"], "aggregations": {}}, "at least 1 item"),
    (AggregateData, {"groupBy": ["Total"], "aggregations": {"total": "sum(x)"}}, "both 'groupBy' and 'aggregations'"),
    (Repartition, {"numPartitions": 0}, "greater than 0"),
    (Repartition, {"numPartitions": "many"}, "valid integer"),
    (Union, {"inputDataFrames": ["a"]}, "at least 2 items"),
    (Union, {"inputDataFrames": ["a", "a"]}, "'a' is listed twice"),
    (Cache, {"storageLevel": "RAM"}, "MEMORY_AND_DISK"),
    (Sql, {"query": " "}, "the query is empty"),
]


@pytest.mark.parametrize(("cls", "config", "message"), INVALID)
def test_invalid_config(cls: type[Any], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.model_validate(config)


def test_numbers_may_be_given_as_text() -> None:
    method = RepartitionByColumns.model_validate({"columns": ["date", "region"], "numPartitions": "200"})
    assert method.num_partitions == 200


def test_results_match_pandas(sales: DataFrame, context: StepContext) -> None:
    """The design's optimized-aggregation, against pandas."""
    spread = RepartitionByColumns(columns=("region",), num_partitions=200).transform({"sales": sales}, context)
    grouped = AggregateData(
        group_by=("region",), aggregations={"total_events": "count(*)", "unique_users": "count(distinct id)"}
    ).transform({"spread": spread}, context)
    result = Coalesce(num_partitions=10).transform({"grouped": grouped}, context)
    table = pd.DataFrame(SALES, columns=["id", "region", "amount"]).groupby("region", dropna=False)["id"]
    expected = [
        (None if pd.isna(region) else region, int(count), int(unique))
        for region, count, unique in zip(
            table.size().index, table.size().to_numpy(), table.nunique().to_numpy(), strict=True
        )
    ]
    assert rows_of(result) == in_order(expected)


def test_watermark_leaves_a_batch_as_it_is(context: StepContext) -> None:
    frame = context.spark.sql("SELECT 1 AS id, TIMESTAMP '2024-01-01 00:00:00' AS at")
    marked = WithWatermark(event_time="at", delay="1 minute").transform({"events": frame}, context)
    assert marked.collect() == frame.collect()
    with pytest.raises(DataFrameResolutionError, match="'att'.*did you mean 'at'"):
        WithWatermark(event_time="att", delay="1 minute").transform({"events": frame}, context)
    with pytest.raises(ConfigurationError, match="use dropDuplicates"):
        DropDuplicatesWithinWatermark(columns=("id",)).transform({"events": marked}, context)


@pytest.mark.parametrize("unit", ["second", "minutes", "hours", "day", "days", "week", "weeks"])
def test_the_times_of_streams_are_such_as_spark_takes(context: StepContext, unit: str) -> None:
    stream = context.spark.readStream.format("rate").load()
    method = WithWatermark.model_validate({"eventTime": "timestamp", "delay": f"2 {unit}"})
    marked = method.transform({"events": stream}, context)
    load = ToDeltaLake.model_validate({"path": "/out", "trigger": f"2 {unit}"})
    marked.writeStream.trigger(processingTime=load.trigger)


def test_duplicates_within_the_watermark_of_a_stream(context: StepContext, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    times = {1: "00:00:00", 2: "00:00:10", 3: "00:00:30"}
    lines = [f'{{"id": {number}, "at": "2024-01-01T{time}Z"}}' for number, time in times.items()]
    (source / "first.json").write_text("\n".join([*lines, *lines]))
    stream = context.spark.readStream.schema("id INT, at TIMESTAMP").json(str(source))
    marked = WithWatermark(event_time="at", delay="10 minutes").transform({"events": stream}, context)
    once = DropDuplicatesWithinWatermark(columns=("id",)).transform({"events": marked}, context)
    writer = once.select("id").writeStream.format("parquet").option("checkpointLocation", str(tmp_path / "checkpoint"))
    query = writer.trigger(availableNow=True).start(str(target))
    assert query.awaitTermination(120)
    assert rows_of(context.spark.read.parquet(str(target))) == [(1,), (2,), (3,)]
