"""The first rows that a commit added to a Delta table, read from its files: no Spark job for what is only shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.steps.delta_log import AddedFile, Commit
from pipeline_assets.steps.file_systems import Folder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PAGE_BYTES = 2**16
_EPOCH = datetime(1970, 1, 1)
# Beside these and those of `_READ` there are types that Kernel does not read, such as variant.
_NESTED = ("array", "map", "struct")


@dataclass(frozen=True)
class Preview:
    """Some rows of a table, and the names of their columns."""

    columns: list[str]
    rows: list[list[Any]]


def rows_by_driver(spark: SparkSession, table: str, commit: Commit, limit: int) -> Preview | None:
    """Return up to ``limit`` rows that ``commit`` added; None when it added no file.

    The driver's JVM reads them by Delta Kernel, which Delta comes with: a process that has a JVM is to need no second
    reader of Parquet, which takes more memory than all else that it does in Python.
    Source: https://docs.delta.io/delta-kernel-java/
    """
    if not commit.added:
        return None
    kernel = _Kernel(spark, table, commit.version, limit)
    columns = [*kernel.columns, *commit.added[0].partition_values]
    rows = (
        [*row, *file.partition_values.values()]
        for file in commit.added
        for row in kernel.rows(f"{table}/{file.path}", file.size)
    )
    return Preview(columns, list(islice(rows, limit)))


class _Kernel:
    """Delta Kernel's reader of data files, for the table at ``table`` as it was in ``version``."""

    def __init__(self, spark: SparkSession, table: str, version: int, batch_rows: int) -> None:
        from pyspark.sql.types import StructType

        session: Any = spark._jsparkSession
        java: Any = spark._jvm
        self._java = java
        conf = session.sessionState().newHadoopConf()
        conf.setInt("delta.kernel.default.parquet.reader.batch-size", batch_rows)
        kernel = java.io.delta.kernel
        self._engine = kernel.defaults.engine.DefaultEngine.create(conf)
        snapshot = kernel.Table.forPath(self._engine, table).getSnapshotAsOfVersion(self._engine, version)
        state = snapshot.getScanBuilder().build().getScanState(self._engine)
        text = kernel.internal.types.DataTypeJsonSerDe.serializeDataType
        partitioned = set(snapshot.getPartitionColumnNames())
        fields = [
            field
            for field in StructType.fromJson(json.loads(text(snapshot.getSchema())))
            if field.name not in partitioned
        ]
        self.columns = [field.name for field in fields]
        self._types = [field.dataType for field in fields]
        # Files have the names that Delta gave the columns at first, in the order of those that they have now.
        physical = kernel.internal.data.ScanStateRow.getPhysicalDataReadSchema(state)
        readable = [at for at, kind in enumerate(self._types) if kind.typeName() in {*_READ, *_NESTED}]
        read = java.java.util.ArrayList()
        for at in readable:
            read.add(physical.at(at))
        self._physical = kernel.types.StructType(read)
        self._places = {at: place for place, at in enumerate(readable)}

    def rows(self, path: str, size: int) -> Iterator[list[Any]]:
        """Yield the rows of the data file at ``path``."""
        utils = self._java.io.delta.kernel.internal.util.Utils
        status = self._java.io.delta.kernel.utils.FileStatus.of(path, size, 0)
        batches = self._engine.getParquetHandler().readParquetFiles(
            utils.singletonCloseableIterator(status), self._physical, self._java.java.util.Optional.empty()
        )
        try:
            while batches.hasNext():
                batch = batches.next().getData()
                columns = {at: batch.getColumnVector(place) for at, place in self._places.items()}
                vectors = [columns.get(at) for at in range(len(self._types))]
                for row in range(batch.getSize()):
                    yield [_value(vector, row, kind) for vector, kind in zip(vectors, self._types, strict=True)]
        finally:
            batches.close()


def _value(vector: Any, at: int, kind: Any) -> Any:
    """Return the value at ``at`` of a Kernel's vector, as PySpark's ``collect`` would; its type where there is none."""
    if vector is None:
        return f"({kind.typeName()})"
    if vector.isNullAt(at):
        return None
    match kind.typeName():
        case "array":
            found = vector.getArray(at)
            return _values(found.getElements(), found.getSize(), kind.elementType)
        case "map":
            found = vector.getMap(at)
            size = found.getSize()
            keys, values = (
                _values(found.getKeys(), size, kind.keyType),
                _values(found.getValues(), size, kind.valueType),
            )
            return dict(zip(keys, values, strict=True))
        case "struct":
            return {field.name: _value(vector.getChild(index), at, field.dataType) for index, field in enumerate(kind)}
        case name:
            return _READ[name](vector, at)


def _values(vector: Any, size: int, kind: Any) -> list[Any]:
    return [_value(vector, at, kind) for at in range(size)]


_READ: dict[str, Callable[[Any, int], Any]] = {
    "boolean": lambda vector, at: vector.getBoolean(at),
    "byte": lambda vector, at: vector.getByte(at),
    "short": lambda vector, at: vector.getShort(at),
    "integer": lambda vector, at: vector.getInt(at),
    "long": lambda vector, at: vector.getLong(at),
    "float": lambda vector, at: vector.getFloat(at),
    "double": lambda vector, at: vector.getDouble(at),
    "decimal": lambda vector, at: vector.getDecimal(at),
    "string": lambda vector, at: vector.getString(at),
    "binary": lambda vector, at: bytes(vector.getBinary(at)),
    "date": lambda vector, at: _or_number(vector.getInt(at), lambda days: (_EPOCH + timedelta(days)).date()),
    "timestamp": lambda vector, at: _or_number(
        vector.getLong(at), lambda micros: _EPOCH.replace(tzinfo=UTC) + timedelta(microseconds=micros)
    ),
    "timestamp_ntz": lambda vector, at: _or_number(
        vector.getLong(at), lambda micros: _EPOCH + timedelta(microseconds=micros)
    ),
}


def _or_number(number: int, moment: Callable[[int], Any]) -> Any:
    """Return the moment that ``number`` counts up to from 1970, or the number: Python's end in the year 9999."""
    try:
        return moment(number)
    except OverflowError:
        return number


def rows_by_arrow(table: Folder, commit: Commit, limit: int) -> Preview | None:
    """Return the same, read by PyArrow: Spark Connect's client has no JVM, and has PyArrow loaded anyway."""
    import pyarrow as pa

    columns: list[str] = []
    rows: list[list[Any]] = []
    for file in commit.added:
        try:
            batch = _first_batch(table, file, limit - len(rows))
            found = [] if batch is None else batch.to_pylist()
        except (OSError, pa.ArrowException, ValueError, OverflowError) as error:  # of dates that Python has not, too
            raise PipelineExecutionError(f"{table.path}/{file.path}: {error}") from None
        if batch is not None:
            columns = [*batch.schema.names, *file.partition_values]
            rows += [[*row.values(), *file.partition_values.values()] for row in found]
        if len(rows) >= limit:
            break
    return Preview(columns, rows) if columns else None


def _first_batch(table: Folder, file: AddedFile, limit: int) -> Any:
    import pyarrow.parquet as pq

    with table.open(file.path) as source:
        # Page by page: by itself it takes the whole row group into memory, for these few rows.
        reader = pq.ParquetFile(source, buffer_size=_PAGE_BYTES, pre_buffer=False)
        return next(reader.iter_batches(batch_size=limit), None)
