"""Credentials that Vault makes in the real PostgreSQL: one lease a run, kept alive, and taken back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hvac
import psycopg
import pytest

from devstack.postgres import PostgresServer
from devstack.vault import VaultServer
from pipeline_assets.connections import PostgresConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.leases import Lease
from pipeline_assets.credentials.vault import Vault
from pipeline_assets.credentials.vault_client import VaultClient
from pipeline_assets.credentials.vault_settings import VaultSettings
from pipeline_assets.steps.postgres import connect, jdbc_options
from pipeline_assets_tests.credentials.conftest import wait_until

USER, PASSWORD = "vault:database/creds/{}#username", "vault:database/creds/{}#password"


def connection(postgres: PostgresServer, role: str) -> PostgresConnection:
    return PostgresConnection(
        host=postgres.host,
        port=postgres.port,
        database=postgres.database,
        user=USER.format(role),
        password=PASSWORD.format(role),
    )


def leases(client: hvac.Client, role: str) -> set[str]:
    try:
        return set(client.sys.list_leases(f"database/creds/{role}/")["data"]["keys"])
    except hvac.exceptions.InvalidPath:
        return set()


def lease(client: hvac.Client, role: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = client.sys.read_lease(f"database/creds/{role}/{key}")["data"]
    return found


def roles(postgres: PostgresServer) -> set[str]:
    with postgres.connect() as connected:
        return {name for (name,) in connected.execute("select rolname from pg_roles where rolname like 'v-%'")}


def test_user_and_password_are_of_one_lease_which_ends_with_the_run(
    database: hvac.Client, postgres: PostgresServer
) -> None:
    there = roles(postgres)
    with Secrets() as secrets:
        with connect(connection(postgres, "etl"), secrets) as connected:
            row = connected.execute("select current_user").fetchone()
        options = jdbc_options(connection(postgres, "etl"), secrets)
        assert row == (options["user"],)
        assert roles(postgres) - there == {options["user"]}
        assert len(leases(database, "etl")) == 1
        assert secrets.fetch(PASSWORD.format("etl")) == options["password"]
    wait_until(lambda: not leases(database, "etl"))
    assert roles(postgres) == there
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host=postgres.host,
            port=postgres.port,
            dbname=postgres.database,
            user=options["user"],
            password=options["password"],
        )


@pytest.mark.usefixtures("database")
def test_two_runs_have_two(postgres: PostgresServer) -> None:
    with Secrets() as one, Secrets() as other:
        assert one.fetch(USER.format("etl")) != other.fetch(USER.format("etl"))


class Stop(BaseException):
    """As Dagster's interrupt is: no Exception."""


def test_taken_back_whatever_ends_the_run(database: hvac.Client) -> None:
    with pytest.raises(Stop), Secrets() as secrets:  # noqa: PT012
        secrets.fetch(USER.format("etl"))
        assert leases(database, "etl")
        raise Stop
    wait_until(lambda: not leases(database, "etl"))


def test_a_long_run_has_its_lease_renewed(database: hvac.Client, postgres: PostgresServer) -> None:
    with Secrets() as secrets:
        user = secrets.fetch(USER.format("brief"))
        (key,) = leases(database, "brief")
        first = wait_until(lambda: lease(database, "brief", key)["last_renewal"])
        wait_until(lambda: lease(database, "brief", key)["last_renewal"] > first)
        assert secrets.fetch(USER.format("brief")) == user
        assert user in roles(postgres)
    wait_until(lambda: user not in roles(postgres))


def test_a_lease_at_its_end_is_followed_by_a_new_one(database: hvac.Client, postgres: PostgresServer) -> None:
    with Secrets() as secrets:
        first = secrets.fetch(USER.format("ending"))
        second = wait_until(lambda: (user := secrets.fetch(USER.format("ending"))) != first and user)
        connect(connection(postgres, "ending"), secrets).close()
        assert second in roles(postgres)
    wait_until(lambda: not leases(database, "ending"))


def test_a_lease_that_was_revoked_in_mid_run_is_followed_by_a_new_one(
    database: hvac.Client, caplog: pytest.LogCaptureFixture
) -> None:
    vault = Vault(VaultSettings.from_environment())
    first = vault.read("database/creds/etl", ["username"])
    (revoked,) = vault._leases
    database.sys.revoke_lease(revoked.lease_id)
    assert revoked.usable
    revoked.renew()
    assert not revoked.usable
    assert revoked.due is None
    assert "Vault has it no more" in caplog.text
    assert vault.read("database/creds/etl", ["username"]) != first
    vault.close()


@pytest.mark.parametrize(
    ("said", "is_gone"),
    [
        ("lease not found", True),
        ("lease expired", True),
        ("lease is expired and has failed previous revocation attempts", True),
        ("lease is not renewable", False),
    ],
)
def test_a_lease_that_is_not_renewed_may_be_there_all_the_same(said: str, is_gone: bool) -> None:
    class Sys:
        def renew_lease(self, *_: Any, **__: Any) -> None:
            raise hvac.exceptions.InvalidRequest(said, errors=[said])

    lived = Lease(VaultClient(VaultSettings()), "database/creds/etl", "id", {}, 60.0, renewable=True, login=0)
    connected: Any = SimpleNamespace(sys=Sys())
    if is_gone:
        assert lived._asked_for_more(connected) is None
    else:
        with pytest.raises(hvac.exceptions.InvalidRequest):
            lived._asked_for_more(connected)


def test_what_the_token_may_not_revoke_is_said_and_ends_with_its_time(
    database: hvac.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = database.auth.token.create(policies=["reads"])["auth"]["client_token"]
    monkeypatch.setenv("VAULT_TOKEN", token)
    with Secrets() as secrets:
        secrets.fetch(USER.format("etl"))
    assert "'update' on sys/leases/revoke" in caplog.text
    database.auth.token.revoke(token)
    wait_until(lambda: not leases(database, "etl"))


def test_left_to_its_time_where_others_of_the_run_may_use_it(database: hvac.Client, postgres: PostgresServer) -> None:
    secrets = Secrets()
    user = secrets.fetch(USER.format("ending"))
    secrets.close(revoke=False)
    assert user in roles(postgres)
    wait_until(lambda: user not in roles(postgres))


@pytest.mark.usefixtures("database")
def test_nothing_is_left_of_the_thread() -> None:
    import threading

    with Secrets() as secrets:
        secrets.fetch(USER.format("brief"))
        assert any(thread.name == "vault-renewal" for thread in threading.enumerate())
    assert not any(thread.name == "vault-renewal" for thread in threading.enumerate())


def test_a_vault_that_has_gone_does_not_keep_the_run(
    database: hvac.Client, vault: VaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline_assets.credentials.vault._CLOSING_SECONDS", 0.2)
    try:
        with Secrets() as secrets:
            secrets.fetch(USER.format("etl"))
            database.sys.seal()
    finally:
        database.sys.submit_unseal_key(vault.unseal_key)
    assert "is sealed" in caplog.text
    assert "what is not revoked ends with its time" in caplog.text
