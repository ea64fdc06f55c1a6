"""Micro-batches into Delta tables, each of them once.

Source: https://docs.delta.io/latest/delta-streaming.html#idempotent-table-writes-in-foreachbatch
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.steps.delta_log import find_transaction
from pipeline_assets.steps.delta_merge import check_merged_columns, merge_into
from pipeline_assets.steps.delta_table import table_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from pipeline_assets.steps.checkpoint import Checkpoint
    from pipeline_assets.steps.file_systems import Folder

_APP_ID = "spark.databricks.delta.write.txnAppId"
_VERSION = "spark.databricks.delta.write.txnVersion"


def merge_app_id(checkpoint: Checkpoint) -> str:
    """Return the id under which the merges of a stream are counted: as old as the checkpoint, and gone with it."""
    document = checkpoint.read_document("merge")
    if document is None:
        document = {"txnAppId": f"pipeline-assets:{uuid.uuid4()}"}
        checkpoint.write_document("merge", document)
    return str(document["txnAppId"])


def append_once(frame: DataFrame, path: str, app_id: str, version: int) -> None:
    """Append ``frame`` to the Delta table at ``path``, unless ``app_id`` has committed ``version`` there already.

    The table gets the columns of ``frame`` that it does not have.
    """
    writer = frame.write.format("delta").mode("append").option("txnAppId", app_id).option("txnVersion", version)
    # What a stream puts aside has whatever columns the stream has at the time.
    writer.option("mergeSchema", "true").save(path)


def rows_of_append(
    spark: SparkSession, path: str, table: Folder, app_id: str, version: int, after: int
) -> DataFrame | None:
    """Return the rows that ``append_once`` has appended to the table at ``path``; None when it has not done so.

    ``after``: the table's version before.
    """
    commit = find_transaction(table, app_id, version, after)
    if commit is None:
        return None
    rows = spark.read.format("delta").option("versionAsOf", commit.version).load(path)
    files = [file.path.rpartition("/")[2] for file in commit.added]
    return rows.where(rows.metadataColumn("_metadata")["file_name"].isin(files))


@dataclass(frozen=True)
class MergeBatch:
    """For ``foreachBatch``: update the rows of the batch's keys in the table at ``path``, and add the others."""

    path: str
    keys: tuple[str, ...]
    partition_by: tuple[str, ...]
    merge_schema: bool
    app_id: str

    def __call__(self, frame: DataFrame, batch_id: int) -> None:
        spark = frame.sparkSession
        there = table_columns(spark, self.path)
        if there is None:
            writer = frame.write.format("delta").mode("append")
            if self.partition_by:
                writer = writer.partitionBy(*self.partition_by)
            writer.option("txnAppId", self.app_id).option("txnVersion", batch_id).save(self.path)
            return
        check_merged_columns(frame, there, self.path, self.keys, merge_schema=self.merge_schema)
        transaction = {_APP_ID: self.app_id, _VERSION: str(batch_id)}
        changed = merge_into(
            # A group of nulls is a group like any other.
            self.path, frame, self.keys, operator="<=>", merge_schema=self.merge_schema, conf=transaction,
        )  # fmt: skip
        if not changed:
            # Delta has this batch already and has computed nothing; the state of the stream has to be, all the same.
            frame.write.format("noop").mode("overwrite").save()
