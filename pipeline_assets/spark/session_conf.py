"""The Spark conf of sessions: what they start with, and what is set in one that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_assets.errors import ConfigurationError, did_you_mean
from pipeline_assets.redaction import NAME_PATTERN, TEXT_PATTERN
from pipeline_assets.spark.driver_memory import runs_in_driver
from pipeline_assets.spark.jars import resolve_jars
from pipeline_assets.spark.java_options import has_own_class_path
from pipeline_assets.spark.jvm_log import log_conf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_assets.settings import Settings

_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
# What plans and timestamps look like does not depend on where Spark runs, and neither does what they do not show.
EVERYWHERE = {
    "spark.sql.redaction.options.regex": f"(?i)url|{NAME_PATTERN}",
    "spark.sql.redaction.string.regex": TEXT_PATTERN,
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.debug.maxToStringFields": "10000",
}
# Spark's UI would open a port in every run; a user's spark_conf may bring it back.
_QUIET = {
    # The environment page and the event log, which has all of it: by the name of an option, or a part of its value.
    "spark.redaction.regex": f"(?i){NAME_PATTERN}",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # S3A is on the class path: it would not see what `spark.jars.packages` brings for it, as a provider of credentials.
    "spark.hadoop.fs.s3a.classloader.isolation": "false",
    # A Kafka producer whose user may not write asks the broker without a pause, for as long as Spark keeps it, which
    # is ten minutes otherwise (KAFKA-13668).
    "spark.kafka.producer.cache.timeout": "1m",
    "spark.kafka.producer.cache.evictorThreadRunInterval": "10s",
}
# JDBC reads and writes timestamps in the zone of the JVM that it runs in, whatever the session says. As defaults these
# stand before a user's extraJavaOptions, and take the place of none.
_IN_UTC = {
    "spark.driver.defaultJavaOptions": "-Duser.timezone=UTC",
    "spark.executor.defaultJavaOptions": "-Duser.timezone=UTC",
}
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    # Delta reads a table's state in 50 tasks, made for clusters; a few cores are faster with a few.
    "spark.databricks.delta.snapshotPartitions": "4",
    # As many tasks as there are folders list them, 10,000 at most, and VACUUM's are always that many.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "32",
}


def session_conf(settings: Settings, spark_conf: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the Spark conf of the session that ``settings`` ask for; ``spark_conf`` is merged last and wins.

    On a cluster it names the JARs (downloaded the first time) for the executors to fetch; a ``spark.jars`` in
    ``spark_conf`` (an empty one, where the cluster has them all) takes their place. Where Spark runs in the driver
    alone, they are on its class path (``driver_jars``), if that can be added to. Over Spark Connect it is the runtime
    conf alone: the JARs are the server's.
    """
    given = dict(spark_conf or {})
    if settings.spark_remote:
        return {**EVERYWHERE, **given}
    master = given.get("spark.master") or settings.spark_master or "local[*]"
    conf = {"spark.app.name": "pipeline-assets", "spark.master": master}
    conf |= {**_DELTA, **EVERYWHERE, **_QUIET, **_IN_UTC, **log_conf(settings)}
    if master.startswith("local"):
        conf |= _LOCAL
    if not runs_in_driver(master) or has_own_class_path():
        conf["spark.jars"] = ",".join(map(str, driver_jars(given)))
    return conf | given


def driver_jars(spark_conf: Mapping[str, str] | None = None) -> list[Path]:
    """Return the JARs that a driver has to have on its class path; none when ``spark_conf`` brings a ``spark.jars``."""
    return [] if "spark.jars" in (spark_conf or {}) else resolve_jars()


def set_runtime_conf(session: SparkSession, conf: Mapping[str, str]) -> None:
    """Set what can be set in a session; the rest has been decided where its Spark was started."""
    for key, value in conf.items():
        _takes(session, key, value)


def set_own_conf(session: SparkSession, conf: Mapping[str, str]) -> None:
    """Set what a pipeline asks for; nothing of it is left out in silence."""
    for key, value in conf.items():
        if not _takes(session, key, value):
            raise ConfigurationError(
                f"sparkConf: {key!r} can't be set in a session: it belongs where Spark is started, in "
                "spark-defaults.conf or in the Spark resource's spark_conf"
            )
        # Others' settings are known once what they belong to is used.
        if key.startswith("spark.sql.") and not session.conf.isModifiable(key):
            known = [str(row[0]) for row in session.sql("SET -v").collect()]
            raise ConfigurationError(f"sparkConf: Spark has no setting {key!r}{did_you_mean(key, known)}")


def _takes(session: SparkSession, key: str, value: str) -> bool:
    """Set ``key`` in ``session``; False where it can't be set in one, as it belongs to Spark's start."""
    from pyspark.errors import AnalysisException

    try:
        session.conf.set(key, value)
    except AnalysisException as error:
        if not (error.getCondition() or "").startswith("CANNOT_MODIFY"):
            raise
        return False
    return True
