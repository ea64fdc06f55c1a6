"""Secrets by reference: where they come from, and what is said when they can't be had. Vault is a real one."""

from __future__ import annotations

from pathlib import Path

import hvac
import pytest

from devstack.vault import VaultServer
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import CredentialError

CANARY = "canary-5f2c"


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", CANARY)
    assert Secrets().fetch("env:SOME_PASSWORD") == CANARY
    monkeypatch.delenv("SOME_PASSWORD")
    with pytest.raises(CredentialError, match="environment variable SOME_PASSWORD is not set"):
        Secrets().fetch("env:SOME_PASSWORD")


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    assert Secrets().fetch(f"file:{file}") == CANARY
    with pytest.raises(CredentialError, match=r"nowhere cannot be read: No such file"):
        Secrets().fetch(f"file:{tmp_path}/nowhere")


@pytest.fixture
def stored(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> hvac.Client:
    """Vault with a secret in it, which the environment says how to reach."""
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    client = hvac.Client(url=vault.url, token=vault.token)
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": CANARY, "user": "etl"})
    return client


def test_from_vault(stored: hvac.Client) -> None:
    assert Secrets().fetch("vault:secret/data/postgres#password") == CANARY


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("vault:secret/data/postgres#pasword", "no such field (fields there: password, user)"),
        ("vault:secret/data/nothing#password", "nothing is stored there"),
        ("vault:nowhere/data/postgres#password", "nowhere/data/postgres#password"),
    ],
)
def test_what_vault_does_not_have(stored: hvac.Client, reference: str, expected: str) -> None:
    with pytest.raises(CredentialError) as caught:
        Secrets().fetch(reference)
    assert expected in str(caught.value)
    assert CANARY not in str(caught.value)


def test_vault_refuses(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "not-a-token")
    with pytest.raises(CredentialError, match="permission denied: the token's policy must allow reading it"):
        Secrets().fetch("vault:secret/data/postgres#password")


def test_vault_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    with pytest.raises(CredentialError, match="did not answer"):
        Secrets().fetch("vault:secret/data/postgres#password")
    monkeypatch.delenv("VAULT_ADDR")
    with pytest.raises(CredentialError, match="set VAULT_ADDR"):
        Secrets().fetch("vault:secret/data/postgres#password")
