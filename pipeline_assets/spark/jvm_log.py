"""The log of Spark's JVM, with lines that say which run, pipeline and step they are about.

Sources: https://spark.apache.org/docs/latest/configuration.html#structured-logging, and for what reaches the tasks,
`mdc.` local properties, https://spark.apache.org/docs/latest/configuration.html#configuring-logging.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.spark.java_options import given_java_options

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_assets.settings import Settings

_CONFIGURATION = "-Dlog4j2.configurationFile="
# What Log4j finds by itself in the folder SPARK_CONF_DIR, which Spark puts on its class path.
_FOUND_BY_LOG4J = tuple(f"log4j2.{suffix}" for suffix in ("properties", "yaml", "yml", "json", "jsn", "xml"))


def log_conf(settings: Settings) -> dict[str, str]:
    """Return the Spark conf of an embedded driver's log."""
    level = {None: "ERROR", "WARNING": "WARN"}.get(settings.log_level, settings.log_level)
    return {"spark.log.level": str(level)}


def log_options(settings: Settings, run_id: str, pipeline: str) -> str:
    """Return the options by which a driver's log says whose it is; its layout is left to a user who has given one."""
    told = f'"-Dpipeline_assets.run_id={_plain(run_id)}" "-Dpipeline_assets.pipeline={_plain(pipeline)}"'
    if _CONFIGURATION in given_java_options() or _has_own_layout():
        return told
    file = Path(__file__).with_name(f"log4j2-{settings.log_format}.properties")
    return f'{told} "{_CONFIGURATION}{file}"'


def _has_own_layout() -> bool:
    folder = os.environ.get("SPARK_CONF_DIR", "")
    return folder != "" and any(Path(folder, name).is_file() for name in _FOUND_BY_LOG4J)


def _plain(text: str) -> str:
    """Return ``text`` without what would end or change an option in quotes."""
    return re.sub(r'["\\\s]', "_", text)


def log_as(spark: SparkSession, fields: Mapping[str, str]) -> None:
    """Have the lines of the driver's thread that works for this one, and of its tasks, tell ``fields`` from now on.

    Over Spark Connect the threads are the server's, and nothing is done. Raises RetryableError when Spark is gone.
    """
    from pyspark.sql import SparkSession as ClassicSession

    if not isinstance(spark, ClassicSession):
        return
    context = spark.sparkContext
    java = context._jvm
    assert java is not None  # noqa: S101  (a session has one)
    with spark_errors():
        for name, value in fields.items():
            context.setLocalProperty(f"mdc.{name}", value)
            java.org.slf4j.MDC.put(name, value)


def name_values_in_log(spark: SparkSession) -> None:
    """Have lines of JSON tell the values in their messages by name too: ``batch_id``, ``job_id`` and such.

    `spark.log.structuredLogging.enabled` does not do it: Spark ignores that for all that PySpark starts.
    """
    java = spark.sparkContext._jvm
    assert java is not None  # noqa: S101  (a session has one)
    logging = getattr(java.org.apache.spark.internal, "Logging$")
    getattr(logging, "MODULE$").enableStructuredLogging()
