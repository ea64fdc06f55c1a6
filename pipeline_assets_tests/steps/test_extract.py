"""Reading Delta tables."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.extract import FromDeltaLake
from pipeline_assets_tests.steps.frames import frame_of, rows_of


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
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FromDeltaLake.model_validate(config)
