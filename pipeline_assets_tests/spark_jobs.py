"""The jobs of an embedded Spark. It tells of them from events, which come after a job has begun, and after its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def wait_for_events(spark: SparkSession) -> None:
    """Wait until Spark tells of all that there has been so far."""
    context: Any = spark.sparkContext
    context._jsc.sc().listenerBus().waitUntilEmpty(60_000)


def jobs(spark: SparkSession) -> set[int]:
    """Return the ids of the jobs there have been so far. To be compared by id: Spark forgets the oldest."""
    wait_for_events(spark)
    tracker: Any = spark.sparkContext.statusTracker()
    return set(tracker.getJobIdsForGroup(None))
