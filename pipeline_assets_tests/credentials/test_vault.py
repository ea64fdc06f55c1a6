"""Secrets by reference: where they come from, and what is said when they can't be had. Vault is a real one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import hvac
import pytest

from devstack.vault import OwnVault, VaultServer
from pipeline_assets.config import Retry
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.audit import AuditFile
from pipeline_assets.credentials.vault_failures import retry_after
from pipeline_assets.errors import ConfigurationError, CredentialError, CredentialUnavailableError
from pipeline_assets.retries import seconds_before_retry
from pipeline_assets_tests.credentials.conftest import CANARY, reach, wait_until
from pipeline_assets_tests.credentials.vault_front import front_of, self_signed

PASSWORD = "vault:secret/data/postgres#password"


def failure(reference: str) -> str:
    """Return what is said when ``reference`` is fetched in vain, for a reason that does not pass."""
    with Secrets() as secrets, pytest.raises(CredentialError) as caught:
        secrets.fetch(reference)
    assert not isinstance(caught.value, CredentialUnavailableError)
    assert CANARY not in str(caught.value)
    return str(caught.value)


def unavailable(reference: str = PASSWORD) -> str:
    """Return what is said when ``reference`` can't be fetched for now."""
    with Secrets() as secrets, pytest.raises(CredentialUnavailableError) as caught:
        secrets.fetch(reference)
    assert caught.value.message.startswith("Vault secret secret/data/postgres#password: ")
    assert CANARY not in str(caught.value)
    return str(caught.value)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", CANARY)
    assert Secrets().fetch("env:SOME_PASSWORD") == CANARY
    monkeypatch.delenv("SOME_PASSWORD")
    assert "environment variable SOME_PASSWORD is not set" in failure("env:SOME_PASSWORD")


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    assert Secrets().fetch(f"file:{file}") == CANARY
    assert "nowhere cannot be read: No such file" in failure(f"file:{tmp_path}/nowhere")
    file.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in failure(f"file:{file}")


def test_a_literal_is_refused_and_not_shown() -> None:
    assert "a secret is given by reference, never as a literal" in failure(CANARY)


@pytest.mark.usefixtures("stored")
def test_from_kv_of_version_2() -> None:
    with Secrets() as secrets:
        assert secrets.fetch_all({"a": PASSWORD, "b": "vault:secret/data/postgres#user"}) == {"a": CANARY, "b": "etl"}
    with pytest.raises(CredentialError, match="the run that it was asked for has ended"):
        secrets.fetch(PASSWORD)


def test_the_version_is_the_mounts_and_not_guessed_from_what_is_stored(stored: hvac.Client) -> None:
    looks_like_version_2 = {"data": {"password": "wrong"}, "metadata": {"version": 1}, "password": CANARY}
    stored.secrets.kv.v1.create_or_update_secret("postgres", secret=looks_like_version_2, mount_point="kv")
    stored.secrets.kv.v2.create_or_update_secret("nested", secret=looks_like_version_2)
    with Secrets() as secrets:
        assert secrets.fetch("vault:kv/postgres#password") == CANARY
        assert secrets.fetch("vault:secret/data/nested#password") == CANARY


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("vault:secret/data/postgres#pasword", "there is no field 'pasword', did you mean 'password'?"),
        ("vault:secret/data/nothing#password", "nothing is stored there: write it, or correct the path"),
        ("vault:secret/data/deleted#password", "its newest version has been deleted"),
        (
            "vault:secret/postgres#password",
            "is KV version 2, whose secrets are below data/: write secret/data/postgres",
        ),
        ("vault:kv/nothing#password", "nothing is stored there"),
        ("vault:nowhere/postgres#password", "permission denied"),
        ("vault:database/creds/nobody#password", "unknown role: nobody"),
    ],
)
def test_what_vault_does_not_have(stored: hvac.Client, reference: str, expected: str) -> None:
    stored.secrets.kv.v2.create_or_update_secret("deleted", secret={"password": CANARY})
    stored.secrets.kv.v2.delete_latest_version_of_secret("deleted")
    said = failure(reference)
    assert said.startswith(f"Vault secret {reference.removeprefix('vault:')}: ")
    assert expected in said


def test_permission_denied(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", stored.auth.token.create(policies=["default"])["auth"]["client_token"])
    said = failure(PASSWORD)
    assert said == f"Vault secret {PASSWORD[6:]}: permission denied: a policy of the token must allow it"


def test_permission_denied_to_a_token_that_may_not_look_at_itself(
    stored: hvac.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = stored.auth.token.create(policies=["reads"], no_default_policy=True)["auth"]
    monkeypatch.setenv("VAULT_TOKEN", auth["client_token"])
    with Secrets() as secrets:
        assert secrets.fetch(PASSWORD) == CANARY
    said = failure("vault:kv/postgres#password")
    assert "has expired or was revoked, or a policy of it must allow this; give a valid one" in said


@pytest.mark.usefixtures("stored")
def test_a_wrong_token(monkeypatch: pytest.MonkeyPatch, vault: VaultServer) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "not-a-token")
    said = failure(PASSWORD)
    assert f"Vault at {vault.url} refuses the token: it is wrong, has expired or was revoked" in said
    assert "(env:VAULT_TOKEN)" in said


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_token_with_a_line_break_at_its_end(monkeypatch: pytest.MonkeyPatch, vault: VaultServer, end: str) -> None:
    monkeypatch.setenv("VAULT_TOKEN", vault.token + end)
    with Secrets() as secrets:
        assert secrets.fetch(PASSWORD) == CANARY


@pytest.mark.parametrize(
    ("name", "value"), [("VAULT_NAMESPACE", "team\n"), ("VAULT_TOKEN", "hvs.1\n23"), ("VAULT_TOKEN", "hvs.\u20ac")]
)
def test_what_no_header_can_hold(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    reach(monkeypatch, {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t", name: value})
    said = failure(PASSWORD)
    assert "the token or VAULT_NAMESPACE can't be sent: take spaces, line breaks" in said
    assert "VAULT_ADDR" not in said
    assert value not in said


def test_a_token_that_expires_in_mid_run(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = stored.auth.token.create(policies=["reads"], ttl="10s", renewable=False)["auth"]
    monkeypatch.setenv("VAULT_TOKEN", auth["client_token"])
    with Secrets() as secrets:
        assert secrets.fetch(PASSWORD) == CANARY
        wait_until(lambda: not _lives(stored, auth["accessor"]))
        with pytest.raises(CredentialError, match=r"Vault at .* refuses the token: it .* has expired"):
            secrets.fetch(PASSWORD)


def _lives(client: hvac.Client, accessor: str) -> bool:
    try:
        client.auth.token.lookup_accessor(accessor)
    except hvac.exceptions.VaultError:
        return False
    return True


def test_vault_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without a token that `vault login` has left there
    assert "set VAULT_ADDR (and how to log in) in the environment of the run" in failure(PASSWORD)
    reach(monkeypatch, {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t", "VAULT_RETRY_SECONDS": "0.3"})
    assert "Vault is not reachable at http://127.0.0.1:1: start it, or correct VAULT_ADDR" in unavailable()
    monkeypatch.setenv("VAULT_ADDR", "no url")
    assert "'no url' can't be used as Vault's address" in failure(PASSWORD)
    monkeypatch.delenv("VAULT_TOKEN")
    assert "is to be logged in to by token: set VAULT_TOKEN" in failure(PASSWORD)


@pytest.mark.parametrize(
    ("name", "value"), [("VAULT_AUTH_METHOD", "aprole"), ("VAULT_CLIENT_TIMEOUT", "soon"), ("VAULT_RETRY_SECONDS", "0")]
)
def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    reach(monkeypatch, {"VAULT_ADDR": "http://127.0.0.1:1", name: value})
    with pytest.raises(ConfigurationError, match=f"^{name} is '{value}'"):
        Secrets().fetch(PASSWORD)


def test_vault_is_sealed_slow_and_down(own_vault: OwnVault, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_vault.server
    reach(monkeypatch, {**server.environment, "VAULT_RETRY_SECONDS": "5"})
    client = hvac.Client(url=server.url, token=server.token)
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": CANARY})
    client.sys.seal()
    assert f"Vault at {server.url} is sealed: unseal it" in unavailable()
    client.sys.submit_unseal_key(server.unseal_key)
    monkeypatch.setenv("VAULT_RETRY_SECONDS", "0.5")
    own_vault.pause()
    assert f"Vault at {server.url} did not answer in time" in unavailable()
    own_vault.go_on()
    wait_until(lambda: server.problem() is None)
    own_vault.stop()
    assert f"Vault is not reachable at {server.url}" in unavailable()


@pytest.mark.parametrize("page", [b"<html>Vault</html>", b'{"status": "ok"}', b"[]", b""])
@pytest.mark.parametrize("login", [{"VAULT_TOKEN": "t"}, {"VAULT_AUTH_METHOD": "approle", "VAULT_ROLE_ID": "etl"}])
def test_something_else_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: bytes, login: dict[str, str]
) -> None:
    audit = AuditFile(tmp_path / "secrets.jsonl")
    with front_of("http://127.0.0.1:1") as front:
        front.page = page
        front.refusals += [(200, {})] * 5
        reach(monkeypatch, {"VAULT_ADDR": front.url, **login})
        with Secrets(audit=audit) as secrets, pytest.raises(CredentialError) as caught:
            secrets.fetch(PASSWORD)
        assert len(front.seen) == 1, "it is not asked again"
    assert f"what is at {front.url} does not answer as Vault does: correct VAULT_ADDR" in caught.value.message
    assert caught.value.transient_kind is None
    (line,) = audit.path.read_text().splitlines()
    assert json.loads(line)["result"] == "CredentialError"


def test_what_passes_is_waited_for(own_vault: OwnVault, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_vault.server
    client = hvac.Client(url=server.url, token=server.token)
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": CANARY})
    with front_of(server.url) as front, Secrets() as secrets:
        reach(monkeypatch, {**server.environment, "VAULT_ADDR": front.url})
        front.refusals += [(503, {}), (500, {}), (502, {}), (429, {"Retry-After": "1"})]
        assert secrets.fetch(PASSWORD) == CANARY
        before, after = front.times[3:5]
        assert after - before >= 1  # as Retry-After asks; the other pauses are shorter


def test_a_pause_that_is_longer_than_there_is_time_for(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with front_of(vault.url) as front:
        reach(monkeypatch, {**vault.environment, "VAULT_ADDR": front.url, "VAULT_RETRY_SECONDS": "30"})
        front.refusals.append((429, {"Retry-After": "3600"}))
        assert "refuses more requests for now (HTTP 429)" in unavailable_login()
        assert len(front.seen) == 1


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait"),
    [
        (429, {"Retry-After": "3600"}, "throttled", 3600),
        (503, {"Retry-After": "40"}, "unavailable", 40),
        (412, {"Retry-After": "40"}, "unavailable", 40),
        (503, {}, "unavailable", 8),
    ],
)
def test_the_retry_of_a_step_waits_as_long_as_vault_asks(
    monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], kind: str, wait: float
) -> None:
    with front_of("http://127.0.0.1:1") as front, Secrets() as secrets:
        reach(monkeypatch, {"VAULT_ADDR": front.url, "VAULT_TOKEN": "t", "VAULT_RETRY_SECONDS": "0.1"})
        front.refusals += [(status, headers)] * 20
        with pytest.raises(CredentialUnavailableError) as caught:
            secrets.fetch(PASSWORD)
        front.refusals.clear()
    assert caught.value.transient_kind == kind
    assert seconds_before_retry(Retry(max_retries=3, delay=8), 0, 0.0, caught.value, lambda: 1.0) == wait


def unavailable_login() -> str:
    with Secrets() as secrets, pytest.raises(CredentialUnavailableError) as caught:
        secrets.fetch(PASSWORD)
    return str(caught.value)


def test_vaults_own_limit_of_requests(own_vault: OwnVault, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_vault.server
    client = hvac.Client(url=server.url, token=server.token)
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": CANARY})
    client.write_data("sys/quotas/config", data={"enable_rate_limit_response_headers": True})
    client.write_data("sys/quotas/rate-limit/few", data={"rate": 1, "interval": "1s", "path": "secret/"})
    reach(monkeypatch, server.environment)
    with Secrets() as secrets:
        for _ in range(3):
            assert secrets.fetch(PASSWORD) == CANARY
    # Of a minute the one request is taken here, however long the next takes to come.
    client.write_data("sys/quotas/rate-limit/few", data={"rate": 1, "interval": "1m", "path": "secret/"})
    with suppress(hvac.exceptions.RateLimitExceeded):
        client.secrets.kv.v2.read_secret_version("postgres", raise_on_deleted_version=True)
    monkeypatch.setenv("VAULT_RETRY_SECONDS", "0.1")
    assert "(HTTP 429)" in unavailable()


@pytest.mark.parametrize(
    ("text", "expected"), [("7", 7), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), (None, 0)]
)
def test_retry_after(text: str | None, expected: float) -> None:
    error = Exception()
    error.retry_after = text  # type: ignore[attr-defined]
    assert retry_after(error) == expected
    assert retry_after(Exception()) == 0


def test_tls_and_namespace(
    stored: hvac.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vault: VaultServer
) -> None:
    certificate = self_signed(tmp_path)
    with front_of(vault.url, certificate) as front:
        monkeypatch.setenv("VAULT_ADDR", front.url)
        said = failure(PASSWORD)
        assert (
            f"the certificate of Vault at {front.url} is not trusted: give the CA that signed it as VAULT_CACERT"
            in said
        )
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "nowhere"))
        assert "nowhere: correct VAULT_CACERT" in failure(PASSWORD)
        reach(monkeypatch, {"VAULT_CACERT": str(certificate), "VAULT_NAMESPACE": "data/etl"})
        assert not front.seen
        # A Vault without namespaces does not look at the header: that it is there is what counts.
        with Secrets() as secrets:
            assert secrets.fetch(PASSWORD) == CANARY
        assert {headers["X-Vault-Namespace"] for headers in front.seen} == {"data/etl"}
