"""Load into files: Spark writes beside the target, the finished files are moved into place."""

from __future__ import annotations

import logging
import re
import uuid
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import PipelineError, PipelineExecutionError, RetryableError
from pipeline_assets.partitions import PARTITION_KEY_COLUMN
from pipeline_assets.spark.failures import explained_by
from pipeline_assets.steps.base import Dataset, LoadMethod, LoadResult, StepContext, Transaction
from pipeline_assets.steps.columns import ColumnName, clustered, require_columns
from pipeline_assets.steps.counted_rows import CountedRows
from pipeline_assets.steps.file_systems import Folder, open_folder
from pipeline_assets.steps.partition_rows import check_own_key, holding, row_outside
from pipeline_assets.steps.path_checks import check_s3_or_local
from pipeline_assets.steps.paths import (
    OptionValue,
    check_options,
    files_dataset,
    open_for_spark,
    option_texts_with,
)
from pipeline_assets.steps.text_formats import TIME_FORMATS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_log = logging.getLogger(__name__)
# What Spark escapes in the values of partition folders.
_ESCAPED = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Files of finished tasks need not be moved once more by the job: nobody reads here before it is done.
_COMMITTER: dict[str, OptionValue] = {"mapreduce.fileoutputcommitter.algorithm.version": "2"}
# Spark by itself cuts off white space where it writes, and puts a backslash before quotes.
_DEFAULTS: dict[str, dict[str, OptionValue]] = {
    "csv": {
        "header": True,
        "escape": '"',
        "ignoreLeadingWhiteSpace": False,
        "ignoreTrailingWhiteSpace": False,
        **TIME_FORMATS,
    },
    "json": {**TIME_FORMATS},
}


class ToS3(LoadMethod):
    """Writes files into a folder, on S3 or a local one.

    Spark writes to a hidden folder `_staging_...` in it. Only when all files are there are they moved into place, one
    by one, and then, for overwrite, the old ones are deleted. A job that fails leaves the folder's files as they
    were. The moving itself is not atomic, since S3 has no such thing: readers may see some of the new files, or new
    and old ones, for a moment; and a process that is killed just then leaves them so, until the step is run again.
    What is appended is known by the UUID in the files' names: a step that is tried again, by `retry` or in a run from
    the failure of that one, replaces the files that an earlier try has left. Each file is complete whenever it is seen.
    On S3 a file above 5 GB is copied by way of the run's own process, which takes its time, and one above 100 GB can't
    be: `numFiles` makes more and smaller ones. Of a copy that fails, readers may see the beginning until it is deleted.
    For atomic tables there is toDeltaLake.

    In a partitioned run whose path does not contain `${partition}`, files go to `partition_key=<key>/` below the path.
    All modes but errorIfExists then replace the files of that folder. In a path with `${partition}` no partition's
    folder may lie in that of another.
    """

    method = "toS3"
    kinds = frozenset({"spark", "s3"})
    behavior_version = "3"

    path: Annotated[str, AfterValidator(check_s3_or_local)]
    """The folder to write to, e.g. `s3a://data/report`, or a local path."""
    format: Literal["parquet", "json", "csv"] = "parquet"
    """Format of the files. CSV files get a header, and keep the spaces around values; a value with quotes, commas or
    line breaks stands in quotes, and each quote in it stands there twice (to read values with line breaks back, give
    `fromS3` the option `multiLine`); times are written to the microsecond there and in JSON; unless `options` say
    otherwise."""
    mode: Literal["append", "overwrite", "errorIfExists"] = "append"
    """append adds files; overwrite replaces the folder's files; errorIfExists fails when there are any."""
    partition_by: tuple[ColumnName, ...] = ()
    """Columns whose values become folders, as in `day=2024-05-01/`. Readers tell their types from these names (the text
    `007` is read as the number 7): where the files are read, name these columns in `schema`, too."""
    num_files: int | None = Field(default=None, gt=0)
    """At most how many files (in each folder of `partitionBy`); as many as Spark has partitions when left out."""
    options: Annotated[dict[str, OptionValue], AfterValidator(check_options)] = {}
    """Options of Spark's writer for the format, e.g. `compression`."""
    connection: str = "default"
    """S3 connection (from connections.json) for a path on S3."""

    @model_validator(mode="after")
    def _folders_differ(self) -> Self:
        folded = [name.casefold() for name in self.partition_by]
        if len(set(folded)) < len(folded):
            raise ValueError("'partitionBy' names a column twice")
        return self

    @property
    def partition_columns(self) -> tuple[str, ...]:
        return self.partition_by

    def sinks(self) -> tuple[Dataset, ...]:
        return (files_dataset(self.path),)

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        partition = context.partition
        own = () if partition is None or partition.column is None else (partition.column,)
        require_columns((*self.partition_by, *own), self.input_data_frame or "input", frame)
        if self._subfolder(context):
            check_own_key(frame, "or put ${partition} into 'path'")

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        self.check_schema(frame, context)
        partition = context.partition
        if partition is not None and partition.column is not None:
            partition = partition.of(dict(frame.dtypes))
            frame = holding(frame, partition.predicate)
        (path,) = open_for_spark([self.path], self.connection, context)
        root = open_folder(path, self.connection, context.connections)
        subfolder = self._subfolder(context)
        target = root.below(subfolder)
        there = _visible(target.names())
        own_id = _file_id(context.transaction)
        earlier = [name for name in there if own_id is not None and own_id in name.rpartition("/")[2]]
        if len(there) > len(earlier) and self.mode == "errorIfExists":
            raise PipelineExecutionError(
                f"{target.path} holds {len(there)} files already: mode 'errorIfExists' leaves them as they are"
            )
        is_new = not root.exists()
        staging = f"_staging_{uuid.uuid4().hex}"
        try:
            with explained_by(lambda cause: row_outside(cause, partition)):
                rows = self._write(frame, f"{path.rstrip('/')}/{staging}", clusters=context.optimize)
            new = _visible(root.below(staging).names())
            if rows != 0 and not new:
                raise _unseen(rows, path)
            names = {name: _named_after(own_id, name) for name in new}
            target.take(root.below(staging), names, new)
        finally:
            _clean(root, staging, is_new=is_new)
        replaces_all = self.mode == "overwrite" or (self.mode == "append" and partition is not None)
        old = there if replaces_all else earlier
        target.remove([name for name in old if name not in names.values()])
        return LoadResult(
            uri=f"{path.rstrip('/')}/{subfolder}".rstrip("/"),
            rows=rows,
            metrics={"numFiles": len(new), "numOutputBytes": sum(new.values())},
        )

    def _subfolder(self, context: StepContext) -> str:
        """Return the folder of the run's partition below the path; none when the path is that of one partition."""
        partition = context.partition
        if partition is None or "path" in context.by_partition:
            return ""
        escaped = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", partition.key)
        return f"{PARTITION_KEY_COLUMN}={escaped}"

    def _write(self, frame: DataFrame, path: str, *, clusters: bool) -> int | None:
        if self.num_files is not None:
            frame = frame.repartition(self.num_files)
        elif clusters:
            frame = clustered(frame, self.partition_by)
        count = CountedRows()
        writer = count.on(frame).write.format(self.format).mode("error")
        writer = writer.options(**option_texts_with(_COMMITTER | _DEFAULTS.get(self.format, {}), self.options))
        if self.partition_by:
            writer = writer.partitionBy(*self.partition_by)
        writer.save(path)
        return count.get()


def _file_id(transaction: Transaction | None) -> str | None:
    """Return the UUID in the names of the files that ``transaction`` writes, at each of its tries."""
    return None if transaction is None else str(uuid.uuid5(uuid.NAMESPACE_URL, transaction.first_id))


def _named_after(own_id: str | None, name: str) -> str:
    """Return what the file that Spark has called ``name``, by a UUID of its job's, is to be called."""
    if own_id is None:
        return name
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{_UUID.sub(own_id, file)}"


def _unseen(rows: int | None, path: str) -> PipelineExecutionError:
    """Return the error for ``rows``, None when Spark does not tell how many, of which readers see no file."""
    problem = (
        "no file of them is there for readers: does a column of 'partitionBy' begin with a dot, or is the path another "
        "place for Spark than for this process? No file was moved or deleted"
    )
    if rows is None:
        told = f"Spark does not tell how many rows it has written below {path}, and {problem}"
        return RetryableError(told, kind="unavailable")
    return PipelineExecutionError(f"Spark has written {rows} rows below {path}, and {problem}")


def _clean(root: Folder, staging: str, *, is_new: bool) -> None:
    """Remove the staging folder, and the folder that it was made in when nothing else is there."""
    try:
        root.below(staging).remove_all()
        if is_new and not root.names():
            root.remove_all()
    except PipelineError as error:
        # What ended the load matters more, or it is done: readers don't see the folder.
        _log.warning("%s/%s could not be removed: %s", root.path, staging, error.message)


def _visible(names: dict[str, int]) -> dict[str, int]:
    """Return the files that readers see, as Spark does: what begins with an underscore may be a column's folder.

    Source: ``shouldFilterOutPathName`` in Spark's core/src/main/scala/org/apache/spark/util/HadoopFSUtils.scala
    """
    return {name: size for name, size in names.items() if not any(map(_is_hidden, name.split("/")))}


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or (part.startswith("_") and "=" not in part)
