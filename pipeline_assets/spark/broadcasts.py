"""What Spark sends whole to every task of a join."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_UNITS = {"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}


def broadcast_limit(spark: SparkSession) -> int:
    """Return the size in bytes of the largest table that ``spark`` would broadcast; -1 when it would none.

    https://spark.apache.org/docs/latest/sql-performance-tuning.html: ``spark.sql.autoBroadcastJoinThreshold``.
    """
    text = str(spark.conf.get("spark.sql.autoBroadcastJoinThreshold", "10MB")).strip().lower()
    found = re.fullmatch(r"(-?\d+) *([a-z]*)", text)
    if found is None or found[2] not in _UNITS:
        return -1
    return int(found[1]) << _UNITS[found[2]]
