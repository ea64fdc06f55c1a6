"""Writing to a real Kafka: what a consumer finds there is what the DataFrame had."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from devstack.kafka import KafkaServer
from devstack.topics import new_topic
from pipeline_assets.connections import Connections, parse_connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.load_kafka import ToKafka
from pipeline_assets_tests.steps.frames import frame_of

ROWS = [(number, f"name {number}" if number % 2 else None, number / 2) for number in range(20)]
COLUMNS = "id INT, name STRING, amount DOUBLE"
TIMEOUT = 90

Records = list[tuple[bytes | None, bytes | None]]


@pytest.fixture
def topic(kafka: KafkaServer) -> str:
    name = f"out-{uuid.uuid4().hex}"
    new_topic(kafka, name, 2)
    return name


@pytest.fixture
def consumed(kafka: KafkaServer, topic: str) -> Callable[[], Records]:
    """Return what reads the topic to its end, as (key, value), by a consumer of its own."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    def read() -> Records:
        consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "enable.partition.eof": True,
                "log_level": 0,
            }
        )
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in (0, 1)])
        found: Records = []
        ended = 0
        while ended < 2:
            message = consumer.poll(TIMEOUT)
            assert message is not None
            error = message.error()
            if error is None:
                found.append((message.key(), message.value()))
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                ended += 1
        consumer.close()
        return sorted(found, key=str)

    return read


def test_options_of_the_step_go_before_the_connections(
    topic: str, consumed: Callable[[], Records], kafka_context: StepContext
) -> None:
    connection = kafka_context.connections.kafka("default")
    # Less than any record has.
    small = connection.model_copy(update={"options": {"max.request.size": "10"}})
    document = {"kafka": {"default": small.model_dump(by_alias=True)}}
    context = dataclasses.replace(kafka_context, connections=Connections(parse_connections(document)))
    frame = frame_of(context.spark, COLUMNS, ROWS[:1])
    with pytest.raises(Exception, match="RecordTooLargeException"):
        ToKafka.model_validate({"topic": topic}).load(frame, context)
    own = {"topic": topic, "options": {"kafka.max.request.size": "1048576"}}
    assert ToKafka.model_validate(own).load(frame, context).rows == 1
    assert len(consumed()) == 1


def by_id(records: Records) -> list[tuple[bytes | None, dict[str, Any]]]:
    found = [(key, json.loads(value or b"")) for key, value in records]
    return sorted(found, key=lambda record: record[1]["id"])


def as_json(rows: list[tuple[int, str | None, float]]) -> list[tuple[bytes | None, dict[str, Any]]]:
    return [(str(id_).encode(), {"id": id_, "name": name, "amount": amount}) for id_, name, amount in rows]


def test_json(topic: str, consumed: Callable[[], Records], kafka_context: StepContext) -> None:
    method = ToKafka.model_validate({"topic": topic, "keyColumn": "ID", "options": {"kafka.compression.type": "lz4"}})
    result = method.load(frame_of(kafka_context.spark, COLUMNS, ROWS), kafka_context)
    assert (result.uri, result.rows) == (f"kafka://default/{topic}", len(ROWS))
    assert by_id(consumed()) == as_json(ROWS)
    assert [sink.parts for sink in method.sinks()] == [("default", topic)]


def test_json_of_texts_and_times(topic: str, consumed: Callable[[], Records], kafka_context: StepContext) -> None:
    """As they are, for plain Python and for fromKafka."""
    at, noted = datetime(2024, 5, 1, 10, 0, 0, 123456, tzinfo=UTC), datetime(2024, 5, 1, 10, 0, 0, 1)
    columns = "name STRING, at TIMESTAMP, noted TIMESTAMP_NTZ, times ARRAY<TIMESTAMP>"
    frame = frame_of(kafka_context.spark, columns, [(" a ", at, noted, [at])])
    ToKafka.model_validate({"topic": topic}).load(frame, kafka_context)
    ((_, value),) = consumed()
    found = json.loads(value or b"")
    assert found["name"] == " a "
    times = [datetime.fromisoformat(text) for text in (found["at"], found["noted"], *found["times"])]
    assert times == [at, noted, at]
    read = FromKafka.model_validate({"topics": [topic], "schema": columns}).extract(kafka_context)
    assert read.selectExpr("name", "unix_micros(at) % 1000000", "noted").collect() == [(" a ", 123456, noted)]


@pytest.mark.parametrize(
    ("config", "columns", "rows", "expected"),
    [
        ({"format": "text"}, "line STRING", [("a",), (None,)], [(None, None), (None, b"a")]),
        ({"format": "text"}, "other INT, value STRING", [(1, "a")], [(None, b"a")]),
        ({"format": "text", "keyColumn": "k"}, "k INT, line STRING", [(7, "a")], [(b"7", b"a")]),
        ({"format": "raw"}, "value BINARY", [(b"\x00\xff",)], [(None, b"\x00\xff")]),
        ({}, "id INT", [(1,)], [(None, b'{"id":1}')]),
    ],
)
def test_formats(
    config: dict[str, Any],
    columns: str,
    rows: list[Any],
    expected: Records,
    topic: str,
    consumed: Callable[[], Records],
    kafka_context: StepContext,
) -> None:
    method = ToKafka.model_validate({"topic": topic, **config})
    assert method.load(frame_of(kafka_context.spark, columns, rows), kafka_context).rows == len(rows)
    assert consumed() == sorted(expected, key=str)


@pytest.mark.parametrize(
    ("config", "columns", "message"),
    [
        ({"topic": "no-such-topic"}, "id INT", "there is no Kafka topic 'no-such-topic'"),
        ({"keyColumn": "idd"}, "id INT", "DataFrame 'input' has no column 'idd', did you mean 'id'"),
        ({"format": "text"}, "id INT", "format 'text' needs a column 'value' of type STRING .*its columns: id int"),
        ({"format": "text"}, "a STRING, b STRING", "needs a column 'value' of type STRING"),
        ({"format": "text"}, "value INT", "needs a column 'value' of type STRING"),
        ({"format": "raw"}, "value STRING", "format 'raw' needs a column 'value' of type BINARY"),
        ({"format": "raw"}, "bytes BINARY", "format 'raw' needs a column 'value' of type BINARY"),
    ],
)
def test_nothing_is_written(
    config: dict[str, Any],
    columns: str,
    message: str,
    topic: str,
    consumed: Callable[[], Records],
    kafka_context: StepContext,
) -> None:
    method = ToKafka.model_validate({"topic": topic, **config})
    frame = frame_of(kafka_context.spark, columns, [])
    with pytest.raises(ConfigurationError, match=message):
        method.load(frame, kafka_context)
    with pytest.raises(ConfigurationError, match=message):
        method.start_stream(frame, kafka_context, "query")
    assert consumed() == []


def test_stream(topic: str, consumed: Callable[[], Records], kafka_context: StepContext, tmp_path: Path) -> None:
    context = dataclasses.replace(kafka_context, settings=Settings(path_prefix=str(tmp_path)))
    table = str(tmp_path / "table")
    method = ToKafka.model_validate(
        {"topic": topic, "keyColumn": "id", "checkpointLocation": "/checkpoint", "trigger": "availableNow"}
    )
    for number, rows in enumerate((ROWS[:15], ROWS[15:])):
        frame_of(context.spark, COLUMNS, rows).write.format("delta").mode("append").save(table)
        frame = context.spark.readStream.format("delta").load(table)
        query = method.start_stream(frame, context, f"query-{number}")
        assert query.name == f"query-{number}"
        assert query.awaitTermination(TIMEOUT)
    assert by_id(consumed()) == as_json(ROWS)
    assert (tmp_path / "checkpoint" / "offsets").is_dir()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "topic\n  Field required"),
        ({"topic": "a", "format": "avro"}, "Input should be 'json', 'text' or 'raw'"),
        ({"topic": "a", "options": {"kafka.ssl.key.password": "x"}}, "looks like a secret"),
        ({"topic": "a", "options": {"kafka.client.id": "vault:a#b"}}, "references stand in connections.json alone"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToKafka.model_validate(config)
