"""What is shown of a Delta table, held to what Spark reads of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.steps.delta_log import AddedFile, Commit, find_commit
from pipeline_assets.steps.delta_preview import Preview, rows_by_arrow, rows_by_driver
from pipeline_assets.steps.file_systems import Folder, LocalFolder, open_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ALL_TYPES = """
    SELECT id % 2 = 0 AS boolean, CAST(id AS tinyint) AS byte, CAST(id AS smallint) AS short, CAST(id AS int) AS int,
      id AS long, CAST(id AS float) / 3 AS float, CAST(id AS double) / 3 AS double, concat('ü', id) AS string,
      CAST(id AS decimal(10, 2)) AS decimal, CAST(-id AS decimal(38, 10)) AS wide_decimal,
      CAST(concat('b', id) AS binary) AS binary, date_add(date'1969-12-31', CAST(id AS int)) AS date,
      timestamp'1969-12-31 23:59:59.999999' + make_interval(0, 0, 0, CAST(id AS int)) AS timestamp,
      timestamp_ntz'2024-02-29 03:04:05.678901' AS timestamp_ntz,
      array(1, NULL, id) AS numbers, map('id', id, 'none', NULL) AS named,
      named_struct('x', id, 'y', array('z')) AS both,
      array(named_struct('at', timestamp'2024-02-29 00:00:00', 'tags', map('a', array(id)))) AS nested,
      CASE WHEN id % 3 = 0 THEN id END AS sometimes
    FROM range({rows})
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "a table #1 50%")


def write(frame: DataFrame, table: str, mark: str, *partition_by: str) -> Commit:
    writer = frame.coalesce(1).write.format("delta").mode("append").option("userMetadata", mark)
    writer.partitionBy(*partition_by).save(table)
    commit = find_commit(open_folder(table, "default", Connections()), mark)
    assert commit is not None
    return commit


def plain(value: Any) -> Any:
    """What PySpark collects, as plain values; its timestamps, which have no zone, are UTC here."""
    if hasattr(value, "asDict"):
        return {name: plain(each) for name, each in value.asDict().items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return bytes(value) if isinstance(value, bytearray) else value


def test_values_of_all_types(spark: SparkSession, table: str) -> None:
    commit = write(spark.sql(ALL_TYPES.format(rows=7)), table, "mark")
    found = rows_by_driver(spark, table, commit, 10)
    assert found is not None
    read = spark.read.format("delta").load(table)
    # As texts in UTC: PySpark's own timestamps depend on the zone of the machine.
    texts = read.selectExpr("date_format(timestamp, 'yyyy-MM-dd HH:mm:ss.SSSSSSxxx')").collect()
    at = found.columns.index("timestamp")
    assert [str(row[at]) for row in found.rows] == [text for (text,) in texts]
    nested = found.columns.index("nested")
    assert {str(row[nested][0].pop("at")) for row in found.rows} == {"2024-02-29 00:00:00+00:00"}
    expected = [plain(row) for row in read.drop("timestamp").withColumn("nested", _without_time()).collect()]
    assert [
        {name: value for name, value in zip(found.columns, row, strict=True) if name != "timestamp"}
        for row in found.rows
    ] == expected
    assert found.columns == read.columns


def _without_time() -> Any:
    from pyspark.sql.functions import expr

    return expr("transform(nested, each -> named_struct('tags', each.tags))")


def test_what_python_has_not_is_shown_in_another_way(spark: SparkSession, table: str) -> None:
    late = "make_date(20000, 1, 1) AS day, timestamp_seconds(568971820800L) AS moment, parse_json('1') AS json"
    commit = write(spark.sql(f"SELECT 1 AS id, {late}"), table, "mark")
    days = 6_585_322
    found = rows_by_driver(spark, table, commit, 10)
    assert found == Preview(["id", "day", "moment", "json"], [[1, days, days * 86_400 * 10**6, "(variant)"]])


def test_both_readers_show_the_same(spark: SparkSession, table: str) -> None:
    # PyArrow shows Spark's timestamps without zone, and a map as a list of pairs.
    frame = spark.sql(ALL_TYPES.format(rows=7)).drop("nested", "named", "timestamp")
    commit = write(frame, table, "mark")
    assert rows_by_driver(spark, table, commit, 5) == rows_by_arrow(LocalFolder(table), commit, 5)


def test_only_what_the_commit_added_also_where_a_checkpoint_has_all_files(spark: SparkSession, table: str) -> None:
    spark.sql(f"CREATE TABLE delta.`{table}` (id long) USING delta TBLPROPERTIES (delta.checkpointInterval = 2)")
    for number in (1, 2, 3, 4):
        commit = write(spark.range(number * 10, number * 10 + 3).toDF("id"), table, f"mark {number}")
        expected = Preview(["id"], [[number * 10], [number * 10 + 1]])
        assert rows_by_driver(spark, table, commit, 2) == expected
        assert rows_by_arrow(LocalFolder(table), commit, 2) == expected
    assert list(Path(table, "_delta_log").glob("*.checkpoint.parquet"))


def test_rows_of_several_partitions(spark: SparkSession, table: str) -> None:
    frame = spark.sql("SELECT id, concat('d ', id % 3) AS day FROM range(6)")
    found = rows_by_driver(spark, table, write(frame, table, "mark", "day"), 10)
    assert found is not None
    assert found.columns == ["id", "day"]
    assert sorted(found.rows) == [[number, f"d {number % 3}"] for number in range(6)]


def test_columns_have_the_names_that_they_have_now(spark: SparkSession, table: str) -> None:
    write(spark.range(2).toDF("before"), table, "first")
    spark.sql(f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES (delta.columnMapping.mode = 'name')")
    spark.sql(f"ALTER TABLE delta.`{table}` RENAME COLUMN before TO after")
    commit = write(spark.range(5, 7).toDF("after"), table, "second")
    assert rows_by_driver(spark, table, commit, 10) == Preview(["after"], [[5], [6]])


def test_a_commit_that_added_nothing(spark: SparkSession, table: str) -> None:
    assert rows_by_driver(spark, table, Commit(0, {}, ()), 10) is None
    assert rows_by_arrow(LocalFolder(table), Commit(0, {}, ()), 10) is None


class CountingFile(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> Any:
        found = super().read(-1 if size is None else size)
        CountingFile.count += len(found or b"")
        return found


def test_pyarrow_reads_a_few_pages_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    numbers = range(2_000_000)
    table = pa.table({"id": numbers, "twice": [2 * number for number in numbers]})
    pq.write_table(table, file, row_group_size=len(numbers), use_dictionary=False)
    folder = cast(Folder, SimpleNamespace(path=tmp_path, open=lambda name: CountingFile(tmp_path / name)))
    commit = Commit(0, {}, (AddedFile("rows.parquet", file.stat().st_size, {"day": "mon"}),))
    found = rows_by_arrow(folder, commit, 3)
    assert found is not None
    assert (found.columns, found.rows) == (["id", "twice", "day"], [[0, 0, "mon"], [1, 2, "mon"], [2, 4, "mon"]])
    assert 0 < CountingFile.count < file.stat().st_size / 3


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"not Parquet")
    commit = Commit(0, {}, (AddedFile("rows.parquet", 11, {}),))
    with pytest.raises(PipelineExecutionError, match=r"rows\.parquet: Parquet magic bytes not found"):
        rows_by_arrow(LocalFolder(str(tmp_path)), commit, 3)
