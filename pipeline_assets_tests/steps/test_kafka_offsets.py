"""Offsets asked of a real broker, and of ports where none answers."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from devstack.kafka import KafkaServer
from devstack.topics import new_topic
from pipeline_assets.connections import KafkaConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.steps.kafka_client_settings import client_settings
from pipeline_assets.steps.kafka_offsets import Offsets, lag, offsets_json, parse_offsets, read_offsets, read_topic_ids

SECRETS = Secrets()


def connection_to(servers: str, **options: str) -> KafkaConnection:
    # As it is once its secrets have been fetched: before, they are references.
    return KafkaConnection(bootstrap_servers=servers).model_copy(update={"options": options})


@pytest.fixture
def topic(kafka: KafkaServer) -> str:
    """A topic of three partitions with 0, 2 and 5 records."""
    from confluent_kafka import Producer

    name = f"offsets-{uuid.uuid4().hex}"
    new_topic(kafka, name, 3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for partition, count in ((1, 2), (2, 5)):
        for number in range(count):
            producer.produce(name, str(number), partition=partition)
    assert producer.flush(30) == 0
    return name


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def topics_there(kafka: KafkaServer) -> set[str]:
    from confluent_kafka.admin import AdminClient

    return set(AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=30).topics)


def test_offsets_of_every_partition(kafka: KafkaServer, topic: str) -> None:
    connection = connection_to(kafka.bootstrap_servers)
    assert read_offsets(connection, SECRETS, topics=[topic], which="latest") == {topic: {0: 0, 1: 2, 2: 5}}
    assert read_offsets(connection, SECRETS, topics=[topic], which="earliest") == {topic: {0: 0, 1: 0, 2: 0}}


def test_earliest_is_the_first_record_that_is_still_there(kafka: KafkaServer, topic: str) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for done in admin.delete_records([TopicPartition(topic, 2, 3)]).values():
        done.result(30)
    connection = connection_to(kafka.bootstrap_servers)
    assert read_offsets(connection, SECRETS, topics=[topic], which="earliest")[topic] == {0: 0, 1: 0, 2: 3}


def test_open_transactions_count_by_isolation_level(kafka: KafkaServer, topic: str) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, "open", partition=0)
    assert producer.flush(30) == 0
    offsets = [
        read_offsets(connection_to(kafka.bootstrap_servers, **options), SECRETS, topics=[topic], which="latest")
        for options in ({}, {"isolation.level": "read_committed"}, {"kafka.isolation.level": "read_committed"})
    ]
    producer.abort_transaction(30)
    assert [found[topic][0] for found in offsets] == [1, 0, 0]


def test_a_topic_that_is_made_again_has_another_id(kafka: KafkaServer, topic: str) -> None:
    connection, other = connection_to(kafka.bootstrap_servers), f"{topic}-other"
    new_topic(kafka, other, 1)
    before = read_topic_ids(connection, SECRETS, [topic, other])
    assert before == read_topic_ids(connection, SECRETS, [topic], pattern=f"{topic}.*")
    assert before == read_topic_ids(connection, SECRETS, [topic, other])
    new_topic(kafka, topic, 3)
    after = read_topic_ids(connection, SECRETS, [topic, other])
    assert after[other] == before[other]
    assert len({*before.values(), *after.values()}) == 3
    with pytest.raises(PipelineExecutionError, match=f"Kafka at {kafka.bootstrap_servers} answers: "):
        read_topic_ids(connection, SECRETS, [topic, f"{topic}-missing"])


def test_brokers_that_give_topics_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    from confluent_kafka import Uuid
    from confluent_kafka.admin import AdminClient, TopicDescription

    def described(client: AdminClient, topics: object, **_: object) -> dict[str, Future[TopicDescription]]:
        found = {"old": Future[TopicDescription](), "new": Future[TopicDescription]()}
        found["old"].set_result(TopicDescription("old", Uuid(0, 0), False, []))
        found["new"].set_result(TopicDescription("new", Uuid(0, 1), False, []))
        return found

    monkeypatch.setattr(AdminClient, "describe_topics", described)
    connection = connection_to("127.0.0.1:1")
    assert read_topic_ids(connection, SECRETS, ["old", "new"]) == {"new": str(Uuid(0, 1))}


def test_pattern_matches_whole_names(kafka: KafkaServer, topic: str) -> None:
    connection = connection_to(kafka.bootstrap_servers)
    assert set(read_offsets(connection, SECRETS, pattern=f"{topic[:-1]}.", which="latest")) == {topic}
    assert read_offsets(connection, SECRETS, pattern=topic[:-1], which="latest") == {}
    assert not any(name.startswith("__") for name in read_offsets(connection, SECRETS, pattern=".*", which="latest"))
    with pytest.raises(ConfigurationError, match="no regular expression"):
        read_offsets(connection, SECRETS, pattern="(", which="latest")


def test_a_missing_topic_is_named_and_not_made(kafka: KafkaServer, topic: str) -> None:
    before = topics_there(kafka)
    wrong = topic.replace("offsets", "ofsets")
    with pytest.raises(ConfigurationError, match=f"no Kafka topic '{wrong}', did you mean '{topic}'"):
        read_offsets(connection_to(kafka.bootstrap_servers), SECRETS, topics=[wrong], which="latest")
    assert topics_there(kafka) == before


def test_a_dead_broker_is_named_and_says_nothing_itself(silent: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    for servers in (nobody, silent, "no-such-host.invalid:9092"):
        with pytest.raises(PipelineExecutionError, match=f"no Kafka broker at {servers} answered within 0.5 s"):
            read_offsets(connection_to(servers), SECRETS, topics=["events"], which="latest", timeout=0.5)
    assert capfd.readouterr() == ("", "")


def test_json_is_that_of_spark() -> None:
    offsets: Offsets = {"b": {10: 7, 2: 1}, "a": {0: 0}}
    text = '{"a":{"0":0},"b":{"2":1,"10":7}}'
    assert offsets_json(offsets) == text
    assert parse_offsets(text) == offsets
    for wrong in ("1754", "[1]", "not JSON", '{"a":{"x":1}}', '{"a": 1}'):
        with pytest.raises(PipelineExecutionError, match="not the offsets of a Kafka source"):
            parse_offsets(wrong)


def test_lag() -> None:
    end = {"a": {0: 10, 1: 5, 2: 3}, "b": {0: 4}}
    assert lag(end, {"a": {0: 7, 1: 9}}) == {"a": {0: 3, 1: 0, 2: 3}, "b": {0: 4}}
    assert lag(end, end) == {"a": {0: 0, 1: 0, 2: 0}, "b": {0: 0}}


PLAIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="etl" password="p\\"w=;";'


def translated(options: dict[str, str]) -> dict[str, object]:
    """Return what becomes of ``options``, after librdkafka itself has taken it."""
    from confluent_kafka.admin import AdminClient

    settings = client_settings(connection_to("127.0.0.1:1", **options), SECRETS)
    AdminClient({**settings, "bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    return settings


def test_sasl_settings_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JAAS", PLAIN)
    options = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.jaas.config": "env:TEST_JAAS"}
    assert translated({**options, "max.poll.records": "5"}) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "etl",
        "sasl.password": 'p"w=;',
    }
    scram = PLAIN.replace("plain.Plain", "scram.Scram")
    options = {
        "kafka.security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512", "sasl.jaas.config": scram
    }  # fmt: skip
    assert translated(options)["sasl.mechanisms"] == "SCRAM-SHA-512"


def test_ssl_settings_are_translated() -> None:
    import certifi

    authorities = certifi.where()
    options = {
        "security.protocol": "SSL",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authorities,
        "ssl.endpoint.identification.algorithm": "",
    }
    assert translated(options) == {
        "security.protocol": "SSL",
        "ssl.ca.location": authorities,
        "ssl.endpoint.identification.algorithm": "none",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "AWS_MSK_IAM"}, "sasl.mechanism AWS_MSK_IAM can't"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.jaas.config": "secret"}, "jaas.config"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism GSSAPI can't"),
        ({"security.protocol": "SSL", "ssl.truststore.location": "/secret.jks"}, "ssl.truststore.type JKS can't"),
        ({"security.protocol": "secure"}, "does not take the options in connections.json.*security.protocol"),
        (
            {
                "security.protocol": "SSL",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.key": "a secret",
                "ssl.keystore.certificate.chain": "x",
            },
            "does not take the options in connections.json",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_said_without_secrets(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_offsets(connection_to("127.0.0.1:1", **options), SECRETS, topics=["a"], which="latest", timeout=0.05)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
