"""Checkpoint and table of a stream, backed up and restored as docs/operations.md says, and what else goes wrong."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.test_stream_faults import continuous, finish, written
from pipeline_assets_tests.integration.test_streams import SCHEMA, from_kafka, root, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events


def ids_at(table: Path) -> Counter[int]:
    return Counter(map(int, rows_of(table)["id"])) if delta_files(table) else Counter()


def letters_at(table: Path) -> Counter[str]:
    return Counter(bytes(value).decode() for value in rows_of(table)["value"])


def test_restored_into_another_place(
    location: Location, topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: Any
) -> None:
    """Stopped, copied, gone on, and started again from the copy: what came after the copy is read anew, once."""
    document = continuous(topic)
    location.write(document)
    broken = [f"broken {number}" for number in range(20)]
    topic.send([*broken[:10], *events(0, 1000)])
    (home := tmp_path / "dagster_home").mkdir()
    environment = {**location.environment, "DAGSTER_HOME": str(home), "SPARK_MASTER": "local[2]"}
    run = JobProcess("stream", environment, tmp_path / "run.log")
    try:
        run.wait_until(lambda: written(location) >= 200)
        for statement in ("OPTIMIZE", "VACUUM"):  # maintenance does not mind that the stream runs
            spark.sql(f"{statement} delta.`{root(location, 'out')}`")
        run.signal(signal.SIGTERM)
        run.end()
    finally:
        run.kill_all()
    assert "RUN_CANCELED" in run.output
    copied = len(ids_at(root(location, "out")))
    restored = tmp_path / "restored"
    for name in ("root", "warehouse"):
        shutil.copytree(location.folder / name, restored / name)
    topic.send([*events(1000, 500), *broken[10:]])
    finish(location, document)
    assert ids_at(root(location, "out")) == Counter(range(1500))
    monkeypatch.setenv("PIPELINE_ASSETS_PATH_PREFIX", str(restored / "root"))
    monkeypatch.setenv("PIPELINE_ASSETS_WAREHOUSE", str(restored / "warehouse"))
    assert len(ids_at(restored / "root" / "out")) == copied
    finish(location, document)
    assert ids_at(restored / "root" / "out") == Counter(range(1500))
    assert letters_at(restored / "warehouse" / "stream" / "events_dead_letters") == Counter(broken)


@pytest.mark.parametrize("only", ["checkpoints", "out"])
def test_only_one_restored(only: str, location: Location, topic: Topic) -> None:
    """Records are missing: the table lacks what the checkpoint has gone by, or takes other batches for those it has."""
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    topic.send(events(0, 100))
    location.run("stream")
    saved = shutil.copytree(root(location, only), location.folder / "saved")
    topic.send(events(100, 100))
    location.run("stream")
    shutil.rmtree(root(location, only))
    shutil.copytree(saved, root(location, only))
    topic.send(events(200, 100))
    location.run("stream")
    found = ids_at(root(location, "out"))
    kept = {*range(100), *range(200, 300)} if only == "out" else {*range(200)}
    assert found == Counter(kept)


def test_delta_restore_is_not_enough(location: Location, topic: Topic, spark: Any) -> None:
    """RESTORE TABLE keeps which batches a table has: with the checkpoint of then, they are not written again."""
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta()))
    topic.send(events(0, 100))
    location.run("stream")
    saved = shutil.copytree(root(location, "checkpoints"), location.folder / "saved")
    topic.send(events(100, 100))
    location.run("stream")
    shutil.rmtree(root(location, "checkpoints"))
    shutil.copytree(saved, root(location, "checkpoints"))
    spark.sql(f"RESTORE TABLE delta.`{root(location, 'out')}` TO VERSION AS OF 0")
    location.run("stream")
    assert ids_at(root(location, "out")) == Counter(range(100))


def test_a_new_checkpoint_on_an_old_table(location: Location, topic: Topic) -> None:
    """A lost checkpoint: the stream begins anew, and its rows come a second time, unless it loads by keys."""
    topic.send(events(0, 50))
    by_keys = to_delta("merged", outputMode="update", mergeKeys=["id"])
    location.write(stream(from_kafka(topic, schema=SCHEMA), to_delta(), by_keys))
    location.run("stream")
    shutil.rmtree(root(location, "checkpoints"))
    location.run("stream")
    assert ids_at(root(location, "out")) == Counter([*range(50), *range(50)])
    assert ids_at(root(location, "merged")) == Counter(range(50))
