"""Fixtures of the tests that run pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from devstack.demo_data import load_cdnow, load_flight_logs
from devstack.kafka import KafkaServer
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.integration.counted_orders import Database, counted_orders
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess, Start
from pipeline_assets_tests.integration.topics import Topic

CONNECTIONS = Path(__file__).parents[2] / "configs" / "connections.json"


@pytest.fixture(scope="session")
def sources(postgres: PostgresServer, s3: S3Server) -> dict[str, str]:
    """PostgreSQL and S3 with CDNOW's purchases and a month of flights; returns the environment to reach them."""
    load_flight_logs(s3)
    load_cdnow(postgres, s3)
    return {**postgres.environment, **s3.environment}


@pytest.fixture
def reach_sources(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the reference connections reach ``sources``."""
    for name, value in sources.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def database(postgres: PostgresServer, reach_sources: None) -> Iterator[Database]:
    """A database with a table that counts how often it is read."""
    with counted_orders(postgres) as opened:
        yield opened


@pytest.fixture
def topic(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Topic]:
    """A topic of the test's own, on the broker that the reference connections reach."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    made = Topic(kafka).make()
    yield made
    made.delete()


@pytest.fixture
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: Any) -> Iterator[Location]:
    """A code location in a folder of its own, on the test session's Spark."""
    # Not DagsterInstance.ephemeral() alone: that leaves its folder to the garbage collector, with a warning.
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as instance:
        found = Location(tmp_path, instance)
        write_config(found.configs, CONNECTIONS.read_text(), "connections.json")
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def start(location: Location, tmp_path: Path) -> Iterator[Start]:
    """Starts the job ``stream`` of the location in a process of its own."""
    started: list[JobProcess] = []

    def begin() -> JobProcess:
        home = tmp_path / "dagster_home"
        home.mkdir(exist_ok=True)
        environment = {**location.environment, "DAGSTER_HOME": str(home), "SPARK_MASTER": "local[2]"}
        started.append(JobProcess("stream", environment, tmp_path / f"run{len(started)}.log"))
        return started[-1]

    yield begin
    for process in started:
        process.kill_all()
