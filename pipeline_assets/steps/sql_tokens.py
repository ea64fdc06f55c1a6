"""Which tables a SQL text names, by its tokens alone: for what can't be parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlglot.tokens import Token  # type: ignore[attr-defined]

# By the names of sqlglot's kinds of tokens.
_QUERIES = frozenset(["FROM", "SELECT", "TABLE", "VALUES", "WITH"])
_AFTER_TABLES = frozenset(
    [
        "CLUSTER_BY",
        "DISTRIBUTE_BY",
        "EXCEPT",
        "GROUP_BY",
        "HAVING",
        "INTERSECT",
        "LIMIT",
        "OFFSET",
        "ORDER_BY",
        "PIPE_GT",
        "QUALIFY",
        "SELECT",
        "SORT_BY",
        "UNION",
        "VALUES",
        "WHERE",
        "WINDOW",
    ]
)
_NAMES = frozenset(["IDENTIFIER", "VAR"])


def tables_by_tokens(tokens: Sequence[Token]) -> Iterator[str]:
    """Yield the unqualified names where tables are listed, without the names of CTEs."""
    reader = _Reader(tokens)
    for at in range(len(tokens)):
        if (name := reader.read(at)) is not None:
            yield name


@dataclass
class _Level:
    """A pair of parentheses, or what is around them all. ``cte``: the name of the CTE whose query is in it."""

    is_query: bool
    lists_tables: bool = False
    cte: str | None = None


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._is_recursive = any(self._kind(at) == "RECURSIVE" for at in range(len(tokens)))
        self._levels = [_Level(is_query=True)]
        self._ctes: set[str | None] = set()
        self._expects_table = False

    def read(self, at: int) -> str | None:
        """Take the token at ``at``, which is the next one, and return its text if it names a table."""
        kind, here = self._kind(at), self._levels[-1]
        expected, self._expects_table = self._expects_table, False
        if kind == "L_PAREN":
            self._open(at, expected)
        elif kind == "R_PAREN":
            self._close()
        elif kind == "COMMA":
            self._expects_table = here.lists_tables
        elif kind == "JOIN":
            self._expects_table = here.is_query
        elif kind == "FROM":
            # That of extract(hour FROM x), and of others, is in the parentheses of a call.
            if here.is_query and self._kind(at - 1) not in ("DISTINCT", "DOT"):
                here.lists_tables = self._expects_table = True
        elif kind == "TABLE":
            self._expects_table = self._kind(at - 1) != "DOT" and self._kind(at + 1) in (*_NAMES, "L_PAREN")
        elif kind == "LATERAL":
            is_view = self._kind(at + 1) == "VIEW"
            here.lists_tables &= not is_view
            self._expects_table = expected and not is_view
        elif kind in _AFTER_TABLES:
            here.lists_tables = False
        elif expected and self._is_table(at):
            return self._tokens[at].text
        return None

    def _kind(self, at: int) -> str:
        return str(self._tokens[at].token_type.name) if 0 <= at < len(self._tokens) else ""

    def _is_table(self, at: int) -> bool:
        """Whether the token, where a table is expected, is one: words that are keywords elsewhere may be, too."""
        text = self._tokens[at].text
        is_name = self._kind(at) in _NAMES or text.isidentifier()
        return is_name and self._kind(at + 1) not in ("DOT", "L_PAREN") and text.casefold() not in self._ctes

    def _open(self, at: int, expected: bool) -> None:
        inside = at
        while self._kind(inside) == "L_PAREN":
            inside += 1
        is_query = self._kind(inside) in _QUERIES
        is_joined = expected and not is_query
        level = _Level(is_query or is_joined, lists_tables=is_joined, cte=self._cte(at) if is_query else None)
        if self._is_recursive:
            self._ctes.add(level.cte)
        self._levels.append(level)
        self._expects_table = is_joined

    def _close(self) -> None:
        if len(self._levels) > 1:
            self._ctes.add(self._levels.pop().cte)

    def _cte(self, at: int) -> str | None:
        """Return the name of the CTE whose query begins with the parenthesis at ``at``, or None."""
        if self._kind(at - 1) != "ALIAS" and self._tokens[at - 1].text.upper() != "MATERIALIZED":
            return None
        depth = 0
        for before in range(at - 1, -1, -1):
            kind = self._kind(before)
            depth += (kind == "R_PAREN") - (kind == "L_PAREN")
            if depth == 0 and kind in ("COMMA", "RECURSIVE", "WITH"):
                return str(self._tokens[before + 1].text).casefold()
        return None
