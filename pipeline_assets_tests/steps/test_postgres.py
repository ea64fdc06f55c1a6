"""What a connection to PostgreSQL is opened with, and what is said of one that is not. No server is asked."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote_plus, unquote_plus

import pytest

from pipeline_assets.connections import PostgresConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import ConfigurationError, CredentialError, PipelineError, PipelineExecutionError
from pipeline_assets.redaction import MASK, redact
from pipeline_assets.steps.postgres import connect, jdbc_options

CONNECTION = PostgresConnection(host="authentication-db.internal", database="authentication", user="authentication")
AT = 'connection failed: connection to server at "10.0.0.9", port 5432 failed:'
BY_NAME = 'connection failed: connection to server at "authentication-db.internal" (10.0.0.9), port 5432 failed:'
REFUSED = "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?"


@pytest.mark.parametrize(
    ("said", "kind", "transient", "message"),
    [
        (f"{BY_NAME} {REFUSED}", PipelineExecutionError, "connection", "is not reachable at authentication-db"),
        (
            "failed to resolve host 'authentication-db.internal': [Errno -2] Name or service not known",
            PipelineExecutionError,
            None,
            "is not reachable at authentication-db.internal:5432: failed to resolve",
        ),
        (
            f"{BY_NAME} FATAL:  the database system is starting up",
            PipelineExecutionError,
            "unavailable",
            "the database system is starting up",
        ),
        (
            f'{AT} FATAL:  database "authentication" does not exist',
            ConfigurationError,
            None,
            'refused the connection: database "authentication" does not exist',
        ),
        (
            f'{AT} FATAL:  role "authentication failed" is not permitted to log in',
            ConfigurationError,
            None,
            "is not permitted to log in",
        ),
        (
            f'{AT} FATAL:  password authentication failed for user "authentication"',
            CredentialError,
            None,
            "refused user 'authentication': password authentication failed",
        ),
        (f"{AT} FATAL:  SASL authentication failed", CredentialError, None, "SASL authentication failed"),
        (f"{AT} fe_sendauth: no password supplied", CredentialError, None, "what its password refers to"),
        (
            "Multiple connection attempts failed. All failures were:\n"
            f"- host: 'localhost', port: 5432, hostaddr: '::1': {AT} {REFUSED}\n"
            f"- host: 'localhost', port: 5432, hostaddr: '127.0.0.1': {AT} FATAL:  password authentication failed for "
            'user "authentication"',
            CredentialError,
            None,
            "password authentication failed",
        ),
    ],
)
def test_why_a_connection_is_not_opened(
    said: str, kind: type[PipelineError], transient: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    def fails(**_: Any) -> None:
        raise psycopg.OperationalError(said)

    monkeypatch.setattr(psycopg, "connect", fails)
    with pytest.raises(kind, match=message) as caught:
        connect(CONNECTION, Secrets())
    assert caught.value.transient_kind == transient


def test_the_certificate_that_a_connection_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's JDBC is given the same, and asked for it by the same server."""
    import psycopg
    from psycopg import conninfo

    opened: list[dict[str, Any]] = []

    def noted(**parameters: Any) -> None:
        # As libpq reads it: what it does not know, it refuses.
        opened.append(conninfo.conninfo_to_dict(conninfo.make_conninfo(**parameters)))
        raise psycopg.OperationalError("no server is asked")

    monkeypatch.setattr(psycopg, "connect", noted)
    monkeypatch.setenv("KEY_PASSWORD", "a pass'phrase")
    files = {
        "sslmode": "verify-full",
        "sslrootcert": "/pki/ca.pem",
        "sslcert": "/pki/etl.pem",
        "sslkey": "/pki/etl.pk8",
    }
    connection = CONNECTION.model_copy(update={"options": {**files, "sslpassword": "env:KEY_PASSWORD"}})
    expected = {**files, "sslpassword": "a pass'phrase"}
    with pytest.raises(PipelineExecutionError):
        connect(connection, Secrets())
    [parameters] = opened
    assert {name: parameters.get(name) for name in expected} == expected
    assert jdbc_options(connection, Secrets()).items() >= expected.items()


@pytest.mark.parametrize("database", ["shop", "etl+prod", "a%41", "100%", "größe:&#;=x"])
def test_a_database_of_any_name(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "s3cr3t+%41")
    connection = PostgresConnection(host="db", database=database, user="etl", password="env:DATABASE_PASSWORD")
    options = jdbc_options(connection, Secrets())
    path, _, parameters = options["url"].removeprefix("jdbc:postgresql://db:5432/").partition("?")
    assert "/" not in path
    # As the driver reads it, with Java's URLDecoder.
    assert unquote_plus(path) == database
    assert parse_qs(parameters)["tcpKeepAlive"] == ["true"]
    # What is known to be secret is masked beside it, in the form that a URL has it in; the name is shown.
    shown = f"{options['url']}&password={quote_plus(options['password'])}"
    assert redact(shown) == f"{options['url']}&password={MASK}"
