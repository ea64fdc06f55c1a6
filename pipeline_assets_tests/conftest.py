"""Fixtures for all tests: settings in a sandbox, and Spark, embedded and over Connect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pipeline_assets import redaction
from pipeline_assets.settings import Settings
from pipeline_assets.spark.jars import resolve_jars
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets.spark.session_conf import session_conf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytest_plugins = ["devstack.pytest_plugin"]

# Few and small: the tests' data are. To compile code for them takes longer than to interpret it; runs that tests start
# as users do (test_executors, test_spark_work, e2e) compile theirs. With the rule, Spark's optimizer would compute what
# is asked of a few rows, not its tasks.
SPARK_CONF = {
    "spark.sql.shuffle.partitions": "4",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.optimizer.excludedRules": "org.apache.spark.sql.catalyst.optimizer.ConvertToLocalRelation",
    "spark.kafka.producer.cache.timeout": "1s",
    "spark.kafka.producer.cache.evictorThreadRunInterval": "1s",
}
# For every driver that a test starts: most live for seconds, in which the second compiler takes more than it gives.
# With one compiler Java has 48 MB for compiled code, not 240: a server of many tests fills them, and ends.
os.environ.setdefault(
    "SPARK_SUBMIT_OPTS",
    "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC -XX:-UsePerfData",
)
# For the JVM that makes up each one's command line.
os.environ.setdefault("SPARK_LAUNCHER_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData")


@pytest.fixture(autouse=True)
def _no_secret_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test fetches is not masked in the texts of the next."""
    monkeypatch.setattr(redaction, "_known", redaction._Known())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose warehouse and absolute paths are in the test's own folder."""
    return Settings(
        configs=tmp_path / "configs",
        warehouse=str(tmp_path / "warehouse"),
        path_prefix=str(tmp_path / "files"),
        spark_master="local[2]",
    )


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """An embedded session, one JVM for all tests; other SparkSessions in the process borrow it."""
    from pyspark.core.context import SparkContext

    with SparkSessions(Settings(spark_master="local[2]"), SPARK_CONF) as sessions:
        yield sessions.session("tests", "tests")
        gateway = SparkContext._gateway
        assert gateway is not None
        process = gateway.proc.pid
    assert not psutil.pid_exists(process)


@pytest.fixture(scope="session")
def spark_environment() -> Mapping[str, str]:
    """What the Connect server and the cluster get of the environment; the second is for the cluster's executors."""
    options = os.environ["SPARK_SUBMIT_OPTS"]
    return {"SPARK_SUBMIT_OPTS": options, "JAVA_TOOL_OPTIONS": options}


@pytest.fixture(scope="session")
def spark_connect_conf() -> Mapping[str, str]:
    """What the Connect server starts with: the JARs and Delta, as an embedded session has them."""
    jars = ",".join(map(str, resolve_jars()))
    return session_conf(Settings(spark_master="local[2]"), {**SPARK_CONF, "spark.jars": jars})


@pytest.fixture(params=["classic", "connect"])
def spark_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings for an embedded Spark, and again for a Spark Connect server: a test that takes them runs on both."""
    if request.param == "classic":
        request.getfixturevalue("spark")
        return settings
    server = request.getfixturevalue("spark_connect_server")
    return Settings(
        configs=settings.configs,
        warehouse=settings.warehouse,
        path_prefix=settings.path_prefix,
        spark_remote=server.remote,
    )


@pytest.fixture
def any_spark(spark_settings: Settings, request: pytest.FixtureRequest) -> Iterator[SparkSession]:
    """A session of the test's own, embedded and over Connect: a test that takes it runs on both."""
    with SparkSessions(spark_settings, SPARK_CONF) as sessions:
        yield sessions.session(request.node.nodeid, "tests")
