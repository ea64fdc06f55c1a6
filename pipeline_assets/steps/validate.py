"""Checks of what a DataFrame must meet: one expectation as a step, or several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.partitions import PARTITION_KEY_COLUMN
from pipeline_assets.steps.base import ExpectationResult, Severity, StepContext, StreamTraits, ValidateMethod
from pipeline_assets.steps.columns import quote
from pipeline_assets.steps.evaluation import (
    REASONS_COLUMN,
    Sampling,
    Stated,
    check_all,
    compared,
    evaluate,
    failed_names,
    reason,
    recalled,
    without_marks,
)
from pipeline_assets.steps.expectations import (
    Expectation,
    Expression,
    InRange,
    InSet,
    Matches,
    NotNull,
    RowExpectation,
)
from pipeline_assets.steps.sql_names import changing_part
from pipeline_assets.steps.sql_texts import SqlExpression, sql_texts
from pipeline_assets.steps.table_expectations import Freshness, Referential, RowCount, Schema, Unique

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

RUN_ID_COLUMN = "quarantine_run_id"
TIME_COLUMN = "quarantined_at"


class ExpectationStep(ValidateMethod):
    """What all steps that state expectations have in common."""

    def stated(self) -> tuple[Stated, ...]:
        """Return the expectations, by name, with what their failure counts."""
        raise NotImplementedError

    def expectation_names(self) -> dict[str, str]:
        return {item.name: item.expectation.says() for item in self.stated()}

    def reference_names(self) -> tuple[str, ...]:
        found = (item.expectation.reference() for item in self.stated())
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def deciding_references(self) -> tuple[str, ...]:
        found = (item.expectation.reference() for item in self._kept_to()) if self.quarantines else ()
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def reasons(self) -> frozenset[str]:
        return frozenset(map(reason, self._kept_to()))

    def stream_problem(self, stream: StreamTraits) -> str | None:
        checked, *references = stream.inputs
        if not checked:
            return "its input is not a stream: check that DataFrame in a batch pipeline"
        for name, is_stream in zip(self.reference_names(), references, strict=True):
            if is_stream:
                return (
                    f"it compares with {name!r}, which is a stream, of which there is one micro-batch at a time: "
                    "load that into a table by a pipeline of its own, and read it here by fromDeltaLake with "
                    "'streaming': false"
                )
        if self.quarantines and "complete" in stream.output_modes:
            return (
                "with outputMode 'complete' each micro-batch has all rows again, and they would be put into quarantine "
                "again: use onFailure 'fail' or 'warn'"
            )
        return None

    def check_schema(self, frame: DataFrame, references: Mapping[str, DataFrame], context: StepContext) -> None:
        check_all(self.stated(), frame, references, self._sampling)
        if self.quarantines:
            there = {column.casefold() for column in frame.columns}
            key = () if context.partition is None else (PARTITION_KEY_COLUMN,)
            taken = [name for name in (REASONS_COLUMN, RUN_ID_COLUMN, TIME_COLUMN, *key) if name in there]
            if taken:
                raise ConfigurationError(
                    f"the DataFrame has a column {taken[0]!r}, which rows in quarantine get: rename it before"
                )

    def compared(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> DataFrame:
        return compared(self.stated(), frame, references)

    def recalled(self, frame: DataFrame, references: Mapping[str, DataFrame], bad: DataFrame) -> DataFrame:
        kept_to, frame = self._kept_to(), without_marks(self.stated(), frame)
        others = [item for item in self.stated() if item not in kept_to]
        return compared(others, recalled(kept_to, frame, bad), references)

    def validate_frame(self, compared: DataFrame, context: StepContext) -> tuple[ExpectationResult, ...]:
        return evaluate(self.stated(), compared, self._sampling, is_micro_batch=context.is_micro_batch)

    def good_rows(self, compared: DataFrame, context: StepContext) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        good = compared.where(F.size(failed_names(self._kept_to(), compared)) == 0)
        return without_marks(self.stated(), good)

    def bad_rows(self, compared: DataFrame, context: StepContext) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        reasons = failed_names(self._kept_to(), compared)
        told = {REASONS_COLUMN: reasons, RUN_ID_COLUMN: F.lit(context.run_id), TIME_COLUMN: F.current_timestamp()}
        bad = compared.withColumns(told).where(F.size(quote(REASONS_COLUMN)) > 0)
        return without_marks(self.stated(), bad)

    def _kept_to(self) -> list[Stated]:
        """Return what rows are put into quarantine for."""
        return [item for item in self.stated() if item.expectation.severity != "warn"]

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.sample_size, self.mask_columns)

    def _severity(self, own: Severity | None) -> Severity:
        return own or ("error" if self.reaction == "fail" else "warn")

    @model_validator(mode="after")
    def _only_rows_in_quarantine(self) -> Self:
        about_rows = RowExpectation | Referential
        others = [item for item in self.stated() if not isinstance(item.expectation, about_rows)]
        if self.quarantines and others:
            which = f" {others[0].name!r}" if others[0].name else ""
            raise ValueError(
                f"onFailure 'quarantine' puts single rows aside, and the expectation{which} "
                f"({others[0].expectation.says()}) is not about single rows: give it a validate step of its own, with "
                "onFailure 'fail' or 'warn'"
            )
        if self.quarantines and not self._kept_to():
            raise ValueError("every expectation has severity 'warn', so no row is put into quarantine: see 'onFailure'")
        return self

    @model_validator(mode="after")
    def _one_verdict_on_a_row(self) -> Self:
        """What is put aside and what goes on are queries of their own, and a stream's are run again after a crash."""
        for item in self._kept_to() if self.quarantines else ():
            for _, text, _ in sql_texts(item.expectation):
                if changing := changing_part(text):
                    which = f"expectation {item.name!r}" if item.name else f"condition {text!r}"
                    raise ValueError(
                        f"onFailure 'quarantine' needs the same answer about a row each time, and {changing} in the "
                        f"{which} gives another one: for the time, add a column by withColumns before the first "
                        "validate step and compare with it; for chance, take a hash of the row's key, such as "
                        "xxhash64(id); or use onFailure 'fail' or 'warn'"
                    )
        return self


class SingleExpectation(ExpectationStep, Expectation):
    """A step that is one expectation."""

    def stated(self) -> tuple[Stated, ...]:
        return (Stated("", self, self._severity(self.severity)),)


class ValidateNotNull(SingleExpectation, NotNull):
    """Expects values: no nulls. NaN is a value."""

    method = "notNull"


class ValidateUnique(SingleExpectation, Unique):
    """Expects each row to have values of its own in some columns. Nulls are equal to nothing, as in SQL.

    Failed rows are those that repeat another one.
    """

    method = "unique"


class ValidateInRange(SingleExpectation, InRange):
    """Expects values between bounds. A NaN is in no range."""

    method = "inRange"


class ValidateInSet(SingleExpectation, InSet):
    """Expects values to be among some."""

    method = "inSet"


class ValidateMatches(SingleExpectation, Matches):
    """Expects texts that a regular expression matches as a whole."""

    method = "matches"


class ValidateExpression(SingleExpectation, Expression):
    """Expects rows to meet a SQL condition."""

    method = "expression"


class ValidateRowCount(SingleExpectation, RowCount):
    """Expects a number of rows; in a stream, of each micro-batch that has any."""

    method = "rowCount"


class ValidateFreshness(SingleExpectation, Freshness):
    """Expects recent rows: the newest time in a column is not older than so long. No rows are not recent, but in a
    stream, where a micro-batch without any tells nothing.
    """

    method = "freshness"


class ValidateReferential(SingleExpectation, Referential):
    """Expects rows to have their counterpart in another DataFrame, as a foreign key does. A null needs none.

    Values are compared as the keys of joinDataFrames are.
    """

    method = "referential"


class ValidateSchema(SingleExpectation, Schema):
    """Expects columns of certain types. No data are read for it.

    Failed are columns, not rows.
    """

    method = "schema"


class NotNullEntry(NotNull):
    """`notNull` as one of several."""

    expect: Literal["notNull"]


class UniqueEntry(Unique):
    """`unique` as one of several."""

    expect: Literal["unique"]


class InRangeEntry(InRange):
    """`inRange` as one of several."""

    expect: Literal["inRange"]


class InSetEntry(InSet):
    """`inSet` as one of several."""

    expect: Literal["inSet"]


class MatchesEntry(Matches):
    """`matches` as one of several."""

    expect: Literal["matches"]


class ExpressionEntry(Expression):
    """`expression` as one of several."""

    expect: Literal["expression"]


class RowCountEntry(RowCount):
    """`rowCount` as one of several."""

    expect: Literal["rowCount"]


class FreshnessEntry(Freshness):
    """`freshness` as one of several."""

    expect: Literal["freshness"]


class ReferentialEntry(Referential):
    """`referential` as one of several."""

    expect: Literal["referential"]


class SchemaEntry(Schema):
    """`schema` as one of several."""

    expect: Literal["schema"]


Entry = Annotated[
    NotNullEntry
    | UniqueEntry
    | InRangeEntry
    | InSetEntry
    | MatchesEntry
    | ExpressionEntry
    | RowCountEntry
    | FreshnessEntry
    | ReferentialEntry
    | SchemaEntry,
    Field(discriminator="expect"),
]


def _form(value: Any) -> str:
    return "condition" if isinstance(value, str) else "expectation"


ConditionOrEntry = Annotated[
    Annotated[SqlExpression, Tag("condition")] | Annotated[Entry, Tag("expectation")], Discriminator(_form)
]


class Expectations(ExpectationStep):
    """Checks several expectations, in one pass over the data.

    An expectation is a SQL condition that each row must meet, or an object: `expect` names one of the other validate
    methods, and the further keys are its keys, e.g. `{"expect": "inRange", "column": "amount", "min": 0}`.
    """

    method = "expectations"

    expectations: dict[Annotated[str, Field(min_length=1)], ConditionOrEntry] = {}
    """By name: a SQL condition that each row must meet, e.g. `amount >= 0` (a row for which it is null does not), or
    an object with `expect`."""
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

    def stated(self) -> tuple[Stated, ...]:
        found: dict[str, Expectation] = {
            name: Expression(condition=given) if isinstance(given, str) else given
            for name, given in self.expectations.items()
        }
        if self.min_rows is not None:
            found["minRows"] = RowCount(min=self.min_rows)
        if self.max_rows is not None:
            found["maxRows"] = RowCount(max=self.max_rows)
        return tuple(Stated(name, given, self._severity(given.severity)) for name, given in found.items())
