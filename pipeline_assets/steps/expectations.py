"""What each row must meet: one model per kind, with the condition that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.json_models import JsonModel, of_its_type
from pipeline_assets.spark.failures import is_spark_error
from pipeline_assets.steps.base import Severity
from pipeline_assets.steps.columns import ColumnName, Scalar, column_of, literal_for, require_paths, type_of
from pipeline_assets.steps.sql_texts import SqlExpression

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


class Expectation(BaseModel):
    """Base of all kinds."""

    model_config = ConfigDict(**JsonModel.model_config, defer_build=True)

    severity: Severity | None = None
    """How a failure counts: `error` (when left out, with onFailure `fail`), or `warn`: it is told, and nothing more."""

    # By name, as pydantic takes none of these for 'expect', by which it tells the kinds apart.
    @field_validator("allow_null", "allow_others", "exclusive", "max", "min", mode="before", check_fields=False)
    @classmethod
    def _is_of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        return of_its_type(cls, value, info)

    def says(self) -> str:
        """Return the expectation in words."""
        raise NotImplementedError

    def reference(self) -> str | None:
        """Return the name of the DataFrame that rows are compared with."""
        return None

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        """Raise ConfigurationError when it does not fit the schema of ``frame``. Moves no data."""


class RowExpectation(Expectation):
    """What a row alone meets or does not meet. A condition that is null is not met."""

    def holds(self, frame: DataFrame) -> Column:
        """Return the condition."""
        raise NotImplementedError


class NotNull(RowExpectation):
    """Expects values: no nulls. NaN is a value."""

    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns that must not be null; a nested one by its path, e.g. `address.city`."""

    def says(self) -> str:
        return f"{_listed(self.columns)} {'is' if len(self.columns) == 1 else 'are'} not null"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        require_paths(self.columns, "input", frame)

    def holds(self, frame: DataFrame) -> Column:
        return reduce(lambda left, right: left & right, (column_of(name, frame).isNotNull() for name in self.columns))


class InRange(RowExpectation):
    """Expects values between bounds. A NaN is in no range."""

    column: ColumnName
    """The column: numbers, text, dates or timestamps."""
    min: Scalar | None = None
    """The least value; dates and timestamps as ISO text."""
    max: Scalar | None = None
    """The greatest value."""
    exclusive: bool = False
    """Whether the bounds themselves are outside."""
    allow_null: bool = False
    """Whether a null meets it."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("there is no range: give 'min', 'max' or both")
        if _is_above(self.min, self.max):
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        if self.exclusive and self.min == self.max:
            raise ValueError(f"min and max are both {self.min}, and with 'exclusive' no value is between them")
        return self

    def says(self) -> str:
        least, most = (">", "<") if self.exclusive else (">=", "<=")
        bounds = [f"{least} {self.min}"] if self.min is not None else []
        bounds += [f"{most} {self.max}"] if self.max is not None else []
        return f"{self.column} is {' and '.join(bounds)}{_or_null(self.allow_null)}"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        require_paths((self.column,), "input", frame)
        self.holds(frame)

    def holds(self, frame: DataFrame) -> Column:
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.types import DoubleType, FloatType

        column, data_type = column_of(self.column, frame), type_of(self.column, frame)
        inside = ~F.isnan(column) if isinstance(data_type, FloatType | DoubleType) else F.lit(True)
        if self.min is not None:
            least = literal_for(self.min, self.column, data_type, is_bound=True)
            inside &= column > least if self.exclusive else column >= least
        if self.max is not None:
            most = literal_for(self.max, self.column, data_type, is_bound=True)
            inside &= column < most if self.exclusive else column <= most
        return _with_nulls(column, inside, self.allow_null)


class InSet(RowExpectation):
    """Expects values to be among some."""

    column: ColumnName
    """The column."""
    values: tuple[Scalar, ...] = Field(min_length=1)
    """The values there may be."""
    allow_null: bool = False
    """Whether a null meets it."""

    def says(self) -> str:
        shown = ", ".join(str(value) for value in self.values[:20]) + (", ..." if len(self.values) > 20 else "")
        return f"{self.column} is one of {shown}{_or_null(self.allow_null)}"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        require_paths((self.column,), "input", frame)
        self.holds(frame)

    def holds(self, frame: DataFrame) -> Column:
        column, data_type = column_of(self.column, frame), type_of(self.column, frame)
        among = column.isin(*(literal_for(value, self.column, data_type) for value in self.values))
        return _with_nulls(column, among, self.allow_null)


class Matches(RowExpectation):
    """Expects texts that a regular expression matches as a whole."""

    column: ColumnName
    """The column; what is no text is compared as Spark writes it."""
    pattern: Annotated[str, Field(min_length=1)]
    """Regular expression (Java's) for the whole text, e.g. `[A-Z]{2}[0-9]+`."""
    allow_null: bool = False
    """Whether a null meets it."""

    def says(self) -> str:
        return f"{self.column} matches {self.pattern}{_or_null(self.allow_null)}"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        from pyspark.sql import functions as F  # noqa: N812

        require_paths((self.column,), "input", frame)
        probe = frame.sparkSession.sql("SELECT text FROM VALUES ('') AS one(text)")
        try:
            # One literal row: Spark's optimizer answers, no job runs.
            probe.select(F.rlike(F.col("text"), self._whole())).collect()
        except Exception as error:
            if not is_spark_error(error):
                raise
            raise ConfigurationError(f"pattern {self.pattern!r} is no regular expression of Java's") from None

    def holds(self, frame: DataFrame) -> Column:
        from pyspark.sql import functions as F  # noqa: N812

        column = column_of(self.column, frame)
        return _with_nulls(column, F.rlike(column.cast("string"), self._whole()), self.allow_null)

    def _whole(self) -> Column:
        from pyspark.sql import functions as F  # noqa: N812

        return F.lit(rf"\A(?:{self.pattern})\z")


class Expression(RowExpectation):
    """Expects rows to meet a SQL condition."""

    condition: SqlExpression
    """SQL condition that each row must meet, e.g. `amount >= 0`. A row for which it is null does not."""

    def says(self) -> str:
        return self.condition

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        from pyspark.sql.types import BooleanType

        found = frame.select(self.holds(frame)).schema.fields[0].dataType
        if not isinstance(found, BooleanType):
            raise ConfigurationError(f"{self.condition!r} is {found.simpleString()}: expected a condition")
        # A row must tell alone: an aggregate makes one row of all.
        _ = frame.where(self.holds(frame)).schema

    def holds(self, frame: DataFrame) -> Column:
        from pyspark.sql import functions as F  # noqa: N812

        return F.expr(self.condition)


def _with_nulls(column: Column, condition: Column, allow_null: bool) -> Column:
    return column.isNull() | condition if allow_null else condition


def _is_above(least: Scalar | None, most: Scalar | None) -> bool:
    """Whether ``least`` is above ``most``; not where only the column's type says how they compare."""
    if isinstance(least, int | float) and isinstance(most, int | float):
        return least > most
    try:
        return datetime.fromisoformat(str(least)) > datetime.fromisoformat(str(most))
    except (TypeError, ValueError):
        return False


def _or_null(allow_null: bool) -> str:
    return ", or null" if allow_null else ""


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
