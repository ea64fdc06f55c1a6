"""What a streaming pipeline may be, told from its config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.plan import Role
from pipeline_assets_tests.config_documents import EVENT_STREAM, extract_file, transform
from pipeline_assets_tests.planning.bench import issues_of, planned

EVENTS = {"type": "extract", "method": "fromKafka", "config": {"topic": "events", "registerAs": "events"}}
WATERMARK = transform("withWatermark", eventTime="at", delay="10 minutes")
CHECK = {"type": "validate", "method": "notNull", "config": {"columns": ["id"]}}
QUARANTINE = {**CHECK, "config": {"columns": ["n"], "onFailure": "quarantine"}}
COUNTS = transform("aggregateData", groupBy=["window"], aggregations={"n": "count(*)"})


def load(method: str = "toDeltaLake", **config: Any) -> dict[str, Any]:
    return {
        "type": "load",
        "method": method,
        "config": {"path": "/out", "checkpointLocation": "/checkpoints/out", **config},
    }


def from_delta(name: str, **config: Any) -> dict[str, Any]:
    return {
        "type": "extract",
        "method": "fromDeltaLake",
        "config": {"path": f"/{name}", "registerAs": name, **config},
    }


def compared(name: str, *, with_: str, **more: Any) -> dict[str, Any]:
    config = {"inputDataFrame": name, "columns": ["id"], "references": with_, **more}
    return {"type": "validate", "method": "referential", "config": config}


def stream(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "stream", "mode": "streaming", "steps": list(steps)}


def test_event_stream_as_written(tmp_path: Path) -> None:
    steps = planned(tmp_path, EVENT_STREAM).steps
    assert [step.is_stream for step in steps] == [True, True, True]
    assert [step.role for step in steps] == [Role.VIEW, Role.VIEW, Role.LOAD]


@pytest.mark.parametrize(
    ("steps", "pointer", "said"),
    [
        ((EVENTS, transform("coalesce", numPartitions=1), load()), "/steps/1", "use repartition"),
        ((EVENTS, COUNTS, load()), "/steps/1", "withWatermark"),
        ((EVENTS, COUNTS, load(outputMode="append")), "/steps/1", "withWatermark"),
        ((EVENTS, transform("cache"), load()), "/steps/1", "no data to keep in memory"),
        ((EVENTS, transform("filterRows", condition="true", cache=True), load()), "/steps/1", "has no end"),
        ((EVENTS, transform("filterRows", condition="true", materialized="table"), load()), "/steps/1", "toDeltaLake"),
        ((EVENTS, transform("dropDuplicatesWithinWatermark", columns=["id"]), load()), "/steps/1", "withWatermark"),
        ((EVENTS, transform("filterRows", condition="true")), "/steps/1", "end in a load"),
        ((EVENTS, load(), extract_file("rows", "/rows.csv")), "/steps/2", "end in a load"),
        ((EVENTS, load(checkpointLocation=None)), "/steps/1", "needs 'checkpointLocation'"),
        ((EVENTS, load(), load(path="/other")), "/steps/2", "checkpointLocation is that of step 1"),
        ((EVENTS, load(mode="overwrite")), "/steps/1", "is for batches"),
        (
            (EVENTS, load(), extract_file("rows", "/rows.csv"), load(checkpointLocation="/c")),
            "/steps/3",
            "not a stream",
        ),
        ((extract_file("rows", "/rows.csv"), load()), "/mode", "use mode 'batch'"),
        (
            (
                EVENTS,
                extract_file("rows", "/rows.csv"),
                transform("union", inputDataFrames=["events", "rows"]),
                load(),
            ),
            "/steps/2",
            "does not unite a stream",
        ),
        (
            (from_delta("users"), EVENTS, compared("events", with_="users"), load()),
            "/steps/2",
            "compares with 'users', which is a stream",
        ),
        (
            (extract_file("users", "/users.csv"), EVENTS, compared("users", with_="events"), load()),
            "/steps/2",
            "its input is not a stream",
        ),
        ((extract_file("users", "/users.csv"), EVENTS, CHECK, load()), "/steps/0", "nothing comes of it"),
        ((EVENTS, load(), extract_file("rows", "/rows.csv"), CHECK), "/steps/3", "its input is not a stream"),
        ((EVENTS, CHECK, WATERMARK, COUNTS, load()), "/steps/3", "put the validate step after this one"),
        (
            (
                EVENTS,
                CHECK,
                {"type": "extract", "method": "fromKafka", "config": {"topic": "others", "registerAs": "others"}},
                transform("union", inputDataFrames=["events", "others"]),
                load(),
            ),
            "/steps/1",
            "one of several streams that step 4 loads",
        ),
        (
            (EVENTS, CHECK, transform("withColumns", columns={"late": "at < now()"}), QUARANTINE, load()),
            "/steps/2",
            "so step 3 could put a row into quarantine and let it pass: move it before step 1",
        ),
        (
            (
                from_delta("users", streaming=False),
                EVENTS,
                compared("events", with_="users", onFailure="quarantine"),
                load(),
                load(path="/other", checkpointLocation="/checkpoints/other"),
            ),
            "/steps/2",
            "by what 'users' has, and 2 loads come after it",
        ),
        (
            (
                EVENTS,
                COUNTS,
                QUARANTINE,
                load(outputMode="complete"),
            ),
            "/steps/2",
            "outputMode 'complete'",
        ),
        (
            (EVENTS, load(), {**CHECK, "config": {"columns": ["n"], "onFailure": "quarantine"}}),
            "/steps/2",
            "end in a load",
        ),
        (
            (EVENTS, load(trigger="availableNow"), load(path="/other", checkpointLocation="/checkpoints/other")),
            "/steps",
            "give all loads one kind of trigger",
        ),
        *(
            ((EVENTS, load(checkpointLocation=inside)), "/steps/1/config/checkpointLocation", "table at /out, whose V")
            for inside in ("/out", "/out/", "/out/checkpoint", "/out/a/_checkpoint")
        ),
        (
            (from_delta("followed"), load(checkpointLocation="/followed/checkpoint")),
            "/steps/1/config/checkpointLocation",
            "table at /followed, whose VACUUM",
        ),
        (
            (
                EVENTS,
                {**QUARANTINE, "config": {**QUARANTINE["config"], "quarantinePath": "/bad"}},
                load(checkpointLocation="/bad/checkpoint"),
            ),
            "/steps/2/config/checkpointLocation",
            "table at /bad, whose VACUUM",
        ),
        (
            (EVENTS, load(), load(path="/other", checkpointLocation="/checkpoints/out/other")),
            "/steps/2/config/checkpointLocation",
            "in that of step 1",
        ),
        (
            (EVENTS, {**QUARANTINE, "config": {**QUARANTINE["config"], "quarantinePath": "/out/"}}, load()),
            "/steps/1/config/quarantinePath",
            "step 2 loads its rows there",
        ),
        (
            ({**EVENTS, "config": {**EVENTS["config"], "schema": "id INT", "deadLetterPath": "/out"}}, load()),
            "/steps/0/config/deadLetterPath",
            "step 1 loads its rows there",
        ),
        (
            (EVENTS, {"type": "load", "method": "toS3", "config": {"path": "s3a://b/k", "format": "json"}}),
            "/steps/1",
            "toS3 does not take streams",
        ),
    ],
)
def test_what_no_stream_can_do(steps: tuple[dict[str, Any], ...], pointer: str, said: str, tmp_path: Path) -> None:
    issues = issues_of(tmp_path, stream(*steps))
    assert said in issues[pointer]


def kafka(**config: Any) -> dict[str, Any]:
    return {"type": "extract", "method": "fromKafka", "config": {"format": "raw", "registerAs": "others", **config}}


UNITED = transform("union", inputDataFrames=["events", "others"])


@pytest.mark.parametrize(
    ("other", "topic", "advice"),
    [
        (kafka(topic="events"), "events", "use that DataFrame twice"),
        (kafka(topic="events", connection="us"), "events", "a pipeline of its own"),
        (kafka(topics=["others", "events"]), "events", "use that DataFrame twice"),
        (kafka(topicPattern="ev.*"), "events", "use that DataFrame twice"),
    ],
)
def test_a_load_takes_each_topic_once(other: dict[str, Any], topic: str, advice: str, tmp_path: Path) -> None:
    said = issues_of(tmp_path, stream(EVENTS, other, UNITED, load()))["/steps/1"]
    assert f"it reads {topic!r}, step 0 reads a topic of that name too, and step 3 loads both" in said
    assert advice in said


def test_a_pattern_is_read_once(tmp_path: Path) -> None:
    first = kafka(topicPattern="ev.*", registerAs="events")
    assert (
        "it reads 'ev.*'" in issues_of(tmp_path, stream(first, kafka(topicPattern="ev.*"), UNITED, load()))["/steps/1"]
    )


@pytest.mark.parametrize(
    "steps",
    [
        (EVENTS, kafka(topic="events.old"), UNITED, load()),
        (EVENTS, kafka(topicPattern="event"), UNITED, load()),
        (EVENTS, kafka(topicPattern=r"\p{Alpha}+_x"), UNITED, load()),
        (EVENTS, load(), kafka(topic="events"), load(path="/other", checkpointLocation="/checkpoints/other")),
        (EVENTS, load(checkpointLocation="/out/_checkpoint")),
        (EVENTS, load(checkpointLocation="/outer")),
        (EVENTS, load(path="s3a://b/out", checkpointLocation="/out/checkpoint")),
        (EVENTS, WATERMARK, COUNTS, load()),
        (EVENTS, COUNTS, load(outputMode="complete")),
        (EVENTS, COUNTS, load(outputMode="update", mergeKeys=["window"])),
        (EVENTS, WATERMARK, transform("dropDuplicatesWithinWatermark", columns=["id"]), load()),
        (EVENTS, transform("repartition", numPartitions=3), load()),
        (EVENTS, load(), load(path="/other", checkpointLocation="/checkpoints/other")),
        (EVENTS, CHECK, transform("withColumns", columns={"x": "1"}), load()),
        (EVENTS, COUNTS, CHECK, load(outputMode="complete")),
        (EVENTS, {"type": "validate", "method": "expectations", "config": {"minRows": 1}}, load()),
        (EVENTS, {**CHECK, "method": "unique"}, load()),
        (
            from_delta("users", streaming=False),
            transform("filterRows", condition="active", registerAs="active"),
            EVENTS,
            compared("events", with_="active"),
            load(),
        ),
        (
            from_delta("users", streaming=False),
            transform("filterRows", condition="until > now()", registerAs="current"),
            EVENTS,
            compared("events", with_="current", onFailure="quarantine"),
            load(),
        ),
        (EVENTS, transform("withColumns", columns={"late": "at < now()"}), QUARANTINE, load()),
        (EVENTS, CHECK, transform("withColumns", columns={"loaded_at": "now()"}), load()),
        (EVENTS, transform("withWatermark", eventTime="at", delay="1 week"), load(trigger="1 day")),
        (EVENTS, load(trigger="2 weeks")),
        (
            extract_file("rows", "/rows.csv"),
            transform("cache"),
            EVENTS,
            transform("joinDataFrames", inputDataFrames=["events", "rows"], keys=["id"]),
            load(),
        ),
    ],
)
def test_what_a_stream_can_do(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    assert planned(tmp_path, stream(*steps)).stream_loads()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"trigger": "continuous"}, "at-least-once"),
        ({"trigger": "continuous 1 second"}, "at-least-once"),
        ({"trigger": "5"}, "no trigger"),
        ({"trigger": "1 month"}, "no trigger"),
        ({"trigger": "often"}, "no trigger"),
        ({"outputMode": "update"}, "needs 'mergeKeys'"),
        ({"mergeKeys": ["id"]}, "outputMode 'update'"),
        ({"checkpointLocation": " "}, "is empty"),
        ({"checkpointLocation": "s3a://"}, "names no bucket"),
        ({"checkpointLocation": "/c/../out"}, "contains '..'"),
        ({"checkpointLocation": "/c/*"}, "contains a glob"),
        ({"checkpointLocation": "hdfs://host/c"}, "neither on S3 nor local"),
    ],
)
def test_streaming_keys(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert any(said in message for message in issues_of(tmp_path, stream(EVENTS, load(**config))).values())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schedule", "0 2 * * *", "its runs do not end"),
        ("retry", {"maxRetries": 3}, "use 'sensor'"),
        ("automation", "eager", "started by its sensor"),
        ("partitions", {"type": "daily", "start": "2024-01-01"}, "no partitions"),
    ],
)
def test_what_a_stream_that_stays_has_no_use_for(tmp_path: Path, key: str, value: Any, said: str) -> None:
    issues = issues_of(tmp_path, {**stream(EVENTS, load()), key: value})
    assert said in issues[f"/{key}"]
