"""Columns that a config names: found in a schema, nested ones too, and values compared with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType

ColumnName = Annotated[str, Field(min_length=1)]
Scalar = bool | int | float | str
_MAX_DIGITS = 38  # of Spark's decimals


def quote(name: str) -> str:
    """Return ``name`` as a Spark SQL identifier."""
    return "`" + name.replace("`", "``") + "`"


def require_columns(names: Iterable[str], dataframe: str, frame: DataFrame) -> None:
    """Raise DataFrameResolutionError when ``frame`` lacks one of ``names`` (in any case, as Spark looks them up)."""
    there = {column.casefold() for column in frame.columns}
    missing = [name for name in dict.fromkeys(names) if name.casefold() not in there]
    if missing:
        raise DataFrameResolutionError.unknown_columns(missing, dataframe, frame.columns)


def column_of(name: str, frame: DataFrame) -> Column:
    """Return the column called ``name``, or the nested one that it is the path of (``address.city``).

    Raises DataFrameResolutionError when there is none.
    """
    from pyspark.sql import functions as F  # noqa: N812

    found = _reference(name, frame.schema)
    if found is None:
        require_paths((name,), "input", frame)
    return F.col(found or "")


def type_of(name: str, frame: DataFrame) -> DataType:
    """Return the type of the column that ``column_of`` returns."""
    return frame.select(column_of(name, frame)).schema.fields[0].dataType


def clustered(frame: DataFrame, columns: Iterable[str]) -> DataFrame:
    """Return ``frame`` with the rows of equal values in ``columns`` together, in partitions of a sane size.

    None: as it is. Spark splits large groups and merges small ones while it runs:
    https://spark.apache.org/docs/latest/sql-ref-syntax-qry-select-hints.html#partitioning-hints
    """
    from pyspark.sql import functions as F  # noqa: N812

    found = [F.col(quote(name)) for name in columns]
    return frame.hint("rebalance", *found) if found else frame


def require_paths(names: Iterable[str], dataframe: str, frame: DataFrame) -> None:
    """Raise DataFrameResolutionError when ``frame`` has no column, nor a nested one, of one of ``names``."""
    missing = [name for name in dict.fromkeys(names) if _reference(name, frame.schema) is None]
    if missing:
        nested = any("." in name for name in missing)
        there = _paths(frame.schema) if nested else frame.columns
        raise DataFrameResolutionError.unknown_columns(missing, dataframe, there)


def _reference(name: str, schema: StructType) -> str | None:
    """Return what Spark takes for the column; names are the same in any case, as Spark looks them up."""
    from pyspark.sql.types import StructType

    for field in schema.fields:
        if field.name.casefold() == name.casefold():
            return quote(field.name)
    for field in schema.fields:
        prefix = f"{field.name}.".casefold()
        if name.casefold().startswith(prefix) and isinstance(field.dataType, StructType):
            inside = _reference(name[len(prefix) :], field.dataType)
            if inside is not None:
                return f"{quote(field.name)}.{inside}"
    return None


def _paths(schema: StructType, above: str = "") -> Iterator[str]:
    from pyspark.sql.types import StructType

    for field in schema.fields:
        yield f"{above}{field.name}"
        if isinstance(field.dataType, StructType):
            yield from _paths(field.dataType, f"{above}{field.name}.")


def literal_for(value: Scalar, column: str, data_type: DataType, *, is_bound: bool = False) -> Column:
    """Return ``value`` as what a column of ``data_type`` is compared with, without a loss on the way.

    ``is_bound``: whether values are to be below or above it, so that a number is none for texts: "9" is above "18".
    Raises ConfigurationError when it is no value of that type.
    """
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql import types as T  # noqa: N812

    try:
        if isinstance(data_type, T.BooleanType):
            return F.lit({"true": True, "false": False}[str(value).lower()])
        as_text = isinstance(value, str) if is_bound else not isinstance(value, bool)
        if isinstance(data_type, T.StringType | T.CharType | T.VarcharType) and as_text:
            return F.lit(str(value))
        if isinstance(data_type, T.FloatType | T.DoubleType) and not isinstance(value, bool):
            return F.lit(float(value)).cast(data_type)
        if isinstance(data_type, T.NumericType) and not isinstance(value, bool):
            return F.lit(_decimal(value))
        if isinstance(data_type, T.DateType) and isinstance(value, str):
            return F.lit(date.fromisoformat(value))
        if isinstance(data_type, T.TimestampType | T.TimestampNTZType) and isinstance(value, str):
            # As text: Spark takes it in the session's time zone, Python in the machine's.
            return F.lit(datetime.fromisoformat(value).isoformat(sep=" ")).cast(data_type)
    except (KeyError, ValueError, InvalidOperation):
        pass
    raise ConfigurationError(
        f"{value!r} can't be compared with column {column!r}, which is {data_type.simpleString()}: give a value of "
        "that type (dates and times as ISO text), or use an 'expression'"
    )


def _decimal(value: int | float | str) -> Decimal:
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError("not finite")
    plain = Decimal(format(number, "f"))
    exponent = plain.as_tuple().exponent
    if len(plain.as_tuple().digits) > _MAX_DIGITS or (isinstance(exponent, int) and -exponent > _MAX_DIGITS):
        raise ValueError("too many digits")
    return plain
