"""Logging in to the real Vault: AppRole, JWT and Kubernetes; and logging in anew."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hvac
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from devstack.postgres import PostgresServer
from devstack.vault import VaultServer
from pipeline_assets import redaction
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.leases import TokenUpkeep
from pipeline_assets.credentials.vault import Vault
from pipeline_assets.credentials.vault_client import VaultClient
from pipeline_assets.credentials.vault_settings import VaultSettings
from pipeline_assets.errors import CredentialError
from pipeline_assets.redaction import MASK, redact
from pipeline_assets_tests.credentials.conftest import CANARY, reach, wait_until
from pipeline_assets_tests.credentials.test_leases import roles
from pipeline_assets_tests.credentials.vault_front import self_signed

REFERENCE = "vault:secret/data/postgres#password"
LEASED = "vault:database/creds/etl#username"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def accessors(client: hvac.Client, path: str) -> set[str]:
    """Return the accessors of the tokens that a login at ``path`` has made, and that live."""
    found = set()
    for accessor in client.auth.token.list_accessors()["data"]["keys"]:
        try:
            data = client.auth.token.lookup_accessor(accessor)["data"]
        except hvac.exceptions.VaultError:
            continue  # It has ended since it was listed.
        if data["path"] == path:
            found.add(accessor)
    return found


@pytest.fixture
def approle(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch) -> hvac.Client:
    stored.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_ttl="1h", token_max_ttl="2h")
    role_id = stored.auth.approle.read_role_id("etl")["data"]["role_id"]
    secret_id = stored.auth.approle.generate_secret_id("etl")["data"]["secret_id"]
    monkeypatch.delenv("VAULT_TOKEN")
    reach(monkeypatch, {"VAULT_ROLE_ID": role_id, "VAULT_SECRET_ID": secret_id, "VAULT_AUTH_METHOD": "approle"})
    return stored


def test_approle_logs_in_once_and_its_token_ends_with_the_run(approle: hvac.Client) -> None:
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
        assert secrets.fetch(REFERENCE) == CANARY
        assert len(accessors(approle, "auth/approle/login")) == 1
    wait_until(lambda: not accessors(approle, "auth/approle/login"))


def test_a_wrong_secret_id(approle: hvac.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_SECRET_ID", "canary-wrong-id")
    with Secrets() as secrets, pytest.raises(CredentialError) as caught:
        secrets.fetch(REFERENCE)
    said = str(caught.value)
    assert said.startswith("Vault secret secret/data/postgres#password: login by approle at auth/approle: ")
    assert "check the role, and that what proves it is right" in said
    assert "canary-wrong-id" not in said


def test_a_login_that_was_revoked_in_mid_run_is_made_again(approle: hvac.Client) -> None:
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
        (first,) = accessors(approle, "auth/approle/login")
        approle.auth.token.revoke_accessor(first)
        assert secrets.fetch(REFERENCE) == CANARY
        (second,) = accessors(approle, "auth/approle/login")
        assert second != first


@pytest.fixture
def token_file(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with a token that is not renewed, as of an agent that writes a new one there before it ends."""
    file = tmp_path / "token"
    file.write_text(new_token(stored, renewable=False))
    monkeypatch.delenv("VAULT_TOKEN")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    return file


def new_token(client: hvac.Client, *, renewable: bool, ttl: str = "1h") -> str:
    token: str = client.auth.token.create(policies=["reads"], ttl=ttl, renewable=renewable)["auth"]["client_token"]
    return token


def test_a_token_file_that_was_replaced_in_mid_run_is_read_again(stored: hvac.Client, token_file: Path) -> None:
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
        stored.auth.token.revoke(token_file.read_text())
        with pytest.raises(CredentialError, match="refuses the token: it is wrong, has expired or was revoked"):
            secrets.fetch(REFERENCE)
        token_file.write_text(new_token(stored, renewable=True))
        assert secrets.fetch(REFERENCE) == CANARY


def test_a_token_that_is_not_renewed_is_followed_by_the_one_that_replaces_it(
    stored: hvac.Client, token_file: Path
) -> None:
    client = VaultClient(VaultSettings.from_environment())
    upkeep = TokenUpkeep(client)
    for _ in range(3):
        assert upkeep.due is not None
        upkeep.renew()
        assert client.logins == 1
    token_file.unlink()
    upkeep.renew()
    assert upkeep.due is not None, "whoever writes it may do so in two steps"
    token_file.write_text(new_token(stored, renewable=True))
    upkeep.renew()
    assert client.logins == 2
    assert client.token("a secret").renewable
    assert upkeep.due is not None


@pytest.mark.usefixtures("database")
def test_what_is_leased_hangs_on_the_token_that_the_file_has_now(
    stored: hvac.Client, token_file: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    token_file.write_text(new_token(stored, renewable=False, ttl="10s"))
    with Secrets() as secrets:
        first = secrets.fetch(LEASED)
        token_file.write_text(new_token(stored, renewable=False))
        second = wait_until(lambda: (user := secrets.fetch(LEASED)) != first and user)
        wait_until(lambda: first not in roles(postgres))
        assert secrets.fetch(LEASED) == second
        assert second in roles(postgres)
    assert "what was leased before (database/creds/etl) ends with the earlier login" in caplog.text
    assert "give the run a token that lives longer than it takes" in caplog.text


@pytest.mark.usefixtures("database")
def test_what_is_leased_is_not_given_out_after_the_end_of_its_token(stored: hvac.Client, token_file: Path) -> None:
    token_file.write_text(new_token(stored, renewable=False, ttl="10s"))
    vault = Vault(VaultSettings.from_environment(), upkeep=False)
    vault.read("database/creds/etl", ["username"])
    (lease,) = vault._leases
    assert lease.usable
    wait_until(lambda: not lease.usable)
    assert lease.lives, "as far as its own hour goes"


def test_a_request_that_another_thread_s_login_overtakes_is_repeated(approle: hvac.Client, vault: VaultServer) -> None:
    client = VaultClient(VaultSettings.from_environment())
    sent: list[str] = []

    def request(connected: hvac.Client) -> Any:
        sent.append(connected.token)
        if len(sent) == 1:
            approle.auth.token.revoke(connected.token)
            client.log_in_again("in another thread", client.logins)
        # As if it had left before that.
        return hvac.Client(url=vault.url, token=sent[-1]).adapter.get("/v1/secret/data/postgres")

    answer = client.call("a secret", request)
    assert answer["data"]["data"]["password"] == CANARY
    assert len(set(sent)) == 2
    assert client.logins == 2, "nobody has logged in once more for it"
    client.give_back()


def test_a_token_is_renewed_and_at_its_end_the_login_made_again(approle: hvac.Client) -> None:
    approle.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_ttl="10s", token_max_ttl="15s")
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
        (first,) = accessors(approle, "auth/approle/login")
        wait_until(lambda: approle.auth.token.lookup_accessor(first)["data"].get("last_renewal_time"))
        # Without anything being fetched: what is leased hangs on the login.
        wait_until(lambda: accessors(approle, "auth/approle/login") - {first})
        assert secrets.fetch(REFERENCE) == CANARY
    wait_until(lambda: not accessors(approle, "auth/approle/login"))


def test_a_lease_of_an_earlier_login_is_not_used(approle: hvac.Client, database: hvac.Client) -> None:
    with Secrets() as secrets:
        user = secrets.fetch(LEASED)
        (first,) = accessors(database, "auth/approle/login")
        database.auth.token.revoke_accessor(first)
        assert secrets.fetch(REFERENCE) == CANARY
        assert secrets.fetch(LEASED) != user


def test_a_login_that_ends_before_its_lease_is_told_of(
    approle: hvac.Client, database: hvac.Client, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    approle.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_ttl="8s", token_max_ttl="10s")
    with Secrets() as secrets:
        first = secrets.fetch(LEASED)
        # Without anything being fetched: Spark may be reading with it for hours.
        wait_until(lambda: "logged in to Vault anew: what was leased before (database/creds/etl) ends" in caplog.text)
        assert secrets.fetch(LEASED) != first
        wait_until(lambda: first not in roles(postgres))
    assert "give its auth role a token_max_ttl that is longer than a run takes" in caplog.text


def test_a_login_that_follows_a_refused_one_is_kept_alive(
    approle: hvac.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = VaultClient(VaultSettings.from_environment())
    upkeep = TokenUpkeep(client)
    (first,) = accessors(approle, "auth/approle/login")
    approle.auth.token.revoke_accessor(first)
    right = os.environ["VAULT_SECRET_ID"]
    client.settings = replace(client.settings, secret_id="env:NEXT_SECRET_ID")
    monkeypatch.setenv("NEXT_SECRET_ID", "canary-wrong-id")
    upkeep.renew()
    assert "check the role, and that what proves it is right" in caplog.text
    tried = client.logins
    upkeep.renew()
    assert client.logins == tried, "Vault locks a role out for which others fail to log in"
    assert upkeep.due is not None
    monkeypatch.setenv("NEXT_SECRET_ID", right)
    answer = client.call("a secret", lambda connected: connected.adapter.get("/v1/secret/data/postgres"))
    assert answer["data"]["data"]["password"] == CANARY
    (second,) = accessors(approle, "auth/approle/login")
    upkeep.renew()
    assert upkeep.due is not None
    assert not approle.auth.token.lookup_accessor(second)["data"].get("last_renewal_time")
    upkeep.renew()
    assert approle.auth.token.lookup_accessor(second)["data"]["last_renewal_time"]
    client.give_back()


@pytest.mark.usefixtures("approle", "database")
def test_what_was_revoked_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_RETIRED_KEPT", 3)
    monkeypatch.setattr(redaction, "_known", redaction._Known())
    names = ("username", "password")

    def tick() -> list[str]:
        """As a sensor does it."""
        with Secrets(upkeep=False) as secrets:
            assert secrets.fetch(REFERENCE) == CANARY
            made = secrets.fetch_all({name: f"vault:database/creds/etl#{name}" for name in names})
        assert [redact(made[name]) for name in names] == [MASK, MASK], "what was printed before may come out after it"
        return list(made.values())

    first, known = tick(), len(redaction._known._forms)
    for _ in range(3):
        tick()
        assert len(redaction._known._forms) == known
    assert [redact(value) for value in first] == first
    assert redact(CANARY) == MASK


@pytest.mark.parametrize("kind", ["service", "batch"])
def test_tokens_of_earlier_logins_are_not_remembered_for_ever(
    approle: hvac.Client, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(redaction, "_RETIRED_KEPT", 3)
    monkeypatch.setattr(redaction, "_known", redaction._Known())
    approle.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_type=kind, token_ttl="1h")
    client = VaultClient(VaultSettings.from_environment())
    tokens: list[str] = []
    for _ in range(6):
        client.token("a secret")
        tokens.append(client._connected().token)
        client.log_in_again("a secret", client.logins)
    assert redact(" ".join(tokens[3:])) == " ".join([MASK] * 3), "what was printed before may come out after it"
    # With the token in use, and the secret id.
    assert len(redaction._known._forms) == 3 + 2
    client.give_back()


def test_a_batch_token_is_left_to_its_time(
    approle: hvac.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redaction, "_RETIRED_KEPT", 3)
    monkeypatch.setattr(redaction, "_known", redaction._Known())
    approle.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_type="batch", token_ttl="1h")
    for _ in range(6):
        with Secrets(upkeep=False) as secrets:  # as a sensor does it
            assert secrets.fetch(REFERENCE) == CANARY
    # With the secret, and the secret id.
    assert len(redaction._known._forms) == 3 + 2
    assert [record.message for record in caplog.records if record.name.startswith("pipeline_assets")] == []


@pytest.mark.usefixtures("database")
def test_a_lease_of_a_batch_token_does_not_end_with_it(approle: hvac.Client, caplog: pytest.LogCaptureFixture) -> None:
    approle.auth.approle.create_or_update_approle("etl", token_policies=["reads"], token_type="batch", token_ttl="1h")
    with Secrets() as secrets:
        secrets.fetch(LEASED)
    assert "permission denied: a policy of the token must allow it: 'update' on sys/leases/revoke" in caplog.text


@pytest.mark.usefixtures("approle")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("VAULT_AUTH_PATH", "nowhere", "auth/nowhere"),
        ("VAULT_ROLE_ID", "", "the role is not named: set VAULT_ROLE_ID"),
        ("VAULT_AUTH_METHOD", "jwt", "the role is not named: set VAULT_AUTH_ROLE"),
    ],
)
def test_what_a_login_lacks(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str) -> None:
    monkeypatch.setenv(name, value)
    with Secrets() as secrets, pytest.raises(CredentialError, match=expected):
        secrets.fetch(REFERENCE)


def signed(audience: str, lives: int = 3600) -> str:
    now = int(time.time())
    claims = {"sub": "etl", "aud": audience, "iss": "tests", "iat": now, "nbf": now - 60, "exp": now + lives}
    return jwt.encode(claims, KEY, algorithm="RS256")


def test_jwt(stored: hvac.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored.auth.jwt.configure(jwt_validation_pubkeys=[PUBLIC.decode()], bound_issuer="tests")
    stored.auth.jwt.create_role(
        "etl",
        role_type="jwt",
        user_claim="sub",
        bound_audiences=["vault"],
        allowed_redirect_uris=[],
        token_policies=["reads"],
    )
    file = tmp_path / "jwt"
    file.write_text(signed("vault"))
    monkeypatch.delenv("VAULT_TOKEN")
    reach(monkeypatch, {"VAULT_AUTH_METHOD": "jwt", "VAULT_AUTH_ROLE": "etl", "VAULT_JWT_FILE": str(file)})
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
    wrong = signed("others")
    monkeypatch.setenv("VAULT_JWT", wrong)
    with Secrets() as secrets, pytest.raises(CredentialError, match="login by jwt at auth/jwt") as caught:
        secrets.fetch(REFERENCE)
    assert wrong not in str(caught.value)


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The TokenReview API of a Kubernetes cluster with one service account; its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class TokenReview(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "token": review["spec"]["token"]})
            user = {"username": "system:serviceaccount:data:etl", "uid": "1", "groups": ["system:serviceaccounts"]}
            status = {"authenticated": True, "user": user, "audiences": review["spec"]["audiences"]}
            body = json.dumps({**review, "status": status}).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), TokenReview)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_kubernetes(
    stored: hvac.Client,
    cluster: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    address, asked = cluster
    now = int(time.time())
    account = {"namespace": "data", "serviceaccount": {"name": "etl", "uid": "1"}}
    token = jwt.encode(
        {"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:data:etl", "kubernetes.io": account,
         "aud": ["vault"], "iat": now, "exp": now + 3600},
        KEY,
        algorithm="RS256",
    )  # fmt: skip
    stored.write_data(
        "auth/kubernetes/config",
        data={
            "kubernetes_host": address,
            "kubernetes_ca_cert": self_signed(tmp_path).read_text().partition("-----END PRIVATE KEY-----\n")[2],
            "disable_local_ca_jwt": True,
            "token_reviewer_jwt": token,
        },
    )
    stored.write_data(
        "auth/kubernetes/role/etl",
        data={
            "bound_service_account_names": "etl",
            "bound_service_account_namespaces": "data",
            "token_policies": "reads",
        },
    )
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.delenv("VAULT_TOKEN")
    reach(monkeypatch, {"VAULT_AUTH_METHOD": "kubernetes", "VAULT_AUTH_ROLE": "etl", "VAULT_JWT_FILE": str(file)})
    with Secrets() as secrets:
        assert secrets.fetch(REFERENCE) == CANARY
    assert asked == [{"path": "/apis/authentication.k8s.io/v1/tokenreviews", "token": token}]
    monkeypatch.delenv("VAULT_JWT_FILE")
    with Secrets() as secrets, pytest.raises(CredentialError, match=r"serviceaccount/token cannot be read"):
        secrets.fetch(REFERENCE)
