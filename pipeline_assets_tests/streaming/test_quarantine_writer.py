"""Which load's query puts rows into quarantine, after the loads have changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.settings import Settings
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.streaming.quarantine_writer import quarantine_writer
from pipeline_assets_tests.planning.bench import planned


def checkpoint(settings: Settings, name: str) -> Checkpoint:
    return Checkpoint.at(settings.resolve(f"/checkpoints/{name}"), "default", Connections())


def read(settings: Settings, name: str) -> None:
    """Have the query of a load plan its first micro-batch."""
    checkpoint(settings, name).folder.below("offsets").write("0", b"v1\n{}\n{}")


@pytest.fixture
def writer(settings: Settings, tmp_path: Path) -> Callable[..., str]:
    """The load that a start of a stream chooses, which has those of these names, in this order."""

    def choose(*names: str) -> str:
        loads = [
            {
                "type": "load",
                "method": "toDeltaLake",
                "name": name,
                "config": {"path": f"/{name}", "checkpointLocation": f"/checkpoints/{name}"},
            }
            for name in names
        ]
        config = {"columns": ["value"], "onFailure": "quarantine"}
        steps = [
            {"type": "extract", "method": "fromKafka", "config": {"topic": "events", "format": "text"}},
            {"type": "validate", "method": "notNull", "name": "good", "config": config},
            *loads,
        ]
        plan = planned(tmp_path, {"name": "stream", "mode": "streaming", "steps": steps})
        run: Any = SimpleNamespace(plan=plan, checkpoint=lambda load: checkpoint(settings, load.name))
        return quarantine_writer(run, plan.steps[1], plan.stream_loads()).name

    return choose


def test_it_stays_the_same_wherever_it_stands(writer: Callable[..., str], settings: Settings) -> None:
    assert writer("one", "two") == "one"
    read(settings, "two")  # ahead of the other, which has read nothing yet
    assert writer("two", "one") == "one"
    assert writer("zero", "two", "one") == "one"


def test_without_a_note_it_is_the_first_that_has_read_anything(writer: Callable[..., str], settings: Settings) -> None:
    """As of an older version, where that was the first."""
    read(settings, "one")
    read(settings, "two")
    assert writer("zero", "one", "two") == "one"


def test_one_that_is_gone_is_told(
    writer: Callable[..., str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    writer("one", "two", "three")
    read(settings, "three")
    assert caplog.messages == []
    assert writer("two", "three") == "three"
    (said,) = caplog.messages
    assert said.startswith("stream: step 1 (validate notNull): ")
    for name in ("one", "three"):
        assert checkpoint(settings, name).path in said
    assert writer("two", "three") == "three"
    assert len(caplog.messages) == 1


def test_a_checkpoint_is_found_where_it_was_moved_to(
    writer: Callable[..., str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    writer("one", "two")
    Path(checkpoint(settings, "one").folder.path).rename(Path(checkpoint(settings, "moved").folder.path))
    assert writer("two", "moved") == "moved"
    assert caplog.messages == []
