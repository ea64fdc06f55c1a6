"""A table of PostgreSQL of which the server itself counts, by a sequence, how many rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import psycopg

from devstack.postgres import PostgresServer

Database = psycopg.Connection[Any]
ROWS = 1000
COUNTED = "SELECT nextval('counted.reads') AS read, id, id % 7 AS day FROM counted.orders"


@contextmanager
def counted_orders(postgres: PostgresServer) -> Iterator[Database]:
    """Have the table for the block."""
    with psycopg.connect(
        host=postgres.host, port=postgres.port, dbname=postgres.database, user=postgres.user,
        password=postgres.password, autocommit=True,
    ) as opened:  # fmt: skip
        opened.execute(
            "DROP SCHEMA IF EXISTS counted CASCADE; CREATE SCHEMA counted; CREATE SEQUENCE counted.reads;"
            f"CREATE TABLE counted.orders AS SELECT n AS id FROM generate_series(1, {ROWS}) n"
        )
        yield opened
        opened.execute("DROP SCHEMA counted CASCADE")


def reads(database: Database) -> int:
    """How many rows have been read since the last call."""
    (found,) = database.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM counted.reads").fetchall()
    database.execute("SELECT setval('counted.reads', 1, false)")
    return int(found[0])


def extract(name: str, **config: Any) -> dict[str, Any]:
    """Return a step that reads the table."""
    return {"type": "extract", "method": "fromPostgres", "config": {"query": COUNTED, "registerAs": name, **config}}


def expected() -> pd.DataFrame:
    """Return what the table has, but for the number of the reading."""
    ids = pd.Series(range(1, ROWS + 1))
    return pd.DataFrame({"id": ids, "day": ids % 7})
