"""What is in Kafka's records: values into columns, the schema of JSON, and the records that can't be read.

Nothing here is a Python function that Spark calls for each record: all of it is Spark's own expressions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.columns import quote
from pipeline_assets.steps.sql_texts import no_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructField, StructType

RecordFormat = Literal["json", "avro", "text", "raw"]
METADATA_COLUMNS = ("kafka_key", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp")

_RECORD = "record"
_NOT_PARSED = "not_parsed"
_SHOWN_CHARACTERS = 100
# More would only make the query with the sample in it big; a few thousand records are in here.
_SAMPLE_CHARACTERS = 4_000_000


def records_can_break(format_: RecordFormat) -> bool:
    """Whether there can be records of this format that can't be read."""
    return format_ in ("json", "avro")


@dataclass(frozen=True)
class RecordParser:
    """Makes columns of the messages that Spark's Kafka source yields.

    ``schema`` are the columns of JSON. ``avro_schema`` is the JSON text of an Avro schema of type record.
    """

    format: RecordFormat
    schema: StructType | None = None
    avro_schema: str | None = None
    include_metadata: bool = False

    def counted(self, messages: DataFrame, metrics: str) -> DataFrame:
        """Return the rows of the records that can be read.

        An observation called ``metrics`` counts all ``records`` and the ``dead_letters`` among them. It also keeps
        Spark from moving filters in front of the parsing, which would parse each record once for each of them.
        """
        return self._rows(self._observed(messages, metrics).where(~self._broken()))

    def strict(self, messages: DataFrame, metrics: str) -> DataFrame:
        """Return the rows of all records, in a query that fails at a record that can't be read.

        An observation called ``metrics`` makes the check. Of a filter, Spark may first evaluate what it has inferred
        from the filters of later steps (``id IS NOT NULL``), and what these drop would not be checked.
        """
        from pyspark.sql import functions as F  # noqa: N812

        if not self._can_break:
            return self.lenient(messages)
        place = "topic '%s', partition %d, offset %d: the record's value is "
        advice = (
            f"no {self._expected()}; correct '{'schema' if self.format == 'json' else 'avroSchema'}', "
            "or give 'brokenRecords': 'null' to have nulls there"
        )
        told = F.concat(F.format_string(place, "topic", "partition", "offset"), F.lit(advice))
        checked = F.when(self._broken(), F.raise_error(told).cast("boolean")).otherwise(F.lit(True))
        return self._rows(self._parsed(messages).observe(metrics, F.count(checked).alias("records")))

    def lenient(self, messages: DataFrame) -> DataFrame:
        """Return the rows of all records, with nulls for what can't be read."""
        return self._rows(self._parsed(messages))

    def dead_letters(self, messages: DataFrame) -> DataFrame | None:
        """Return the records that can't be read, as they are, each with the reason; None when all can be read."""
        from pyspark.sql import functions as F  # noqa: N812

        if not self._can_break:
            return None
        text = F.col("value").cast("string")
        return (
            self._parsed(messages)
            .where(self._broken())
            .select(
                "topic",
                "partition",
                "offset",
                "timestamp",
                "key",
                "value",
                F.try_validate_utf8(text).alias("value_text"),
                self._reason().alias("reason"),
            )
        )

    @property
    def _can_break(self) -> bool:
        return records_can_break(self.format)

    def _observed(self, messages: DataFrame, metrics: str) -> DataFrame:
        from pyspark.sql import functions as F  # noqa: N812

        records = F.count(F.lit(1))
        broken = F.lit(0).cast("bigint")
        if self._can_break:
            # count_if of the condition, without evaluating it for each record another time.
            broken = records - F.count(self._sound())
            if self.format == "json":
                broken = broken + F.count(F.col(f"{_RECORD}.{self._not_parsed()}"))
        return self._parsed(messages).observe(metrics, records.alias("records"), broken.alias("dead_letters"))

    def _parsed(self, messages: DataFrame) -> DataFrame:
        """Return the messages with what was made of their values in the column ``record``."""
        return messages.withColumn(_RECORD, self._record())

    def _record(self) -> Column:
        from pyspark.sql import functions as F  # noqa: N812

        value = F.col("value")
        match self.format:
            case "json":
                schema = self._json_schema().add(self._not_parsed(), "string")
                return _from_json(value.cast("string"), schema, self._not_parsed())
            case "avro":
                from pyspark.sql.avro.functions import from_avro

                return from_avro(value, _wrapped(self.avro_schema or ""), {"mode": "PERMISSIVE"})
            case "text":
                return value.cast("string")
            case "raw":
                return value

    def _sound(self) -> Column:
        """Return what is null for a record that can't be read at all."""
        from pyspark.sql import functions as F  # noqa: N812

        return F.col(f"{_RECORD}.{_RECORD}" if self.format == "avro" else _RECORD)

    def _broken(self) -> Column:
        from pyspark.sql import functions as F  # noqa: N812

        if not self._can_break:
            return F.lit(False)
        broken = self._sound().isNull()
        return broken | F.col(f"{_RECORD}.{self._not_parsed()}").isNotNull() if self.format == "json" else broken

    def _rows(self, parsed: DataFrame) -> DataFrame:
        """Return the record's own columns, with those that say where it was."""
        from pyspark.sql import functions as F  # noqa: N812

        columns = list(self._columns(parsed))
        if self.include_metadata:
            taken = {name.casefold() for name, _ in columns}
            clashes = [name for name in METADATA_COLUMNS if name in taken]
            if clashes:
                raise ConfigurationError(
                    f"the records have columns of their own called {', '.join(clashes)}: leave 'includeMetadata' out, "
                    "or leave them out of the schema"
                )
            key = F.col("key") if self.format == "raw" else F.col("key").cast("string")
            where = (key, *(F.col(name) for name in ("topic", "partition", "offset", "timestamp")))
            columns.extend(zip(METADATA_COLUMNS, where, strict=True))
        return parsed.select(*(column.alias(name) for name, column in columns))

    def _columns(self, parsed: DataFrame) -> Iterator[tuple[str, Column]]:
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.types import StructType

        if not self._can_break:
            yield "value", F.col(_RECORD)
            return
        fields, start = self._json_schema().names if self.format == "json" else [], _RECORD
        if self.format == "avro":
            start = f"{_RECORD}.{_RECORD}"
            inside = parsed.select(start).schema.fields[0].dataType
            fields = inside.names if isinstance(inside, StructType) else []
        for name in fields:
            yield name, F.col(f"{start}.{quote(name)}")

    def _json_schema(self) -> StructType:
        """Return a copy of the columns, for others to be added."""
        from pyspark.sql.types import StructType

        return StructType(list(self.schema.fields) if self.schema else [])

    def _not_parsed(self) -> str:
        """Return the name of the column with a record that does not fit: none that the schema has."""
        taken = {name.casefold() for name in self._json_schema().names}
        name = _NOT_PARSED
        while name in taken:
            name += "_"
        return name

    def _expected(self) -> str:
        return f"JSON object of {ddl_of(self._json_schema())}" if self.format == "json" else "Avro of 'avroSchema'"

    def _reason(self) -> Column:
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.types import StructType

        text = F.col("value").cast("string")
        reason = F.when(F.col("value").isNull(), "no value")
        if self.format == "avro":
            return reason.otherwise("not Avro of the pipeline's avroSchema")
        alone = StructType().add(_NOT_PARSED, "string")
        is_object = _from_json(text, alone, _NOT_PARSED)[_NOT_PARSED].isNull()
        misfits = F.concat_ws("; ", *(_misfit(text, field) for field in self._json_schema().fields))
        return (
            reason.when(F.length(F.trim(text)) == 0, "the value is empty")
            .when(~is_object & F.try_parse_json(text).isNull(), "not JSON")
            .when(~is_object, "JSON, but not an object")
            .when(misfits != "", misfits)
            .otherwise(f"does not fit the schema {ddl_of(self._json_schema())}")
        )


def _from_json(text: Column, schema: StructType, not_parsed: str) -> Column:
    from pyspark.sql import functions as F  # noqa: N812

    return F.from_json(text, schema, {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": not_parsed})


def _misfit(text: Column, field: StructField) -> Column:
    """Return what is wrong with a field of a JSON object; null when it fits."""
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.types import StructType

    not_parsed = _NOT_PARSED if field.name.casefold() != _NOT_PARSED else f"{_NOT_PARSED}_"
    alone = _from_json(text, StructType([field]).add(not_parsed, "string"), not_parsed)
    shown = _from_json(text, StructType().add(field.name, "string").add(not_parsed, "string"), not_parsed)
    shown_text = F.substring(F.coalesce(shown[field.name], F.lit("")), 1, _SHOWN_CHARACTERS)
    says = F.concat(F.lit(f"field '{field.name}' is not {_type_name(field)}: '"), shown_text, F.lit("'"))
    return F.when(alone[not_parsed].isNotNull(), says)


def _type_name(field: StructField) -> str:
    name = field.dataType.simpleString()
    return name if "<" in name else name.upper()


def ddl_of(schema: StructType) -> str:
    """Return ``schema`` as the DDL that a config has it as."""
    return ", ".join(f"{_plain(field.name)} {_type_name(field)}" for field in schema.fields)


def _plain(name: str) -> str:
    return name if name.isidentifier() else quote(name)


def check_avro_schema(schema: str | dict[str, Any]) -> str:
    """Return ``schema`` as JSON text. Raises ValueError when it is no Avro schema of a record."""
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ValueError(f"avroSchema is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("type") != "record" or not isinstance(found.get("fields"), list):
        raise ValueError('avroSchema has to be that of a record: {"type": "record", "name": ..., "fields": [...]}')
    return json.dumps(found)


def _wrapped(avro_schema: str) -> str:
    """Return the Avro schema of a record whose only field is one of ``avro_schema``, which is written the same way.

    Spark has a row of nulls where it can't read a record, and so can a record be; but here only a record that can't
    be read is a null.
    """
    inside = json.loads(avro_schema)
    return json.dumps({"type": "record", "name": "KafkaValue", "fields": [{"name": _RECORD, "type": inside}]})


def schema_of_ddl(spark: SparkSession, ddl: str) -> StructType:
    """Return the columns that ``ddl`` names, by Spark's own parser. Raises ConfigurationError when it names none."""
    from pyspark.errors import AnalysisException, ParseException
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.types import StructType

    try:
        found = spark.range(1).select(F.from_json(F.lit(""), ddl)).schema.fields[0].dataType
    except (AnalysisException, ParseException) as error:
        raise no_columns(ddl, error) from None
    if not isinstance(found, StructType) or not found.fields:
        raise ConfigurationError(
            f"'schema' names no columns: {ddl!r}: expected DDL such as 'id BIGINT, event_type STRING'"
        )
    return found


def json_objects(values: Iterable[bytes | None]) -> list[str]:
    """Return those of ``values`` that are JSON objects with something in them, as text."""
    return [text for value in values if value is not None and (text := _object_text(bytes(value))) is not None]


def _object_text(value: bytes) -> str | None:
    try:
        text = value.decode("utf-8")
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return text if isinstance(found, dict) and found else None


def infer_schema(spark: SparkSession, objects: list[str]) -> str:
    """Return the columns of ``objects`` (JSON texts) as DDL, by Spark's own inference.

    Raises ConfigurationError for names that differ in upper and lower case only.
    """
    from pyspark.sql import functions as F  # noqa: N812

    sample: list[str] = []
    characters = 0
    for text in objects:
        characters += len(text)
        if sample and characters > _SAMPLE_CHARACTERS:
            break
        sample.append(text)
    _refuse_names_alike(sample)
    (row,) = spark.range(1).select(F.schema_of_json(F.lit(f"[{','.join(sample)}]"))).collect()
    return str(row[0]).removeprefix("ARRAY<").removesuffix(">")


def _refuse_names_alike(objects: list[str]) -> None:
    """Raise ConfigurationError for names that are one to Spark: it would read one of them and leave out the others."""
    spellings: dict[str, set[str]] = {}
    for name in {name for text in objects for name in json.loads(text)}:
        spellings.setdefault(name.casefold(), set()).add(name)
    for names in spellings.values():
        if len(names) > 1:
            raise ConfigurationError(
                f"the records' fields {' and '.join(map(repr, sorted(names)))} would be one column to Spark: give "
                "'schema' with the one that you need"
            )
