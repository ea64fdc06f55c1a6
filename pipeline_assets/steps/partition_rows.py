"""The rows of a run's partition: the key that they get, and what holds a write to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.partitions import PARTITION_KEY_COLUMN, PartitionSlice, sql_string
from pipeline_assets.spark.failures import Cause

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_OUTSIDE = "[REPLACE_WHERE_MISMATCH]"


def with_partition(frame: DataFrame, partition: PartitionSlice | None) -> DataFrame:
    """Give the rows the partition's key where the table has no column of its own for it.

    Raises ConfigurationError when they have another of that name.
    """
    from pyspark.sql import functions as F  # noqa: N812

    if partition is None or partition.column is not None:
        return frame
    check_own_key(
        frame,
        "or, if it holds the rows' dates or the keys of static partitions, give 'partitions' the "
        f"'column' {PARTITION_KEY_COLUMN!r}",
    )
    return frame.withColumn(PARTITION_KEY_COLUMN, F.lit(partition.key))


def check_own_key(frame: DataFrame, advice: str) -> None:
    """Raise ConfigurationError, with ``advice``, when ``frame`` has a column called as the partition's key is."""
    own = next((column for column in frame.columns if column.casefold() == PARTITION_KEY_COLUMN), None)
    if own is not None:
        raise ConfigurationError(
            f"the DataFrame has a column {own!r}, and the key of the run's partition would take its place: rename it "
            f"or leave it out by selectColumns before, {advice}"
        )


def holding(frame: DataFrame, condition: str) -> DataFrame:
    """Return ``frame`` so that a row that does not meet ``condition`` fails the query."""
    message = sql_string(f" does not meet {condition}")
    # With what is not the same for equal rows: Spark would ask anything else of rows that a join is yet to leave out.
    failed = f"raise_error(concat('{_OUTSIDE} a row of task ', spark_partition_id(), {message}))"
    return frame.where(f"CASE WHEN ({condition}) THEN true ELSE {failed} END")


def row_outside(cause: Cause, partition: PartitionSlice | None) -> PipelineExecutionError | None:
    """Return the error for a row that did not meet what a write was held to; None when ``cause`` is another.

    ``partition``: what the write was held to; None for replaceWhere.
    """
    if cause.condition != "DELTA_REPLACE_WHERE_MISMATCH" and _OUTSIDE not in cause.message:
        return None
    if partition is None:
        return PipelineExecutionError(
            "the DataFrame has rows that do not meet replaceWhere; nothing was written", details=cause.message
        )
    return PipelineExecutionError(
        f"the DataFrame has rows outside partition {partition.key!r} ({partition.predicate}): keep the "
        "partition's own with filterRows before; nothing was written",
        details=cause.message,
    )
