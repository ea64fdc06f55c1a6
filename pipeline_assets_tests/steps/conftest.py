"""What the tests of the step methods share: a context without Dagster, and rows as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devstack.kafka import KafkaServer
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server
from pipeline_assets.connections import Connections, parse_connections
from pipeline_assets.settings import Settings
from pipeline_assets.spark.caching import DataFrameCache
from pipeline_assets.steps.base import StepContext

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql import SparkSession


@pytest.fixture
def context(spark: SparkSession, tmp_path: Path) -> StepContext:
    """A run without partitions and connections."""
    return StepContext(
        pipeline="test",
        run_id="run",
        spark=spark,
        settings=Settings(warehouse=str(tmp_path / "warehouse")),
        connections=Connections(),
        cache=DataFrameCache(),
    )


@pytest.fixture
def with_connections(context: StepContext) -> Callable[[dict[str, Any]], StepContext]:
    """Return the context with the connections of a ``connections.json``."""

    def build(document: dict[str, Any]) -> StepContext:
        return dataclasses.replace(context, connections=Connections(parse_connections(document)))

    return build


@pytest.fixture
def postgres_context(
    postgres: PostgresServer,
    with_connections: Callable[[dict[str, Any]], StepContext],
    monkeypatch: pytest.MonkeyPatch,
) -> StepContext:
    monkeypatch.setenv("TEST_PGPASSWORD", postgres.password)
    entry = {
        "host": postgres.host,
        "port": postgres.port,
        "database": postgres.database,
        "user": postgres.user,
        "password": "env:TEST_PGPASSWORD",
    }
    unreachable = entry | {"port": 1}
    wrong_password = entry | {"password": "env:TEST_WRONG"}
    monkeypatch.setenv("TEST_WRONG", "wrong")
    entries = {"default": entry, "unreachable": unreachable, "wrong": wrong_password}
    return with_connections({"postgres": entries})


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the test's own, with an empty schema ``shop`` to work in."""
    import psycopg

    with psycopg.connect(
        host=postgres.host,
        port=postgres.port,
        dbname=postgres.database,
        user=postgres.user,
        password=postgres.password,
        autocommit=True,
    ) as connection:
        connection.execute("DROP SCHEMA IF EXISTS shop CASCADE; CREATE SCHEMA shop")
        yield connection


@pytest.fixture
def s3_context(
    s3: S3Server, with_connections: Callable[[dict[str, Any]], StepContext], monkeypatch: pytest.MonkeyPatch
) -> StepContext:
    monkeypatch.setenv("TEST_S3_KEY", s3.access_key_id)
    monkeypatch.setenv("TEST_S3_SECRET", s3.secret_access_key)
    entry = {
        "endpoint": s3.endpoint,
        "region": s3.region,
        "accessKeyId": "env:TEST_S3_KEY",
        "secretAccessKey": "env:TEST_S3_SECRET",
    }
    return with_connections({"s3": {"default": entry}})


@pytest.fixture
def kafka_context(kafka: KafkaServer, with_connections: Callable[[dict[str, Any]], StepContext]) -> StepContext:
    return with_connections({"kafka": {"default": {"bootstrapServers": kafka.bootstrap_servers}}})
