"""When a stream's topics are looked at while it runs, and what follows. No Spark, and no brokers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline_assets.connections import Connections, KafkaConnection, parse_connections
from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.settings import Settings
from pipeline_assets.spark.caching import DataFrameCache
from pipeline_assets.steps.base import StepContext
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming import topic_watch
from pipeline_assets.streaming.topic_watch import TopicWatch
from pipeline_assets_tests.config_documents import EVENT_STREAM
from pipeline_assets_tests.planning.bench import planned


class Brokers:
    """Stands for ``read_topic_ids``: answers with the ids that there are, and for a clock."""

    def __init__(self) -> None:
        self.ids: dict[str, str] | None = {"events": "first"}
        self.asked: list[tuple[str, ...]] = []
        self.pattern: str | None = None
        self.now = 100.0

    def read_topic_ids(
        self,
        connection: KafkaConnection,
        secrets: Any,
        topics: Sequence[str],
        *,
        pattern: str | None = None,
        timeout: float,
    ) -> dict[str, str]:
        assert timeout < 5
        self.pattern = pattern
        self.asked.append((connection.options.get("ssl.key.password", ""), *topics))
        if self.ids is None:
            raise PipelineExecutionError("no Kafka broker answered")
        return self.ids

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    brokers = Brokers()
    monkeypatch.setattr(topic_watch, "read_topic_ids", brokers.read_topic_ids)
    monkeypatch.setattr(topic_watch, "time", brokers)
    return brokers


@pytest.fixture
def watch_of(tmp_path: Path, brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TopicWatch]:
    """Return what watches a stream of the topic ``events`` whose start has kept a ``document``."""
    monkeypatch.setenv("TEST_KEY_PASSWORD", "a-password")

    def build(document: dict[str, Any], **config: Any) -> TopicWatch:
        pipeline = copy.deepcopy(EVENT_STREAM)
        pipeline["steps"][0]["config"] |= config
        pipeline["steps"][2]["config"]["checkpointLocation"] = str(tmp_path / "checkpoint")
        kafka = {"bootstrapServers": "127.0.0.1:1", "options": {"ssl.key.password": "env:TEST_KEY_PASSWORD"}}
        context = StepContext(
            pipeline="event-stream",
            run_id="run",
            spark=cast(Any, None),
            settings=Settings(),
            connections=Connections(parse_connections({"kafka": {"default": kafka}})),
            cache=DataFrameCache(),
        )
        run = PipelineRun(planned(tmp_path, pipeline), context)
        (load,) = run.plan.stream_loads()
        run.checkpoint(load).write_document("source_from_kafka", document)
        return TopicWatch(run)

    return build


def test_a_topic_that_is_made_again_while_the_stream_runs(
    watch_of: Callable[..., TopicWatch], brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of({"topicIds": {"events": "first"}})
    watch.look()
    brokers.now += 59
    watch.look()
    assert brokers.asked == []
    for _ in range(2):
        brokers.now += 61
        watch.look()
        watch.look()
        monkeypatch.delenv("TEST_KEY_PASSWORD", raising=False)
    assert brokers.asked == [("a-password", "events")] * 2
    brokers.ids = {"events": "second"}
    watch.look()
    brokers.now += 61
    with pytest.raises(PipelineExecutionError, match="topic 'events' .* made again, .* failOnDataLoss false") as caught:
        watch.look()
    assert caught.value.location is not None
    assert caught.value.location.method == "fromKafka"


def test_a_topic_that_comes_after_the_start_is_watched_too(
    watch_of: Callable[..., TopicWatch], brokers: Brokers, tmp_path: Path
) -> None:
    document = {"topicIds": {"events": "first"}, "schema": "id INT"}
    watch = watch_of(document, topic=None, topicPattern="events.*")
    checkpoint = Checkpoint.at(str(tmp_path / "checkpoint"), "default", Connections())
    brokers.ids = {"events": "first", "events-new": "other"}
    brokers.now += 61
    watch.look()
    assert brokers.pattern == "events.*"
    assert checkpoint.read_document("source_from_kafka") == {**document, "topicIds": brokers.ids}
    brokers.ids = {"events": "first", "events-new": "made again"}
    brokers.now += 61
    with pytest.raises(PipelineExecutionError, match="topic 'events-new' is not that of the stream's last start"):
        watch.look()
    kept = checkpoint.read_document("source_from_kafka") or {}
    assert kept["topicIds"]["events-new"] == "other", "the next start says it as well"


@pytest.mark.parametrize("ids", [None, {}], ids=["no answer", "no ids"])
def test_brokers_that_do_not_tell_are_no_error(
    watch_of: Callable[..., TopicWatch],
    brokers: Brokers,
    ids: dict[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = watch_of({"topicIds": {"events": "first"}})
    brokers.ids = ids
    for password in ("a-password", "a-new-one"):
        monkeypatch.setenv("TEST_KEY_PASSWORD", password)
        brokers.now += 61
        watch.look()
    used = "a-password" if ids is not None else "a-new-one"
    assert brokers.asked == [("a-password", "events"), (used, "events")]
    told = [message for message in caplog.messages if "can't be told for now" in message]
    assert len(told) == (ids is None)


@pytest.mark.parametrize(
    ("document", "config"),
    [({"topicIds": {"events": "other"}}, {"failOnDataLoss": False}), ({"topicIds": {}}, {}), ({}, {})],
)
def test_there_is_nothing_to_ask_for(
    watch_of: Callable[..., TopicWatch], brokers: Brokers, document: dict[str, Any], config: dict[str, Any]
) -> None:
    watch = watch_of(document, **config)
    brokers.now += 61
    watch.look()
    assert brokers.asked == []
