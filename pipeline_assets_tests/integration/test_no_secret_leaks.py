"""No secret gets anywhere: canaries in Vault for every connection, every failure that there is, then a search."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import hvac
import psycopg
import pytest

from devstack.kafka import KafkaServer
from devstack.ports import free_port
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server
from devstack.vault import VaultServer
from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config
from pipeline_assets_tests.e2e.dagster_servers import DagsterServers, dagster_servers
from pipeline_assets_tests.integration.leaks import forms, found_in
from pipeline_assets_tests.integration.leaky_method import HOPS
from pipeline_assets_tests.integration.run_processes import JobProcess, wait_until
from pipeline_assets_tests.integration.topics import Topic, events

# Five processes with a JVM each, in one fixture.
pytestmark = pytest.mark.timeout(1200)

# Characters that URLs, JSON, Java, Python, SQL and JAAS configs each write in their own way.
AWKWARD = "/+=&%@ 'ö"
SASL = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}


def canary(name: str, awkward: str = AWKWARD) -> str:
    return f"canary-{name}{awkward}{uuid.uuid4().hex}"


@dataclass
class Planted:
    """The location with the canaries, and what its runs left."""

    folder: Path
    canaries: dict[str, str]
    environment: dict[str, str]
    found: dict[tuple[str, str], list[str]] | None = None

    @property
    def evidence(self) -> Path:
        """Everything that may not show a canary: Dagster's home, outputs, answers, warehouse."""
        return self.folder / "evidence"


def jaas(password: str) -> str:
    return f'org.apache.kafka.common.security.plain.PlainLoginModule required username="me" password="{password}";'


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, vault: VaultServer, postgres: PostgresServer, s3: S3Server,
    kafka: KafkaServer,
) -> Planted:  # fmt: skip
    """A location whose connections refer to canaries in Vault: right ones, wrong ones, and ones it may not read."""
    folder = tmp_path_factory.mktemp("leaks")
    canaries = {
        "postgres": canary("postgres"),
        "wrong postgres": canary("wrong-postgres"),
        "wrong s3": canary("wrong-s3"),
        "s3 key id": s3.access_key_id,
        "s3": s3.secret_access_key,
        "kafka": canary("kafka", "-"),
        "kafka option": canary("kafka-option"),
        "leak": canary("leak"),
        "forbidden": canary("forbidden"),
    }
    role = f"canary_{uuid.uuid4().hex[:8]}"
    with postgres.connect() as database:
        database.execute(
            psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                psycopg.sql.Identifier(role), psycopg.sql.Literal(canaries["postgres"])
            )
        )
    client = hvac.Client(vault.url, vault.token)
    place = f"leaks-{uuid.uuid4().hex[:8]}"
    stored = {**canaries, "kafka jaas": jaas(canaries["kafka"])}
    client.secrets.kv.v2.create_or_update_secret(place, secret=stored)
    client.secrets.kv.v2.create_or_update_secret(f"{place}-forbidden", secret=stored)
    client.sys.create_or_update_policy(place, f'path "secret/data/{place}" {{ capabilities = ["read"] }}')
    canaries["vault token"] = client.auth.token.create(policies=[place], ttl="1h")["auth"]["client_token"]

    def reference(name: str, forbidden: str = "") -> str:
        return f"vault:secret/data/{place}{forbidden}#{name}"

    server = {"host": postgres.host, "port": postgres.port, "database": postgres.database, "user": role}
    store = {
        "endpoint": s3.endpoint,
        "region": s3.region,
        "options": {"fs.s3a.attempts.maximum": "1", "fs.s3a.retry.limit": "1"},
    }
    keys = {"accessKeyId": reference("s3 key id"), "secretAccessKey": reference("s3")}
    brokers = {"bootstrapServers": kafka.bootstrap_servers}
    connections = {
        "postgres": {
            "default": {**server, "password": reference("postgres")},
            "wrong": {**server, "password": reference("wrong postgres")},
            "nobody": {**server, "port": 1, "password": reference("postgres")},
            "forbidden": {**server, "password": reference("postgres", "-forbidden")},
            "no-field": {**server, "password": reference("no such field")},
        },
        "s3": {
            "default": {**store, **keys},
            "wrong": {**store, **keys, "secretAccessKey": reference("wrong s3")},
        },
        "kafka": {
            "default": {**brokers, "options": {"sasl.jaas.config": reference("kafka jaas")}},
            "sasl": {**brokers, "options": {**SASL, "sasl.jaas.config": reference("kafka jaas")}},
            "option": {**brokers, "options": {"ssl.truststore.password": reference("kafka option")}},
        },
    }
    configs = folder / "configs"
    configs.mkdir()
    found = Planted(folder, canaries, {})
    found.evidence.mkdir()
    (folder / "root").mkdir()
    (folder / "root" / "rows.json").write_text('{"id": 1}\n{"id": 2}\n')
    write_config(configs, json.dumps(connections), "connections.json")
    for document in _documents(found, reference("leak")):
        write_config(configs, document)
    # The method that leaks comes from a package of its own, as others' methods do.
    brought = folder / "site" / "leaky-1.dist-info"
    brought.mkdir(parents=True)
    (brought / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    entry = "[pipeline_assets.steps]\nleak = pipeline_assets_tests.integration.leaky_method:Leak\n"
    (brought / "entry_points.txt").write_text(entry)
    found.environment |= {
        "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{Path(__file__).parents[2]}",
        "PIPELINE_ASSETS_CONFIGS": str(configs),
        "PIPELINE_ASSETS_WAREHOUSE": str(found.evidence / "warehouse"),
        "PIPELINE_ASSETS_PATH_PREFIX": str(folder / "root"),
        "PIPELINE_ASSETS_REPORTS": str(found.evidence / "reports"),
        "SPARK_MASTER": "local[2]",
        "VAULT_ADDR": vault.url,
        "VAULT_TOKEN": canaries["vault token"],
    }
    return found


def _documents(planted: Planted, leak: str) -> Iterator[dict[str, Any]]:
    known = planted.canaries

    def extract(method: str, name: str, **config: Any) -> dict[str, Any]:
        return {"type": "extract", "method": method, "name": name, "config": {**config, "registerAs": name}}

    def sql(text: str) -> str:
        return text.replace("'", "''")

    yield batch(
        "failures",
        # The first table is what finds the first mistake of the others.
        extract_file("rows", "/rows.json"),
        transform("filterRows", inputDataFrame="rows", condition="id > 0"),
        extract("fromPostgres", "missing_table", table="no_such_table"),
        extract("fromPostgres", "bad_sql", query=f"SELECT '{sql(known['postgres'])}' AS x FROM no_such_table"),
        extract("fromPostgres", "wrong_password", table="customers", connection="wrong"),
        extract("fromPostgres", "nobody", table="customers", connection="nobody"),
        extract("fromPostgres", "forbidden", table="customers", connection="forbidden"),
        extract("fromPostgres", "no_field", table="customers", connection="no-field"),
        extract("fromPostgres", "connects", query="SELECT rolname::text AS name FROM pg_roles WHERE false"),
        extract("fromS3", "wrong_key", path="s3a://wrong-keys/x.json", connection="wrong"),
        extract("fromS3", "missing_bucket", path="s3a://no-such-bucket/x.json"),
        extract("fromS3", "missing_path", path="s3a://data/nowhere.json"),
        extract("fromKafka", "missing_topic", topic="no-such-topic"),
        extract("fromKafka", "denied_topic", topic="no-such-topic", connection="sasl"),
        extract("leak", "leak", secret=leak, uiDump=str(planted.evidence / "spark-ui")),
    )
    # By itself: where a step is wrong, none writes. What it raises is known to be secret by the step before.
    yield batch(
        "raises",
        extract("fromPostgres", "connects", query="SELECT rolname::text AS name FROM pg_roles WHERE false"),
        extract_file("rows", "/rows.json"),
        transform("filterRows", condition=f"raise_error('{_spark(known['postgres'])}') IS NULL"),
    )
    yield batch("leaks", extract("leak", "leak", secret=leak))
    for name, kafka in (("stream", "option"), ("denied-stream", "sasl")):
        yield {
            "name": name,
            "mode": "streaming",
            "steps": [
                extract("fromKafka", "events", topic="leak-events", startingOffsets="earliest", connection=kafka),
                {
                    "type": "load",
                    "method": "toDeltaLake",
                    "config": {"path": f"/{name}", "checkpointLocation": f"/checkpoints/{name}", "trigger": "1 second"},
                },
            ],
        }


def _spark(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


@pytest.fixture(scope="module")
def evidence(planted: Planted, kafka: KafkaServer) -> Planted:
    """All runs, from the command line and from the web server, and all that they leave."""
    output = planted.evidence
    topic = Topic(kafka, 1, "leak-events").make()
    topic.send(events(0, 20))
    event_log = planted.folder / "event-log"
    event_log.mkdir()
    spark = {
        "spark.ui.enabled": "true",
        "spark.ui.port": str(free_port()),
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": event_log.as_uri(),
        "spark.eventLog.compress": "false",
    }
    run_config = planted.folder / "run.json"
    run_config.write_text(json.dumps({"resources": {"spark": {"config": {"spark_conf": spark}}}}))
    # Of the web server's runs each step is a process of its own.
    served = {**planted.environment, "PIPELINE_ASSETS_EXECUTOR": "multiprocess"}
    dagster = output / "dagster"
    dagster.mkdir()
    with dagster_servers(dagster, output / "logs", planted.folder / "configs", served) as servers:
        environment = {**planted.environment, "DAGSTER_HOME": str(dagster / "home")}
        stream = JobProcess("stream", environment, output / "stream.log")
        try:
            _execute("failures", environment, output / "failures.log", "-c", str(run_config))
            _execute("raises", environment, output / "raises.log")
            written = planted.folder / "root" / "stream" / "_delta_log"
            stream.wait_until(lambda: list(written.glob("*.json")))
            stream.kill_jvm()
            assert stream.end() != 0
        finally:
            stream.kill_all()
        _launch(servers, "leaks", "denied_stream")
        # By a process that knows no secret, beside those that the runs have written of themselves.
        report = [Path(sys.executable).parent / "pipeline-assets", "report", "failures"]
        shown = {**os.environ, **environment}
        subprocess.run([*report, "--output", output / "failures.html"], env=shown, timeout=200, check=True)
        (output / "answers.json").write_text(json.dumps(list(_answers(servers)), ensure_ascii=False))
        # Here, since Dagster's home goes with its servers.
        planted.found = found_in(output, planted.canaries)
    topic.delete()
    return planted


def _execute(job: str, environment: dict[str, str], log: Path, *options: str) -> None:
    command = [str(Path(sys.executable).parent / "dagster"), "job", "execute", "-m", "pipeline_assets.definitions"]
    with log.open("wb") as output:
        code = subprocess.run(
            [*command, "-j", job, *options],
            env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT, timeout=400, check=False,
        ).returncode  # fmt: skip
    assert code != 0


RUNS = "{ runsOrError { ... on Runs { results { runId jobName status runConfigYaml tags { key value } } } } }"
EVENTS = """query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
    __typename
    ... on MessageEvent { message stepKey tags: eventType }
    ... on ErrorEvent { error { message className stack errorChain { error { message stack } isExplicitLink } } }
    ... on ExecutionStepFailureEvent { failureMetadata { metadataEntries { ...entry } } }
    ... on MaterializationEvent { metadataEntries { ...entry } }
    ... on ObservationEvent { metadataEntries { ...entry } }
    ... on LogsCapturedEvent { logKey }
} } } }
fragment entry on MetadataEntry { label description
    ... on TextMetadataEntry { text } ... on MarkdownMetadataEntry { mdStr } ... on JsonMetadataEntry { jsonString }
    ... on PathMetadataEntry { path } ... on UrlMetadataEntry { url }
    ... on TableSchemaMetadataEntry { schema { columns { name type description } } }
}"""
LOGS = "query ($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"
ASSETS = """{ assetNodes { assetKey { path } description opVersion metadataEntries { label description
    ... on TextMetadataEntry { text } ... on MarkdownMetadataEntry { mdStr } } }
  repositoriesOrError { ... on RepositoryConnection { nodes { name allTopLevelResourceDetails {
    name configuredValues { key value type } configFields { name defaultValueAsJson } } } } } }"""


def _ask(servers: DagsterServers, query: str, **variables: Any) -> Any:
    request = urllib.request.Request(
        f"{servers.url}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        found = json.load(answer)
    assert "errors" not in found, found
    return found["data"]


def _launch(servers: DagsterServers, *jobs: str) -> None:
    """Have the daemon run ``jobs``, and wait until they have ended."""
    query = """query { repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"""
    (repository,) = _ask(servers, query)["repositoriesOrError"]["nodes"]
    launch = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
    ids = set()
    for job in jobs:
        where = {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"]}
        answer = _ask(servers, launch, params={"selector": {**where, "jobName": job}, "mode": "default"})
        ids.add(answer["launchRun"]["run"]["runId"])

    def ended() -> bool:
        runs = {run["runId"]: run["status"] for run in _ask(servers, RUNS)["runsOrError"]["results"]}
        return all(runs[run] == "FAILURE" for run in ids)

    wait_until(ended, 240)


def _answers(servers: DagsterServers) -> Iterator[Any]:
    runs = _ask(servers, RUNS)
    yield runs
    yield _ask(servers, ASSETS)
    for run in runs["runsOrError"]["results"]:
        logged = _ask(servers, EVENTS, run=run["runId"])
        yield logged
        for event in logged["logsForRun"]["events"]:
            if event["__typename"] == "LogsCapturedEvent":
                yield {"run": run["runId"], **_ask(servers, LOGS, key=[run["runId"], "compute_logs", event["logKey"]])}


def test_no_canary_is_anywhere(evidence: Planted) -> None:
    assert evidence.found == {}


def test_every_failure_has_happened_and_is_told(evidence: Planted) -> None:
    """The search would find nothing in runs that got nowhere."""
    output = (evidence.evidence / "failures.log").read_text()
    for words in (
        "table public.no_such_table does not exist",
        'relation "no_such_table" does not exist',
        "password authentication failed",
        "PostgreSQL is not reachable at 127.0.0.1:1",
        "permission denied",
        "no such field",
        "access denied: s3a://wrong-keys/x.json",
        "no-such-bucket",
        "path s3a://data/nowhere.json does not exist",
        "there is no Kafka topic 'no-such-topic'",
        "refused the login: ",
        "could not use",
    ):
        assert words in output, words
    assert "raises: step 2 (transform filterRows)" in (evidence.evidence / "raises.log").read_text()
    assert "JVM is gone" in (evidence.evidence / "stream.log").read_text()
    answers = (evidence.evidence / "answers.json").read_text()
    assert re.search(r"denied-stream: step 0 \(extract fromKafka\): Kafka at \S+ refused the login: ", answers)


def test_the_reports_have_been_searched(evidence: Planted) -> None:
    reports = {path.name.partition("-")[0]: path for path in (evidence.evidence / "reports").glob("*.html")}
    assert set(reports) == {"failures", "raises", "stream", "leaks", "denied_stream"}
    for page in (reports["failures"], evidence.evidence / "failures.html"):
        assert "password authentication failed" in page.read_text()


@pytest.mark.parametrize("job", ["failures", "leaks"])
def test_what_was_shown_is_in_the_compute_logs_masked(evidence: Planted, job: str) -> None:
    """By ``dagster job execute``, and by the daemon and the multiprocess executor: not a line is missing."""
    answers = json.loads((evidence.evidence / "answers.json").read_text())
    (run,) = (run["runId"] for run in answers[0]["runsOrError"]["results"] if run["jobName"] == job)
    logs = [answer["capturedLogs"] for answer in answers if "capturedLogs" in answer and answer["run"] == run]
    text = "\n".join(log[stream] or "" for log in logs for stream in ("stdout", "stderr"))
    for hop in HOPS:
        assert re.search(rf"hop {hop}\b[^\n]*\*{{9}}", text), (hop, text)
    # What the JVM's executor says of a failing function, a trace of many lines.
    assert re.search(r"ValueError: invalid literal for int[^\n]*\*{9}[\s\S]*\tat org.apache.spark.", text)


def test_the_pages_of_spark_have_been_searched(evidence: Planted) -> None:
    pages = (evidence.evidence / "spark-ui").read_text()
    for there in ("fs.s3a.bucket.leaky.secret.key", "shown_by_the_ui", "sparkProperties", "Hadoop Properties"):
        assert there in pages, there


def test_settings_and_options_in_the_event_log_of_spark_are_masked(evidence: Planted) -> None:
    """Not literals, which Spark shows in the tree of a plan, and not what failed tasks say."""
    kept = {"SparkListenerEnvironmentUpdate", "SparkListenerSQLExecutionStart", "SparkListenerJobStart"}
    shown = evidence.folder / "event-log-shown"
    shown.mkdir()
    for path in (evidence.folder / "event-log").rglob("events_*"):
        events_there = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events_there:
            event.pop("sparkPlanInfo", None)
        chosen = [event for event in events_there if event["Event"].rpartition(".")[2] in kept]
        (shown / path.name).write_text(json.dumps(chosen, ensure_ascii=False))
    assert "fs.s3a.bucket.leaky.secret.key" in "".join(path.read_text() for path in shown.iterdir())
    in_a_literal = "s3"
    assert found_in(shown, {name: value for name, value in evidence.canaries.items() if name != in_a_literal}) == {}


def test_the_search_finds_every_form_of_a_canary(planted: Planted, tmp_path: Path) -> None:
    """A job that shows all of them, in a home of its own: in its event log, snapshot, tags, and compute logs."""
    written = {
        f"{name} {form}": text.decode()
        for name, value in planted.canaries.items()
        for form, text in forms(value).items()
    }

    @dg.op(description="\n".join(written.values()))
    def show(context) -> None:
        for text in written.values():
            context.log.info(text)

    @dg.job
    def shows() -> None:
        show()

    expected = {(name, form) for name in planted.canaries for form in forms("x")}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert shows.execute_in_process(instance=instance, tags={"shown": planted.canaries["leak"]}).success
    found = found_in(tmp_path, planted.canaries)
    assert set(found) == expected
    places = " ".join(place for where in found.values() for place in where)
    assert "(snapshots)" in places
    assert "(event_logs)" in places
