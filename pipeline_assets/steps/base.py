"""What a step method is: a frozen model of its config, with the one method that does its work.

A method knows Spark, not Dagster. To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.connections import ConnectionKind, Connections
from pipeline_assets.json_models import JsonModel
from pipeline_assets.partitions import PartitionSlice
from pipeline_assets.settings import Settings
from pipeline_assets.spark.storage_levels import StorageLevelName
from pipeline_assets.steps.path_checks import check_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from pipeline_assets.spark.caching import DataFrameCache
    from pipeline_assets.steps.checkpoint import Checkpoint

StepType = Literal["extract", "transform", "validate", "load"]
OutputMode = Literal["append", "update", "complete"]
Severity = Literal["error", "warn"]
OnFailure = Literal["fail", "warn", "quarantine"]


@dataclass(frozen=True)
class Dataset:
    """Data outside a pipeline: a table, a topic, a folder. ``parts`` identify it within its ``kind``."""

    kind: Literal["postgres", "s3", "kafka", "deltalake", "file"]
    parts: tuple[str, ...]
    uri: str

    def overlaps(self, other: Dataset) -> bool:
        """Whether this is the same data as ``other``, or one of the two is a folder that the other lies in.

        Of files and a Delta table, only the table is such a folder: files are read by globs from all around.
        """
        if self.kind != other.kind:
            return self._is_table_of(other) or other._is_table_of(self)
        return all(mine == its for mine, its in zip(self.parts, other.parts, strict=False))

    def _is_table_of(self, files: Dataset) -> bool:
        """Whether this is a Delta table, and ``files`` are or lie in its folder."""
        if self.kind != "deltalake" or files.kind not in ("file", "s3"):
            return False
        place = ("s3a", *files.parts) if files.kind == "s3" else files.parts
        return place[: len(self.parts)] == self.parts


ColumnSources = dict[str, tuple[tuple[Dataset, str], ...]]
"""By column: the columns of datasets that it comes from."""


@dataclass(frozen=True)
class StreamSource:
    """Where a streaming extract stands: ``step`` is its asset's name, unique in the pipeline.

    ``checkpoints`` are those of the streaming queries that it feeds, in the order of the steps: what has to be the same
    at every start of the stream is kept in each. ``stop`` is set when the run is to end: whoever waits for something
    waits for that too. ``may_wait``: whether the stream is one that stays, so that records it needs at its start may
    come later. ``watermarked``: whether a step after it may leave out rows that come late.
    """

    step: str
    checkpoints: tuple[Checkpoint, ...]
    stop: threading.Event
    may_wait: bool = True
    watermarked: bool = False

    @property
    def is_read(self) -> bool:
        """Whether a query has planned a micro-batch of it, so that what is in its checkpoint has come to count."""
        return any(checkpoint.is_read for checkpoint in self.checkpoints)


@dataclass(frozen=True)
class Transaction:
    """What a write is known by, however often it is tried: in one run by ``id``, and in runs of which each resumes the
    one before by ``first_id``. ``has_retries``: the run may try it again.
    """

    id: str
    first_id: str
    has_retries: bool = False

    @property
    def is_resumed(self) -> bool:
        """Whether a run that has ended, and did not tell of the write, may have made it."""
        return self.id != self.first_id


@dataclass(frozen=True)
class StepContext:
    """What a step works with, beside its input DataFrames. ``partition`` is None in an unpartitioned run, and
    ``source`` in everything but a streaming extract. A step that waits for something other than Spark has
    ``cancellation`` interrupt it. ``optimize``: an extract may tell Spark what it knows of its source's size; a load
    brings the rows together by the columns that its target is partitioned by; what is cached may have fewer partitions
    than Spark's plan says. ``by_partition``: the keys of a load's config that name ``${partition}``. ``rewritten``: the
    pipeline writes what an extract reads, which is to stay at the state that it has when it is opened. ``transaction``:
    what a load of a batch is known by. ``is_micro_batch``: the input is one of a stream.
    """

    pipeline: str
    run_id: str
    spark: SparkSession
    settings: Settings
    connections: Connections
    cache: DataFrameCache
    partition: PartitionSlice | None = None
    by_partition: frozenset[str] = frozenset()
    source: StreamSource | None = None
    optimize: bool = False
    rewritten: bool = False
    transaction: Transaction | None = None
    is_micro_batch: bool = False
    cancellation: Cancellation = field(default_factory=Cancellation)


@dataclass(frozen=True)
class LoadResult:
    """What a load wrote. ``rows`` is None where the target does not tell; ``metrics`` are plain numbers and texts."""

    uri: str
    table_name: str | None = None
    rows: int | None = None
    version: int | None = None
    metrics: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Some of the records that do not meet an expectation, as texts that may be shown; None stands for null."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True)
class ExpectationResult:
    """How one expectation came out: ``failed`` of ``total`` rows do not meet it; columns, with ``of_columns``.

    ``facts``: what else was measured. ``severity`` ``warn``: a failure is told, and stops nothing. ``found``: what
    there is instead, where these numbers do not say it.
    """

    name: str
    passed: bool
    failed: int
    total: int
    severity: Severity = "error"
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    samples: Samples | None = None
    of_columns: bool = False
    found: str = ""

    @property
    def percent(self) -> float:
        """How many of 100 rows do not meet it."""
        return 100.0 * self.failed / self.total if self.total else 0.0

    def plus(self, later: ExpectationResult) -> ExpectationResult:
        """Return how it came out for the rows of both, with the samples of the one that has failed last."""
        # Columns are the same ones in each micro-batch.
        add = max if self.of_columns else int.__add__
        return replace(
            later,
            passed=self.passed and later.passed,
            failed=add(self.failed, later.failed),
            total=add(self.total, later.total),
            facts=later.facts or self.facts,
            samples=later.samples or self.samples,
        )


@dataclass(frozen=True)
class StreamTraits:
    """What is known of a step in a streaming pipeline: which of its inputs are streams, in their order; whether a
    step before it set a watermark; and the output modes of the loads that its rows end in.
    """

    inputs: tuple[bool, ...]
    watermarked: bool
    output_modes: frozenset[OutputMode]


class StepMethod(JsonModel):
    """Base of all methods. Subclasses set ``type`` and ``method``, and raise ``behavior_version`` when what they
    compute from the same config changes, so that Dagster shows their assets as out of date.
    """

    # Built when a config first names the method: most processes meet few of them. What the docstrings of fields say is
    # read by config_schema.py, when it is asked for.
    model_config = ConfigDict(defer_build=True)

    type: ClassVar[StepType]
    method: ClassVar[str]
    behavior_version: ClassVar[str] = "1"
    kinds: ClassVar[frozenset[str]] = frozenset({"spark"})
    connection_kind: ClassVar[ConnectionKind] = "s3"
    """What its `connection`, where it has one, is a connection to."""
    streaming_only: ClassVar[frozenset[str]] = frozenset()
    """The fields that mean something in streaming pipelines alone."""

    def input_names(self) -> tuple[str, ...] | None:
        """DataFrames that the config names as inputs; None stands for the previous step's (the primary)."""
        return None

    def sources(self) -> tuple[Dataset, ...]:
        """Data outside the pipeline that is read."""
        return ()

    def sinks(self) -> tuple[Dataset, ...]:
        """Data outside the pipeline that is written."""
        return ()

    def stream_problem(self, stream: StreamTraits) -> str | None:
        """Return why this can't be done in a streaming pipeline, and what to do instead; None when it can.

        What Spark alone can tell, it tells before the first query starts.
        """
        return None

    def batch_problem(self) -> str | None:
        """Return why this can't be done in a batch pipeline, and what to do instead; None when it can."""
        fields = type(self).model_fields
        given = [name for name in fields if name in self.streaming_only and getattr(self, name) != fields[name].default]
        if not given:
            return None
        keys = " and ".join(repr(fields[name].alias or name) for name in given)
        return f"{keys}: of streaming pipelines alone, leave {'it' if len(given) == 1 else 'them'} out"


class DataFrameMethod(StepMethod):
    """A method that yields a DataFrame. Subclasses that read their input's rows more than once, as one that trains a
    model does, say by ``passes`` about how often: the input is then kept where that costs less.
    """

    passes: ClassVar[int] = 1

    register_as: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name under which later steps find the DataFrame."""
    materialized: Literal["view", "table"] | None = None
    """view: lazy, nothing is written; table: written as Delta to the warehouse. A DataFrame that no step consumes is
    a table unless this says otherwise."""
    cache: bool = False
    """Keep the DataFrame's data for the rest of the run once they have been computed."""
    cache_storage_level: StorageLevelName = "MEMORY_AND_DISK"
    """Spark's storage level for `cache`."""

    @model_validator(mode="after")
    def _level_of_a_cache(self) -> Self:
        if "cache_storage_level" in self.model_fields_set and not self.cache:
            raise ValueError("'cacheStorageLevel' says how 'cache' keeps the data: give 'cache': true, or leave it out")
        return self


class ExtractMethod(DataFrameMethod):
    """Reads a DataFrame from outside."""

    type = "extract"

    @property
    def streams(self) -> bool:
        """Whether it is a stream in a streaming pipeline; if not, it is read there as in a batch one."""
        return False

    def extract(self, context: StepContext) -> DataFrame:
        """Return the DataFrame, lazily: nothing but metadata may be read here."""
        raise NotImplementedError

    def extract_stream(self, context: StepContext) -> DataFrame:
        """Return the streaming DataFrame; ``context.source`` is set."""
        raise NotImplementedError

    def column_sources(self, columns: Sequence[str]) -> ColumnSources:
        """Return what each of ``columns``, those of its DataFrame, comes from; one that is not known is left out.

        Sources that are read together have the same columns.
        """
        return {column: tuple((source, column) for source in self.sources()) for column in columns if self.sources()}

    def stream_identity(self) -> dict[str, str]:
        """Return what a checkpoint's offsets belong to: they can't be used for a source where this differs."""
        raise NotImplementedError


class TransformMethod(DataFrameMethod):
    """Makes a DataFrame out of others."""

    type = "transform"

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        """Return the DataFrame, lazily. ``inputs`` are in the order of ``input_names``, by name."""
        raise NotImplementedError

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        """Return what the state that this keeps in a checkpoint depends on, as JSON; None when it keeps none.

        ``inputs``: which of its inputs are streams.
        """
        return None


def _input_names(name: str | None) -> tuple[str, ...] | None:
    """Return the ``input_names`` of a method with one input, which the config may name."""
    return None if name is None else (name,)


class SingleInputTransform(TransformMethod):
    """Makes a DataFrame out of one other."""

    input_data_frame: str | None = None
    """The DataFrame to work on; the previous step's when left out."""

    def input_names(self) -> tuple[str, ...] | None:
        return _input_names(self.input_data_frame)


class CacheControlMethod(StepMethod):
    """A step that says what stays in memory. It has no DataFrame of its own: the primary one stays what it is."""

    type = "transform"

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> None:
        """Keep or let go. ``inputs`` are in the order of ``input_names``, by name."""
        raise NotImplementedError


class ValidateMethod(StepMethod):
    """States what a DataFrame must meet."""

    type = "validate"

    input_data_frame: str | None = None
    """The DataFrame to check; the previous step's when left out."""
    on_failure: OnFailure | None = None
    """What follows when rows do not meet it: `fail` (when left out), steps that take the DataFrame do not run; `warn`,
    it is told, and they run; `quarantine`, these rows go to a Delta table, with the reasons, and the others are the
    DataFrame that later steps take."""
    quarantine_path: Annotated[str, Field(min_length=1), AfterValidator(check_folder)] | None = None
    """With onFailure `quarantine`: the Delta table for the rows that do not meet it. When left out it is in the
    warehouse, called like this step with `_quarantine` after it."""
    sample_size: int = Field(default=5, ge=0, le=100)
    """How many of the records that do not meet an expectation are shown, as a sample; 0 for none."""
    mask_columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns that samples show as asterisks, such as those with personal data."""
    blocking: bool | None = None
    """Older word for onFailure: true is `fail`, false is `warn`."""

    @model_validator(mode="after")
    def _one_reaction(self) -> Self:
        if self.blocking is not None and self.on_failure is not None:
            raise ValueError("'blocking' and 'onFailure' say the same: leave 'blocking' out")
        if self.quarantine_path is not None and not self.quarantines:
            raise ValueError("'quarantinePath' needs onFailure 'quarantine'")
        return self

    @property
    def reaction(self) -> OnFailure:
        """What follows when rows do not meet it."""
        return self.on_failure or ("warn" if self.blocking is False else "fail")

    @property
    def quarantines(self) -> bool:
        """Whether it yields a DataFrame: the rows that meet it."""
        return self.reaction == "quarantine"

    def input_names(self) -> tuple[str, ...] | None:
        return _input_names(self.input_data_frame)

    def reference_names(self) -> tuple[str, ...]:
        """Return the DataFrames that the one to check is compared with."""
        return ()

    def deciding_references(self) -> tuple[str, ...]:
        """Return those of ``reference_names`` by which rows are put into quarantine."""
        return ()

    def reasons(self) -> frozenset[str]:
        """Return what may stand with a row in quarantine as a reason."""
        return frozenset()

    def expectation_names(self) -> dict[str, str]:
        """Return the expectations that ``validate_frame`` yields, by name, with what each says.

        The name is empty where the step is the only one of its kind.
        """
        raise NotImplementedError

    def check_schema(self, frame: DataFrame, references: Mapping[str, DataFrame], context: StepContext) -> None:
        """Raise ConfigurationError when an expectation does not fit the DataFrames' schemas. Moves no data."""

    def compared(self, frame: DataFrame, references: Mapping[str, DataFrame]) -> DataFrame:
        """Return ``frame``, lazily, with what the other methods have to know of ``references``.

        These are by ``reference_names``. Each query of it asks them anew, and they may have changed.
        """
        return frame

    def recalled(self, frame: DataFrame, references: Mapping[str, DataFrame], bad: DataFrame) -> DataFrame:
        """Return what ``compared`` does, where ``bad`` are the ``bad_rows`` that were found in these rows before.

        The same are found again, whatever the references have come to be. ``frame`` may be what ``compared`` returned.
        """
        return self.compared(frame, references)

    def validate_frame(self, compared: DataFrame, context: StepContext) -> tuple[ExpectationResult, ...]:
        """Evaluate every expectation, in one pass over the data; samples of what is not unique may take another."""
        raise NotImplementedError

    def good_rows(self, compared: DataFrame, context: StepContext) -> DataFrame:
        """Return the rows that meet what the step expects, lazily; with onFailure ``quarantine`` only."""
        raise NotImplementedError

    def bad_rows(self, compared: DataFrame, context: StepContext) -> DataFrame:
        """Return the others, with why and in which run they were found; with onFailure ``quarantine`` only."""
        raise NotImplementedError


class LoadMethod(StepMethod):
    """Writes a DataFrame to somewhere outside."""

    type = "load"

    input_data_frame: str | None = None
    """The DataFrame to write; the previous step's when left out."""

    def input_names(self) -> tuple[str, ...] | None:
        return _input_names(self.input_data_frame)

    @property
    def partition_columns(self) -> tuple[str, ...]:
        """The columns that the target's files are partitioned by."""
        return ()

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        """Raise ConfigurationError when the config does not fit the DataFrame's schema. Moves no data."""

    def written(self, frame: DataFrame, context: StepContext) -> DataFrame:
        """Return ``frame`` with the columns that the target gets, lazily."""
        return frame

    def stream_problem(self, stream: StreamTraits) -> str | None:
        return f"{self.method} does not take streams: use toDeltaLake or toKafka"

    def partition_problem(self) -> str | None:
        """Return why this can't be done in a run for a partition, and what to do instead; None when it can."""
        return None

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        """Write ``frame``. A target is at its old or at its new state afterwards, never between."""
        raise NotImplementedError
