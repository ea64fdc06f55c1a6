"""Checks of what a DataFrame must meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from pipeline_assets.steps.base import ExpectationResult, StepContext, ValidateMethod
from pipeline_assets.steps.sql_texts import SqlExpression

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Expectations(ValidateMethod):
    """Checks that rows meet SQL conditions, all of them in one pass over the data."""

    method = "expectations"

    expectations: dict[Annotated[str, Field(min_length=1)], SqlExpression] = {}
    """By name: a SQL condition that each row must meet, e.g. `amount >= 0`. A row for which it is null does not."""
    min_rows: int | None = Field(default=None, ge=0)
    """The fewest rows there may be."""
    max_rows: int | None = Field(default=None, ge=0)
    """The most rows there may be."""

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if not self.expectations and self.min_rows is None and self.max_rows is None:
            raise ValueError("there is nothing to check: give 'expectations', 'minRows' or 'maxRows'")
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"minRows ({self.min_rows}) is greater than maxRows ({self.max_rows})")
        taken = sorted({"minRows", "maxRows"} & self.expectations.keys())
        if taken:
            raise ValueError(f"an expectation can't be called {taken[0]!r}: that is a key of this step")
        return self

    def expectation_names(self) -> dict[str, str]:
        bounds = {"minRows": self.min_rows, "maxRows": self.max_rows}
        return {**self.expectations, **{name: f"{name} {rows}" for name, rows in bounds.items() if rows is not None}}

    def validate_frame(self, frame: DataFrame, context: StepContext) -> tuple[ExpectationResult, ...]:
        from pyspark.sql import functions as F  # noqa: N812

        failures = [
            F.count_if(~F.coalesce(F.expr(condition), F.lit(False))).alias(f"failed_{position}")
            for position, condition in enumerate(self.expectations.values())
        ]
        (row,) = frame.agg(F.count(F.lit(1)).alias("total"), *failures).collect()
        total, *failed = map(int, row)
        results = [ExpectationResult(name, count, total) for name, count in zip(self.expectations, failed, strict=True)]
        if self.min_rows is not None:
            results.append(ExpectationResult("minRows", max(0, self.min_rows - total), total))
        if self.max_rows is not None:
            results.append(ExpectationResult("maxRows", max(0, total - self.max_rows), total))
        return tuple(results)
