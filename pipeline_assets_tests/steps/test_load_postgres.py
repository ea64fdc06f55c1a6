"""Writing into a real PostgreSQL, read back with psycopg."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from pyspark.errors import PySparkException

from devstack.postgres import PostgresServer
from devstack.spark_servers import SparkConnectServer
from pipeline_assets.connections import Connections, ConnectionsFile
from pipeline_assets.errors import (
    ConfigurationError,
    DataFrameResolutionError,
    PipelineError,
    PipelineExecutionError,
    RetryableError,
)
from pipeline_assets.partitions import Partitions
from pipeline_assets.settings import Settings
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets.steps import load_postgres
from pipeline_assets.steps.base import LoadResult, StepContext
from pipeline_assets.steps.counted_rows import CountedRows
from pipeline_assets.steps.extract_postgres import FromPostgres
from pipeline_assets.steps.load_postgres import ToPostgres, _Move
from pipeline_assets.steps.transform import WithColumns
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.steps.frames import Rows, frame_of, in_order

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql import SparkSession

    Database = psycopg.Connection[Any]

SCHEMA = "id INT, name STRING, amount DECIMAL(10,2)"
OLD: Rows = [(1, "a", None), (2, "b", None)]
NEW: Rows = [(2, "B", None), (3, "c", None)]
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture(autouse=True)
def items(database: Database) -> None:
    database.execute(
        "CREATE TABLE shop.items (id bigint PRIMARY KEY, name varchar(5) NOT NULL, amount numeric, "
        "added timestamptz DEFAULT now()); INSERT INTO shop.items VALUES (1, 'a'), (2, 'b'); "
        "CREATE TABLE shop.log (id int, name text, amount numeric(10,2)); "
        "INSERT INTO shop.log VALUES (1, 'a'), (2, 'b')"
    )


def stored(database: Database, table: str, columns: str = "id, name, amount") -> Rows:
    return in_order(database.execute(f"SELECT {columns} FROM shop.{table}".encode()).fetchall())


def staging_tables(database: Database) -> list[Any]:
    return database.execute(r"SELECT relname FROM pg_class WHERE relname LIKE '\_staging\_%'").fetchall()


def load(rows: Rows, context: StepContext, table: str, schema: str = SCHEMA, **config: Any) -> LoadResult:
    method = ToPostgres.model_validate({"table": f"shop.{table}", **config})
    return method.load(frame_of(context.spark, schema, rows), context)


@pytest.mark.parametrize(
    ("table", "config", "expected"),
    [
        ("log", {}, [*OLD, *NEW]),
        ("log", {"mode": "overwrite"}, NEW),
        ("items", {"mode": "overwrite"}, NEW),
        ("items", {"mode": "upsert", "keys": ["id"]}, [OLD[0], *NEW]),
    ],
)
def test_modes(
    table: str, config: dict[str, Any], expected: Rows, postgres_context: StepContext, database: Database
) -> None:
    result = load(NEW, postgres_context, table, **config)
    assert stored(database, table) == in_order(expected)
    assert result.rows == 2
    assert result.table_name == f"{database.info.dbname}.shop.{table}"
    assert staging_tables(database) == []


def test_texts_of_a_fixed_length_are_not_cut(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.codes (code char(3), bits bit(4))")
    load([("abc", "1010")], postgres_context, "codes", "code STRING, bits STRING")
    assert stored(database, "codes", "code, bits::text") == [("abc", "1010")]
    with pytest.raises(PipelineExecutionError, match="too long"):
        load([("abcd", "1010")], postgres_context, "codes", "code STRING, bits STRING")
    assert stored(database, "codes", "code") == [("abc",)]


@pytest.mark.parametrize(
    ("column_type", "spark_type", "fits", "longer"),
    [
        ("shop.code", "STRING", "abc", "abcd"),
        ("shop.own_code", "STRING", "abc", "abcd"),
        ("shop.code_list", "ARRAY<STRING>", ["abc"], ["abcd"]),
        ("shop.own_code[]", "ARRAY<STRING>", ["abc"], ["abcd"]),
        ("shop.day_text", "STRING", "2024-05-01", "2024-05-01 12:00"),
    ],
)
def test_texts_of_a_domain_are_not_cut(
    column_type: str, spark_type: str, fits: Any, longer: Any, postgres_context: StepContext, database: Database
) -> None:
    database.execute(
        "CREATE DOMAIN shop.code AS varchar(3); CREATE DOMAIN shop.own_code AS shop.code CHECK (VALUE <> 'none'); "
        "CREATE DOMAIN shop.code_list AS varchar(3)[]; CREATE DOMAIN shop.day_text AS char(10); "
        f"CREATE TABLE shop.codes (code {column_type})".encode()
    )
    load([(fits,)], postgres_context, "codes", f"code {spark_type}")
    with pytest.raises(PipelineExecutionError, match="too long"):
        load([(longer,)], postgres_context, "codes", f"code {spark_type}")
    assert stored(database, "codes", "to_jsonb(code)") == [(fits,)]


EXACT = {"mode": "upsert", "keys": ["value"]}


@pytest.mark.parametrize(
    ("column_type", "spark_type", "taken", "changed", "type_told", "shown", "config"),
    [
        ("integer", "DOUBLE", 12.0, 12.75, "integer", "12.75", {}),
        ("bigint", "FLOAT", 12.0, 12.5, "bigint", "12.5", {}),
        ("smallint", "DECIMAL(10,2)", Decimal(12), Decimal("12.01"), "smallint", "12.01", {}),
        ("shop.whole", "DOUBLE", 12.0, 12.75, "integer", "12.75", {}),
        ("integer[]", "ARRAY<DOUBLE>", [1.0, None], [1.0, 1.5], "integer[]", "{1,1.5}", {}),
        ("date", "TIMESTAMP_NTZ", datetime(2024, 5, 1), datetime(2024, 5, 1, 12), "date", "2024-05-01 12:00:00", {}),
        ("date", "STRING", "2024-5-1", "2024-05-01 12:00", "date", "2024-05-01 12:00", {}),
        ("date[]", "ARRAY<STRING>", ["2024-5-1"], ["2024-05-01 12:00"], "date[]", '{"2024-05-01 12:00"}', {}),
        ("name", "STRING", "n" * 63, "n" * 64, "name", "n" * 64, {}),
        ('"char"', "STRING", "a", "ab", '"char"', "ab", {}),
        ("numeric(10,1)", "DOUBLE", 12.5, 12.25, "numeric(10,1)", "12.25", EXACT),
        ("numeric(10,1)", "DECIMAL(10,2)", Decimal("12.5"), Decimal("12.25"), "numeric(10,1)", "12.25", EXACT),
        ("shop.tenths", "STRING", "12.50", "12.25", "numeric(10,1)", "12.25", EXACT),
        ("numeric", "FLOAT", 0.5, 16777216.0, "numeric", "1.6777216e+07", EXACT),
        ("real", "DOUBLE", 0.5, 0.1, "real", "0.1", EXACT),
        ("double precision", "BIGINT", 2**53, 2**53 + 1, "double precision", str(2**53 + 1), EXACT),
        ("char(3)", "STRING", "a", "a ", "character(3)", "a ", EXACT),
        ("varchar(3)", "STRING", "abc", "abc ", "character varying(3)", "abc ", EXACT),
        ("time(0)", "STRING", "12:00", "12:00:00.7", "time(0) without time zone", "12:00:00.7", EXACT),
    ],
)
def test_values_that_a_type_would_change(
    column_type: str,
    spark_type: str,
    taken: Any,
    changed: Any,
    type_told: str,
    shown: str,
    config: dict[str, Any],
    postgres_context: StepContext,
    database: Database,
) -> None:
    database.execute(
        "CREATE DOMAIN shop.whole AS integer; CREATE DOMAIN shop.tenths AS numeric(10,1); "
        f"CREATE TABLE shop.told (id int, value {column_type}{' UNIQUE' if config else ''})".encode()
    )
    schema = f"id INT, value {spark_type}"
    load([(1, taken), (2, None)], postgres_context, "told", schema, **config)
    before = stored(database, "told", "id, value::text")
    assert database.execute(
        f"SELECT id FROM shop.told WHERE value = %s::{column_type}".encode(), (taken,)
    ).fetchall() == [(1,)]
    with pytest.raises(PipelineExecutionError, match="of 1 of the DataFrame's rows, .* cast or round them") as caught:
        load([(3, taken), (4, changed), (5, None)], postgres_context, "told", schema, **config)
    assert f"column 'value' of shop.told is of type {type_told}, " in caught.value.message
    assert f"e.g. {shown!r}: " in caught.value.message
    assert stored(database, "told", "id, value::text") == before
    assert staging_tables(database) == []


def test_values_that_postgres_rounds(postgres_context: StepContext, database: Database) -> None:
    """Where nothing is found by them."""
    database.execute("CREATE TABLE shop.told (id int PRIMARY KEY, price numeric(10,2), share real, at timestamptz(0))")
    moment = datetime(2024, 5, 1, 12, 0, 0, 700_000, ZoneInfo("UTC"))
    rows: Rows = [(1, Decimal("12.125"), 0.1, moment)]
    schema = "id INT, price DECIMAL(10,3), share DOUBLE, at TIMESTAMP"
    load(rows, postgres_context, "told", schema, mode="upsert", keys=["id"])
    columns = "price::text, share::text, at = '2024-05-01 12:00:01+00'"
    assert stored(database, "told", columns) == [("12.13", "0.1", True)]


def test_moments_that_would_be_those_of_the_next_day(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE DOMAIN shop.second AS timestamptz(0); CREATE TABLE shop.days (id int, at shop.second)")
    daily = Partitions(type="daily", start=date(2024, 10, 1), timezone="Europe/Berlin", column="at")
    context = dataclasses.replace(postgres_context, partition=daily.slice("2024-10-27"))
    last = datetime(2024, 10, 27, 23, 59, 59, tzinfo=ZoneInfo("Europe/Berlin"))
    load([(1, last)], context, "days", "id INT, at TIMESTAMP")
    with pytest.raises(PipelineExecutionError, match=r"'at' of .* timestamp\(0\) with time zone, .* '.*:59\.7\+00'"):
        load([(2, last.replace(microsecond=700_000))], context, "days", "id INT, at TIMESTAMP")
    assert stored(database, "days", "id, at") == [(1, last)]


def test_a_value_under_a_secret_name_is_not_shown(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.told (password name)")
    with pytest.raises(PipelineExecutionError, match="column 'password' of shop.told is of type name") as caught:
        load([("z" * 64,)], postgres_context, "told", "password STRING")
    assert "zzz" not in str(caught.value)


def test_a_domain_of_moments_tells_a_day_as_they_do(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE DOMAIN shop.moment AS timestamptz; CREATE TABLE shop.days (id int, at shop.moment)")
    daily = Partitions(type="daily", start=date(2024, 10, 1), timezone="Europe/Berlin", column="at")
    context = dataclasses.replace(postgres_context, partition=daily.slice("2024-10-27"))
    last = datetime(2024, 10, 27, 23, 59, tzinfo=ZoneInfo("Europe/Berlin"))
    for row in ((1, last), (2, last)):
        load([row], context, "days", "id INT, at TIMESTAMP")
    assert stored(database, "days", "id") == [(2,)]


def test_overwrite_keeps_the_definition(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE VIEW shop.names AS SELECT name FROM shop.items")
    load(NEW, postgres_context, "items", mode="overwrite")
    assert database.execute("SELECT name FROM shop.names ORDER BY 1").fetchall() == [("B",), ("c",)]
    with pytest.raises(Exception, match="unique constraint"):
        database.execute("INSERT INTO shop.items VALUES (3, 'x')")


def test_who_began_to_read_before_an_overwrite_sees_the_old_rows(
    postgres: PostgresServer, postgres_context: StepContext, database: Database
) -> None:
    """As a backup does: what it has not read yet is still to be as it was when it began."""
    with postgres.connect() as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert stored(reader, "log") == OLD
        load(NEW, postgres_context, "items", mode="overwrite")
        assert stored(database, "items") == NEW
        assert stored(reader, "items") == OLD


def test_rows_that_others_are_adding_are_replaced(
    postgres: PostgresServer, postgres_context: StepContext, database: Database
) -> None:
    with ThreadPoolExecutor(1) as pool, postgres.connect() as writer:
        writer.execute("INSERT INTO shop.log VALUES (9, 'z')")
        run = pool.submit(load, NEW, postgres_context, "log", mode="overwrite")
        wait_until(lambda: database.execute(WAITING).fetchone() is not None, 20)
        assert stored(database, "log") == OLD
        writer.commit()
        assert run.result().rows == 2
    assert stored(database, "log") == NEW


@pytest.fixture
def impatient(postgres: PostgresServer, database: Database) -> Iterator[None]:
    """Who waits for a lock gives up soon."""
    database.execute(f"ALTER DATABASE {postgres.database} SET lock_timeout = '3s'".encode())
    yield
    database.execute(f"ALTER DATABASE {postgres.database} RESET lock_timeout".encode())


@pytest.mark.usefixtures("impatient")
def test_overwrite_through_a_view(postgres: PostgresServer, postgres_context: StepContext, database: Database) -> None:
    """Of what the view only looks up, nothing is locked."""
    database.execute("CREATE VIEW shop.shown AS SELECT * FROM shop.items WHERE id NOT IN (SELECT id + 7 FROM shop.log)")
    with postgres.connect() as writer:
        writer.execute("INSERT INTO shop.log VALUES (9, 'z')")
        load(NEW, postgres_context, "shown", mode="overwrite")
    assert stored(database, "items") == NEW


def test_overwrite_without_the_right_to_delete(
    postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_LOADER", "loader")
    login = {"user": "loader", "password": "env:TEST_LOADER"}
    connection = postgres_context.connections.postgres("default").model_copy(update=login)
    context = dataclasses.replace(
        postgres_context, connections=Connections(ConnectionsFile(postgres={"default": connection}))
    )
    database.execute(
        "CREATE ROLE loader LOGIN PASSWORD 'loader'; GRANT USAGE, CREATE ON SCHEMA shop TO loader; "
        "GRANT SELECT, INSERT, TRUNCATE ON shop.items TO loader"
    )
    try:
        with pytest.raises(ConfigurationError, match=r'permission denied .*: GRANT DELETE ON "shop"\."items"'):
            load(NEW, context, "items", mode="overwrite")
    finally:
        database.execute("DROP OWNED BY loader; DROP ROLE loader")
    assert stored(database, "items") == OLD


def test_overwrite_of_a_table_that_others_refer_to(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.parts (item bigint REFERENCES shop.items)")
    load(NEW, postgres_context, "items", mode="overwrite")
    assert stored(database, "items") == NEW
    database.execute("INSERT INTO shop.parts VALUES (2)")
    with pytest.raises(PipelineExecutionError, match="violates"):
        load(OLD, postgres_context, "items", mode="overwrite")
    assert stored(database, "items") == NEW


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
@pytest.mark.parametrize("partitioned", [False, True])
def test_rows_of_other_tables_do_not_go_with_those_replaced(
    partitioned: bool, action: str, postgres_context: StepContext, database: Database
) -> None:
    database.execute(
        "ALTER TABLE shop.items ADD partition_key text DEFAULT 'mon'; "
        f"CREATE TABLE shop.parts (item bigint REFERENCES shop.items ON DELETE {action}); "
        "INSERT INTO shop.parts VALUES (2)".encode()
    )
    context = in_partition(postgres_context, "mon") if partitioned else postgres_context
    with pytest.raises(ConfigurationError, match=r"rows of shop\.items .* rows of shop\.parts, .*'upsert'"):
        load(NEW, context, "items", mode="append" if partitioned else "overwrite")
    assert (stored(database, "items"), stored(database, "parts", "item")) == (OLD, [(2,)])
    assert staging_tables(database) == []
    load(NEW, context, "items", mode="upsert", keys=["id"])
    assert (stored(database, "items"), stored(database, "parts", "item")) == ([OLD[0], *NEW], [(2,)])


def test_rows_that_refer_to_a_part_of_the_table(postgres_context: StepContext, database: Database) -> None:
    database.execute(
        "CREATE TABLE shop.whole (id int) PARTITION BY RANGE (id); "
        "CREATE TABLE shop.part PARTITION OF shop.whole (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (9); "
        "CREATE TABLE shop.notes (id int REFERENCES shop.part ON DELETE CASCADE); "
        "INSERT INTO shop.whole VALUES (1); INSERT INTO shop.notes VALUES (1)"
    )
    with pytest.raises(ConfigurationError, match=r"change rows of shop\.notes, "):
        load([(2,)], postgres_context, "whole", "id INT", mode="overwrite")
    assert stored(database, "notes", "id") == [(1,)]


def test_rows_that_refer_to_others_of_their_table(postgres_context: StepContext, database: Database) -> None:
    database.execute(
        "CREATE TABLE shop.tree (id int PRIMARY KEY, parent int REFERENCES shop.tree ON DELETE CASCADE, "
        "partition_key text); INSERT INTO shop.tree VALUES (1, NULL, 'mon'), (2, 1, 'tue')"
    )
    with pytest.raises(ConfigurationError, match=r"change rows of shop\.tree, "):
        load([(1, None)], in_partition(postgres_context, "mon"), "tree", "id INT, parent INT")
    assert stored(database, "tree", "id, parent") == [(1, None), (2, 1)]
    load([(3, None)], postgres_context, "tree", "id INT, parent INT", mode="overwrite")
    assert stored(database, "tree", "id, parent") == [(3, None)]


def test_a_table_is_created_with_types(postgres_context: StepContext, database: Database) -> None:
    spark = postgres_context.spark
    frame = spark.sql(
        "SELECT 1Y AS tiny, 2S AS small, 3 AS number, 4L AS big, 1.5F AS single, 2.5D AS double, 1.25BD AS exact, "
        "true AS yes, 'text' AS text, X'00FF' AS bytes, DATE'2024-05-01' AS day, "
        "TIMESTAMP'2024-05-01 12:00:00' AS instant, TIMESTAMP_NTZ'2024-05-01 12:00:00' AS clock, "
        "array('a', 'b') AS words, NULL AS nothing, 5 AS `Odd \"Name`"
    )
    assert ToPostgres(table="shop.typed").load(frame, postgres_context).rows == 1
    columns = database.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'shop.typed'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()
    assert ", ".join(type_ for _, type_ in columns) == (
        "smallint, smallint, integer, bigint, real, double precision, numeric(3,2), boolean, text, bytea, date, "
        "timestamp with time zone, timestamp without time zone, text[], text, integer"
    )
    assert columns[-1][0] == 'Odd "Name'
    row = database.execute(
        "SELECT big, exact::text, bytes, day::text, instant AT TIME ZONE 'UTC' = clock, words FROM shop.typed"
    ).fetchone()
    assert row == (4, "1.25", b"\x00\xff", "2024-05-01", True, ["a", "b"])


def test_text_becomes_what_the_table_holds(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.rich (id uuid, body jsonb, day date)")
    rows: Rows = [("7f0e4d3c-0000-4000-8000-000000000001", '{"a": 1}', "2024-05-01")]
    load(rows, postgres_context, "rich", "id STRING, body STRING, day STRING")
    assert database.execute("SELECT body ->> 'a', day::text FROM shop.rich").fetchall() == [("1", "2024-05-01")]


def test_upsert_creates_its_index(postgres_context: StepContext, database: Database) -> None:
    for rows in (OLD, NEW):
        load(rows, postgres_context, "fresh", mode="upsert", keys=["id"])
    assert stored(database, "fresh") == in_order([OLD[0], *NEW])


def test_a_table_may_feed_itself(postgres_context: StepContext, database: Database) -> None:
    frame = FromPostgres(table="shop.log").extract(postgres_context).where("id = 2")
    ToPostgres(table="shop.log", mode="overwrite").load(frame, postgres_context)
    assert stored(database, "log") == [OLD[1]]


@pytest.mark.parametrize(
    ("table", "config"),
    [
        ("log", {}),
        ("items", {"mode": "overwrite"}),
        ("items", {"mode": "upsert", "keys": ["id"]}),
        ("fresh", {}),
    ],
)
def test_a_failed_job_leaves_the_table(
    table: str, config: dict[str, Any], postgres_context: StepContext, database: Database
) -> None:
    frame = frame_of(postgres_context.spark, SCHEMA, NEW).where("assert_true(id < 3) IS NULL")
    with pytest.raises(PySparkException, match="id < 3"):
        ToPostgres.model_validate({"table": f"shop.{table}", **config}).load(frame, postgres_context)
    if table == "fresh":
        assert database.execute("SELECT to_regclass('shop.fresh')").fetchone() == (None,)
    else:
        assert stored(database, table) == OLD
    assert staging_tables(database) == []


@pytest.mark.parametrize(
    ("table", "schema", "rows", "config", "kind", "message"),
    [
        ("items", SCHEMA, NEW, {}, PipelineExecutionError, "duplicate key value violates unique constraint"),
        ("items", SCHEMA, [(5, None, None)], {}, PipelineExecutionError, 'null value in column "name"'),
        ("items", SCHEMA, [(5, "too long", None)], {"mode": "overwrite"}, PipelineExecutionError, "too long for type"),
        ("items", SCHEMA, [NEW[0]] * 2, {"mode": "upsert", "keys": ["id"]}, PipelineExecutionError, "same keys .id."),
        ("fresh", SCHEMA, [NEW[0]] * 2, {"mode": "upsert", "keys": ["id"]}, PipelineExecutionError, "same keys .id."),
        (
            "log",
            SCHEMA,
            NEW,
            {"mode": "upsert", "keys": ["id"]},
            ConfigurationError,
            r'needs a unique index.*CREATE UNIQUE INDEX ON "shop"."log" \("id"\)',
        ),
        ("log", SCHEMA, NEW, {"mode": "upsert", "keys": ["idd"]}, DataFrameResolutionError, "did you mean 'id'"),
        ("fresh", SCHEMA, NEW, {"mode": "upsert", "keys": ["ID"]}, DataFrameResolutionError, "'ID', did you mean 'id'"),
        ("log", "id INT, label STRING", [(1, "x")], {}, ConfigurationError, "no column 'label' .*id, name, amount"),
        ("log", "id BOOLEAN", [(True,)], {"mode": "overwrite"}, None, ""),
        ("log", "id DATE", [(None,)], {}, ConfigurationError, "cannot cast type date to integer"),
        ("log", "id INT, name STRUCT<a: INT>", [(1, (1,))], {}, ConfigurationError, "'name' is of type struct<a:int>"),
        ("fresh", SCHEMA, NEW, {"createTable": False}, ConfigurationError, "table shop.fresh does not exist"),
    ],
)
def test_refused(
    table: str,
    schema: str,
    rows: Rows,
    config: dict[str, Any],
    kind: type[PipelineError] | None,
    message: str,
    postgres_context: StepContext,
    database: Database,
) -> None:
    if kind is None:
        load(rows, postgres_context, table, schema, **config)
        assert stored(database, table, "id") == [(1,)]
        return
    with pytest.raises(kind, match=message):
        load(rows, postgres_context, table, schema, **config)
    if table == "fresh":
        assert database.execute("SELECT to_regclass('shop.fresh')").fetchone() == (None,)
    else:
        assert stored(database, table) == OLD
    assert staging_tables(database) == []


def test_an_upsert_against_another_unique_index(postgres_context: StepContext, database: Database) -> None:
    database.execute("CREATE TABLE shop.users (id bigint PRIMARY KEY, email text UNIQUE)")
    database.execute("INSERT INTO shop.users VALUES (1, 'a@shop.example')")
    upsert: dict[str, Any] = {"mode": "upsert", "keys": ["id"]}
    told = r"two rows of shop\.users .* unique index 'users_email_key', which is not the one on the keys \(id\)"
    for rows in ([(2, "a@shop.example")], [(2, "b@shop.example"), (3, "b@shop.example")]):
        with pytest.raises(PipelineExecutionError, match=told) as caught:
            load(rows, postgres_context, "users", "id INT, email STRING", **upsert)
        assert "@shop.example" not in str(caught.value), "whose address it is"
    load([(2, "b@shop.example")], postgres_context, "users", "id INT, email STRING", **upsert)
    assert stored(database, "users", "id, email") == [(1, "a@shop.example"), (2, "b@shop.example")]
    assert staging_tables(database) == []


def test_schema_that_does_not_exist(postgres_context: StepContext) -> None:
    frame = frame_of(postgres_context.spark, "id INT", [(1,)])
    with pytest.raises(ConfigurationError, match='schema "nowhere" does not exist'):
        ToPostgres(table="nowhere.items").load(frame, postgres_context)


def test_rows_that_arrive_twice_are_refused(
    postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_postgres, "CountedRows", _TooFew)
    with pytest.raises(PipelineExecutionError, match="2 rows arrived in PostgreSQL of 1 that Spark computed"):
        load(NEW, postgres_context, "log")
    assert stored(database, "log") == OLD


def test_rows_that_spark_does_not_count_are_refused(
    postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_postgres, "CountedRows", _NeverTold)
    with pytest.raises(RetryableError, match="did not tell how many rows .* nothing was written") as caught:
        load(NEW, postgres_context, "log")
    assert caught.value.transient_kind == "unavailable"
    assert stored(database, "log") == OLD
    assert staging_tables(database) == []


def test_a_connect_server_may_leave_the_count_out(
    spark_connect_server: SparkConnectServer,
    postgres_context: StepContext,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It waits a tenth of a second for it: a busy one would fail each load."""
    monkeypatch.setattr(load_postgres, "CountedRows", _NeverTold)
    with SparkSessions(Settings(spark_remote=spark_connect_server.remote)) as sessions:
        remote = dataclasses.replace(postgres_context, spark=sessions.session("uncounted", "tests"))
        assert load(NEW, remote, "log").rows == 2
    assert stored(database, "log") == in_order([*OLD, *NEW])
    assert "Spark Connect did not tell how many rows it has written" in caplog.text


@pytest.mark.parametrize("without_rows", ["no rows at all", "none by a filter", "none by a join", "none that are kept"])
def test_no_rows_are_counted_too(
    any_spark: SparkSession, without_rows: str, postgres_context: StepContext, database: Database
) -> None:
    context = dataclasses.replace(postgres_context, spark=any_spark)
    rows = any_spark.range(100).selectExpr("id", "'a' AS name", "1.5D AS amount")
    frame = {
        "no rows at all": lambda: frame_of(any_spark, SCHEMA, []),
        "none by a filter": lambda: rows.where("id < 0"),
        "none by a join": lambda: rows.where("length(name) > 1").join(rows.select("id"), "id"),
        "none that are kept": lambda: rows.where("id < 0").cache(),
    }[without_rows]()
    assert ToPostgres(table="shop.log", mode="overwrite").load(frame, context).rows == 0
    assert stored(database, "log") == []


def lose_the_answer(monkeypatch: pytest.MonkeyPatch, *, after_commit: bool) -> None:
    """Have the connection be lost when the rows are committed: before the server has done so, or after."""
    import psycopg

    run, commit = load_postgres._Move.run, psycopg.Connection.commit
    moving: list[Any] = []

    def run_and_tell(self: Any, database: Any, expected: int | None) -> int:
        written = run(self, database, expected)
        moving.append(database)
        return written

    def commit_and_lose(self: Any) -> None:
        if self not in moving:
            commit(self)
            return
        if after_commit:
            commit(self)
        self.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(load_postgres._Move, "run", run_and_tell)
    monkeypatch.setattr(psycopg.Connection, "commit", commit_and_lose)


@pytest.mark.parametrize(("table", "expected"), [("log", [*OLD, *NEW]), ("fresh", NEW)])
def test_the_answer_to_a_commit_is_lost(
    table: str, expected: Rows, postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_answer(monkeypatch, after_commit=True)
    assert load(NEW, postgres_context, table).rows == 2
    assert stored(database, table) == in_order(expected)
    assert staging_tables(database) == []


def test_the_connection_is_lost_before_the_commit(
    postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_answer(monkeypatch, after_commit=False)
    with pytest.raises(RetryableError, match="server closed the connection"):
        load(NEW, postgres_context, "log")
    assert stored(database, "log") == OLD
    assert staging_tables(database) == []


@pytest.mark.parametrize("after_commit", [True, False])
def test_nobody_says_whether_rows_are_in(
    after_commit: bool, postgres_context: StepContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is not tried again by itself: it might write the rows twice."""
    lose_the_answer(monkeypatch, after_commit=after_commit)
    monkeypatch.setattr(load_postgres, "_LOOKS", 0)
    with pytest.raises(
        PipelineExecutionError, match=r"look for the table shop\._staging_\w+\. If it is there"
    ) as caught:
        load(NEW, postgres_context, "log")
    assert caught.value.transient_kind is None
    assert stored(database, "log") == (in_order([*OLD, *NEW]) if after_commit else OLD)
    assert len(staging_tables(database)) == (0 if after_commit else 1)


class _TooFew(CountedRows):
    """What is left of the count when a task that had committed is run again."""

    def get(self, timeout_seconds: float = 10.0) -> int | None:
        found = super().get(timeout_seconds)
        return None if found is None else found - 1


class _NeverTold(CountedRows):
    """What there is when the driver has dropped the event with the count."""

    def get(self, timeout_seconds: float = 10.0) -> int | None:
        found = super().get(timeout_seconds)
        assert found == len(NEW) or (found is None and not self.is_always_told)
        return None


@pytest.fixture
def repeatable_read(postgres: PostgresServer, database: Database) -> Iterator[None]:
    """Some servers have it so by default: a transaction sees what was there when it began."""
    setting = f"ALTER DATABASE {postgres.database} SET default_transaction_isolation = 'repeatable read'"
    database.execute(setting.encode())
    yield
    database.execute(f"ALTER DATABASE {postgres.database} RESET default_transaction_isolation".encode())


def in_partition(context: StepContext, key: str, **config: Any) -> StepContext:
    partitions = Partitions.model_validate({"type": "static", "values": ["mon", "o'clock"], **config})
    return dataclasses.replace(context, partition=partitions.slice(key))


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_partitions_without_a_column(mode: str, postgres_context: StepContext, database: Database) -> None:
    for key, rows in {"mon": [(1,)], "o'clock": [(2,), (3,)]}.items():
        for _ in range(2):  # a run repeated
            load(rows, in_partition(postgres_context, key), "sliced", "id INT", mode=mode)
    assert stored(database, "sliced", "id, partition_key") == [(1, "mon"), (2, "o'clock"), (3, "o'clock")]


@pytest.mark.parametrize("there", ["rows", "table", "nothing"])
def test_two_runs_of_a_partition_at_once(
    there: str,
    postgres_context: StepContext,
    database: Database,
    repeatable_read: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second waits while the first has put its rows in and not committed: it replaces those, too."""
    context = in_partition(postgres_context, "mon")
    if there == "table":
        load([(1,)], in_partition(postgres_context, "o'clock"), "sliced", "id INT")
    elif there == "rows":
        load([(1,)], context, "sliced", "id INT")
    first, checked = threading.Event(), _Move._checked

    def slow(move: _Move, on: Database, statement: str) -> psycopg.Cursor[Any]:
        done = checked(move, on, statement)
        if statement.startswith("INSERT") and not first.is_set():
            first.set()
            wait_until(lambda: database.execute(WAITING).fetchone() is not None)
        return done

    monkeypatch.setattr(_Move, "_checked", slow)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(load, [(2,)], context, "sliced", "id INT")]
        assert first.wait(60)
        runs.append(pool.submit(load, [(2,)], context, "sliced", "id INT"))
        assert [run.result().rows for run in runs] == [1, 1]
    found = database.execute("SELECT id FROM shop.sliced WHERE partition_key = 'mon'").fetchall()
    assert found == [(2,)]


def test_a_partition_column_in_another_case(postgres_context: StepContext) -> None:
    context = in_partition(postgres_context, "mon", column="Day")
    with pytest.raises(DataFrameResolutionError, match="no column 'Day', did you mean 'day'"):
        load([("mon",)], context, "sliced", "day STRING")


def test_a_day_of_a_time_zone(postgres_context: StepContext, database: Database) -> None:
    daily = Partitions(type="daily", start=date(2024, 10, 1), timezone="Europe/Berlin", column="at")
    context = dataclasses.replace(postgres_context, partition=daily.slice("2024-10-27"))
    zone = ZoneInfo("Europe/Berlin")
    first, last = datetime(2024, 10, 27, tzinfo=zone), datetime(2024, 10, 27, 23, 59, tzinfo=zone)
    for rows in ([(1, first), (2, last)], [(3, last)]):
        load(rows, context, "days", "id INT, at TIMESTAMP")
    assert stored(database, "days", "id") == [(3,)]
    with pytest.raises(PipelineExecutionError, match="1 of the DataFrame's rows are outside partition '2024-10-27'"):
        load([(4, last + timedelta(minutes=1))], context, "days", "id INT, at TIMESTAMP")


@pytest.mark.parametrize(
    ("stored_type", "spark_type", "told"),
    [
        ("timestamp", "TIMESTAMP", "timestamp with time zone in the DataFrame and timestamp without time zone in"),
        ("date", "TIMESTAMP", "timestamp with time zone in the DataFrame and date in table shop.days"),
        ("timestamptz", "TIMESTAMP_NTZ", "timestamp without time zone in the DataFrame and timestamp with time zone"),
    ],
)
def test_a_day_that_the_table_tells_otherwise(
    stored_type: str, spark_type: str, told: str, postgres_context: StepContext, database: Database
) -> None:
    database.execute(f"CREATE TABLE shop.days (id int, at {stored_type})".encode())
    database.execute("INSERT INTO shop.days VALUES (1, '2024-10-26 12:00'), (2, '2024-10-27 12:00')")
    before = stored(database, "days", "id, at::text")
    zone = ZoneInfo("Pacific/Auckland")
    daily = Partitions(type="daily", start=date(2024, 10, 1), timezone="Pacific/Auckland", column="at")
    context = dataclasses.replace(postgres_context, partition=daily.slice("2024-10-27"))
    rows: Rows = [(3, datetime(2024, 10, 27, 1, tzinfo=zone if spark_type == "TIMESTAMP" else None))]
    with pytest.raises(ConfigurationError, match=told):
        load(rows, context, "days", f"id INT, at {spark_type}")
    assert stored(database, "days", "id, at::text") == before
    assert staging_tables(database) == []


@pytest.mark.parametrize("stored_type", ["timestamp", "date"])
@pytest.mark.parametrize("source", ["timestamp", "timestamptz"])
def test_what_the_error_about_a_day_advises(
    source: str, stored_type: str, postgres_context: StepContext, database: Database
) -> None:
    """Its first example is for moments, the second for local times that have been read as moments."""
    database.execute(
        "SET TIME ZONE 'Europe/Berlin'; "
        f"CREATE TABLE shop.visits (at {source}); CREATE TABLE shop.days (at {stored_type}); "
        "INSERT INTO shop.visits VALUES ('2024-10-27 00:30'), ('2024-10-27 23:30'); "
        "INSERT INTO shop.days VALUES ('2024-10-26 12:00'), ('2024-10-27 12:00')".encode()
    )
    daily = Partitions(type="daily", start=date(2024, 10, 1), timezone="Europe/Berlin", column="at")
    context = dataclasses.replace(postgres_context, partition=daily.slice("2024-10-27"))
    frame = FromPostgres(table="shop.visits").extract(context)
    with pytest.raises(ConfigurationError) as caught:
        ToPostgres(table="shop.days").load(frame, context)
    advised = re.search(r"e\.g\. (CAST\(.*\)), or (CAST\(.*\)) where fromPostgres", caught.value.message)
    assert advised
    columns = {"at": advised[2 if source == "timestamp" else 1]}
    visits = WithColumns.model_validate({"columns": columns}).transform({"visits": frame}, context)
    ToPostgres(table="shop.days").load(visits, context)
    expected = database.execute(
        f"SELECT timestamp '2024-10-26 12:00'::{stored_type}::text UNION ALL SELECT at::{stored_type}::text "
        "FROM shop.visits ORDER BY 1".encode()
    ).fetchall()
    assert stored(database, "days", "at::text") == expected


def test_partitions_with_a_column(postgres_context: StepContext, database: Database) -> None:
    for rows in ([(1, "mon")], [(2, "mon")]):
        load(rows, in_partition(postgres_context, "mon", column="Day"), "sliced", "id INT, Day STRING")
    assert stored(database, "sliced", 'id, "Day"') == [(2, "mon")]
    with pytest.raises(PipelineExecutionError, match="1 of the DataFrame's rows are outside partition 'mon'"):
        load([(3, "tue")], in_partition(postgres_context, "mon", column="Day"), "sliced", "id INT, Day STRING")
    assert stored(database, "sliced", 'id, "Day"') == [(2, "mon")]


@pytest.mark.parametrize("config", [{}, {"mode": "overwrite"}, {"mode": "upsert", "keys": ["id"]}])
def test_a_column_called_as_the_key_of_the_partition(
    config: dict[str, Any], postgres_context: StepContext, database: Database
) -> None:
    rows: Rows = [(1, "mon")]
    with pytest.raises(ConfigurationError, match="column 'partition_key', .*rename"):
        load(rows, in_partition(postgres_context, "mon"), "sliced", "id INT, partition_key STRING", **config)
    assert database.execute("SELECT to_regclass('shop.sliced')").fetchone() == (None,)
    inside = in_partition(postgres_context, "mon", column="partition_key")
    load(rows, inside, "sliced", "id INT, partition_key STRING", **config)
    assert stored(database, "sliced", "id, partition_key") == rows


def test_upsert_takes_rows_of_any_partition(postgres_context: StepContext, database: Database) -> None:
    for key, rows in {"mon": [(1, "mon"), (2, "tue")], "o'clock": [(1, "wed")]}.items():
        inside = in_partition(postgres_context, key, column="day")
        load(rows, inside, "sliced", "id INT, day STRING", mode="upsert", keys=["id"])
    assert stored(database, "sliced", "id, day") == [(1, "wed"), (2, "tue")]


def test_sinks() -> None:
    (sink,) = ToPostgres(table="shop.items", connection="dwh").sinks()
    assert (sink.kind, sink.parts) == ("postgres", ("dwh", "shop", "items"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"table": "a.b.c"}, "is not a table"),
        ({"table": "a", "mode": "upsert"}, "'upsert' and 'keys' go together"),
        ({"table": "a", "keys": ["id"]}, "'upsert' and 'keys' go together"),
        ({"table": "a", "mode": "merge"}, "'append', 'overwrite' or 'upsert'"),
        ({"table": "a", "batchSize": 0}, "greater than 0"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToPostgres.model_validate(config)
