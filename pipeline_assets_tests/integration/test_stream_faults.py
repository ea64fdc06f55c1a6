"""What happens to streams: kills, cancels, brokers and topics that go. Every record stays in its table, once."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections import Counter
from typing import Any

import dagster as dg
import pytest
from py4j.protocol import Py4JJavaError

from devstack.kafka import KafkaBroker, KafkaServer
from pipeline_assets.streaming import topic_watch
from pipeline_assets_tests.integration.delta_tables import count_rows, delta_files, rows_of
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import LIMIT, Start, wait_until
from pipeline_assets_tests.integration.test_streams import SCHEMA, from_kafka, root, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events


def ids(location: Location, name: str = "out") -> Counter[int]:
    table = root(location, name)
    if not delta_files(table):
        return Counter()
    return Counter(map(int, rows_of(table)["id"]))


def written(location: Location) -> int:
    """Return the number of rows that are in the table; for looks that are repeated, far cheaper than the rows."""
    return count_rows(root(location, "out"))


def continuous(topic: Topic, **config: Any) -> dict[str, Any]:
    """A stream in small batches, one after the other."""
    return stream(
        from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=200, **config), to_delta(trigger="100 milliseconds")
    )


def finish(location: Location, document: dict[str, Any]) -> None:
    """Take what is left in the topic by one more run, in this process."""
    document = json.loads(json.dumps(document))
    document["steps"][-1]["config"]["trigger"] = "availableNow"
    # In few batches: on a busy machine each takes seconds.
    document["steps"][0]["config"].pop("maxOffsetsPerTrigger", None)
    location.write(document)
    location.run("stream")


@pytest.mark.parametrize("victim", ["worker", "jvm"])
def test_kill_in_the_middle(victim: str, location: Location, topic: Topic, start: Start) -> None:
    document = continuous(topic)
    location.write(document)
    sent = events(0, 4000)
    broken = [f"broken {number}" for number in range(40)]
    topic.send([value for number in range(40) for value in (*sent[number * 100 : (number + 1) * 100], broken[number])])
    run = start()
    run.wait_until(lambda: written(location) >= 400)
    if victim == "worker":
        run.signal(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL
    else:
        run.kill_jvm()
        assert run.end() == 1
        assert "stream: step " in run.output
        assert "Spark's JVM is gone" in run.output
    finish(location, document)
    assert ids(location) == Counter(event["id"] for event in sent)
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert Counter(bytes(value).decode() for value in letters["value"]) == Counter(broken)


def test_twenty_cancels(location: Location, topic: Topic) -> None:
    """Each stops all queries, frees the checkpoint for the next run, and loses and doubles nothing."""
    from pyspark.sql import SparkSession

    def no_job_runs() -> bool:
        return not SparkSession.builder.getOrCreate().sparkContext.statusTracker().getActiveJobsIds()

    document = continuous(topic)
    location.write(document)
    sent: list[dict[str, Any]] = []
    for number in range(20):
        topic.send(more := events(len(sent), 50))
        sent += more
        wanted = number * 50 + 1
        killer = threading.Thread(target=_signal_when, args=(location, wanted, number), daemon=True)
        killer.start()
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            location.definitions().resolve_job_def("stream").execute_in_process(instance=location.instance)
        killer.join()
        (run,) = location.instance.get_runs(limit=1)
        assert run.status == dg.DagsterRunStatus.CANCELED
        assert SparkSession.builder.getOrCreate().streams.active == []
        wait_until(no_job_runs)
        assert not (root(location, "checkpoints/out") / "pipeline_assets" / "lease.json").exists()
    finish(location, document)
    assert ids(location) == Counter(event["id"] for event in sent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_dagster_files_an_event(location: Location, topic: Topic, number: signal.Signals) -> None:
    """Dagster then leaves the op where it has yielded, and does not come back to it."""
    from pyspark.sql import SparkSession

    location.write(continuous(topic))
    topic.send(sent := events(0, 50))
    run_id = str(uuid.uuid4())
    signalled: list[bool] = []

    def stop_at(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        written = (
            event is not None and event.is_step_materialization and event.asset_key == dg.AssetKey(["stream", "out"])
        )
        if written and not signalled:
            signalled.append(True)
            os.kill(os.getpid(), number)

    location.instance.add_event_listener(run_id, stop_at)
    job = location.definitions().resolve_job_def("stream")
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        job.execute_in_process(instance=location.instance, run_id=run_id)
    assert signalled
    assert SparkSession.builder.getOrCreate().streams.active == []
    assert not (root(location, "checkpoints/out") / "pipeline_assets" / "lease.json").exists()
    finish(location, continuous(topic))
    assert ids(location) == Counter(event["id"] for event in sent)


def _signal_when(location: Location, rows: int, number: int) -> None:
    wait_until(lambda: written(location) >= rows)
    os.kill(os.getpid(), (signal.SIGINT, signal.SIGTERM)[number % 2])


def test_a_second_run_is_refused_until_the_first_is_cancelled(location: Location, topic: Topic, start: Start) -> None:
    document = continuous(topic)
    location.write(document)
    topic.send(events(0, 1000))
    run = start()
    run.wait_until(lambda: written(location) >= 200)
    result = location.run("stream", fail=True)
    assert "is written by run " in failure_text(result)
    # By now it may have done all that there was: it is to be stopped in the midst of something.
    topic.send(events(1000, 2000))
    run.wait_until(lambda: written(location) >= 1200)
    run.signal(signal.SIGTERM)
    run.end()
    assert "RUN_CANCELED" in run.output
    assert written(location) < 3000
    finish(location, document)
    assert ids(location) == Counter(range(3000))


def test_a_broker_that_is_away_for_half_a_minute(
    location: Location, own_kafka: KafkaBroker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stays as it is, and goes on where it was."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", own_kafka.server.bootstrap_servers)
    topic = Topic(own_kafka.server).make()
    document = continuous(topic)
    location.write(document)
    topic.send(events(0, 2000))
    run = start()
    run.wait_until(lambda: written(location) >= 400)
    own_kafka.stop()
    away = threading.Event()
    away.wait(30)
    own_kafka.start()
    topic.send(events(2000, 500))
    run.wait_until(lambda: written(location) >= 2500)
    run.signal(signal.SIGTERM)
    run.end()
    finish(location, document)
    assert ids(location) == Counter(range(2500))


def test_a_topic_that_is_missing(location: Location, topic: Topic, kafka: KafkaServer) -> None:
    absent = Topic(kafka)
    location.write(stream(from_kafka(absent, schema=SCHEMA), to_delta()))
    result = location.run("stream", fail=True)
    assert "stream: step 0 (extract fromKafka)" in failure_text(result)
    assert absent.name in failure_text(result)


@pytest.mark.usefixtures("topic")  # which says where the broker is
def test_a_topic_that_is_waited_for(location: Location, kafka: KafkaServer, start: Start) -> None:
    later = Topic(kafka)
    document = continuous(later, missingTopic="wait")
    location.write(document)
    run = start()
    run.wait_until(lambda: "waiting" in run.output.lower())
    later.make().send(events(0, 30))
    run.wait_until(lambda: written(location) >= 30)
    run.signal(signal.SIGINT)
    run.end()
    assert "RUN_CANCELED" in run.output
    later.send(events(30, 30))
    finish(location, document)
    assert ids(location) == Counter(range(60))
    later.delete()


@pytest.mark.usefixtures("topic")
def test_a_topic_that_comes_between_two_runs_that_wait(location: Location, kafka: KafkaServer, start: Start) -> None:
    """Of a stream that takes what there is, from the latest offsets on: they are those of its first start."""
    later = Topic(kafka)
    location.write(stream(from_kafka(later, schema=SCHEMA, missingTopic="wait", startingOffsets="latest"), to_delta()))
    run = start()
    run.wait_until(lambda: "waiting for kafka" in run.output.lower())
    run.signal(signal.SIGINT)
    run.end()
    assert "RUN_CANCELED" in run.output
    later.make().send(events(0, 30))
    location.run("stream")
    assert ids(location) == Counter(range(30))
    later.delete()


@pytest.mark.parametrize("count", [10, 150])
def test_a_topic_that_was_made_again(location: Location, topic: Topic, count: int) -> None:
    """An error, and no silent reset; also when its offsets are beyond those that the stream has read."""
    document = stream(from_kafka(topic, schema=SCHEMA), to_delta())
    location.write(document)
    topic.send(events(0, 100))
    location.run("stream")
    topic.delete()
    topic.make().send(events(100, count))
    result = location.run("stream", fail=True)
    assert "failOnDataLoss" in failure_text(result)
    assert ids(location) == Counter(range(100))


def test_a_topic_that_is_made_again_while_the_stream_runs(
    location: Location, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two micro-batches: the next one would read on at the old offsets, which the new topic has as well."""
    monkeypatch.setattr(topic_watch, "_EVERY_SECONDS", 0.0)
    ended = threading.Event()

    def make_again() -> None:
        wait_until(lambda: written(location) == 100)
        topic.delete()
        topic.make().send(events(100, 150))
        if not ended.wait(LIMIT):
            os.kill(os.getpid(), signal.SIGINT)

    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta(trigger="12 hours")))
    topic.send(events(0, 100))
    threading.Thread(target=make_again, daemon=True).start()
    result = location.run("stream", fail=True)
    ended.set()
    assert "failOnDataLoss" in failure_text(result)
    assert ids(location) == Counter(range(100))
    assert "failOnDataLoss" in failure_text(location.run("stream", fail=True)), "the next start says so as well"


def test_a_checkpoint_that_cannot_be_written(location: Location, topic: Topic) -> None:
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    topic.send(events(0, 10))
    root(location, "").mkdir(parents=True)
    root(location, "checkpoints").write_text("not a folder")
    result = location.run("stream", fail=True)
    assert "stream: step " in failure_text(result)
    assert str(root(location, "checkpoints/out")) in failure_text(result)
    assert ids(location) == Counter()


def update_until_no_conflict(spark: Any, statement: str) -> None:
    """Run ``statement`` again for as long as the stream commits at the same time: Delta lets one of the two win."""
    for _ in range(100):
        try:
            spark.sql(statement)
            return
        except Py4JJavaError as error:
            if "DELTA_CONCURRENT_APPEND" not in str(error):
                raise
    raise AssertionError("the stream has won each time")


def test_another_writer_of_the_table(location: Location, topic: Topic, start: Start, spark: Any) -> None:
    document = continuous(topic)
    location.write(document)
    topic.send(events(0, 1000))
    run = start()
    run.wait_until(lambda: written(location) >= 200)
    table = str(root(location, "out"))
    spark.sql("SELECT -1L AS id, 'other' AS event_type, 'x' AS user_id, 0D AS amount").write.format("delta").mode(
        "append"
    ).save(table)
    update_until_no_conflict(spark, f"UPDATE delta.`{table}` SET user_id = 'changed' WHERE id = -1")
    run.wait_until(lambda: written(location) >= 1001)
    run.signal(signal.SIGTERM)
    run.end()
    finish(location, document)
    assert ids(location) == Counter([-1, *range(1000)])


def test_one_percent_broken(location: Location, topic: Topic) -> None:
    sent = events(0, 9900)
    broken = [f'{{"id": {number}, "amount": ' for number in range(100)]
    topic.send([value for number in range(100) for value in (*sent[number * 99 : (number + 1) * 99], broken[number])])
    location.write(stream(from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=1000), to_delta()))
    location.run("stream")
    assert ids(location) == Counter(range(9900))
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert Counter(bytes(value).decode() for value in letters["value"]) == Counter(broken)
    assert location.metadata("stream", "events_dead_letters")["dead_letters_of_run"] == 100
