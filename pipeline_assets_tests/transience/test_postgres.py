"""PostgreSQL's failures, by psycopg and by Spark's JDBC, from a real server unless the case says how else."""

from __future__ import annotations

import ctypes
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devstack.ports import free_port
from devstack.postgres import PostgresServer
from pipeline_assets.connections import PostgresConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.steps.postgres import connect, database_errors, jdbc_options
from pipeline_assets_tests.credentials.vault_front import self_signed
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.transience.cases import Case, answering_server, failure, silent_server, table

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Database:
    """A server with a table ``faults.numbers`` of two rows, and a role that may log in once and do nothing."""

    server: PostgresServer

    def connection(self, **other: Any) -> PostgresConnection:
        given = {
            "host": self.server.host,
            "port": self.server.port,
            "database": self.server.database,
            "user": self.server.user,
            "password": "env:FAULTS_PASSWORD",
        }
        return PostgresConnection(**{**given, **other})

    def open(self, **other: Any) -> psycopg.Connection[Any]:
        return connect(self.connection(**other), Secrets())

    def run(self, *statements: str) -> None:
        """Execute ``statements`` in one transaction, as a step would."""
        with database_errors(self.connection(), "use"), self.open() as database:
            for statement in statements:
                database.execute(statement.encode())


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[Database]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS_PASSWORD", postgres.password)
        patch.setenv("FAULTS_WRONG", "wrong")
        place = Database(postgres)
        place.run(
            "DROP SCHEMA IF EXISTS faults CASCADE",
            "DROP ROLE IF EXISTS faults_guest",
            "CREATE SCHEMA faults",
            "CREATE TABLE faults.numbers (id int PRIMARY KEY, n int)",
            "INSERT INTO faults.numbers VALUES (1, 0), (2, 0)",
            f"CREATE ROLE faults_guest LOGIN PASSWORD '{postgres.password}' CONNECTION LIMIT 1",
        )
        yield place
        place.run("DROP SCHEMA faults CASCADE", "DROP ROLE faults_guest")


def terminated(place: Database) -> None:
    with database_errors(place.connection(), "use"), place.open() as victim, place.open() as killer:
        killer.execute("SELECT pg_terminate_backend(%s, 60000)", (victim.info.backend_pid,))
        victim.execute("SELECT 1")


def serialization_failure(place: Database) -> None:
    with database_errors(place.connection(), "use"), place.open() as first, place.open() as second:
        for one in (first, second):
            one.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            one.execute("SELECT sum(n) FROM faults.numbers")
        first.execute("UPDATE faults.numbers SET n = 1 WHERE id = 1")
        second.execute("UPDATE faults.numbers SET n = 1 WHERE id = 2")
        first.commit()
        second.commit()


def deadlock(place: Database) -> None:
    with database_errors(place.connection(), "use"), place.open() as first, place.open() as second:
        first.execute("SET deadlock_timeout = '100ms'")
        second.execute("SET deadlock_timeout = '1h'")  # so that it is the first that gives up
        first.execute("UPDATE faults.numbers SET n = n WHERE id = 1")
        second.execute("UPDATE faults.numbers SET n = n WHERE id = 2")
        waiting = threading.Thread(target=second.execute, args=("UPDATE faults.numbers SET n = n WHERE id = 1",))
        waiting.start()
        waits = "SELECT true FROM pg_locks WHERE pid = %s AND NOT granted"
        try:
            # One that comes after the first's would be the one to find the deadlock.
            wait_until(lambda: first.execute(waits, (second.info.backend_pid,)).fetchone())
            first.execute("UPDATE faults.numbers SET n = n WHERE id = 2")
        finally:
            first.rollback()
            waiting.join()


def lock_timeout(place: Database) -> None:
    with place.open() as other:
        other.execute("LOCK TABLE faults.numbers")
        place.run("SET lock_timeout = '50ms'", "SELECT * FROM faults.numbers")


def too_many(place: Database) -> None:
    with place.open(user="faults_guest"), place.open(user="faults_guest"):
        pass


def closed_by_server(place: Database) -> None:
    with answering_server(b"") as port, place.open(port=port):
        pass


def starting_up(place: Database) -> None:
    """What a server says while it starts, in its own protocol: a real one does not stay in that state."""
    fields = b"".join(
        code + text + b"\0"
        for code, text in ((b"S", b"FATAL"), (b"V", b"FATAL"), (b"C", b"57P03"), (b"M", STARTING_UP))
    )
    error = b"E" + struct.pack(">i", len(fields) + 5) + fields + b"\0"
    with answering_server(error) as port, place.open(port=port, options={"sslmode": "disable"}):
        pass


STARTING_UP = b"the database system is starting up"


def no_answer(place: Database) -> None:
    with silent_server() as port, place.open(port=port, options={"connectTimeout": "2"}):
        pass


BY_PSYCOPG: tuple[Case[Database], ...] = (
    Case("backend terminated, 57P01", "unavailable", terminated),
    Case("server starts, 57P03", "unavailable", starting_up),
    Case("too many connections, 53300", "unavailable", too_many),
    Case("serialization failure, 40001", "conflict", serialization_failure),
    Case("deadlock, 40P01", "conflict", deadlock),
    Case("lock timeout, 55P03", "conflict", lock_timeout),
    Case("connection refused", "connection", lambda place: place.open(port=free_port())),
    Case("connection closed by the server", "connection", closed_by_server),
    Case("no answer to a connection", "timeout", no_answer),
    Case("statement timeout, 57014", None, lambda p: p.run("SET statement_timeout = '20ms'", "SELECT pg_sleep(60)")),
    Case("wrong password, 28P01", None, lambda place: place.open(password="env:FAULTS_WRONG")),
    Case("no such database, 3D000", None, lambda place: place.open(database="none")),
    Case("no such table, 42P01", None, lambda place: place.run("SELECT * FROM faults.none")),
    Case("no such column, 42703", None, lambda place: place.run("SELECT none FROM faults.numbers")),
    Case("denied, 42501", None, lambda p: p.run("SET ROLE faults_guest", "SELECT * FROM faults.numbers")),
    Case("syntax, 42601", None, lambda place: place.run("SELEKT 1")),
    Case("division by zero, 22012", None, lambda place: place.run("SELECT 1 / n FROM faults.numbers WHERE n = 0")),
    Case("unique violation, 23505", None, lambda place: place.run("INSERT INTO faults.numbers VALUES (1, 1)")),
    Case("read-only, 25006", None, lambda p: p.run("SET TRANSACTION READ ONLY", "CREATE TABLE faults.x ()")),
)


@table(*BY_PSYCOPG)
def test_by_psycopg(case: Case[Database], database: Database) -> None:
    assert failure(lambda: case.provoke(database)).transient_kind == case.kind


@pytest.mark.parametrize("after", ["the request", "the handshake", "goodbye"])
def test_a_connection_that_is_lost_under_tls(database: Database, tmp_path: Path, after: str) -> None:
    """OpenSSL has words of its own for each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            accepted, _ = server.accept()
            with accepted:
                accepted.recv(65536)
                accepted.sendall(b"S")  # PostgreSQL's yes to TLS
                if after == "the request":
                    accepted.recv(65536)
                    return
                with context.wrap_socket(accepted, server_side=True) as secured:
                    secured.recv(65536)
                    if after == "goodbye":
                        secured.unwrap()

        thread = threading.Thread(target=hang_up)
        thread.start()
        error = failure(lambda: database.open(port=server.getsockname()[1], options={"sslmode": "require"}))
        thread.join()
    assert error.transient_kind == "connection"


@pytest.mark.parametrize(("code", "kind"), [(socket.EAI_AGAIN, "connection"), (socket.EAI_NONAME, None)])
def test_a_name_that_is_not_resolved(
    database: Database, monkeypatch: pytest.MonkeyPatch, code: int, kind: str | None
) -> None:
    said = ctypes.CDLL(None).gai_strerror
    said.restype = ctypes.c_char_p

    def unresolved(*_: Any, **__: Any) -> None:
        raise socket.gaierror(code, said(code).decode())

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert failure(lambda: database.open(host="db.example")).transient_kind == kind


@dataclass(frozen=True)
class Jdbc:
    """Spark reading from the server by JDBC."""

    spark: SparkSession
    database: Database

    def read(self, dbtable: str = "faults.numbers", port: int | None = None, **options: str) -> None:
        server = self.database.server
        given = {"user": server.user, "password": server.password, "dbtable": dbtable, **options}
        url = f"jdbc:postgresql://{server.host}:{port or server.port}/{server.database}"
        reader = self.spark.read.format("jdbc").option("driver", "org.postgresql.Driver").option("url", url)
        reader.options(**given).load().collect()

    def too_many(self) -> None:
        with self.database.open(user="faults_guest"):
            self.read("(SELECT 1 AS one) t", user="faults_guest")

    def no_answer(self) -> None:
        with silent_server() as port:
            self.read(port=port, socketTimeout="1", sslmode="disable")

    def silent_at_login(self) -> None:
        with silent_server() as port:
            connection = self.database.connection(port=port, options={"loginTimeout": "1"})
            self.spark.read.format("jdbc").options(**jdbc_options(connection, Secrets()), dbtable="t").load().collect()

    def hung_up(self) -> None:
        with answering_server(b"") as port:
            self.read(port=port, sslmode="disable")

    def locked(self) -> None:
        with self.database.open() as other:
            other.execute("LOCK TABLE faults.numbers")
            self.read(options="-c lock_timeout=50ms")


# The server ends these by itself while Spark reads, not when it asks for the columns.
KILLED = "(SELECT pg_terminate_backend(pg_backend_pid()) AS gone, pg_sleep(60)::text AS slept) t"
SLOW = "(SELECT pg_sleep(60)::text AS slept) t"

BY_JDBC: tuple[Case[Jdbc], ...] = (
    Case("JDBC: refused", "connection", lambda place: place.read(port=free_port())),
    Case("JDBC: no answer to a login", "connection", Jdbc.silent_at_login),
    Case("JDBC: connection closed by the server", "connection", Jdbc.hung_up),
    Case("JDBC: backend terminated", "unavailable", lambda place: place.read(KILLED)),
    Case("JDBC: too many connections", "unavailable", Jdbc.too_many),
    Case("JDBC: lock timeout", "conflict", Jdbc.locked),
    Case("JDBC: statement timeout", None, lambda place: place.read(SLOW, options="-c statement_timeout=200ms")),
    Case("JDBC: wrong password", None, lambda place: place.read(password="wrong")),
    Case("JDBC: no such table", None, lambda place: place.read("faults.none")),
    Case("JDBC: division by zero", None, lambda place: place.read("(SELECT 1 / n AS x FROM faults.numbers) t")),
)


@table(*BY_JDBC)
def test_by_jdbc(case: Case[Jdbc], session: SparkSession, database: Database) -> None:
    assert failure(lambda: case.provoke(Jdbc(session, database))).transient_kind == case.kind


def test_jdbc_without_an_answer(spark: SparkSession, database: Database) -> None:
    assert failure(Jdbc(spark, database).no_answer).transient_kind == "timeout"
