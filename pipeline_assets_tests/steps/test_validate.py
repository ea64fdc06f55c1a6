"""Expectations: each kind counted by hand and, on real data, by DuckDB and pandas; the passes over the data counted."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import duckdb
import pandas as pd
import pytest

from devstack.demo_data import cdnow_customers, cdnow_purchases, flight_logs
from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError, DataValidationError
from pipeline_assets.partitions import Partitions
from pipeline_assets.steps.base import ExpectationResult, Samples, StepContext, ValidateMethod
from pipeline_assets.steps.validate import (
    Expectations,
    ValidateExpression,
    ValidateFreshness,
    ValidateInRange,
    ValidateInSet,
    ValidateMatches,
    ValidateNotNull,
    ValidateReferential,
    ValidateRowCount,
    ValidateSchema,
    ValidateUnique,
)
from pipeline_assets.validation import raise_for_failures
from pipeline_assets_tests.config_documents import batch, extract_file
from pipeline_assets_tests.planning.bench import planned
from pipeline_assets_tests.spark_jobs import wait_for_events
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NAN, INF = float("nan"), float("inf")
ROWS = [(1, 5), (2, -1), (3, None), (None, 7)]
SCHEMA = "id INT, amount INT"


def only(step: ValidateMethod, frame: DataFrame, context: StepContext, **references: DataFrame) -> ExpectationResult:
    """Return the result of a step with one expectation, after the look at the schema that comes before."""
    step.check_schema(frame, references, context)
    (result,) = step.validate_frame(step.compared(frame, references), context)
    return result


def failed(step: ValidateMethod, frame: DataFrame, context: StepContext, **references: DataFrame) -> tuple[bool, int]:
    result = only(step, frame, context, **references)
    return result.passed, result.failed


@pytest.mark.parametrize(
    ("method", "config", "text"),
    [
        ("notNull", {"columns": ["id"]}, "id is not null (1 of 4 do not, 25 %)"),
        ("unique", {"columns": ["kind"]}, "kind is unique (2 of 4 rows repeat another)"),
        ("rowCount", {"min": 5}, "there are at least 5 rows (there are 4)"),
        (
            "freshness",
            {"column": "at", "maxAge": "1 day"},
            "the newest at is at most 1 day old (it is DAYS old)",
        ),
        (
            "freshness",
            {"column": "nothing", "maxAge": "1 day"},
            "the newest nothing is at most 1 day old (no row has one)",
        ),
        (
            "schema",
            {"columns": {"id": "BIGINT", "name": "STRING"}},
            "the columns include id BIGINT, name STRING (id is int, name is not there)",
        ),
    ],
)
def test_what_the_error_says(
    method: str, config: dict[str, Any], text: str, context: StepContext, tmp_path: Path
) -> None:
    rows = [(number, "a" if number else "b", dt.datetime(2024, 1, 1), None) for number in (None, 1, 2, 3)]
    frame = frame_of(context.spark, "id INT, kind STRING, at TIMESTAMP, nothing TIMESTAMP", rows)
    check = {"type": "validate", "method": method, "config": config}
    step = planned(tmp_path, batch("p", extract_file("rows", "/rows.csv"), check)).steps[1]
    with pytest.raises(DataValidationError) as failure:
        raise_for_failures(step, cast(ValidateMethod, step.method).validate_frame(frame, context))
    said = str(failure.value).splitlines()[0].removeprefix("the data do not meet what is expected: ")
    assert re.sub(r"\d+ days, [\d:]+", "DAYS", said) == text


def test_several_expectations_of_both_forms(context: StepContext) -> None:
    frame = frame_of(context.spark, SCHEMA, ROWS)
    method = Expectations.model_validate(
        {
            "expectations": {
                "has id": "id IS NOT NULL",
                "positive": {"expect": "inRange", "column": "amount", "min": 1, "severity": "warn"},
                "any": "true -- always",
                "one id each": {"expect": "unique", "columns": ["id"]},
                "columns": {"expect": "schema", "columns": {"id": "int", "amount": "INTEGER"}},
            },
            "minRows": 5,
            "maxRows": 5,
        }
    )
    method.check_schema(frame, {}, context)
    results = {result.name: result for result in method.validate_frame(frame, context)}
    assert {name: (found.passed, found.failed, found.total) for name, found in results.items()} == {
        "has id": (False, 1, 4),
        "positive": (False, 2, 4),
        "any": (True, 0, 4),
        "one id each": (True, 0, 4),
        "columns": (True, 0, 2),
        "minRows": (False, 1, 4),
        "maxRows": (True, 0, 4),
    }
    assert results["positive"].severity == "warn"
    assert results["has id"].severity == "error"
    assert results["positive"].percent == 50.0
    assert results["positive"].samples == Samples(("id", "amount"), (("2", "-1"), ("3", None)))
    assert results["any"].samples is None
    assert set(method.expectation_names()) == set(results)


ALL_KINDS: dict[str, Any] = {
    "condition": "v > 0",
    "set": {"expect": "notNull", "columns": ["v"]},
    "in range": {"expect": "inRange", "column": "v", "min": 0},
    "in set": {"expect": "inSet", "column": "v", "values": [1, 2]},
    "like": {"expect": "matches", "column": "t", "pattern": "a+"},
    "in words": {"expect": "expression", "condition": "v = w"},
    "alone": {"expect": "unique", "columns": ["v"]},
    "known": {"expect": "referential", "columns": ["v"], "references": "other"},
}


def test_no_rows(context: StepContext) -> None:
    frame = frame_of(context.spark, "v INT, w INT, t STRING, at TIMESTAMP", [])
    step = Expectations.model_validate({"expectations": ALL_KINDS, "minRows": 0})
    others = {"other": frame}
    step.check_schema(frame, others, context)
    results = step.validate_frame(step.compared(frame, others), context)
    assert len(results) == len(ALL_KINDS) + 1
    assert [(found.passed, found.failed, found.total, found.percent) for found in results] == [(True, 0, 0, 0.0)] * 9
    assert failed(ValidateRowCount(min=1), frame, context) == (False, 1)
    assert failed(ValidateFreshness(column="at", max_age="1 day"), frame, context) == (False, 0)


def test_not_null(context: StepContext) -> None:
    frame = frame_of(
        context.spark, "a DOUBLE, b STRUCT<`c.d`: INT>", [(1.0, (1,)), (NAN, (2,)), (None, None), (4.0, (None,))]
    )
    assert failed(ValidateNotNull(columns=("a",)), frame, context) == (False, 1)
    assert failed(ValidateNotNull(columns=("A", "b.C.D")), frame, context) == (False, 2)


def test_unique(context: StepContext) -> None:
    rows = [(1, "x", NAN), (1, "x", NAN), (1, "y", 0.0), (None, "x", -0.0), (None, "x", None), (1, "x", 5.0)]
    frame = frame_of(context.spark, "a INT, b STRING, c DOUBLE", rows)
    result = only(ValidateUnique(columns=("a", "b")), frame, context)
    assert (result.passed, result.failed, result.total) == (False, 2, 6)
    assert result.samples == Samples(("a", "b", "number of rows"), (("1", "x", "3"),))
    hidden = only(ValidateUnique(columns=("a", "b"), mask_columns=("b",)), frame, context)
    assert hidden.samples == Samples(("a", "b", "number of rows"), (("1", "*********", "3"),))
    assert failed(ValidateUnique(columns=("c",)), frame, context) == (False, 2)


@pytest.mark.parametrize(
    ("schema", "values", "config", "count"),
    [
        ("DOUBLE", [0.0, 1.0, 1.5, NAN, INF, None], {"min": 0, "max": 1}, 4),
        ("DOUBLE", [0.0, 1.0, NAN, None], {"min": 0, "max": 1, "exclusive": True}, 4),
        ("DOUBLE", [NAN, INF, None], {"min": 0, "allowNull": True}, 1),
        ("FLOAT", [0.1, 0.2], {"min": 0.1, "max": 0.1}, 1),
        ("INT", [0, 1, 2], {"min": 0.5}, 1),
        ("BIGINT", [2**53, 2**53 + 1], {"max": 2**53}, 1),
        ("INT", [0, 1, 2], {"min": "1", "max": "1.5"}, 2),
        ("DECIMAL(20,2)", [Decimal("0.10"), Decimal("0.11"), None], {"max": 0.1}, 2),
        ("DECIMAL(38,0)", [Decimal(10**37), Decimal(1)], {"max": str(10**37 - 1)}, 1),
        ("STRING", ["a", "b", "c"], {"min": "b", "max": "b"}, 2),
        ("DATE", [dt.date(2024, 1, 31), dt.date(2024, 2, 1)], {"max": "2024-01-31"}, 1),
        ("TIMESTAMP", [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], {"min": "2024-01-01T00:00:00.000001+00:00"}, 1),
        ("TIMESTAMP", [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], {"min": "2024-01-01T01:00:00+01:00"}, 0),
        ("TIMESTAMP_NTZ", [dt.datetime(2024, 1, 1)], {"min": "2024-01-01", "exclusive": True}, 1),
    ],
)
def test_in_range(schema: str, values: list[Any], config: dict[str, Any], count: int, context: StepContext) -> None:
    frame = frame_of(context.spark, f"`the value` {schema}", [(value,) for value in values])
    step = ValidateInRange.model_validate({"column": "the value", **config})
    assert failed(step, frame, context) == (count == 0, count)


@pytest.mark.parametrize(
    ("schema", "values", "config", "count"),
    [
        ("STRING", ["1", "true", "x", None], {"values": ["1", 2, "x"]}, 2),
        ("STRING", ["x", None], {"values": ["x"], "allowNull": True}, 0),
        ("INT", [1, 2, None], {"values": ["1", 3]}, 2),
        ("BOOLEAN", [True, False], {"values": [True]}, 1),
        ("DOUBLE", [0.1, NAN], {"values": [0.1]}, 1),
        ("DECIMAL(5,2)", [Decimal("0.10"), Decimal("0.2")], {"values": [0.1, 7]}, 1),
        ("DATE", [dt.date(2024, 1, 1), dt.date(2024, 1, 2)], {"values": ["2024-01-02"]}, 1),
    ],
)
def test_in_set(schema: str, values: list[Any], config: dict[str, Any], count: int, context: StepContext) -> None:
    frame = frame_of(context.spark, f"v {schema}", [(value,) for value in values])
    step = ValidateInSet.model_validate({"column": "v", **config})
    assert failed(step, frame, context) == (count == 0, count)


def test_matches_means_the_whole_text(context: StepContext) -> None:
    texts = ["AB1", "AB12 ", "xAB1", "AB1\n", "", None]
    frame = frame_of(context.spark, "`a.b` STRING, n INT", [(text, 10) for text in texts])
    assert failed(ValidateMatches(column="a.b", pattern="[A-Z]{2}[0-9]+|"), frame, context) == (False, 4)
    assert failed(ValidateMatches(column="a.b", pattern="(?i)ab1", allow_null=True), frame, context) == (False, 4)
    assert failed(ValidateMatches(column="n", pattern="1\\d"), frame, context) == (True, 0)


def test_expression(context: StepContext) -> None:
    frame = frame_of(context.spark, SCHEMA, ROWS)
    assert failed(ValidateExpression(condition="amount > 0 OR id = 2"), frame, context) == (False, 1)


def test_row_count(context: StepContext) -> None:
    frame = frame_of(context.spark, SCHEMA, ROWS)
    assert failed(ValidateRowCount(min=4, max=4), frame, context) == (True, 0)
    assert failed(ValidateRowCount(min=6), frame, context) == (False, 2)
    assert failed(ValidateRowCount(max=3), frame, context) == (False, 1)


def test_freshness(context: StepContext) -> None:
    now = dt.datetime.now(dt.UTC)
    rows = [(now - dt.timedelta(hours=hours), (now - dt.timedelta(hours=hours)).date()) for hours in (5, 100)]
    frame = frame_of(context.spark, "at TIMESTAMP, day DATE", [*rows, (None, None)])
    assert failed(ValidateFreshness(column="at", max_age="1 day"), frame, context) == (True, 0)
    stale = only(ValidateFreshness(column="at", max_age="4 hours"), frame, context)
    assert (stale.passed, stale.failed) == (False, 3)
    assert 5 * 3600 <= float(stale.facts["age_seconds"]) < 6 * 3600
    assert failed(ValidateFreshness(column="day", max_age="3 days"), frame, context) == (True, 0)
    assert failed(ValidateFreshness(column="at", max_age="1 day"), frame.where("at IS NULL"), context) == (False, 1)


def test_referential(context: StepContext) -> None:
    frame = frame_of(context.spark, "id INT, parent BIGINT, kind STRING", [(1, None, "a"), (2, 1, "a"), (3, 9, "b")])
    step = ValidateReferential(columns=("parent",), references="rows", referenced_columns=("id",))
    result = only(step, frame, context, rows=frame)
    assert (result.failed, result.total) == (1, 3)
    assert result.samples == Samples(("id", "parent", "kind"), (("3", "9", "b"),))
    pairs = ValidateReferential(columns=("id", "kind"), references="known")
    twice = frame_of(context.spark, "id INT, kind STRING", [(1, "a"), (1, "a"), (2, "b"), (None, None)])
    assert only(pairs, frame, context, known=twice).failed == 2
    assert only(pairs, frame, context, known=twice).total == 3, "no row is counted twice"


def test_schema(context: StepContext) -> None:
    frame = frame_of(context.spark, "id BIGINT, `a b` DECIMAL(10,2), tags ARRAY<STRING>", [])
    right = {"ID": "bigint", "a b": "DECIMAL(10,2)", "tags": "ARRAY<STRING>"}
    assert failed(ValidateSchema(columns=right, allow_others=False), frame, context) == (True, 0)
    wrong = ValidateSchema(columns={"id": "INT", "name": "STRING", "tags": "ARRAY<STRING>"}, allow_others=False)
    result = only(wrong, frame, context)
    assert (result.passed, result.failed, result.total) == (False, 3, 3)
    assert result.samples is not None
    assert result.samples.rows == (("id", "int", "bigint"), ("name", "string", None), ("a b", None, "decimal(10,2)"))


def test_schema_with_any_type(any_spark: SparkSession, context: StepContext) -> None:
    ddl = "m MAP<INT, STRING>, `a``b` STRUCT<`c>d`: MAP<DATE, ARRAY<INT>>>, v VARIANT"
    frame = any_spark.sql(f"SELECT s.* FROM (SELECT CAST(NULL AS STRUCT<{ddl}>) AS s)")
    columns = {"m": "MAP<INT, STRING>", "a`b": "STRUCT<`c>d`: MAP<DATE, ARRAY<INT>>>", "v": "VARIANT"}
    assert failed(ValidateSchema(columns=columns, allow_others=False), frame, context) == (True, 0)
    result = only(ValidateSchema(columns={"m": "MAP<BIGINT, STRING>"}), frame, context)
    assert result.samples is not None
    assert result.samples.rows == (("m", "map<bigint,string>", "map<int,string>"),)


def test_sums_over_micro_batches() -> None:
    """Rows are others in each, columns are the same ones; what has failed once has failed."""
    bad, good = Samples(("id",), (("7",),)), None
    rows = ExpectationResult("r", False, 2, 10, facts={"newest": "then"}, samples=bad)
    assert rows.plus(ExpectationResult("r", True, 0, 5, samples=good)) == ExpectationResult(
        "r", False, 2, 15, facts={"newest": "then"}, samples=bad
    )
    columns = ExpectationResult("c", False, 1, 4, samples=bad, of_columns=True)
    assert columns.plus(columns) == columns
    assert columns.plus(ExpectationResult("c", True, 0, 4, of_columns=True)) == columns


class TestSamples:
    def test_are_limited(self, context: StepContext) -> None:
        frame = context.spark.range(0, 1000, 1, 4).selectExpr("id", "id % 2 = 0 AS ok")
        for size in (0, 3, 100):
            result = only(ValidateExpression(condition="ok", sample_size=size), frame, context)
            assert result.failed == 500
            rows = result.samples.rows if result.samples else ()
            assert len(rows) == size
            assert all(text == "false" and int(str(number)) % 2 == 1 for number, text in rows)

    def test_hide_what_is_not_to_be_seen(self, context: StepContext) -> None:
        row = (1, "a@b.example", "hunter2", "url=postgres://u:hunter3@h/d", (("Main", "hunter4"),), b"\x00\xff", None)
        schema = (
            "id INT, email STRING, api_key STRING, note STRING, place ARRAY<STRUCT<street: STRING, password: STRING>>, "
            "raw BINARY, nothing VOID"
        )
        frame = frame_of(context.spark, schema, [row])
        result = only(ValidateExpression(condition="false", mask_columns=("EMAIL", "id")), frame, context)
        assert result.samples is not None
        shown = dict(zip(result.samples.columns, result.samples.rows[0], strict=True))
        assert shown["email"] == shown["id"] == shown["api_key"] == "*********"
        assert "hunter" not in str(result)
        assert "Main" in str(shown["place"])
        assert (shown["raw"], shown["nothing"]) == ("0x00FF", None)
        nested = ValidateExpression(condition="false", mask_columns=("s.x",))
        inside = frame_of(context.spark, "s STRUCT<x: STRING, y: INT>", [(("secret", 1),)])
        found = only(nested, inside, context).samples
        assert found == Samples(("s",), (("*********",),)), "all of a struct that has something to hide"

    @pytest.mark.parametrize(
        ("mask", "hidden"),
        [
            ("address", {"address.Email", "address.geo"}),
            ("ADDRESS.email", {"address.Email"}),
            ("address.geo.lat", {"address.geo"}),
            ("addres", {"addres"}),
            ("a.b", {"a.b"}),
            ("a.b.c", {"a.b"}),
        ],
    )
    def test_hide_nested_columns_under_their_paths(self, mask: str, hidden: set[str], context: StepContext) -> None:
        schema = "address STRUCT<email: STRING, geo: STRUCT<lat: INT>>, addres STRING, `a.b` STRUCT<c: INT>"
        frame = frame_of(context.spark, schema, [(("a@b.example", (1,)), "x", (2,))] * 2)
        columns = ("address.Email", "address.geo", "addres", "a.b")
        samples = only(ValidateUnique(columns=columns, mask_columns=(mask,)), frame, context).samples
        assert samples is not None
        shown = dict(zip(samples.columns, samples.rows[0], strict=True))
        assert {name for name, text in shown.items() if text == "*********"} == hidden


def test_columns_of_one_name(context: StepContext) -> None:
    """As a join may yield them."""
    one = frame_of(context.spark, "id INT, v INT", [(1, 1)])
    frame = one.join(one.selectExpr("id", "v AS w"), one["id"] == one["id"])
    result = only(ValidateExpression(condition="v > 1"), frame, context)
    assert result.samples == Samples(("v", "w"), (("1", "1"),))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ValidateNotNull(columns=("idd",)), "no column 'idd', did you mean 'id'"),
        (ValidateNotNull(columns=("s.cty",)), "did you mean 's.city'"),
        (ValidateUnique(columns=("amuont",)), "did you mean 'amount'"),
        (ValidateInRange(column="x", min=1), "no column 'x'"),
        (ValidateInSet(column="x", values=("a",)), "no column 'x'"),
        (ValidateMatches(column="x", pattern="a"), "no column 'x'"),
        (ValidateFreshness(column="x", max_age="1 day"), "no column 'x'"),
        (ValidateFreshness(column="id", max_age="1 day"), "needs a date or a timestamp"),
        (ValidateExpression(condition="amuont > 1"), "did you mean 'amount'"),
        (ValidateExpression(condition="amount"), "expected a condition"),
        (ValidateExpression(condition="count(*) > 1"), ""),
        (ValidateExpression(condition="amount >"), "Syntax error"),
        (ValidateInRange(column="id", min="many"), "'many' can't be compared with column 'id', which is int"),
        (ValidateInRange(column="at", max=5), "5 can't be compared with column 'at'"),
        (ValidateInRange(column="text", min=18), "18 can't be compared with column 'text', which is string"),
        (ValidateInRange(column="text", min="a", max=1.5), "1.5 can't be compared with column 'text'"),
        (ValidateInRange(column="at", max="yesterday"), "ISO text"),
        (ValidateInSet(column="id", values=(True,)), "True can't be compared"),
        (ValidateInSet(column="s", values=("a",)), "'a' can't be compared"),
        (ValidateMatches(column="at", pattern="(["), "no regular expression"),
        (ValidateSchema(columns={"id": "BIGIT"}), "none of Spark SQL"),
        (ValidateSchema(columns={"id": "INT, x INT"}), "none of Spark SQL"),
        (ValidateSchema(columns={"id": "INT>"}), "none of Spark SQL"),
        (ValidateSchema(columns={"text": "ARRAY<varchar(5)>"}), "without its length: write STRING"),
        (
            ValidateReferential(columns=("id",), references="other", referenced_columns=("idd",)),
            "'other' has no column",
        ),
        (ValidateReferential(columns=("id",), references="other", referenced_columns=("at",)), "different types"),
        (
            ValidateReferential(columns=("fine",), references="other", referenced_columns=("wide",)),
            "'fine' of 'input' is decimal(38,18), 'wide' of 'other' is decimal(38,0), and no DECIMAL has",
        ),
        (ValidateRowCount(min=1, mask_columns=("amont",)), "did you mean 'amount'"),
    ],
)
def test_what_does_not_fit_is_found_without_the_data(step: ValidateMethod, message: str, context: StepContext) -> None:
    ddl = (
        "id INT, amount INT, at TIMESTAMP, s STRUCT<city: STRING>, text STRING, wide DECIMAL(38,0), fine DECIMAL(38,18)"
    )
    frame = frame_of(context.spark, ddl, [])
    named = Expectations.model_validate(
        {
            "expectations": {"this one": {"expect": step.method, **_own(step)}},
            "maskColumns": list(step.mask_columns),
        }
    )
    for tried in (step, named):
        with pytest.raises(ConfigurationError) as caught:
            tried.check_schema(frame, {"other": frame}, context)
        assert message in str(caught.value)
        assert tried is step or step.mask_columns or "expectation 'this one': " in caught.value.message
    if message.startswith("no column"):
        assert isinstance(caught.value, DataFrameResolutionError)


def _own(step: ValidateMethod) -> dict[str, Any]:
    of_steps = ValidateMethod.model_fields.keys()
    return step.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=set(of_steps))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to check"),
        ({"minRows": 3, "maxRows": "2"}, "minRows .3. is greater than maxRows .2."),
        ({"expectations": {"minRows": "true"}}, "can't be called 'minRows'"),
        ({"minRows": -1}, "greater than or equal to 0"),
        ({"minRows": 1, "blocking": True, "onFailure": "warn"}, "say the same"),
        ({"minRows": 1, "quarantinePath": "/x"}, "needs onFailure 'quarantine'"),
        ({"minRows": 1, "onFailure": "quarantine"}, "expectation 'minRows' .* is not about single rows"),
        (
            {
                "expectations": {"a": {"expect": "notNull", "columns": ["a"], "severity": "warn"}},
                "onFailure": "quarantine",
            },
            "every expectation has severity 'warn'",
        ),
        ({"expectations": {"a": {"expect": "inRange", "column": "a"}}}, "there is no range"),
        *(
            ({"expectations": {"a": {"expect": "inRange", "column": "a", **bounds}}}, message)
            for bounds, message in (
                ({"min": 2, "max": 1.5}, "min .2. is greater than max .1.5."),
                ({"min": "2024-12-31", "max": "2024-01-01"}, "min .2024-12-31. is greater than max .2024-01-01."),
                ({"min": "2024-01-01 00:00:01", "max": "2024-01-01"}, "is greater than max"),
                ({"min": "a", "max": "a", "exclusive": True}, "both a, and with 'exclusive' no value is between"),
                ({"min": 1, "max": 1.0, "exclusive": True}, "both 1, and with 'exclusive' no value is between"),
            )
        ),
        ({"expectations": {"a": {"expect": "rowCount"}}}, "there is no bound"),
        ({"expectations": {"a": {"expect": "freshness", "column": "a", "maxAge": "soon"}}}, "pattern"),
        ({"minRows": 1, "sampleSize": 101}, "less than or equal to 100"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expectations.model_validate(config)


@pytest.mark.parametrize(
    "bounds", [("9", "10"), ("b", "a"), ("2024-01-02T00:00+02:00", "2024-01-01T23:00"), ("2024-01-01", "2024-01-01")]
)
def test_a_range_of_which_the_column_tells_how_it_is_ordered(bounds: tuple[str, str]) -> None:
    least, most = bounds
    assert ValidateInRange(column="a", min=least, max=most).min == least


def test_quarantine_is_for_single_rows() -> None:
    with pytest.raises(ValueError, match="is not about single rows: give it a validate step of its own"):
        ValidateUnique.model_validate({"columns": ["a"], "onFailure": "quarantine"})


@pytest.mark.parametrize(
    ("condition", "changing"),
    [
        ("at <= current_timestamp()", "current_timestamp()"),
        ("at > CURRENT_TIMESTAMP - INTERVAL 10 MINUTES", "CURRENT_TIMESTAMP"),
        ("CAST(at AS DATE) = DATE 'today'", "'today'"),
        ("rand() < 0.5", "rand()"),
    ],
)
def test_quarantine_wants_the_same_answer_each_time(condition: str, changing: str) -> None:
    said = re.escape(f"the same answer about a row each time, and {changing} in the")
    with pytest.raises(ValueError, match=f"{said} condition .*withColumns"):
        ValidateExpression.model_validate({"condition": condition, "onFailure": "quarantine"})
    named = {"expectations": {"fine": "at IS NOT NULL", "recent": condition}}
    with pytest.raises(ValueError, match=f"{said} expectation 'recent'"):
        Expectations.model_validate({**named, "onFailure": "quarantine"})
    # These ask once.
    Expectations.model_validate({**named, "onFailure": "warn"})
    told = {"recent": {"expect": "expression", "condition": condition, "severity": "warn"}}
    Expectations.model_validate({"expectations": {"fine": "at IS NOT NULL", **told}, "onFailure": "quarantine"})


def test_good_and_bad_rows(context: StepContext) -> None:
    frame = frame_of(context.spark, SCHEMA, ROWS)
    step = Expectations.model_validate(
        {
            "expectations": {
                "known": "id IS NOT NULL",
                "amount is not null": {"expect": "notNull", "columns": ["amount"]},
                "small": {"expect": "inRange", "column": "amount", "max": 3, "severity": "warn"},
            },
            "onFailure": "quarantine",
        }
    )
    assert rows_of(step.good_rows(frame, context)) == [(1, 5), (2, -1)]
    bad = step.bad_rows(frame, context).collect()
    assert {(row.id, row.amount, tuple(row.quarantine_reasons), row.quarantine_run_id) for row in bad} == {
        (3, None, ("amount is not null",), "run"),
        (None, 7, ("known: id IS NOT NULL",), "run"),
    }
    assert all(row.quarantined_at is not None for row in bad)
    with pytest.raises(ConfigurationError, match="'quarantine_reasons'"):
        step.check_schema(frame.selectExpr("*", "1 AS Quarantine_Reasons"), {}, context)
    named = frame.selectExpr("*", "1 AS Partition_Key")
    step.check_schema(named, {}, context)
    partition = Partitions(type="static", values=("a",), column="id").slice("a")
    with pytest.raises(ConfigurationError, match="'partition_key', which rows in quarantine get: rename it"):
        step.check_schema(named, {}, dataclasses.replace(context, partition=partition))


KNOWN: dict[str, Any] = {
    "expectations": {
        "positive": "amount > 0",
        "a.known": {"expect": "referential", "columns": ["id"], "references": "customers"},
        "both": {"expect": "referential", "columns": ["id", "amount"], "references": "paid", "severity": "warn"},
    },
    "onFailure": "quarantine",
}
ORDERS: Rows = [(1, 5), (2, 5), (2, 6), (2, -1), (3, 7), (None, 8)]


def test_rows_without_their_counterpart_are_put_aside(any_spark: SparkSession, context: StepContext) -> None:
    frame = frame_of(any_spark, SCHEMA, ORDERS)
    step = Expectations.model_validate(KNOWN)
    references = {
        "customers": frame_of(any_spark, "id INT", [(1,), (1,), (3,), (None,)]),
        "paid": frame_of(any_spark, SCHEMA, [(1, 5)]),
    }
    step.check_schema(frame, references, context)
    compared = step.compared(frame, references)
    assert {(one.name, one.failed, one.total) for one in step.validate_frame(compared, context)} == {
        ("positive", 1, 6),
        ("a.known", 3, 6),
        ("both", 4, 6),
    }
    assert step.good_rows(compared, context).columns == ["id", "amount"]
    assert rows_of(step.good_rows(compared, context)) == in_order([(1, 5), (3, 7), (None, 8)])
    unknown = "a.known: id is in customers (id)"
    expected = [(2, 5, [unknown]), (2, 6, [unknown]), (2, -1, ["positive: amount > 0", unknown])]
    bad = step.bad_rows(compared, context)
    assert bad.columns == ["id", "amount", "quarantine_reasons", "quarantine_run_id", "quarantined_at"]
    assert rows_of(bad.select("id", "amount", "quarantine_reasons")) == in_order(expected)


def test_keys_of_a_finer_type_double_no_row(context: StepContext) -> None:
    """Compared as DOUBLE, both of the known numbers are that of the row."""
    frame = frame_of(context.spark, "id DOUBLE", [(2.0**53,)])
    known = frame_of(context.spark, "id BIGINT", [(2**53,), (2**53 + 1,)])
    step = ValidateReferential.model_validate({"columns": ["id"], "references": "known", "onFailure": "quarantine"})
    step.check_schema(frame, {"known": known}, context)
    assert rows_of(step.good_rows(step.compared(frame, {"known": known}), context)) == [(2.0**53,)]


def test_the_same_rows_are_put_aside_again(any_spark: SparkSession, context: StepContext) -> None:
    """Customer 2 has come, and 3 has gone, since rows were put aside."""
    frame = frame_of(any_spark, SCHEMA, ORDERS)
    step = Expectations.model_validate(KNOWN)
    before, after = (frame_of(any_spark, "id INT", rows) for rows in ([(1,), (3,)], [(1,), (2,)]))
    paid = frame_of(any_spark, SCHEMA, ORDERS[1:])
    first = step.compared(frame, {"customers": before, "paid": paid})
    bad = step.bad_rows(first, context)
    second = step.recalled(frame, {"customers": after, "paid": paid}, bad)
    assert rows_of(step.good_rows(second, context)) == in_order([(1, 5), (3, 7), (None, 8)])
    shown = ("id", "amount", "quarantine_reasons")
    assert rows_of(step.bad_rows(second, context).select(*shown)) == rows_of(bad.select(*shown))
    assert [one.failed for one in step.validate_frame(second, context)] == [1, 3, 1]


class TestRealData:
    """The same questions put to DuckDB."""

    @pytest.fixture(scope="class")
    def flights(self) -> pd.DataFrame:
        return flight_logs(31)

    def test_flights(self, flights: pd.DataFrame, context: StepContext) -> None:
        frame = context.spark.createDataFrame(
            flights.astype(object).where(flights.notna(), None),
            "date STRING, region STRING, user_id STRING, flight INT",
        )  # type: ignore[type-var]
        step = Expectations.model_validate(
            {
                "expectations": {
                    "tail number": {"expect": "notNull", "columns": ["user_id"]},
                    "like a tail number": {"expect": "matches", "column": "user_id", "pattern": "N[0-9]{3}[A-Z]{2}"},
                    "big airport": {"expect": "inSet", "column": "region", "values": ["JFK", "EWR"]},
                    "number": {"expect": "inRange", "column": "flight", "min": 100, "max": 2000},
                    "sql": "flight % 7 <> 0 OR region = 'LGA'",
                    "once a day": {"expect": "unique", "columns": ["date", "flight", "user_id"]},
                },
                "minRows": 1,
            }
        )
        results = {result.name: result for result in step.validate_frame(frame, context)}
        (expected,) = duckdb.sql(
            """SELECT count(*) FILTER (user_id IS NULL) AS a,
                      count(*) FILTER (NOT coalesce(regexp_full_match(user_id, 'N[0-9]{3}[A-Z]{2}'), false)) AS b,
                      count(*) FILTER (NOT coalesce(region IN ('JFK', 'EWR'), false)) AS c,
                      count(*) FILTER (NOT coalesce(flight BETWEEN 100 AND 2000, false)) AS d,
                      count(*) FILTER (NOT coalesce(flight % 7 <> 0 OR region = 'LGA', false)) AS e,
                      count(*) FILTER (user_id IS NOT NULL) - (SELECT count(*) FROM
                        (SELECT DISTINCT date, flight, user_id FROM flights WHERE user_id IS NOT NULL)) AS f
               FROM flights"""
        ).fetchall()
        *counts, rows = (result.failed for result in results.values())
        assert tuple(counts) == expected
        assert min(expected[:5]) > 0, "the data have something of each"
        assert rows == 0
        assert {result.total for result in results.values()} == {len(flights)}

    def test_cdnow(self, context: StepContext) -> None:
        purchases = cdnow_purchases()
        customers = cdnow_customers(purchases)[::2]
        frame = context.spark.createDataFrame(
            purchases, "customer_id BIGINT, order_date DATE, quantity INT, amount DOUBLE"
        )
        known = context.spark.createDataFrame(customers, "id BIGINT, first_order_date DATE")
        step = Expectations.model_validate(
            {
                "expectations": {
                    "known": {
                        "expect": "referential",
                        "columns": ["customer_id"],
                        "references": "customers",
                        "referencedColumns": ["id"],
                    },
                    "one a day": {"expect": "unique", "columns": ["customer_id", "order_date"]},
                    "in 1997": {"expect": "inRange", "column": "order_date", "min": "1997-01-01", "max": "1997-12-31"},
                    "paid": {"expect": "inRange", "column": "amount", "min": 0, "exclusive": True},
                    "fresh": {"expect": "freshness", "column": "order_date", "maxAge": "365 days"},
                }
            }
        )
        step.check_schema(frame, {"customers": known}, context)
        results = step.validate_frame(step.compared(frame, {"customers": known}), context)
        day = pd.to_datetime(purchases["order_date"])
        assert [result.failed for result in results] == [
            int((~purchases["customer_id"].isin(customers["id"])).sum()),
            int(purchases.duplicated(["customer_id", "order_date"]).sum()),
            int((day.dt.year != 1997).sum()),
            int((purchases["amount"] <= 0).sum()),
            len(purchases),
        ]
        assert all(result.failed for result in results)
        assert results[4].facts["newest"] == str(purchases["order_date"].max())


class TestPasses:
    """How often the data are computed: each row that is counts itself."""

    @pytest.fixture
    def counted(self, context: StepContext) -> tuple[Any, DataFrame]:
        from pyspark.sql import functions as F  # noqa: N812

        rows = context.spark.sparkContext.accumulator(0)

        def seen(number: int) -> int:
            rows.add(1)
            return number

        seen_udf = F.udf(seen, "bigint", useArrow=False).asNondeterministic()
        frame = context.spark.range(0, 200, 1, 2)
        return rows, frame.select(seen_udf("id").alias("v"), F.lit(1).alias("w"), F.lit("b").alias("t"))

    def config(self, *, duplicates: bool) -> dict[str, Any]:
        more = {"by one": {"expect": "unique", "columns": ["w"]}} if duplicates else {}
        return {"expectations": {**ALL_KINDS, **more}, "minRows": 1}

    def executions(self, context: StepContext) -> int:
        wait_for_events(context.spark)
        # Not how many there are: Spark forgets all but the last thousand.
        listed = context.spark._jsparkSession.sharedState().statusStore().executionsList()  # type: ignore[attr-defined]
        return 1 + max(int(listed.apply(at).executionId()) for at in range(max(0, listed.size() - 20), listed.size()))

    def test_one_for_all(self, counted: tuple[Any, DataFrame], context: StepContext) -> None:
        rows, frame = counted
        other = context.spark.range(100).selectExpr("id AS v")
        step = Expectations.model_validate(self.config(duplicates=False))
        step.check_schema(frame, {"other": other}, context)
        assert rows.value == 0, "the look at the schema moves no data"
        before = self.executions(context)
        compared = step.compared(frame, {"other": other})
        results = {result.name: result for result in step.validate_frame(compared, context)}
        assert rows.value == 200
        assert self.executions(context) - before == 1
        assert (results["known"].failed, results["like"].failed) == (100, 200)
        assert results["known"].samples is not None

    def test_another_for_samples_of_rows_that_are_not_unique(
        self, counted: tuple[Any, DataFrame], context: StepContext
    ) -> None:
        _, frame = counted
        config = self.config(duplicates=True)
        other = {"other": context.spark.range(100).selectExpr("id AS v")}
        before = self.executions(context)
        step = Expectations.model_validate(config)
        compared = step.compared(frame, other)
        step.model_copy(update={"sample_size": 0}).validate_frame(compared, context)
        assert self.executions(context) - before == 1
        results = step.validate_frame(compared, context)
        assert self.executions(context) - before == 3
        assert {result.name: result.failed for result in results}["by one"] == 199

    def test_none_for_the_schema(self, counted: tuple[Any, DataFrame], context: StepContext) -> None:
        rows, frame = counted
        before = self.executions(context)
        assert failed(ValidateSchema(columns={"v": "BIGINT"}), frame, context) == (True, 0)
        assert (rows.value, self.executions(context)) == (0, before)
