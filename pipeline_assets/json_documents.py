"""JSON files as people write them: parsed with positions in errors, and JSON Pointers made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline_assets.errors import ConfigIssue, ConfigurationError
from pipeline_assets.redaction import redact

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 100
_SHOWN = 60
_MAX_DIGITS = 1000


def pointer(*parts: str | int) -> str:
    """Return the JSON Pointer (RFC 6901) made of ``parts``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def json_type(value: Any) -> str:
    """Return what JSON calls the type of ``value``."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def shown_value(value: Any) -> str:
    """Return ``value`` as errors show it: masked, and cut where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    text = redact(text)  # before it is cut: half a secret looks like none
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def parse_json(file: str, content: bytes) -> dict[str, Any]:
    """Return the object in ``content``.

    Raises ConfigurationError for anything but one JSON object of at most 1 MiB whose keys differ from one another,
    with line and column where the text is not JSON.
    """

    def fail(message: str) -> ConfigurationError:
        return ConfigurationError.from_issues([ConfigIssue(file, "", message)])

    if len(content) > MAX_BYTES:
        raise fail(f"is {len(content):,} bytes long; a config has at most {MAX_BYTES:,}: does it hold data?")
    try:
        data = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique_keys,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_not_json,
        )
    except UnicodeDecodeError as error:
        raise fail(f"is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise fail(_not_json_because(error)) from error
    except _BadNumberError as error:
        raise fail(f"holds {error.args[0]}") from error
    except RecursionError as error:
        raise fail(_TOO_DEEP) from error
    if not isinstance(data, dict):
        raise fail(f"holds a JSON {json_type(data)}; a JSON object was expected")
    if _depth(data) > MAX_DEPTH:
        raise fail(_TOO_DEEP)
    if twice := list(_places_of(_TWICE, data, ())):
        raise ConfigurationError.from_issues(
            ConfigIssue(file, pointer(*place), f"key {place[-1]!r} occurs twice in one object") for place in twice
        )
    try:
        if b"\\u" in content:
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise fail(f"holds half of a surrogate pair ({error.object[error.start]!r}), which is no character") from error
    return data


_TOO_DEEP = f"is nested too deeply: a config has at most {MAX_DEPTH} levels"
# In the place of what has a key that was there already: only from outside can be told where that is.
_TWICE = object()


class _BadNumberError(ValueError):
    pass


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _BadNumberError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    found = float(text)
    if math.isinf(found):
        raise _BadNumberError(f"the number {shown_value(text)}, which is too large")
    return found


def _not_json(text: str) -> NoReturn:
    """Refuse what Python takes for numbers and JSON does not: NaN and the infinities."""
    raise _BadNumberError(f"{text}, which is no JSON")


def _not_json_because(error: json.JSONDecodeError) -> str:
    text, at = error.doc, error.pos
    ends_after_comma = text.startswith(("}", "]"), at) and text[:at].rstrip().endswith(",")
    if not text.strip():
        return "the file is empty"
    if text.startswith(("//", "/*", "#"), at):
        why = "JSON has no comments"
    elif ends_after_comma or error.msg.startswith("Illegal trailing comma"):  # the latter by Python 3.13
        why = "remove the comma before the closing bracket"
    elif text.startswith("'", at):
        why = 'JSON has texts in double quotes (")'
    else:
        why = error.msg
    return f"is not JSON: line {error.lineno}, column {error.colno}: {why}"


def _depth(data: Any) -> int:
    """Return how deep objects and arrays stand in one another, found without recursion."""
    deepest, pending = 0, [(data, 1)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, dict | list):
            deepest = max(deepest, depth)
            pending += [(value, depth + 1) for value in (node.values() if isinstance(node, dict) else node)]
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found[key] = _TWICE
            seen.add(key)
    return found


def _places_of(wanted: object, node: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if node is wanted:
        yield at
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _places_of(wanted, value, (*at, key))
