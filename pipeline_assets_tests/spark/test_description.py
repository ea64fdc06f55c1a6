from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline_assets.redaction import MASK, register_secret
from pipeline_assets.spark.caching import storage_level
from pipeline_assets.spark.description import Column, describe, markdown_table
from pipeline_assets_tests.spark_jobs import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from devstack.postgres import PostgresServer


def test_columns_have_type_nullability_and_comment(any_spark: SparkSession) -> None:
    frame = any_spark.createDataFrame(
        [], "id BIGINT NOT NULL COMMENT 'the key', tags ARRAY<STRING>, place STRUCT<lat: DOUBLE, lon: DOUBLE>"
    )
    assert describe(frame).columns == (
        Column("id", "bigint", False, "the key"),
        Column("tags", "array<string>", True),
        Column("place", "struct<lat:double,lon:double>", True),
    )


def test_the_plan_is_the_physical_one(any_spark: SparkSession) -> None:
    description = describe(any_spark.range(10).where("id > 5").groupBy("id").count())
    assert description.plan.startswith("== Physical Plan ==")
    assert "HashAggregate" in description.plan
    assert "id#" in description.plan


PARTITIONED = {
    "range": lambda s: s.range(0, 100, 1, 7),
    "filter of a range": lambda s: s.range(0, 100, 1, 7).where("id > 3").selectExpr("id + 1 AS next"),
    "repartition": lambda s: s.range(100).repartition(5),
    "repartition by column": lambda s: s.range(100).repartition(6, "id"),
    "repartition by range": lambda s: s.range(100).repartitionByRange(3, "id"),
    "coalesce": lambda s: s.range(0, 100, 1, 7).coalesce(4),
    "coalesce to more": lambda s: s.range(0, 100, 1, 2).coalesce(4),
    "aggregate on its repartition": lambda s: s.range(100).repartition(8, "id").groupBy("id").count().coalesce(3),
    "global aggregate": lambda s: s.range(100).groupBy().count(),
    "limit of a sort": lambda s: s.range(100).orderBy("id").limit(5).where("id > 1"),
    "broadcast join": lambda s: s.range(0, 50, 1, 6).join(s.range(3).hint("broadcast"), "id"),
    "cached": lambda s: s.range(0, 100, 1, 5).where("id > 7").persist(storage_level("MEMORY_ONLY")),
}


@pytest.mark.parametrize("name", PARTITIONED)
def test_partitions_are_those_that_execution_has(any_spark: SparkSession, name: str) -> None:
    frame: DataFrame = PARTITIONED[name](any_spark)
    told = describe(frame).partitions
    # The highest number of a partition that has a row: the last ones may have none.
    (seen,) = frame.selectExpr("spark_partition_id() AS partition").selectExpr("max(partition) + 1").collect()
    assert told is not None
    assert told >= seen[0]
    frame.unpersist()


@pytest.mark.parametrize("name", PARTITIONED)
def test_partitions_are_those_of_the_rdd(spark: SparkSession, name: str) -> None:
    frame: DataFrame = PARTITIONED[name](spark)
    assert describe(frame).partitions == frame.rdd.getNumPartitions()
    frame.unpersist()


@pytest.mark.parametrize(
    "frame",
    [
        lambda s: s.range(100).groupBy("id").count().groupBy("count").count(),
        lambda s: s.range(100).repartition("id"),
        lambda s: s.range(100).groupBy("id").count().groupBy("count").count().coalesce(3),
        lambda s: s.range(100).union(s.range(10)),
        lambda s: s.range(100).hint("merge").join(s.range(10), "id"),
    ],
)
def test_where_only_execution_tells_nothing_is_said(any_spark: SparkSession, frame: Any) -> None:
    assert describe(frame(any_spark)).partitions is None


def test_a_plan_that_has_run_tells_what_adaptive_execution_did(spark: SparkSession) -> None:
    frame = spark.range(100).selectExpr("id % 7 AS id").groupBy("id").count().persist(storage_level("MEMORY_ONLY"))
    assert frame.count() == 7
    once = frame.where("count = 1")
    assert describe(once).partitions == frame.rdd.getNumPartitions()
    once.collect()
    assert describe(once).partitions == frame.rdd.getNumPartitions()
    frame.unpersist()


def test_a_file_scan_is_described_without_a_job(spark: SparkSession, tmp_path: Path) -> None:
    spark.range(10).write.parquet(str(tmp_path / "numbers"))
    frame = spark.read.parquet(str(tmp_path / "numbers")).where("id > 1").groupBy("id").count()
    before = jobs(spark)
    description = describe(frame)
    assert jobs(spark) <= before
    assert description.partitions is None
    assert "Scan parquet" in description.plan


def test_the_storage_level_is_told(any_spark: SparkSession) -> None:
    frame = any_spark.range(3).where("id > 1")
    assert describe(frame).storage_level is None
    frame.persist(storage_level("DISK_ONLY"))
    assert describe(frame).storage_level == "Disk Serialized 1x Replicated"
    frame.unpersist()


def test_a_jdbc_plan_shows_no_secret(any_spark: SparkSession, postgres: PostgresServer) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS described (id BIGINT PRIMARY KEY, name TEXT)")
    frame = (
        any_spark.read.format("jdbc")
        .option("url", f"jdbc:postgresql://{postgres.host}:{postgres.port}/{postgres.database}")
        .option("driver", "org.postgresql.Driver")
        .option("dbtable", "described")
        .option("user", postgres.user)
        .option("password", postgres.password)
        .load()
    )
    description = describe(frame)
    assert [column.name for column in description.columns] == ["id", "name"]
    assert "JDBCRelation(described)" in description.plan
    assert postgres.password not in description.plan
    assert description.partitions == 1


def test_rows_as_a_markdown_table() -> None:
    rows = [(1, "a|b", None), (2, "two\nlines", "x" * 60), (3, b"\x01\xff", "")]
    assert markdown_table(["id", "v", "w"], rows, width=10).splitlines() == [
        "| id | v | w |",
        "| --- | --- | --- |",
        "| 1 | a\\|b | NULL |",
        "| 2 | two lines | xxxxxxxxx… |",
        "| 3 | 01ff |  |",
    ]


def test_a_table_shows_no_secret() -> None:
    register_secret("correct|horse battery staple")
    rows = [
        ("hunter2", "x" * 30 + "correct|horse battery staple", {"password": "hunter2", "id": 1}),
        (None, "a horse", None),
    ]
    assert markdown_table(["api_token", "note", "login"], rows).splitlines()[2:] == [
        f"| {MASK} | {'x' * 30}{MASK} | {{'password': '{MASK}', 'id': 1}} |",
        "| NULL | a horse | NULL |",
    ]
