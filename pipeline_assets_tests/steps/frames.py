"""DataFrames from plain rows, and plain rows from DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Rows = list[tuple[Any, ...]]


def frame_of(spark: SparkSession, schema: str, rows: Iterable[tuple[Any, ...]]) -> DataFrame:
    """Return a DataFrame with the columns of a DDL string."""
    return spark.createDataFrame(list(rows), schema)


def rows_of(frame: DataFrame) -> Rows:
    """Return the rows of a DataFrame in an order that does not depend on Spark."""
    return in_order(tuple(row) for row in frame.collect())


def in_order(rows: Iterable[tuple[Any, ...]]) -> Rows:
    """Sort rows of any values, nulls first."""
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row])
