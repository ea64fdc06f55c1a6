"""Values as text, where what Spark does by itself would alter them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

# Spark's own end after the milliseconds, and it keeps microseconds.
TIME_FORMATS = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def as_json(column: Column) -> Column:
    """Return ``column`` as JSON, with the fields that are null."""
    from pyspark.sql import functions as F  # noqa: N812

    return F.to_json(column, {"ignoreNullFields": "false", **TIME_FORMATS})
