"""Writing Delta tables: one commit each, and what that commit wrote."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, ParamSpec

from pipeline_assets.errors import ConfigurationError, PipelineError, PipelineExecutionError
from pipeline_assets.partitions import PARTITION_KEY_COLUMN, PartitionSlice
from pipeline_assets.spark.failures import Cause, causes_of, explained_by, is_spark_error, spark_failure
from pipeline_assets.steps.columns import quote
from pipeline_assets.steps.delta_log import Commit, files_written, find_commit, newest_version, rows_written
from pipeline_assets.steps.delta_merge import check_merge_keys, check_merged_columns, merge_into, not_fitting
from pipeline_assets.steps.file_systems import Folder
from pipeline_assets.steps.partition_rows import holding, row_outside, with_partition

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
    from pyspark.sql.types import StructType

    from pipeline_assets.steps.base import Transaction

_log = logging.getLogger(__name__)
P = ParamSpec("P")
DeltaMode = Literal["append", "overwrite", "errorIfExists", "merge"]
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
_MISSING = ("PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST")


@dataclass(frozen=True)
class DeltaWrite:
    """What a write did, by its own commit: rows written, the table's version then, files added, Delta's metrics.

    ``commit`` is None where the table's log can be seen by Spark alone.
    """

    rows: int
    version: int
    files: int
    metrics: Mapping[str, int | str] = field(default_factory=dict)
    commit: Commit | None = None


class _TableMadeMeanwhileError(Exception):
    """Another writer has made the table that was not there when this one began. This one has written nothing."""

    def __init__(self, conflict: Exception) -> None:
        super().__init__()
        self.conflict = conflict


def _again_once_it_is_there(write: Callable[P, DeltaWrite]) -> Callable[P, DeltaWrite]:
    """Have ``write`` try once more when another writer has made its table: the first runs of a backfill all want to."""

    @functools.wraps(write)
    def written(*args: P.args, **kwargs: P.kwargs) -> DeltaWrite:
        with suppress(_TableMadeMeanwhileError):
            return write(*args, **kwargs)
        try:
            return write(*args, **kwargs)
        except _TableMadeMeanwhileError as error:
            # It is gone again: Spark's own error says that the step may be tried again.
            raise error.conflict from None

    return written


@_again_once_it_is_there
def write_delta(
    frame: DataFrame,
    path: str,
    *,
    mode: DeltaMode,
    merge_keys: Sequence[str] = (),
    replace_where: str | None = None,
    partition_by: Sequence[str] = (),
    merge_schema: bool = False,
    overwrite_schema: bool = False,
    dynamic_partitions: bool = False,
    partition: PartitionSlice | None = None,
    folder: Folder | None = None,
    transaction: Transaction | None = None,
    mark: str | None = None,
) -> DeltaWrite:
    """Write ``frame`` to the Delta table at ``path``, creating it when it is missing.

    With ``partition``, append and overwrite replace the rows of that partition and no others; merge takes rows of any.
    The counts are those of the commit, which is found by a mark of its own, so that other writers don't confuse them.
    ``transaction``: what the write is known by; one that an earlier try has made is not made again, but that a run that
    resumes another does overwrite. ``mark``, instead of it: by what ``find_write`` finds the write later, the newest
    one of several, one of no rows too.
    """
    spark = frame.sparkSession
    there = table_columns(spark, path)
    if partition is not None:
        evolves = merge_schema or overwrite_schema
        frame, partition = _in_partition(frame, partition, there, path, merge_schema=evolves)
        if partition.column is None:
            partition_by = tuple(dict.fromkeys((PARTITION_KEY_COLUMN, *partition_by)))
    if dynamic_partitions and partition is None:
        _check_partitioned(spark, path, partition_by, exists=there is not None)
    mark, marked = _marked(mode, transaction, mark)
    with explained_by(lambda cause: _explain(cause, path, partition)):
        if transaction is not None and there is not None:
            committed = _earlier_write(spark, path, transaction, mode, folder)
            if committed is not None:
                return committed
        if mode == "merge" and there is not None:
            _merge(frame, path, there, merge_keys, merge_schema=merge_schema, mark=mark)
            return _written(spark, path, mark, folder)
        if partition is not None and mode == "errorIfExists" and there is not None:
            _refuse_rows(spark, path, partition)
        save_mode, options = _save_options(
            mode,
            partition,
            exists=there is not None,
            replace_where=replace_where,
            merge_schema=merge_schema,
            overwrite_schema=overwrite_schema,
            dynamic_partitions=dynamic_partitions,
        )
        if there is None and mode != "merge":
            frame = _held_to_condition(frame, partition, replace_where)
        writer = frame.write.format("delta").mode(save_mode).options(**marked, **options)
        if partition_by and (there is None or "overwriteSchema" in options):
            writer = writer.partitionBy(*partition_by)
        _save(writer, path, mode, partition, is_first=there is None)
        return _written(spark, path, mark, folder)


def _in_partition(
    frame: DataFrame, partition: PartitionSlice, there: StructType | None, path: str, *, merge_schema: bool
) -> tuple[DataFrame, PartitionSlice]:
    """Return ``frame`` with the column that tells its partition, and ``partition`` as that column has it.

    ``there``: the columns of the table at ``path``, where there is one.
    """
    frame = with_partition(frame, partition)
    partition = partition.of(dict(frame.dtypes))
    if there is not None:
        _check_slice_column(there.names, partition, path, merge_schema=merge_schema)
    return frame, partition


def _check_partitioned(spark: SparkSession, path: str, partition_by: Sequence[str], *, exists: bool) -> None:
    """Raise ConfigurationError when dynamic mode would find no partitions: Delta then replaces the whole table."""
    if not exists:
        if not partition_by:
            raise ConfigurationError(
                f"partitionOverwriteMode 'dynamic' needs partitions, and there is no table at {path} yet: give "
                "'partitionBy', the columns by which it is made"
            )
        return
    (detail,) = spark.sql(f"DESCRIBE DETAIL delta.{quote(path)}").select("partitionColumns").collect()
    if not detail[0]:
        raise ConfigurationError(
            f"partitionOverwriteMode 'dynamic' needs partitions, and the table at {path} has none: replace rows by "
            "'replaceWhere' instead, or write to another path with 'partitionBy'"
        )


def _marked(mode: DeltaMode, transaction: Transaction | None, mark: str | None) -> tuple[str, dict[str, str]]:
    """Return what the write is found by, and the options by which Delta has it in its commit."""
    app_id: str | None = None
    if transaction is not None:
        mark = _known_by(transaction, mode)
        app_id = mark if transaction.has_retries else None
    elif mark is not None:
        # Without one, Delta makes no commit where no row is there and none comes.
        app_id = f"{mark}:{uuid.uuid4()}"
    mark = mark or f"pipeline-assets:{uuid.uuid4()}"
    return mark, {"userMetadata": mark, **({} if app_id is None else {"txnAppId": app_id, "txnVersion": "0"})}


def _merge(
    frame: DataFrame, path: str, there: StructType, keys: Sequence[str], *, merge_schema: bool, mark: str
) -> None:
    check_merge_keys(keys, there.names, path)
    check_merged_columns(frame, there, path, keys, merge_schema=merge_schema)
    merge_into(path, frame, keys, operator="=", merge_schema=merge_schema, conf={_USER_METADATA: mark})


def _save_options(
    mode: DeltaMode,
    partition: PartitionSlice | None,
    *,
    exists: bool,
    replace_where: str | None,
    merge_schema: bool,
    overwrite_schema: bool,
    dynamic_partitions: bool,
) -> tuple[str, dict[str, str]]:
    """Return Spark's mode and Delta's options for a write that is no MERGE; ``exists``: whether there is a table."""
    save_mode = "error" if mode in ("merge", "errorIfExists") else mode
    options: dict[str, str] = {}
    replaces_slice = mode in ("append", "overwrite") or (mode == "errorIfExists" and exists)
    if partition is not None and replaces_slice:
        # Also where there is no table: another run of a backfill may have made it by the time this one writes.
        save_mode, dynamic_partitions, options["replaceWhere"] = "overwrite", False, partition.predicate
        # Delta refuses overwriteSchema with replaceWhere; the other partitions keep their columns.
        merge_schema, overwrite_schema = merge_schema or overwrite_schema, False
    elif replace_where is not None and exists:
        options["replaceWhere"] = replace_where
    if dynamic_partitions:
        options["partitionOverwriteMode"] = "dynamic"
    if merge_schema:
        options["mergeSchema"] = "true"
    if overwrite_schema:
        options["overwriteSchema"] = "true"
    return save_mode, options


def _held_to_condition(frame: DataFrame, partition: PartitionSlice | None, replace_where: str | None) -> DataFrame:
    """Return ``frame`` such that a row outside of what is to be replaced fails it, lazily."""
    # Delta does not hold a first write to the condition.
    condition = partition.predicate if partition and partition.column else replace_where
    return frame if condition is None else holding(frame, condition)


def _save(
    writer: DataFrameWriter, path: str, mode: DeltaMode, partition: PartitionSlice | None, *, is_first: bool
) -> None:
    """Write. Raises _TableMadeMeanwhileError where another writer has made the table of a first write."""
    try:
        writer.save(path)
    except Exception as error:
        if is_first and is_spark_error(error) and _is_of_another_writer(error, mode, partition):
            raise _TableMadeMeanwhileError(error) from error
        raise


def _is_of_another_writer(error: Exception, mode: DeltaMode, partition: PartitionSlice | None) -> bool:
    """Whether a first write has failed by ``error`` as another writer has made the table since this one looked."""
    is_refused = mode == "errorIfExists" and partition is None
    if not is_refused and any(cause.condition == "DELTA_PATH_EXISTS" for cause in causes_of(error)):
        return True
    return spark_failure(error).transient_kind == "conflict"


def table_columns(spark: SparkSession, path: str) -> StructType | None:
    """Return the columns of the Delta table at ``path``, or None when there is no table."""
    try:
        return spark.read.format("delta").load(path).schema
    except Exception as error:
        if is_missing_table(error):
            return None
        raise


def is_missing_table(error: Exception) -> bool:
    """Whether Spark says by ``error`` that there is no Delta table where one was to be read."""
    from pyspark.errors import AnalysisException

    return isinstance(error, AnalysisException) and error.getCondition() in _MISSING


def _check_slice_column(there: Sequence[str], partition: PartitionSlice, path: str, *, merge_schema: bool) -> None:
    column = partition.partition_column
    if column.casefold() in (name.casefold() for name in there) or (merge_schema and partition.column is not None):
        return
    raise ConfigurationError(
        f"the table at {path} has no column {column!r}, which tells the partitions apart: it was written by a run "
        f"without partitions (its columns: {', '.join(there)}); write to another path, or move that table away"
    )


def _refuse_rows(spark: SparkSession, path: str, partition: PartitionSlice) -> None:
    if spark.read.format("delta").load(path).where(partition.predicate).limit(1).collect():
        raise PipelineExecutionError(
            f"the table at {path} has rows of partition {partition.key!r} already: mode 'errorIfExists' leaves them"
        )


def _written(spark: SparkSession, path: str, mark: str, folder: Folder | None) -> DeltaWrite:
    """Return what the commit with ``mark`` wrote. Delta makes none when there was nothing to change."""
    found = _find_write(spark, path, mark, folder)
    return found if isinstance(found, DeltaWrite) else DeltaWrite(rows=0, version=found, files=0)


def find_write(spark: SparkSession, path: str, mark: str, folder: Folder | None) -> DeltaWrite | None:
    """Return what ``write_delta`` has last written to the table at ``path`` under ``mark``; None when nothing yet."""
    return None if table_columns(spark, path) is None else _find_old_write(spark, path, mark, folder)


def _earlier_write(
    spark: SparkSession, path: str, transaction: Transaction, mode: DeltaMode, folder: Folder | None
) -> DeltaWrite | None:
    """Return what an earlier try of the write has written, where Delta itself would not find it."""
    if mode == "overwrite":
        return None
    if transaction.is_resumed:
        # That of a step without retries has told Delta of no transaction.
        return _find_old_write(spark, path, transaction.first_id, folder)
    if transaction.has_retries and mode in ("merge", "errorIfExists"):
        # Delta takes the options of a transaction for no MERGE, and looks at them after this has looked for rows.
        committed = _find_write(spark, path, transaction.first_id, folder)
        return committed if isinstance(committed, DeltaWrite) else None
    return None


def _known_by(transaction: Transaction, mode: DeltaMode) -> str:
    """Return what a write is found by: what overwrites may be made anew, of other data, by each run."""
    return transaction.id if mode == "overwrite" else transaction.first_id


def _find_old_write(spark: SparkSession, path: str, mark: str, folder: Folder | None) -> DeltaWrite | None:
    found = _find_write(spark, path, mark, folder)
    if not isinstance(found, DeltaWrite):
        # It may be older than the commits that were looked at.
        found = _find_write_by_spark(spark, path, mark)
    return found if isinstance(found, DeltaWrite) else None


def _find_write(spark: SparkSession, path: str, mark: str, folder: Folder | None) -> DeltaWrite | int:
    """Return what the commit with ``mark`` wrote, or the table's version when there is no such commit."""
    try:
        version = newest_version(folder) if folder is not None else None
        if folder is not None and version is not None:
            commit = find_commit(folder, mark)
            return version if commit is None else _counted(commit.version, commit.metrics, commit)
    except PipelineError as error:
        # The rows may be in: a step that fails now is run again, or looks as if it had written nothing.
        _log.warning("the log of the table at %s is left to Spark to read: %s", path, error)
    return _find_write_by_spark(spark, path, mark)


def _find_write_by_spark(spark: SparkSession, path: str, mark: str) -> DeltaWrite | int:
    history = spark.sql(f"DESCRIBE HISTORY delta.{quote(path)}")
    marked = history.where(history["userMetadata"] == mark).orderBy(history["version"].desc())
    chosen = marked.select("version", "operationMetrics").limit(1).collect()
    if not chosen:
        (newest,) = history.selectExpr("max(version)").collect()
        return int(newest[0])
    version, texts = chosen[0]
    return _counted(int(version), texts or {}, None)


def _counted(version: int, texts: Mapping[str, str], commit: Commit | None) -> DeltaWrite:
    metrics: dict[str, int | str] = {
        name: int(text) if text.lstrip("-").isdigit() else text for name, text in sorted(texts.items())
    }
    return DeltaWrite(rows_written(metrics), version, files_written(metrics) or 0, metrics, commit)


def _explain(cause: Cause, path: str, partition: PartitionSlice | None) -> PipelineError | None:
    outside = row_outside(cause, partition)
    if outside is not None:
        return outside
    match cause.condition:
        case "DELTA_PATH_EXISTS":
            return PipelineExecutionError(
                f"there is a table at {path} already: mode 'errorIfExists' leaves it as it is"
            )
        case "DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE":
            return PipelineExecutionError(
                "several rows of the DataFrame have the same mergeKeys: keep one of each, e.g. with dropDuplicates "
                "before; nothing was written"
            )
        case "DELTA_METADATA_MISMATCH" | "DELTA_FAILED_TO_MERGE_FIELDS":
            return not_fitting(path, cause.message)
        case _:
            return None
