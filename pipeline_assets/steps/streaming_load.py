"""What a load has that a streaming query may write for: the query's checkpoint, output mode and trigger."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from pipeline_assets.connections import Connections
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import LoadMethod, OutputMode, StepContext, StreamTraits
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.path_checks import check_s3_or_local
from pipeline_assets.steps.paths import open_for_spark

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter


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


_INTERVAL = re.compile(r"\d+ *(milliseconds?|seconds?|minutes?|hours?|days?|weeks?)")
Trigger = Annotated[str, AfterValidator(_check_trigger)]


class StreamingLoad(LoadMethod):
    """Writes a DataFrame, or a stream of them by a streaming query of its own."""

    streaming_only = frozenset({"checkpoint_location", "checkpoint_connection", "output_mode", "trigger"})

    checkpoint_location: Annotated[str, Field(min_length=1), AfterValidator(check_s3_or_local)] | None = None
    """Streaming only, and needed there: folder of the query's checkpoint, on S3 or a local
    one."""
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

    @property
    def takes_batches(self) -> bool:
        """Whether ``start_stream`` has a function of Python write each micro-batch."""
        return False

    def checkpoint(self, settings: Settings, connections: Connections) -> Checkpoint:
        """Return the checkpoint of the load's streaming query."""
        path = settings.resolve(self.checkpoint_location or "")
        return Checkpoint.at(path, self.checkpoint_connection, connections)

    def transaction_app_id(self, query_id: str, checkpoint: Checkpoint) -> str | None:
        """Return the application id of the Delta transactions that the query commits; None when there are none."""
        return None

    def writer(self, frame: DataFrame, context: StepContext, query_name: str) -> DataStreamWriter:
        """Return the writer of ``frame`` with the name, checkpoint, output mode and trigger that this asks for."""
        (checkpoint,) = open_for_spark([self.checkpoint_location or ""], self.checkpoint_connection, context)
        writer = (
            frame.writeStream.queryName(query_name)
            .outputMode(self.output_mode or "append")
            .option("checkpointLocation", checkpoint)
        )
        if self.takes_what_there_is:
            return writer.trigger(availableNow=True)
        return writer.trigger(processingTime=self.trigger) if self.trigger else writer

    def start_stream(self, frame: DataFrame, context: StepContext, query_name: str) -> StreamingQuery:
        """Start the streaming query that writes ``frame``, and return it without waiting for it."""
        raise NotImplementedError

    def start_batches(
        self, frame: DataFrame, context: StepContext, query_name: str, each: Callable[[DataFrame, int], None]
    ) -> StreamingQuery:
        """Start a streaming query that gives each micro-batch of ``frame`` to ``each``, with its number."""
        return self.writer(frame, context, query_name).foreachBatch(each).start()

    def write_batch(self, frame: DataFrame, context: StepContext, batch_id: int, app_id: str | None) -> None:
        """Write what a micro-batch has come to, the same way as the query of ``start_stream`` does.

        ``app_id``: the ``transaction_app_id`` of that query.
        """
        raise NotImplementedError
