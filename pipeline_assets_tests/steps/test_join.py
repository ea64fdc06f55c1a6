"""Joins, their results computed another way by DuckDB."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import duckdb
import pytest

from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.join import JoinDataFrames, JoinType
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

CUSTOMERS: Rows = [(1, "Ann", "IT"), (2, "Bob", "FR"), (3, "Cem", None), (None, "Dee", "DE")]
ORDERS: Rows = [(10, 1, 5.0), (11, 1, 7.5), (12, 3, 1.0), (13, 9, 2.0), (14, None, 3.0)]
PAYMENTS: Rows = [(10, "card"), (12, "cash"), (99, "card")]
TABLES = {
    "customers": ("id INT, name STRING, country STRING", CUSTOMERS),
    "orders": ("id INT, customer_id INT, amount DOUBLE", ORDERS),
    "payments": ("order_id INT, kind STRING", PAYMENTS),
    "names": ("id BIGINT, name STRING", [(1, "Anna"), (4, "Eve"), (None, "Zoe")]),
}
DUCKDB_JOINS = {"inner": "JOIN", "outer": "FULL JOIN", "left": "LEFT JOIN", "right": "RIGHT JOIN"}
DUCKDB_JOINS |= {"leftsemi": "SEMI JOIN", "leftanti": "ANTI JOIN", "cross": "CROSS JOIN"}


def by_duckdb(query: str) -> Rows:
    with duckdb.connect() as connection:
        for name, (schema, rows) in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({schema.replace('STRING', 'TEXT')})")
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        return in_order(connection.execute(query).fetchall())


def join(config: dict[str, Any], context: StepContext, inputs: dict[str, DataFrame] | None = None) -> DataFrame:
    method = JoinDataFrames.model_validate(config)
    names = method.input_names() or ()
    frames = inputs or {name: frame_of(context.spark, *TABLES[name]) for name in names}
    return method.transform({name: frames[name] for name in names}, context)


def plain(join_type: str) -> str:
    """Return the one of Spark's seven joins that a name stands for."""
    name = join_type.replace("_", "").replace("outer", "") or "outer"
    return {"full": "outer", "semi": "leftsemi", "anti": "leftanti"}.get(name, name)


@pytest.mark.parametrize("join_type", get_args(JoinType))
def test_every_join_type_with_different_key_names(join_type: str, context: StepContext) -> None:
    config = {"inputDataFrames": ["customers", "orders"], "joinType": join_type}
    kind = plain(join_type)
    on = "" if kind == "cross" else "ON customers.id = orders.customer_id"
    keys = {} if kind == "cross" else {"leftKeys": ["id"], "rightKeys": ["customer_id"]}
    result = join({**config, **keys}, context)
    columns = ["id", "name", "country", "orders_id", "customer_id", "amount"]
    assert result.columns == (columns[:3] if kind.startswith("left") and kind != "left" else columns)
    assert rows_of(result) == by_duckdb(f"SELECT * FROM customers {DUCKDB_JOINS[kind]} orders {on}")


@pytest.mark.parametrize("join_type", ["inner", "outer", "left", "right", "left_semi", "left_anti"])
def test_keys_of_the_same_name_appear_once(join_type: str, context: StepContext) -> None:
    result = join({"inputDataFrames": ["customers", "names"], "joinType": join_type, "keys": ["id"]}, context)
    kind = plain(join_type)
    if kind in ("leftsemi", "leftanti"):
        columns, selected = ["id", "name", "country"], "*"
    else:
        columns, selected = ["id", "name", "country", "names_name"], "id, customers.name, country, names.name"
    assert result.columns == columns
    query = f"SELECT {selected} FROM customers {DUCKDB_JOINS[kind]} names USING (id)"
    assert rows_of(result) == by_duckdb(query)


def test_three_dataframes_from_left_to_right(context: StepContext) -> None:
    config = {
        "inputDataFrames": ["customers", "orders", "payments"],
        "joinType": "LEFT",
        "leftKeys": [["id"], ["orders_id"]],
        "rightKeys": [["customer_id"], ["order_id"]],
    }
    assert rows_of(join(config, context)) == by_duckdb(
        "SELECT * FROM customers LEFT JOIN orders ON customers.id = customer_id "
        "LEFT JOIN payments ON orders.id = order_id"
    )


def test_full_join_of_three_on_common_keys(context: StepContext) -> None:
    spark = context.spark
    tables: dict[str, Rows] = {"a": [(1, "a1"), (2, "a2")], "b": [(2, "b2"), (3, "b3")], "c": [(3, "c3"), (4, "c4")]}
    inputs = {name: frame_of(spark, f"k INT, {name}_value STRING", rows) for name, rows in tables.items()}
    result = join({"inputDataFrames": ["a", "b", "c"], "joinType": "full", "keys": ["k"]}, context, inputs)
    assert result.columns == ["k", "a_value", "b_value", "c_value"]
    assert rows_of(result) == in_order(
        [(1, "a1", None, None), (2, "a2", "b2", None), (3, None, "b3", "c3"), (4, None, None, "c4")]
    )


def test_condition(context: StepContext) -> None:
    config = {
        "inputDataFrames": ["customers", "orders", "payments"],
        "condition": ["customers.id = orders.customer_id AND amount > 2", "orders.id >= payments.order_id"],
    }
    assert rows_of(join(config, context)) == by_duckdb(
        "SELECT * FROM customers JOIN orders ON customers.id = customer_id AND amount > 2 "
        "JOIN payments ON orders.id >= order_id"
    )


def test_rename_before_the_join(context: StepContext) -> None:
    config = {
        "inputDataFrames": ["customers", "orders"],
        "rename": {"customers": {"id": "customer_id"}, "orders": {"id": "order_id"}},
        "keys": ["customer_id"],
    }
    result = join(config, context)
    assert result.columns == ["customer_id", "name", "country", "order_id", "amount"]
    assert rows_of(result) == by_duckdb(
        "SELECT customers.id, name, country, orders.id, amount FROM customers JOIN orders ON customers.id = customer_id"
    )


def test_two_columns_exchange_their_names(context: StepContext) -> None:
    config = {
        "inputDataFrames": ["customers", "orders"],
        "rename": {"orders": {"id": "customer_id", "customer_id": "id"}},
        "keys": ["id"],
    }
    result = join(config, context)
    assert result.columns == ["id", "name", "country", "customer_id", "amount"]
    assert rows_of(result) == by_duckdb(
        "SELECT customers.id, name, country, orders.id, amount FROM customers JOIN orders ON customers.id = customer_id"
    )


def test_a_dataframe_joins_itself_under_a_second_name(context: StepContext) -> None:
    frame = frame_of(context.spark, "id INT, boss INT", [(1, None), (2, 1), (3, 1)])
    config = {"inputDataFrames": ["staff", "bosses"], "leftKeys": ["boss"], "rightKeys": ["id"]}
    result = join(config, context, {"staff": frame, "bosses": frame.select("*")})
    assert result.columns == ["id", "boss", "bosses_id", "bosses_boss"]
    assert rows_of(result) == [(2, 1, 1, None), (3, 1, 1, None)]
    assert rows_of(join(config, context, {"staff": frame, "bosses": frame})) == rows_of(result)


def test_names_are_compared_without_case(context: StepContext) -> None:
    left = frame_of(context.spark, "ID INT, Name STRING", [(1, "a")])
    right = frame_of(context.spark, "id INT, name STRING", [(1, "b")])
    result = join({"inputDataFrames": ["l", "r"], "keys": ["Id"]}, context, {"l": left, "r": right})
    assert result.columns == ["ID", "Name", "r_name"]
    assert rows_of(result) == [(1, "a", "b")]


def test_the_plan_is_that_of_a_join_written_by_hand(context: StepContext, capsys: pytest.CaptureFixture[str]) -> None:
    customers, orders, payments = (frame_of(context.spark, *TABLES[n]) for n in ("customers", "orders", "payments"))
    by_hand = customers.join(orders, customers["id"] == orders["customer_id"]).join(
        payments, orders["id"] == payments["order_id"]
    )
    config = {
        "inputDataFrames": ["customers", "orders", "payments"],
        "leftKeys": [["id"], ["orders_id"]],
        "rightKeys": [["customer_id"], ["order_id"]],
    }
    ours = join(config, context, {"customers": customers, "orders": orders, "payments": payments})

    def operators(frame: DataFrame) -> dict[str, int]:
        capsys.readouterr()
        frame.explain()
        plan = capsys.readouterr().out
        return {name: plan.count(name) for name in ("Exchange", "Join", "Scan", "Sort", "Filter")}

    assert operators(ours) == operators(by_hand)
    assert operators(ours)["Join"] >= 2


def test_a_clash_that_needs_a_decision(context: StepContext) -> None:
    left = frame_of(context.spark, "k INT, id INT, orders_id INT", [])
    right = frame_of(context.spark, "k INT, ID INT", [])
    with pytest.raises(ConfigurationError, match="'ID' .and 'orders_ID'.*rename") as caught:
        join({"inputDataFrames": ["c", "orders"], "keys": ["k"]}, context, {"c": left, "orders": right})
    assert '"rename": {"orders"' in caught.value.message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keys": ["idd"]}, "'customers' has no column 'idd', did you mean 'id'"),
        (
            {"leftKeys": ["id"], "rightKeys": ["customer"]},
            "'orders' has no column 'customer', did you mean 'customer_id'",
        ),
        ({"keys": ["id"], "rename": {"orders": {"nope": "x"}}}, "'orders' has no column 'nope'"),
    ],
)
def test_key_that_does_not_exist(keys: dict[str, Any], message: str, context: StepContext) -> None:
    with pytest.raises(DataFrameResolutionError, match=message):
        join({"inputDataFrames": ["customers", "orders"], **keys}, context)


@pytest.mark.parametrize(
    ("left", "right", "allowed"),
    [
        ("INT", "BIGINT", True),
        ("INT", "DECIMAL(10,2)", True),
        ("BIGINT", "DOUBLE", True),
        ("BIGINT", "DECIMAL(38,18)", True),
        ("DECIMAL(38,18)", "DECIMAL(20,0)", True),
        ("STRING", "VARCHAR(3)", True),
        ("ARRAY<INT>", "ARRAY<INT>", True),
        ("INT", "STRING", False),
        ("DATE", "TIMESTAMP", False),
        ("TIMESTAMP", "TIMESTAMP_NTZ", False),
        ("BOOLEAN", "INT", False),
    ],
)
def test_types_of_keys(left: str, right: str, allowed: bool, context: StepContext) -> None:
    inputs = {
        "l": context.spark.sql(f"SELECT CAST(NULL AS {left}) a"),
        "r": context.spark.sql(f"SELECT CAST(NULL AS {right}) b"),
    }
    config = {"inputDataFrames": ["l", "r"], "leftKeys": ["a"], "rightKeys": ["b"]}
    if allowed:
        assert rows_of(join(config, context, inputs)) == []
    else:
        with pytest.raises(ConfigurationError, match="'a' of 'l' is .*, 'b' of 'r' is .*CAST.b AS"):
            join(config, context, inputs)


@pytest.mark.parametrize(
    ("left", "right"),
    [("DECIMAL(38,18)", "DECIMAL(38,0)"), ("DECIMAL(38,0)", "DECIMAL(38,18)"), ("DECIMAL(38,19)", "BIGINT")],
)
def test_keys_that_spark_would_round_to_compare(left: str, right: str, context: StepContext) -> None:
    inputs = {
        "l": context.spark.sql(f"SELECT CAST('12.4' AS {left}) AS a"),
        "r": context.spark.sql(f"SELECT CAST('12' AS {right}) AS b"),
    }
    config = {"inputDataFrames": ["l", "r"], "leftKeys": ["a"], "rightKeys": ["b"]}
    wanted = f"'a' of 'l' is {left.lower()}, 'b' of 'r' is {right.lower()}, and no DECIMAL has the digits of both"
    with pytest.raises(ConfigurationError, match=f"{re.escape(wanted)}.*cast one of them"):
        join(config, context, inputs)


def test_duplicate_columns_are_refused(context: StepContext) -> None:
    twice = context.spark.sql("SELECT 1 AS id, 2 AS ID")
    with pytest.raises(ConfigurationError, match="'l' has column 'ID' twice"):
        join(
            {"inputDataFrames": ["l", "r"], "keys": ["id"]}, context, {"l": twice, "r": twice.select(twice.columns[:0])}
        )


TWO = {"inputDataFrames": ["a", "b"]}
THREE = {"inputDataFrames": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inputDataFrames": ["a"], "keys": ["k"]}, "at least 2 items"),
        ({"inputDataFrames": ["a", "b", "a"], "keys": ["k"]}, "'a' is listed twice.*selectColumns"),
        (TWO, "needs one of keys, leftKeys with rightKeys, condition .got none"),
        (TWO | {"keys": ["k"], "condition": "a.k = b.k"}, "got keys and condition"),
        (TWO | {"leftKeys": ["k"]}, "must have the same length .got 1 and 0"),
        (TWO | {"leftKeys": ["k", "l"], "rightKeys": ["k"]}, "must have the same length .got 2 and 1"),
        (TWO | {"joinType": "cross", "keys": ["k"]}, "a cross join takes no keys"),
        (TWO | {"joinType": "sideways", "keys": ["k"]}, "full_outer"),
        (TWO | {"keys": ["k"], "rename": {"c": {"x": "y"}}}, "'rename' names 'c': expected one of"),
        (TWO | {"keys": ["k"], "rename": {"a": {"x": "z", "y": "Z"}}}, "two columns of 'a' the same new name"),
        (THREE | {"condition": "a.k = b.k"}, "3 DataFrames need 2 conditions"),
        (THREE | {"leftKeys": ["k"], "rightKeys": [["k"]]}, "rightKeys holds 1 lists: expected 2"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JoinDataFrames.model_validate(config)
