"""``${NAME}`` in the texts of JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipeline_assets.json_documents import pointer

# Also without a name that there may be, or without its end: that is no variable, and told.
_VARIABLE = re.compile(
    r"\$(?P<escape>\$)?\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?=(?P<wrong>[^}]{0,40}\}?)))"
)


def substitute(
    data: Any,
    values: Mapping[str, str],
    missing: Callable[[str, str], str | None],
    without_default: Collection[str] = (),
    malformed: Callable[[str, str], None] = lambda message, at: None,
) -> Any:
    """Return ``data`` with ``${NAME}`` and ``${NAME:-default}`` replaced in every string; ``$${NAME}`` stays as text.

    ``missing(name, pointer)`` is asked for names that are not in ``values`` and have no default, or whose default does
    not hold; None leaves the text as it is. ``malformed(message, pointer)`` is told of each ``${`` that begins no
    variable, which stays as it is too.
    """

    def walk(node: Any, at: str) -> Any:
        if isinstance(node, str):
            return _VARIABLE.sub(lambda match: replace(match, at), node) if "${" in node else node
        if isinstance(node, dict):
            return {key: walk(value, f"{at}{pointer(key)}") for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, f"{at}/{index}") for index, value in enumerate(node)]
        return node

    def replace(match: re.Match[str], at: str) -> str:
        if match["escape"]:
            return match[0]
        name = match["name"]
        if name is None:
            wrong = f"{match[0]}{match['wrong']}"
            wanted = "write ${NAME} or ${NAME:-default}, or $${...} for the text itself"
            malformed(f"{wrong!r} is no variable: {wanted}", at)
            return match[0]
        if "${" in (match["default"] or ""):
            malformed(f"{match[0]!r}: a default can't hold another ${{...}}", at)
            return match[0]
        if name in values:
            return values[name]
        if match["default"] is not None and name not in without_default:
            return match["default"]
        found = missing(name, at)
        return match[0] if found is None else found

    return walk(data, "")


def unescape(data: Any) -> Any:
    """Return ``data`` with ``$${NAME}`` turned into the literal text ``${NAME}``: the last substitution's end."""
    if isinstance(data, str):
        return data.replace("$${", "${")
    if isinstance(data, dict):
        return {key: unescape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [unescape(value) for value in data]
    return data
