"""The policy vault-only: what it refuses, where that stands, and that nothing runs before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline_assets.cli import main
from pipeline_assets.config_loading import load_folder
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.policy import SecretsPolicy, connection_issues, option_issues, pipeline_issues
from pipeline_assets.errors import ConfigurationError, CredentialError
from pipeline_assets_tests.config_documents import CUSTOMER_360, EVENT_STREAM, write_config

CANARY = "canary-5f2c"
AWS_KEY = "AKIA" + "QWERTYUIOPASDFGH"
PROVIDER = "fs.s3a.aws.credentials.provider"
CLEAN: dict[str, Any] = {
    "postgres": {
        "default": {
            "host": "h",
            "database": "d",
            "user": "vault:database/creds/etl#username",
            "password": "vault:database/creds/etl#password",
            "options": {"sslmode": "require"},
        }
    },
    "s3": {
        "default": {
            "accessKeyId": "vault:secret/data/s3#id",
            "secretAccessKey": "vault:secret/data/s3#key",
            "options": {"fs.s3a.endpoint": "http://h"},
        },
        "public": {"options": {PROVIDER: "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"}},
    },
    "kafka": {
        "default": {
            "bootstrapServers": "k:9092",
            "options": {"security.protocol": "SASL_SSL", "sasl.jaas.config": "vault:secret/data/kafka#jaas"},
        }
    },
}


def changed(document: dict[str, Any], pointer: str, value: Any) -> dict[str, Any]:
    """Return ``document`` with ``value`` at ``pointer``; None takes out what is there."""
    found = copy.deepcopy(document)
    *path, last = [part.replace("~1", "/") for part in pointer.strip("/").split("/")]
    node: Any = found
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return found


@pytest.mark.parametrize(
    ("pointer", "value", "reason"),
    [
        ("/postgres/default/password", "env:PGPASSWORD", "refers to the environment"),
        ("/postgres/default/password", "file:/run/secrets/pg", "refers to a file"),
        ("/postgres/default/password", CANARY, "'password' names a secret, and a literal stands there"),
        ("/postgres/default/password", "${PGPASS}", "takes a secret from the environment variable PGPASS"),
        ("/postgres/default/user", "env:PGUSER", "refers to the environment"),
        ("/postgres/default/options/sslpassword", CANARY, "'sslpassword' names a secret"),
        ("/postgres/default/host", f"jdbc:postgresql://h/d?user=u&password={CANARY}", "the parameter 'password'"),
        ("/s3/default/secretAccessKey", "env:AWS_SECRET_ACCESS_KEY", "refers to the environment"),
        ("/s3/default/endpoint", f"https://user:{CANARY}@h", "looks like it holds a secret ("),
        ("/s3/default/options/fs.s3a.secret.key", CANARY, "'fs.s3a.secret.key' names a secret"),
        ("/s3/default/region", AWS_KEY, "looks like it holds a secret ("),
        ("/kafka/default/options/sasl.jaas.config", f'L required password="{CANARY}";', "'sasl.jaas.config' names"),
        ("/kafka/default/options/ssl.key.password", "file:/key", "refers to a file"),
        ("/kafka/default/options/ssl.keystore.password", 12345, "'ssl.keystore.password' names a secret"),
    ],
)
def test_connections(pointer: str, value: Any, reason: str) -> None:
    assert list(connection_issues("connections.json", CLEAN)) == []
    (issue,) = connection_issues("connections.json", changed(CLEAN, pointer, value))
    assert issue.pointer == pointer
    assert reason in issue.message
    assert "vault-only takes secrets from Vault alone" in issue.message
    assert CANARY not in str(issue)


def test_a_password_that_drivers_would_look_for_themselves() -> None:
    (issue,) = connection_issues("connections.json", changed(CLEAN, "/postgres/default/password", None))
    assert issue.pointer == "/postgres/default"
    assert "look for one on the machine (PGPASSFILE, ~/.pgpass)" in issue.message
    assert "vault-only takes secrets from Vault alone" in issue.message


def test_keys_that_hadoop_would_look_for_itself() -> None:
    (issue,) = connection_issues("connections.json", changed(CLEAN, "/s3/default/accessKeyId", None))
    assert issue.pointer == "/s3/default"
    assert "Hadoop looks for them on the machine" in issue.message


@pytest.mark.parametrize(
    "provider",
    [
        "software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider,"
        "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider",
        "com.example.MyAnonymousAWSCredentialsProvider",
        "",
    ],
)
def test_a_provider_that_is_not_only_anonymous(provider: str) -> None:
    (issue,) = connection_issues("connections.json", changed(CLEAN, f"/s3/public/options/{PROVIDER}", provider))
    assert issue.pointer == "/s3/public"


@pytest.mark.parametrize(
    ("pointer", "value", "reason"),
    [
        ("/steps/1/config/options", {"fs.s3a.secret.key": CANARY}, "names a secret"),
        ("/steps/1/config/options", {"password": 1234}, "names a secret"),
        ("/steps/1/config/path", f"s3a://id:{CANARY}@bucket/x", "looks like it holds a secret ("),
        ("/steps/0/config/query", f"select '{AWS_KEY}'", "looks like it holds a secret ("),
        ("/steps/0/config/url", f"jdbc:sqlserver://h;user=u;password={CANARY}", "the parameter 'password'"),
        (
            "/description",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
            "looks like it holds a secret (",
        ),
        ("/tags/token", CANARY, "'token' names a secret"),
        ("/steps/2/config/headers", [f"Authorization: Bearer {CANARY}"], "looks like it holds a secret ("),
        ("/steps/2/config/apiKey", CANARY, "'apiKey' names a secret"),
    ],
)
def test_pipelines(pointer: str, value: Any, reason: str) -> None:
    (issue,) = pipeline_issues("c.json", changed(CUSTOMER_360, pointer, value))
    assert issue.pointer.startswith(pointer)
    assert reason in issue.message
    assert CANARY not in str(issue)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/steps/1/config/path", "file:///data/orders/*.parquet"),
        ("/steps/2/config/columns", {"token": "upper(name)", "password": "'x'"}),
        ("/steps/2/config/rename", {"customers": {"secret": "kept"}}),
        ("/steps/0/config/query", "select count(*) from secrets where password is null"),
        ("/steps/1/config/options", {"header": True, "sep": ";"}),
    ],
)
def test_what_is_no_secret_in_a_pipeline(pointer: str, value: Any) -> None:
    assert list(pipeline_issues("c.json", changed(CUSTOMER_360, pointer, value))) == []


def test_options_of_spark() -> None:
    issues = list(option_issues("spark_conf", {"spark.hadoop.fs.s3a.secret.key": CANARY, "spark.ui.enabled": "false"}))
    assert [issue.pointer for issue in issues] == ["/spark.hadoop.fs.s3a.secret.key"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "configs"
    found.mkdir()
    monkeypatch.setenv("PIPELINE_ASSETS_CONFIGS", str(found))
    write_config(found, CUSTOMER_360)
    write_config(found, EVENT_STREAM)
    write_config(found, CLEAN, "connections.json")
    return found


@pytest.mark.parametrize("by", ["environment", "connections"])
def test_it_is_in_force_by_environment_or_connections(folder: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    bad = changed(CUSTOMER_360, "/description", f"from https://id:{CANARY}@host/orders")
    write_config(folder, bad)
    assert load_folder(folder).broken == ()
    assert load_connections(folder).secrets.policy is SecretsPolicy.ANY
    if by == "environment":
        monkeypatch.setenv("PIPELINE_ASSETS_SECRETS_POLICY", "vault-only")
    else:
        write_config(folder, {**CLEAN, "secretsPolicy": "vault-only"}, "connections.json")
    found = load_folder(folder)
    assert [pipeline.config.name for pipeline in found.pipelines] == ["event-stream"]
    (broken,) = found.broken
    assert [issue.pointer for issue in broken.error.issues] == ["/description"]
    assert load_connections(folder).secrets.policy is SecretsPolicy.VAULT_ONLY
    document = changed(CLEAN, "/postgres/default/password", "env:PGPASSWORD")
    if by == "connections":
        document["secretsPolicy"] = "vault-only"
    write_config(folder, document, "connections.json")
    with pytest.raises(ConfigurationError, match="/postgres/default/password: refers to the environment"):
        load_connections(folder)


def test_a_variable_that_brings_a_secret_into_a_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_SECRETS_POLICY", "vault-only")
    monkeypatch.setenv("ORDERS", f"s3a://id:{CANARY}@bucket/x.parquet")
    write_config(folder, changed(CUSTOMER_360, "/steps/1/config/path", "${ORDERS}"))
    (broken,) = load_folder(folder).broken
    assert "looks like it holds a secret (" in str(broken.error)
    assert CANARY not in str(broken.error)


def test_a_policy_that_there_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(folder, {**CLEAN, "secretsPolicy": "vault_only"}, "connections.json")
    with pytest.raises(ConfigurationError, match=r"/secretsPolicy: 'vault_only' is not allowed, did you mean"):
        load_connections(folder)
    write_config(folder, {**CLEAN, "secrets_policy": "vault-only"}, "connections.json")
    with pytest.raises(ConfigurationError, match="/secrets_policy: .*did you mean 'secretsPolicy'"):
        load_connections(folder)
    monkeypatch.setenv("PIPELINE_ASSETS_SECRETS_POLICY", "vault")
    with pytest.raises(ConfigurationError, match="PIPELINE_ASSETS_SECRETS_POLICY is 'vault', which is no policy"):
        load_folder(folder)


def test_what_is_fetched_all_the_same_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", CANARY)
    with pytest.raises(CredentialError, match="env:PGPASSWORD is refused: the policy vault-only"):
        Secrets(SecretsPolicy.VAULT_ONLY).fetch("env:PGPASSWORD")


def test_audit_config(folder: Path) -> None:
    done = CliRunner().invoke(main, ["audit-config"])
    assert (done.exit_code, done.output) == (0, "3 files keep to the policy vault-only\n")
    write_config(folder, changed(CLEAN, "/s3/default/secretAccessKey", CANARY), "connections.json")
    write_config(folder, changed(CUSTOMER_360, "/tags/password", CANARY))
    (folder / "cut.json").write_text('{"name": ')
    done = CliRunner().invoke(main, ["audit-config", str(folder)])
    assert done.exit_code == 1
    assert CANARY not in done.output
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        ["file", "pointer"],
        ["customer-360.json", "/tags/password"],
        ["cut.json", "/"],
        ["connections.json", "/s3/default/secretAccessKey"],
    ]


def test_audit_config_as_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    write_config(folder, changed(CLEAN, "/postgres/default/password", "${PGPASSWORD}"), "connections.json")
    done = CliRunner().invoke(main, ["audit-config", str(folder), "--json"])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    (violation,) = result.pop("violations")
    names = ["customer-360.json", "event-stream.json", "connections.json"]
    assert result == {"policy": "vault-only", "ok": False, "files": names}
    assert (violation["file"], violation["pointer"]) == ("connections.json", "/postgres/default/password")
    assert CliRunner().invoke(main, ["audit-config", "--json", str(folder / "nowhere")]).exit_code == 2
