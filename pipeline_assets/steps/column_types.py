"""Which types of columns go together: without a conversion that alters values, or that none expects."""

from __future__ import annotations

from collections.abc import Iterator
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


def is_text(kind: DataType) -> bool:
    """Whether ``kind`` is one of Spark's types of text, which are one in what this product does with them."""
    from pyspark.sql.types import CharType, StringType, VarcharType

    return isinstance(kind, StringType | CharType | VarcharType)


def are_comparable(left: DataType, right: DataType) -> bool:
    """Whether Spark compares values of the two types as they are, or as numbers."""
    from pyspark.sql.types import NullType, NumericType

    if isinstance(left, NumericType) and isinstance(right, NumericType):
        return True
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
    if isinstance(given, DecimalType):
        whole, scale = given.precision - given.scale, given.scale
    elif given.typeName() in _INTEGER_DIGITS:
        whole, scale = _INTEGER_DIGITS[given.typeName()], 0
    else:
        return False
    return wanted.scale >= scale and wanted.precision - wanted.scale >= whole


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
