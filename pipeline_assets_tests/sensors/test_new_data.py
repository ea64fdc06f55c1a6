"""Which new data sensors start a run for: in a real Kafka, and in Delta tables."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devstack.kafka import KafkaServer
from devstack.topics import new_topic
from pipeline_assets import sensors
from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.settings import Settings
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming.backlog import Backlog, read_backlog
from pipeline_assets.streaming.checkpoint_lease import Process
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.sensors.bench import Bench, connect, document

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def produce(kafka: KafkaServer) -> Callable[[str, int, int], None]:
    from confluent_kafka import Producer

    def send(topic: str, partition: int, count: int) -> None:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for number in range(count):
            producer.produce(topic, str(number), partition=partition)
        assert producer.flush(30) == 0

    return send


@pytest.fixture
def topic(kafka: KafkaServer) -> str:
    name = f"sensor-{uuid.uuid4().hex[:8]}"
    new_topic(kafka, name, 2)
    return name


@pytest.fixture
def on_data(bench: Bench, kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The sensor of a pipeline that takes what there is in a topic of two partitions, from its beginning."""

    def read_patiently(plan: PipelinePlan, settings: Settings, connections: Connections, _: float) -> Backlog:
        return read_backlog(plan, settings, connections, 20.0)

    # What is right does not depend on how busy the machine is.
    monkeypatch.setattr(sensors, "read_backlog", read_patiently)
    connect(bench, kafka.bootstrap_servers)
    write_config(bench.settings.configs, document(trigger="availableNow", topic=topic, startingOffsets="earliest"))
    return bench


def commit(bench: Bench, batch: int, *sources: str, committed: bool = True, name: str = "stream") -> None:
    """Write what Spark writes for a micro-batch."""
    folder = Path(bench.settings.resolve(f"/checkpoints/{name}"))
    for kind, lines in (("offsets", ["v1", "{}", *sources]), ("commits", ["v1", "{}"])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if kind == "offsets" or committed:
            (folder / kind / str(batch)).write_text("\n".join(lines))


def test_a_run_for_new_records_only(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    assert on_data.tick() == f"no new records: {topic}/0 at 0 of 0, {topic}/1 at 0 of 0"
    produce(topic, 1, 3)
    key = on_data.tick()
    assert re.fullmatch(r"stream/\d+/\d+/[0-9a-f]{16}", key), key
    assert on_data.tick() == key  # nothing has changed: Dagster launches it once
    commit(on_data, 0, f'{{"{topic}":{{"0":0,"1":3}}}}', committed=False)
    assert on_data.tick() == key  # planned is not processed
    commit(on_data, 0, f'{{"{topic}":{{"0":0,"1":3}}}}')
    assert on_data.tick() == f"no new records: {topic}/0 at 0 of 0, {topic}/1 at 3 of 3"
    produce(topic, 0, 2)
    assert on_data.tick() not in (key, None)


def test_a_run_for_another_checkpoint(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    """In which nothing is yet, as there was nothing in the one before: Dagster knows that one's key."""
    produce(topic, 1, 3)
    first = on_data.tick()
    config = document(trigger="availableNow", topic=topic, startingOffsets="earliest")
    config["steps"][1]["config"]["checkpointLocation"] = "/checkpoints/other"
    write_config(on_data.settings.configs, config)
    second = on_data.tick()
    assert second.startswith("stream/")
    assert second != first
    # What Spark writes at a first start, which may read nothing.
    folder = Path(on_data.settings.resolve("/checkpoints/other"))
    folder.mkdir(parents=True)
    keys = [first, second]
    for query in ("a", "b"):
        (folder / "metadata").write_text(json.dumps({"id": query}))
        keys.append(on_data.tick())
        assert on_data.tick() == keys[-1]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("looked", [True, False], ids=["at rest", "never at rest"])
def test_a_run_for_a_checkpoint_that_was_deleted(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None], looked: bool
) -> None:
    """Also where it is deleted again, and when what there is never gets read to its end."""
    produce(topic, 0, 3)
    keys = []
    for _ in range(3):
        keys.append(on_data.tick())
        on_data.executed(None, keys[-1])
        commit(on_data, 0, f'{{"{topic}":{{"0":{3 if looked else 2},"1":0}}}}')
        if looked:
            assert on_data.tick().startswith("no new records")
        else:
            keys.append(on_data.tick())
            on_data.executed(None, keys[-1])
            assert on_data.tick() == keys[-1]
        shutil.rmtree(on_data.settings.resolve("/checkpoints/stream"))
    assert all(key.startswith("stream/") for key in keys)
    assert len(set(keys)) == (3 if looked else 6)


def test_a_failed_run_for_new_records_is_tried_again(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    produce(topic, 0, 1)
    key = on_data.tick()
    on_data.executed("boom", key)
    assert "restart 1 of 2 waits until" in on_data.tick()
    on_data.ahead = 11
    second = on_data.tick()
    assert second.rpartition("/")[2] == key.rpartition("/")[2]
    assert second != key
    on_data.executed(None, second)
    commit(on_data, 0, f'{{"{topic}":{{"0":1,"1":0}}}}')
    assert on_data.tick().startswith("no new records")


def test_no_run_while_one_is_in_progress(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    produce(topic, 0, 1)
    on_data.run(process=Process(socket.gethostname(), os.getpid()))
    assert "is in progress" in on_data.tick()


def test_a_stream_from_the_latest_offsets_starts_once(on_data: Bench, topic: str) -> None:
    write_config(on_data.settings.configs, document(trigger="once", topic=topic, startingOffsets="latest"))
    assert on_data.tick().startswith("stream/")
    # Its first start keeps where it begins, and there may be no batch.
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_from_kafka", {"startingOffsets": {topic: {"0": 0, "1": 0}}})
    assert on_data.tick().startswith("no new records")


def test_another_beginning_before_anything_was_read(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    produce(topic, 0, 2)
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    asked = {"topic": topic, "connection": "default", "startingOffsets": "latest"}
    kept = {"startingOffsets": {topic: {"0": 2, "1": 0}}, "configured": asked}
    checkpoint.write_document("source_from_kafka", kept)
    assert on_data.tick().startswith("stream/")  # from the earliest
    checkpoint.write_document("source_from_kafka", {**kept, "configured": {**asked, "startingOffsets": "earliest"}})
    assert on_data.tick() == f"no new records: {topic}/0 at 2 of 2, {topic}/1 at 0 of 0"


def test_a_topic_that_ends_before_what_was_read_is_started_for(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    """It was made again: the run says so."""
    produce(topic, 0, 2)
    commit(on_data, 0, f'{{"{topic}":{{"0":3,"1":0}}}}')
    assert on_data.tick().startswith("stream/")
    produce(topic, 0, 1)
    assert on_data.tick() == f"no new records: {topic}/0 at 3 of 3, {topic}/1 at 0 of 0"


def test_starting_offsets_by_partition(on_data: Bench, topic: str, produce: Callable[[str, int, int], None]) -> None:
    produce(topic, 0, 2)
    produce(topic, 1, 2)
    starting = {topic: {"0": 2, "1": -1}}
    write_config(on_data.settings.configs, document(trigger="once", topic=topic, startingOffsets=starting))
    assert on_data.tick() == f"no new records: {topic}/0 at 2 of 2, {topic}/1 at 2 of 2"
    produce(topic, 0, 1)
    assert on_data.tick().startswith("stream/")


def test_the_load_that_is_furthest_behind_counts(
    on_data: Bench, topic: str, produce: Callable[[str, int, int], None]
) -> None:
    config = document(trigger="once", topic=topic, startingOffsets="earliest")
    config["steps"].append({
        "type": "load", "method": "toDeltaLake",
        "config": {"path": "/data/b", "checkpointLocation": "/checkpoints/b", "trigger": "availableNow"},
    })  # fmt: skip
    write_config(on_data.settings.configs, config)
    produce(topic, 0, 2)
    commit(on_data, 0, f'{{"{topic}":{{"0":2,"1":0}}}}')
    commit(on_data, 0, f'{{"{topic}":{{"0":1,"1":0}}}}', name="b")
    assert on_data.tick().startswith("stream/")
    commit(on_data, 1, f'{{"{topic}":{{"0":2,"1":0}}}}', name="b")
    assert on_data.tick().startswith("no new records")


def test_a_missing_topic_fails_the_tick_unless_it_is_waited_for(on_data: Bench) -> None:
    write_config(on_data.settings.configs, document(trigger="once", topic="not-there"))
    with pytest.raises(ConfigurationError, match="there is no Kafka topic 'not-there'"):
        on_data.tick()
    waits = document(trigger="once", topic="not-there", missingTopic="wait", startingOffsets="earliest")
    write_config(on_data.settings.configs, waits)
    assert on_data.tick() == "waiting for Kafka topic 'not-there' to be there"


@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_stream_that_waits_begins_before_its_topic(
    on_data: Bench, kafka: KafkaServer, by_pattern: bool, produce: Callable[[str, int, int], None]
) -> None:
    """So that what is in the topic when it comes is read, where the stream begins at the latest offsets."""
    name = f"later-{uuid.uuid4().hex[:8]}"
    which = {"topicPattern": name, "topic": None} if by_pattern else {"topic": name}
    write_config(on_data.settings.configs, document(trigger="once", missingTopic="wait", **which))
    assert on_data.tick().startswith("stream/")
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_from_kafka", {"startingOffsets": {}})
    awaited = f"a topic like '{name}'" if by_pattern else f"topic '{name}'"
    assert on_data.tick() == f"waiting for Kafka {awaited} to be there"
    new_topic(kafka, name, 2)
    assert on_data.tick() == f"no new records: {name}/0 at 0 of 0, {name}/1 at 0 of 0"
    produce(name, 1, 3)
    assert on_data.tick().startswith("stream/")


def test_a_stream_begins_whichever_of_its_topics_is_there(on_data: Bench, topic: str) -> None:
    awaited = {"topic": "not-there", "missingTopic": "wait", "registerAs": "awaited"}
    config = document(trigger="once", startingOffsets="earliest", **awaited)
    latest = {"topic": topic, "format": "text", "registerAs": "others"}
    config["steps"][1:1] = [
        {"type": "extract", "method": "fromKafka", "config": latest},
        {"type": "transform", "method": "union", "config": {"inputDataFrames": ["awaited", "others"]}},
    ]
    write_config(on_data.settings.configs, config)
    assert on_data.tick().startswith("stream/")
    checkpoint = Checkpoint.at(on_data.settings.resolve("/checkpoints/stream"), "default", Connections())
    checkpoint.write_document("source_others", {"startingOffsets": {topic: {"0": 0, "1": 0}}})
    assert on_data.tick() == "waiting for Kafka topic 'not-there' to be there"


def test_brokers_that_do_not_answer_are_skipped(bench: Bench) -> None:
    write_config(bench.settings.configs, document(trigger="availableNow", startingOffsets="earliest"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connect(bench, f"127.0.0.1:{port}")
        assert f"no Kafka broker at 127.0.0.1:{port} answered" in bench.tick()
    assert f"no Kafka broker at 127.0.0.1:{port} answered" in bench.tick()


def test_many_partitions_are_shortened(on_data: Bench, kafka: KafkaServer) -> None:
    name = f"wide-{uuid.uuid4().hex[:8]}"
    new_topic(kafka, name, 12)
    write_config(on_data.settings.configs, document(trigger="once", topic=name, startingOffsets="earliest"))
    said = on_data.tick()
    assert said.count(" of 0") == 8
    assert said.endswith(", and 4 more")


# New data in Delta tables, which a real Spark writes and streams.


def test_a_run_for_new_versions_of_a_table(bench: Bench, spark: SparkSession) -> None:
    config = document(trigger="availableNow")
    config["steps"][0] = {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/in"}}
    write_config(bench.settings.configs, config)
    table, checkpoint = bench.settings.resolve("/in"), bench.settings.resolve("/checkpoints/stream")

    def stream() -> None:
        changes = spark.readStream.format("delta").load(table)
        written = changes.writeStream.format("noop").option("checkpointLocation", checkpoint)
        assert written.trigger(availableNow=True).start().awaitTermination(300)

    assert "there is no Delta table at" in bench.tick()
    for _ in range(2):
        spark.range(3).write.format("delta").mode("append").save(table)
    key = bench.tick()
    assert re.fullmatch(r"stream/\d+/\d+/[0-9a-f]{16}", key)
    stream()
    assert bench.tick() == "no new records: /in version at 1 of 1"
    spark.range(3).write.format("delta").mode("append").save(table)
    second = bench.tick()
    assert second.startswith("stream/")
    assert second != key
    stream()
    assert bench.tick() == "no new records: /in version at 2 of 2"
