"""How a streaming query of any sink is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_assets.steps.base import StepContext, StreamingLoad
from pipeline_assets.steps.paths import open_for_spark

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.readwriter import DataStreamWriter


def stream_writer(frame: DataFrame, load: StreamingLoad, context: StepContext, query_name: str) -> DataStreamWriter:
    """Return the writer of ``frame`` with the name, checkpoint, output mode and trigger that ``load`` asks for."""
    (checkpoint,) = open_for_spark([load.checkpoint_location or ""], load.checkpoint_connection, context)
    writer = (
        frame.writeStream.queryName(query_name)
        .outputMode(load.output_mode or "append")
        .option("checkpointLocation", checkpoint)
    )
    if load.takes_what_there_is:
        return writer.trigger(availableNow=True)
    return writer.trigger(processingTime=load.trigger) if load.trigger else writer
