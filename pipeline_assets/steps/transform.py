"""Transforms of one DataFrame or several; the join has a module of its own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark.storage_levels import StorageLevelName
from pipeline_assets.steps.base import (
    CacheControlMethod,
    SingleInputTransform,
    StepContext,
    StreamTraits,
    TransformMethod,
)
from pipeline_assets.steps.column_types import is_text, lose_digits, parts
from pipeline_assets.steps.columns import ColumnName, quote, require_columns
from pipeline_assets.steps.sql_names import keeps_state, spark_table_names
from pipeline_assets.steps.sql_texts import ColumnOrExpression, SqlExpression, SqlQuery

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType


def only(inputs: Mapping[str, DataFrame]) -> tuple[str, DataFrame]:
    """Return name and DataFrame of a transform that has one input."""
    ((name, frame),) = inputs.items()
    return name, frame


def _column(name_or_expression: str, frame: DataFrame) -> Column:
    """Return the column of that name, or else what the SQL expression yields."""
    from pyspark.sql import functions as F  # noqa: N812

    if name_or_expression.casefold() in (column.casefold() for column in frame.columns):
        return F.col(quote(name_or_expression))
    return F.expr(name_or_expression)


class FilterRows(SingleInputTransform):
    """Keeps the rows that meet a condition."""

    method = "filterRows"

    condition: SqlExpression
    """SQL condition, e.g. `event_type = 'purchase' AND amount > 0`. Rows for which it is null are dropped."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        _, frame = only(inputs)
        return frame.where(self.condition)


class AggregateData(SingleInputTransform):
    """Groups rows and computes aggregates of each group."""

    method = "aggregateData"

    group_by: tuple[ColumnOrExpression, ...] = ()
    """Columns, or SQL expressions such as `year(day) AS year`, to group by; none for one group of all rows."""
    aggregations: dict[ColumnName, SqlExpression] = Field(min_length=1)
    """By the name of the resulting column: a SQL aggregate expression, e.g. `count(distinct user_id)`."""
    having: SqlExpression | None = None
    """SQL condition on the resulting columns: groups that do not meet it are dropped."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = sorted({name.casefold() for name in self.group_by} & {name.casefold() for name in self.aggregations})
        if twice:
            raise ValueError(f"names in both 'groupBy' and 'aggregations': {', '.join(twice)}")
        return self

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        name, frame = only(inputs)
        require_columns((column for column in self.group_by if column.isidentifier()), name, frame)
        groups = [_column(column, frame) for column in self.group_by]
        aggregates = [F.expr(expression).alias(name) for name, expression in self.aggregations.items()]
        result = frame.groupBy(*groups).agg(*aggregates)
        return result if self.having is None else result.where(self.having)

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        return {"groupBy": list(self.group_by), "aggregations": dict(self.aggregations)}

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if any(stream.inputs) and "append" in stream.output_modes and not stream.watermarked:
            return (
                "in outputMode 'append' a group is written once it is complete, which only a watermark can tell: add a "
                "withWatermark step before and group by that time's window, or load with outputMode 'update' or "
                "'complete'"
            )
        return None


class SelectColumns(SingleInputTransform):
    """Keeps the given columns, in the given order; they may be computed and renamed."""

    method = "selectColumns"

    columns: tuple[ColumnOrExpression, ...] = Field(min_length=1)
    """Column names or SQL expressions, e.g. `id`, `*`, `price * quantity AS total`."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        _, frame = only(inputs)
        return frame.select(*(_column(column, frame) for column in self.columns))


class WithColumns(SingleInputTransform):
    """Adds columns, or replaces those of the same name."""

    method = "withColumns"

    columns: dict[ColumnName, SqlExpression] = Field(min_length=1)
    """By column name: a SQL expression over the DataFrame's columns as they are before this step."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        _, frame = only(inputs)
        return frame.withColumns({name: F.expr(expression) for name, expression in self.columns.items()})


class Sql(TransformMethod):
    """Runs a SQL query that sees the pipeline's DataFrames as tables by name."""

    method = "sql"

    query: SqlQuery
    """One SELECT (or WITH ... SELECT) in Spark SQL."""

    def input_names(self) -> tuple[str, ...] | None:
        return self.table_names()

    def table_names(self) -> tuple[str, ...]:
        """Return the unqualified tables that the query reads, in order: DataFrames, or tables of the catalog."""
        return spark_table_names(self.query)

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        for name, frame in inputs.items():
            frame.createOrReplaceTempView(name)
        found = context.spark.sql(self.query)
        if not found.isStreaming:
            return found
        # Spark does not explain a stream that comes from its SQL parser: it takes it for one to be run at once.
        view = f"stream_{uuid.uuid4().hex}"
        found.createOrReplaceTempView(view)
        return context.spark.readStream.table(view)

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        return {"query": self.query} if keeps_state(self.query) else None


class Union(TransformMethod):
    """Puts the rows of several DataFrames below one another, matching columns by name. Duplicates stay.

    Numbers of different types become one type that has them all, and so do dates and timestamps. A BIGINT or DECIMAL
    becomes with a DOUBLE or FLOAT a DOUBLE, which has some 15 digits, as in other databases. A column that is text in
    one DataFrame and something else in another is refused: cast it in a withColumns step before. So are DECIMALs whose
    digits no DECIMAL has all. Both hold for what is in structs, arrays and maps too.
    """

    method = "union"

    input_data_frames: tuple[str, ...] = Field(min_length=2)
    """The DataFrames to unite."""
    allow_missing_columns: bool = False
    """Fill columns that some of the DataFrames lack with nulls."""

    def input_names(self) -> tuple[str, ...] | None:
        return self.input_data_frames

    @model_validator(mode="after")
    def _inputs_once(self) -> Self:
        refuse_duplicates(self.input_data_frames)
        return self

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if any(stream.inputs) and not all(stream.inputs):
            return "Spark does not unite a stream with a DataFrame that is none: make all of them streams"
        return None

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        if not self.allow_missing_columns:
            _same_columns(inputs)
        _check_types(inputs)
        first, *others = inputs.values()
        for other in others:
            first = first.unionByName(other, allowMissingColumns=self.allow_missing_columns)
        return first


def _same_columns(inputs: Mapping[str, DataFrame]) -> None:
    (first, frame), *others = inputs.items()
    expected = {column.casefold(): column for column in frame.columns}
    for name, other in others:
        there = {column.casefold(): column for column in other.columns}
        differing = [
            f"{column!r} is only in {owner!r}"
            for owner, mine, theirs in ((first, expected, there), (name, there, expected))
            for key, column in mine.items()
            if key not in theirs
        ]
        if differing:
            raise ConfigurationError(
                f"DataFrames {first!r} and {name!r} have different columns: {', '.join(differing)}; "
                "select the same ones before, or set allowMissingColumns"
            )


def _check_types(inputs: Mapping[str, DataFrame]) -> None:
    """Refuse to make one column of types between which Spark changes values: '01234' to 1234, 12.75 to 13."""
    from pyspark.sql.types import NullType

    seen: dict[tuple[str, ...], dict[str, tuple[str, DataType, DataType]]] = {}
    for name, frame in inputs.items():
        for field in frame.schema.fields:
            for place, part in parts(field.dataType):
                if isinstance(part, NullType):
                    continue
                others = seen.setdefault((field.name.casefold(), *place), {})
                for first, kind, other in others.values():
                    _check_pair(field.name, (first, kind, other), (name, field.dataType, part))
                others.setdefault(part.simpleString(), (name, field.dataType, part))


def _check_pair(column: str, one: tuple[str, DataType, DataType], other: tuple[str, DataType, DataType]) -> None:
    """Refuse to unite a part of a column with that of another DataFrame.

    Each is a DataFrame, the column's type in it, and the type of the part, which may be the whole column.
    """
    (first, kind, part), (second, other_kind, other_part) = one, other
    found = f"column {column!r} is {kind.simpleString()} in {first!r} and {other_kind.simpleString()} in {second!r}"
    if is_text(part) != is_text(other_part):
        advice = "cast one of them in a step before"
        if part is kind:
            advice += (
                f', e.g. withColumns {{"columns": {{"{column}": "CAST({column} AS STRING)"}}}} '
                f"on {(second if is_text(kind) else first)!r}"
            )
        raise ConfigurationError(f"{found}, and Spark would read the texts as the other type: {advice}")
    if lose_digits(part, other_part):
        raise ConfigurationError(
            f"{found}, and no DECIMAL has the digits of both: Spark would round values; cast one of them in a step "
            "before, to no more digits than its values have"
        )


class DropDuplicates(SingleInputTransform):
    """Keeps one row of those that are equal, in the given columns or in all."""

    method = "dropDuplicates"

    columns: tuple[ColumnName, ...] = ()
    """Columns that tell duplicates; all when left out. Which of several rows stays is not defined."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        name, frame = only(inputs)
        require_columns(self.columns, name, frame)
        return frame.dropDuplicates(list(self.columns)) if self.columns else frame.dropDuplicates()

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        return {"columns": list(self.columns)}


class Repartition(SingleInputTransform):
    """Spreads rows evenly over a number of partitions."""

    method = "repartition"

    num_partitions: int = Field(gt=0)
    """How many partitions."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        _, frame = only(inputs)
        return frame.repartition(self.num_partitions)


class RepartitionByColumns(SingleInputTransform):
    """Brings rows with equal values in the given columns into the same partition."""

    method = "repartitionByColumns"

    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns to partition by."""
    num_partitions: int | None = Field(default=None, gt=0)
    """How many partitions; Spark's `spark.sql.shuffle.partitions` (which adaptive execution may lower) when left
    out."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        name, frame = only(inputs)
        require_columns(self.columns, name, frame)
        columns: list[Any] = [F.col(quote(column)) for column in self.columns]
        if self.num_partitions is None:
            return frame.repartition(*columns)
        return frame.repartition(self.num_partitions, *columns)


class Coalesce(SingleInputTransform):
    """Merges partitions down to a number of them, without a shuffle."""

    method = "coalesce"

    num_partitions: int = Field(gt=0)
    """At most how many partitions."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        _, frame = only(inputs)
        return frame.coalesce(self.num_partitions)

    def stream_problem(self, stream: StreamTraits) -> str | None:
        return (
            "coalesce would have the reading of the stream, and its state, run in these few tasks too: "
            "use repartition instead"
        )


class WithWatermark(SingleInputTransform):
    """Says how late rows of a stream may be: the state of older times is dropped, and their groups are complete.

    In a batch pipeline it does nothing.
    """

    method = "withWatermark"

    event_time: ColumnName
    """Timestamp column that tells when something happened."""
    delay: Annotated[str, Field(pattern=r"^\d+ *(seconds?|minutes?|hours?|days?|weeks?)$")]
    """How much later than the newest row a row may come, e.g. `10 minutes`. What comes later still may be left out of
    aggregates, joins and deduplication that have ended."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        name, frame = only(inputs)
        require_columns((self.event_time,), name, frame)
        return frame.withWatermark(self.event_time, self.delay)


class DropDuplicatesWithinWatermark(SingleInputTransform):
    """Keeps one row of those in a stream that are equal and no further apart than the watermark's delay."""

    method = "dropDuplicatesWithinWatermark"

    columns: tuple[ColumnName, ...] = ()
    """Columns that tell duplicates; all when left out."""

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if not any(stream.inputs):
            return "its input is not a stream: use dropDuplicates"
        if not stream.watermarked:
            return "it needs to know how late rows may be: add a withWatermark step before"
        return None

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        name, frame = only(inputs)
        require_columns(self.columns, name, frame)
        if not frame.isStreaming:
            raise ConfigurationError("dropDuplicatesWithinWatermark is for streams: use dropDuplicates")
        return frame.dropDuplicatesWithinWatermark(list(self.columns) or None)

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        return {"columns": list(self.columns)}


class CacheSelection(CacheControlMethod):
    """What the steps that cache and uncache chosen DataFrames have in common."""

    data_frames: tuple[str, ...] = ()
    """The DataFrames meant; the previous step's when left out."""

    def input_names(self) -> tuple[str, ...] | None:
        return self.data_frames or None

    def stream_problem(self, stream: StreamTraits) -> str | None:
        return "a stream has no data to keep in memory" if any(stream.inputs) else None


class Cache(CacheSelection):
    """Has Spark keep DataFrames for the rest of the run, once they have been computed."""

    method = "cache"

    storage_level: StorageLevelName = "MEMORY_AND_DISK"
    """Spark's storage level."""

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> None:
        for name, frame in inputs.items():
            context.cache.cache(name, frame, self.storage_level, adaptive=context.optimize)


class Uncache(CacheSelection):
    """Has Spark let go of cached DataFrames, once the steps before this one have run."""

    method = "uncache"

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> None:
        for name in inputs:
            context.cache.uncache(name)


class UncacheAll(CacheControlMethod):
    """Has Spark let go of every DataFrame that steps of the run have cached."""

    method = "uncacheAll"

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> None:
        context.cache.uncache_all()


def refuse_duplicates(input_data_frames: tuple[str, ...]) -> None:
    """Raise ValueError when a DataFrame is listed twice."""
    twice = sorted({name for name in input_data_frames if input_data_frames.count(name) > 1})
    if twice:
        raise ValueError(
            f"{', '.join(map(repr, twice))} is listed twice in 'inputDataFrames': to combine a DataFrame with itself, "
            'give it a second name by a step such as selectColumns {"columns": ["*"], "registerAs": "..."}'
        )
