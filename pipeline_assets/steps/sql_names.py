"""What a SQL text is and which tables it reads, found without a database or Spark."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pipeline_assets.steps.sql_tokens import tables_by_tokens

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.optimizer.scope import Scope
    from sqlglot.tokens import Token  # type: ignore[attr-defined]

# What a query begins with in Spark SQL. All else is done at once by spark.sql(), also where a run is only planned.
_QUERIES = frozenset(["FROM", "MAP", "REDUCE", "SELECT", "TABLE", "VALUES", "WITH"])
# What follows on a FROM, and on the queries of a WITH, in a statement that writes.
_WRITES = frozenset(
    [
        ("INSERT", "INTO"),
        ("INSERT", "OVERWRITE"),
        ("INSERT", "WITH"),
        ("MERGE", "INTO"),
        ("MERGE", "WITH"),
        (")", "DELETE"),
        (")", "INSERT"),
        (")", "MERGE"),
        (")", "UPDATE"),
    ]
)

# Those of Spark's functions whose value is another one each time a query is run, or that tell where a row lies.
_TIME = frozenset(["current_date", "current_time", "current_timestamp", "localtimestamp"])  # without parentheses too
_CHANCE = frozenset(
    [
        "java_method",
        "monotonically_increasing_id",
        "rand",
        "randn",
        "random",
        "randstr",
        "reflect",
        "shuffle",
        "try_reflect",
        "uniform",
        "uuid",
    ]
)
_CHANGING = (
    _TIME
    | _CHANCE
    | {
        "curdate",
        "input_file_block_length",
        "input_file_block_start",
        "input_file_name",
        "now",
        "spark_partition_id",
    }
)
# Those of PostgreSQL's functions that give another value for each row.
_VOLATILE = frozenset(
    [
        "clock_timestamp",
        "gen_random_bytes",
        "gen_random_uuid",
        "random",
        "random_normal",
        "timeofday",
        "uuid_generate_v1",
        "uuid_generate_v1mc",
        "uuid_generate_v4",
        "uuidv4",
        "uuidv7",
    ]
)
# Compared with a date or a timestamp, Spark takes these texts for the time of the query.
_TIME_TEXTS = frozenset(["now", "today", "tomorrow", "yesterday"])


def chance_part(sql: str, dialect: Literal["spark", "postgres"] = "spark") -> str | None:
    """Return the first part of ``sql`` whose value is another one for a row each time that row is computed; or None.

    Such values are those of one look at the rows: the time of a query is not among them.
    """
    from sqlglot.tokens import TokenType  # type: ignore[attr-defined]

    names = _CHANCE if dialect == "spark" else _VOLATILE
    for token, following in pairwise(_tokens(sql, dialect)):
        if token.text.casefold() in names and following.token_type is TokenType.L_PAREN:
            return f"{token.text}()"
    return None


def changing_part(sql: str) -> str | None:
    """Return the first part of ``sql`` whose value depends on the time or on chance, as it stands there; or None."""
    from sqlglot.tokens import TokenType  # type: ignore[attr-defined]

    tokens = _tokens(sql, "spark")
    kinds = [token.token_type for token in tokens] + [TokenType.SEMICOLON] * 2
    for at, token in enumerate(tokens):
        name = token.text.casefold()
        if kinds[at] is TokenType.STRING:
            if name.strip() in _TIME_TEXTS:
                return f"'{token.text}'"
        elif kinds[at + 1] is TokenType.L_PAREN:
            # Of a time that is given it makes a number, and of none the time.
            is_clock = name == "unix_timestamp" and kinds[at + 2] is TokenType.R_PAREN
            if name in _CHANGING or is_clock:
                return f"{token.text}()"
        elif name in _TIME and kinds[at] is not TokenType.IDENTIFIER and kinds[at - 1] is not TokenType.DOT:
            return token.text
    return None


def _tokens(sql: str, dialect: str) -> list[Token]:
    """Return the tokens of ``sql``; none when it can't be split into them: who runs it can't do that either."""
    from sqlglot import tokenize

    try:
        return tokenize(sql, read=dialect)
    except _sqlglot_errors():
        return []


def check_is_query(query: str) -> str:
    """Return ``query``. Raises ValueError when it is not one query in Spark SQL.

    What begins as one and is not understood by the parser passes: Spark is the judge of it.
    """
    from sqlglot import exp

    words = _words(query)
    if not words:
        raise ValueError("the query is empty")
    first = next((word for word in words if word != "("), "(")
    if first not in _QUERIES:
        raise _no_query(f"is a {first} statement")
    pairs = list(pairwise(words))
    count = 1 + sum(before == ";" != after for before, after in pairs)
    if count > 1:
        raise _no_query(f"holds {count} statements")
    statement = _parsed(query, "spark")
    if isinstance(statement, exp.Query | exp.Values):
        return query
    writes = next((pair for pair in pairs if pair in _WRITES), None)
    if writes is not None:
        raise _no_query(f"writes ({' '.join(writes).removeprefix(') ')})")
    if statement is not None:
        raise _no_query(f"is a {first} statement")
    return query


def _words(query: str) -> list[str]:
    """Return the words and signs of ``query`` in upper case, with '' in the place of each text in quotes."""
    from sqlglot.tokens import TokenType  # type: ignore[attr-defined]

    tokens = _tokens(query, "spark")
    words = ["''" if each.token_type is TokenType.STRING else each.text.upper() for each in tokens]
    # What can't be split into tokens here, Spark may be able to split.
    return words or re.findall(r"\w+|\S", query.upper())


def _no_query(found: str) -> ValueError:
    return ValueError(f"the query {found}: expected one SELECT, or WITH ... SELECT")


def keeps_state(query: str) -> bool:
    """Whether ``query`` on a stream needs what it has seen before: it groups, joins or drops duplicates.

    What the parser does not understand is taken to.
    """
    from sqlglot import exp

    statement = _parsed(query, "spark")
    return statement is None or statement.find(exp.Group, exp.AggFunc, exp.Distinct, exp.Join) is not None


def moves_rows(query: str) -> bool:
    """Whether ``query`` brings rows together that were apart: it groups, joins, sorts, or has windows over them.

    What the parser does not understand is taken to.
    """
    from sqlglot import exp

    statement = _parsed(query, "spark")
    if statement is None:
        return True
    moving = (exp.Group, exp.AggFunc, exp.Distinct, exp.Join, exp.Window, exp.Order, exp.SetOperation, exp.Exists)
    return statement.find(*moving) is not None or any(found.args.get("query") for found in statement.find_all(exp.In))


def has_groups(query: str) -> bool:
    """Whether the rows of ``query`` are those of groups. What the parser does not understand is taken not to be."""
    from sqlglot import exp

    statement = _parsed(query, "spark")
    if not isinstance(statement, exp.Select):
        return False
    if statement.args.get("group") is not None:
        return True
    found = (aggregate for column in statement.expressions for aggregate in column.find_all(exp.AggFunc))
    return any(aggregate.find_ancestor(exp.Window, exp.Subquery) is None for aggregate in found)


def has_filter(query: str) -> bool:
    """Whether ``query`` leaves rows of its tables out. What the parser does not understand is taken to."""
    from sqlglot import exp

    statement = _parsed(query, "spark")
    return statement is None or statement.find(exp.Where, exp.Limit, exp.TableSample) is not None


def _parsed(query: str, dialect: str) -> exp.Expr | None:
    """Return the first statement of ``query`` as the parser of ``dialect`` understands it, or None."""
    statements = _statements(query, dialect)
    return statements[0] if statements else None


def _statements(query: str, dialect: str) -> list[exp.Expr] | None:
    """Return the statements of ``query``, or None when the parser of ``dialect`` does not understand it.

    The parser is recursive: to it some forty calls in one another are too many, which to Spark are few.
    """
    import sqlglot
    from sqlglot import exp

    try:
        with _quiet():
            found = [each for each in sqlglot.parse(query, dialect=dialect) if each is not None]
    except _sqlglot_errors():
        return None
    # To it ``TABLE a`` is a column with an alias.
    return None if any(isinstance(each, exp.Alias | exp.Condition) for each in found) else found


def _sqlglot_errors() -> tuple[type[Exception], ...]:
    """Return what sqlglot raises of a text that it does not understand.

    It documents SqlglotError alone, and trips over what is not as it expects in other ways too: a query that the
    database or Spark understands may not fail for that.
    """
    from sqlglot.errors import SqlglotError

    return (
        SqlglotError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    )


def spark_table_names(query: str) -> tuple[str, ...]:
    """Return the unqualified tables that ``query`` reads, in order, without the names of its own CTEs."""
    return tuple(dict.fromkeys(name for schema, name in _tables(query, "spark") if schema is None))


def postgres_tables(query: str) -> tuple[tuple[str | None, str], ...]:
    """Return (schema or None, table) of each table that ``query`` reads; none when it can't be parsed."""
    return tuple(dict.fromkeys(_tables(query, "postgres")))


def postgres_columns(query: str, columns: Iterable[str]) -> dict[str, tuple[tuple[str | None, str, str], ...]]:
    """Return, for ``columns`` of the result, the (schema or None, table, column) that each is computed from.

    One that is not understood is left out: without the tables' columns, a name alone does not tell in a join where it
    is from, and neither does ``*``.
    """
    statement = _parsed(query, "postgres")
    if statement is None:
        return {}
    scope = _scope(statement)
    found = {column: _origins(statement, scope, column) for column in columns}
    return {column: origins for column, origins in found.items() if origins is not None}


def _scope(statement: exp.Expr) -> Scope | None:
    """Return ``statement`` with its columns' tables, for the lineage of all of them; None if it is not understood."""
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    try:
        with _quiet():
            # Here, as lineage() would do it for each column: of a wide query that takes seconds.
            return build_scope(
                qualify(statement.copy(), dialect="postgres", schema={}, validate_qualify_columns=False, identify=False)
            )
    except _sqlglot_errors():
        return None


def _origins(statement: exp.Expr, scope: Scope | None, column: str) -> tuple[tuple[str | None, str, str], ...] | None:
    from sqlglot import exp
    from sqlglot.lineage import Node, lineage

    if scope is None:
        return _starred(statement, column)
    quoted = exp.to_identifier(column, quoted=True).sql(dialect="postgres")
    try:
        with _quiet():
            root = lineage(
                quoted, scope.expression, schema={}, dialect="postgres", scope=scope, trim_selects=False, copy=False
            )
    except _sqlglot_errors():
        return _starred(statement, column)
    assert isinstance(root, Node)  # noqa: S101  (it is one for one column)
    origins: set[tuple[str | None, str, str]] = set()
    for node in root.walk():
        if node.downstream:
            continue
        if isinstance(node.expression, exp.Table):
            source = exp.to_column(node.name, dialect="postgres").name
            if source == "*" or not _is_plain(node.expression):
                return None
            origins.add((*_named(node.expression), source))
        elif isinstance(node.expression, exp.Placeholder) or node.expression.find(exp.Column) is not None:
            return None
    return tuple(sorted(origins, key=lambda origin: (origin[0] or "", *origin[1:])))


def _starred(statement: exp.Expr, column: str) -> tuple[tuple[str | None, str, str]] | None:
    """Return the same as ``_origins`` of a ``column`` that stands for itself in a ``*``, if only one table has it."""
    from sqlglot import exp

    source = statement.args.get("from_")
    if not isinstance(statement, exp.Select) or statement.args.get("joins") or source is None:
        return None
    table = source.this
    if not isinstance(table, exp.Table) or not _is_plain(table) or _is_cte(table):
        return None
    # (address).* is none: it stands for what is in one column.
    stars = [item for item in statement.expressions if item.is_star and not isinstance(item, exp.Dot)]
    others = [item for item in statement.expressions if item not in stars]
    # PostgreSQL names what has no name, and may name it as the column.
    if not stars or not all(isinstance(item, exp.Alias | exp.Column) for item in others):
        return None
    if column.casefold() in (item.alias_or_name.casefold() for item in others):
        return None
    return ((*_named(table), column),)


def _is_plain(table: exp.Table) -> bool:
    """Whether ``table`` is one, and no function, and its columns have the names that they have there."""
    from sqlglot import exp

    return isinstance(table.this, exp.Identifier) and not table.alias_column_names


def _named(table: exp.Table) -> tuple[str | None, str]:
    schema = table.args.get("db")
    return _folded(schema, "postgres") if schema is not None else None, _folded(table.this, "postgres")


def _tables(query: str, dialect: str) -> Iterator[tuple[str | None, str]]:
    from sqlglot import exp

    statement = _parsed(query, dialect)
    if statement is None:
        yield from ((None, name) for name in tables_by_tokens(_tokens(query, dialect)))
        return
    tables = [node for node in statement.find_all(exp.Table) if isinstance(node.this, exp.Identifier)]
    # A hint names tables by their aliases.
    tables = [node for node in tables if node.find_ancestor(exp.Hint) is None]
    for node in sorted(tables, key=lambda table: table.this.meta.get("start", 0)):
        qualifier = node.args.get("db")
        schema = _folded(qualifier, dialect) if qualifier is not None else None
        if schema is not None or not _is_cte(node):
            yield schema, _folded(node.this, dialect)


def _folded(identifier: exp.Identifier | str, dialect: str) -> str:
    if isinstance(identifier, str):
        return identifier  # between the dots of a..b there is no identifier
    name = str(identifier.this)
    return name.lower() if dialect == "postgres" and not identifier.args.get("quoted") else name


def _is_cte(table: exp.Table) -> bool:
    """Whether ``table`` names a CTE that is visible where it stands."""
    from sqlglot import exp

    name = table.name.casefold()
    child: exp.Expr = table
    node = table.parent
    while node is not None:
        if isinstance(node, exp.With):
            position = next(at for at, cte in enumerate(node.expressions) if cte is child)
            visible = node.expressions[: position + bool(node.args.get("recursive"))]
        else:
            within = node.args.get("with_")
            visible = within.expressions if within is not None and within is not child else []
        if any(cte.alias.casefold() == name for cte in visible):
            return True
        child, node = node, node.parent
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep sqlglot from logging that it falls back to a plain command: the caller says what is wrong."""
    logger = logging.getLogger("sqlglot")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
