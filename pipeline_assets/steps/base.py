"""What a step method is: a frozen model of its config, with the one method that does its work.

A method knows Spark, not Dagster. To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.connections import Connections
from pipeline_assets.partitions import PartitionSlice
from pipeline_assets.settings import Settings
from pipeline_assets.spark.storage_levels import StorageLevelName

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from pipeline_assets.spark.caching import DataFrameCache
    from pipeline_assets.steps.checkpoint import Checkpoint

StepType = Literal["extract", "transform", "validate", "load"]
OutputMode = Literal["append", "update", "complete"]


@dataclass(frozen=True)
class Dataset:
    """Data outside a pipeline: a table, a topic, a folder. ``parts`` identify it within its ``kind``."""

    kind: Literal["postgres", "s3", "kafka", "deltalake", "file"]
    parts: tuple[str, ...]
    uri: str


@dataclass(frozen=True)
class StreamSource:
    """Where a streaming extract stands: ``step`` is its asset's name, unique in the pipeline.

    ``checkpoint`` is that of the streaming query that it feeds; of the first in the order of the steps, where it
    feeds several. What has to be the same at every start of the stream is kept in there. ``stop`` is set when the
    run is to end: whoever waits for something waits for that too. ``may_wait``: whether the stream is one that stays,
    so that records it needs at its start may come later.
    """

    step: str
    checkpoint: Checkpoint
    stop: threading.Event
    may_wait: bool = True


@dataclass(frozen=True)
class StepContext:
    """What a step works with, beside its input DataFrames. ``partition`` is None in an unpartitioned run, and
    ``source`` in everything but a streaming extract. A step that waits for something other than Spark has
    ``cancellation`` interrupt it.
    """

    pipeline: str
    run_id: str
    spark: SparkSession
    settings: Settings
    connections: Connections
    cache: DataFrameCache
    partition: PartitionSlice | None = None
    source: StreamSource | None = None
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
class ExpectationResult:
    """How one expectation came out: ``failed`` of ``total`` rows do not meet it."""

    name: str
    failed: int
    total: int

    @property
    def passed(self) -> bool:
        """Whether every row meets it."""
        return self.failed == 0


@dataclass(frozen=True)
class StreamTraits:
    """What is known of a step in a streaming pipeline: which of its inputs are streams, in their order; whether a
    step before it set a watermark; and the output modes of the loads that its rows end in.
    """

    inputs: tuple[bool, ...]
    watermarked: bool
    output_modes: frozenset[OutputMode]


class StepMethod(BaseModel):
    """Base of all methods. Subclasses set ``type`` and ``method``, and raise ``behavior_version`` when what they
    compute from the same config changes, so that Dagster shows their assets as out of date.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )

    type: ClassVar[StepType]
    method: ClassVar[str]
    behavior_version: ClassVar[str] = "1"
    kinds: ClassVar[frozenset[str]] = frozenset({"spark"})

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


class DataFrameMethod(StepMethod):
    """A method that yields a DataFrame."""

    register_as: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name under which later steps find the DataFrame."""
    materialized: Literal["view", "table"] | None = None
    """view: lazy, nothing is written; table: written as Delta to the warehouse. A DataFrame that no step consumes is
    a table unless this says otherwise."""
    cache: bool = False
    """Keep the DataFrame's data for the rest of the run once they have been computed."""
    cache_storage_level: StorageLevelName = "MEMORY_AND_DISK"
    """Spark's storage level for `cache`."""


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


class SingleInputTransform(TransformMethod):
    """Makes a DataFrame out of one other."""

    input_data_frame: str | None = None
    """The DataFrame to work on; the previous step's when left out."""

    def input_names(self) -> tuple[str, ...] | None:
        return None if self.input_data_frame is None else (self.input_data_frame,)


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
    blocking: bool = True
    """Whether steps after this one wait for it and do not run when it fails."""

    def input_names(self) -> tuple[str, ...] | None:
        return None if self.input_data_frame is None else (self.input_data_frame,)

    def stream_problem(self, stream: StreamTraits) -> str | None:
        return f"{self.method} checks tables: put it into a batch pipeline that reads what this one writes"

    def expectation_names(self) -> dict[str, str]:
        """Return the expectations that ``validate_frame`` yields, by name, with what each says."""
        raise NotImplementedError

    def validate_frame(self, frame: DataFrame, context: StepContext) -> tuple[ExpectationResult, ...]:
        """Evaluate every expectation, in one pass over the data."""
        raise NotImplementedError


class LoadMethod(StepMethod):
    """Writes a DataFrame to somewhere outside."""

    type = "load"

    input_data_frame: str | None = None
    """The DataFrame to write; the previous step's when left out."""

    def input_names(self) -> tuple[str, ...] | None:
        return None if self.input_data_frame is None else (self.input_data_frame,)

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        """Raise ConfigurationError when the config does not fit the DataFrame's schema. Moves no data."""

    def stream_problem(self, stream: StreamTraits) -> str | None:
        return f"{self.method} does not take streams: use toDeltaLake or toKafka"

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        """Write ``frame``. A target is at its old or at its new state afterwards, never between."""
        raise NotImplementedError


def _check_trigger(text: str) -> str:
    """Return ``text``. Raises ValueError when it is no trigger that keeps the promise of exactly once."""
    if text in ("availableNow", "once"):
        return text
    if text.startswith("continuous"):
        raise ValueError(
            "continuous processing gives at-least-once only and has no Delta sink: use a time between micro-batches "
            "such as '1 second', or 'availableNow'"
        )
    if not _INTERVAL.fullmatch(text):
        raise ValueError(f"{text!r} is no trigger: expected a time such as '5 seconds', or 'availableNow'")
    return text


_INTERVAL = re.compile(r"\d+ *(milliseconds?|seconds?|minutes?|hours?)")
Trigger = Annotated[str, AfterValidator(_check_trigger)]


class StreamingLoad(LoadMethod):
    """Writes a DataFrame, or a stream of them by a streaming query of its own."""

    checkpoint_location: Annotated[str, Field(min_length=1)] | None = None
    """Streaming only, and needed there: folder of the query's checkpoint. It may lie on S3."""
    checkpoint_connection: str = "default"
    """S3 connection (from connections.json) for a `checkpointLocation` on S3."""
    output_mode: OutputMode | None = None
    """Streaming only: Spark's output mode; append when left out."""
    trigger: Trigger | None = None
    """Streaming only: time between micro-batches such as `5 seconds`, or `availableNow` to take what there is and
    end (`once` is the same). One micro-batch follows the other when left out."""

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if not any(stream.inputs):
            return "its input is not a stream: nothing would run here; load it in a batch pipeline"
        if self.checkpoint_location is None:
            return "a streaming load needs 'checkpointLocation': a folder of its own, that stays between runs"
        return None

    @property
    def takes_what_there_is(self) -> bool:
        """Whether its query ends by itself, when all that was there at its start has been written."""
        return self.trigger in ("availableNow", "once")

    def checkpoint(self, settings: Settings, connections: Connections) -> Checkpoint:
        """Return the checkpoint of the load's streaming query."""
        from pipeline_assets.steps.checkpoint import Checkpoint

        path = settings.resolve(self.checkpoint_location or "")
        return Checkpoint.at(path, self.checkpoint_connection, connections)

    def transaction_app_id(self, query_id: str, checkpoint: Checkpoint) -> str | None:
        """Return the application id of the Delta transactions that the query commits; None when there are none."""
        return None

    def start_stream(self, frame: DataFrame, context: StepContext, query_name: str) -> StreamingQuery:
        """Start the streaming query that writes ``frame``, and return it without waiting for it."""
        raise NotImplementedError
