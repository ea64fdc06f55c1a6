"""The JARs that Spark needs beside its own: which, and where they are once they have been downloaded."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.settings import cache_folder
from pipeline_assets.spark.java_options import without_remote

PACKAGES = (
    "io.delta:delta-spark_4.2_2.13:4.4.0",
    "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0",
    "org.apache.hadoop:hadoop-aws:3.5.0",
    "org.postgresql:postgresql:42.7.14",
    # The newest that is published; it reads and writes Avro under Spark 4.2.
    "org.apache.spark:spark-avro_2.13:4.1.1",
    # What hadoop-aws uses of the AWS SDK, in place of its bundle of all AWS services (640 MB).
    "software.amazon.awssdk:s3:2.35.4",
    "software.amazon.awssdk:s3-transfer-manager:2.35.4",
    "software.amazon.awssdk:sts:2.35.4",
    "software.amazon.awssdk:apache-client:2.35.4",
    "software.amazon.awssdk:netty-nio-client:2.35.4",
)
EXCLUDES = (
    "software.amazon.awssdk:bundle",
    # PySpark brings these itself.
    "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime",
)


def resolve_jars() -> list[Path]:
    """Return the JARs that sessions need, downloading them the first time.

    spark-submit resolves ``PACKAGES`` (repositories and proxies as in its spark-defaults.conf). That takes
    seconds even when nothing is to be downloaded, so the list is remembered, and used for as long as all its
    files exist.
    """
    if jars := remembered_jars():
        return jars
    import fcntl

    remembered = _jar_list_file()
    remembered.parent.mkdir(parents=True, exist_ok=True)
    # Several processes of one run may get here together, and Ivy's cache is not safe against that.
    with remembered.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars := remembered_jars():
            return jars
        jars = _resolve_with_spark_submit()
        written = remembered.with_suffix(f".{os.getpid()}")
        written.write_text("".join(f"{path}\n" for path in jars), encoding="utf-8")
        written.replace(remembered)
    return jars


def _jar_list_file() -> Path:
    digest = hashlib.sha256("\n".join((*PACKAGES, "", *EXCLUDES)).encode()).hexdigest()[:16]
    return cache_folder() / f"jars-{digest}.txt"


def remembered_jars() -> list[Path]:
    """Return what ``resolve_jars`` has found before; nothing where it has not, or where a JAR has gone since."""
    try:
        jars = [Path(line) for line in _jar_list_file().read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    return jars if all(jar.is_file() for jar in jars) else []


def _resolve_with_spark_submit() -> list[Path]:
    from pyspark.find_spark_home import _find_spark_home

    # Ivy's own command line, asked for its version, serves as a program that ends at once.
    command = [
        str(Path(_find_spark_home()) / "bin" / "spark-submit"),
        "--verbose",
        "--master=local",
        f"--packages={','.join(PACKAGES)}",
        f"--exclude-packages={','.join(EXCLUDES)}",
        # Spark takes the "token" in a JAR's name for a secret, and would print asterisks.
        "--conf=spark.redaction.regex=(?!)",
        "--class=org.apache.ivy.Main",
        "spark-internal",
        "-version",
    ]
    with without_remote():
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own command)
    output = done.stdout + done.stderr
    found = re.search(r"^\(spark\.jars,(.+)\)$", output, re.MULTILINE)
    jars = [Path(urlsplit(uri).path) for uri in found[1].split(",")] if found else []
    if done.returncode != 0 or not jars or not all(jar.is_file() for jar in jars):
        raise ConfigurationError(
            "Spark's JARs could not be had: that needs Java 17 or 21 and a Maven repository within reach "
            "(spark.jars.repositories or spark.jars.ivySettings in spark-defaults.conf)",
            details="\n".join(output.splitlines()[-20:]),
        )
    return jars
