"""PostgreSQL beside Spark's JDBC: names, catalog look-ups, and errors that say what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

from pipeline_assets.errors import (
    ConfigurationError,
    CredentialError,
    PipelineError,
)
from pipeline_assets.redaction import is_secret_name
from pipeline_assets.steps.base import Dataset
from pipeline_assets.steps.sql_names import postgres_columns, postgres_tables
from pipeline_assets.transience import execution_error, transience_of

if TYPE_CHECKING:
    import psycopg
    from pyspark.sql.types import DataType

    from pipeline_assets.connections import PostgresConnection
    from pipeline_assets.credentials import Secrets

DEFAULT_SCHEMA = "public"
CONNECT_SECONDS = 10
# pgjdbc waits for ever otherwise, for a server that takes a connection and says nothing, and for one that is gone.
_JDBC_DEFAULTS = {"loginTimeout": "30", "tcpKeepAlive": "true"}
# pgjdbc's connection parameters that libpq knows as well, by libpq's name.
_LIBPQ_NAMES = {
    "sslmode": "sslmode",
    "sslrootcert": "sslrootcert",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "sslpassword": "sslpassword",
    "ApplicationName": "application_name",
    "connectTimeout": "connect_timeout",
    "targetServerType": "",
}

# Of PostgreSQL, libpq and PgBouncer, whatever the kind of login. Names of databases and users are in double quotes.
_LOGIN_REFUSED = re.compile(r"\bauthentication (?:failed|method)\b|no password supplied")
_QUOTED = re.compile(r'"[^"]*"')


def quoted(name: str) -> str:
    """Return ``name`` as a PostgreSQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class TableName:
    """A table, and the schema that it is in."""

    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``table`` or ``schema.table``, either part in double quotes where it contains a dot.

        Raises ValueError for anything else.
        """
        parts = _split(text)
        if not 1 <= len(parts) <= 2 or not all(part.strip() for part in parts):
            raise ValueError(f"{text!r} is not a table: expected 'table' or 'schema.table'")
        return cls(*parts) if len(parts) == 2 else cls(DEFAULT_SCHEMA, parts[0])

    @property
    def sql(self) -> str:
        """The name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    def exists(self, database: psycopg.Connection[Any]) -> bool:
        """Whether there is such a table or view."""
        row = database.execute("SELECT to_regclass(%s) IS NOT NULL", (self.sql,)).fetchone()
        return bool(row and row[0])

    def require(self, database: psycopg.Connection[Any], connection: PostgresConnection) -> None:
        """Raise ConfigurationError, with names that are near, when there is no such table or view."""
        if self.exists(database):
            return
        rows = database.execute(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') "
            "AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1, 2 LIMIT 10000"
        ).fetchall()
        shown = {f"{schema}.{table}": (schema, table) for schema, table in rows}
        near = difflib.get_close_matches(str(self), shown, n=3, cutoff=0.6)
        near += [name for name, (_, table) in shown.items() if table == self.table and name not in near]
        hint = f", did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigurationError(f"table {self} does not exist in {_where(connection)}{hint}")


def _split(text: str) -> list[str]:
    parts, part, in_quotes = [], "", False
    for character in text:
        if character == '"':
            in_quotes = not in_quotes
        elif character == "." and not in_quotes:
            parts.append(part)
            part = ""
        else:
            part += character
    return [*parts, part]


def table_dataset(connection: str, table: TableName) -> Dataset:
    """Return the dataset of ``table``, reached by the connection of that name."""
    return Dataset(
        "postgres", (connection, table.schema, table.table), f"postgresql://{connection}/{table.schema}/{table.table}"
    )


def tables_in(query: str) -> tuple[TableName, ...]:
    """Return the tables that ``query`` reads, as far as it can be parsed."""
    return tuple(TableName(schema or DEFAULT_SCHEMA, table) for schema, table in postgres_tables(query))


def columns_in(query: str, columns: Sequence[str]) -> dict[str, tuple[tuple[TableName, str], ...]]:
    """Return what ``columns`` of ``query``'s result come from; one that is not understood is left out."""
    return {
        column: tuple((TableName(schema or DEFAULT_SCHEMA, table), source) for schema, table, source in origins)
        for column, origins in postgres_columns(query, columns).items()
    }


def column_type(name: str, data_type: DataType) -> str:
    """Return PostgreSQL's type for column ``name`` of Spark's ``data_type``, as a staging table has it.

    Raises ConfigurationError for a type that JDBC does not carry.
    """
    from pyspark.sql import types as t

    if isinstance(data_type, t.ArrayType) and not isinstance(data_type.elementType, t.ArrayType):
        return f"{column_type(name, data_type.elementType)}[]"
    if isinstance(data_type, t.DecimalType):
        return f"numeric({data_type.precision},{data_type.scale})"
    known: dict[type[DataType], str] = {
        t.StringType: "text",
        t.CharType: "text",
        t.VarcharType: "text",
        t.NullType: "text",
        t.BooleanType: "boolean",
        t.ByteType: "smallint",
        t.ShortType: "smallint",
        t.IntegerType: "integer",
        t.LongType: "bigint",
        t.FloatType: "real",
        t.DoubleType: "double precision",
        t.DateType: "date",
        t.TimestampType: "timestamp with time zone",
        t.TimestampNTZType: "timestamp without time zone",
        t.BinaryType: "bytea",
    }
    if type(data_type) not in known:
        raise ConfigurationError(
            f"column {name!r} is of type {data_type.simpleString()}, which PostgreSQL's JDBC driver does not take: "
            f'make it a string before, e.g. withColumns {{"columns": {{"{name}": "to_json({name})"}}}}'
        )
    return known[type(data_type)]


def spark_predicate(predicate: str) -> str:
    """Return a predicate in Spark SQL as PostgreSQL writes it."""
    import sqlglot

    return sqlglot.transpile(predicate, read="spark", write="postgres")[0]


def jdbc_options(connection: PostgresConnection, secrets: Secrets) -> dict[str, str]:
    """Return Spark's JDBC options for ``connection``. The password is an option, never part of the URL."""
    options = {**_JDBC_DEFAULTS, **secrets.resolve_secret_options(connection.options)}
    # Over Connect Spark reads with the names of options in lower case, which pgjdbc then does not know.
    cased = {name: value for name, value in options.items() if not name.islower() and not is_secret_name(name)}
    return {
        **options,
        "url": f"{connection.jdbc_url}?{urlencode(cased)}",
        "driver": "org.postgresql.Driver",
        **_login(connection, secrets),
    }


def _login(connection: PostgresConnection, secrets: Secrets) -> dict[str, str]:
    login = {"user": connection.user}
    if connection.password is not None:
        login["password"] = connection.password
    return secrets.resolve(login)


def connect(connection: PostgresConnection, secrets: Secrets) -> psycopg.Connection[Any]:
    """Open a connection. Raises CredentialError, ConfigurationError or PipelineExecutionError, as it fails."""
    import psycopg

    # Without a password libpq and pgjdbc both look into ~/.pgpass. PGPASSWORD is libpq's alone: it is not to be read.
    login: dict[str, Any] = {"password": "", **_login(connection, secrets)}
    known = {name: value for name, value in connection.options.items() if _LIBPQ_NAMES.get(name)}
    given = {_LIBPQ_NAMES[name]: value for name, value in secrets.resolve_secret_options(known).items()}
    parameters: dict[str, Any] = {"application_name": "pipeline-assets", "connect_timeout": CONNECT_SECONDS} | given
    if "currentSchema" in connection.options:
        # At spaces the server would see the next of its options begin.
        path = re.sub(r"([\\\s])", r"\\\1", connection.options["currentSchema"])
        parameters["options"] = f"-csearch_path={path}"
    try:
        opened: psycopg.Connection[Any] = psycopg.connect(
            host=connection.host,
            port=connection.port,
            dbname=connection.database,
            **login,
            **parameters,
        )
        # The zone that Spark's JDBC asks for, too: a condition on timestamps means the same moments in both. Not among
        # the parameters above, as older PgBouncers refuse 'options'.
        opened.execute("SET TIME ZONE 'UTC'")
        opened.commit()
        return opened
    except psycopg.OperationalError as error:
        raise _connect_failure(error, connection) from None


def _connect_failure(error: psycopg.OperationalError, connection: PostgresConnection) -> PipelineError:
    # libpq gives no SQLSTATE for a connection that was refused, by the server or for lack of one.
    text = str(error).strip()
    reason = text.rpartition("FATAL:")[2].strip() or text
    transience = transience_of(error)
    # Before what passes: of a host with two addresses, one may refuse connections and the other one the password.
    if _LOGIN_REFUSED.search(_QUOTED.sub("", text)):
        return CredentialError(
            f"{_where(connection)} refused user {connection.user!r}: {reason}; "
            f"check the connection's user and what its password refers to ({connection.password or 'none is given'})"
        )
    if "FATAL:" in text and transience is None:
        return ConfigurationError(f"{_where(connection)} refused the connection: {reason}")
    return execution_error(
        f"PostgreSQL is not reachable at {connection.host}:{connection.port}: {reason.splitlines()[-1].strip()}",
        transience,
    )


@contextmanager
def database_errors(connection: PostgresConnection, verb: str) -> Iterator[None]:
    """Turn psycopg's errors into this package's: a wrong name or SQL is a ConfigurationError."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise _failure(error, connection, verb) from None


def _failure(error: psycopg.Error, connection: PostgresConnection, verb: str) -> PipelineError:
    state = error.sqlstate or ""
    diagnostic = error.diag
    message = diagnostic.message_primary or str(error).strip() or type(error).__name__
    details = "\n".join(filter(None, (diagnostic.message_detail, diagnostic.message_hint)))
    text = f"could not {verb} {_where(connection)}: {message} (SQLSTATE {state or 'unknown'})"
    # 42: syntax, unknown names, privileges. 3F: no such schema.
    if state[:2] in ("42", "3F"):
        return ConfigurationError(text, details=details)
    return execution_error(text, transience_of(error), details=details)


def _where(connection: PostgresConnection) -> str:
    return f"database {connection.database!r} on {connection.host}:{connection.port}"
