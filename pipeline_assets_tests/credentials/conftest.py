"""A real Vault, with what the tests of secrets need in it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hvac
import pytest

from devstack.postgres import PostgresServer
from devstack.vault import VaultServer

CANARY = "canary-5f2c"
READS = 'path "secret/data/*" { capabilities = ["read"] }\npath "database/creds/*" { capabilities = ["read"] }'


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        threading.Event().wait(0.05)
    return found


@pytest.fixture(autouse=True)
def no_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says where Vault is, or how to log in to it."""
    for name in [name for name in os.environ if name.startswith("VAULT_")]:
        monkeypatch.delenv(name)


def reach(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def stored(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> hvac.Client:
    """Vault with a secret in it, which the environment says how to reach; the client has its root token."""
    reach(monkeypatch, vault.environment)
    client = hvac.Client(url=vault.url, token=vault.token)
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": CANARY, "user": "etl"})
    client.sys.create_or_update_policy("reads", READS)
    return client


@pytest.fixture
def database(stored: hvac.Client, postgres: PostgresServer) -> Iterator[hvac.Client]:
    """Vault's database engine on the real PostgreSQL. Role ``etl`` lives for an hour, ``brief`` for 4 seconds.

    ``ending`` is over after 10: what a test asks at once is answered while it lives, on a busy machine, too.
    """
    engine = stored.secrets.database
    engine.configure(
        name="pipeline",
        plugin_name="postgresql-database-plugin",
        allowed_roles=["*"],
        connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@{postgres.host}:{postgres.port}"
        f"/{postgres.database}?sslmode=disable",
        username=postgres.user,
        password=postgres.password,
    )
    create = (
        """CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE pg_read_all_data"""
    )
    drop = 'DROP ROLE IF EXISTS "{{name}}"'
    for role, ttl, most in (("etl", "1h", "24h"), ("brief", "4s", "1h"), ("ending", "10s", "10s")):
        engine.create_role(
            role, "pipeline", creation_statements=create, revocation_statements=drop, default_ttl=ttl, max_ttl=most
        )
    yield stored
    # What a test has left on purpose is not another test's.
    stored.sys.revoke_prefix("database/creds")
