"""Extract from PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError
from pipeline_assets.spark.broadcasts import broadcast_limit
from pipeline_assets.steps.base import ColumnSources, Dataset, ExtractMethod, StepContext
from pipeline_assets.steps.columns import ColumnName, quote
from pipeline_assets.steps.postgres import (
    TableName,
    columns_in,
    connect,
    database_errors,
    jdbc_options,
    quoted,
    table_dataset,
    tables_in,
)

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

    from pipeline_assets.connections import PostgresConnection


def _check_sql(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank: give the SQL, or leave the key out")
    return text


PostgresSql = Annotated[str, Field(min_length=1), AfterValidator(_check_sql)]
Bound = int | float | date | datetime | str
# Where Spark has the type of a column that is a text with a length.
_SPARK_TYPE = "__CHAR_VARCHAR_TYPE_STRING"
_CHAR = re.compile(r"\bchar\(")
# Those of %(types)s whose columns are read as text: char(n), as Spark would leave the spaces at the end in, and those
# that Spark takes for texts and PostgreSQL compares otherwise. Of xml it compares nothing, and makes a text of it that
# has a declaration more. Filters on arrays are not pushed down.
_TEXTS = """
SELECT oid FROM pg_catalog.pg_type WHERE oid = ANY(%(types)s::oid[]) AND typcategory <> 'A'
AND NOT (typnamespace = 'pg_catalog'::regnamespace AND typname IN (
    'bool', 'bytea', 'bit', 'int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'oid', 'void',
    'date', 'time', 'timetz', 'timestamp', 'timestamptz', 'text', 'varchar', 'name', 'xml'
))
"""


class FromPostgres(ExtractMethod):
    """Reads a table or a query from PostgreSQL. Filters and column choices of later steps are pushed down to it.

    Columns of types that Spark has none for (uuid, enums, inet, jsonb ...) are read as texts, and compared as such in
    later steps: a condition by their own order, or one that is to use their index, is a `predicate`. Values of char(n)
    have no spaces at the end. Texts are ordered by their collation where a filter is pushed down, and by their bytes
    where the rows are kept before it: a `query` with `COLLATE "C"` has both the same.

    A `timestamp` (without time zone) is read as a TIMESTAMP, as if it were UTC's: `CAST(at AS TIMESTAMP_NTZ)` in
    withColumns makes the clock's time of it again.

    A `numeric` without precision is read as DECIMAL(38,18), which rounds after the 18th digit of a fraction: cast it to
    a numeric(p,s) or to a text in a `query`. The times `infinity` and `-infinity` are read as the end of the year
    9999 and the start of the year 1: make NULL of them in a `query`, by `NULLIF(at, 'infinity')`.
    """

    method = "fromPostgres"
    behavior_version = "2"
    kinds = frozenset({"spark", "postgres"})
    connection_kind = "postgres"

    connection: str = "default"
    """PostgreSQL connection (from connections.json)."""
    table: str | None = None
    """The table, as `table` or `schema.table`; the schema is `public` when left out."""
    query: PostgresSql | None = None
    """A SELECT to read instead of a table."""
    columns: tuple[ColumnName, ...] = ()
    """Columns to read; all when left out."""
    predicate: PostgresSql | None = None
    """SQL condition (PostgreSQL's) on the rows to read."""
    partition_column: str | None = None
    """Numeric, date or timestamp column by whose ranges the rows are read in parallel. Needs `numPartitions`."""
    num_partitions: int | None = Field(default=None, gt=0)
    """How many parallel reads. Needs `partitionColumn`."""
    lower_bound: Bound | None = None
    """Lower end of the ranges; the column's minimum when left out. Rows below it are read all the same."""
    upper_bound: Bound | None = None
    """Upper end of the ranges; the column's maximum when left out. Rows above it are read all the same."""
    fetch_size: int = Field(default=10_000, ge=0)
    """Rows per round trip; 0 fetches all at once."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("give exactly one of 'table' and 'query'")
        if self.table is not None:
            TableName.parse(self.table)
        if (self.partition_column is None) != (self.num_partitions is None):
            raise ValueError("'partitionColumn' and 'numPartitions' go together: give both or neither")
        if self.partition_column is None and (self.lower_bound is not None or self.upper_bound is not None):
            raise ValueError("'lowerBound' and 'upperBound' need 'partitionColumn' and 'numPartitions'")
        if (
            self.lower_bound is not None
            and self.upper_bound is not None
            and _is_above(self.lower_bound, self.upper_bound)
        ):
            raise ValueError(f"lowerBound ({self.lower_bound}) is above upperBound ({self.upper_bound})")
        return self

    def sources(self) -> tuple[Dataset, ...]:
        if self.table is not None:
            return (table_dataset(self.connection, TableName.parse(self.table)),)
        return tuple(table_dataset(self.connection, table) for table in tables_in(self.query or ""))

    def column_sources(self, columns: Sequence[str]) -> ColumnSources:
        if self.query is None:
            return super().column_sources(columns)
        return {
            column: tuple((table_dataset(self.connection, table), source) for table, source in origins)
            for column, origins in columns_in(self.query, columns).items()
        }

    def extract(self, context: StepContext) -> DataFrame:
        connection = context.connections.postgres(self.connection)
        secrets = context.connections.secrets
        with (
            database_errors(connection, "read"),
            connect(connection, secrets) as database,
            context.cancellation.interrupting(database.cancel_safe),
        ):
            relation, bounds = self._probe(database, connection)
            size = self._table_bytes(database) if context.optimize else None
        options = jdbc_options(connection, secrets) | {
            "dbtable": _for_jdbc(relation),
            "fetchsize": str(self.fetch_size),
            **bounds,
        }
        frame = _without_lengths(context.spark.read.format("jdbc").options(**options).load())
        if self.columns:
            frame = frame.select(*(quote(name) for name in self.columns))
        if size is not None and size <= broadcast_limit(context.spark):
            # Spark knows no sizes of JDBC's tables: it would shuffle whatever is joined with one.
            frame = frame.hint("broadcast")
        return frame

    def _table_bytes(self, database: psycopg.Connection[Any]) -> int | None:
        """Return how large the table is on PostgreSQL's disk; None where it does not tell, as for a view.

        Nor does it for a table with others that inherit from it: their rows are read with its own.
        """
        if self.table is None:
            return None
        found = database.execute(
            "SELECT pg_table_size(oid) FROM pg_catalog.pg_class "
            "WHERE oid = %s::regclass AND relkind IN ('r', 'm') AND NOT relhassubclass",
            (TableName.parse(self.table).sql,),
        ).fetchone()
        return int(found[0]) if found else None

    def _relation(self) -> str:
        """Return the rows that the config asks for, as what stands in a FROM."""
        if self.query is not None:
            inner = self.query.strip().rstrip(";")
            base = f"(\n{inner}\n) AS query"  # a line of its own: the query may end in a comment
        else:
            base = TableName.parse(self.table or "").sql
        if self.predicate is None:
            return base
        return f"(SELECT * FROM {base} WHERE (\n{self.predicate}\n)) AS filtered"  # noqa: S608  (SQL is what the config gives)

    def _probe(self, database: psycopg.Connection[Any], connection: PostgresConnection) -> tuple[str, dict[str, str]]:
        """Check table, columns and SQL on the catalog alone.

        Returns what stands in Spark's FROM, and its options for a parallel read.
        """
        if self.table is not None:
            TableName.parse(self.table).require(database, connection)
        relation = self._relation()
        described = database.execute(f"SELECT * FROM {relation} LIMIT 0").description or []  # noqa: S608
        there = [column.name for column in described]
        partition = (self.partition_column,) if self.partition_column else ()
        missing = [name for name in dict.fromkeys((*self.columns, *partition)) if name not in there]
        if missing:
            raise DataFrameResolutionError.unknown_columns(missing, self.table or "query", there)
        return _with_texts(relation, described, database), self._bounds(database)

    def _bounds(self, database: psycopg.Connection[Any]) -> dict[str, str]:
        """Return Spark's options for a parallel read; none where there is nothing to divide."""
        if self.partition_column is None:
            return {}
        lower, upper = _whole(self.lower_bound, ROUND_FLOOR), _whole(self.upper_bound, ROUND_CEILING)
        if lower is None or upper is None:
            column = quoted(self.partition_column)
            bounds = f"SELECT min({column}), max({column}) FROM {self._relation()}"  # noqa: S608
            found = database.execute(bounds.encode()).fetchone()
            least, greatest = found or (None, None)
            if least is None or greatest is None:
                return {}  # no rows: nothing to read in parallel
            lower = lower if lower is not None else self._bound(least, ROUND_FLOOR)
            upper = upper if upper is not None else self._bound(greatest, ROUND_CEILING)
            if _is_above(lower, upper):
                return {}  # all rows are beyond the bound that is given: Spark refuses to divide what is between
        return {
            "partitionColumn": self.partition_column,
            "numPartitions": str(self.num_partitions),
            "lowerBound": str(lower),
            "upperBound": str(upper),
        }

    def _bound(self, value: Any, rounding: str) -> Bound:
        if isinstance(value, int | date):  # datetime is a date
            return value
        if isinstance(value, float | Decimal) and Decimal(value).is_finite():
            return int(Decimal(value).to_integral_value(rounding))
        raise ConfigurationError(
            f"partitionColumn {self.partition_column!r} holds {type(value).__name__} values: "
            "expected a numeric, date or timestamp column"
        )


def _with_texts(relation: str, described: Sequence[psycopg.Column], database: psycopg.Connection[Any]) -> str:
    """Return ``relation`` with the columns that PostgreSQL compares otherwise than Spark does as its texts of them.

    Their collation is the one by which Spark compares: PostgreSQL is given the filters of later steps.
    """
    types = [column.type_code for column in described]
    texts = {type_ for (type_,) in database.execute(_TEXTS, {"types": types}).fetchall()}
    if not texts:
        return relation
    columns = ", ".join(
        f'{name}::text COLLATE "C" AS {name}' if column.type_code in texts else name
        for column in described
        for name in (quoted(column.name),)
    )
    return f"(SELECT {columns} FROM {relation}) AS texts"  # noqa: S608


def _for_jdbc(sql: str) -> str:
    """Return ``sql`` with the ``?`` of its operators (jsonb's ``?``, ``?|``, ``@?``) doubled, and of nothing quoted.

    The driver takes a single one for a parameter.

    Source: https://jdbc.postgresql.org/documentation/query/
    """
    if "?" not in sql:
        return sql
    from sqlglot import tokenize
    from sqlglot.errors import SqlglotError

    try:
        tokens = tokenize(sql, read="postgres")
    except SqlglotError:
        return sql
    parts, end = [], 0
    for token in tokens:  # comments are none
        text = sql[token.start : token.end + 1]
        is_quoted = any(quote in text for quote in "'\"$")
        parts += [sql[end : token.start], text if is_quoted else text.replace("?", "??")]
        end = token.end + 1
    return "".join(parts) + sql[end:]


def _whole(bound: Bound | None, rounding: str) -> Bound | None:
    """Return ``bound``, or for a fraction the whole number beside it: Spark takes no others, whatever the column."""
    number = _number(bound)
    return bound if number is None else int(number.to_integral_value(rounding))


def _is_above(lower: Bound, upper: Bound) -> bool:
    """Whether ``lower`` is above ``upper``; not where they can't be compared, which is left to Spark."""
    numbers = _number(lower), _number(upper)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] > numbers[1]
    moments = _moment(lower), _moment(upper)
    return moments[0] is not None and moments[1] is not None and moments[0] > moments[1]


def _number(bound: Bound | None) -> Decimal | None:
    if not isinstance(bound, int | float | str):
        return None
    try:
        number = Decimal(str(bound))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _moment(bound: Bound) -> datetime | None:
    """Return the moment that a date, a time, or the ISO text of one stands for; a time without a zone is UTC's."""
    try:
        moment = datetime.fromisoformat(str(bound).strip())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _without_lengths(frame: DataFrame) -> DataFrame:
    """Return ``frame`` with columns of varchar(n), and arrays of it and of char(n), as plain text.

    Their length would go on to the Delta tables that are written from them, as a limit for rows of any source.
    """
    from pyspark.sql import functions as F  # noqa: N812

    if not any(_SPARK_TYPE in field.metadata for field in frame.schema.fields):
        return frame
    columns = []
    for field in frame.schema.fields:
        column, spark_type = F.col(quote(field.name)), field.metadata.get(_SPARK_TYPE, "")
        if _CHAR.search(spark_type):
            column = _trimmed(column, field.dataType)
        metadata = {key: value for key, value in field.metadata.items() if key != _SPARK_TYPE}
        columns.append(column.alias(field.name, metadata=metadata) if spark_type else column)
    return frame.select(*columns)


def _trimmed(column: Column, data_type: DataType) -> Column:
    """Return texts, or arrays of them, without spaces at the end."""
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.types import ArrayType

    if not isinstance(data_type, ArrayType):
        return F.rtrim(column)
    return F.transform(column, lambda element: _trimmed(element, data_type.elementType))
