from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import sqlglot
from sqlglot.lineage import lineage as sqlglot_lineage

from pipeline_assets.spark.lineage import column_lineage
from pipeline_assets_tests.spark_jobs import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    Transform = Callable[[Mapping[str, DataFrame]], DataFrame]

SCHEMAS = {
    "customers": "id BIGINT, name STRING, city STRING, since TIMESTAMP, tags ARRAY<STRING>",
    "orders": "id BIGINT, customer_id BIGINT, amount DOUBLE, status STRING",
}


def schemas(spark: SparkSession) -> dict[str, StructType]:
    return {name: spark.createDataFrame([], ddl).schema for name, ddl in SCHEMAS.items()}


def lineage_of(spark: SparkSession, transform: Transform) -> dict[str, str] | None:
    """The lineage with every column's origins as one text, for short expectations."""
    found = column_lineage(transform, schemas(spark), spark)
    return found and {
        column: " ".join(f"{name}.{source}" for name, source in origins) for column, origins in found.items()
    }


def sql(spark: SparkSession, query: str) -> Transform:
    def transform(inputs: Mapping[str, DataFrame]) -> DataFrame:
        for name, frame in inputs.items():
            frame.createOrReplaceTempView(name)
        return spark.sql(query)

    return transform


def same(*columns: str, of: str) -> dict[str, str]:
    return {column: f"{of}.{column}" for column in columns}


def test_filter_sort_limit_and_repartition_pass_columns_on(any_spark: SparkSession) -> None:
    assert lineage_of(
        any_spark,
        lambda inputs: (
            inputs["orders"].where("amount > 3").repartition(3, "id").sort("status").limit(5).dropDuplicates(["id"])
        ),
    ) == same("id", "customer_id", "amount", "status", of="orders")


def test_new_and_renamed_columns(any_spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    assert lineage_of(
        any_spark,
        lambda inputs: (
            inputs["orders"]
            .withColumn("label", F.concat_ws(", ", "status", "id"))
            .withColumnRenamed("amount", "euros")
            .withColumn("fixed", F.lit(3))
            .drop("customer_id")
        ),
    ) == {
        "id": "orders.id",
        "euros": "orders.amount",
        "status": "orders.status",
        "label": "orders.id orders.status",
        "fixed": "",
    }


def test_a_stream(any_spark: SparkSession) -> None:
    def transform(inputs: Mapping[str, DataFrame]) -> DataFrame:
        late = inputs["customers"].withWatermark("since", "1 hour").dropDuplicatesWithinWatermark(["id"])
        return late.join(inputs["orders"], late.id == inputs["orders"].customer_id).select("city", "amount", "since")

    found = column_lineage(transform, schemas(any_spark), any_spark, streams=["customers"])
    assert found == {
        "city": (("customers", "city"),),
        "amount": (("orders", "amount"),),
        "since": (("customers", "since"),),
    }


@pytest.mark.parametrize("kind", ["inner", "left", "right", "full", "cross", "left_semi", "left_anti"])
def test_joins_of_every_kind(any_spark: SparkSession, kind: str) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    def join(inputs: Mapping[str, DataFrame]) -> DataFrame:
        customers, orders = inputs["customers"].select("id", "name"), inputs["orders"].drop("id")
        if kind == "cross":
            return customers.crossJoin(orders)
        return customers.join(orders, F.col("id") == F.col("customer_id"), kind)

    right = same("customer_id", "amount", "status", of="orders")
    expected = same("id", "name", of="customers") | ({} if kind in ("left_semi", "left_anti") else right)
    assert lineage_of(any_spark, join) == expected


def test_a_full_join_using_a_column_takes_it_from_both(any_spark: SparkSession) -> None:
    found = lineage_of(
        any_spark,
        lambda inputs: inputs["customers"].select("id", "name").join(inputs["orders"], ["id"], "full"),
    )
    assert found is not None
    assert found["id"] == "customers.id orders.id"
    assert found["name"] == "customers.name"


def test_two_columns_of_one_name_are_told_together(any_spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    def join(inputs: Mapping[str, DataFrame]) -> DataFrame:
        left, right = inputs["customers"].alias("c"), inputs["orders"].alias("o")
        return left.join(right, F.col("c.id") == F.col("o.customer_id")).select("c.id", "o.id")

    assert lineage_of(any_spark, join) == {"id": "customers.id orders.id"}


def test_a_self_join(any_spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    def join(inputs: Mapping[str, DataFrame]) -> DataFrame:
        one, other = inputs["customers"].alias("one"), inputs["customers"].alias("other")
        return one.join(other, F.col("one.id") == F.col("other.id")).select("one.name", F.col("other.city").alias("c"))

    assert lineage_of(any_spark, join) == {"name": "customers.name", "c": "customers.city"}


def test_aggregates(any_spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    assert lineage_of(
        any_spark,
        lambda inputs: (
            inputs["orders"]
            .groupBy("status")
            .agg(F.expr("count(*) AS n"), F.expr("count(DISTINCT customer_id) AS customers"), F.sum("amount"))
        ),
    ) == {
        "status": "orders.status",
        "n": "",
        "customers": "orders.customer_id",
        "sum(amount)": "orders.amount",
    }
    assert lineage_of(any_spark, lambda inputs: inputs["orders"].agg(F.max("amount").alias("m"))) == {
        "m": "orders.amount"
    }


def test_windows_count_their_keys(any_spark: SparkSession) -> None:
    found = lineage_of(
        any_spark,
        sql(any_spark, "SELECT id, sum(amount) OVER (PARTITION BY customer_id ORDER BY id) AS s FROM orders"),
    )
    assert found == {"id": "orders.id", "s": "orders.amount orders.customer_id orders.id"}


def test_explode(any_spark: SparkSession) -> None:
    query = "SELECT id, tag, place FROM customers LATERAL VIEW posexplode(tags) t AS place, tag"
    assert lineage_of(any_spark, sql(any_spark, query)) == {
        "id": "customers.id",
        "tag": "customers.tags",
        "place": "customers.tags",
    }


def test_set_operations_go_by_position(any_spark: SparkSession) -> None:
    one, other = "SELECT id AS key, name AS text FROM customers", "SELECT customer_id, status FROM orders"
    both = {"key": "customers.id orders.customer_id", "text": "customers.name orders.status"}
    for operation in ("UNION", "UNION ALL", "INTERSECT"):
        assert lineage_of(any_spark, sql(any_spark, f"{one} {operation} {other}")) == both
    assert lineage_of(any_spark, sql(any_spark, f"{one} EXCEPT {other}")) == {
        "key": "customers.id",
        "text": "customers.name",
    }


def test_union_by_name_with_missing_columns(any_spark: SparkSession) -> None:
    found = lineage_of(
        any_spark,
        lambda inputs: (
            inputs["customers"].select("id", "name").unionByName(inputs["orders"].select("amount", "id"), True)
        ),
    )
    assert found == {"id": "customers.id orders.id", "name": "customers.name", "amount": "orders.amount"}


def test_pivot_and_rollup(any_spark: SparkSession) -> None:
    rows = "SELECT customer_id, status, amount FROM orders"
    pivot = f"SELECT * FROM ({rows}) PIVOT (sum(amount) FOR status IN ('a', 'b'))"
    assert lineage_of(any_spark, sql(any_spark, pivot)) == {
        "customer_id": "orders.customer_id",
        "a": "orders.amount orders.status",
        "b": "orders.amount orders.status",
    }
    rollup = "SELECT status, sum(amount) AS s FROM orders GROUP BY ROLLUP (status) HAVING sum(amount) > 3"
    assert lineage_of(any_spark, sql(any_spark, rollup)) == {"status": "orders.status", "s": "orders.amount"}


def test_subqueries(any_spark: SparkSession) -> None:
    query = """
        SELECT name, (SELECT max(amount) FROM orders) AS highest,
               (SELECT max(o.amount) FROM orders o WHERE o.customer_id = c.id) AS own
        FROM customers c WHERE id IN (SELECT customer_id FROM orders WHERE status = 'paid')
    """
    assert lineage_of(any_spark, sql(any_spark, query)) == {
        "name": "customers.name",
        "highest": "orders.amount",
        "own": "customers.id orders.amount",
    }


# sqlglot finds the same from the text of the query, without Spark.
QUERIES = [
    """SELECT c.name, upper(c.city) AS place, o.amount * 2 AS twice
       FROM customers c JOIN orders o ON c.id = o.customer_id""",
    """WITH totals AS (SELECT customer_id, sum(amount) AS total FROM orders GROUP BY customer_id)
       SELECT c.name, t.total, u.total AS again FROM customers c
       JOIN totals t ON c.id = t.customer_id JOIN totals u ON c.id = u.customer_id""",
    "SELECT status, max(amount) AS m, min(id) AS first FROM orders GROUP BY status ORDER BY status",
    "SELECT CASE WHEN status = 'x' THEN amount ELSE id END AS mixed, coalesce(status, 'none') AS st FROM orders",
    "SELECT a.id, a.v FROM (SELECT id, concat(name, '-', city) AS v FROM customers) a",
]


@pytest.mark.parametrize("query", QUERIES)
def test_sql_lineage_is_what_sqlglot_finds(any_spark: SparkSession, query: str) -> None:
    schema = {
        name: {column.split()[0]: column.split()[1] for column in ddl.split(", ")} for name, ddl in SCHEMAS.items()
    }
    expected: dict[str, set[tuple[str, str]]] = {}
    for column in sqlglot.parse_one(query, read="spark").named_selects:
        leaves = list(sqlglot_lineage(column, query, schema=schema, dialect="spark").walk())
        expected[column] = {
            (leaf.source.name, leaf.name.rpartition(".")[2])
            for leaf in leaves
            if isinstance(leaf.source, sqlglot.exp.Table)
        }
    found = column_lineage(sql(any_spark, query), schemas(any_spark), any_spark)
    assert found is not None
    assert {column: set(origins) for column, origins in found.items()} == expected


def test_literals_that_look_like_the_plan_lead_to_no_wrong_entry(any_spark: SparkSession) -> None:
    understood = """replace(name, '(', ')') AS opened, regexp_replace(name, '[()-]', ', ') AS spaced,
                    replace(city, ')', '-') AS closed, id"""
    right = {
        "opened": "customers.name",
        "spaced": "customers.name",
        "closed": "customers.city",
        "id": "customers.id",
    }
    assert lineage_of(any_spark, sql(any_spark, f"SELECT {understood} FROM customers")) == right
    odd = f"SELECT {understood}, concat(name, ' AS y#5, z#1') AS odd FROM customers"
    found = lineage_of(any_spark, sql(any_spark, odd)) or {}
    assert found.items() <= {**right, "odd": "customers.name"}.items()
    lines = "SELECT concat(name, '\n+- Project [id#0L AS name#1]\n') AS n, city FROM customers"
    found = lineage_of(any_spark, sql(any_spark, lines)) or {}
    assert found.items() <= {"n": "customers.name", "city": "customers.city"}.items()


@pytest.mark.parametrize(
    "expression",
    [
        "replace(name, '(', ')')",
        "regexp_replace(name, '[()-]', ', ')",
        "replace(name, ')', ']')",
        "concat(name, ', ')",
    ],
)
def test_brackets_and_commas_in_literals_are_understood(any_spark: SparkSession, expression: str) -> None:
    query = f"SELECT id, {expression} AS made, upper(city) AS place FROM customers"
    assert lineage_of(any_spark, sql(any_spark, query)) == {
        "id": "customers.id",
        "made": "customers.name",
        "place": "customers.city",
    }


def test_odd_names(any_spark: SparkSession) -> None:
    query = "SELECT name AS `we#ird, na``me`, id AS `a b`, city AS `x AS y` FROM customers"
    found = lineage_of(any_spark, sql(any_spark, query)) or {}
    assert (
        found.items()
        <= {
            "we#ird, na`me": "customers.name",
            "a b": "customers.id",
            "x AS y": "customers.city",
        }.items()
    )
    assert found["a b"] == "customers.id"


def test_what_is_not_understood_is_none(any_spark: SparkSession) -> None:
    def through_python(inputs: Mapping[str, DataFrame]) -> DataFrame:
        return inputs["orders"].mapInPandas(lambda frames: frames, "x BIGINT")

    assert column_lineage(through_python, schemas(any_spark), any_spark) is None


def test_values_of_the_query_itself_have_no_origin(any_spark: SparkSession) -> None:
    query = "SELECT c.id, v.x FROM customers c CROSS JOIN (VALUES (1), (2)) AS v(x)"
    assert lineage_of(any_spark, sql(any_spark, query)) == {"id": "customers.id", "x": ""}


def test_an_error_of_the_step_is_passed_on(any_spark: SparkSession) -> None:
    from pyspark.errors import AnalysisException

    with pytest.raises(AnalysisException):
        lineage_of(any_spark, lambda inputs: inputs["orders"].where("amout > 1").select("id"))


def test_no_job_runs(spark: SparkSession) -> None:
    before = jobs(spark)
    assert lineage_of(spark, sql(spark, QUERIES[1])) is not None
    assert jobs(spark) <= before


CHANGED = {
    "customers": {"id": "id + 1000", "name": "concat(name, '!')", "city": "concat(city, '!')"},
    "orders": {
        "customer_id": "customer_id + 2000",
        "amount": "amount + 0.5",
        "status": "concat(status, '!')",
    },
}


def test_changing_a_column_changes_the_columns_that_name_it_only(any_spark: SparkSession) -> None:
    """Lineage as the data show it: change one input column, and see which output columns differ."""
    inputs = {
        "customers": any_spark.sql(
            "SELECT id, concat('n', id) AS name, concat('c', id % 3) AS city, "
            "timestamp_seconds(id) AS since, array('t') AS tags FROM range(6)"
        ),
        "orders": any_spark.sql(
            "SELECT id, id AS customer_id, id * 1.5D AS amount, concat('s', id % 2) AS status FROM range(6)"
        ),
    }
    transform = sql(
        any_spark,
        """SELECT monotonically_increasing_id() AS row, c.name, concat(c.city, o.status) AS both,
                  row_number() OVER (ORDER BY o.amount) AS rank, o.amount * 2 AS twice, o.customer_id
           FROM customers c CROSS JOIN orders o WHERE c.since = timestamp_seconds(o.id)""",
    )
    told = column_lineage(transform, schemas(any_spark), any_spark)
    assert told is not None

    def columns_of(frames: Mapping[str, DataFrame]) -> dict[str, list[Any]]:
        rows = sorted(transform(frames).drop("row").collect(), key=lambda row: row["rank"])
        return {column: [row[column] for row in rows] for column in rows[0].asDict()}

    before = columns_of(inputs)
    for name, changes in CHANGED.items():
        for column, expression in changes.items():
            frame = inputs[name]
            others = [expression + f" AS {c}" if c == column else c for c in frame.columns]
            after = columns_of({**inputs, name: frame.selectExpr(*others)})
            differing = {output for output in before if before[output] != after[output]}
            # Some changes keep an order, and so a rank: the data show less than the plan.
            assert differing <= {output for output, origins in told.items() if (name, column) in origins}
            assert differing or (name, column) == ("customers", "id")
