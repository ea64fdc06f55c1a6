from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
import pytest

from pipeline_assets.spark.caching import DataFrameCache, read_by, storage_level
from pipeline_assets.spark.plan_tree import explain_text
from pipeline_assets.steps.base import StorageLevelName

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def levels_of(cache: DataFrameCache) -> dict[str, str]:
    return {cached.name: cached.level for cached in cache.cached()}


def stored(spark: Any) -> list[Any]:
    """Return what the JVM tells of the data that it keeps."""
    # Delta keeps the state of tables that other tests have read.
    infos = spark.sparkContext._jsc.sc().getRDDStorageInfo()
    return [info for info in infos if "Delta Table State" not in info.name()]


@pytest.mark.parametrize("name", get_args(StorageLevelName))
def test_levels_are_those_of_the_jvm(spark: SparkSession, name: StorageLevelName) -> None:
    jvm: Any = spark._jvm
    theirs = jvm.org.apache.spark.storage.StorageLevel.fromString(name)
    ours = storage_level(name)
    assert (ours.useDisk, ours.useMemory, ours.useOffHeap, ours.deserialized, ours.replication) == (
        theirs.useDisk(),
        theirs.useMemory(),
        theirs.useOffHeap(),
        theirs.deserialized(),
        theirs.replication(),
    )


@pytest.mark.parametrize("level", [name for name in get_args(StorageLevelName) if name != "NONE"])
def test_every_level_keeps_the_data(any_spark: SparkSession, level: StorageLevelName) -> None:
    cache = DataFrameCache()
    frame = cache.cache("numbers", any_spark.range(100).where("id > 41"), level)
    assert frame.count() == 58
    assert frame.storageLevel == storage_level(level)
    assert levels_of(cache) == {"numbers": level}
    cache.release()
    assert cache.cached() == ()
    assert frame.storageLevel == storage_level("NONE")


def test_few_rows_are_kept_in_few_partitions(spark: SparkSession) -> None:
    name = "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning"
    before = spark.conf.get(name)
    cache = DataFrameCache()
    groups = spark.range(1000).selectExpr("id % 7 AS k").groupBy("k").count()
    kept = cache.cache("groups", groups, adaptive=True)
    assert sorted(row["count"] for row in kept.collect()) == [142, *([143] * 6)]
    assert kept.storageLevel == storage_level("MEMORY_AND_DISK")
    assert [info.numCachedPartitions() for info in stored(spark)] == [1]
    assert spark.conf.get(name) == before
    cache.release()


def test_none_keeps_nothing(any_spark: SparkSession) -> None:
    cache = DataFrameCache()
    frame = cache.cache("numbers", any_spark.range(3).where("id > 0"), "NONE")
    assert frame.storageLevel == storage_level("NONE")
    assert cache.cached() == ()


def test_the_same_again_changes_nothing(any_spark: SparkSession) -> None:
    cache = DataFrameCache()
    frame = any_spark.range(10).where("id % 2 = 1")
    cache.cache("odd", frame, "MEMORY_ONLY")
    cache.cache("odd", frame, "MEMORY_ONLY")
    assert levels_of(cache) == {"odd": "MEMORY_ONLY"}
    cache.uncache("odd")
    assert frame.storageLevel == storage_level("NONE")


def test_another_level_replaces_the_first(any_spark: SparkSession) -> None:
    cache = DataFrameCache()
    frame = any_spark.range(10).where("id % 3 = 1")
    cache.cache("some", frame, "MEMORY_ONLY")
    assert frame.count() == 3
    cache.cache("some", frame, "DISK_ONLY")
    assert frame.storageLevel == storage_level("DISK_ONLY")
    assert levels_of(cache) == {"some": "DISK_ONLY"}
    cache.cache("some", frame, "NONE")
    assert frame.storageLevel == storage_level("NONE")
    assert cache.cached() == ()


def test_another_frame_under_the_name_replaces_the_first(any_spark: SparkSession) -> None:
    cache = DataFrameCache()
    first = cache.cache("some", any_spark.range(5).where("id > 1"))
    second = cache.cache("some", any_spark.range(5).where("id > 2"))
    assert first.storageLevel == storage_level("NONE")
    assert second.storageLevel == storage_level("MEMORY_AND_DISK")
    cache.uncache_all()
    assert second.storageLevel == storage_level("NONE")


def test_uncache_of_what_was_never_cached_here_leaves_the_rest(any_spark: SparkSession) -> None:
    cache = DataFrameCache()
    cache.uncache("orders")
    kept = cache.cache("orders", any_spark.range(1).where("id > 0"))
    cache.uncache("order")
    assert kept.storageLevel == storage_level("MEMORY_AND_DISK")
    cache.release()


def test_a_later_plan_reads_what_is_cached(any_spark: SparkSession) -> None:
    from pipeline_assets.spark.plan_tree import explain_text

    cache = DataFrameCache()
    frame = cache.cache("numbers", any_spark.range(20).where("id > 3"))
    assert "InMemoryTableScan" in explain_text(frame.selectExpr("id + 1"), "simple")
    cache.uncache("numbers")
    assert "InMemoryTableScan" not in explain_text(frame.selectExpr("id + 2"), "simple")


def test_no_reader_takes_what_another_has_cached(any_spark: SparkSession, tmp_path: Path) -> None:
    pd.DataFrame({"n": range(3)}).to_parquet(tmp_path / "first.parquet", index=False)

    def read(reader: str) -> DataFrame:
        return read_by(reader, any_spark.read.parquet(f"file://{tmp_path}"))

    cache = DataFrameCache()
    assert cache.cache("rows", read("one")).count() == 3
    pd.DataFrame({"n": range(5)}).to_parquet(tmp_path / "second.parquet", index=False)
    assert not read("another").storageLevel.useMemory
    assert read("another").count() == 8
    assert read("one").count() == 3
    cache.uncache_all()
    assert read("one").count() == 8
    assert "one" not in explain_text(read("one"), "simple")


def test_sizes_are_those_of_spark(spark: SparkSession) -> None:
    cache = DataFrameCache()
    frame = cache.cache("in_memory", spark.range(0, 1000, 1, 3).where("id >= 0"), "MEMORY_ONLY")
    other = cache.cache("on_disk", spark.range(0, 1000, 1, 2).where("id >= 1"), "DISK_ONLY")
    assert [(c.memory_bytes, c.disk_bytes) for c in cache.cached()] == [(0, 0)] * 2
    assert (frame.count(), other.count()) == (1000, 999)
    in_memory, on_disk = cache.cached()
    # 1000 longs cannot take less than what Spark's own encoding of consecutive ones does; and not nothing.
    assert in_memory.memory_bytes
    assert in_memory.disk_bytes == 0
    assert on_disk.memory_bytes == 0
    assert on_disk.disk_bytes
    assert {(info.memSize(), info.diskSize()) for info in stored(spark)} == {
        (in_memory.memory_bytes, 0),
        (0, on_disk.disk_bytes),
    }
    cache.release()


def test_connect_does_not_tell_sizes(any_spark: SparkSession, spark_settings: Any) -> None:
    cache = DataFrameCache()
    cache.cache("numbers", any_spark.range(9).where("id > 5")).count()
    (cached,) = cache.cached()
    assert (cached.memory_bytes is None) == (spark_settings.spark_remote is not None)
    cache.release()
