"""Whose a checkpoint is, and what it is bound to. No Spark: what that writes is put there as it does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming.checkpoint_binding import bind
from pipeline_assets_tests.config_documents import EVENT_STREAM
from pipeline_assets_tests.planning.bench import planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.at(str(folder), "default", Connections())


def plan_a_batch(folder: Path) -> None:
    (folder / "offsets").mkdir(parents=True, exist_ok=True)
    (folder / "offsets" / "0").write_text('v1\n{}\n{"events":{"0":100}}')


def event_stream(name: str = "stream", topic: str = "events", step: str = "out") -> dict[str, Any]:
    document = copy.deepcopy(EVENT_STREAM)
    document["name"] = name
    document["steps"][0]["config"]["topic"] = topic
    document["steps"][2]["name"] = step
    return document


def start(checkpoint: Checkpoint, tmp_path: Path, document: dict[str, Any]) -> None:
    """Bind the checkpoint as a start of the pipeline does."""
    plan = planned(tmp_path, document)
    (load,) = plan.stream_loads()
    bind(checkpoint, plan, load)


def test_the_checkpoint_of_another_pipeline(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    start(checkpoint, tmp_path, event_stream("one"))
    plan_a_batch(folder)
    start(checkpoint, tmp_path, event_stream("one", step="renamed"))
    with pytest.raises(ConfigurationError, match="that of pipeline 'one', .* a checkpointLocation of its own") as told:
        start(checkpoint, tmp_path, event_stream("two"))
    start(checkpoint, tmp_path, event_stream("one"))
    # As the message says, after a rename.
    (named,) = [word for word in str(told.value).replace(":", " ").split() if word.endswith(".json")]
    Path(named).unlink()
    start(checkpoint, tmp_path, event_stream("two"))
    with pytest.raises(ConfigurationError, match="that of pipeline 'two'"):
        start(checkpoint, tmp_path, event_stream("one"))


def test_a_checkpoint_of_before_there_were_owners(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    start(checkpoint, tmp_path, event_stream("one"))
    plan_a_batch(folder)
    checkpoint.remove_document("owner")
    with pytest.raises(ConfigurationError, match="can't carry this change"):
        start(checkpoint, tmp_path, event_stream("refused", topic="others"))
    start(checkpoint, tmp_path, event_stream("two"))
    assert checkpoint.read_document("owner") == {"pipeline": "two"}


def test_a_checkpoint_that_has_read_nothing_carries_every_change(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    """As after a first start with a wrong topic, or that a later step has ended."""
    start(checkpoint, tmp_path, event_stream("one", topic="evnets"))
    # Where Spark's source has begun, to which it would keep.
    (noted := folder / "sources" / "0").mkdir(parents=True)
    (noted / "0").write_text('0v1\n{"evnets":{"0":0}}')
    (noted / ".0.crc").write_text("a sum")
    start(checkpoint, tmp_path, event_stream("two", topic="events"))
    assert list(noted.iterdir()) == []
    plan_a_batch(folder)
    (noted / "0").write_text('0v1\n{"events":{"0":0}}')
    start(checkpoint, tmp_path, event_stream("two", topic="events"))
    assert (noted / "0").exists()
    with pytest.raises(ConfigurationError, match=r'it reads fromKafka .*"evnets".* made for fromKafka .*"events"'):
        start(checkpoint, tmp_path, event_stream("two", topic="evnets"))
