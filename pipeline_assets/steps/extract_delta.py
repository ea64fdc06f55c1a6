"""Extract from Delta Lake. PostgreSQL, Kafka and files have modules of their own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError, PipelineError
from pipeline_assets.steps.base import Dataset, ExtractMethod, StepContext, StreamSource
from pipeline_assets.steps.columns import quote
from pipeline_assets.steps.delta_log import newest_version
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.path_checks import check_any
from pipeline_assets.steps.paths import delta_dataset, open_for_spark, warehouse_dataset
from pipeline_assets.steps.s3_paths import is_s3

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ALL_FILES = 2**31 - 1  # Spark takes no larger number


class FromDeltaLake(ExtractMethod):
    """Reads a Delta table, as it is now or as it was at a version or a time.

    A stream reads the rows of now by 1,000 files in a micro-batch, the oldest files first. Where a `withWatermark`
    comes after it, all of them are one micro-batch, with the time and the memory that takes: files that were compacted,
    or written late, are not in the order of their rows, and what is older than the newest row would be left out.

    In a batch pipeline that writes the table, too, the DataFrame stays at the version that was the newest when the step
    ran: later steps do not see in it what was written since. With the executor `multiprocess`, where each step has a
    process of its own, each may read a newer one.
    """

    method = "fromDeltaLake"
    kinds = frozenset({"spark", "deltalake"})
    streaming_only = frozenset({"streaming", "skip_change_commits"})

    path: Annotated[str, AfterValidator(check_any)] | None = None
    """Where the table is: a local path, or `s3a://bucket/key`."""
    table: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]*\.[A-Za-z_][A-Za-z0-9_-]*$")
    """Instead of `path`, a table that a pipeline of this location keeps in the warehouse: `<pipeline>.<asset>`."""
    version: int | None = Field(default=None, ge=0)
    """Version of the table to read; the newest when left out."""
    timestamp: str | None = None
    """Read the table as it was at this time, e.g. `2024-05-01` or `2024-05-01 12:30:00`."""
    streaming: bool | None = None
    """In a streaming pipeline: whether to follow the table, its rows of now first and then those that are added (when
    left out: yes, unless `version` or `timestamp` is given), or to read it like a batch, anew in each micro-batch."""
    skip_change_commits: bool = False
    """Streaming only: go past the table's commits that change or remove rows (by DELETE, UPDATE, MERGE or overwriting);
    nothing of them is read, not the rows either that they add. Otherwise such a commit ends the stream. See
    https://docs.delta.io/latest/delta-streaming.html#ignore-updates-and-deletes"""
    connection: str = "default"
    """S3 connection (from connections.json) for a path on S3."""

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if (self.path is None) == (self.table is None):
            raise ValueError("give either 'path' or 'table'")
        return self

    @model_validator(mode="after")
    def _one_way_to_travel(self) -> Self:
        if self.version is not None and self.timestamp is not None:
            raise ValueError("give 'version' or 'timestamp', not both")
        if self.streaming and (self.version is not None or self.timestamp is not None):
            raise ValueError("'version' and 'timestamp' name one state of the table: a stream follows all of them")
        if self.skip_change_commits and not self.streams:
            raise ValueError("'skipChangeCommits' is for a table that a stream follows: leave it out")
        return self

    @property
    def streams(self) -> bool:
        return (self.version is None and self.timestamp is None) if self.streaming is None else self.streaming

    def stream_identity(self) -> dict[str, str]:
        return {"table": self.table or self.path or ""}

    def sources(self) -> tuple[Dataset, ...]:
        if self.table is not None:
            return (warehouse_dataset(*self.table.replace("-", "_").split(".")),)
        return (delta_dataset(self.path or ""),)

    def extract(self, context: StepContext) -> DataFrame:
        from pyspark.errors import AnalysisException

        path = self._open(context)
        reader = context.spark.read.format("delta")
        if self.timestamp is not None:
            reader = reader.option("timestampAsOf", self.timestamp)
        try:
            version = self.version
            if version is None and self.timestamp is None and context.rewritten:
                # Delta looks for the newest version in each query anew, and would find what has been written since.
                version = self._newest_version(path, context)
            if version is not None:
                reader = reader.option("versionAsOf", version)
            frame = reader.load(path)
            _ = frame.schema  # Connect looks for the table only now
        except AnalysisException as error:
            raise self._explain(error, path) from None
        return frame

    def _newest_version(self, path: str, context: StepContext) -> int:
        """Return the table's version, by Spark where its log can't be seen from here, which takes a job."""
        # A path that is local to a Connect server may be that of another table here.
        if context.settings.spark_remote is None or is_s3(path):
            with suppress(PipelineError):
                folder = folder_seen_from_here(path, self.connection, context.connections)
                version = newest_version(folder) if folder is not None else None
                if version is not None:
                    return version
        history = context.spark.sql("DESCRIBE HISTORY delta." + quote(path) + " LIMIT 1")
        (newest,) = history.select("version").collect()
        return int(newest[0])

    def extract_stream(self, context: StepContext) -> DataFrame:
        from pyspark.errors import AnalysisException

        path = self._open(context)
        try:
            reader = context.spark.readStream.format("delta")
            reader = reader.option("skipChangeCommits", str(self.skip_change_commits).lower())
            if _begins_at_once(context.source):
                reader = reader.option("maxFilesPerTrigger", _ALL_FILES)
            frame = reader.load(path)
            _ = frame.schema
        except AnalysisException as error:
            raise self._explain(error, path) from None
        return frame

    def _open(self, context: StepContext) -> str:
        """Return the table's path, after telling Spark how to reach it."""
        if self.table is None:
            (path,) = open_for_spark([self.path or ""], self.connection, context)
            return path
        path = context.settings.table_path(*self.table.replace("-", "_").split("."))
        if is_s3(path):
            (path,) = open_for_spark([path], self.connection, context)
        return path

    def _explain(self, error: Any, path: str) -> ConfigurationError:
        details = error.getMessageParameters() or {}
        match error.getCondition():
            case "PATH_NOT_FOUND" | "DELTA_PATH_DOES_NOT_EXIST":
                return ConfigurationError(f"there is no Delta table at {path}: the path does not exist")
            case "DELTA_TABLE_NOT_FOUND" | "DELTA_MISSING_DELTA_TABLE" | "DELTA_TABLE_ONLY_OPERATION":
                return ConfigurationError(f"there is no Delta table at {path}: the folder holds no Delta log")
            case "DELTA_VERSION_NOT_FOUND":
                return ConfigurationError(
                    f"the Delta table at {path} has no version {self.version} "
                    f"(versions there: {details.get('earliest')} to {details.get('latest')})"
                )
            case str(name) if "TIMESTAMP" in name:
                at = details.get("commitTs") or details.get("latestTimestamp") or details.get("timestampString")
                return ConfigurationError(
                    f"the Delta table at {path} has no version for timestamp {self.timestamp!r}"
                    + (f" (the nearest is of {at})" if at else ""),
                    details=str(error).partition("JVM stacktrace")[0].strip(),
                )
            case _:
                raise error


def _begins_at_once(source: StreamSource | None) -> bool:
    """Whether a query is to take the table as it is now in one micro-batch, where a watermark would part its rows."""
    return source is not None and source.watermarked and not all(each.is_read for each in source.checkpoints)
