"""DataFrames from plain rows, and plain rows from DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import _parse_datatype_string

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Rows = list[tuple[Any, ...]]


def frame_of(spark: SparkSession, schema: str, rows: Iterable[tuple[Any, ...]]) -> DataFrame:
    """Return a DataFrame with the columns of a DDL string; Arrow, since a list asks a Python worker at each action."""
    columns = _parse_datatype_string(schema)
    arrow = to_arrow_schema(columns, timezone="UTC")
    values = list(zip(*rows, strict=True)) or [()] * len(arrow)
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(values, arrow, strict=True)], schema=arrow
    )
    return spark.createDataFrame(table, columns)


def rows_of(frame: DataFrame) -> Rows:
    """Return the rows of a DataFrame in an order that does not depend on Spark."""
    return in_order(tuple(row) for row in frame.collect())


def in_order(rows: Iterable[tuple[Any, ...]]) -> Rows:
    """Sort rows of any values, nulls first."""
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row])
