"""Expectations, evaluated together: all that one aggregation can tell is told by one, over one pass of the data.

A referential expectation joins the distinct keys of the other DataFrame into the rows before: ``compared``, or
``recalled``, make what the other functions take. Only rows that are not unique are shown by a query of their own, and
only when there are some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import PipelineError
from pipeline_assets.redaction import MASK, redact_field
from pipeline_assets.spark.failures import is_spark_error, spark_failure
from pipeline_assets.steps.base import ExpectationResult, Samples, Severity
from pipeline_assets.steps.columns import quote, require_paths
from pipeline_assets.steps.expectations import Expectation, RowExpectation
from pipeline_assets.steps.table_expectations import AggregateExpectation, Judgement, Referential, Schema
from pipeline_assets.steps.text_formats import as_json

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

REASONS_COLUMN = "quarantine_reasons"
# Columns that are added for the pass; a DataFrame has none that are called so.
_MARK = "__expectation"
_RECORD = f"{_MARK}_record"
_POSITION = f"{_MARK}_position"
_TOTAL = "total"
_TEXT_LIMIT = 1000

References = Mapping[str, "DataFrame"]


@dataclass(frozen=True)
class Stated:
    """An expectation as a step states it: under a name, and what its failure counts."""

    name: str
    expectation: Expectation
    severity: Severity


@dataclass(frozen=True)
class Sampling:
    """How many failed records may be shown, and which columns only as asterisks."""

    size: int
    masked: tuple[str, ...] = ()


def check_all(stated: Sequence[Stated], frame: DataFrame, references: References, sampling: Sampling) -> None:
    """Raise ConfigurationError for the first expectation that does not fit the schema of ``frame``."""
    for item in stated:
        with _named(item, frame):
            item.expectation.check(frame, references)
    require_paths(sampling.masked, "input", frame)


def compared(stated: Sequence[Stated], frame: DataFrame, references: References) -> DataFrame:
    """Return ``frame`` with a column for each of ``stated`` that looks into another DataFrame."""
    for item in stated:
        if isinstance(item.expectation, Referential):
            frame = item.expectation.met(frame, references, _met(item))
    return frame


def recalled(stated: Sequence[Stated], frame: DataFrame, bad: DataFrame) -> DataFrame:
    """Return what ``compared`` did when it came to ``bad``: rows of ``frame`` with their ``failed_names``."""
    from pyspark.sql import functions as F  # noqa: N812

    for item in stated:
        if isinstance(item.expectation, Referential):
            for_this = bad.where(F.array_contains(REASONS_COLUMN, reason(item)))
            frame = item.expectation.met_before(frame, for_this, _met(item))
    return frame


def without_marks(stated: Sequence[Stated], compared: DataFrame) -> DataFrame:
    """Return the DataFrame that ``compared`` was made of."""
    return compared.drop(*(_met(item) for item in stated if isinstance(item.expectation, Referential)))


def evaluate(
    stated: Sequence[Stated], compared: DataFrame, sampling: Sampling, *, is_micro_batch: bool = False
) -> tuple[ExpectationResult, ...]:
    """Evaluate ``stated``. Each result has up to ``sampling.size`` of the records that fail.

    ``is_micro_batch``: the rows are of a stream. Without rows, as when all were left out before, it meets all that
    is about rows: it would be tried again for ever, however many come later.
    """
    measured: dict[str, Any] = {}
    if not all(isinstance(item.expectation, Schema) for item in stated):
        prepared, aggregates = _aggregates(stated, compared, sampling)
        (row,) = prepared.agg(*(column.alias(name) for name, column in aggregates.items())).collect()
        measured = dict(zip(aggregates, row, strict=True))
    frame = without_marks(stated, compared)
    return tuple(
        _result(item, position, measured, frame, sampling, is_micro_batch=is_micro_batch)
        for position, item in enumerate(stated)
    )


def failed_names(stated: Sequence[Stated], compared: DataFrame) -> Column:
    """Return, for each row, what it does not meet of ``stated``, all about single rows: an array of texts."""
    from pyspark.sql import functions as F  # noqa: N812

    reasons = [F.when(fails, F.lit(reason(item))) for item in stated if (fails := _fails(item, compared)) is not None]
    return F.array_compact(F.array(*reasons))


def reason(item: Stated) -> str:
    """Return what stands with a row that does not meet ``item``."""
    says = item.expectation.says()
    return says if item.name in ("", says) else f"{item.name}: {says}"


def _aggregates(
    stated: Sequence[Stated], compared: DataFrame, sampling: Sampling
) -> tuple[DataFrame, dict[str, Column]]:
    """Return the DataFrame to aggregate, and the aggregates by name."""
    from pyspark.sql import functions as F  # noqa: N812

    frame = without_marks(stated, compared)
    failed: dict[str, Column] = {}
    aggregates = {_TOTAL: F.expr("count(1)")}
    for position, item in enumerate(stated):
        if (fails := _fails(item, compared)) is not None:
            failed[_flag(position)] = fails
            aggregates[_flag(position)] = F.count_if(F.col(_flag(position)))
        elif isinstance(item.expectation, AggregateExpectation):
            for name, column in item.expectation.measures(frame).items():
                aggregates[f"{position}_{name}"] = column
    prepared = compared.withColumns(failed) if failed else compared
    if failed and sampling.size:
        any_failed = reduce(lambda left, right: left | right, (F.col(name) for name in failed))
        # Records are made into texts only where there is one to show.
        record = F.when(any_failed, F.struct(*_texts(frame, sampling.masked)))
        prepared = prepared.withColumns({_RECORD: record, _POSITION: F.monotonically_increasing_id()})
        for name in failed:
            order = F.when(F.col(name), F.col(_POSITION))
            aggregates[f"{name}_samples"] = F.min_by(F.col(_RECORD), order, sampling.size)
    return prepared, aggregates


def _flag(position: int) -> str:
    return f"{_MARK}_failed_{position}"


def _met(item: Stated) -> str:
    # Of any name a column's name that needs no quotes.
    return f"{_MARK}_met_{item.name.encode().hex()}"


def _fails(item: Stated, compared: DataFrame) -> Column | None:
    """Return whether a row fails; None where no single row tells."""
    from pyspark.sql import functions as F  # noqa: N812

    if isinstance(item.expectation, Referential):
        return ~F.col(_met(item))
    if isinstance(item.expectation, RowExpectation):
        return ~F.coalesce(item.expectation.holds(compared), F.expr("false"))
    return None


def _result(
    item: Stated,
    position: int,
    measured: Mapping[str, Any],
    frame: DataFrame,
    sampling: Sampling,
    *,
    is_micro_batch: bool,
) -> ExpectationResult:
    expectation, total = item.expectation, measured.get(_TOTAL, 0)
    samples: Samples | None = None
    if isinstance(expectation, RowExpectation | Referential):
        failed = measured[_flag(position)]
        judged = Judgement(failed == 0, failed)
        samples = _samples(measured.get(f"{_flag(position)}_samples"), sampling)
    elif isinstance(expectation, AggregateExpectation) and is_micro_batch and total == 0:
        judged = Judgement(True, 0)
    elif isinstance(expectation, AggregateExpectation):
        own = {name.removeprefix(f"{position}_"): value for name, value in measured.items()}
        judged = expectation.judge({name: own[name] for name in expectation.measures(frame)}, total)
        if judged.failed and sampling.size and (examples := expectation.examples(frame)) is not None:
            samples = _samples(_rows_of(examples, sampling), sampling)
    else:
        assert isinstance(expectation, Schema)  # noqa: S101  (there are no others)
        judged = expectation.judge(frame)
        samples = judged.samples
    return ExpectationResult(
        item.name,
        judged.passed,
        judged.failed,
        total if judged.total is None else judged.total,
        item.severity,
        judged.facts,
        samples,
        of_columns=isinstance(expectation, Schema),
        found=judged.found,
    )


def _rows_of(frame: DataFrame, sampling: Sampling) -> list[Any]:
    """Return the first rows of ``frame`` as ``_samples`` takes them."""
    return frame.select(*_texts(frame, sampling.masked)).limit(sampling.size).collect()


def _samples(records: Sequence[Any] | None, sampling: Sampling) -> Samples | None:
    if not records:
        return None
    columns = tuple(records[0].__fields__)
    rows = tuple(
        tuple(None if text is None else redact_field(name, text) for name, text in zip(columns, record, strict=True))
        for record in records
    )
    return Samples(columns, rows)


def _texts(frame: DataFrame, masked: Sequence[str]) -> Iterator[Column]:
    """Yield the columns of ``frame`` as texts that fit a table."""
    from pyspark.sql import functions as F  # noqa: N812

    names = [field.name.casefold() for field in frame.schema.fields]
    for field in frame.schema.fields:
        # Of two columns with one name Spark can take neither.
        if names.count(field.name.casefold()) == 1:
            is_hidden = any(_overlap(field.name, mask) for mask in masked)
            text = F.lit(MASK) if is_hidden else _as_text(F.col(quote(field.name)), field.dataType)
            yield F.substring(text, 1, _TEXT_LIMIT).alias(field.name)


def _overlap(one: str, other: str) -> bool:
    """Return whether one of two columns is the other, or a part of it, by their paths."""
    # A query for examples has nested columns under their paths, without the structs that they are parts of.
    first, second = f"{one}.".casefold(), f"{other}.".casefold()
    return first.startswith(second) or second.startswith(first)


def _as_text(column: Column, data_type: DataType) -> Column:
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql import types as T  # noqa: N812

    if isinstance(data_type, T.BinaryType):
        return F.concat(F.lit("0x"), F.hex(F.substring(column, 1, _TEXT_LIMIT)))
    if isinstance(data_type, T.StructType | T.ArrayType | T.MapType):
        # With the names in it, by which secrets are told.
        return as_json(column)
    return column.cast("string")


@contextmanager
def _named(item: Stated, frame: DataFrame) -> Iterator[None]:
    """Name the expectation in what is wrong with it."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, PipelineError) or is_spark_error(error)):
            raise
        found = error if isinstance(error, PipelineError) else spark_failure(error, columns=tuple(frame.columns))
        if item.name:
            found.message = f"expectation {item.name!r}: {found.message}"
            found.args = (found.message,)
        raise found from None
