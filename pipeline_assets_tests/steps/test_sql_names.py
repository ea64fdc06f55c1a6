"""Table names in SQL texts, and which texts are queries."""

from __future__ import annotations

from typing import Any

import pytest
from sqlglot.expressions import Expr
from sqlglot.optimizer.qualify import qualify

from pipeline_assets.steps.sql_names import (
    changing_part,
    check_is_query,
    has_filter,
    has_groups,
    keeps_state,
    moves_rows,
    postgres_columns,
    postgres_tables,
    spark_table_names,
)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("SELECT 1", ()),
        ("SELECT * FROM b JOIN a ON a.x = b.x", ("b", "a")),
        ("SELECT * FROM a, b, a AS c", ("a", "b")),
        ("SELECT * FROM a WHERE x IN (SELECT y FROM b)", ("a", "b")),
        ("WITH a AS (SELECT * FROM b) SELECT * FROM a", ("b",)),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM A", ("a",)),
        ("WITH c AS (SELECT 1), b AS (SELECT * FROM c) SELECT * FROM b", ()),
        ("WITH b AS (WITH c AS (SELECT * FROM a) SELECT * FROM c) SELECT * FROM b, c", ("a", "c")),
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT * FROM t JOIN u", ("u",)),
        ("SELECT * FROM db.a, b, delta.`/x/y`", ("b",)),
        ("SELECT * FROM range(10) JOIN `odd name`", ("odd name",)),
        ("SELECT * FROM a LATERAL VIEW explode(b) AS c", ("a",)),
        ("SELECT a.b FROM a UNION ALL SELECT 1 FROM c", ("a", "c")),
        ("SELECT /*+ BROADCAST(c), MERGE(o, c) */ * FROM orders o JOIN customers c ON true", ("orders", "customers")),
        # What sqlglot does not parse: names by token.
        ("SELECT extract(day FROM day), x:y.z::int FROM orders o, customers c", ("orders", "customers")),
        ("WITH x AS (SELECT 1) SELECT a -> FROM orders JOIN x ON JOIN db.y", ("orders",)),
    ],
)
def test_spark_table_names(query: str, names: tuple[str, ...]) -> None:
    assert spark_table_names(query) == names


def test_postgres_tables() -> None:
    query = (
        "WITH recent AS (SELECT * FROM Shop.Orders) "
        'SELECT * FROM recent JOIN customers ON true JOIN "Odd"."Name" ON true'
    )
    assert postgres_tables(query) == (("shop", "orders"), (None, "customers"), ("Odd", "Name"))
    assert postgres_tables("not even SQL '") == ()


def test_calls_in_one_another_that_are_too_many_for_the_parser() -> None:
    cleaned = "name"
    for _ in range(200):
        cleaned = f"regexp_replace({cleaned}, 'a', 'b')"
    query = f"SELECT {cleaned} AS name FROM customers JOIN orders USING (id)"
    assert check_is_query(query) == query
    assert spark_table_names(query) == ("customers", "orders")
    assert postgres_tables(query) == ((None, "customers"), (None, "orders"))
    assert postgres_columns(query, ["name"]) == {}
    assert keeps_state(query)
    with pytest.raises(ValueError, match="is a DELETE"):
        check_is_query(f"DELETE FROM customers WHERE {cleaned} = 'a'")


@pytest.mark.parametrize(
    ("query", "columns", "origins"),
    [
        # What sqlglot fails on: some columns, or all.
        ("SELECT * FROM t ORDER BY 1", "id n", {"id": "t.id", "n": "t.n"}),
        ("SELECT t.*, u.x FROM t JOIN u USING (id) ORDER BY 1", "id n x", {}),
        ("SELECT t.*, count(u.id) AS n FROM t LEFT JOIN u ON u.id = t.id GROUP BY 1", "id n", {}),
        (
            "SELECT id, max FROM (SELECT id, max(x) FROM a GROUP BY 1 UNION ALL SELECT id, max(x) FROM b GROUP BY 1) q",
            "id max",
            {"id": "a.id b.id"},
        ),
        (
            "WITH q AS (SELECT id, now() FROM a UNION ALL SELECT id, now() FROM b) SELECT id, now FROM q",
            "id now",
            {"id": "a.id b.id"},
        ),
        # With names beside a star: the query's, and those that PostgreSQL gives.
        ("SELECT *, upper(n) AS u FROM t", "id n u", {"id": "t.id", "n": "t.n", "u": "t.n"}),
        ("SELECT *, (SELECT max(x) FROM o) AS U FROM t", "id u", {"id": "t.id"}),
        ("SELECT *, row_number() OVER (ORDER BY id) FROM t", "id row_number", {}),
        ("SELECT *, lower(n) FROM t", "n lower", {}),
        ("SELECT *, price * 2 FROM t", "price ?column?", {}),
        ("SELECT *, (SELECT max(n) FROM o) FROM t", "n max", {}),
        ("SELECT (address).* FROM t", "street", {}),
        # Of what is no table, and of a table whose columns have other names there.
        ("SELECT o.id, e.n FROM orders o, jsonb_to_recordset(o.items) AS e(n text)", "id n", {"id": "orders.id"}),
        ("SELECT n FROM generate_series(1, 10) AS g(n)", "n", {}),
        ("SELECT * FROM generate_series(1, 10) AS g(n)", "n", {}),
        ("SELECT * FROM t AS x(id, n)", "id n", {}),
        ("SELECT x.id, x.n FROM t AS x(id)", "id n", {}),
    ],
)
def test_no_column_of_a_query_is_guessed(query: str, columns: str, origins: dict[str, str]) -> None:
    found = postgres_columns(query, columns.split())
    told = {column: " ".join(f"{table}.{name}" for _, table, name in tables) for column, tables in found.items()}
    assert told == origins


def test_a_wide_query_is_understood_once(monkeypatch: pytest.MonkeyPatch) -> None:
    understood: list[object] = []

    def qualified(statement: Expr, **options: Any) -> Expr:
        understood.append(statement)
        return qualify(statement, **options)

    monkeypatch.setattr("sqlglot.optimizer.qualify.qualify", qualified)
    columns = [f"c{number}" for number in range(50)]
    query = f"SELECT {', '.join(f'upper(t.{column}) AS {column}' for column in columns)} FROM t JOIN u USING (id)"
    assert postgres_columns(query, columns) == {column: ((None, "t", column),) for column in columns}
    assert len(understood) == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "(SELECT 1)",
        "SELECT 1 UNION SELECT 2;",
        "FROM a SELECT x",
        "VALUES (1)",
        "-- of orders\nTABLE orders;",
        "MAP a USING 'cat' FROM orders",
        "FROM orders |> WHERE a > 1 |> LIMIT 3",
        "SELECT count(*) update, insert(a, 1, 2, 'INSERT INTO') FROM orders",
        "WITH RECURSIVE t(n) MAX RECURSION LEVEL 9 AS (SELECT 1) SELECT * FROM t",
        "(SELECT 'what can not be split",
        "SELECT a -> FROM what sqlglot does not know",
    ],
)
def test_queries(query: str) -> None:
    assert check_is_query(query) == query


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("INSERT INTO a SELECT 1", "is a INSERT statement: expected one SELECT"),
        ("WITH a AS (SELECT 1) INSERT INTO b SELECT * FROM a", "expected one SELECT"),
        ("drop table a", "is a DROP statement"),
        ("CREATE TABLE a AS SELECT 1", "expected one SELECT"),
        ("MERGE INTO a USING b ON a.x = b.x WHEN MATCHED THEN DELETE", "expected one SELECT"),
        ("SET spark.sql.ansi.enabled = false", "expected one SELECT"),
        ("SELECT 1; SELECT 2", "holds 2 statements"),
        ("SHOW TABLES", "expected one SELECT"),
        ("DELETE FROM a WHERE -> (", "is a DELETE"),
        ("RESTORE TABLE delta.`/data/t` TO VERSION AS OF 0", "is a RESTORE statement"),
        ("CONVERT TO DELTA parquet.`/data/t`", "is a CONVERT statement"),
        ("((REORG TABLE a APPLY (PURGE)))", "is a REORG statement"),
        ("REPLACE TABLE a AS SELECT 1", "is a REPLACE statement"),
        ("BEGIN DROP TABLE a; END", "is a BEGIN statement"),
        ("-- the report\nINSERT OVERWRITE DIRECTORY '/a' USING parquet SELECT 1", "is a INSERT statement"),
        ("FROM a INSERT OVERWRITE DIRECTORY '/a' USING parquet SELECT *", r"writes \(INSERT OVERWRITE\)"),
        ("WITH a AS (SELECT 1) INSERT OVERWRITE DIRECTORY '/a' USING parquet SELECT * FROM a", r"writes \(INSERT\)"),
        ("WITH a AS (SELECT x:y.z::int FROM b) MERGE INTO c USING a ON true", r"writes \(MERGE\)"),
        ("SELECT x:y.z::int FROM a; DROP TABLE a", "holds 2 statements"),
        ("DROP TABLE a -- 'of (what can not be split\n'", "is a DROP statement"),
        ("'SELECT' FROM a", "is a '' statement"),
        ("", "is empty"),
    ],
)
def test_statements_that_are_no_queries(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_is_query(query)


@pytest.mark.parametrize(
    ("query", "moves", "groups", "filters"),
    [
        ("SELECT a + 1 AS b FROM t", False, False, False),
        ("SELECT a FROM t WHERE a > 1", False, False, True),
        ("SELECT a FROM t LIMIT 3", False, False, True),
        ("SELECT a, count(*) FROM t GROUP BY a", True, True, False),
        ("SELECT max(a) FROM t", True, True, False),
        ("SELECT max(a) OVER (PARTITION BY b) FROM t", True, False, False),
        ("SELECT a, (SELECT max(b) FROM u) AS most FROM t", True, False, False),
        ("SELECT DISTINCT a FROM t", True, False, False),
        ("SELECT a FROM t ORDER BY a", True, False, False),
        ("SELECT t.a FROM t, u", True, False, False),
        ("SELECT a FROM t WHERE a IN (SELECT b FROM u)", True, False, True),
        ("SELECT a FROM t WHERE a IN (1, 2)", False, False, True),
        ("SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u)", True, False, True),
        ("SELECT a FROM t INTERSECT SELECT a FROM u", True, False, False),
        ("SELECT a -> FROM what sqlglot does not know", True, False, True),
    ],
)
def test_what_queries_do(query: str, moves: bool, groups: bool, filters: bool) -> None:
    assert (moves_rows(query), has_groups(query), has_filter(query)) == (moves, groups, filters)


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("at > Now() - INTERVAL 1 HOUR", "Now()"),
        ("at > current_timestamp", "current_timestamp"),
        ("unix_timestamp() > seconds", "unix_timestamp()"),
        ("at < 'Now '", "'Now '"),
        ("x -> rand(3) what sqlglot does not parse", "rand()"),
        ("unix_timestamp(at) > 0 AND rand > 1 AND t.current_date > `current_date`", None),
        ("note = 'now or never' AND code <> 'uuid()' -- rand()", None),
        ("not even SQL '", None),
    ],
)
def test_what_changes_by_itself(sql: str, part: str | None) -> None:
    assert changing_part(sql) == part
