"""Which values PostgreSQL's casts make others of, without an error. Pure: from the names of types to SQL."""

from __future__ import annotations

import re

# By the type of a target's column, those whose values its cast makes others of without an error.
_WITH_FRACTIONS = {"real", "double precision", "numeric"}
_CUT = {
    "smallint": _WITH_FRACTIONS,
    "integer": _WITH_FRACTIONS,
    "bigint": _WITH_FRACTIONS,
    "date": {"timestamp with time zone", "timestamp without time zone", "text"},
    "name": {"text"},
    '"char"': {"text"},
}
# Those that it rounds, which is left to PostgreSQL, but not where rows are found by the value.
_ROUNDED = {
    "real": {"integer", "bigint", "double precision", "numeric"},
    "double precision": {"bigint", "numeric"},
    "numeric": {"real", "double precision"},
    "bpchar": {"text"},
}
_TEXTS = {"text", "character varying", "bpchar", "name", '"char"'}
_LENGTH = re.compile(r"\(.*?\)")


def may_change(staged: str, base: str, type_: str, *, exact: bool) -> bool:
    """Whether ``type_`` may make another value of one of type ``staged``, without an error.

    ``base``: ``type_`` without length and precision. ``exact``: whether by rounding it, too.
    """
    kind, given = base.removesuffix("[]"), _LENGTH.sub("", staged).removesuffix("[]")
    if given in _CUT.get(kind, ()):
        return True
    return exact and staged != type_ and (type_ != base or given in _ROUNDED.get(kind, ()))


def is_changed(column: str, staged: str, base: str, type_: str) -> str:
    """Return SQL that is true where the value of ``column`` is another one as ``type_``, to which it can be cast."""
    kind, brackets = base.removesuffix("[]"), "[]" if base.endswith("[]") else ""
    compared = staged
    if staged.removesuffix("[]") == "text" and kind not in _TEXTS:
        # One date, one number may be written in several ways.
        compared = f"timestamp{brackets}" if kind == "date" else base
    return f"{column}::{type_}::{compared} <> {column}::{compared}"
