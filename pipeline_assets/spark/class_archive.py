"""Spark's classes, prepared once for each Java, so that a driver has not to load and verify them at each start.

It is Java's own class-data sharing, with an archive of the classes that a small run of Spark has loaded:
https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html. A Java that finds that the archive does not fit
goes on without.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.settings import cache_folder
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.spark.jars import remembered_jars
from pipeline_assets.spark.java_options import class_path, given_class_path, java_options, without_remote

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# An archive that does not fit is no reason to say anything on standard output.
_SILENT = "-Xlog:cds=off -Xlog:cds+dynamic=off -Xlog:class+path=off"
_EXIT_SECONDS = 300


def archive_file() -> Path | None:
    """Return where the archive for this environment's Java and Spark is or would be; None without a Java."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        return None
    from pyspark.find_spark_home import _find_spark_home

    program, spark = Path(java).resolve(), Path(_find_spark_home()).resolve()
    release = program.parents[1] / "release"
    place = _digest(str(program), str(spark))
    # Java takes no archive whose JARs have other sizes or times now, as those of an environment that was made anew. It
    # compares whole seconds, and an image that was pushed and pulled keeps no more of a time.
    facts = ((jar.name, jar.stat()) for jar in (*sorted((spark / "jars").glob("*.jar")), *remembered_jars()))
    jars = [f"{name} {fact.st_size} {fact.st_mtime_ns // 10**9}" for name, fact in facts]
    content = _digest(release.read_text() if release.exists() else "", *jars, given_class_path())
    return cache_folder() / f"spark-classes-{place}-{content}.jsa"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def archived_classes(jars: Iterable[Path]) -> Iterator[None]:
    """Have a driver that is started inside find the classes of ``jars``, and use the archive, where there is one."""
    # Before the class path is changed: the archive's name holds what the environment says of it.
    archive = archive_file()
    options = f'"-XX:SharedArchiveFile={archive}" {_SILENT}' if archive is not None and archive.exists() else ""
    with class_path(jars), java_options(options):
        yield


def make_archive(conf: Mapping[str, str], jars: Sequence[Path]) -> Path:
    """Make the archive by a small run of Spark with ``conf`` and ``jars``. Takes some 20 seconds. Returns where it is.

    Raises ConfigurationError when there is no Java, when it does not start, or when it makes no archive.
    """
    archive = archive_file()
    if archive is None:
        raise ConfigurationError("there is no Java: install Java 17 or 21, or set JAVA_HOME")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        made = Path(folder) / archive.name
        # The second compiler would have no time to give back what it takes.
        options = f'"-XX:ArchiveClassesAtExit={made}" -XX:TieredStopAtLevel=1 {_SILENT}'
        with without_remote(), class_path(jars), java_options(options):
            _run_to_exit(conf, Path(folder))
        if not made.exists():
            raise ConfigurationError(f"this Java has made no archive of its classes: {archive}")
        made.replace(archive)
    _remove_older(archive)
    return archive


def _remove_older(archive: Path) -> None:
    """Remove what has been made for the same Java and Spark before: nothing looks for it any more."""
    place = archive.name.rpartition("-")[0]
    for other in archive.parent.glob(f"{place}-*.jsa"):
        if other != archive:
            other.unlink(missing_ok=True)


def _run_to_exit(conf: Mapping[str, str], folder: Path) -> None:
    from pyspark.core.context import SparkContext
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for key, value in conf.items():
        builder = builder.config(key, value)
    with spark_errors():
        spark = builder.getOrCreate()
    gateway: Any = SparkContext._gateway
    try:
        _work(spark, folder)
    finally:
        spark.stop()
        # The archive is written when Java ends by itself.
        with suppress(Exception):  # its answer does not come any more
            gateway.jvm.System.exit(0)
        _wait_for_exit(gateway.proc)


def _wait_for_exit(java: subprocess.Popen[bytes]) -> None:
    try:
        java.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        java.kill()
        java.wait()
        raise ConfigurationError(
            f"Java has not written the archive of its classes within {_EXIT_SECONDS} s: try again when the machine has "
            "less to do; runs do without it"
        ) from None


def _work(spark: SparkSession, folder: Path) -> None:
    """Have Spark do a little of what pipelines do."""
    from pyspark.sql import functions as F  # noqa: N812

    for format_ in ("json", "csv", "parquet"):
        spark.range(100).selectExpr("id", "cast(id % 7 as string) AS kind").write.format(format_).save(
            f"{folder}/{format_}"
        )
    rows = spark.read.json(f"{folder}/json").join(spark.read.parquet(f"{folder}/parquet"), "id")
    rows.createOrReplaceTempView("rows")
    counted = spark.sql("SELECT id % 3 AS third, count(*) AS n, max(id) AS last FROM rows GROUP BY ALL")
    counted.cache()
    table = f"{folder}/table"
    for mode in ("overwrite", "append"):
        counted.where(F.col("n") > 0).write.format("delta").mode(mode).save(table)
    spark.sql(f"MERGE INTO delta.`{table}` t USING (SELECT 1 AS third) s ON t.third = s.third WHEN MATCHED THEN DELETE")
    spark.read.format("delta").load(table).orderBy("n").collect()
