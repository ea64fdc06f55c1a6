"""Merging into Delta tables: which columns a MERGE takes, and the MERGE itself."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark.temporary_conf import temporary_conf
from pipeline_assets.steps.column_types import are_comparable, holds, parts
from pipeline_assets.steps.columns import quote

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType


def check_merge_keys(keys: Sequence[str], there: Sequence[str], path: str) -> None:
    """Raise ConfigurationError when the table at ``path``, whose columns are ``there``, lacks one of ``keys``."""
    known = {column.casefold() for column in there}
    missing = [key for key in keys if key.casefold() not in known]
    if missing:
        raise ConfigurationError(
            f"the table at {path} has no column {', '.join(map(repr, missing))} to merge by "
            f"(its columns: {', '.join(there)})"
        )


def check_merged_columns(
    frame: DataFrame, there: StructType, path: str, keys: Sequence[str], *, merge_schema: bool
) -> None:
    """Raise ConfigurationError when a MERGE of ``frame`` into the table at ``path`` would leave out or alter values.

    ``there``: the table's columns. Where an append refuses another type, MERGE casts to the table's; and it compares
    ``keys`` before it has done so.
    """
    known = {column.name.casefold(): column.dataType for column in there.fields}
    given = {column.name: column.dataType for column in frame.schema.fields}
    new = [name for name in given if name.casefold() not in known]
    keyed = {key.casefold() for key in keys}
    others = {
        name: (kind, known[name.casefold()])
        for name, kind in given.items()
        if name not in new and not _fits(kind, known[name.casefold()], is_key=name.casefold() in keyed)
    }
    if others and merge_schema and _widens_types(frame.sparkSession, path):
        others = {name: kinds for name, kinds in others.items() if not _are_widened(*kinds)}
    details = [
        f"{name}: {kind.simpleString()}, {wanted.simpleString()} in the table"
        for name, (kind, wanted) in others.items()
    ]
    if new and not merge_schema:
        details.append(f"new: {', '.join(new)}")
    if details:
        raise not_fitting(path, "; ".join(details))


def _fits(given: DataType, wanted: DataType, *, is_key: bool) -> bool:
    """Whether values of type ``given`` stay what they are in the table."""
    return not _altered(given, wanted) and (not is_key or are_comparable(given, wanted))


def _altered(given: DataType, wanted: DataType) -> list[tuple[DataType, DataType]]:
    """Return the types, given and wanted, of those parts of the two that do not fit.

    Of fields that only one of them has Delta tells itself.
    """
    known = dict(parts(wanted))
    pairs = [(part, known[place]) for place, part in parts(given) if place in known]
    return [(part, other) for part, other in pairs if not (holds(other, part) or _are_alike(part, other))]


def _are_alike(given: DataType, wanted: DataType) -> bool:
    """Whether both are structs, both arrays, or both maps, whose parts are looked at by themselves."""
    return given.typeName() == wanted.typeName() and wanted.typeName() in ("struct", "array", "map")


def _widens_types(spark: SparkSession, path: str) -> bool:
    """Whether schema evolution gives columns of the table at ``path`` wider types, where it casts in other tables."""
    (detail,) = spark.sql(f"DESCRIBE DETAIL delta.{quote(path)}").select("properties").collect()
    return str(detail[0].get("delta.enableTypeWidening")) == "true"


def _are_widened(given: DataType, wanted: DataType) -> bool:
    """Whether schema evolution widens a column of type ``wanted`` such that values of type ``given`` fit."""
    altered = _altered(given, wanted)
    return bool(altered) and all(_is_widened(*kinds) for kinds in altered)


def _is_widened(given: DataType, wanted: DataType) -> bool:
    """Whether schema evolution makes a column of type ``wanted``, or a part of one, one of type ``given``.

    Source: https://docs.delta.io/latest/delta-type-widening.html
    """
    from pyspark.sql.types import DateType, DecimalType, DoubleType, FloatType, IntegralType, TimestampNTZType

    if isinstance(wanted, DateType):
        return isinstance(given, TimestampNTZType)
    families = (IntegralType, FloatType | DoubleType, DecimalType)
    is_one = any(isinstance(given, family) and isinstance(wanted, family) for family in families)
    return is_one and holds(given, wanted)


def not_fitting(path: str, details: str) -> ConfigurationError:
    """Return what a write is refused by whose columns are not those of the table at ``path``."""
    return ConfigurationError(
        f"the DataFrame's columns do not fit the table at {path}: cast those of other types in a withColumns step "
        "before, add new ones with mergeSchema, or replace the table's with mode 'overwrite' and overwriteSchema",
        details=details,
    )


def merge_into(
    path: str,
    frame: DataFrame,
    keys: Sequence[str],
    *,
    operator: Literal["=", "<=>"],
    merge_schema: bool,
    conf: Mapping[str, str],
) -> bool:
    """Update the rows in the table at ``path`` whose ``keys`` are those of rows of ``frame``, and add the others.

    ``operator``: how keys compare. ``conf``: what the session is to say meanwhile. Returns whether Delta has done it;
    not where it knows the transaction that ``conf`` names already.
    """
    spark = frame.sparkSession
    view = f"merge_source_{uuid.uuid4().hex}"
    condition = " AND ".join(f"target.{quote(key)} {operator} source.{quote(key)}" for key in keys)
    evolution = "WITH SCHEMA EVOLUTION " if merge_schema else ""
    # When a view is dropped, Spark lets go of what it keeps of just what the view is.
    frame.where(f"'{view}' IS NOT NULL").createOrReplaceTempView(view)
    try:
        with temporary_conf(spark, conf):
            changed = spark.sql(
                f"MERGE {evolution}INTO delta.{quote(path)} AS target USING {view} AS source ON {condition} "
                "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
            ).collect()
    finally:
        spark.catalog.dropTempView(view)
    return bool(changed)
