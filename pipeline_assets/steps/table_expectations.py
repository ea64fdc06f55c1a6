"""What a DataFrame must meet as a whole, or beside another one: no row tells by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark.failures import is_spark_error
from pipeline_assets.steps.base import Samples
from pipeline_assets.steps.columns import ColumnName, column_of, quote, require_paths, type_of
from pipeline_assets.steps.expectations import Expectation
from pipeline_assets.steps.join import check_comparable
from pipeline_assets.steps.sql_texts import SqlType

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType


@dataclass(frozen=True)
class Judgement:
    """How an expectation came out. ``total`` is None where it is that of the rows, and ``found`` says what there is
    instead, where their number does not.
    """

    passed: bool
    failed: int
    total: int | None = None
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    samples: Samples | None = None
    found: str = ""


class AggregateExpectation(Expectation):
    """What aggregates over all rows tell."""

    def measures(self, frame: DataFrame) -> dict[str, Column]:
        """Return the aggregates, by name, that ``judge`` needs beside the number of rows."""
        return {}

    def judge(self, measured: Mapping[str, Any], total: int) -> Judgement:
        """Return how it came out for what was measured over ``total`` rows."""
        raise NotImplementedError

    def examples(self, frame: DataFrame) -> DataFrame | None:
        """Return what may be shown of the rows that fail, as a query of its own; None when nothing tells more."""
        return None


class Unique(AggregateExpectation):
    """Expects each row to have values of its own in some columns. Nulls are equal to nothing, as in SQL.

    Failed rows are those that repeat another one.
    """

    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns that together differ from row to row."""

    def says(self) -> str:
        return f"{', '.join(self.columns)} {'is' if len(self.columns) == 1 else 'together are'} unique"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        require_paths(self.columns, "input", frame)
        _ = frame.agg(*self.measures(frame).values()).schema

    def measures(self, frame: DataFrame) -> dict[str, Column]:
        from pyspark.sql import functions as F  # noqa: N812

        keys = [column_of(name, frame) for name in self.columns]
        return {"with_key": F.count_if(_all_set(keys)), "distinct": F.count_distinct(*keys)}

    def judge(self, measured: Mapping[str, Any], total: int) -> Judgement:
        repeated = measured["with_key"] - measured["distinct"]
        return Judgement(repeated == 0, repeated, found=f"{repeated} of {total} rows repeat another")

    def examples(self, frame: DataFrame) -> DataFrame | None:
        from pyspark.sql import functions as F  # noqa: N812

        keys = [column_of(name, frame) for name in self.columns]
        named = [key.alias(name) for key, name in zip(keys, self.columns, strict=True)]
        grouped = frame.where(_all_set(keys)).groupBy(*named).agg(F.count(F.lit(1)).alias(_ROWS))
        return grouped.where(F.col(_ROWS) > 1)


_ROWS = "number of rows"


class RowCount(AggregateExpectation):
    """Expects a number of rows; in a stream, of each micro-batch that has any."""

    min: int | None = Field(default=None, ge=0)
    """The fewest rows there may be."""
    max: int | None = Field(default=None, ge=0)
    """The most rows there may be."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("there is no bound: give 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self

    def says(self) -> str:
        bounds = [f"at least {self.min}"] if self.min is not None else []
        bounds += [f"at most {self.max}"] if self.max is not None else []
        return f"there are {' and '.join(bounds)} rows"

    def judge(self, measured: Mapping[str, Any], total: int) -> Judgement:
        missing = max(0, (self.min or 0) - total)
        surplus = 0 if self.max is None else max(0, total - self.max)
        return Judgement(missing + surplus == 0, missing + surplus, found=f"there are {total}")


def _check_age(text: str) -> timedelta:
    number, unit = re.fullmatch(r"(\d+) *(second|minute|hour|day)s?", text.strip()).groups()  # type: ignore[union-attr]
    return timedelta(**{f"{unit}s": int(number)})


class Freshness(AggregateExpectation):
    """Expects recent rows: the newest time in a column is not older than so long. No rows are not recent, but in a
    stream, where a micro-batch without any tells nothing.
    """

    column: ColumnName
    """The column with the rows' times: dates or timestamps."""
    max_age: Annotated[str, Field(pattern=r"^\d{1,9} *(seconds?|minutes?|hours?|days?)$")]
    """How old the newest row may be when it is checked, e.g. `2 hours`."""

    def says(self) -> str:
        return f"the newest {self.column} is at most {self.max_age} old"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        from pyspark.sql.types import DateType, TimestampNTZType, TimestampType

        require_paths((self.column,), "input", frame)
        found = type_of(self.column, frame)
        if not isinstance(found, DateType | TimestampType | TimestampNTZType):
            raise ConfigurationError(
                f"column {self.column!r} is {found.simpleString()}, and an age needs a date or a timestamp: make one "
                "with withColumns before"
            )

    def measures(self, frame: DataFrame) -> dict[str, Column]:
        from pyspark.sql import functions as F  # noqa: N812

        newest = F.max(column_of(self.column, frame))
        age = F.unix_micros(F.current_timestamp()) - F.unix_micros(newest.cast("timestamp"))
        return {"newest": newest.cast("string"), "age": age}

    def judge(self, measured: Mapping[str, Any], total: int) -> Judgement:
        if measured["age"] is None:
            return Judgement(
                False, total, facts={"newest": "none"}, found="no row has one" if total else "there are no rows"
            )
        age = timedelta(microseconds=measured["age"])
        stale = age > _check_age(self.max_age)
        facts: dict[str, int | float | str] = {"newest": str(measured["newest"]), "age_seconds": age.total_seconds()}
        found = f"it is {timedelta(seconds=int(age.total_seconds()))} old"
        return Judgement(not stale, total if stale else 0, facts=facts, found=found)


class Referential(Expectation):
    """Expects rows to have their counterpart in another DataFrame, as a foreign key does. A null needs none."""

    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns whose values the other DataFrame has to have."""
    references: Annotated[str, Field(min_length=1)]
    """The other DataFrame."""
    referenced_columns: tuple[ColumnName, ...] = ()
    """Its columns, in the order of `columns`; those of the same names when left out."""

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if self.referenced_columns and len(self.referenced_columns) != len(self.columns):
            raise ValueError(
                f"'referencedColumns' are {len(self.referenced_columns)}, 'columns' {len(self.columns)}: give as many"
            )
        return self

    @property
    def _theirs(self) -> tuple[str, ...]:
        return self.referenced_columns or self.columns

    def says(self) -> str:
        return f"{', '.join(self.columns)} is in {self.references} ({', '.join(self._theirs)})"

    def reference(self) -> str | None:
        return self.references

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        other = references[self.references]
        require_paths(self.columns, "input", frame)
        require_paths(self._theirs, self.references, other)
        for mine, theirs in zip(self.columns, self._theirs, strict=True):
            ours = (mine, "input", type_of(mine, frame))
            check_comparable(ours, (theirs, self.references, type_of(theirs, other)))

    def met(self, frame: DataFrame, references: Mapping[str, DataFrame], mark: str) -> DataFrame:
        """Return ``frame`` with a column ``mark``: whether the row meets it."""
        from pyspark.sql import functions as F  # noqa: N812

        mine = [column_of(name, frame) for name in self.columns]
        found = self._looked_up(frame, references[self.references], self._theirs, mark)
        return found.withColumn(mark, F.col(mark).isNotNull() | ~_all_set(mine))

    def met_before(self, frame: DataFrame, bad: DataFrame, mark: str) -> DataFrame:
        """Return ``frame`` with a column ``mark``: whether the row meets it, where ``bad`` has all that do not."""
        from pyspark.sql import functions as F  # noqa: N812

        found = self._looked_up(frame, bad, self.columns, mark)
        return found.withColumn(mark, F.col(mark).isNull())

    def _looked_up(self, frame: DataFrame, other: DataFrame, theirs: Sequence[str], mark: str) -> DataFrame:
        """Join the keys that there are in ``other``, each once, so that no row of ``frame`` becomes two."""
        from pyspark.sql import functions as F  # noqa: N812

        names = [f"{mark}_{position}" for position in range(len(self.columns))]
        keys = [
            # Two of a finer type may be one as the join compares them.
            column_of(key, other).cast(_wider(type_of(name, frame), type_of(key, other), frame)).alias(alias)
            for name, key, alias in zip(self.columns, theirs, names, strict=True)
        ]
        known = other.select(*keys).distinct().withColumn(mark, F.lit(True))
        mine = [column_of(name, frame) for name in self.columns]
        pairs = (key == F.col(alias) for key, alias in zip(mine, names, strict=True))
        return frame.join(known, reduce(lambda left, right: left & right, pairs), "left").drop(*names)


_WITH_LENGTH = re.compile(r"\b(?:VAR)?CHAR(?:ACTER)?\s*\(", re.IGNORECASE)


class Schema(Expectation):
    """Expects columns of certain types. No data are read for it.

    Failed are columns, not rows.
    """

    columns: dict[ColumnName, SqlType] = Field(min_length=1)
    """By column: its type as Spark SQL writes it, e.g. `BIGINT`, `DECIMAL(10,2)`, `ARRAY<STRING>`."""
    allow_others: bool = True
    """Whether there may be other columns."""

    def says(self) -> str:
        told = ", ".join(f"{name} {type_}" for name, type_ in self.columns.items())
        return f"the columns {'include' if self.allow_others else 'are'} {told}"

    def check(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> None:
        self._expected(frame)

    def judge(self, frame: DataFrame) -> Judgement:
        """Return how the schema of ``frame`` compares, with the columns that differ as the samples."""
        expected = {field.name: field.dataType.simpleString() for field in self._expected(frame).fields}
        found = {field.name.casefold(): field.dataType.simpleString() for field in frame.schema.fields}
        wrong: list[tuple[str, str | None, str | None]] = [
            (name, type_, found.get(name.casefold()))
            for name, type_ in expected.items()
            if found.get(name.casefold()) != type_
        ]
        known = {name.casefold() for name in expected}
        if not self.allow_others:
            others = (field for field in frame.schema.fields if field.name.casefold() not in known)
            wrong += [(field.name, None, field.dataType.simpleString()) for field in others]
        samples = Samples(("column", "expected", "found"), tuple(wrong)) if wrong else None
        told = ", ".join(f"{name} is {type_ or 'not there'}" for name, _, type_ in wrong)
        return Judgement(not wrong, len(wrong), max(len(expected), len(found)), samples=samples, found=told)

    def _expected(self, frame: DataFrame) -> StructType:
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.types import StructType

        ddl = ", ".join(f"{quote(name)} {type_}" for name, type_ in self.columns.items())
        if sized := next((type_ for type_ in self.columns.values() if _WITH_LENGTH.search(type_)), None):
            raise ConfigurationError(f"'columns' has {sized}, but Spark reads text without its length: write STRING")
        try:
            # from_json would refuse a MAP whose keys are no STRING.
            null = F.lit(None).cast(f"STRUCT<{ddl}>")
            parsed = frame.sparkSession.range(1).select(null).schema.fields[0].dataType
        except Exception as error:
            if not is_spark_error(error):
                raise
            raise ConfigurationError(f"'columns' has a type that is none of Spark SQL: {ddl}") from None
        if not isinstance(parsed, StructType) or len(parsed.fields) != len(self.columns):
            raise ConfigurationError(f"'columns' has a type that is none of Spark SQL: {ddl}")
        return parsed


def _wider(one: DataType, other: DataType, frame: DataFrame) -> DataType:
    """Return the type that Spark compares values of both types by."""
    from pyspark.sql import functions as F  # noqa: N812

    if one == other:
        return one
    null = F.lit(None)
    return frame.sparkSession.range(1).select(F.coalesce(null.cast(one), null.cast(other))).schema.fields[0].dataType


def _all_set(columns: list[Column]) -> Column:
    return reduce(lambda left, right: left & right, (column.isNotNull() for column in columns))
