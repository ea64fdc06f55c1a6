"""The rows of a partition, against Dagster's own windows."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import pytest

from pipeline_assets.dagster_partitions import partitions_definition
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.partitions import Partitions, sql_string


def windows(**config: Any) -> tuple[Partitions, dg.TimeWindowPartitionsDefinition]:
    """Return partitions by the column ``moment``, and what Dagster makes of them."""
    partitions = Partitions.model_validate({**config, "column": "moment"})
    definition = partitions_definition(partitions)
    assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
    return partitions, definition


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "config",
    [
        {"type": "hourly", "start": "2023-12-31T20:00", "end": "2024-01-02T00:00"},
        {"type": "daily", "start": "2024-02-25", "end": "2024-03-05"},
        {"type": "weekly", "start": "2023-12-24", "end": "2024-03-03"},
        {"type": "weekly", "start": "2024-01-01", "end": "2024-03-04"},
        {"type": "monthly", "start": "2023-11-01", "end": "2024-04-01"},
    ],
    ids=["hourly", "daily", "weekly", "weekly_from_monday", "monthly"],
)
def test_a_slice_is_the_window_that_dagster_means(config: dict[str, Any]) -> None:
    partitions, definition = windows(**config)
    keys = definition.get_partition_keys()
    assert len(keys) >= 4
    assert definition.time_window_for_partition_key(keys[0]).start.replace(tzinfo=None) == moment(config["start"])
    assert definition.time_window_for_partition_key(keys[-1]).end.replace(tzinfo=None) == moment(config["end"])
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


@pytest.mark.parametrize(
    ("config", "others"),
    [
        (
            {"type": "hourly", "start": "2024-03-30T22:00", "end": "2024-03-31T06:00", "timezone": "Europe/Berlin"},
            ["2024-03-31-01:30", "2024-03-31-02:00", "2024-03-30-21:00", "2024-03-31-06:00", "2024-03-31"],
        ),
        (
            {"type": "hourly", "start": "2024-10-26T20:00", "end": "2024-10-27T06:00", "timezone": "Europe/Berlin"},
            ["2024-10-27-2:00", "2024-10-27-02:30+0100", "2024-10-27-05:00+0100"],
        ),
        (
            {"type": "daily", "start": "2024-02-25", "end": "2024-03-05"},
            ["2024-3-1", "20240301", "2024-02-30", "2024-02-24", "2024-03-05", "2024-03-01-00:00", "", "eu"],
        ),
        ({"type": "weekly", "start": "2024-01-01", "end": "2024-03-04"}, ["2024-01-10", "2023-12-25"]),
        ({"type": "monthly", "start": "2023-11-01", "end": "2024-04-01"}, ["2024-01-15", "2023-10-01", "2024-01"]),
    ],
    ids=["spring", "autumn", "daily", "weekly", "monthly"],
)
def test_keys_are_those_of_dagster(config: dict[str, Any], others: list[str]) -> None:
    partitions, definition = windows(**config)
    keys = definition.get_partition_keys()
    assert len(keys) >= 4
    for key in keys:
        partitions.check_key(key)
    for key in others:
        assert key not in keys
        with pytest.raises(ConfigurationError, match=f"^there is no partition {re.escape(repr(key))} \\(the "):
            partitions.check_key(key)


def test_static_keys_are_those_of_the_config() -> None:
    partitions = Partitions.model_validate({"type": "static", "values": ["eu", "us"]})
    partitions.check_key("us")
    with pytest.raises(ConfigurationError, match=r"no partition 'EU' \(the static partitions are eu, us\)"):
        partitions.check_key("EU")


@pytest.mark.parametrize(
    "config",
    [
        {"type": "hourly", "start": "2024-10-26T20:00", "end": "2024-10-27T06:00"},
        {"type": "hourly", "start": "2024-03-30T22:00", "end": "2024-03-31T06:00"},
        {"type": "daily", "start": "2024-10-25", "end": "2024-10-29"},
        {"type": "monthly", "start": "2024-02-01", "end": "2024-05-01"},
    ],
    ids=["autumn", "spring", "daily", "monthly"],
)
def test_moments_where_clocks_are_set_back_and_forth(config: dict[str, Any]) -> None:
    partitions, definition = windows(**config, timezone="Europe/Berlin")
    moments = pd.DataFrame({"moment": pd.date_range("2024-01-30", "2024-11-02", freq="30min", tz="UTC")})
    found = 0
    for key in definition.get_partition_keys():
        window = definition.time_window_for_partition_key(key)
        assert partitions.window_of(key) == (window.start, window.end)
        predicate = partitions.slice(key).of({"Moment": "timestamp"}).predicate.replace("`", '"')
        with duckdb.connect() as database:
            rows = database.sql(f"SELECT moment FROM moments WHERE {predicate}").df()["moment"]
        expected = moments["moment"][(moments["moment"] >= window.start) & (moments["moment"] < window.end)]
        assert sorted(rows) == list(expected)
        found += len(expected)
    first, last = definition.get_first_partition_window(), definition.get_last_partition_window()
    assert first is not None
    assert last is not None
    seconds = last.end.timestamp() - first.start.timestamp()  # of one zone, the difference would be the clocks'
    assert found == seconds / 1800, "each moment is in one partition"


def test_what_clocks_show_goes_by_the_clocks() -> None:
    partitions = Partitions.model_validate(
        {"type": "hourly", "start": "2024-10-26T20:00", "timezone": "Europe/Berlin", "column": "moment"}
    )
    for column_type in ("date", "string", "timestamp_ntz", "timestamp without time zone"):
        found = partitions.slice("2024-10-27-02:00").of({"moment": column_type})
        assert found.predicate == "`moment` >= '2024-10-27 02:00:00' AND `moment` < '2024-10-27 03:00:00'"
        with pytest.raises(ConfigurationError, match="an hour that clocks show twice"):
            partitions.slice("2024-10-27-02:00+0100").of({"moment": column_type})


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
        ({"type": "daily", "start": "2024-01-05T06:30"}, "'start' of daily partitions is a date, without a time"),
        ({"type": "hourly", "start": "2024-01-05", "end": "2024-01-05T06:30"}, "'end' of hourly partitions is a full"),
        ({"type": "monthly", "start": "2024-01-15"}, "'start' of monthly partitions is the first of a month"),
        ({"type": "weekly", "start": "2024-01-01", "end": "2024-01-09"}, "start', Monday, and 'end' is a Tuesday"),
        ({"type": "hourly", "start": "2024-01-05T10:00:00+05:00"}, "offset from UTC"),
        ({"type": "hourly", "start": "2024-01-05T00:00+05:00"}, "offset from UTC"),
        ({"type": "daily", "start": "2024-01-05", "end": "2024-01-06T00:00Z"}, "offset from UTC"),
        ({"type": "daily", "start": "2024-01-05", "column": ""}, "at least 1 character"),
        ({"type": "static", "values": []}, "need 'values'"),
        ({"type": "static", "values": ["a", "a"]}, "must differ"),
        ({"type": "static", "values": ["a"], "start": "2024-01-01"}, "take 'values'"),
    ],
)
def test_what_does_not_go_together(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Partitions.model_validate(config)


def test_years_have_the_four_digits_of_dagsters_keys() -> None:
    partitions, definition = windows(type="daily", start="1000-01-01")
    assert definition.get_first_partition_key() == partitions.first_key() == "1000-01-01"
    with pytest.raises(ValueError, match="'start' is in the year 999: .* four digits"):
        windows(type="daily", start="0999-12-31")
