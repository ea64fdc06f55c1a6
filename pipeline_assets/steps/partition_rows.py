"""The rows of a run's partition: a write is held to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.partitions import PartitionSlice, sql_string
from pipeline_assets.spark.failures import Cause

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_OUTSIDE = "[REPLACE_WHERE_MISMATCH]"


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
