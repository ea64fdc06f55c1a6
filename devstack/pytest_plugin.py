"""Fixtures that start a part when a session's first test asks for it, and stop it at the session's end.

Loaded by ``pytest_plugins = ["devstack.pytest_plugin"]`` in a conftest. A conftest may override
``spark_connect_conf`` and ``spark_environment`` to give Spark its packages, conf and credentials.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from devstack.kafka import Kafka, KafkaBroker, KafkaServer
from devstack.parts import Part
from devstack.postgres import Postgres, PostgresServer
from devstack.processes import PartRun
from devstack.prometheus import Prometheus, PrometheusServer, Pushgateway, PushgatewayServer
from devstack.s3 import S3, S3Server
from devstack.spark_servers import (
    OwnSparkCluster,
    SparkCluster,
    SparkConnect,
    SparkConnectServer,
    SparkStandalone,
)
from devstack.stack import ServerT, Stack
from devstack.vault import OwnVault, Vault, VaultServer


@pytest.fixture(scope="session")
def devstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The session's own set of parts."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        # As Ctrl+C does it: pytest then tears the fixtures down, and nothing stays behind.
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    stack = Stack(tmp_path_factory.mktemp("devstack"))
    try:
        yield stack
    finally:
        stack.down()
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def postgres(devstack: Stack) -> Iterator[PostgresServer]:
    yield from _running(devstack, Postgres(), PostgresServer)


@pytest.fixture(scope="session")
def s3(devstack: Stack) -> Iterator[S3Server]:
    yield from _running(devstack, S3(), S3Server)


@pytest.fixture(scope="session")
def kafka(devstack: Stack) -> Iterator[KafkaServer]:
    yield from _running(devstack, Kafka(), KafkaServer)


@pytest.fixture
def own_kafka(devstack: Stack, tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker of the test's own, which it may stop and start again."""
    with _own_run("kafka", tmp_path) as run:
        broker = KafkaBroker.prepare(run)
        broker.start()
        yield broker


@pytest.fixture(scope="session")
def vault(devstack: Stack) -> Iterator[VaultServer]:
    yield from _running(devstack, Vault(), VaultServer)


@pytest.fixture(scope="session")
def pushgateway(devstack: Stack) -> Iterator[PushgatewayServer]:
    yield from _running(devstack, Pushgateway(), PushgatewayServer)


@pytest.fixture
def prometheus_of(devstack: Stack, tmp_path: Path) -> Iterator[Callable[[str], PrometheusServer]]:
    """Starts a Prometheus of the test's own, which scrapes the ``host:port`` that it is given."""
    with _own_run("prometheus", tmp_path) as run:
        yield lambda target: Prometheus(targets=[target]).start(run)


@pytest.fixture
def own_vault(devstack: Stack, tmp_path: Path) -> Iterator[OwnVault]:
    """A Vault of the test's own, which it may seal, pause and stop."""
    with _own_run("vault", tmp_path) as run:
        server = Vault().start(run)
        yield OwnVault(server, run)


@pytest.fixture(scope="session")
def spark_connect_conf() -> Mapping[str, str]:
    """Spark conf of the Connect server; none but the defaults unless a conftest overrides this."""
    return {}


@pytest.fixture(scope="session")
def spark_environment() -> Mapping[str, str]:
    """Environment of the Connect server and the cluster; nothing more unless a conftest overrides this."""
    return {}


@pytest.fixture(scope="session")
def spark_connect_server(
    devstack: Stack, spark_connect_conf: Mapping[str, str], spark_environment: Mapping[str, str]
) -> Iterator[SparkConnectServer]:
    part = SparkConnect(conf=spark_connect_conf, environment=spark_environment)
    yield from _running(devstack, part, SparkConnectServer)


@pytest.fixture(scope="session")
def spark_cluster(devstack: Stack, spark_environment: Mapping[str, str]) -> Iterator[SparkCluster]:
    yield from _running(devstack, SparkStandalone(environment=spark_environment), SparkCluster)


@pytest.fixture
def own_spark_cluster(
    devstack: Stack, tmp_path: Path, spark_environment: Mapping[str, str]
) -> Iterator[OwnSparkCluster]:
    """A cluster of the test's own, whose executors and workers it may kill."""
    with _own_run("spark-cluster", tmp_path) as run:
        yield OwnSparkCluster(SparkStandalone(environment=spark_environment).start(run), run)


@contextmanager
def _own_run(part: str, folder: Path) -> Iterator[PartRun]:
    """Give a run of a part in ``folder``, which is stopped at the end."""
    run = PartRun(part, data=folder / part, logs=folder / f"{part}-logs")
    run.data.mkdir()
    run.logs.mkdir()
    try:
        yield run
    finally:
        run.stop()


def _running(stack: Stack, part: Part, server_type: type[ServerT]) -> Iterator[ServerT]:
    yield stack.server(part, server_type)
    stack.stop(part.name)
