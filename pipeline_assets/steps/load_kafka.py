"""Load into a Kafka topic."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark.temporary_conf import temporary_conf
from pipeline_assets.steps.base import Dataset, LoadResult, StepContext
from pipeline_assets.steps.columns import ColumnName, quote, require_columns
from pipeline_assets.steps.counted_rows import CountedRows
from pipeline_assets.steps.kafka_offsets import read_offsets
from pipeline_assets.steps.kafka_options import check_kafka_options, kafka_dataset, kafka_options, with_options
from pipeline_assets.steps.paths import OptionValue, option_texts
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.steps.text_formats import as_json

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from pipeline_assets.connections import KafkaConnection

_V1_SOURCES = "spark.sql.sources.useV1SourceList"


class ToKafka(StreamingLoad):
    """Writes a record for each row to a Kafka topic, which has to be there.

    Each row is written at least once: after a failure, records of the last micro-batch (in a batch pipeline: of the
    whole run, when it is repeated) may be in the topic twice, as Kafka has no commit that Spark would take part in
    (https://spark.apache.org/docs/latest/streaming/structured-streaming-kafka-integration.html#writing-data-to-kafka).
    Give consumers something to tell them by, such as an id in `keyColumn`.
    """

    method = "toKafka"
    kinds = frozenset({"spark", "kafka"})
    behavior_version = "2"
    connection_kind = "kafka"

    topic: str = Field(min_length=1)
    """The topic to write to."""
    connection: str = "default"
    """Kafka connection (from connections.json)."""
    format: Literal["json", "text", "raw"] = "json"
    """What the records' values are: `json`, an object of all columns (nulls too, and times to the microsecond); `text`,
    the STRING column `value`, or the only column that there is beside `keyColumn`; `raw`, the BINARY column `value`."""
    key_column: ColumnName | None = None
    """The column whose text is the records' key: Kafka keeps the order of records of the same key. Without it records
    have no key. With format json it is in the value too."""
    options: Annotated[dict[str, OptionValue], AfterValidator(check_kafka_options)] = {}
    """Further options of Spark's Kafka sink. Those of the Kafka client, such as `kafka.compression.type`, go before the
    connection's."""

    def sinks(self) -> tuple[Dataset, ...]:
        return (kafka_dataset(self.connection, self.topic),)

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        if self.key_column is not None:
            require_columns((self.key_column,), self._input, frame)
        if self.format != "json":
            self._value_column(frame)

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        """Write a record for each row of ``frame``.

        Raises ConfigurationError, before anything is written, for a topic or a column that is not there.
        """
        rows = CountedRows()
        self._check(frame, context)
        records = self.written(rows.on(frame), context)
        with _counting_writer(context.spark):
            records.write.format("kafka").mode("append").options(**self._options(context)).save()
        return LoadResult(uri=self.sinks()[0].uri, rows=rows.get())

    def start_stream(self, frame: DataFrame, context: StepContext, query_name: str) -> StreamingQuery:
        self._check(frame, context)
        writer = self.writer(self.written(frame, context), context, query_name)
        return writer.format("kafka").options(**self._options(context)).start()

    def write_batch(self, frame: DataFrame, context: StepContext, batch_id: int, app_id: str | None) -> None:
        self._check(frame, context)
        self.written(frame, context).write.format("kafka").mode("append").options(**self._options(context)).save()

    @property
    def _input(self) -> str:
        return self.input_data_frame or "input"

    def _check(self, frame: DataFrame, context: StepContext) -> None:
        self.check_schema(frame, context)
        # A broker may make a topic that is written to, with partitions that nobody chose.
        read_offsets(self._kafka(context), context.connections.secrets, topics=[self.topic], which="latest")

    def _options(self, context: StepContext) -> dict[str, str]:
        own = {"topic": self.topic, **kafka_options(self._kafka(context), context.connections.secrets)}
        return {**option_texts(self.options), **own}

    def _kafka(self, context: StepContext) -> KafkaConnection:
        return with_options(context.connections.kafka(self.connection), option_texts(self.options))

    def written(self, frame: DataFrame, context: StepContext) -> DataFrame:
        """Return the columns that Spark's sink takes: ``value``, and ``key`` where there is a ``keyColumn``."""
        from pyspark.sql import functions as F  # noqa: N812

        is_json = self.format == "json"
        value = as_json(F.struct(F.col("*"))) if is_json else F.col(quote(self._value_column(frame)))
        columns = [value.alias("value")]
        if self.key_column is not None:
            columns.insert(0, F.col(quote(self.key_column)).cast("string").alias("key"))
        return frame.select(*columns)

    def _value_column(self, frame: DataFrame) -> str:
        """Return the column with the records' values as they are. Raises ConfigurationError when there is none."""
        wanted = "string" if self.format == "text" else "binary"
        types = {field.name: field.dataType.simpleString() for field in frame.schema.fields}
        named = [name for name in types if name.casefold() == "value"]
        if not named and self.format == "text":
            key = (self.key_column or "").casefold()
            others = [name for name in types if name.casefold() != key]
            named = others if len(others) == 1 else []
        if len(named) != 1 or types[named[0]] != wanted:
            there = ", ".join(f"{name} {kind}" for name, kind in types.items())
            raise ConfigurationError(
                f"format {self.format!r} needs a column 'value' of type {wanted.upper()} in DataFrame {self._input!r}: "
                f"make one with withColumns before, or use format 'json' (its columns: {there})"
            )
        return named[0]


def _counting_writer(spark: SparkSession) -> AbstractContextManager[None]:
    """Have Spark write to Kafka by its data source of version 2: that of version 1, the default, loses observations."""
    of_version_1 = (spark.conf.get(_V1_SOURCES) or "").split(",")
    return temporary_conf(spark, {_V1_SOURCES: ",".join(name for name in of_version_1 if name.strip() != "kafka")})
