"""Streaming pipelines on the real broker: every good record once in its table, every broken one in the dead letters.

What is expected is computed from the producer's own list.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from devstack.kafka import KafkaServer
from pipeline_assets.execution import PipelineRun
from pipeline_assets.streaming import queries
from pipeline_assets_tests.config_documents import EVENT_STREAM, transform
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.topics import Event, Topic, events, purchases

SCHEMA = "id BIGINT, event_type STRING, user_id STRING, amount DOUBLE"
COLUMNS = ["id", "event_type", "user_id", "amount"]


def from_kafka(topic: Topic, **config: Any) -> dict[str, Any]:
    config = {"topic": topic.name, "startingOffsets": "earliest", "registerAs": "events", **config}
    return {"type": "extract", "method": "fromKafka", "config": config}


def to_delta(name: str = "out", **config: Any) -> dict[str, Any]:
    config = {"path": f"/{name}", "checkpointLocation": f"/checkpoints/{name}", "trigger": "availableNow", **config}
    return {"type": "load", "method": "toDeltaLake", "name": name, "config": config}


def stream(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "stream", "mode": "streaming", "steps": list(steps)}


def frame(of: list[Event]) -> pd.DataFrame:
    return pd.DataFrame(of, columns=COLUMNS)


def root(location: Location, name: str) -> Path:
    return location.folder / "root" / name


def test_each_start_takes_what_is_new(location: Location, topic: Topic) -> None:
    sent = events(0, 100)
    topic.send(sent)
    location.write(stream(from_kafka(topic), transform("filterRows", condition="event_type = 'purchase'"), to_delta()))
    location.run("stream")
    found = rows_of(root(location, "out"))
    same_rows(found[COLUMNS], frame(purchases(sent)))
    more = events(100, 50)
    topic.send(more)
    location.run("stream")
    location.run("stream")
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(purchases(sent + more)))


def test_what_the_assets_show(location: Location, topic: Topic) -> None:
    topic.send(events(0, 40))
    location.write(stream(from_kafka(topic), to_delta()))
    result = location.run("stream")
    written = location.metadata("stream", "out")
    assert (written["rows_written"], written["table_version"]) == (40, 0)
    observations = [
        event.event_specific_data.asset_observation
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION
    ]
    told = {key: value.value for key, value in observations[-1].metadata.items()}
    assert told["end_offsets"] == {f"{topic.name}/0": 20, f"{topic.name}/1": 20}
    assert told["lag"] == 0
    view = location.metadata("stream", "events")
    assert {column.name for column in view["dagster/column_schema"].columns} == set(COLUMNS)
    source = dg.TableColumnDep(dg.AssetKey(["kafka", "default", topic.name]), "value")
    assert view["dagster/column_lineage"].deps_by_column == {name: [source] for name in COLUMNS}
    lineage = written["dagster/column_lineage"].deps_by_column
    assert lineage == {name: [dg.TableColumnDep(dg.AssetKey(["stream", "events"]), name)] for name in COLUMNS}


@pytest.mark.parametrize("schema", [SCHEMA, None])
def test_broken_records_go_to_the_dead_letters(location: Location, topic: Topic, schema: str | None) -> None:
    good = events(0, 50)
    # A mistyped field among the records that a schema is inferred from would make that column text.
    broken = ['{"id": 1, "event_type"', "no JSON", "[1]", "", *(['{"id": "one"}'] if schema else [])]
    topic.send([*good, *broken, None])
    document = stream(from_kafka(topic, **({"schema": schema} if schema else {})), to_delta())
    location.write(document)
    result = location.run("stream")
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(good))
    told = location.metadata("stream", "events_dead_letters")["dagster/column_lineage"].deps_by_column
    assert told["value_text"] == [dg.TableColumnDep(dg.AssetKey(["kafka", "default", topic.name]), "value")]
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert set(told) == set(letters.columns)
    values = [None if value is None else bytes(value).decode() for value in letters["value"]]
    assert Counter(values) == Counter([*broken, None])
    assert set(letters["topic"]) == {topic.name}
    assert letters["reason"].notna().all()
    *_, check = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["dead_letters"].value) == (False, len(broken) + 1)
    location.run("stream")
    assert len(rows_of(location.table("stream", "events_dead_letters"))) == len(broken) + 1


def test_dead_letters_of_batches_that_spark_tells_no_more_of(
    location: Location, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    news = queries._Watched.news

    def last_alone(watched: queries._Watched) -> Iterator[queries.BatchProgress]:
        return iter(()) if watched.is_active else news(watched)

    def forgetful(run: PipelineRun) -> None:
        run.context.spark.conf.set("spark.sql.streaming.numRecentProgressUpdates", "2")  # keeps one

    monkeypatch.setattr(queries._Watched, "news", last_alone)
    monkeypatch.setattr(queries, "_fit_state_to_machine", forgetful)
    broken = ["no JSON", "[1]", '{"id": "one"}', "{", "[2]", "{{"]
    topic.send([*broken, *events(0, 2)])
    location.write(stream(from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=2), to_delta()))
    result = location.run("stream")
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert Counter(bytes(value).decode() for value in letters["value"]) == Counter(broken)
    *_, check = result.get_asset_check_evaluations()
    assert check.metadata["dead_letters"].value == len(broken)
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(events(0, 2)))


def test_dead_letters_of_a_batch_that_a_crash_came_after(location: Location, topic: Topic) -> None:
    """As when the process is killed between the commit of a batch and the writing of its dead letters."""
    topic.send([*events(0, 10), "broken"])
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    location.run("stream")
    # Back to before anyone had looked.
    own = root(location, "checkpoints/out") / "pipeline_assets"
    (own / "dead_letters_events.json").unlink()
    table = location.table("stream", "events_dead_letters")
    for file in sorted(table.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    result = location.run("stream")
    assert [bytes(value) for value in rows_of(table)["value"]] == [b"broken"]
    *_, check = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["dead_letters"].value) == (False, 1)
    told = [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]
    assert told.count("events_dead_letters") == 1


def test_update_mode_merges_by_keys(location: Location, topic: Topic) -> None:
    counts = transform("aggregateData", groupBy=["user_id"], aggregations={"n": "count(*)"})
    document = stream(from_kafka(topic, schema=SCHEMA), counts, to_delta(outputMode="update", mergeKeys=["user_id"]))
    location.write(document)
    sent: list[Event] = []
    for first in (0, 30, 60):
        more = [*events(first, 30), {"id": first, "event_type": "view", "user_id": None, "amount": 0.0}]
        topic.send(more)
        sent += more
        location.run("stream")
        expected = frame(sent).groupby("user_id", as_index=False, dropna=False).size()
        found = rows_of(root(location, "out"))
        assert dict(zip(found["user_id"], found["n"], strict=True)) == dict(
            zip(expected["user_id"].replace({float("nan"): None}), expected["size"], strict=True)
        )


@pytest.mark.parametrize("config", [{"outputMode": "update", "mergeKeys": ["event_type"]}, {"outputMode": "complete"}])
def test_a_batch_that_is_repeated_changes_nothing(config: dict[str, Any], location: Location, topic: Topic) -> None:
    """As when the process is killed after Delta's commit and before Spark's note that the batch is done."""
    sums = transform("aggregateData", groupBy=["event_type"], aggregations={"n": "count(*)"})
    location.write(stream(from_kafka(topic, schema=SCHEMA), sums, to_delta(**config)))
    topic.send(events(0, 20))
    location.run("stream")
    before = len(list((root(location, "out") / "_delta_log").glob("*.json")))
    commits = root(location, "checkpoints/out") / "commits"
    newest = max((path for path in commits.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    newest.unlink()
    newest.with_name(f".{newest.name}.crc").unlink()
    location.run("stream")
    assert len(list((root(location, "out") / "_delta_log").glob("*.json"))) == before
    topic.send(events(20, 20))
    location.run("stream")
    found = rows_of(root(location, "out"))
    assert dict(zip(found["event_type"], found["n"], strict=True)) == {"purchase": 20, "view": 10, "cart": 10}


def test_complete_mode_writes_the_whole_result(location: Location, topic: Topic) -> None:
    counts = transform("aggregateData", groupBy=["event_type"], aggregations={"n": "count(*)"})
    location.write(stream(from_kafka(topic, schema=SCHEMA), counts, to_delta(outputMode="complete")))
    for first in (0, 40):
        topic.send(events(first, 40))
        location.run("stream")
    found = rows_of(root(location, "out"))
    assert dict(zip(found["event_type"], found["n"], strict=True)) == {"purchase": 40, "view": 20, "cart": 20}


def test_a_stream_joined_with_a_table(location: Location, topic: Topic) -> None:
    users = location.folder / "users.csv"
    users.write_text("user_id,name\n" + "".join(f"u{number},name {number}\n" for number in range(3)))
    topic.send(events(0, 28))
    location.write(
        stream(
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{users}", "registerAs": "users"}},
            from_kafka(topic, schema=SCHEMA),
            transform("joinDataFrames", inputDataFrames=["events", "users"], keys=["user_id"]),
            to_delta(),
        )
    )
    location.run("stream")
    known = frame(events(0, 28)).merge(
        pd.DataFrame([(f"u{n}", f"name {n}") for n in range(3)], columns=["user_id", "name"])
    )
    same_rows(rows_of(root(location, "out"))[[*COLUMNS, "name"]], known)


def test_several_sinks_and_a_table_that_is_followed(location: Location, topic: Topic) -> None:
    topic.send(events(0, 40))
    location.write(
        stream(
            from_kafka(topic, schema=SCHEMA),
            to_delta("all"),
            transform("filterRows", condition="amount >= 5", registerAs="big"),
            to_delta("big_ones"),
        ),
        {
            "name": "copy",
            "mode": "streaming",
            "steps": [{"type": "extract", "method": "fromDeltaLake", "config": {"path": "/all"}}, to_delta("copied")],
        },
    )
    location.run("stream")
    location.run("copy")
    topic.send(events(40, 10))
    location.run("stream")
    location.run("copy")
    sent = events(0, 50)
    same_rows(rows_of(root(location, "all"))[COLUMNS], frame(sent))
    same_rows(rows_of(root(location, "big_ones"))[COLUMNS], frame([event for event in sent if event["amount"] >= 5]))
    same_rows(rows_of(root(location, "copied"))[COLUMNS], frame(sent))


def test_no_row_of_a_table_is_late_at_the_start(location: Location) -> None:
    """Its newest row is in the oldest file, as after a compaction, of so many that Delta would make three micro-batches
    of them: Spark drops late rows from the second one after the newest row on.
    """
    old, new = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    table_of_files(root(location, "many"), [new, *[old] * 2000])
    location.write(
        stream(
            {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/many"}},
            transform("withWatermark", eventTime="at", delay="1 hour"),
            transform("dropDuplicatesWithinWatermark", columns=["id"]),
            to_delta(),
        )
    )
    location.run("stream")
    assert sorted(rows_of(root(location, "out"))["id"]) == list(range(2001))


def table_of_files(table: Path, times: Sequence[datetime]) -> None:
    """Make a Delta table with a file for each of ``times``, the first one the oldest, that has one row."""
    (table / "_delta_log").mkdir(parents=True)
    fields = [
        {"name": name, "type": kind, "nullable": True, "metadata": {}}
        for name, kind in (("id", "long"), ("at", "timestamp"))
    ]
    actions: list[dict[str, Any]] = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": str(uuid.uuid4()),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [],
                "configuration": {},
            }
        },
    ]
    for number, at in enumerate(times):
        file = table / f"{number}.parquet"
        pq.write_table(pa.table({"id": [number], "at": pa.array([at], pa.timestamp("us", "UTC"))}), file)
        added = {"path": file.name, "partitionValues": {}, "size": file.stat().st_size, "dataChange": True}
        actions.append({"add": {**added, "modificationTime": number}})
    commit = "".join(f"{json.dumps(action)}\n" for action in actions)
    (table / "_delta_log" / f"{0:020}.json").write_text(commit)


def test_loads_that_change_places(location: Location, topic: Topic) -> None:
    """The columns that were inferred, and up to where the dead letters are written, stay what they were."""
    one, two = to_delta("one"), to_delta("two")
    location.write(stream(from_kafka(topic), one, two))
    topic.send([*events(0, 20), "broken"])
    location.run("stream")
    location.write(stream(from_kafka(topic), two, one))
    topic.send([*({**event, "more": 1} for event in events(20, 20)), "broken too"])
    location.run("stream")
    letters = [bytes(value) for value in rows_of(location.table("stream", "events_dead_letters"))["value"]]
    assert sorted(letters) == [b"broken", b"broken too"]
    location.write(stream(from_kafka(topic), two))
    topic.send([{**event, "more": 1} for event in events(40, 10)])
    location.run("stream")
    for name, count in (("one", 40), ("two", 50)):
        found = rows_of(root(location, name))
        assert set(found.columns) == set(COLUMNS)
        same_rows(found[COLUMNS], frame(events(0, count)))


@pytest.mark.parametrize("change", ["counting load removed", "other checkpoint", "extract renamed"])
def test_dead_letters_are_written_once_whoever_counts_them(change: str, location: Location, topic: Topic) -> None:
    own = {"deadLetterPath": "/letters"} if change == "extract renamed" else {}
    extract = from_kafka(topic, schema=SCHEMA, **own)
    location.write(stream(extract, to_delta("one"), to_delta("two")))
    topic.send([*events(0, 20), "broken"])
    location.run("stream")
    match change:
        case "counting load removed":
            location.write(stream(extract, to_delta("two")))
        case "other checkpoint":
            location.write(stream(extract, to_delta("three", checkpointLocation="/checkpoints/three")))
        case _:
            extract["config"]["registerAs"] = "renamed"
            location.write(stream(extract, to_delta("one"), to_delta("two")))
    for number, broken in enumerate(("broken too", "and another"), 1):
        topic.send([*events(20 * number, 20), broken])
        location.run("stream")
    table = root(location, "letters") if own else location.table("stream", "events_dead_letters")
    letters = [bytes(value) for value in rows_of(table)["value"]]
    assert sorted(letters) == [b"and another", b"broken", b"broken too"]


def test_another_load_counts_dead_letters_when_the_first_records_have_gone(location: Location, topic: Topic) -> None:
    extract = from_kafka(topic, schema=SCHEMA)
    location.write(stream(extract, to_delta("one"), to_delta("two")))
    topic.send([*events(0, 20), "broken"])
    location.run("stream")
    topic.delete_before(5)
    location.write(stream(extract, to_delta("two")))
    topic.send([*events(20, 20), "broken too"])
    location.run("stream")
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert sorted(bytes(value) for value in letters["value"]) == [b"broken", b"broken too"]


def test_a_change_that_the_checkpoint_carries(location: Location, topic: Topic) -> None:
    kept = transform("filterRows", condition="event_type = 'purchase'")
    location.write(stream(from_kafka(topic, schema=SCHEMA), kept, to_delta()))
    topic.send(events(0, 20))
    location.run("stream")
    other = transform("filterRows", condition="event_type = 'view'")
    location.write(stream(from_kafka(topic, schema=SCHEMA), other, to_delta(path="/other")))
    topic.send(events(20, 20))
    location.run("stream")
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(purchases(events(0, 20))))
    views = [event for event in events(20, 20) if event["event_type"] == "view"]
    same_rows(rows_of(root(location, "other"))[COLUMNS], frame(views))


def test_changes_that_no_checkpoint_carries(location: Location, topic: Topic, kafka: KafkaServer) -> None:
    counts = transform("aggregateData", groupBy=["user_id"], aggregations={"n": "count(*)"})
    merged = to_delta(outputMode="update", mergeKeys=["user_id"])
    location.write(stream(from_kafka(topic, schema=SCHEMA), counts, merged))
    topic.send(events(0, 10))
    location.run("stream")
    other = Topic(kafka).make()
    by_kind = transform("aggregateData", groupBy=["event_type"], aggregations={"n": "count(*)"})
    for document, said in (
        (stream(from_kafka(other, schema=SCHEMA), counts, merged), f'it reads fromKafka {{"topic": "{other.name}"'),
        (stream(from_kafka(topic, schema=SCHEMA), by_kind, merged), "it keeps state for aggregateData"),
    ):
        location.write(document)
        result = location.run("stream", fail=True)
        assert said in failure_text(result)
        assert "give a new checkpointLocation" in failure_text(result)
    other.delete()


def test_a_start_that_has_read_nothing_decides_nothing(location: Location, topic: Topic, kafka: KafkaServer) -> None:
    """Until there is a micro-batch, the beginning and the topic can be corrected in the same checkpoint."""
    topic.send(sent := events(0, 20))
    broken = transform("filterRows", condition="no_such_column > 1")
    other = Topic(kafka).make()
    for wrong in (from_kafka(other, schema=SCHEMA), from_kafka(topic, schema=SCHEMA, startingOffsets="latest")):
        location.write(stream(wrong, broken, to_delta()))
        assert "no_such_column" in failure_text(location.run("stream", fail=True))
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    location.run("stream")
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(sent))
    other.delete()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT * FROM events ORDER BY id", "Sorting is not supported on streaming DataFrames"),
        ("SELECT count(*) AS n FROM events", "streaming aggregations without watermark"),
        ("SELECT idd FROM events", "did you mean 'id'"),
    ],
)
def test_what_spark_does_not_do_is_found_before_a_query_starts(
    query: str, said: str, location: Location, topic: Topic
) -> None:
    location.write(
        stream(from_kafka(topic, schema=SCHEMA), to_delta("first"), transform("sql", query=query), to_delta("second"))
    )
    result = location.run("stream", fail=True)
    assert said in failure_text(result)
    assert "stream: step 2" in failure_text(result) or "stream: step 3" in failure_text(result)
    assert not (root(location, "checkpoints/first") / "offsets").exists()


def test_one_query_fails_and_the_others_stop(location: Location, topic: Topic) -> None:
    from pyspark.sql import SparkSession

    topic.send(events(0, 20))
    broken = transform("withColumns", columns={"id": "CAST(raise_error(concat('bad row ', id)) AS BIGINT)"})
    loads = to_delta("fine", trigger="1 second"), to_delta(trigger="1 second")
    location.write(stream(from_kafka(topic, schema=SCHEMA), loads[0], broken, loads[1]))
    result = location.run("stream", fail=True)
    text = failure_text(result)
    assert re.search(r"stream: step 3 \(load toDeltaLake\): the streaming query ended: .*bad row \d", text)
    assert "query stream/out, id " in text
    assert "last progress: " in text
    session = SparkSession.getActiveSession()
    assert session is not None
    assert session.streams.active == []


def test_event_stream_takes_its_schema_from_the_topic(location: Location, topic: Topic) -> None:
    """The reference config as written, but for its topic's name and its trigger."""
    document = json.loads(json.dumps(EVENT_STREAM).replace('"events"', f'"{topic.name}"'))
    document["steps"][2]["config"]["trigger"] = "availableNow"
    document["steps"][0]["config"]["startingOffsets"] = "latest"
    topic.send(events(0, 12))
    location.write(document)
    location.run("event_stream")
    assert delta_files(root(location, "data/purchases")) == []
    topic.send(events(12, 12))
    location.run("event_stream")
    same_rows(rows_of(root(location, "data/purchases"))[COLUMNS], frame(purchases(events(12, 12))))


@pytest.mark.parametrize(("where", "starts"), [("connect", 2), ("cluster", 1)])
def test_on_a_server(where: str, starts: int, location: Location, topic: Topic, request: pytest.FixtureRequest) -> None:
    """The same pipeline, with dead letters and a merge, on Spark Connect, where it is started again, and a cluster."""
    if where == "connect":
        address = {"SPARK_REMOTE": request.getfixturevalue("spark_connect_server").remote}
    else:
        address = {"SPARK_MASTER": request.getfixturevalue("spark_cluster").master}
    counts = transform("aggregateData", groupBy=["user_id"], aggregations={"n": "count(*)"})
    merged = to_delta("counts", outputMode="update", mergeKeys=["user_id"])
    # For two small workers: Delta reads a table's state in 50 tasks, and Spark keeps its own in 200 partitions.
    few = {"spark.databricks.delta.snapshotPartitions": "2", "spark.sql.shuffle.partitions": "2"}
    location.write({**stream(from_kafka(topic), to_delta(), counts, merged), "sparkConf": few})
    sent: list[Event] = []
    for number in range(starts):
        more = events(len(sent), 60)
        topic.send([*more, f"broken {number}"])
        sent += more
        run = JobProcess("stream", {**location.environment, **address}, location.folder / f"run{number}.log")
        try:
            assert run.end(300) == 0, run.output
        finally:
            run.kill_all()
    same_rows(rows_of(root(location, "out"))[COLUMNS], frame(sent))
    found = rows_of(root(location, "counts"))
    assert dict(zip(found["user_id"], found["n"], strict=True)) == Counter(event["user_id"] for event in sent)
    letters = rows_of(location.table("stream", "events_dead_letters"))
    assert sorted(bytes(value) for value in letters["value"]) == [b"broken 0", b"broken 1"][:starts]
