"""Reading a real Kafka, in batches and as streams. What is expected is what the producer sent."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devstack import topics
from devstack.kafka import KafkaServer
from pipeline_assets.errors import ConfigurationError, PipelineCancelledError, PipelineError, PipelineExecutionError
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.steps.base import StepContext, StreamSource, StreamTraits
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets_tests.steps.frames import Rows, in_order, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Value = dict[str, Any] | str | bytes | None
EVENTS: list[dict[str, Any]] = [{"id": number, "kind": "buy" if number % 3 else "view"} for number in range(1, 10)]
DDL = "id INT, kind STRING"
TIMEOUT = 90


def events_as_rows(events: Iterable[dict[str, Any]] = EVENTS) -> Rows:
    return in_order((event["id"], event["kind"]) for event in events)


class Topic:
    """A topic on the broker, and what was produced to it."""

    def __init__(self, kafka: KafkaServer, name: str) -> None:
        from confluent_kafka.admin import AdminClient

        self.name = name
        self._kafka = kafka
        self._servers = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0}
        self._admin = AdminClient(self._servers)

    def make(self, partitions: int = 1) -> Topic:
        topics.new_topic(self._kafka, self.name, partitions)
        return self

    def grow(self, partitions: int) -> None:
        from confluent_kafka.admin import NewPartitions

        self._admin.create_partitions([NewPartitions(self.name, partitions)])[self.name].result(30)

    def delete_before(self, offset: int) -> None:
        from confluent_kafka import TopicPartition

        partition = TopicPartition(self.name, 0, offset)
        self._admin.delete_records([partition])[partition].result(30)

    def send(self, values: Iterable[Value], partition: int = 0) -> None:
        """Produce the values; the key is the event's id, or the place in the list."""
        from confluent_kafka import Producer

        producer = Producer(self._servers)  # one that has been used does not know of new partitions
        for place, value in enumerate(values):
            key = str(value["id"] if isinstance(value, dict) and "id" in value else place)
            text = json.dumps(value) if isinstance(value, dict) else value
            producer.produce(self.name, key=key, value=text, partition=partition)
        assert producer.flush(30) == 0


@pytest.fixture
def new_topic(kafka: KafkaServer) -> Callable[..., Topic]:
    """Return a topic with a name of its own, not yet made."""

    def build(name: str | None = None) -> Topic:
        return Topic(kafka, name or f"events-{uuid.uuid4().hex}")

    return build


@pytest.fixture
def topic(new_topic: Callable[..., Topic]) -> Topic:
    """A topic with the events, in one partition."""
    made = new_topic().make()
    made.send(EVENTS)
    return made


# Batches


def test_json_with_schema(topic: Topic, kafka_context: StepContext) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "schema": DDL})
    assert rows_of(method.extract(kafka_context)) == events_as_rows()


def test_json_without_schema(topic: Topic, kafka_context: StepContext) -> None:
    frame = FromKafka(topics=(topic.name,)).extract(kafka_context)
    assert frame.dtypes == [("id", "bigint"), ("kind", "string")]
    assert rows_of(frame) == events_as_rows()


def test_raw_with_metadata(topic: Topic, kafka_context: StepContext) -> None:
    frame = FromKafka(topic=topic.name, format="raw", include_metadata=True).extract(kafka_context)
    assert frame.columns == ["value", "kafka_key", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp"]
    rows = frame.orderBy("kafka_offset").collect()
    assert [(bytes(row[0]), bytes(row[1]), *row[2:5]) for row in rows] == [
        (json.dumps(event).encode(), str(event["id"]).encode(), topic.name, 0, offset)
        for offset, event in enumerate(EVENTS)
    ]
    assert None not in [row["kafka_timestamp"] for row in rows]


def test_text(topic: Topic, kafka_context: StepContext) -> None:
    frame = FromKafka(topic=topic.name, format="text").extract(kafka_context)
    assert sorted(row[0] for row in frame.collect()) == sorted(map(json.dumps, EVENTS))


AVRO = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "id", "type": "int"}, {"name": "kind", "type": "string"}],
}


def avro_of(event: dict[str, Any]) -> bytes:
    """Encode by Avro's specification: zigzag varints (small ones here), and texts with their length before them."""
    kind = event["kind"].encode()
    return bytes([event["id"] * 2, len(kind) * 2]) + kind


@pytest.mark.parametrize("schema", [AVRO, json.dumps(AVRO)], ids=["object", "text"])
def test_avro(schema: Any, new_topic: Callable[..., Topic], kafka_context: StepContext) -> None:
    topic = new_topic().make()
    topic.send(map(avro_of, EVENTS))
    method = FromKafka.model_validate({"topic": topic.name, "format": "avro", "avroSchema": schema})
    assert rows_of(method.extract(kafka_context)) == events_as_rows()
    topic.send([b"\x02\x7f"])
    with pytest.raises(Exception, match=f"topic '{topic.name}', partition 0, offset 9: .* no Avro of 'avroSchema'"):
        method.extract(kafka_context).collect()


def test_between_offsets(topic: Topic, kafka_context: StepContext) -> None:
    method = FromKafka.model_validate(
        {
            "topicPattern": topic.name[:-1] + ".",
            "startingOffsets": {topic.name: {"0": 1}},
            "endingOffsets": {topic.name: {"0": 3}},
            "schema": DDL,
        }
    )
    assert rows_of(method.extract(kafka_context)) == events_as_rows(EVENTS[1:3])


def test_offsets_of_each_partition(new_topic: Callable[..., Topic], kafka_context: StepContext) -> None:
    topic = new_topic().make(partitions=3)
    for partition in range(3):
        topic.send(EVENTS[partition * 3 : partition * 3 + 3], partition)
    offsets = {topic.name: {"0": -2, "1": 2, "2": -1}}
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": offsets})
    assert rows_of(method.extract(kafka_context)) == events_as_rows([*EVENTS[:3], EVENTS[5]])


def test_a_batch_ends_where_it_did_when_it_was_planned(topic: Topic, kafka_context: StepContext) -> None:
    frame = FromKafka.model_validate({"topic": topic.name, "schema": DDL}).extract(kafka_context)
    topic.send([{"id": 77, "kind": "late"}])
    assert rows_of(frame) == events_as_rows()


def test_the_newest_records_tell_the_schema(new_topic: Callable[..., Topic], kafka_context: StepContext) -> None:
    topic = new_topic().make(partitions=2)
    topic.send([{"id": number, "old": True} for number in range(1200)])
    topic.send([{"id": 1.5, "new": True}], partition=1)
    frame = FromKafka.model_validate({"topic": topic.name, "brokenRecords": "null"}).extract(kafka_context)
    assert frame.dtypes == [("id", "double"), ("new", "boolean"), ("old", "boolean")]
    assert frame.count() == 1201


def test_a_broken_record_fails_a_batch(topic: Topic, kafka_context: StepContext) -> None:
    topic.send([{"id": "x"}])
    method = FromKafka.model_validate({"topic": topic.name, "schema": DDL})
    expected = (
        f"topic '{topic.name}', partition 0, offset 9: the record's value is no JSON object of {DDL}; "
        "correct 'schema', or give 'brokenRecords': 'null' to have nulls there"
    )
    with pytest.raises(Exception, match=f"^{re.escape(expected)}\n"), spark_errors():
        method.extract(kafka_context).where("id > 5").collect()
    lenient = method.model_copy(update={"broken_records": "null"})
    assert rows_of(lenient.extract(kafka_context)) == [(None, None), *events_as_rows()]


@pytest.mark.parametrize("level", ["read_committed", "read_uncommitted"])
def test_offsets_are_asked_for_as_the_step_says(
    level: str, topic: Topic, kafka: KafkaServer, with_connections: Callable[[dict[str, Any]], StepContext]
) -> None:
    """Not as the connection does, which says the other thing."""
    from confluent_kafka import Producer

    other = {"isolation.level": "read_committed" if level == "read_uncommitted" else "read_uncommitted"}
    context = with_connections({"kafka": {"default": {"bootstrapServers": kafka.bootstrap_servers, "options": other}}})
    config = {"topic": topic.name, "schema": DDL, "options": {"kafka.isolation.level": level}}
    assert FromKafka.model_validate(config).reader_options(context)["kafka.isolation.level"] == level
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, "{}", partition=0)
    assert producer.flush(30) == 0
    ends = {"startingOffsets": {topic.name: {"0": len(EVENTS) + 1}}}
    try:
        if level == "read_uncommitted":
            FromKafka.model_validate(config | ends).extract(context)
        else:
            with pytest.raises(ConfigurationError, match="is 10, but there are the offsets 0 to 9"):
                FromKafka.model_validate(config | ends).extract(context)
    finally:
        producer.abort_transaction(30)


def test_two_extracts_of_a_topic_meet(topic: Topic, kafka_context: StepContext) -> None:
    first = FromKafka.model_validate({"topic": topic.name, "schema": DDL}).extract(kafka_context)
    second = FromKafka.model_validate({"topic": topic.name, "schema": "id INT"}).extract(kafka_context)
    assert rows_of(first.join(second, "id")) == events_as_rows()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"startingOffsets": {"TOPIC": {"0": 10}}}, "partition 0 is 10, but there are the offsets 0 to 9"),
        ({"endingOffsets": {"TOPIC": {"0": 10}}}, "endingOffsets of topic .* is 10, but there are the offsets 0 to 9"),
        ({"startingOffsets": {"TOPIC": {"0": 5}}, "endingOffsets": {"TOPIC": {"0": 4}}}, "5 is after endingOffsets 4"),
        ({"startingOffsets": {"TOPIC": {"1": 5}}}, r"leaves out 0: give every partition that there is \(0\), with -1"),
        ({"startingOffsets": {"TOPIC": {"0": 5, "1": 5}}}, "has 1: give every partition"),
        ({"startingOffsets": {"TOPIC": {"0": -1}}}, "none of the newest records .* is a JSON object .* give 'schema'"),
        ({"schema": "kafka_key INT", "includeMetadata": True}, "columns of their own called kafka_key"),
        ({"topic": "no-such-topic"}, "there is no Kafka topic 'no-such-topic'"),
        ({"topic": None, "topicPattern": "no-such-.*"}, "there is no Kafka topic like 'no-such-.*'"),
    ],
)
def test_a_batch_that_does_not_fit_its_topic(
    config: dict[str, Any], message: str, topic: Topic, kafka_context: StepContext
) -> None:
    text = json.dumps({"topic": topic.name} | config).replace("TOPIC", topic.name)
    with pytest.raises(ConfigurationError, match=message):
        FromKafka.model_validate_json(text).extract(kafka_context)


# Streams


class Stream:
    """A stream into a Delta table, which is started as often as the test likes; its checkpoint stays."""

    def __init__(self, folder: Path, context: StepContext) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self.checkpoint = Checkpoint.at(str(folder / "checkpoint"), "default", context.connections)
        source = StreamSource("from_kafka", (self.checkpoint,), self.stop)
        self.context = dataclasses.replace(context, source=source)
        self.progress: list[dict[str, Any]] = []

    def write(self, frame: DataFrame) -> None:
        """Write what there is."""
        writer = frame.writeStream.format("delta").trigger(availableNow=True)
        query = writer.option("checkpointLocation", self.checkpoint.path).start(str(self.folder / "table"))
        assert query.awaitTermination(TIMEOUT)
        self.progress = [json.loads(each.json) for each in query.recentProgress]

    def run(self, method: FromKafka) -> Rows:
        """Write what there is, and return all that is in the table."""
        self.write(method.extract_stream(self.context))
        return self.rows()

    def rows(self) -> Rows:
        return rows_of(self.context.spark.read.format("delta").load(str(self.folder / "table")))

    def document(self) -> dict[str, Any]:
        found = self.checkpoint.read_document("source_from_kafka")
        assert found is not None
        return found


@pytest.fixture
def stream(tmp_path: Path, kafka_context: StepContext) -> Stream:
    return Stream(tmp_path, kafka_context)


class Waiting:
    """An extract in a thread of its own."""

    def __init__(self, method: FromKafka, context: StepContext) -> None:
        self.frame: DataFrame | None = None
        self.error: PipelineError | None = None
        self._thread = threading.Thread(target=self._run, args=(method, context), daemon=True)
        self._thread.start()

    def _run(self, method: FromKafka, context: StepContext) -> None:
        try:
            self.frame = method.extract_stream(context)
        except PipelineError as error:
            self.error = error

    def result(self) -> DataFrame:
        self._thread.join(TIMEOUT)
        assert self.error is None
        assert self.frame is not None
        return self.frame

    def failure(self) -> PipelineError:
        self._thread.join(TIMEOUT)
        assert self.error is not None
        return self.error


class Said(logging.Handler):
    """Knows when something has been logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.texts.append(record.getMessage())
            self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in each for each in self.texts), TIMEOUT), self.texts


@pytest.fixture
def said() -> Iterator[Said]:
    logger = logging.getLogger("pipeline_assets.steps.kafka_stream_start")
    handler, level = Said(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_stream_goes_on_where_it_was(topic: Topic, stream: Stream) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", "schema": DDL})
    assert stream.run(method) == events_as_rows()
    more = [{"id": 20, "kind": "buy"}, {"id": 21, "kind": "view"}]
    topic.send(more)
    topic.grow(2)
    topic.send([{"id": 30, "kind": "new partition"}], partition=1)
    assert stream.run(method) == events_as_rows([*EVENTS, *more, {"id": 30, "kind": "new partition"}])
    document = stream.document()
    assert (document["startingOffsets"], document["schema"]) == ({topic.name: {"0": 0}}, None)


def test_latest_is_where_the_first_start_was(topic: Topic, stream: Stream, said: Said) -> None:
    # Nothing but what can't tell a schema, so the stream has to wait.
    topic.delete_before(len(EVENTS))
    waiting = Waiting(FromKafka.model_validate({"topic": topic.name, "maxOffsetsPerTrigger": "3"}), stream.context)
    said.wait_for("waiting for a JSON object among its newest records in topic")
    more = [{"id": number, "kind": "late"} for number in range(20, 27)]
    topic.send(more)
    stream.write(waiting.result())
    assert stream.rows() == events_as_rows(more)
    # 7 records, 3 in each micro-batch at most.
    assert [batch["numInputRows"] for batch in stream.progress if batch["numInputRows"]] == [3, 3, 1]
    assert stream.document()["startingOffsets"] == {topic.name: {"0": 9}}
    assert len([text for text in said.texts if "waiting" in text]) == 1


def test_another_beginning_until_something_is_read(topic: Topic, stream: Stream) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "schema": DDL})
    method.extract_stream(stream.context)  # a first start that gets no further
    assert stream.document()["startingOffsets"] == {topic.name: {"0": len(EVENTS)}}
    assert stream.run(method.model_copy(update={"starting_offsets": {topic.name: {0: 4}}})) == events_as_rows(
        EVENTS[4:]
    )
    began = stream.document()
    topic.send(EVENTS[:1])
    assert stream.run(method) == events_as_rows([*EVENTS[4:], EVENTS[0]])
    assert stream.document() == began


def test_old_records_tell_the_schema_too(topic: Topic, stream: Stream) -> None:
    method = FromKafka(topic=topic.name)
    frame = method.extract_stream(stream.context)
    topic.send([{"id": 20, "kind": "new"}])
    stream.write(frame)
    assert stream.rows() == [(20, "new")]


def test_a_first_record_is_waited_for(new_topic: Callable[..., Topic], stream: Stream, said: Said) -> None:
    topic = new_topic().make(partitions=2)
    waiting = Waiting(FromKafka(topic=topic.name), stream.context)
    said.wait_for("waiting for a first record in topic")
    topic.send(["no JSON"])
    said.wait_for("waiting for a JSON object among its newest records")
    topic.send(EVENTS, partition=1)
    stream.write(waiting.result())
    assert stream.rows() == events_as_rows()
    (batch,) = [batch for batch in stream.progress if batch["numInputRows"]]
    assert batch["observedMetrics"]["kafka_from_kafka"] == {"records": 10, "dead_letters": 1}


def test_a_schema_is_inferred_once(topic: Topic, stream: Stream) -> None:
    method = FromKafka(topic=topic.name, starting_offsets="earliest")
    assert stream.run(method) == events_as_rows()
    document = stream.document()
    more = [{"id": 100 + number, "kind": "buy", "color": "red"} for number in range(1100)]
    topic.send(more)
    assert stream.run(method) == events_as_rows([*EVENTS, *more])
    assert stream.document() == document
    assert document["schema"] == "STRUCT<id: BIGINT, kind: STRING>"


def test_stopped_before_a_first_record(new_topic: Callable[..., Topic], stream: Stream, said: Said) -> None:
    topic = new_topic().make()
    method = FromKafka(topic=topic.name)
    waiting = Waiting(method, stream.context)
    said.wait_for("waiting for a first record")
    stream.stop.set()
    failure = waiting.failure()
    assert isinstance(failure, PipelineCancelledError)
    assert "stopped while waiting for a first record" in failure.message
    # The next start is not the first one any more: latest is where that was.
    stream.stop.clear()
    topic.send(EVENTS)
    assert stream.run(method) == events_as_rows()


BROKEN: dict[str, Value] = {
    "no value": None,
    "the value is empty": "",
    "not JSON": '{"id": 1',
    "JSON, but not an object": '[{"id": 1}]',
    "field 'id' is not INT: 'x'": {"id": "x", "kind": "buy"},
}


@pytest.mark.parametrize("inferred", [False, True])
def test_broken_records_are_dead_letters(inferred: bool, new_topic: Callable[..., Topic], stream: Stream) -> None:
    topic = new_topic().make(partitions=2)
    topic.send(EVENTS)
    schema = {} if inferred else {"schema": DDL}
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", **schema})
    frame = method.extract_stream(stream.context)
    topic.send(BROKEN.values(), partition=1)
    topic.send(EVENTS[:2], partition=1)
    stream.write(frame)
    assert stream.rows() == events_as_rows([*EVENTS, *EVENTS[:2]])
    (batch,) = [batch for batch in stream.progress if batch["numInputRows"]]
    assert batch["observedMetrics"]["kafka_from_kafka"] == {"records": 16, "dead_letters": 5}
    end = {topic.name: {0: 9, 1: 7}}
    letters = method.dead_letters(stream.context, {topic.name: {0: 0, 1: 0}}, end)
    assert letters is not None
    found = letters.orderBy("offset").collect()
    integer = "BIGINT" if inferred else "INT"
    assert [(row["reason"], row["value_text"]) for row in found] == [
        (reason.replace("INT", integer), json.dumps(value) if isinstance(value, dict) else value)
        for reason, value in BROKEN.items()
    ]
    assert [(row["topic"], row["partition"], row["offset"], bytes(row["key"])) for row in found] == [
        (topic.name, 1, offset, str(value["id"] if isinstance(value, dict) else offset).encode())
        for offset, value in enumerate(BROKEN.values())
    ]
    # A part of the range; a partition that the start does not know; nothing at all.
    for start, stop, offsets in (
        ({topic.name: {0: 0, 1: 1}}, {topic.name: {0: 9, 1: 3}}, [1, 2]),
        ({topic.name: {0: 9}}, {topic.name: {0: 9, 1: 2}}, [0, 1]),
        ({topic.name: {0: -2, 1: -2}}, {topic.name: {0: 9, 1: 1}}, [0]),
    ):
        part = method.dead_letters(stream.context, start, stop)
        assert part is not None
        assert sorted(row["offset"] for row in part.collect()) == offsets
    assert method.dead_letters(stream.context, end, end) is None


@pytest.mark.parametrize(
    ("config", "values", "expected"),
    [
        ({"format": "text"}, ["a", None], [(None,), ("a",)]),
        ({"format": "raw"}, [b"a", None], [(None,), (b"a",)]),
        ({"format": "avro", "avroSchema": AVRO}, [avro_of(EVENTS[0]), None, b"\x02\x7f"], events_as_rows(EVENTS[:1])),
    ],
    ids=["text", "raw", "avro"],
)
def test_streams_of_other_formats(
    config: dict[str, Any], values: list[Value], expected: Rows, new_topic: Callable[..., Topic], stream: Stream
) -> None:
    topic = new_topic().make()
    topic.send(values)
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", **config})
    assert stream.run(method) == expected
    (batch,) = [batch for batch in stream.progress if batch["numInputRows"]]
    broken = len(values) - len(expected)
    assert batch["observedMetrics"]["kafka_from_kafka"] == {"records": len(values), "dead_letters": broken}
    letters = method.dead_letters(stream.context, {}, {topic.name: {0: len(values)}})
    assert (0 if letters is None else letters.count()) == broken
    assert (letters is None) == (not method.can_break)


def test_several_topics(new_topic: Callable[..., Topic], stream: Stream) -> None:
    first = new_topic().make()
    second = new_topic(first.name + "-more").make(partitions=2)
    first.send(EVENTS[:4])
    second.send(EVENTS[4:6])
    offsets = {first.name: {"0": 1}, second.name: {"0": -2, "1": -1}}
    method = FromKafka.model_validate(
        {"topics": [first.name, second.name], "startingOffsets": offsets, "schema": DDL, "includeMetadata": True}
    )
    frame = method.extract_stream(stream.context)
    second.send(EVENTS[6:], partition=1)
    stream.write(frame)
    where = {event["id"]: (first.name, 0, offset) for offset, event in enumerate(EVENTS[:4])}
    where |= {event["id"]: (second.name, 0, offset) for offset, event in enumerate(EVENTS[4:6])}
    where |= {event["id"]: (second.name, 1, offset) for offset, event in enumerate(EVENTS[6:])}
    rows = in_order((row[0], int(row[2]), *row[3:6]) for row in stream.rows())
    assert rows == in_order((number, number, *place) for number, place in where.items() if number > 1)


def test_topics_by_pattern(new_topic: Callable[..., Topic], stream: Stream) -> None:
    first = new_topic().make()
    first.send(EVENTS[:4])
    method = FromKafka.model_validate(
        {"topicPattern": first.name + "(-.)?", "startingOffsets": "earliest", "schema": DDL}
    )
    assert stream.run(method) == events_as_rows(EVENTS[:4])
    new_topic(first.name + "-b").make().send(EVENTS[4:])
    new_topic(first.name + "-not").make().send(EVENTS)
    assert stream.run(method) == events_as_rows()
    assert set(stream.document()["topicIds"]) == {first.name, first.name + "-b"}
    new_topic(first.name + "-b").make()
    with pytest.raises(PipelineExecutionError, match=f"^topic '{first.name}-b' is not that of"):
        stream.run(method)


def test_a_missing_topic_fails(stream: Stream) -> None:
    with pytest.raises(ConfigurationError, match="there is no Kafka topic 'no-such-topic'"):
        FromKafka(topic="no-such-topic").extract_stream(stream.context)
    assert stream.checkpoint.read_document("source_from_kafka") is None


@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_missing_topic_is_waited_for(
    by_pattern: bool, new_topic: Callable[..., Topic], stream: Stream, said: Said
) -> None:
    there, missing = new_topic().make(), new_topic()
    there.send(EVENTS[:2])
    which = {"topicPattern": missing.name} if by_pattern else {"topics": [there.name, missing.name]}
    method = FromKafka.model_validate({**which, "missingTopic": "wait", "schema": DDL})
    waiting = Waiting(method, stream.context)
    said.wait_for(f"waiting for Kafka {'a topic like' if by_pattern else 'topic'} '{missing.name}' to be there")
    there.send(EVENTS[2:4])
    missing.make().send(EVENTS[4:])
    stream.write(waiting.result())
    # latest was resolved before the wait; a topic that was not there then had nothing before.
    assert stream.rows() == events_as_rows(EVENTS[4:] if by_pattern else EVENTS[2:])
    assert len(said.texts) == 1


def test_stopped_before_a_topic(new_topic: Callable[..., Topic], stream: Stream, said: Said) -> None:
    waiting = Waiting(FromKafka(topic=new_topic().name, missing_topic="wait"), stream.context)
    said.wait_for("waiting for Kafka topic")
    stream.stop.set()
    assert isinstance(waiting.failure(), PipelineCancelledError)


@pytest.mark.parametrize("by_pattern", [False, True])
def test_what_comes_between_two_starts_that_wait_is_read(
    by_pattern: bool, new_topic: Callable[..., Topic], stream: Stream, said: Said
) -> None:
    there, missing = new_topic().make(), new_topic()
    there.send(EVENTS[:2])
    which = {"topicPattern": missing.name} if by_pattern else {"topics": [there.name, missing.name]}
    method = FromKafka.model_validate({**which, "missingTopic": "wait"})
    waiting = Waiting(method, stream.context)
    said.wait_for("waiting for Kafka")
    stream.stop.set()
    assert isinstance(waiting.failure(), PipelineCancelledError)
    there.send(EVENTS[2:4])
    missing.make(partitions=2).send(EVENTS[4:6])
    missing.send(EVENTS[6:], partition=1)
    stream.stop.clear()
    assert stream.run(method) == events_as_rows(EVENTS[4:] if by_pattern else EVENTS[2:])


def test_a_topic_that_was_made_again_while_another_is_waited_for(
    new_topic: Callable[..., Topic], stream: Stream, said: Said
) -> None:
    there, missing = new_topic().make(), new_topic()
    there.send(EVENTS[:2])
    method = FromKafka.model_validate({"topics": [there.name, missing.name], "missingTopic": "wait", "schema": DDL})
    waiting = Waiting(method, stream.context)
    said.wait_for("waiting for Kafka")
    there.make().send(EVENTS)
    missing.make()
    assert f"topic '{there.name}' is not that of the stream's last start" in waiting.failure().message


def test_lost_records_are_an_error(topic: Topic, stream: Stream) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", "schema": DDL})
    frame = method.extract_stream(stream.context)
    topic.delete_before(3)
    with pytest.raises(PipelineExecutionError, match="Some data may have been lost"), spark_errors():
        stream.write(frame)
    assert stream.run(method.model_copy(update={"fail_on_data_loss": False})) == events_as_rows(EVENTS[3:])


def test_a_query_that_joins_later_begins_with_what_is_left(topic: Topic, stream: Stream, said: Said) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", "schema": DDL})
    stream.run(method)
    topic.delete_before(3)
    later = Stream(stream.folder / "later", stream.context)
    source = StreamSource("from_kafka", (stream.checkpoint, later.checkpoint), stream.stop)
    both = dataclasses.replace(stream.context, source=source)
    frame = method.extract_stream(both)
    topic.send(EVENTS[:1])
    stream.write(frame)
    later.write(frame)
    assert stream.rows() == events_as_rows([*EVENTS, EVENTS[0]])
    assert later.rows() == events_as_rows([*EVENTS[3:], EVENTS[0]])
    later.write(method.extract_stream(both))
    (told,) = [text for text in said.texts if later.checkpoint.path in text]
    assert told.endswith(f'begins at {{"{topic.name}":{{"0":3}}}}')


def test_a_topic_that_was_made_again(topic: Topic, stream: Stream, said: Said) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", "schema": DDL})
    assert stream.run(method) == events_as_rows()
    # With more records than before, so that no offset has gone backwards.
    more = [{"id": 100 + number, "kind": "new"} for number in range(12)]
    topic.make().send(more)
    with pytest.raises(PipelineExecutionError, match="deleted and made again, .* failOnDataLoss false, to go on at"):
        stream.run(method)
    assert stream.rows() == events_as_rows()
    found = stream.run(method.model_copy(update={"fail_on_data_loss": False}))
    assert found == events_as_rows([*EVENTS, *more[len(EVENTS) :]])
    assert len([text for text in said.texts if "made again" in text]) == 1
    assert stream.run(method) == found


def test_a_document_of_before_there_were_ids(topic: Topic, stream: Stream) -> None:
    method = FromKafka.model_validate({"topic": topic.name, "startingOffsets": "earliest", "schema": DDL})
    method.extract_stream(stream.context)
    document = stream.document()
    older = {key: document[key] for key in ("startingOffsets", "schema")}
    stream.checkpoint.write_document("source_from_kafka", older)
    method.extract_stream(stream.context)
    assert stream.document() == {**older, "topicIds": document["topicIds"]}


# Configs


def test_as_the_design_has_it() -> None:
    method = FromKafka.model_validate(
        {"topic": "events", "startingOffsets": "latest", "maxOffsetsPerTrigger": "1000000"}
    )
    assert method.max_offsets_per_trigger == 1_000_000
    assert [source.parts for source in method.sources()] == [("default", "events")]


@pytest.mark.parametrize(
    ("config", "identity", "parts"),
    [
        ({"topic": "a"}, {"topic": "a", "connection": "default"}, ["a"]),
        ({"topics": ["b", "a"]}, {"topics": "a,b", "connection": "default"}, ["b", "a"]),
        ({"topicPattern": "a.*"}, {"topicPattern": "a.*", "connection": "default"}, ["a.*"]),
    ],
)
def test_identity_and_sources(config: dict[str, Any], identity: dict[str, str], parts: list[str]) -> None:
    method = FromKafka.model_validate(config)
    assert method.stream_identity() == identity
    assert [source.parts for source in method.sources()] == [("default", part) for part in parts]
    assert [method.subscribes(topic) for topic in ("a", "xa")] == [True, False]


@pytest.mark.parametrize("said_by", ["connection", "step"])
def test_how_long_a_fetch_waits_can_be_said(said_by: str, with_connections: Any) -> None:
    wait = {"kafka.fetch.max.wait.ms": "700"}
    of_connection = {"fetch.max.wait.ms": "700"} if said_by == "connection" else {}
    inside = with_connections({"kafka": {"default": {"bootstrapServers": "a:1", "options": of_connection}}})
    found = FromKafka(topics=("a",), options=wait if said_by == "step" else {}).reader_options(inside)
    assert found["kafka.fetch.max.wait.ms"] == "700"


def test_options_and_secrets(monkeypatch: pytest.MonkeyPatch, with_connections: Any) -> None:
    monkeypatch.setenv("JAAS", "secret jaas")
    options = {"security.protocol": "SASL_SSL", "kafka.sasl.jaas.config": "env:JAAS"}
    inside = with_connections({"kafka": {"default": {"bootstrapServers": "a:1", "options": options}}})
    found = FromKafka(topics=("a", "b"), options={"minPartitions": 4}).reader_options(inside)
    assert found == {
        "minPartitions": "4",
        "failOnDataLoss": "true",
        "kafka.fetch.max.wait.ms": "50",
        "kafka.bootstrap.servers": "a:1",
        "kafka.security.protocol": "SASL_SSL",
        "kafka.sasl.jaas.config": "secret jaas",
    }


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, None),
        ({"deadLetterPath": "/data/broken", "missingTopic": "wait"}, None),
        ({"brokenRecords": "fail"}, "'brokenRecords' is for batch pipelines: leave it out"),
        ({"endingOffsets": "latest"}, "'endingOffsets' is for batch pipelines: leave it out"),
    ],
)
def test_in_a_streaming_pipeline(config: dict[str, Any], problem: str | None) -> None:
    traits = StreamTraits(inputs=(), watermarked=False, output_modes=frozenset({"append"}))
    found = FromKafka.model_validate({"topic": "a", **config}).stream_problem(traits)
    assert (found or "").startswith(problem or "")
    assert (found is None) == (problem is None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "exactly one of 'topic', 'topics' and 'topicPattern'"),
        ({"topic": "a", "topics": ["b"]}, "exactly one of"),
        ({"topic": "a", "startingOffsets": "newest"}, "Input should be 'earliest' or 'latest'"),
        ({"topic": "a", "startingOffsets": {"b": {"0": 1}}}, "startingOffsets names topic 'b', which is not read"),
        ({"topic": "a", "startingOffsets": {"a": {"0": -3}}}, "partition 0 is -3: expected an offset, or -1 for the"),
        ({"topic": "a", "startingOffsets": {"a": {"x": 1}}}, "valid integer"),
        ({"topic": "a", "endingOffsets": "earliest"}, "Input should be 'latest'"),
        ({"topic": "a", "endingOffsets": {"a": {"0": -2}}}, "partition 0 is -2: expected an offset, or -1 for the lat"),
        ({"topic": "a", "maxOffsetsPerTrigger": 0}, "greater than 0"),
        ({"topic": "a", "maxOffsetsPerTrigger": "many"}, "maxOffsetsPerTrigger\n.*valid integer"),
        ({"topic": "a", "format": "text", "schema": "id INT"}, "'schema' describes JSON"),
        ({"topic": "a", "format": "avro"}, "format 'avro' and 'avroSchema' go together"),
        ({"topic": "a", "avroSchema": AVRO}, "format 'avro' and 'avroSchema' go together"),
        ({"topic": "a", "format": "avro", "avroSchema": "{"}, "avroSchema is not JSON"),
        ({"topic": "a", "options": {"kafka.sasl.jaas.config": "x"}}, "looks like a secret"),
        ({"topic": "a", "options": {"kafka.client.id": "env:HOME"}}, "references stand in connections.json alone"),
        ({"topic": "a", "options": {"failondataloss": False}}, "'failondataloss': use the key 'failOnDataLoss'"),
        ({"topic": "a", "options": {"kafka.bootstrap.servers": "b:1"}}, "servers': use the key 'connection'"),
        (
            {"topic": "a", "options": {"IncludeHeaders": True}},
            "'IncludeHeaders': no column is made of the records' hea",
        ),
        ({"topic": "a", "options": {"startingTimestamp": 1}}, "'startingTimestamp': use the key 'startingOffsets'"),
    ],
)
def test_invalid_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FromKafka.model_validate(config)
