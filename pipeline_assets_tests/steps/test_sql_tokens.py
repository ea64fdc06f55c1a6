"""Table names in SQL that is not parsed."""

from __future__ import annotations

import pytest
from sqlglot import tokenize

from pipeline_assets.steps.sql_tokens import tables_by_tokens


@pytest.mark.parametrize(
    ("query", "names"),
    [
        # FROM in calls, and of comparisons.
        ("SELECT trim(BOTH ' ' FROM name), extract(hour FROM at) FROM orders, items", "orders items"),
        ("SELECT a FROM t WHERE a IS DISTINCT FROM b AND (a IS NOT DISTINCT FROM c)", "t"),
        ("SELECT mails.from, stack(2, 1, 2) AS (p, q) FROM mails, b", "mails b"),
        # Lists, and what ends them.
        ("SELECT a, b FROM orders o, customers AS c WHERE o.x = c.x GROUP BY d, e", "orders customers"),
        ("SELECT a FROM o JOIN c USING (id, x), d JOIN e ON f(p, q) = 1, g ORDER BY x, y", "o c d e g"),
        ("SELECT a FROM a LATERAL VIEW explode(m) kv AS key, value", "a"),
        ("SELECT a FROM a, LATERAL explode(a.x) AS t(y, z), b JOIN LATERAL (SELECT * FROM c) d", "a b c"),
        ("SELECT a, b FROM a MINUS SELECT p, q FROM b WINDOW w AS (ORDER BY p), v AS (ORDER BY q)", "a b"),
        ("SELECT a FROM a NATURAL FULL OUTER JOIN b LEFT ANTI JOIN c SEMI JOIN d CROSS JOIN e", "a b c d e"),
        ("SELECT /*+ BROADCAST(c), MERGE(o, d) */ a FROM orders o JOIN customers c", "orders customers"),
        # Beside plain names.
        ("SELECT a FROM delta.`/p` d, db.t, `odd name`, cat.db.t, range(10)", "odd name"),
        ("SELECT a FROM ORDERS, stage s, date", "ORDERS stage date"),
        ("SELECT a FROM a TABLESAMPLE (1 PERCENT) s, b VERSION AS OF 1, c PIVOT (sum(x) FOR y IN (1)), d", "a b c d"),
        ("SELECT a FROM o JOIN (VALUES (1, x), (2, y)) v(id, n) ON o.id = v.id", "o"),
        ("SELECT a FROM VALUES (1, date'2024-01-01'), (2, null) AS t(a, b) JOIN x", "x"),
        # Queries in others, and joins in parentheses.
        ("SELECT (SELECT max(x) FROM b) FROM ((a JOIN c) JOIN (SELECT * FROM d) e) WHERE EXISTS (FROM f)", "b a c d f"),
        ("SELECT a FROM (SELECT * FROM a UNION (SELECT * FROM b)) q, c WHERE x IN (TABLE d)", "a b c d"),
        ("SELECT table FROM f(1, TABLE(a) PARTITION BY x), INPUT(TABLE b), g(TABLE (SELECT * FROM c))", "a b c"),
        ("FROM a |> JOIN b ON a.x = b.x |> AGGREGATE sum(x), max(y) GROUP BY z, w |> UNION (TABLE c)", "a b c"),
        # CTEs.
        ("WITH a AS (SELECT * FROM a), b(x, y) AS (SELECT * FROM c, a) SELECT * FROM A, b, d", "a c d"),
        ("WITH RECURSIVE t(n) MAX RECURSION LEVEL 9 AS (SELECT 1 UNION SELECT n FROM t) SELECT * FROM t, u", "u"),
        ("WITH x AS NOT MATERIALIZED (SELECT 1) SELECT * FROM x, y", "y"),
        # What is unfinished.
        ("SELECT 1 )) FROM a, (", "a"),
        ("SELECT a FROM", ""),
    ],
)
def test_tables_by_tokens(query: str, names: str) -> None:
    assert " ".join(tables_by_tokens(tokenize(query, read="spark"))) == names
