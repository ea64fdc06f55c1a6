"""What Spark can do with streams, asked before a query starts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark.failures import causes_of, is_spark_error

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def check_stream_support(frame: DataFrame, output_mode: str) -> None:
    """Raise ConfigurationError when Spark can't run ``frame`` as a stream in ``output_mode``.

    Over Spark Connect only the start of the query tells.
    """
    from pyspark.sql.classic.dataframe import DataFrame as ClassicDataFrame

    if not isinstance(frame, ClassicDataFrame):
        return
    jvm: Any = frame.sparkSession._jvm
    mode = getattr(jvm.org.apache.spark.sql.streaming.OutputMode, output_mode.capitalize())()
    checker = jvm.org.apache.spark.sql.catalyst.analysis.UnsupportedOperationChecker
    try:
        checker.checkForStreaming(frame._jdf.queryExecution().analyzed(), mode)
    except Exception as error:
        if not is_spark_error(error):
            raise
        raise ConfigurationError(f"Spark does not do this on a stream: {_first_sentence(error)}") from None


def _first_sentence(error: Exception) -> str:
    """Return what Spark says, without the plan that it puts behind a semicolon."""
    return re.split(r";\s", causes_of(error)[0].first_line + " ", maxsplit=1)[0].strip().rstrip(".;")
