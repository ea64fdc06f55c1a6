"""Spark sessions for the tables of failures: one for a module's whole table, embedded and over Connect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pipeline_assets.settings import Settings
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets_tests.conftest import SPARK_CONF

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module", params=["classic", "connect"])
def session(request: pytest.FixtureRequest) -> Iterator[SparkSession]:
    if request.param == "classic":
        request.getfixturevalue("spark")
        settings = Settings(spark_master="local[2]")
    else:
        settings = Settings(spark_remote=request.getfixturevalue("spark_connect_server").remote)
    with SparkSessions(settings, SPARK_CONF) as sessions:
        yield sessions.session(request.node.nodeid, "tests")
