"""Kafka that asks who one is: pipelines as a user of the real broker, who may do some things and not others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from devstack.kafka import USER, KafkaServer
from pipeline_assets.config_loading import load_file
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import CredentialError, PipelineError
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.settings import Settings
from pipeline_assets.steps.kafka_offsets import Offsets, read_offsets
from pipeline_assets.streaming.backlog import read_backlog
from pipeline_assets_tests.config_documents import batch, extract_file, load, write_config
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.integration.test_streams import COLUMNS, SCHEMA, frame, from_kafka, root, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

MODULES = {"PLAIN": "plain.PlainLoginModule", "SCRAM-SHA-512": "scram.ScramLoginModule"}
SCRAM_USER = "scram-etl"
DENIED = "Kafka does not let the connection's user do this (fromKafka needs READ, toKafka WRITE)"
Allow = Callable[..., None]


def admin(kafka: KafkaServer) -> Any:
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})


@pytest.fixture
def log_in(location: Location, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the location's connection to Kafka log in, by a password that the environment holds."""

    def by(mechanism: str = "PLAIN", password: str = kafka.password) -> None:
        user = SCRAM_USER if mechanism != "PLAIN" else USER
        module = f"org.apache.kafka.common.security.{MODULES[mechanism]}"
        monkeypatch.setenv("KAFKA_JAAS", f'{module} required username="{user}" password="{password}";')
        options = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.jaas.config": "env:KAFKA_JAAS",
        }
        connection = {"bootstrapServers": kafka.guarded_servers, "options": options}
        write_config(location.configs, json.dumps({"kafka": {"default": connection}}), "connections.json")

    return by


@pytest.fixture
def allow(location: Location, kafka: KafkaServer, topic: Topic) -> Allow:
    """Allow a user, as whom the location logs in, to do something with the topic; over when the broker knows."""
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    def allowed(operation: str, user: str = USER) -> None:
        binding = AclBinding(
            ResourceType.TOPIC,
            topic.name,
            ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[operation],
            AclPermissionType.ALLOW,
        )
        client = admin(kafka)  # kept until it has answered
        (made,) = client.create_acls([binding]).values()
        made.result(30)
        wait_until(lambda: seen(location, topic))

    return allowed


def look(location: Location, topic: Topic, timeout: float = 60) -> Offsets:
    """Ask for the topic's ends, as a sensor would."""
    connection = load_connections(location.configs).kafka("default")
    return read_offsets(connection, Secrets(), topics=[topic.name], which="latest", timeout=timeout)


def seen(location: Location, topic: Topic) -> bool:
    try:
        return bool(look(location, topic))
    except PipelineError:
        return False


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_stream_as_a_user(
    location: Location, topic: Topic, kafka: KafkaServer, log_in: Callable[..., None], allow: Allow, mechanism: str
) -> None:
    if mechanism != "PLAIN":
        _give_scram(kafka)
    log_in(mechanism)
    allow("READ", SCRAM_USER if mechanism != "PLAIN" else USER)
    good = events(0, 60)
    topic.send([*good, "broken"])
    document = stream(from_kafka(topic), to_delta())
    location.write(document)
    location.run("stream")
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(good))
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert [bytes(value) for value in letters["value"]] == [b"broken"]

    # The sensor looks by another client.
    topic.send(events(60, 7))
    plan = plan_pipeline(load_file(location.configs / "stream.json"))
    connections = load_connections(location.configs)
    backlog = read_backlog(plan, Settings.from_environment(), connections, 30)
    assert backlog.lag == 7


def _give_scram(kafka: KafkaServer) -> None:
    from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = UserScramCredentialUpsertion(SCRAM_USER, info, kafka.password.encode())
    client = admin(kafka)
    for made in client.alter_user_scram_credentials([wanted]).values():
        made.result(30)


def test_a_topic_that_the_user_may_not_see(location: Location, topic: Topic, log_in: Callable[..., None]) -> None:
    log_in()
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    text = failure_text(location.run("stream", fail=True))
    assert f"there is no Kafka topic '{topic.name}'" in text
    assert "or have the connection's user be allowed to see it" in text


def test_a_topic_that_the_user_may_not_read(
    location: Location, topic: Topic, log_in: Callable[..., None], allow: Allow
) -> None:
    log_in()
    allow("DESCRIBE")
    topic.send(events(0, 4))
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    text = failure_text(location.run("stream", fail=True))
    assert f"{DENIED}: Not authorized to access topics: [{topic.name}]" in text


def test_a_topic_that_the_user_may_not_write(
    location: Location, topic: Topic, log_in: Callable[..., None], allow: Allow, spark: Any
) -> None:
    log_in()
    allow("READ")
    (location.folder / "rows.json").write_text('{"id": 1}\n')
    rows = extract_file("rows", f"file://{location.folder}/rows.json")
    location.write(batch("produced", rows, load("toKafka", topic=topic.name)))
    text = failure_text(location.run("produced", fail=True))
    # One who may write nowhere is not told of the topic: that they produce at all is refused.
    assert f"produced: step 1 (load toKafka): {DENIED}: Cluster authorization failed" in text
    # As long as there is a producer, it goes on to ask the broker whether it may, thousands of times a second.
    threads = spark._jvm.java.lang.Thread.getAllStackTraces
    wait_until(lambda: not [thread for thread in threads() if "kafka-producer-network" in thread.getName()])


def test_a_password_that_is_wrong(location: Location, topic: Topic, log_in: Callable[..., None]) -> None:
    log_in(password="wr0ng-canary")
    with pytest.raises(CredentialError, match="refused the login: .*[Aa]uthentication failed") as caught:
        look(location, topic, timeout=10)
    assert "wr0ng-canary" not in str(caught.value)
