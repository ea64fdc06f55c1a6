"""Load into PostgreSQL: Spark fills a staging table, one transaction moves its rows into the target."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from pipeline_assets.errors import (
    ConfigurationError,
    DataFrameResolutionError,
    PipelineError,
    PipelineExecutionError,
    RetryableError,
)
from pipeline_assets.redaction import redact_field
from pipeline_assets.steps.base import Dataset, LoadMethod, LoadResult, StepContext
from pipeline_assets.steps.columns import ColumnName
from pipeline_assets.steps.counted_rows import CountedRows
from pipeline_assets.steps.partition_rows import with_partition
from pipeline_assets.steps.postgres import (
    TableName,
    column_type,
    connect,
    database_errors,
    jdbc_options,
    quoted,
    spark_predicate,
    table_dataset,
)
from pipeline_assets.steps.postgres_casts import is_changed, may_change
from pipeline_assets.uris import authority

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from pyspark.sql import DataFrame

_log = logging.getLogger(__name__)
# Spark's events may lag behind by far on a busy driver. Without the count, rows of a task that ran twice would go in.
_COUNT_SECONDS = 60.0
# For how long a server that went away with the answer to a COMMIT is waited for: it may be starting again.
_LOOKS = 60
_SECONDS_BETWEEN_LOOKS = 1.0
# The tables whose rows go, or change, with rows of %(table)s or of its parts.
_FOLLOWERS = """
WITH RECURSIVE emptied(id) AS (
    SELECT %(table)s::regclass::oid
    UNION SELECT inhrelid FROM pg_catalog.pg_inherits JOIN emptied ON inhparent = id
)
SELECT DISTINCT conrelid::regclass::text FROM pg_catalog.pg_constraint JOIN emptied ON confrelid = id
WHERE contype = 'f' AND confdeltype IN ('c', 'n', 'd') AND (%(itself)s OR conrelid NOT IN (SELECT id FROM emptied))
ORDER BY 1 LIMIT 10
"""
# The columns of %(table)s and their types: without length and precision, and with them. Of a domain, and of an array of
# one, it is the type beneath: a cast to the domain itself would cut a text that is too long for it. -1 and not NULL: to
# a cast, `character` is `character(1)`, which cuts, too; `bpchar` has no length.
_COLUMNS = """
WITH RECURSIVE types AS (
    SELECT attnum, attname, atttypid AS id, atttypmod AS modifier, '' AS brackets, 0 AS depth
    FROM pg_catalog.pg_attribute
    WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attnum, attname, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END,
        CASE typtype WHEN 'd' THEN typtypmod ELSE modifier END,
        CASE typtype WHEN 'd' THEN brackets ELSE brackets || '[]' END, depth + 1
    FROM types JOIN pg_catalog.pg_type ON oid = id
    WHERE typtype = 'd' OR typcategory = 'A' AND typelem IN (SELECT oid FROM pg_catalog.pg_type WHERE typtype = 'd')
)
SELECT DISTINCT ON (attnum) attname, format_type(id, -1) || brackets, format_type(id, modifier) || brackets
FROM types ORDER BY attnum, depth DESC
"""
_SHOWN_CHARACTERS = 100


class ToPostgres(LoadMethod):
    """Writes a PostgreSQL table, in one transaction: readers see the old rows or the new ones.

    Spark fills a staging table beside it (named `_staging_...`, dropped at the end however the step ends). In a
    partitioned run, append and overwrite replace the rows of the run's partition and leave the others alone; without
    a partition column of its own, the rows get the column `partition_key`. upsert takes rows of any partition, and
    finds those to update by `keys` in all of them. Rows are not replaced where that would delete or change those of
    another table, by a foreign key with ON DELETE CASCADE, SET NULL or SET DEFAULT.

    A value that its column would change is refused, and nothing is written: a fraction in an integer column, a time of
    day in a `date`, a text that is too long for `name` or `"char"`, and any change of one in `keys` or in the
    partition's column. Cast or round such values before. In other columns PostgreSQL rounds: to the scale of
    numeric(p,s), to what real and double precision hold, times to the precision of timestamp(p); and in numeric a
    DOUBLE has 15 digits, a FLOAT 6.
    """

    method = "toPostgres"
    kinds = frozenset({"spark", "postgres"})
    connection_kind = "postgres"

    connection: str = "default"
    """PostgreSQL connection (from connections.json)."""
    table: str
    """The table, as `table` or `schema.table`; the schema is `public` when left out."""
    mode: Literal["append", "overwrite", "upsert"] = "append"
    """append adds rows; overwrite replaces all rows and keeps the table's definition, indexes and grants; upsert
    updates the rows whose `keys` are in the table already and adds the others. overwrite deletes the old rows, whose
    room is used again after a vacuum; others who write the table wait for it, and who reads does not."""
    keys: tuple[ColumnName, ...] = ()
    """Columns by which upsert finds rows. The table needs a unique index on them; one that is created gets it. A
    row with a null in one of them is always added."""
    create_table: bool = True
    """Create the table when it is missing; otherwise a missing table is an error."""
    batch_size: int = Field(default=5_000, gt=0)
    """Rows per round trip."""
    num_partitions: int | None = Field(default=None, gt=0)
    """At most how many connections write at once; as many as Spark runs tasks when left out."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        TableName.parse(self.table)
        if (self.mode == "upsert") != bool(self.keys):
            raise ValueError("mode 'upsert' and 'keys' go together: give both or neither")
        return self

    def sinks(self) -> tuple[Dataset, ...]:
        return (table_dataset(self.connection, TableName.parse(self.table)),)

    def check_schema(self, frame: DataFrame, context: StepContext) -> None:
        name = self.input_data_frame or "input"
        partition = context.partition
        added = () if partition is None else (partition.partition_column,)
        wanted = [key for key in self.keys if key not in added]
        if partition is not None and partition.column is not None:
            wanted.append(partition.column)
        # As they are written: PostgreSQL takes ID and id for two columns.
        missing = [column for column in dict.fromkeys(wanted) if column not in frame.columns]
        if missing:
            raise DataFrameResolutionError.unknown_columns(missing, name, frame.columns)
        for field in frame.schema.fields:
            column_type(field.name, field.dataType)

    def written(self, frame: DataFrame, context: StepContext) -> DataFrame:
        """Return ``frame`` as JDBC takes it, with the partition's key where the slice has no column of its own."""
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.types import NullType

        nulls = {
            field.name: F.lit(None).cast("string")
            for field in frame.schema.fields
            if isinstance(field.dataType, NullType)
        }
        return with_partition(frame.withColumns(nulls) if nulls else frame, context.partition)

    def load(self, frame: DataFrame, context: StepContext) -> LoadResult:
        self.check_schema(frame, context)
        frame = self.written(frame, context)
        target = TableName.parse(self.table)
        staging = TableName(target.schema, f"_staging_{uuid.uuid4().hex}")
        types = {field.name: column_type(field.name, field.dataType) for field in frame.schema.fields}
        move = _Move(self, target, staging, types, context)
        with self._database(context) as database, context.cancellation.interrupting(database.cancel_safe):
            move.prepare(database)
        with ExitStack() as cleanup:
            cleanup.callback(self._drop, staging, context)
            written = self._moved(move, self._fill(frame, staging, context), cleanup)
            cleanup.pop_all()  # the move has dropped it
        connection = context.connections.postgres(self.connection)
        return LoadResult(
            uri=f"postgresql://{authority(connection.host, connection.port)}/{connection.database}/{target}",
            table_name=f"{connection.database}.{target}",
            rows=written,
        )

    def _fill(self, frame: DataFrame, staging: TableName, context: StepContext) -> int | None:
        """Have Spark write the rows, and return how many it has counted; None where that is not told in time."""
        connection = context.connections.postgres(self.connection)
        options = {"reWriteBatchedInserts": "true"} | jdbc_options(connection, context.connections.secrets)
        options |= {"dbtable": staging.sql, "batchsize": str(self.batch_size)}
        if self.num_partitions is not None:
            options["numPartitions"] = str(self.num_partitions)
        count = CountedRows()
        count.on(frame).write.format("jdbc").mode("append").options(**options).save()
        counted = count.get(_COUNT_SECONDS)
        if counted is None and count.is_always_told:
            raise RetryableError(
                "Spark did not tell how many rows it has written, so that nobody knows whether each is there once; "
                "nothing was written to the table, run the step again",
                kind="unavailable",
            )
        if counted is None:
            _log.warning(
                "Spark Connect did not tell how many rows it has written for %s: whether each is there once is not "
                "looked into",
                self.table,
            )
        return counted

    def _moved(self, move: _Move, expected: int | None, cleanup: ExitStack) -> int:
        """Move the rows and return how many. What is on ``cleanup`` is taken off when they may be in or not."""
        context, staging, written = move.context, move.staging, None
        try:
            with self._database(context) as database, context.cancellation.interrupting(database.cancel_safe):
                written = move.run(database, expected)
        except PipelineError:
            if written is None:
                raise
            # The answer to the COMMIT is an error, or none came.
            is_committed = self._is_dropped(staging, context)
            if is_committed is None:
                cleanup.pop_all()
                raise PipelineExecutionError(
                    f"the connection was lost while {written} rows were committed to {move.target}, and the server "
                    f"does not say whether they are in: before the step is run again, look for the table {staging}. If "
                    "it is there, the rows were not written, and it can be dropped; if it is gone, they were written"
                ) from None
            if not is_committed:
                raise
        return written

    def _is_dropped(self, staging: TableName, context: StepContext) -> bool | None:
        """Whether a transaction that drops ``staging`` was committed; None when the server does not tell."""
        import psycopg

        for _ in range(_LOOKS):
            try:
                with self._database(context) as database:
                    database.execute("SET LOCAL lock_timeout = '10s'")
                    try:
                        # Waits for that transaction, should it still be on its way.
                        database.execute(f"SELECT FROM {staging.sql} LIMIT 0")
                    except psycopg.errors.UndefinedTable:
                        return True
                    return False
            except PipelineError as error:
                _log.warning("whether rows are in can't be told yet: %s", error.message)
            if context.cancellation.stop.wait(_SECONDS_BETWEEN_LOOKS):
                break
        return None

    def _drop(self, staging: TableName, context: StepContext) -> None:
        try:
            with self._database(context) as database:
                database.execute(f"DROP TABLE IF EXISTS {staging.sql}")
        except PipelineError as error:
            # What ended the load matters more, or it is done: the target is right either way.
            _log.warning("staging table %s could not be dropped: %s", staging, error.message)

    @contextmanager
    def _database(self, context: StepContext) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection; commit at the end, roll back when something goes wrong."""
        connection = context.connections.postgres(self.connection)
        with (
            database_errors(connection, "write to"),
            connect(connection, context.connections.secrets) as database,
        ):
            yield database


class _Stored(NamedTuple):
    """The types of the target's columns, without lengths and precisions and with them."""

    types: dict[str, str]
    full_types: dict[str, str]


@dataclass(frozen=True)
class _Move:
    """From the staging table into the target. ``types``: by column, its type in the staging table."""

    step: ToPostgres
    target: TableName
    staging: TableName
    types: Mapping[str, str]
    context: StepContext

    def prepare(self, database: psycopg.Connection[Any]) -> None:
        """Make the staging table, and have PostgreSQL check the statement that will move its rows."""
        stored = self._checked_columns(database)
        if stored is None and not self.step.create_table:
            self.target.require(database, self.context.connections.postgres(self.step.connection))
        # Not logged: it is read back within minutes, and the count of its rows tells when a crash has emptied it.
        database.execute(f"CREATE UNLOGGED TABLE {self.staging.sql} ({self._definitions()})")
        if stored is not None:
            self._checked(database, f"EXPLAIN {self._insert(stored.types)}")

    def run(self, database: psycopg.Connection[Any], expected: int | None) -> int:
        """Move the rows, in the transaction of ``database``, and return how many.

        The staging table is dropped in it, too: by that one can tell whether it was committed.
        """
        # Each statement is to see what others have committed before it, whatever the server's default.
        database.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        self._wait_for_others(database)
        # No task of Spark's that was given up may add rows once they have been counted.
        database.execute(f"LOCK TABLE {self.staging.sql}")
        stored = self._checked_columns(database)
        self._check_staging(database, expected, {} if stored is None else self._changes(stored))
        there = dict(self.types) if stored is None else stored.types
        if stored is None:
            database.execute(f"CREATE TABLE {self.target.sql} ({self._definitions()})")
            if self.step.keys:
                database.execute(f"CREATE UNIQUE INDEX ON {self.target.sql} ({self._keys()})")
        elif self.step.mode != "upsert" and self.context.partition is not None:
            predicate = spark_predicate(self.context.partition.of(there).predicate)
            database.execute(f"DELETE FROM {self.target.sql} WHERE {predicate}")  # noqa: S608
        elif self.step.mode == "overwrite":
            self._empty(database)
        written = self._checked(database, self._insert(there)).rowcount
        database.execute(f"DROP TABLE {self.staging.sql}")
        return written

    def _wait_for_others(self, database: psycopg.Connection[Any]) -> None:
        """Wait until no other run makes the table or replaces the same rows: one would not see the other's."""
        locks = []
        if not self.target.exists(database):
            locks.append(self.target.sql)
        if self.step.mode != "upsert" and (self.context.partition is not None or self.step.mode == "overwrite"):
            locks.append(f"{self.target.sql} {self.context.partition.key if self.context.partition else ''}")
        for name in locks:
            database.execute("SELECT pg_advisory_xact_lock(hashtext('pipeline-assets'), hashtext(%s))", (name,))

    def _checked_columns(self, database: psycopg.Connection[Any]) -> _Stored | None:
        """Return the same as ``_target_columns``. Raises ConfigurationError when the rows do not fit what is there."""
        stored = self._target_columns(database)
        if stored is not None:
            self._check_columns(stored.types)
            self._check_partition(stored.types)
            self._check_followers(database)
        return stored

    def _keys(self) -> str:
        return ", ".join(map(quoted, self.step.keys))

    def _definitions(self) -> str:
        return ", ".join(f"{quoted(name)} {type_}" for name, type_ in self.types.items())

    def _target_columns(self, database: psycopg.Connection[Any]) -> _Stored | None:
        """Return the types of the target's columns; None when it is missing."""
        if not self.target.exists(database):
            return None
        rows = database.execute(_COLUMNS, {"table": self.target.sql}).fetchall()
        return _Stored({name: base for name, base, _ in rows}, {name: full for name, _, full in rows})

    def _changes(self, stored: _Stored) -> dict[str, tuple[str, str]]:
        """Return, by column, its type and what is true of a staged value that it would change.

        Columns that change none, or only as the step's documentation says, are left out.
        """
        exact = set(self.step.keys)
        if self.context.partition is not None and self.step.mode != "upsert":
            exact.add(self.context.partition.partition_column)
        changes = {}
        for name, staged in self.types.items():
            base = stored.types[name]
            type_ = stored.full_types[name] if name in exact else base
            if may_change(staged, base, type_, exact=name in exact):
                changes[name] = (type_, is_changed(quoted(name), staged, base, type_))
        return changes

    def _check_columns(self, there: Mapping[str, str]) -> None:
        missing = [name for name in self.types if name not in there]
        if missing:
            raise ConfigurationError(
                f"table {self.target} has no column {', '.join(map(repr, missing))} of the DataFrame "
                f"(its columns: {', '.join(there)}); select or rename columns before, or alter the table"
            )

    def _check_partition(self, there: Mapping[str, str]) -> None:
        """Raise ConfigurationError when the staged rows of the partition and those to replace are told differently."""
        partition = self.context.partition
        if partition is None or self.step.mode == "upsert":
            return
        if partition.of(self.types).predicate == partition.of(there).predicate:
            return
        column = partition.partition_column.casefold()
        staged, stored = (
            next(type_ for name, type_ in types.items() if name.casefold() == column) for types in (self.types, there)
        )
        wanted = "a TIMESTAMP by withColumns before"
        if partition.of(there).predicate != partition.moments:
            name, local = partition.partition_column, "DATE" if stored == "date" else "TIMESTAMP_NTZ"
            wanted = (
                "local time of the partitions' zone by withColumns before, e.g. "
                f"CAST(convert_timezone('Europe/Berlin', {name}) AS {local}), or CAST({name} AS {local}) where "
                "fromPostgres has read it from a column of type timestamp"
            )
        raise ConfigurationError(
            f"column {partition.partition_column!r} is {staged} in the DataFrame and {stored} in table {self.target}: "
            "one type stores a moment, the other local time, so that a run would delete the rows of another period "
            f"than it writes; make the DataFrame's column {wanted}; or alter the table's; "
            "nothing was written"
        )

    def _check_followers(self, database: psycopg.Connection[Any]) -> None:
        """Raise ConfigurationError when rows of other tables would go with those that are replaced."""
        if self.step.mode == "upsert" or (self.step.mode == "append" and self.context.partition is None):
            return
        # Of the whole table, rows that refer to others of it go anyway.
        itself = self.context.partition is not None
        found = database.execute(_FOLLOWERS, {"table": self.target.sql, "itself": itself}).fetchall()
        if found:
            others = ", ".join(name for (name,) in found)
            raise ConfigurationError(
                f"replacing rows of {self.target} would delete or change rows of {others}, whose foreign keys say "
                "ON DELETE CASCADE, SET NULL or SET DEFAULT: use mode 'upsert', or have them say NO ACTION, with "
                "DEFERRABLE INITIALLY DEFERRED where the rows that they refer to are among the new ones; nothing was "
                "written"
            )

    def _insert(self, there: Mapping[str, str]) -> str:
        columns = ", ".join(map(quoted, self.types))
        # Without a length in the cast: a text that is too long is an error then, and not cut. What the cast itself
        # changes has been refused.
        values = ", ".join(
            quoted(name) if there[name] == type_ else f"{quoted(name)}::{there[name]}"
            for name, type_ in self.types.items()
        )
        insert = f"INSERT INTO {self.target.sql} ({columns}) SELECT {values} FROM {self.staging.sql}"  # noqa: S608
        if self.step.mode != "upsert":
            return insert
        keys = set(self.step.keys)
        updates = ", ".join(f"{quoted(name)} = EXCLUDED.{quoted(name)}" for name in self.types if name not in keys)
        action = f"UPDATE SET {updates}" if updates else "NOTHING"
        return f"{insert} ON CONFLICT ({self._keys()}) DO {action}"

    def _checked(self, database: psycopg.Connection[Any], statement: str) -> psycopg.Cursor[Any]:
        import psycopg

        try:
            return database.execute(statement.encode())
        except psycopg.errors.InvalidColumnReference:
            raise ConfigurationError(
                f"upsert into {self.target} needs a unique index on its keys, and there is none: "
                f"CREATE UNIQUE INDEX ON {self.target.sql} ({self._keys()});"
            ) from None
        except psycopg.errors.CardinalityViolation:
            raise PipelineExecutionError(
                f"several rows of the DataFrame have the same keys ({', '.join(self.step.keys)}): keep one of each, "
                "e.g. with dropDuplicates before; nothing was written"
            ) from None
        except psycopg.errors.UniqueViolation as error:
            where = (error.diag.schema_name, error.diag.table_name)
            if self.step.mode != "upsert" or where != (self.target.schema, self.target.table):
                raise
            # What PostgreSQL says beside it are the values.
            raise PipelineExecutionError(
                f"two rows of {self.target} would have the same in the columns of its unique index "
                f"{error.diag.constraint_name!r}, which is not the one on the keys ({', '.join(self.step.keys)}): "
                "correct such rows of the DataFrame before, leave them out, or give the columns of that index as "
                "'keys'; nothing was written"
            ) from None

    def _check_staging(
        self, database: psycopg.Connection[Any], expected: int | None, changes: Mapping[str, tuple[str, str]]
    ) -> None:
        """Hold that every row is there once (Spark repeats tasks), and, in a partitioned run, in its partition.

        And that the target holds each value as it is. ``changes``: as ``_changes`` returns them.
        """
        partition = self.context.partition.of(self.types) if self.context.partition else None
        predicate = spark_predicate(partition.predicate) if partition else "true"
        counts = ", ".join(f"count(*) FILTER (WHERE {condition})" for _, condition in changes.values())
        examples = ", ".join(
            f"min(left({quoted(name)}::text, {_SHOWN_CHARACTERS})) FILTER (WHERE {condition})"
            for name, (_, condition) in changes.items()
        )
        check = (
            f"SELECT count(*), count(*) FILTER (WHERE ({predicate}) IS NOT TRUE), "  # noqa: S608
            f"ARRAY[{counts}]::bigint[], ARRAY[{examples}]::text[] FROM {self.staging.sql}"
        )
        row = database.execute(check.encode()).fetchone()
        staged, outside, changed, shown = row or (0, 0, [], [])
        if expected is not None and staged != expected:
            raise RetryableError(
                f"{staged} rows arrived in PostgreSQL of {expected} that Spark computed: a task was repeated, or the "
                "server was restarted; nothing was written, run the step again",
                kind="unavailable",
            )
        if outside and partition is not None and self.step.mode != "upsert":
            raise PipelineExecutionError(
                f"{outside} of the DataFrame's rows are outside partition {partition.key!r} ({partition.predicate}): "
                "keep the partition's own with filterRows before; nothing was written"
            )
        for (name, (type_, _)), count, example in zip(changes.items(), changed, shown, strict=True):
            if count:
                raise PipelineExecutionError(
                    f"column {name!r} of {self.target} is of type {type_}, which would change the values of {count} of "
                    f"the DataFrame's rows, e.g. {redact_field(name, example)!r}: cast or round them by withColumns "
                    "before, or alter the table's column; nothing was written"
                )

    def _empty(self, database: psycopg.Connection[Any]) -> None:
        import psycopg

        try:
            if self._is_table(database):
                # Rows that others are adding would stay beside the new ones: they were not there yet when the old ones
                # are deleted. The lock of TRUNCATE would have readers wait, too.
                database.execute(f"LOCK TABLE {self.target.sql} IN SHARE ROW EXCLUSIVE MODE")
            # Not TRUNCATE: a transaction whose snapshot is older, such as a backup's, would find no rows from then on.
            database.execute(f"DELETE FROM {self.target.sql}")  # noqa: S608
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                f"mode 'overwrite' deletes the rows of {self.target}, and may not ({error.diag.message_primary}): "
                f"GRANT DELETE ON {self.target.sql} to the connection's user; nothing was written"
            ) from None

    def _is_table(self, database: psycopg.Connection[Any]) -> bool:
        """Whether the target is no view, whose lock would be one of all tables that it reads, nor a foreign table."""
        row = database.execute(
            "SELECT relkind IN ('r', 'p') FROM pg_catalog.pg_class WHERE oid = %s::regclass", (self.target.sql,)
        ).fetchone()
        return bool(row and row[0])
