"""Which types hold the values of others, by what Spark makes of them: there and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql import types as T  # noqa: N812

from pipeline_assets.steps.column_types import are_comparable, holds

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Each with the values that take the most room in it.
WIDEST: dict[T.DataType, str] = {
    T.ByteType(): "-128",
    T.ShortType(): "-32767",
    T.IntegerType(): "-2147483647",
    T.LongType(): "-9223372036854775807",
    T.FloatType(): "1e30",
    T.DoubleType(): "1e300",
    T.DecimalType(3, 0): "999",
    T.DecimalType(10, 0): "9999999999",
    T.DecimalType(10, 2): "99999999.99",
    T.DecimalType(12, 2): "9999999999.99",
    T.DecimalType(12, 4): "99999999.9999",
    T.DecimalType(19, 0): "9999999999999999999",
    T.DecimalType(38, 10): "9999999999999999999999999999.9999999999",
}


def test_numbers(spark: SparkSession) -> None:
    """What is said to hold a type gives its widest values back; what gives them back is said so, decimals apart."""
    pairs = [(given, wanted) for given in WIDEST for wanted in WIDEST]
    columns = [
        f"try_cast(try_cast(CAST('{WIDEST[given]}' AS {given.simpleString()}) AS {wanted.simpleString()}) "
        f"AS {given.simpleString()}) <=> CAST('{WIDEST[given]}' AS {given.simpleString()})"
        for given, wanted in pairs
    ]
    (found,) = spark.range(1).selectExpr(*(f"{column} AS c{at}" for at, column in enumerate(columns))).collect()
    for (given, wanted), is_same in zip(pairs, found, strict=True):
        is_whole = not isinstance(given, T.DecimalType) or isinstance(wanted, T.DecimalType)
        assert holds(wanted, given) == is_same or (not is_whole and not holds(wanted, given)), (given, wanted)


def test_decimals_that_are_compared(spark: SparkSession) -> None:
    """Where values come back from the type that Spark makes of two, the two are compared; where not, they are not."""
    extremes = ("18.18", "19.19", "20.18", "38.0", "38.18", "38.19", "38.38")
    decimals = [T.DecimalType(*map(int, text.split("."))) for text in extremes]
    widest = WIDEST | {kind: f"{'9' * (kind.precision - kind.scale)}.{'9' * kind.scale}" for kind in decimals}
    exact = [kind for kind in widest if not isinstance(kind, T.FloatType | T.DoubleType)]
    pairs = [(one, other) for one in exact for other in exact]

    def comes_back(one: T.DataType, other: T.DataType) -> str:
        value = f"CAST('{widest[one]}' AS {one.simpleString()})"
        united = f"coalesce({value}, CAST(NULL AS {other.simpleString()}))"
        return f"try_cast({united} AS {one.simpleString()}) <=> {value}"

    columns = [f"{comes_back(one, other)} AND {comes_back(other, one)}" for one, other in pairs]
    (found,) = spark.range(1).selectExpr(*(f"{column} AS c{at}" for at, column in enumerate(columns))).collect()
    assert {pair for pair in pairs if are_comparable(*pair)} == {
        pair for pair, is_same in zip(pairs, found, strict=True) if is_same
    }


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        (T.VarcharType(3), T.StringType(), True),
        (T.StringType(), T.CharType(3), True),
        (T.NullType(), T.DateType(), True),
        (T.DateType(), T.DateType(), True),
        (T.DateType(), T.TimestampType(), False),
        (T.TimestampType(), T.DateType(), False),
        (T.TimestampNTZType(), T.TimestampType(), False),
        (T.IntegerType(), T.StringType(), False),
        (T.StringType(), T.IntegerType(), False),
        (T.BooleanType(), T.IntegerType(), False),
        (T.BinaryType(), T.StringType(), False),
    ],
    ids=str,
)
def test_others(given: Any, wanted: Any, expected: bool) -> None:
    assert holds(wanted, given) is expected
