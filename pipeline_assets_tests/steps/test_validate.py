"""Expectations, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_assets.steps.base import ExpectationResult, StepContext
from pipeline_assets.steps.validate import Expectations
from pipeline_assets_tests.steps.frames import frame_of

ROWS = [(1, 5), (2, -1), (3, None), (None, 7)]


def test_each_expectation_counts_its_failures(context: StepContext) -> None:
    frame = frame_of(context.spark, "id INT, amount INT", ROWS)
    method = Expectations(
        expectations={"has id": "id IS NOT NULL", "positive": "amount > 0", "any": "true -- always"},
        min_rows=5,
        max_rows=5,
    )
    assert method.validate_frame(frame, context) == (
        ExpectationResult("has id", 1, 4),
        ExpectationResult("positive", 2, 4),
        ExpectationResult("any", 0, 4),
        ExpectationResult("minRows", 1, 4),
        ExpectationResult("maxRows", 0, 4),
    )
    assert Expectations(max_rows=3).validate_frame(frame, context) == (ExpectationResult("maxRows", 1, 4),)


def test_no_rows(context: StepContext) -> None:
    frame = frame_of(context.spark, "id INT", [])
    method = Expectations(expectations={"has id": "id IS NOT NULL"}, min_rows=0)
    results = method.validate_frame(frame, context)
    assert all(result.passed for result in results)
    assert [result.total for result in results] == [0, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to check"),
        ({"minRows": 3, "maxRows": "2"}, "minRows .3. is greater than maxRows .2."),
        ({"expectations": {"minRows": "true"}}, "can't be called 'minRows'"),
        ({"minRows": -1}, "greater than or equal to 0"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expectations.model_validate(config)
