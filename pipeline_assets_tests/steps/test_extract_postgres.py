"""Reading from a real PostgreSQL."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devstack.postgres import PostgresServer
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import (
    ConfigurationError,
    CredentialError,
    DataFrameResolutionError,
    PipelineError,
    PipelineExecutionError,
)
from pipeline_assets.spark.plan_tree import explain_text
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.extract_postgres import FromPostgres
from pipeline_assets.steps.postgres import connect
from pipeline_assets_tests.steps.frames import frame_of, in_order, rows_of

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql import SparkSession

    Database = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def orders(database: Database) -> None:
    database.execute(
        'CREATE TABLE shop.orders (id bigint, day date, amount numeric(10,2), region text, "Odd Name" int);'
        "INSERT INTO shop.orders SELECT n, date '2024-01-01' + n, n * 1.5, "
        "CASE n % 3 WHEN 0 THEN 'north' ELSE 'south' END, n FROM generate_series(1, 100) n;"
        "CREATE TABLE shop.empty (id int)"
    )


def in_database(database: Database, query: str) -> list[tuple[Any, ...]]:
    return in_order(database.execute(query.encode()).fetchall())


@pytest.mark.parametrize(
    ("config", "query"),
    [
        ({"table": "shop.orders"}, "SELECT * FROM shop.orders"),
        ({"table": "shop.orders", "columns": ["region", "id"]}, "SELECT region, id FROM shop.orders"),
        ({"table": "shop.orders", "columns": ["Odd Name"]}, 'SELECT "Odd Name" FROM shop.orders'),
        (
            {"table": "shop.orders", "predicate": "day >= '2024-03-01' AND region = 'north' -- late ones"},
            "SELECT * FROM shop.orders WHERE day >= '2024-03-01' AND region = 'north'",
        ),
        (
            {"query": "SELECT region, sum(amount) AS total FROM shop.orders GROUP BY region; "},
            "SELECT region, sum(amount) FROM shop.orders GROUP BY region",
        ),
        ({"query": "SELECT 1 AS one -- why not", "predicate": "one = 1"}, "SELECT 1"),
        ({"table": "shop.empty", "partitionColumn": "id", "numPartitions": "4"}, "SELECT * FROM shop.empty"),
    ],
)
def test_rows(config: dict[str, Any], query: str, postgres_context: StepContext, database: Database) -> None:
    frame = FromPostgres.model_validate(config).extract(postgres_context)
    assert rows_of(frame) == in_database(database, query)


@pytest.mark.parametrize("column", ["id", "day", "amount"])
def test_parallel_read_finds_its_bounds(column: str, postgres_context: StepContext, database: Database) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    method = FromPostgres(table="shop.orders", partition_column=column, num_partitions=4)
    frame = method.extract(postgres_context)
    assert rows_of(frame) == in_database(database, "SELECT * FROM shop.orders")
    sizes = frame.groupBy(F.spark_partition_id()).count().collect()
    assert len(sizes) == 4
    assert max(size["count"] for size in sizes) <= 30


def test_given_bounds_split_rows_and_drop_none(postgres_context: StepContext) -> None:
    method = FromPostgres.model_validate(
        {"table": "shop.orders", "partitionColumn": "id", "numPartitions": 2, "lowerBound": "40", "upperBound": 60}
    )
    assert len(rows_of(method.extract(postgres_context))) == 100


@pytest.mark.parametrize(
    ("column", "bounds", "ranges"),
    [
        # The rows' ids are 1 to 100, their days 2024-01-02 to 2024-04-10.
        ("id", {"lowerBound": 1000}, 1),
        ("id", {"lowerBound": "1000.5"}, 1),
        ("id", {"upperBound": -1}, 1),
        ("amount", {"upperBound": 0.5}, 1),
        ("day", {"lowerBound": "2025-01-01"}, 1),
        ("day", {"upperBound": "2023-12-31 12:00:00"}, 1),
        ("id", {"lowerBound": 0.5, "upperBound": 99.5}, 4),
        ("id", {"lowerBound": 0.5}, 4),
        ("amount", {"upperBound": "99.5"}, 4),
        ("day", {"lowerBound": "2024-02-01"}, 4),
        ("day", {"lowerBound": "2024-02"}, 4),
    ],
)
def test_a_bound_may_be_anywhere(
    column: str, bounds: dict[str, Any], ranges: int, postgres_context: StepContext, database: Database
) -> None:
    config = {"table": "shop.orders", "partitionColumn": column, "numPartitions": 4, **bounds}
    frame = FromPostgres.model_validate(config).extract(postgres_context)
    assert frame.rdd.getNumPartitions() == ranges
    assert rows_of(frame) == in_database(database, "SELECT * FROM shop.orders")


def test_operators_with_question_marks(postgres_context: StepContext, database: Database) -> None:
    database.execute(
        'CREATE TABLE shop.tagged (id int, tags jsonb, "what?" text); INSERT INTO shop.tagged VALUES '
        """(1, '{"a?": 1}', '?'), (2, '{"b": 1}', '?'), (3, '{"a?": 1, "b": 2}', E'it\\'s ?'), (4, '{}', '$$?')"""
    )

    def ids(**config: str) -> list[int]:
        frame = FromPostgres.model_validate(config).extract(postgres_context)
        return sorted(row.id for row in frame.select("id").where("id >= 0").collect())

    assert ids(table="shop.tagged", predicate="tags ? 'a?' -- what?") == [1, 3]
    assert ids(table="shop.tagged", predicate="tags ?| array['a?', 'b'] /* ? /* ? */ ? */") == [1, 2, 3]
    assert ids(query="SELECT * FROM shop.tagged WHERE tags ?& array['a?', 'b']", predicate="tags?'b'") == [3]
    assert ids(query="""SELECT id FROM shop.tagged WHERE tags @? '$.b ? (@ > 1)' AND "what?" = E'it\\'s ?'""") == [3]
    assert ids(query="""SELECT id FROM shop.tagged WHERE "what?" IN ('?', $$?$$, '\\?') AND tags ? 'b'""") == [2]
    assert ids(table="shop.tagged", predicate="""\"what?\" = $x$$$?$x$ AND NOT tags ? 'b'""") == [4]


def test_filters_and_columns_are_pushed_down(postgres_context: StepContext, capsys: pytest.CaptureFixture[str]) -> None:
    frame = FromPostgres(table="shop.orders").extract(postgres_context)
    frame.where("id > 10 AND region = 'north'").select("day").explain()
    plan = capsys.readouterr().out
    assert "GreaterThan(id,10)" in plan
    assert "EqualTo(region,north)" in plan
    assert "ReadSchema: struct<day:date>" in plan


@pytest.mark.parametrize(
    "config",
    [
        {"table": "shop.shirts"},
        {"table": "shop.shirts", "predicate": "size < 'large' AND details ? 'b'"},
        {"table": "shop.shirts", "columns": ['Own "size', "details", "host", "key", "size", "id"]},
        {"table": "shop.shirts", "partitionColumn": "id", "numPartitions": 2},
        {"query": "SELECT * FROM shop.shirts; "},
    ],
)
def test_filters_find_the_same_rows_wherever_they_run(
    config: dict[str, Any], postgres_context: StepContext, database: Database
) -> None:
    database.execute(
        "CREATE TYPE shop.size AS ENUM ('small', 'medium', 'large'); CREATE DOMAIN shop.own_size AS shop.size;"
        'CREATE TABLE shop.shirts (id int, size shop.size, "Own ""size" shop.own_size, key uuid, host inet, '
        "details jsonb); INSERT INTO shop.shirts SELECT n, size, size, "
        "('7f0e4d3c-0000-4000-8000-00000000000' || n)::uuid, '10.0.0.1', '{\"b\": 1}' "
        "FROM unnest('{small,medium,large}'::shop.size[]) WITH ORDINALITY AS _ (size, n)"
    )
    frame = FromPostgres.model_validate(config).extract(postgres_context)
    found = {
        condition: rows_of(frame.where(condition).select("id"))
        for condition in (
            "size > 'medium'",
            "size IN ('small', 'huge')",
            "`Own \"size` < 'medium'",
            "key = '7F0E4D3C-0000-4000-8000-000000000001'",
            "key LIKE '%1'",
            "host = '10.0.0.1/32'",
            "details = '{\"b\":1}'",
        )
    }
    assert (1,) in found["size > 'medium'"], "as texts are ordered"
    kept = frame.cache()
    assert found == {condition: rows_of(kept.where(condition).select("id")) for condition in found}
    kept.unpersist()


def test_only_what_spark_has_no_type_for_is_made_a_text(postgres_context: StepContext, database: Database) -> None:
    def scan(table: str, condition: str) -> str:
        return explain_text(FromPostgres(table=table).extract(postgres_context).where(condition), "simple")

    assert 'JDBCRelation("shop"."orders")' in scan("shop.orders", "id > 10")
    database.execute("CREATE TABLE shop.keyed (id int, key uuid, name text)")
    plan = scan("shop.keyed", "id > 10 AND key > 'a' AND name = 'b'")
    assert 'SELECT "id", "key"::text COLLATE "C" AS "key", "name" FROM "shop"."keyed"' in plan
    for filter_ in ("GreaterThan(id,10)", "GreaterThan(key,a)", "EqualTo(name,b)"):
        assert f"*{filter_}" in plan


def test_conditions_mean_the_same_moments_wherever_the_server_is(
    postgres_context: StepContext, database: Database, postgres: PostgresServer
) -> None:
    database.execute(
        "CREATE TABLE shop.moments (id int, at timestamptz);"
        "INSERT INTO shop.moments VALUES (1, '2024-01-01 00:30+01'), (2, '2024-01-01 00:30+00')"
    )
    method = FromPostgres(table="shop.moments", predicate="at >= '2024-01-01'")
    try:
        database.execute(f"ALTER DATABASE {postgres.database} SET timezone TO 'Europe/Berlin'")
        with connect(postgres_context.connections.postgres("default"), Secrets()) as own:
            condition = f"SELECT id FROM shop.moments WHERE {method.predicate}"
            assert own.execute(condition.encode()).fetchall() == [(2,)]
        assert [row.id for row in method.extract(postgres_context).collect()] == [2]
    finally:
        database.execute(f"ALTER DATABASE {postgres.database} RESET timezone")


def test_small_tables_are_broadcast(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.parent (id bigint); CREATE TABLE shop.child () INHERITS (shop.parent)")
    context = dataclasses.replace(postgres_context, optimize=True)
    large = context.spark.range(10_000_000)

    def joined(table: str) -> str:
        return explain_text(large.join(FromPostgres(table=table).extract(context).select("id"), "id"), "simple")

    assert "BroadcastHashJoin" in joined("shop.orders")
    assert "BroadcastHashJoin" not in joined("shop.parent"), "rows of those that inherit from it are read with its own"


@pytest.mark.parametrize(
    ("given", "schemas"),
    [
        ("shop", ["shop"]),
        ("shop, public", ["shop", "public"]),
        ('"back\\slash and space",shop', ["back\\slash and space", "shop"]),
    ],
)
def test_a_schema_of_the_connection_is_looked_in(
    given: str, schemas: list[str], postgres_context: StepContext, database: Database
) -> None:
    database.execute('CREATE SCHEMA IF NOT EXISTS "back\\slash and space"')
    found = postgres_context.connections.postgres("default")
    with connect(found.model_copy(update={"options": {"currentSchema": given}}), Secrets()) as own:
        row = own.execute("SELECT current_schemas(false)::text[], current_setting('TimeZone')").fetchone()
    database.execute('DROP SCHEMA "back\\slash and space"')
    assert row == (schemas, "UTC")


def test_lengths_are_no_limits_elsewhere(
    any_spark: SparkSession, postgres_context: StepContext, database: Database, tmp_path: Path
) -> None:
    database.execute(
        'CREATE TABLE shop.named ("first.name" varchar(3), tags varchar(2)[], code char(3), codes char(3)[]);'
        "INSERT INTO shop.named VALUES ('abc', '{x}', 'a', '{b}')"
    )
    frame = FromPostgres(table="shop.named").extract(dataclasses.replace(postgres_context, spark=any_spark))
    schema = "name STRING, tags ARRAY<STRING>, code STRING, codes ARRAY<STRING>"
    longer = frame_of(any_spark, schema, [("abcd", ["xyz"], "abcd", ["abcd"])])
    path = str(tmp_path / "table")
    frame.union(longer).write.format("delta").save(path)
    found = any_spark.read.format("delta").load(path)
    assert rows_of(found) == [("abc", ["x"], "a", ["b"]), ("abcd", ["xyz"], "abcd", ["abcd"])]


@pytest.mark.parametrize(
    "config", [{"table": "shop.coded"}, {"query": "SELECT * FROM shop.coded;", "predicate": "code = 'a   '"}]
)
def test_a_fixed_length_is_filled_up_with_nothing(
    any_spark: SparkSession, config: dict[str, Any], postgres_context: StepContext, database: Database
) -> None:
    """PostgreSQL compares without what it has filled them up with, Spark only where it knows the lengths."""
    database.execute(
        "CREATE TABLE shop.coded (id int, code char(3), codes char(3)[], grid char(2)[][], loose bpchar);"
        "INSERT INTO shop.coded VALUES (1, 'a', '{a,NULL}', '{{a,b}}', 'a ')"
    )
    frame = FromPostgres(**config).extract(dataclasses.replace(postgres_context, spark=any_spark))
    assert rows_of(frame) == [(1, "a", ["a", None], [["a", "b"]], "a")]
    named = frame_of(any_spark, "code STRING, name STRING", [("a", "first")])
    assert rows_of(frame.join(named, "code").select("id", "name")) == [(1, "first")]
    assert "*EqualTo(code,a), *GreaterThan(id,0)" in explain_text(frame.where("code = 'a' AND id > 0"), "formatted")


def test_the_password_is_in_no_plan(
    postgres_context: StepContext, postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    FromPostgres(table="shop.orders").extract(postgres_context).explain(mode="extended")
    assert postgres.password not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"table": "shop.order"}, ConfigurationError, "table shop.order does not exist in database .*'shop.orders'"),
        ({"table": "orders"}, ConfigurationError, "table public.orders does not exist.*did you mean.*'shop.orders'"),
        ({"table": "shop.orders", "columns": ["idd"]}, DataFrameResolutionError, "no column 'idd', did you mean 'id'"),
        (
            {"table": "shop.orders", "partitionColumn": "nr", "numPartitions": 2},
            DataFrameResolutionError,
            "'shop.orders' has no column 'nr'",
        ),
        (
            {"table": "shop.orders", "partitionColumn": "region", "numPartitions": 2},
            ConfigurationError,
            "'region' holds str values: expected a numeric, date or timestamp column",
        ),
        ({"query": "SELECT * FROM shop.nothing"}, ConfigurationError, '"shop.nothing" does not exist .SQLSTATE 42P01'),
        ({"query": "SELEC 1"}, ConfigurationError, "syntax error"),
        ({"table": "shop.orders", "predicate": "regoin = 'x'"}, ConfigurationError, "regoin.*42703"),
        ({"table": "t", "connection": "wrong"}, CredentialError, "refused user .*env:TEST_WRONG"),
        ({"table": "t", "connection": "unreachable"}, PipelineExecutionError, "not reachable at 127.0.0.1:1"),
        ({"table": "t", "connection": "defualt"}, ConfigurationError, "no postgres connection 'defualt', did you mean"),
    ],
)
def test_failures(
    config: dict[str, Any], kind: type[PipelineError], message: str, postgres_context: StepContext
) -> None:
    with pytest.raises(kind, match=message) as caught:
        FromPostgres.model_validate(config).extract(postgres_context)
    assert "\n" not in caught.value.message


def test_sources() -> None:
    def parts(**config: Any) -> list[tuple[str, ...]]:
        return [source.parts for source in FromPostgres(**config).sources()]

    assert parts(table="orders") == [("default", "public", "orders")]
    assert parts(table='shop."a.b"', connection="dwh") == [("dwh", "shop", "a.b")]
    query = "WITH x AS (SELECT * FROM shop.orders) SELECT * FROM x JOIN customers USING (id)"
    assert parts(query=query) == [("default", "shop", "orders"), ("default", "public", "customers")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "exactly one of 'table' and 'query'"),
        ({"table": "a", "query": "b"}, "exactly one of 'table' and 'query'"),
        ({"table": "a.b.c"}, "is not a table: expected 'table' or 'schema.table'"),
        ({"table": "a", "numPartitions": 2}, "'partitionColumn' and 'numPartitions' go together"),
        ({"table": "a", "lowerBound": 2}, "need 'partitionColumn'"),
        (
            {"table": "a", "partitionColumn": "b", "numPartitions": 2, "lowerBound": "10", "upperBound": 9.5},
            r"lowerBound \(10\) is above upperBound \(9.5\)",
        ),
        (
            {
                "table": "a",
                "partitionColumn": "b",
                "numPartitions": 2,
                "lowerBound": "2024-01-02",
                "upperBound": "2024-01-01T23:00",
            },
            "is above upperBound",
        ),
        ({"table": "a", "fetchSize": -1}, "greater than or equal to 0"),
        ({"query": " \n"}, "query\n.*is blank: give the SQL"),
        ({"table": "a", "predicate": " "}, "predicate\n.*is blank: give the SQL"),
        ({"table": "a", "predicate": ""}, "predicate\n.*at least 1 character"),
        ({"table": "a", "columns": ["id", ""]}, "columns.1\n.*at least 1 character"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FromPostgres.model_validate(config)


def test_dates_are_dates(postgres_context: StepContext) -> None:
    frame = FromPostgres(table="shop.orders", columns=("day",), predicate="id = 1").extract(postgres_context)
    assert rows_of(frame) == [(date(2024, 1, 2),)]


def test_a_timestamp_is_read_as_if_it_were_of_utc(postgres_context: StepContext) -> None:
    frame = FromPostgres(query="SELECT timestamp '2024-10-27 02:30:00.5' AS at").extract(postgres_context)
    found = frame.selectExpr("typeof(at)", "at = TIMESTAMP'2024-10-27 02:30:00.5Z'", "CAST(at AS TIMESTAMP_NTZ)")
    assert rows_of(found) == [("timestamp", True, datetime(2024, 10, 27, 2, 30, 0, 500_000))]


def test_values_that_are_read_as_others(postgres_context: StepContext, database: Database) -> None:
    database.execute(
        "CREATE TABLE shop.edges (amount numeric, at timestamp, moment timestamptz, day date); INSERT INTO shop.edges "
        "VALUES (1.5 + 1e-19, 'infinity', 'infinity', 'infinity'), (6e-19, '-infinity', '-infinity', '-infinity')"
    )

    def found(**config: str) -> list[tuple[Any, ...]]:
        frame = FromPostgres.model_validate(config).extract(postgres_context)
        return rows_of(frame.selectExpr("CAST(amount AS STRING)", "year(at)", "year(moment)", "year(day)"))

    assert found(table="shop.edges") == [
        ("0.000000000000000001", 1, 1, 1),
        ("1.500000000000000000", 9999, 9999, 9999),
    ]
    times = ", ".join(f"NULLIF(NULLIF({name}, 'infinity'), '-infinity') AS {name}" for name in ("at", "moment", "day"))
    assert found(query=f"SELECT amount::text, {times} FROM shop.edges") == [
        ("0.0000000000000000006", None, None, None),
        ("1.5000000000000000001", None, None, None),
    ]
