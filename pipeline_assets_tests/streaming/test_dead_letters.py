"""Which records are looked at for broken ones, and up to where that is noted. No Spark: what it writes is put there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.errors import CredentialUnavailableError, PipelineExecutionError
from pipeline_assets.run_scope import RunScope
from pipeline_assets.settings import Settings
from pipeline_assets.steps import kafka_topics
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.file_systems import LocalFolder
from pipeline_assets.streaming import dead_letters
from pipeline_assets.streaming.dead_letters import DeadLetters
from pipeline_assets_tests.config_documents import EVENT_STREAM
from pipeline_assets_tests.planning.bench import planned

Range = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def checkpoint(settings: Settings) -> Checkpoint:
    return Checkpoint.at(settings.resolve("/checkpoints/purchases"), "default", Connections())


@pytest.fixture
def letters(
    checkpoint: Checkpoint, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], DeadLetters]:
    """A start's dead letters, whose table nobody has made yet, of a topic in which records before 40 have gone."""
    plan = planned(tmp_path, EVENT_STREAM)
    extract, (load,) = plan.steps[0], plan.stream_loads()
    monkeypatch.setattr(dead_letters, "table_columns", lambda *_: None)
    monkeypatch.setattr(kafka_topics, "read_offsets", lambda *_, **__: {"events": {0: 40}})
    source = SimpleNamespace(step=extract.name, checkpoints=[checkpoint])
    connections: Any = SimpleNamespace(kafka=lambda _: SimpleNamespace(options={}, model_copy=lambda **_: None))
    connections.secrets = None
    context: Any = SimpleNamespace(
        settings=settings, connections=connections, spark=None, source=source, run_id="this run"
    )
    run: Any = SimpleNamespace(
        plan=plan,
        context=context,
        scope=RunScope(plan, context),
        source_context=lambda _: context,
        checkpoint=lambda _: checkpoint,
    )
    return lambda: DeadLetters(run, extract, load)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """The ranges of offsets that broken records are looked for in; there are none."""
    ranges: list[Range] = []

    def look(_method: FromKafka, _context: Any, start: dict[str, Any], end: dict[str, Any]) -> None:
        ranges.append((start, end))

    monkeypatch.setattr(FromKafka, "dead_letters", look)
    return ranges


def commit(checkpoint: Checkpoint, batch: int, end: int) -> None:
    """Write what Spark writes for a micro-batch."""
    checkpoint.folder.below("offsets").write(str(batch), f'v1\n{{}}\n{{"events":{{"0":{end}}}}}'.encode())
    checkpoint.folder.below("commits").write(str(batch), b"v1\n{}")


def test_a_start_looks_at_the_batches_that_are_left_alone(
    checkpoint: Checkpoint,
    letters: Callable[[], DeadLetters],
    looked_at: list[Range],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint.write_document("dead_letters_from_kafka", {"batch": 3, "offsets": '{"events":{"0":50}}'})
    for batch, end in ((900, 100), (901, 130), (902, 130)):
        commit(checkpoint, batch, end)
    listed: list[str] = []
    files_in = LocalFolder.files_in
    monkeypatch.setattr(LocalFolder, "files_in", lambda folder: listed.append(folder.path) or files_in(folder))
    assert letters().make_up() == 0
    assert looked_at == [
        ({"events": {0: 50}}, {"events": {0: 100}}),
        ({"events": {0: 100}}, {"events": {0: 130}}),
    ]
    assert sum(path.endswith("/offsets") for path in listed) == 2


def test_what_was_looked_at_is_noted_where_nothing_was_read(
    checkpoint: Checkpoint, letters: Callable[[], DeadLetters], looked_at: list[Range]
) -> None:
    checkpoint.write_document("dead_letters_from_kafka", {"batch": 3, "offsets": '{"events":{"0":50}}'})
    commit(checkpoint, 4, 50)
    commit(checkpoint, 5, 50)
    letters().make_up()
    note = checkpoint.read_document("dead_letters_from_kafka")
    assert note == {"batch": 5, "offsets": '{"events":{"0":50}}', "besideOthers": False}
    assert looked_at == []
    commit(checkpoint, 6, 60)
    letters().make_up()
    assert looked_at == [({"events": {0: 50}}, {"events": {0: 60}})]


def test_letters_whose_commit_can_not_be_looked_up_are_counted(
    letters: Callable[[], DeadLetters], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CredentialUnavailableError("Vault is sealed")

    found = SimpleNamespace(count=lambda: 2)
    monkeypatch.setattr(FromKafka, "dead_letters", lambda *_: found)
    monkeypatch.setattr(dead_letters, "append_once", lambda *_: None)
    monkeypatch.setattr(dead_letters, "folder_seen_from_here", refuse)
    source = {"startOffset": None, "endOffset": {"events": {"0": 60}}}
    observed = {"kafka_from_kafka": {"records": 20, "dead_letters": 2}}
    assert letters().after({"id": "query", "batchId": 0, "sources": [source], "observedMetrics": observed}) == 2


def test_a_table_that_can_not_be_looked_at(letters: Callable[[], DeadLetters], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no record is broken: whether others write to the table is noted with the first batch."""

    def refuse(*_: Any) -> None:
        raise OSError("403 Forbidden for postgresql://reader:hunter2@host/db")

    monkeypatch.setattr(dead_letters, "table_columns", refuse)
    source = {"startOffset": None, "endOffset": {"events": {"0": 60}}}
    observed = {"kafka_from_kafka": {"records": 20, "dead_letters": 0}}
    with pytest.raises(PipelineExecutionError, match="403 Forbidden") as raised:
        letters().after({"id": "query", "batchId": 0, "sources": [source], "observedMetrics": observed})
    assert str(raised.value.location) == "event-stream: step 0 (extract fromKafka)"
    assert (raised.value.config or {})["topic"] == "events"
    assert raised.value.run_id == "this run"
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"


def test_without_a_note_what_has_gone_is_not_looked_for(
    checkpoint: Checkpoint,
    letters: Callable[[], DeadLetters],
    looked_at: list[Range],
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint.write_document("source_from_kafka", {"startingOffsets": {"events": {"0": 5}}})
    commit(checkpoint, 7, 100)
    letters().make_up()
    assert looked_at == [({"events": {0: 40}}, {"events": {0: 100}})]
    assert "no longer in Kafka" in caplog.text


def test_what_has_gone_since_it_was_read_stops_no_start(
    checkpoint: Checkpoint,
    letters: Callable[[], DeadLetters],
    looked_at: list[Range],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As after a kill, and more time than the topic keeps its records."""
    monkeypatch.setattr(kafka_topics, "read_offsets", lambda *_, **__: {"events": {0: 110}})
    checkpoint.write_document("dead_letters_from_kafka", {"batch": 3, "offsets": '{"events":{"0":50}}'})
    for batch, end in ((900, 100), (901, 130), (902, 150)):
        commit(checkpoint, batch, end)
    letters().make_up()
    assert looked_at == [
        ({"events": {0: 110}}, {"events": {0: 100}}),
        ({"events": {0: 110}}, {"events": {0: 130}}),
        ({"events": {0: 130}}, {"events": {0: 150}}),
    ]
    (said,) = caplog.messages
    assert 'the records from {"events":{"0":50}} on are no longer in Kafka' in said
