"""Reading Delta tables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.settings import Settings
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.steps import extract_delta
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.extract_delta import FromDeltaLake
from pipeline_assets_tests.steps.frames import frame_of, rows_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def table(context: StepContext, tmp_path: Path) -> str:
    """A table with version 0 (row 1) and version 1 (rows 1 and 2)."""
    path = str(tmp_path / "table")
    for number in (1, 2):
        frame_of(context.spark, "id INT", [(number,)]).write.format("delta").mode("append").save(path)
    return path


def test_delta_now_and_then(table: str, context: StepContext) -> None:
    assert rows_of(FromDeltaLake(path=table).extract(context)) == [(1,), (2,)]
    assert rows_of(FromDeltaLake(path=table, version=0).extract(context)) == [(1,)]


def nowhere(*_: Any) -> None:
    """A file system that only Spark has."""


def refused(*_: Any) -> None:
    raise PipelineExecutionError("the log may not be listed from here")


@pytest.mark.parametrize("look", [None, nowhere, refused])
def test_what_is_rewritten_meanwhile_stays_as_it_was(
    look: Callable[..., None] | None,
    table: str,
    any_spark: SparkSession,
    spark_settings: Settings,
    context: StepContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if look is not None:
        monkeypatch.setattr(extract_delta, "folder_seen_from_here", look)
    settings = dataclasses.replace(context.settings, spark_remote=spark_settings.spark_remote)
    own = dataclasses.replace(context, spark=any_spark, settings=settings, rewritten=True)
    frame = FromDeltaLake(path=table).extract(own)
    frame_of(context.spark, "id INT", [(9,)]).write.format("delta").mode("overwrite").save(table)
    assert rows_of(frame) == [(1,), (2,)]
    assert rows_of(FromDeltaLake(path=table).extract(own)) == [(9,)]


def test_delta_at_a_time(table: str, context: StepContext) -> None:
    first = Path(table) / "_delta_log" / "00000000000000000000.json"
    now = datetime.now(UTC)
    two_days_ago = (now - timedelta(days=2)).timestamp()
    os.utime(first, (two_days_ago, two_days_ago))  # Delta takes a commit's time from its file
    yesterday = (now - timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S")
    method = FromDeltaLake(path=table, timestamp=yesterday)
    assert rows_of(method.extract(context)) == [(1,)]


def test_delta_table_of_the_warehouse(context: StepContext) -> None:
    frame = frame_of(context.spark, "id INT", [(7,)])
    frame.write.format("delta").save(context.settings.table_path("some_pipeline", "orders"))
    assert rows_of(FromDeltaLake(table="some-pipeline.orders").extract(context)) == [(7,)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "/nowhere"}, "there is no Delta table at /nowhere"),
        ({"path": "FOLDER"}, "holds no Delta log"),
        ({"path": "TABLE", "version": 9}, "has no version 9 .versions there: 0 to 1"),
        ({"path": "TABLE", "timestamp": "2001-01-01"}, "has no version for timestamp '2001-01-01'"),
        ({"path": "TABLE", "timestamp": "2999-01-01"}, "has no version for timestamp '2999-01-01'"),
    ],
)
def test_no_such_delta_table(
    config: dict[str, Any], message: str, table: str, context: StepContext, tmp_path: Path
) -> None:
    places = {"TABLE": table, "FOLDER": str(tmp_path)}
    method = FromDeltaLake.model_validate(config | {"path": places.get(config["path"], config["path"])})
    with pytest.raises(ConfigurationError, match=message):
        method.extract(context)
    with pytest.raises(ConfigurationError, match=message):
        method.extract(dataclasses.replace(context, rewritten=True))


@pytest.mark.parametrize("change", ["UPDATE delta.`{}` SET id = 9 WHERE id = 2", "DELETE FROM delta.`{}` WHERE id = 2"])
def test_a_followed_table_that_changes(change: str, table: str, context: StepContext, tmp_path: Path) -> None:
    target = str(tmp_path / "target")

    def copy(**config: Any) -> list[tuple[Any, ...]]:
        frame = FromDeltaLake.model_validate({"path": table, **config}).extract_stream(context)
        writer = frame.writeStream.format("delta").option("checkpointLocation", str(tmp_path / "checkpoint"))
        with spark_errors():
            writer.trigger(availableNow=True).start(target).awaitTermination()
        return sorted(rows_of(context.spark.read.format("delta").load(target)))

    assert copy() == [(1,), (2,)]
    context.spark.sql(change.format(table))
    frame_of(context.spark, "id INT", [(3,)]).write.format("delta").mode("append").save(table)
    with pytest.raises(ConfigurationError) as raised:
        copy()
    assert raised.value.message == (
        f"version 2 of the Delta table at file:{table} changes or removes rows, and a stream reads only what is added: "
        "set 'skipChangeCommits' in the fromDeltaLake step to leave out such versions, or give a new "
        "'checkpointLocation' and empty the target to read the table anew"
    )
    # The same checkpoint goes on: the key is not what it is bound to.
    assert copy(skipChangeCommits=True) == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/data/purchases/", ("data", "purchases")),
        ("s3://data/tables/a", ("s3a", "data", "tables", "a")),
        ("warehouse/a", ("warehouse", "a")),
    ],
)
def test_delta_sources(path: str, parts: tuple[str, ...]) -> None:
    (source,) = FromDeltaLake(path=path).sources()
    assert (source.kind, source.parts) == ("deltalake", parts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "either 'path' or 'table'"),
        ({"path": "/a", "version": 1, "timestamp": "2024-01-01"}, "'version' or 'timestamp', not both"),
        ({"path": "/a", "version": -1}, "greater than or equal to 0"),
        ({"path": "/a", "version": 1, "skipChangeCommits": True}, "'skipChangeCommits' is for a table that a stream"),
        (
            {"path": "/a", "streaming": False, "skipChangeCommits": True},
            "'skipChangeCommits' is for a table that a str",
        ),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FromDeltaLake.model_validate(config)
