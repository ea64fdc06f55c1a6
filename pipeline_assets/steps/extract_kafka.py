"""Extract from Kafka: a range of offsets in a batch pipeline, a stream in a streaming one."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.base import ColumnSources, StepContext, StreamTraits
from pipeline_assets.steps.kafka_offsets import Offsets, offsets_json
from pipeline_assets.steps.kafka_ranges import newest_records, not_before, resolved_offsets, still_there, with_records
from pipeline_assets.steps.kafka_records import (
    METADATA_COLUMNS,
    RecordFormat,
    RecordParser,
    check_avro_schema,
    infer_schema,
    json_objects,
    records_can_break,
    schema_of_ddl,
)
from pipeline_assets.steps.kafka_stream_start import KafkaStreamStart, kept_source, source_of
from pipeline_assets.steps.kafka_topics import KafkaTopics
from pipeline_assets.steps.path_checks import check_folder
from pipeline_assets.steps.sql_texts import SqlColumns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

_log = logging.getLogger(__name__)

_SAMPLE_RECORDS = 1000


class FromKafka(KafkaTopics):
    """Reads Kafka topics. In a batch pipeline: what is in them from `startingOffsets` to `endingOffsets`, as they are
    when the run plans it. In a streaming pipeline: what comes in from `startingOffsets` on; a restart goes on where the
    checkpoint is, and a partition that is added is read from its beginning.

    By `format` the records' values become columns:

    - `json`: the fields of JSON objects, by `schema`. Without a schema it is inferred from up to 1000 of the newest
      records: in a batch pipeline from those of the range; in a streaming one once, at the first start, and restarts
      keep it. Where there is no record, that start waits for the first one; with the trigger `availableNow` it fails. A
      sample may mislead (a number that happens to be whole becomes a BIGINT), so give `schema` where it matters.
    - `avro`: the fields of an Avro record by `avroSchema`, in plain Avro encoding, without the header that schema
      registries put before it.
    - `text`: the column `value` STRING. `raw`: the column `value` BINARY.

    A record whose value is missing, is no such JSON or Avro, or does not fit the schema, is never a row. It fails a
    batch (see `brokenRecords`); a stream puts it into the table at `deadLetterPath`. JSON is read as Spark reads it:
    fields that the schema does not have are left out, and so is text after the end of the object.
    """

    method = "fromKafka"
    behavior_version = "2"
    streaming_only = frozenset({"max_offsets_per_trigger", "dead_letter_path"})

    format: RecordFormat = "json"
    """What the records' values are: `json`, `avro`, `text` (a column `value` STRING) or `raw` (`value` BINARY)."""
    schema_: SqlColumns | None = Field(default=None, alias="schema")
    """With format json: the columns as Spark DDL, e.g. `id BIGINT, event_type STRING`. Inferred when left out."""
    avro_schema: Annotated[str | dict[str, Any], AfterValidator(check_avro_schema)] | None = None
    """With format avro, and needed there: the Avro schema of the records, as a JSON object or as its text."""
    include_metadata: bool = False
    """Add the columns `kafka_key` (STRING; with format raw BINARY), `kafka_topic`, `kafka_partition`, `kafka_offset`
    and `kafka_timestamp`."""
    broken_records: Literal["fail", "null"] | None = None
    """Batch only: a record that can't be read fails the run (`fail`, when left out), or has nulls where it does not fit
    (`null`)."""
    dead_letter_path: Annotated[str, AfterValidator(check_folder)] | None = None
    """Streaming only: the Delta table for records that can't be read. When left out it is in the warehouse, called like
    this step with `_dead_letters` after it."""

    @model_validator(mode="after")
    def _format_and_schema(self) -> Self:
        if self.schema_ is not None and self.format != "json":
            raise ValueError(f"'schema' describes JSON: leave it out with format {self.format!r}")
        if (self.avro_schema is not None) != (self.format == "avro"):
            raise ValueError("format 'avro' and 'avroSchema' go together: give both or neither")
        return self

    @property
    def streams(self) -> bool:
        return True

    @property
    def can_break(self) -> bool:
        """Whether there can be records that can't be read."""
        return records_can_break(self.format)

    def column_sources(self, columns: Sequence[str]) -> ColumnSources:
        """Return the parts of the records, called as Spark calls them: ``value``, ``key``, ``offset`` ..."""
        told = {name: name.removeprefix("kafka_") for name in METADATA_COLUMNS} if self.include_metadata else {}
        return {column: tuple((topic, told.get(column, "value")) for topic in self.sources()) for column in columns}

    def dead_letter_sources(self) -> ColumnSources:
        """Return what the columns of ``dead_letters`` come from."""
        parts = ("topic", "partition", "offset", "timestamp", "key", "value")
        told = {**dict(zip(parts, parts, strict=True)), "value_text": "value", "reason": "value"}
        return {column: tuple((topic, part) for topic in self.sources()) for column, part in told.items()}

    def stream_problem(self, stream: StreamTraits) -> str | None:
        if self.broken_records is not None:
            return (
                "'brokenRecords' is for batch pipelines: leave it out; a stream puts records that can't be read into "
                "the table at 'deadLetterPath'"
            )
        if self.ending_offsets is not None:
            return "'endingOffsets' is for batch pipelines: leave it out; a stream has no end"
        return None

    def extract(self, context: StepContext) -> DataFrame:
        """Return the records of the range, which is fixed here.

        Raises ConfigurationError for a topic that is not there, for offsets that do not fit it, and for JSON without
        a schema where there is no record to infer one from.
        """
        earliest, latest = self.offsets(context, "earliest"), self.offsets(context, "latest")
        start = resolved_offsets("startingOffsets", self.starting_offsets or "earliest", earliest, latest)
        end = resolved_offsets("endingOffsets", self.ending_offsets or "latest", earliest, latest)
        for topic, partitions in start.items():
            for partition, offset in partitions.items():
                if offset > end[topic][partition]:
                    raise ConfigurationError(
                        f"topic {topic!r}, partition {partition}: startingOffsets {offset} is after "
                        f"endingOffsets {end[topic][partition]}: exchange them"
                    )
        schema = self.schema_
        if schema is None and self.format == "json":
            schema = self._infer(context, start, end)
            if schema is None:
                raise ConfigurationError(
                    f"{self.described()}: none of the newest records from startingOffsets to endingOffsets is a JSON "
                    "object to infer the columns from: give 'schema'"
                )
        parser, messages = self._parser(context, schema), self.records(context, start, end)
        if self.broken_records == "null" or not self.can_break:
            return parser.lenient(messages)
        # Several extracts may meet in one query, which takes each name once.
        return parser.strict(messages, f"kafka_{uuid.uuid4().hex}")

    def extract_stream(self, context: StepContext) -> DataFrame:
        """Return the stream of the records that can be read: at each start from the same place, with the same columns.

        Both are kept in the checkpoints' document ``source_<step>``, as ``startingOffsets`` and ``schema``: all queries
        of the pipeline start there, and what is produced while a schema is inferred is read. A query that joins others
        later begins with what is left, where records have gone. The place and the columns are found anew when
        the config asks for another beginning (``configured``) before a query has read anything. ``topicIds`` tell a
        topic from another one of its name. The observation ``kafka_<step>`` counts ``records`` and ``dead_letters``.

        Raises ConfigurationError for a topic that is not there and for offsets that do not fit it;
        PipelineExecutionError for one that was made again since the last start, unless failOnDataLoss is false;
        PipelineCancelledError when the run is stopped while this waits for a topic or for a first record.
        """
        source = source_of(context)
        infers = self.schema_ is None and self.format == "json"
        start = KafkaStreamStart(self, context, source, partial(self._infer, context) if infers else None).begin()
        # Spark takes a pattern that matches a part of the name, too.
        subscription = (
            {"subscribePattern": f"^(?:{self.topic_pattern})$"}
            if self.topic_pattern
            else {"subscribe": ",".join(self.topic_names())}
        )
        options = {**self.reader_options(context), **subscription, "startingOffsets": offsets_json(start.offsets)}
        if self.max_offsets_per_trigger is not None:
            options["maxOffsetsPerTrigger"] = str(self.max_offsets_per_trigger)
        messages = context.spark.readStream.format("kafka").options(**options).load()
        return self._parser(context, self.schema_ or start.schema).counted(messages, f"kafka_{source.step}")

    def dead_letters(self, context: StepContext, start: Offsets, end: Offsets) -> DataFrame | None:
        """Return the records from ``start`` up to ``end`` that can't be read, and why; the same at each call.

        Its columns are topic, partition, offset, timestamp, key, value (BINARY as they are), value_text (null where
        that is no UTF-8) and reason. None when there is nothing in the range, or all of it can be read. -2 in
        ``start``, or no offset for a partition, stands for its earliest record. ``context.source`` is set; the stream
        has been started before.
        """
        if not self.can_break or not with_records(start, end):
            return None
        source = source_of(context)
        document = kept_source(source.step, source.checkpoints) or {}
        parser = self._parser(context, self.schema_ or document.get("schema"))
        return parser.dead_letters(self.records(context, start, with_records(start, end)))

    def left_from(self, context: StepContext, start: Offsets) -> Offsets:
        """Return ``start``, and the earliest offset in partitions whose records from there on have gone."""
        earliest = self.offsets(context, "earliest")
        left = not_before(start, earliest)
        if still_there(start, earliest) != start:
            _log.warning(
                "%s: the records from %s on are no longer in Kafka: those that can't be read are looked for from %s on",
                self.described(),
                offsets_json(start),
                offsets_json(left),
            )
        return left

    def _parser(self, context: StepContext, ddl: str | None) -> RecordParser:
        schema: StructType | None = schema_of_ddl(context.spark, ddl) if ddl is not None else None
        avro_schema = self.avro_schema if isinstance(self.avro_schema, str) else None
        return RecordParser(self.format, schema, avro_schema, self.include_metadata)

    def _infer(self, context: StepContext, start: Offsets, end: Offsets) -> str | None:
        """Return the columns of the newest JSON objects from ``start`` to ``end`` as DDL; None when there are none."""
        first = newest_records(start, end, _SAMPLE_RECORDS)
        if not first:
            return None
        last = {topic: {partition: end[topic][partition] for partition in first[topic]} for topic in first}
        # The sample may shrink by retention while it is read; that is no loss.
        sample = self.records(context, first, last, failOnDataLoss="false")
        objects = json_objects(row[0] for row in sample.select("value").collect())
        if not objects:
            return None
        schema = infer_schema(context.spark, objects)
        _log.info("%s: inferred from %d records: %s", self.described(), len(objects), schema)
        return schema
