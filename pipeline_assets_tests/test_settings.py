"""What the environment says, and what is refused of it before anything runs."""

from __future__ import annotations

import pytest

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.settings import Settings


@pytest.mark.parametrize(
    "remote",
    [
        "sc://localhost",
        "sc://localhost:15002",
        "sc://[::1]:15002/",
        "sc://spark.example.com:443/;use_ssl=true;token=a%3D%3D",
        "sc://spark.example.com/;user_id=me;",
    ],
)
def test_an_address_that_pyspark_takes(remote: str) -> None:
    from pyspark.sql.connect.client.core import DefaultChannelBuilder

    DefaultChannelBuilder(remote.rstrip(";"))
    Settings(spark_remote=remote).check()


@pytest.mark.parametrize(
    "remote",
    [
        "localhost:15002",
        "spark://localhost:7077",
        "http://localhost:15002",
        "sc://",
        "sc://:15002",
        "sc://localhost:port-of-spark",
        "sc://localhost:123456",
        "sc://[::1:15002",
        "sc://localhost:15002/path/;token=hidden-word",
        "sc://localhost:15002/;token=hidden-word==",
        "sc://localhost:15002/;hidden-word",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_token(remote: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^SPARK_REMOTE is no address .* expected sc://HOST:PORT") as raised:
        Settings(spark_remote=remote).check()
    assert "hidden-word" not in str(raised.value)


def test_a_path_that_would_be_another_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="^PIPELINE_ASSETS_WAREHOUSE: '~/tables': '~' stands for no home"):
        Settings(warehouse="~/tables").check()
    with pytest.raises(ConfigurationError, match="^PIPELINE_ASSETS_PATH_PREFIX: 's3a:lake' is no URI"):
        Settings(path_prefix="s3a:lake").check()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(warehouse="s3a://key:hidden-word@lake/tables"), "PIPELINE_ASSETS_WAREHOUSE"),
        (Settings(path_prefix="hdfs://etl:hidden-word@host:8020/"), "PIPELINE_ASSETS_PATH_PREFIX"),
    ],
)
def test_a_path_with_a_login_is_refused_and_not_shown(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: a path holds no credentials") as raised:
        settings.check()
    assert "hidden-word" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            Settings(executor="threads"),
            "PIPELINE_ASSETS_EXECUTOR is 'threads': expected 'in_process' or 'multiprocess'",
        ),
        (Settings(log_format="xml"), "PIPELINE_ASSETS_LOG_FORMAT is 'xml': expected 'text' or 'json'"),
        (Settings(log_level="TRACE"), "PIPELINE_ASSETS_LOG_LEVEL is 'TRACE': expected 'DEBUG' or 'INFO' or"),
    ],
)
def test_what_is_none_of_the_choices(settings: Settings, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings.check()
    assert str(raised.value).startswith(told)
