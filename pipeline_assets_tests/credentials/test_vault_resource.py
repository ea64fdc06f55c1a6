"""Vault as Dagster has it: no secret in what it keeps or shows, one lease a run, and events of each access."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import hvac
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from pydantic import ValidationError

from devstack.kafka import KafkaServer
from devstack.postgres import PostgresServer
from devstack.topics import new_topic
from pipeline_assets.code_location import build_definitions
from pipeline_assets.config_loading import load_folder
from pipeline_assets.credentials.audit import AuditFile
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.resources import SparkResource
from pipeline_assets.sensors import build_sensors
from pipeline_assets.settings import Settings
from pipeline_assets.vault_resource import VaultResource
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, write_config
from pipeline_assets_tests.credentials.conftest import CANARY, reach, wait_until

PASSWORD = "vault:secret/data/postgres#password"


def test_no_secret_can_be_put_into_dagsters_config() -> None:
    with pytest.raises(ValidationError) as caught:
        VaultResource(secret_id=CANARY)
    assert "a secret is given by reference" in str(caught.value)
    assert CANARY not in str(caught.value)
    with pytest.raises(ValidationError, match="can't come from Vault"):
        VaultResource(token=PASSWORD)


def test_what_dagster_keeps_and_shows_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_SECRET_ID", CANARY)
    vault = VaultResource(address="https://vault", role_id="etl", secret_id="env:VAULT_SECRET_ID")
    definitions = dg.Definitions(
        assets=[dg.asset(lambda: None, name="a", required_resource_keys={"spark"})],
        jobs=[dg.define_asset_job("j")],
        resources={"spark": SparkResource(vault=vault), "vault": vault},
    )
    snapshot = dg.serialize_value(definitions.resolve_job_def("j").get_job_snapshot())
    # What GraphQL and the launchpad are answered from.
    location = dg.serialize_value(RepositorySnap.from_def(definitions.get_repository_def()))
    for kept in (snapshot, location):
        assert "secret_id" in kept
        assert CANARY not in kept
    fields = {
        field["name"]: field.get("is_secret")
        for kind in json.loads(snapshot)["config_schema_snapshot"]["all_config_snaps_by_key"].values()
        for field in kind.get("fields") or ()
    }
    assert {name for name, secret in fields.items() if secret} == {"token", "secret_id", "jwt"}
    assert vault.settings().method == "approle"


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, {"VAULT_ADDR": "http://env", "VAULT_NAMESPACE": "env", "VAULT_TOKEN": "t", "ROLE": "by-name"})
    found = VaultResource(address="http://given", auth_method="jwt", role=dg.EnvVar("ROLE")).resolved()
    assert (found.address, found.namespace, found.method, found.role) == ("http://given", "env", "jwt", "by-name")
    assert VaultResource().settings().method == "token"
    with pytest.raises(ConfigurationError, match="the Vault resource's auth_method is 'jvt'"):
        VaultResource(auth_method="jvt").settings()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "configs").mkdir()
    reach(
        monkeypatch,
        {
            "PIPELINE_ASSETS_CONFIGS": str(tmp_path / "configs"),
            "PIPELINE_ASSETS_WAREHOUSE": str(tmp_path / "warehouse"),
            "PIPELINE_ASSETS_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
        },
    )
    return Settings.from_environment()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as found:
        yield found


def leases(client: hvac.Client) -> list[str]:
    try:
        return list(client.sys.list_leases("database/creds/etl/")["data"]["keys"])
    except hvac.exceptions.InvalidPath:
        return []


def events(instance: dg.DagsterInstance, run_id: str) -> list[dict[str, Any]]:
    """Return the metadata of the run's events about secrets."""
    found = []
    for record in instance.all_logs(run_id):
        event = record.dagster_event
        if event is not None and event.is_engine_event and (event.message or "").startswith("Secret "):
            found.append({name: value.value for name, value in event.engine_event_data.metadata.items()})
    return found


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_a_run_with_credentials_of_its_own(
    settings: Settings,
    instance: dg.DagsterInstance,
    database: hvac.Client,
    postgres: PostgresServer,
    spark: Any,
    fails: bool,
) -> None:
    with postgres.connect() as connected:
        connected.execute("create table if not exists leased (id int)")
        connected.execute("truncate leased")
        connected.execute("insert into leased values (1), (2)")
    own = {
        "host": postgres.host,
        "port": postgres.port,
        "database": postgres.database,
        "user": "vault:database/creds/etl#username",
        "password": "vault:database/creds/etl#password",
    }
    write_config(settings.configs, {"secretsPolicy": "vault-only", "postgres": {"default": own}}, "connections.json")
    read = {"type": "extract", "method": "fromPostgres", "config": {"table": "leased"}}
    wrong = {"type": "transform", "method": "filterRows", "config": {"condition": "raise_error(string(id)) is null"}}
    write_config(settings.configs, batch("leased", *([read, wrong] if fails else [read])))
    job = build_definitions(settings).resolve_job_def("leased")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success is not fails
    wait_until(lambda: not leases(database))
    told = events(instance, result.run_id)
    assert told
    assert {event["result"] for event in told} == {"ok"}
    assert {event["step"] for event in told} == {"0 (extract fromPostgres)"}
    assert {(event["path"], event["fields"]) for event in told} == {("database/creds/etl", "username, password")}
    assert settings.audit_file is not None
    count, problems = AuditFile(settings.audit_file).verify()
    assert problems == []
    lines = [json.loads(line) for line in settings.audit_file.read_text().splitlines()]
    assert len(lines) == count >= len(told)
    assert {(line["run"], line["pipeline"], line["policy"]) for line in lines} == {(result.run_id, "leased", "allowed")}
    assert told[0]["audit_hash"] == lines[0]["hash"]


def test_the_policy_refuses_before_spark_starts(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_assets.resources.SparkSessions.session", lambda *_: pytest.fail("Spark was started"))
    read = {"type": "extract", "method": "fromFile", "config": {"path": "/nowhere", "format": "json"}}
    write_config(settings.configs, batch("refused", read))
    monkeypatch.setenv("PIPELINE_ASSETS_SECRETS_POLICY", "vault-only")
    job = build_definitions(settings).resolve_job_def("refused")
    conf = {"spark.hadoop.fs.s3a.secret.key": CANARY}
    with pytest.raises(dg.Failure, match=r"spark_conf of the Spark resource: /spark.hadoop.fs.s3a.secret.key"):
        job.execute_in_process(instance=instance, resources={"spark": SparkResource(spark_conf=conf)})
    write_config(
        settings.configs,
        {"postgres": {"default": {"host": "h", "database": "d", "user": "u", "password": "env:PGPASSWORD"}}},
        "connections.json",
    )
    with pytest.raises(dg.Failure, match="/postgres/default/password: refers to the environment"):
        job.execute_in_process(instance=instance)


def test_a_location_loads_with_vault_down(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t"})
    own = {"host": "h", "database": "d", "user": "u", "password": PASSWORD}
    write_config(settings.configs, {"postgres": {"default": own}}, "connections.json")
    read = {"type": "extract", "method": "fromPostgres", "config": {"table": "t"}}
    write_config(settings.configs, batch("down", read))
    assert build_definitions(settings).resolve_job_def("down")


def test_a_sensors_look_gives_back_what_it_leased(
    settings: Settings,
    instance: dg.DagsterInstance,
    database: hvac.Client,
    kafka: KafkaServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"looked-at-{time.time_ns()}"
    document = copy.deepcopy(EVENT_STREAM) | {"name": name}
    document["steps"][0]["config"] |= {"topic": name, "startingOffsets": "earliest"}
    document["steps"][2]["config"] |= {
        "trigger": "availableNow", "path": f"{settings.warehouse}/t", "checkpointLocation": f"{settings.warehouse}/c",
    }  # fmt: skip
    options = {"client.id": "vault:database/creds/etl#username"}
    own = {"default": {"bootstrapServers": kafka.bootstrap_servers, "options": options}}
    write_config(settings.configs, {"kafka": own}, "connections.json")
    write_config(settings.configs, document)
    new_topic(kafka, name, 1)

    def look() -> str:
        (sensor,) = build_sensors(plan_folder(load_folder(settings.configs)).plans, settings)
        context = dg.build_sensor_context(instance=instance, sensor_name=sensor.name)
        data = sensor.evaluate_tick(context)
        return data.skip_message or data.run_requests[0].run_key or ""

    # A broker or a Vault that takes longer than a look may: the next look finds them.
    wait_until(lambda: "in time" not in look() and "reachable" not in look())
    assert settings.audit_file is not None
    last = json.loads(settings.audit_file.read_text().splitlines()[-1])
    assert (last["pipeline"], last["run"], last["result"]) == (name, None, "ok")
    wait_until(lambda: not leases(database))
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    assert "Vault is not reachable at http://127.0.0.1:1" in look()


def test_variables_of_dagster_are_looked_up_in_a_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "https://vault-of-the-run")
    found: list[str | None] = []

    @dg.asset(required_resource_keys={"spark"})
    def looks(context) -> None:
        found.append(context.resources.spark.vault.settings().address)

    vault = VaultResource(address=dg.EnvVar("WHERE"))
    for resources in ({"spark": SparkResource(vault=vault)}, {"spark": SparkResource(vault=vault), "vault": vault}):
        assert dg.materialize([looks], instance=instance, resources=resources).success
    assert found == ["https://vault-of-the-run"] * 2
