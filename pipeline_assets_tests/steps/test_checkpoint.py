"""What is read from checkpoints that a real Spark has written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.steps.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.at(str(folder), "default", Connections())


def run_batches(spark: SparkSession, tmp_path: Path, checkpoint: Checkpoint, count: int) -> str:
    """Run ``count`` micro-batches of two sources, files and rate, and return the query's id."""
    (tmp_path / "in").mkdir(exist_ok=True)
    number = len(list((tmp_path / "in").iterdir()))
    for index in range(count):
        (tmp_path / "in" / f"{number + index}.txt").write_text("a line\n")
    files = spark.readStream.option("maxFilesPerTrigger", 1).text(str(tmp_path / "in"))
    rate = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 1).load()
    query = (
        files.unionByName(rate.selectExpr("CAST(value AS STRING) AS value"))
        .writeStream.format("noop")
        .option("checkpointLocation", checkpoint.path)
        .trigger(availableNow=True)
        .start()
    )
    assert query.awaitTermination(300)
    return str(query.id)


def test_a_checkpoint_before_its_first_batch(checkpoint: Checkpoint) -> None:
    assert checkpoint.query_id() is None
    assert checkpoint.planned_batches() == []
    assert checkpoint.committed_offsets() is None


def test_offsets_that_spark_wrote(spark: SparkSession, checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    query_id = run_batches(spark, tmp_path, checkpoint, 3)
    assert checkpoint.query_id() == query_id
    found = checkpoint.committed_offsets()
    assert found is not None
    batch, offsets = found
    assert batch == checkpoint.planned_batches()[-1]
    assert batch == max(int(path.name) for path in (folder / "offsets").glob("[0-9]*"))
    assert len(offsets) == 2
    assert json.loads(offsets[0]) == {"logOffset": 2}  # three files, one in each batch
    assert checkpoint.offsets_of(batch) == offsets


def test_numbers_are_not_compared_as_texts(spark: SparkSession, checkpoint: Checkpoint, tmp_path: Path) -> None:
    run_batches(spark, tmp_path, checkpoint, 11)
    committed = checkpoint.committed_offsets()
    assert committed is not None
    assert [checkpoint.planned_batches()[-1], committed[0]] == [10, 10]


def test_a_batch_that_was_not_committed(
    spark: SparkSession, checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    run_batches(spark, tmp_path, checkpoint, 2)
    before = checkpoint.committed_offsets()
    assert before is not None
    # As a killed query leaves it: planned, and not written.
    (folder / "commits" / str(before[0])).unlink()
    assert checkpoint.planned_batches()[-1] == before[0]
    assert checkpoint.offsets_of(before[0]) == before[1]
    committed = checkpoint.committed_offsets()
    assert committed is not None
    assert committed[0] == before[0] - 1
    assert json.loads(committed[1][0]) == {"logOffset": 0}


def test_sources_without_an_offset_and_unknown_formats(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "offsets").mkdir(parents=True)
    (folder / "offsets" / "0").write_text('v1\n{"batchWatermarkMs":0}\n-\n{"events":{"0":1}}')
    (folder / "offsets" / ".0.crc").write_text("not ours")
    assert checkpoint.planned_batches() == [0]
    assert checkpoint.offsets_of(0) == ["-", '{"events":{"0":1}}']
    (folder / "offsets" / "1").write_text("v9\n{}")
    with pytest.raises(PipelineExecutionError, match="offsets/1 is in no format that is known"):
        checkpoint.offsets_of(1)


def test_documents(checkpoint: Checkpoint) -> None:
    assert checkpoint.read_document("lease") is None
    checkpoint.remove_document("lease")
    checkpoint.write_document("lease", {"run": "a"})
    assert checkpoint.read_document("lease") == {"run": "a"}
    checkpoint.remove_document("lease")
    assert checkpoint.read_document("lease") is None


@pytest.mark.parametrize("content", [b"", b'{"id"', b"[1]", b"\xff"])
def test_files_that_were_torn_are_named(checkpoint: Checkpoint, folder: Path, content: bytes) -> None:
    """As a full disk leaves them, or a copy that was cut off."""
    (folder / "pipeline_assets").mkdir(parents=True)
    (folder / "pipeline_assets" / "merge.json").write_bytes(content)
    (folder / "metadata").write_bytes(content)
    with pytest.raises(PipelineExecutionError, match="/pipeline_assets/merge.json is not as it was written. Restore"):
        checkpoint.read_document("merge")
    with pytest.raises(PipelineExecutionError, match="/metadata is not as it was written. Restore"):
        checkpoint.query_id()
    (folder / "metadata").write_text('{"uuid": "a"}')
    with pytest.raises(PipelineExecutionError, match="/metadata is not as it was written"):
        checkpoint.query_id()


def test_a_document_is_on_disk_before_it_takes_its_place(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No power fails here: what is put on disk, with how many bytes, and when it is renamed."""
    done: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        done.append(("fsync", found.st_ino, found.st_size))

    def noted_replace(source: str, target: str) -> None:
        found = os.stat(source)
        done.append(("replace", found.st_ino, found.st_size))
        replace(source, target)

    checkpoint.write_document("lease", {"run": "a"})
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.write_document("lease", {"run": "another"})
    written = (folder / "pipeline_assets" / "lease.json").stat()
    assert written.st_size > 0
    assert done == [("fsync", written.st_ino, written.st_size), ("replace", written.st_ino, written.st_size)]
    assert [path.name for path in (folder / "pipeline_assets").iterdir()] == ["lease.json"]


def test_a_checkpoint_that_only_spark_can_see() -> None:
    with pytest.raises(ConfigurationError, match="on S3 or on a mounted file system"):
        Checkpoint.at("hdfs://host/checkpoint", "default", Connections())
