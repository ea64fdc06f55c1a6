"""Load into Delta Lake. PostgreSQL, Kafka and files have modules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, model_validator

from pipeline_assets.steps.base import Dataset, LoadResult, StepContext, StreamTraits
from pipeline_assets.steps.columns import ColumnName, clustered, require_columns
from pipeline_assets.steps.delta_stream import MergeBatch, merge_app_id
from pipeline_assets.steps.delta_table import DeltaMode, write_delta
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.partition_rows import with_partition
from pipeline_assets.steps.path_checks import check_folder
from pipeline_assets.steps.paths import delta_dataset, open_for_spark
from pipeline_assets.steps.sql_texts import SqlExpression
from pipeline_assets.steps.streaming_load import StreamingLoad

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameWriter
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

    from pipeline_assets.steps.checkpoint import Checkpoint

W = TypeVar("W", "DataFrameWriter", "DataStreamWriter")


class ToDeltaLake(StreamingLoad):
    """Writes a Delta table. Each write is one commit: readers see the old table or the new one.

    In a partitioned run, append and overwrite replace the rows of the run's partition and leave the others alone, so
    that a run repeated gives the same table; errorIfExists fails when the partition has rows. Without a partition
    column of its own, the table gets the string column `partition_key` and is partitioned by it. merge takes rows of
    any partition, and finds those to update by `mergeKeys` in all of them.

    In a streaming pipeline each micro-batch is one commit that is made once, whatever fails: Delta keeps the number of
    the last one. With `mergeKeys` a micro-batch updates the rows of its keys and adds the others, as outputMode
    `update` needs it; nulls in keys are then equal.
    """

    method = "toDeltaLake"
    kinds = frozenset({"spark", "deltalake"})

    path: Annotated[str, AfterValidator(check_folder)]
    """Where the table is: a local path, or `s3a://bucket/key`. It is created when it is missing."""
    mode: DeltaMode = "append"
    """append adds rows; overwrite replaces the table; errorIfExists fails when there is one; merge updates the rows
    whose `mergeKeys` are in the table already and adds the others. merge takes columns of the table's types, and
    numbers that those hold as they are: cast others by withColumns before."""
    merge_keys: tuple[ColumnName, ...] = ()
    """Columns by which merge finds rows. A null never equals anything, so a row with a null in one is always added; so
    is one with an empty text in a column of `partitionBy`, which Delta stores as null.
    Give each key once, by dropDuplicates before: MERGE fails when several rows have a key that the table has, and adds
    all of them when it has not."""
    replace_where: SqlExpression | None = None
    """With overwrite: SQL condition of the rows to replace. The new rows must meet it."""
    partition_by: tuple[ColumnName, ...] = ()
    """Columns that a new table is partitioned by."""
    partition_overwrite_mode: Literal["static", "dynamic"] = "static"
    """With overwrite: dynamic replaces only those partitions of the table that the new rows are in. It fails when the
    table has no partitions; a new table gets those of `partitionBy`."""
    merge_schema: bool = False
    """Add columns that the table does not have."""
    overwrite_schema: bool = False
    """With overwrite: give the table the DataFrame's columns and `partitionBy`."""
    connection: str = "default"
    """S3 connection (from connections.json) for a path on S3."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        merges = self.mode == "merge" or self.output_mode == "update"
        if merges and not self.merge_keys:
            what = "mode 'merge'" if self.mode == "merge" else "outputMode 'update'"
            raise ValueError(f"{what} needs 'mergeKeys', the columns by which it finds the rows to update")
        if self.merge_keys and not merges:
            raise ValueError("'mergeKeys' need mode 'merge', or outputMode 'update' in a streaming pipeline")
        needs_overwrite = {
            "replaceWhere": self.replace_where is not None,
            "overwriteSchema": self.overwrite_schema,
            "partitionOverwriteMode": self.partition_overwrite_mode == "dynamic",
        }
        for key, is_given in needs_overwrite.items():
            if is_given and self.mode != "overwrite":
                raise ValueError(f"{key!r} needs mode 'overwrite' (it is {self.mode!r})")
        exclusive = [key for key, is_given in needs_overwrite.items() if is_given]
        if len(exclusive) > 1:
            raise ValueError(f"{' and '.join(exclusive)} exclude one another: give one of them")
        return self

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if self.mode not in ("append", "merge"):
            return f"mode {self.mode!r} is for batches: a stream appends, or merges by 'mergeKeys'"
        if self.output_mode == "complete" and self.merge_keys:
            return "outputMode 'complete' writes the whole table each time: leave 'mergeKeys' out"
        return super().stream_problem(stream)

    def partition_problem(self) -> str | None:
        if self.replace_where is not None:
            key = "replaceWhere"
        elif self.partition_overwrite_mode == "dynamic":
            key = "partitionOverwriteMode"
        else:
            return None
        return (
            f"{key!r} is for pipelines without partitions: leave it out; a run for a partition replaces the rows of "
            "that one, as the column that 'partitions' names tells them"
        )

    @property
    def partition_columns(self) -> tuple[str, ...]:
        return self.partition_by

    def sinks(self) -> tuple[Dataset, ...]:
        return (delta_dataset(self.path),)

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        added = () if context.partition is None else (context.partition.partition_column,)
        for names in (self.merge_keys, self.partition_by):
            wanted = [name for name in names if name not in added]
            require_columns(wanted, self.input_data_frame or "input", frame)
        if context.partition is not None and context.partition.column is not None:
            require_columns((context.partition.column,), self.input_data_frame or "input", frame)

    def written(self, frame: DataFrame, context: StepContext) -> DataFrame:
        return with_partition(frame, context.partition)

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        self.check_schema(frame, context)
        (path,) = open_for_spark([self.path], self.connection, context)
        if context.optimize and self.mode != "merge":
            # The key of the run's partition, which is added later, is the same in all rows.
            own = {column.casefold() for column in frame.columns}
            frame = clustered(frame, [name for name in self.partition_by if name.casefold() in own])
        written = write_delta(
            frame,
            path,
            mode=self.mode,
            merge_keys=self.merge_keys,
            replace_where=self.replace_where,
            partition_by=self.partition_by,
            merge_schema=self.merge_schema,
            overwrite_schema=self.overwrite_schema,
            dynamic_partitions=self.partition_overwrite_mode == "dynamic",
            partition=context.partition,
            folder=folder_seen_from_here(path, self.connection, context.connections),
            transaction=context.transaction,
        )
        return LoadResult(uri=path, rows=written.rows, version=written.version, metrics=written.metrics)

    def transaction_app_id(self, query_id: str, checkpoint: Checkpoint) -> str | None:
        return merge_app_id(checkpoint) if self.merge_keys else query_id

    def write_batch(self, frame: DataFrame, context: StepContext, batch_id: int, app_id: str | None) -> None:
        (path,) = open_for_spark([self.path], self.connection, context)
        if self.merge_keys:
            self._merge(path, str(app_id))(frame, batch_id)
            return
        # What Delta's own sink for streams does.
        mode = "overwrite" if self.output_mode == "complete" else "append"
        writer = frame.write.format("delta").mode(mode).option("txnAppId", app_id).option("txnVersion", batch_id)
        self._laid_out(writer).save(path)

    @property
    def takes_batches(self) -> bool:
        return bool(self.merge_keys)

    def start_stream(self, frame: DataFrame, context: StepContext, query_name: str) -> StreamingQuery:
        (path,) = open_for_spark([self.path], self.connection, context)
        writer = self.writer(frame, context, query_name)
        if self.merge_keys:
            app_id = merge_app_id(self.checkpoint(context.settings, context.connections))
            return writer.foreachBatch(self._merge(path, app_id)).start()
        return self._laid_out(writer).format("delta").start(path)

    def _laid_out(self, writer: W) -> W:
        """Return ``writer`` with what the table's columns and its partitions may become."""
        if self.merge_schema:
            writer = writer.option("mergeSchema", "true")
        return writer.partitionBy(*self.partition_by) if self.partition_by else writer

    def _merge(self, path: str, app_id: str) -> MergeBatch:
        return MergeBatch(path, self.merge_keys, self.partition_by, self.merge_schema, app_id)
