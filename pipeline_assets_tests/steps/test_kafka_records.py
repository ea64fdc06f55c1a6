"""Records into columns, and those that can't be: on rows like those of Spark's Kafka source."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.errors import PySparkException

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.kafka_records import (
    RecordParser,
    check_avro_schema,
    infer_schema,
    json_objects,
    schema_of_ddl,
)
from pipeline_assets_tests.steps.frames import frame_of, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DDL = "id INT, kind STRING, amount DOUBLE, place STRUCT<zip: INT>, sizes ARRAY<INT>"
GOOD: list[tuple[bytes, tuple[Any, ...]]] = [
    (b'{"id": 1, "kind": "a", "amount": 1.5}', (1, "a", 1.5, None, None)),
    (b"{}", (None, None, None, None, None)),
    (b'{"id": null, "other": [1]}', (None, None, None, None, None)),
    (b'{"kind": 7, "place": {"zip": 3}, "sizes": []}', (None, "7", None, (3,), [])),
]
BROKEN: list[tuple[bytes | None, str]] = [
    (None, "no value"),
    (b"", "the value is empty"),
    (b"  ", "the value is empty"),
    (b'{"id": 1', "not JSON"),
    (b"hello", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'[{"id": 1}]', "JSON, but not an object"),
    (b'"text"', "JSON, but not an object"),
    (b"null", "JSON, but not an object"),
    (b'{"id": "abc"}', "field 'id' is not INT: 'abc'"),
    (b'{"id": 1.5}', "field 'id' is not INT: '1.5'"),
    (b'{"id": 99999999999, "amount": "x"}', "field 'id' is not INT: '99999999999'; field 'amount' is not DOUBLE: 'x'"),
    (b'{"place": {"zip": "far"}}', "field 'place' is not struct<zip:int>: '{\"zip\":\"far\"}'"),
    (b'{"sizes": [1, "x"]}', "field 'sizes' is not array<int>: '[1,\"x\"]'"),
    (b'{"id": 1, "id": "x"}', "field 'id' is not INT: 'x'"),
]


def messages(spark: SparkSession, values: list[bytes | None]) -> DataFrame:
    """Return the values as messages of partition 0 of topic ``t``, with their place as offset."""
    at = datetime(2024, 5, 1, tzinfo=UTC)
    rows = [(f"k{offset}".encode(), value, "t", 0, offset, at) for offset, value in enumerate(values)]
    columns = "key BINARY, value BINARY, topic STRING, partition INT, offset BIGINT, timestamp TIMESTAMP"
    return frame_of(spark, columns, rows)


def test_good_and_broken_json(any_spark: SparkSession) -> None:
    parser = RecordParser("json", schema_of_ddl(any_spark, DDL))
    mixed = messages(any_spark, [value for value, _ in GOOD] + [value for value, _ in BROKEN])
    counted = parser.counted(mixed, "kafka_test")
    assert counted.columns == ["id", "kind", "amount", "place", "sizes"]
    assert sorted(map(str, counted.collect())) == sorted(map(str, _rows(any_spark, [row for _, row in GOOD])))
    letters = parser.dead_letters(mixed)
    assert letters is not None
    assert [name for name, _ in letters.dtypes] == [
        "topic", "partition", "offset", "timestamp", "key", "value", "value_text", "reason",
    ]  # fmt: skip
    found = letters.orderBy("offset").collect()
    assert [(row["offset"] - len(GOOD), row["value"], row["reason"]) for row in found] == [
        (offset, value, reason) for offset, (value, reason) in enumerate(BROKEN)
    ]
    assert [row["value_text"] for row in found] == [_text(value) for value, _ in BROKEN]
    assert {row["key"] for row in found} == {f"k{len(GOOD) + offset}".encode() for offset in range(len(BROKEN))}


def _rows(spark: SparkSession, rows: list[tuple[Any, ...]]) -> list[Any]:
    return frame_of(spark, DDL, rows).collect()


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def test_a_field_may_be_called_as_anything(spark: SparkSession) -> None:
    parser = RecordParser("json", schema_of_ddl(spark, "not_parsed INT, `a.b` INT, record INT, value INT"))
    mixed = messages(spark, [b'{"not_parsed": 1, "a.b": 2, "record": 3, "value": 4}', b'{"not_parsed": "x"}'])
    assert rows_of(parser.counted(mixed, "kafka_test")) == [(1, 2, 3, 4)]
    letters = parser.dead_letters(mixed)
    assert letters is not None
    assert rows_of(letters.select("offset", "reason")) == [(1, "field 'not_parsed' is not INT: 'x'")]


def test_each_record_is_parsed_once(spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> None:
    parser = RecordParser("json", schema_of_ddl(spark, "id INT, kind STRING"), include_metadata=True)
    for frame in (
        parser.counted(messages(spark, [b"{}"]), "kafka_test"),
        parser.strict(messages(spark, [b"{}"]), "kafka_test"),
    ):
        frame.where("kind = 'a' AND id > 3 AND kafka_partition = 0").select("id").explain()
        assert capsys.readouterr().out.count("from_json(") == 1


@pytest.mark.parametrize("columns", [1, 200], ids=["narrow", "wide"])
def test_a_later_filter_hides_no_broken_record(columns: int, any_spark: SparkSession) -> None:
    """Spark compiles a filter of up to 100 columns, and evaluates its conditions in another order."""
    ddl = ", ".join(["id INT", *(f"c{at} INT" for at in range(1, columns))])
    parser = RecordParser("json", schema_of_ddl(any_spark, ddl))
    frame = parser.strict(messages(any_spark, [b'{"id": 1}', b'{"id": "x"}']), "kafka_test")
    any_spark.conf.set("spark.sql.codegen.wholeStage", "true")
    any_spark.conf.set("spark.sql.codegen.factoryMode", "FALLBACK")
    with pytest.raises(PySparkException, match="partition 0, offset 1: the record's value is no JSON object"):
        frame.where("id > 5").collect()


def test_a_frame_meets_itself(any_spark: SparkSession) -> None:
    parser = RecordParser("json", schema_of_ddl(any_spark, "id INT"))
    values: list[bytes | None] = [b'{"id": 1}', b'{"id": 2}', None]
    frame = parser.counted(messages(any_spark, values), "kafka_test")
    assert rows_of(frame.join(frame.withColumnRenamed("id", "other"), frame["id"] == frame["id"])) != []
    assert rows_of(frame.where("id = 1").unionByName(frame.where("id = 2"))) == [(1,), (2,)]


def test_avro_of_nulls_is_no_broken_record(any_spark: SparkSession) -> None:
    schema = {"type": "record", "name": "Event", "fields": [{"name": "id", "type": ["null", "int"]}]}
    parser = RecordParser("avro", avro_schema=json.dumps(schema))
    # A union's value is the number of its branch (zigzag), then the branch's value.
    mixed = messages(any_spark, [b"\x00", b"\x02\x0e", b"\x08", b"", None])
    assert rows_of(parser.counted(mixed, "kafka_test")) == [(None,), (7,)]
    assert rows_of(parser.lenient(mixed)) == [(None,), (None,), (None,), (None,), (7,)]
    letters = parser.dead_letters(mixed)
    assert letters is not None
    assert rows_of(letters.select("offset", "reason")) == [
        (2, "not Avro of the pipeline's avroSchema"),
        (3, "not Avro of the pipeline's avroSchema"),
        (4, "no value"),
    ]


def test_text_and_raw_are_never_broken(spark: SparkSession) -> None:
    mixed = messages(spark, [b"a", b"", None])
    text, raw = RecordParser("text", include_metadata=True), RecordParser("raw", include_metadata=True)
    assert rows_of(text.counted(mixed, "kafka_test").select("value", "kafka_key")) == [
        (None, "k2"), ("", "k1"), ("a", "k0"),
    ]  # fmt: skip
    assert rows_of(raw.counted(mixed, "kafka_test").select("kafka_key", "value")) == [
        (b"k0", b"a"), (b"k1", b""), (b"k2", None),
    ]  # fmt: skip
    assert text.dead_letters(mixed) is None
    assert raw.dead_letters(mixed) is None


def test_metadata_clashes_with_a_column(spark: SparkSession) -> None:
    parser = RecordParser("json", schema_of_ddl(spark, "Kafka_Key INT, id INT"), include_metadata=True)
    with pytest.raises(ConfigurationError, match="columns of their own called kafka_key: leave 'includeMetadata' out"):
        parser.counted(messages(spark, []), "kafka_test")


def test_schema_from_objects(any_spark: SparkSession) -> None:
    values = [b'{"a": 1, "b c": "x"}', b'{"a": 1.5, "n": {"m": [true]}}', b"no", b"[1]", b"{}", b"\xff", None]
    ddl = infer_schema(any_spark, json_objects(values))
    assert schema_of_ddl(any_spark, ddl) == schema_of_ddl(
        any_spark, "a DOUBLE, `b c` STRING, n STRUCT<m: ARRAY<BOOLEAN>>"
    )


def test_schema_of_big_records(spark: SparkSession) -> None:
    assert infer_schema(spark, [json.dumps({"a": "x" * 3_000_000})] * 3) == "STRUCT<a: STRING>"


def test_names_that_differ_in_case_only(spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match="fields 'Id' and 'id' would be one column to Spark: give 'schema'"):
        infer_schema(spark, ['{"Id": 1}', '{"id": 2}'])


@pytest.mark.parametrize(
    ("ddl", "message"),
    [
        ("id INTT", "'schema' is no list of columns: 'id INTT': expected DDL such as"),
        ("id INT,", "'schema' is no list of columns"),
        ("ARRAY<INT>", "'schema' names no columns"),
    ],
)
def test_no_schema(ddl: str, message: str, any_spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match=message):
        schema_of_ddl(any_spark, ddl)


@pytest.mark.parametrize(
    ("schema", "message"),
    [("{", "avroSchema is not JSON"), ('"int"', "has to be that of a record"), ({"type": "enum"}, "of a record")],
)
def test_no_avro_schema(schema: str | dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_avro_schema(schema)
