"""Validate steps in streams on the real broker: each record in the table or in quarantine, once.

What is expected is computed from the producer's own list.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from devstack.kafka import KafkaServer
from pipeline_assets.cancellation import _SAME_REQUEST_SECONDS
from pipeline_assets.settings import Settings
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import count_rows, delta_files, rows_of
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import Start, wait_until
from pipeline_assets_tests.integration.test_streams import SCHEMA, from_kafka, root, stream, to_delta
from pipeline_assets_tests.integration.topics import Event, Topic, events


@pytest.fixture(autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Spark is for the test: in its process, or behind a Connect server."""
    kind: str = getattr(request, "param", "classic")
    if kind == "connect":
        monkeypatch.setenv("SPARK_REMOTE", request.getfixturevalue("spark_connect_server").remote)
    return kind


def validate(method: str, name: str, **config: Any) -> dict[str, Any]:
    return {"type": "validate", "method": method, "name": name, "config": config}


on_both = pytest.mark.parametrize("where", ["classic", "connect"], indirect=True)
GOOD = validate("inRange", "good", column="amount", max=20, onFailure="quarantine")


def is_good(event: Event) -> bool:
    return float(event["amount"]) <= 20


def ids(table: Path) -> Counter[int]:
    return Counter(map(int, rows_of(table)["id"])) if delta_files(table) else Counter()


def of(some: list[Event], *, good: bool) -> Counter[int]:
    return Counter(event["id"] for event in some if is_good(event) is good)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Return the last evaluation of each check."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def repeat_last_batch(location: Location) -> None:
    """As after a kill between Delta's commit and Spark's note that the batch is done."""
    commits = root(location, "checkpoints/out") / "commits"
    newest = max((path for path in commits.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    newest.unlink()
    newest.with_name(f".{newest.name}.crc").unlink()


@on_both
def test_each_record_is_loaded_or_put_aside_once(location: Location, topic: Topic) -> None:
    users = location.folder / "users.csv"
    users.write_text("user_id,name\n" + "".join(f"u{number},name {number}\n" for number in range(7)))
    location.write(
        stream(
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{users}", "registerAs": "users"}},
            from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=60),
            GOOD,
            transform("joinDataFrames", inputDataFrames=["good", "users"], keys=["user_id"], registerAs="named"),
            transform("sql", query="SELECT *, upper(name) AS loud FROM named"),
            to_delta(),
            transform("filterRows", condition="amount < 10", registerAs="small"),
            to_delta("second"),
        )
    )
    aside, sent = location.table("stream", "good_quarantine"), events(0, 100)
    topic.send([*sent, "broken"])
    result = location.run("stream")
    assert ids(root(location, "out")) == of(sent, good=True)
    assert set(rows_of(root(location, "out"))["loud"]) == {f"NAME {number}" for number in range(7)}
    assert ids(aside) == of(sent, good=False)
    found = rows_of(aside)
    assert {tuple(reasons) for reasons in found["quarantine_reasons"]} == {("amount is <= 20",)}
    assert set(found["quarantine_run_id"]) == {result.run_id}
    check = checks(result)["good"]
    assert (check.passed, check.asset_key) == (False, dg.AssetKey(["stream", "good"]))
    assert check.metadata["failed_rows"].value == sum(of(sent, good=False).values())
    assert check.metadata["total_rows"].value == 100
    assert "failed_sample" in check.metadata
    put_aside = location.metadata("stream", "good_quarantine")
    assert put_aside["quarantined_rows_of_run"] == sum(of(sent, good=False).values())
    assert len(rows_of(location.table("stream", "events_dead_letters"))) == 1
    shown = [
        event.event_specific_data.asset_observation.metadata
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION
    ]
    told = sum(metadata["failed_rows"].value["good"] for metadata in shown if "failed_rows" in metadata)
    assert told == sum(of(sent, good=False).values())

    repeat_last_batch(location)
    location.run("stream")
    more = events(60, 90)
    topic.send(more)
    location.run("stream")
    sent += more
    assert ids(root(location, "out")) == of(sent, good=True)
    assert ids(aside) == of(sent, good=False)
    assert ids(root(location, "second")) == Counter(event["id"] for event in sent if event["amount"] < 10)


def test_rows_are_put_aside_once_when_the_loads_have_changed(location: Location, topic: Topic) -> None:
    """A load that is new begins where the stream did, and one that comes first may be behind."""
    aside, sent = location.table("stream", "good_quarantine"), []
    for number, loads in enumerate((["one", "two"], ["zero", "one", "two"], ["two", "zero", "one"])):
        more = events(number * 100, 100)
        topic.send(more)
        sent += more
        location.write(stream(from_kafka(topic, schema=SCHEMA), GOOD, *(to_delta(name) for name in loads)))
        location.run("stream")
        assert ids(aside) == of(sent, good=False)
        for name in loads:
            assert ids(root(location, name)) == of(sent, good=True)


@pytest.mark.parametrize(
    ("load", "where"),
    [("toDeltaLake", "classic"), ("toKafka", "classic"), ("toDeltaLake", "connect")],
    indirect=["where"],
)
def test_a_failure_stops_the_query_before_anything_is_loaded(
    load: str, location: Location, topic: Topic, kafka: KafkaServer
) -> None:
    target = to_delta()
    if load == "toKafka":
        other = Topic(kafka).make()
        config = {"topic": other.name, "checkpointLocation": "/checkpoints/out", "trigger": "availableNow"}
        target = {"type": "load", "method": "toKafka", "name": "out", "config": config}
    rule = validate("expectations", "known", expectations={"id": "id < 15", "amount": "amount >= 0"})
    location.write(stream(from_kafka(topic, schema=SCHEMA), rule, target))
    topic.send(events(0, 10))
    location.run("stream")
    topic.send(events(10, 10))
    result = location.run("stream", fail=True)
    text = failure_text(result)
    assert "stream: step 1 (validate expectations)" in text
    assert "the data do not meet what is expected: id: id < 15 (5 of 10 do not, 50 %)" in text
    assert "id=15, event_type=cart" in text
    found = checks(result)
    assert (found["known_id"].passed, found["known_amount"].passed) == (False, True)
    assert found["known_id"].metadata["failed_rows"].value == 5

    def loaded() -> Counter[int]:
        return ids(root(location, "out")) if load == "toDeltaLake" else Counter(consumed(kafka, other.name))

    assert loaded() == Counter(range(10)), "nothing of the micro-batch is loaded"
    rule["config"]["expectations"]["id"] = "id < 1000"
    location.write(stream(from_kafka(topic, schema=SCHEMA), rule, target))
    location.run("stream")
    assert loaded() == Counter(range(20))
    # A topic tells of no commits, and of no rows.
    assert ("rows_written" in location.metadata("stream", "out")) is (load == "toDeltaLake")


def consumed(kafka: KafkaServer, topic: str) -> list[int]:
    """Return the ids of all records of a topic."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "log_level": 0})
    try:
        found: list[int] = []
        for number in range(2):
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            consumer.assign([TopicPartition(topic, number, 0)])
            for _ in range(end):
                message = consumer.poll(30)
                assert message is not None
                assert not message.error()
                found.append(int(json.loads(message.value() or b"")["id"]))
        return found
    finally:
        consumer.close()


def test_a_warning_is_told(location: Location, topic: Topic) -> None:
    rule = validate("notNull", "named", columns=["user_id"], onFailure="warn")
    location.write(stream(from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=20), rule, to_delta()))
    nameless = {"id": 50, "event_type": "view", "user_id": None, "amount": 1.0}
    topic.send([*events(0, 50), nameless, nameless | {"id": 51}])
    check = checks(location.run("stream"))["named"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (check.metadata["failed_rows"].value, check.metadata["total_rows"].value) == (2, 52)
    assert ids(root(location, "out")) == Counter(range(52))


def known_users(location: Location, *numbers: int) -> dict[str, Any]:
    """Have the table of users hold those of ``numbers``, by a batch pipeline; return the step that reads it."""
    path = location.folder / "users.csv"
    path.write_text("user_id\n" + "".join(f"u{number}\n" for number in numbers))
    write = load("toDeltaLake", path="/users", mode="overwrite")
    location.write(batch("users", extract_file("users", f"file://{path}"), write))
    location.run("users")
    config = {"path": "/users", "streaming": False, "registerAs": "users"}
    return {"type": "extract", "method": "fromDeltaLake", "config": config}


def test_what_no_row_alone_tells(location: Location, topic: Topic) -> None:
    """Each micro-batch is looked at for itself; the checks have the sums."""
    expectations = {
        "one each": {"expect": "unique", "columns": ["id"]},
        "known": {"expect": "referential", "columns": ["user_id"], "references": "users"},
        "recent": {"expect": "freshness", "column": "kafka_timestamp", "maxAge": "1 day"},
        "made today": {"expect": "freshness", "column": "made", "maxAge": "1 day"},
        "typed": {"expect": "schema", "columns": {"id": "BIGINT", "amount": "DECIMAL(10,2)"}},
    }
    users = known_users(location, *range(5))
    config = {
        "inputDataFrame": "dated",
        "expectations": expectations,
        "minRows": 30,
        "maxRows": 45,
        "onFailure": "warn",
    }
    location.write(
        stream(
            users,
            from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=50, includeMetadata=True),
            transform("withColumns", columns={"made": "timestamp_seconds(id)"}, registerAs="dated"),
            validate("expectations", "told", **config),
            to_delta(),
        )
    )
    # In turn to two partitions, of which each micro-batch takes 25 records: the first 50, the next 50, the last 20.
    sent = [*events(0, 40), *events(0, 10), *events(50, 50), *events(0, 20)]
    topic.send(sent)
    batches = [sent[:50], sent[50:100], sent[100:]]
    result = location.run("stream")
    found = checks(result)

    def told(name: str) -> tuple[bool, int, int]:
        check = found[f"told_{name}"]
        return check.passed, check.metadata["failed_rows"].value, check.metadata["total_rows"].value

    repeated = sum(len(batch) - len({event["id"] for event in batch}) for batch in batches)
    unknown = sum(event["user_id"] in ("u5", "u6") for event in sent)
    assert repeated == 10
    assert told("one_each") == (False, repeated, 120)
    assert told("known") == (False, unknown, 120)
    assert told("recent") == (True, 0, 120)
    assert told("made_today") == (False, 120, 120)
    assert told("minRows") == (False, 10, 120)
    assert told("maxRows") == (False, 5 + 5, 120)
    assert told("typed") == (False, 1, len(rows_of(root(location, "out")).columns))
    assert ids(root(location, "out")) == Counter(event["id"] for event in sent)


@on_both
def test_each_micro_batch_meets_the_table_as_it_is_then(location: Location, topic: Topic, start: Start) -> None:
    def document(trigger: str) -> dict[str, Any]:
        known = {"inputDataFrame": "events", "columns": ["user_id"], "references": "users"}
        read = from_kafka(topic, schema=SCHEMA)
        return stream(users, read, validate("referential", "known", **known), to_delta(trigger=trigger))

    def of_user(number: int) -> list[Event]:
        return [event for event in events(0, 30) if event["user_id"] == f"u{number}"]

    users = known_users(location, 0)
    location.write(document("100 milliseconds"))
    topic.send(of_user(0))
    run = start()
    run.wait_until(lambda: count_rows(root(location, "out")) >= len(of_user(0)))
    assert ids(root(location, "out")) == Counter(event["id"] for event in of_user(0))
    known_users(location, 0, 1)
    topic.send(of_user(1))
    loaded = Counter(event["id"] for event in of_user(0) + of_user(1))
    run.wait_until(lambda: count_rows(root(location, "out")) >= sum(loaded.values()))
    assert ids(root(location, "out")) == loaded
    topic.send(of_user(2))
    assert run.end() == 1
    # A micro-batch may begin before all of them have been sent.
    said = r"the data do not meet what is expected: user_id is in users \(user_id\) \((\d) of \1 do not, 100 %\)"
    assert re.search(said, run.output)
    assert ids(root(location, "out")) == loaded, "nothing of the micro-batch is loaded"
    known_users(location, 0, 1, 2)
    location.write(document("availableNow"))
    location.run("stream")
    assert ids(root(location, "out")) == loaded + Counter(event["id"] for event in of_user(2))


@pytest.mark.parametrize(
    ("where", "known"),
    [("classic", range(4)), ("classic", range(7)), ("connect", range(4))],
    indirect=["where"],
    ids=["classic-some", "classic-all", "connect-some"],
)
def test_the_same_rows_are_put_aside_when_the_table_has_changed(known: range, location: Location, topic: Topic) -> None:
    """A micro-batch that is repeated after a failure of its load meets another table of users."""

    def document(*more: dict[str, Any], name: str = "known") -> dict[str, Any]:
        expectations = {name: {"expect": "referential", "columns": ["user_id"], "references": "users"}}
        config = {"inputDataFrame": "events", "expectations": expectations}
        check = validate("expectations", "good", **config, onFailure="quarantine")
        return stream(users, from_kafka(topic, schema=SCHEMA), check, *more, to_delta())

    def of_users(some: list[Event], numbers: Iterable[int]) -> Counter[int]:
        return Counter(event["id"] for event in some if event["user_id"] in {f"u{number}" for number in numbers})

    users = known_users(location, *known)
    location.write(document(transform("filterRows", condition="raise_error('no disk') IS NULL")))
    sent, aside = events(0, 100), location.table("stream", "good_quarantine")
    topic.send(sent)
    assert "no disk" in failure_text(location.run("stream", fail=True))
    assert ids(aside) == of_users(sent, set(range(7)) - set(known))
    known_users(location, 0, 5)
    if len(known) < 7:
        location.write(document(name="renamed"))
        said = failure_text(location.run("stream", fail=True))
        assert "changed since ('known: user_id is in users (user_id)'): restore the step" in said
        assert ids(root(location, "out")) == Counter()
    location.write(document())
    check = checks(location.run("stream"))["good_known"]
    assert check.metadata["failed_rows"].value == sum(ids(aside).values())
    assert ids(aside) == of_users(sent, set(range(7)) - set(known))
    assert ids(root(location, "out")) == of_users(sent, known)
    more = events(100, 50)
    topic.send(more)
    location.run("stream")
    assert ids(aside) == of_users(sent, set(range(7)) - set(known)) + of_users(more, {1, 2, 3, 4, 6})
    assert ids(root(location, "out")) == of_users(sent, known) + of_users(more, {0, 5})


def test_a_micro_batch_without_rows_stops_nothing(location: Location, topic: Topic) -> None:
    """What is left out before the check leaves some empty, and at each start it would be the same one."""
    recent = validate("freshness", "recent", column="kafka_timestamp", maxAge="1 day")
    location.write(
        stream(
            from_kafka(topic, schema=SCHEMA, includeMetadata=True),
            transform("filterRows", condition="id >= 10"),
            recent,
            validate("rowCount", "some", min=3),
            to_delta(),
        )
    )
    topic.send(events(0, 10))
    found = checks(location.run("stream"))
    for name in ("recent", "some"):
        assert (found[name].passed, found[name].metadata["total_rows"].value) == (True, 0)
    topic.send(events(10, 5))
    location.run("stream")
    assert ids(root(location, "out")) == Counter(range(10, 15))
    topic.send(events(15, 2))
    said = failure_text(location.run("stream", fail=True))
    assert (
        "step 3 (validate rowCount): the data do not meet what is expected: there are at least 3 rows (there are 2)"
        in said
    )


@on_both
def test_update_mode(location: Location, topic: Topic) -> None:
    """The groups that are sound are merged; those that are not are put aside."""
    counts = transform("aggregateData", groupBy=["user_id"], aggregations={"n": "count(*)"})
    few = validate("inRange", "few", column="n", max=10, onFailure="quarantine")
    merged = to_delta(outputMode="update", mergeKeys=["user_id"])
    location.write(stream(from_kafka(topic, schema=SCHEMA), counts, few, merged))
    for first in (0, 70):
        topic.send(events(first, 70))
        location.run("stream")
        repeat_last_batch(location)
        location.run("stream")
    found = rows_of(root(location, "out"))
    assert dict(zip(found["user_id"], found["n"], strict=True)) == {f"u{number}": 10 for number in range(7)}
    aside = rows_of(location.table("stream", "few_quarantine"))
    assert Counter(zip(aside["user_id"], aside["n"], strict=True)) == Counter((f"u{number}", 20) for number in range(7))


@on_both
def test_killed_in_the_middle(location: Location, topic: Topic, start: Start) -> None:
    def document(trigger: str, most: int) -> dict[str, Any]:
        read = from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=most)
        return stream(
            read,
            validate("expression", "good", condition="id % 3 > 0", onFailure="quarantine"),
            to_delta(trigger=trigger),
        )

    location.write(document("100 milliseconds", 20))
    sent = events(0, 600)
    topic.send(sent)
    run = start()
    run.wait_until(lambda: count_rows(root(location, "out")) >= 25)
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    assert count_rows(root(location, "out")) < 400
    location.write(document("availableNow", 1000))
    location.run("stream")
    assert ids(root(location, "out")) == Counter(number for number in range(600) if number % 3)
    assert ids(location.table("stream", "good_quarantine")) == Counter(range(0, 600, 3))


@on_both
def test_a_stop_that_does_not_wait_for_the_micro_batch(
    where: str, location: Location, topic: Topic, start: Start
) -> None:
    """Asked for twice, a run gives up what it is checking; the next one does it again."""

    def document(milliseconds: int, trigger: str) -> dict[str, Any]:
        slow = f"id >= 0 AND reflect('java.lang.Thread', 'sleep', {milliseconds}L) IS NOT NULL"
        check = validate("expression", "good", condition=slow, onFailure="warn")
        return stream(from_kafka(topic, schema=SCHEMA), check, to_delta(trigger=trigger))

    location.write(document(60_000, "100 milliseconds"))
    topic.send(events(0, 30))
    before = batches_on_the_server() if where == "connect" else set()
    run = start()
    run.wait_until((root(location, "checkpoints/out") / "offsets" / "0").exists)
    run.signal(signal.SIGTERM)
    # The run's clock starts when it gets to look at the signal.
    threading.Event().wait(_SAME_REQUEST_SECONDS + 5)
    run.signal(signal.SIGTERM)
    run.end()
    assert "RUN_CANCELED" in run.output
    assert ids(root(location, "out")) == Counter()
    if where == "connect":
        wait_until(lambda: batches_on_the_server() <= before)
    location.write(document(0, "availableNow"))
    location.run("stream")
    assert ids(root(location, "out")) == Counter(range(30))


def batches_on_the_server() -> set[str]:
    """Return the names by which sessions of the server see a micro-batch of any run."""
    with SparkSessions(Settings.from_environment()) as sessions:
        rows = sessions.session(str(uuid.uuid4()), "views").sql("SHOW VIEWS IN global_temp").collect()
    return {str(row["viewName"]) for row in rows}
