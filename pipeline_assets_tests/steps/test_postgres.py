"""What is said of a connection that PostgreSQL does not open. Its words are stated, as a server's own state is not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_assets.connections import PostgresConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import ConfigurationError, CredentialError, PipelineError, PipelineExecutionError
from pipeline_assets.steps.postgres import connect

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
