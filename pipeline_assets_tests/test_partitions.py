"""The rows of a partition, against Dagster's own windows."""

from __future__ import annotations

from typing import Any

import dagster as dg
import duckdb
import pytest

from pipeline_assets.assets import partitions_definition
from pipeline_assets.partitions import Partitions, sql_string


@pytest.mark.parametrize(
    "config",
    [
        {"type": "hourly", "start": "2023-12-31T20:00", "end": "2024-01-02T00:00"},
        {"type": "daily", "start": "2024-02-25", "end": "2024-03-05"},
        {"type": "weekly", "start": "2023-12-24", "end": "2024-03-03"},
        {"type": "monthly", "start": "2023-11-01", "end": "2024-04-01"},
    ],
    ids=lambda config: config["type"],
)
def test_a_slice_is_the_window_that_dagster_means(config: dict[str, Any]) -> None:
    partitions = Partitions.model_validate({**config, "column": "moment"})
    definition = partitions_definition(partitions)
    assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
    keys = definition.get_partition_keys()
    assert len(keys) >= 4
    for key in keys:
        window = definition.time_window_for_partition_key(key)
        start, end = (edge.replace(tzinfo=None) for edge in (window.start, window.end))
        predicate = partitions.slice(key).predicate.replace("`", '"')
        row = duckdb.execute(
            f"SELECT count(*), min(moment), max(moment) FROM (SELECT unnest(generate_series(TIMESTAMP '2023-10-01', "
            f"TIMESTAMP '2024-06-01', INTERVAL 30 MINUTE)) AS moment) WHERE {predicate}"
        ).fetchone()
        expected = duckdb.execute(
            "SELECT count(*), min(moment), max(moment) FROM (SELECT unnest(generate_series(TIMESTAMP '2023-10-01', "
            "TIMESTAMP '2024-06-01', INTERVAL 30 MINUTE)) AS moment) WHERE moment >= ? AND moment < ?",
            [start, end],
        ).fetchone()
        assert row == expected


def test_without_a_column_the_key_tells_the_rows() -> None:
    found = Partitions(type="static", values=("o'neil", "b")).slice("o'neil")
    assert found.partition_column == "partition_key"
    assert found.predicate == r"partition_key = 'o\'neil'"


def test_text_as_a_sql_literal() -> None:
    assert sql_string("a'b\\c") == r"'a\'b\\c'"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"type": "daily"}, "need 'start'"),
        ({"type": "daily", "start": "2024-01-01", "values": ["a"]}, "not 'values'"),
        ({"type": "daily", "start": "2024-01-05", "end": "2024-01-05"}, "must be after 'start'"),
        ({"type": "hourly", "start": "2024-01-05T10:00:00+05:00"}, "offset from UTC"),
        ({"type": "static", "values": []}, "need 'values'"),
        ({"type": "static", "values": ["a", "a"]}, "must differ"),
        ({"type": "static", "values": ["a"], "start": "2024-01-01"}, "take 'values'"),
    ],
)
def test_what_does_not_go_together(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Partitions.model_validate(config)
