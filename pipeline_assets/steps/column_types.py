"""Which types of columns go together: without a conversion that alters values, or that none expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql.types import DataType

# By the name of a type: those all of whose values it has, exactly.
_HELD = {
    "short": {"byte"},
    "integer": {"byte", "short"},
    "long": {"byte", "short", "integer"},
    "float": {"byte", "short"},
    "double": {"byte", "short", "integer", "float"},
}
_INTEGER_DIGITS = {"byte": 3, "short": 5, "integer": 10, "long": 19}
# As Spark counts them where it makes a DECIMAL of a BIGINT and another one.
_SPARK_DIGITS = _INTEGER_DIGITS | {"long": 20}
_MOST_DIGITS = 38


def is_text(kind: DataType) -> bool:
    """Whether ``kind`` is one of Spark's types of text, which are one in what this product does with them."""
    from pyspark.sql.types import CharType, StringType, VarcharType

    return isinstance(kind, StringType | CharType | VarcharType)


def are_comparable(left: DataType, right: DataType) -> bool:
    """Whether Spark compares values of the two types as they are, or as numbers, of which it rounds no DECIMAL."""
    from pyspark.sql.types import NullType, NumericType

    if isinstance(left, NumericType) and isinstance(right, NumericType):
        return not lose_digits(left, right)
    if is_text(left) and is_text(right):
        return True
    return NullType() in (left, right) or left.simpleString() == right.simpleString()


def holds(wanted: DataType, given: DataType) -> bool:
    """Whether a column of type ``wanted`` takes each value of type ``given`` as it is."""
    from pyspark.sql.types import DecimalType, NullType

    if given == wanted or isinstance(given, NullType) or (is_text(given) and is_text(wanted)):
        return True
    if not isinstance(wanted, DecimalType):
        return given.typeName() in _HELD.get(wanted.typeName(), ())
    digits = _digits(given, _INTEGER_DIGITS)
    return digits is not None and wanted.precision - wanted.scale >= digits[0] and wanted.scale >= digits[1]


def lose_digits(one: DataType, other: DataType) -> bool:
    """Whether the DECIMAL that Spark makes of the two types has too few digits behind the point for one of them."""
    mine, theirs = _digits(one, _SPARK_DIGITS), _digits(other, _SPARK_DIGITS)
    if mine is None or theirs is None:
        return False
    return max(mine[0], theirs[0]) + max(mine[1], theirs[1]) > _MOST_DIGITS


def _digits(kind: DataType, of_integers: Mapping[str, int]) -> tuple[int, int] | None:
    """Return how many digits values of type ``kind`` have before the point, and behind it; None when that differs."""
    from pyspark.sql.types import DecimalType

    if isinstance(kind, DecimalType):
        return kind.precision - kind.scale, kind.scale
    return (of_integers[kind.typeName()], 0) if kind.typeName() in of_integers else None


def parts(kind: DataType) -> Iterator[tuple[tuple[str, ...], DataType]]:
    """Yield ``kind`` and each type nested in it, with its place: the folded names of the fields that lead to it."""
    from pyspark.sql.types import ArrayType, MapType, StructType

    inner: list[tuple[str, DataType]] = []
    if isinstance(kind, StructType):
        inner = [(field.name.casefold(), field.dataType) for field in kind.fields]
    elif isinstance(kind, ArrayType):
        inner = [("element", kind.elementType)]
    elif isinstance(kind, MapType):
        inner = [("key", kind.keyType), ("value", kind.valueType)]
    yield (), kind
    for name, nested in inner:
        for place, part in parts(nested):
            yield (name, *place), part
