"""JSON files as people write them: parsed with positions in errors, ``${NAME}`` substituted, JSON Pointers made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NoReturn, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticKnownError

from pipeline_assets.errors import ConfigIssue, ConfigurationError, did_you_mean
from pipeline_assets.redaction import redact

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 100
# Also without a name that there may be, or without its end: that is no variable, and told.
_VARIABLE = re.compile(
    r"\$(?P<escape>\$)?\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?=(?P<wrong>[^}]{0,40}\}?)))"
)
_SHOWN = 60
_MIN_LENGTH_BARE = 4  # of a text that is looked for without quotes: a shorter one may stand for something else
_MAX_DIGITS = 1000


def pointer(*parts: str | int) -> str:
    """Return the JSON Pointer (RFC 6901) made of ``parts``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


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
        raise fail(f"holds a JSON {_json_type(data)}; a JSON object was expected")
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
        raise _BadNumberError(f"the number {_shown(text)}, which is too large")
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


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


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


class JsonModel(BaseModel):
    """A model of JSON, with keys in camelCase and no unknown ones. To pydantic alone ``true`` is the number 1, and
    ``"yes"`` is true: a slip that nobody sees.

    Numbers and booleans may be texts, as variables are put in: ``"200"``, ``"true"``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,  # as a text, "inf" would be a number
    )

    @classmethod
    def of_json(cls, data: Any) -> Self:
        """Return the model of parsed JSON, whose keys are in camelCase alone. Raises pydantic.ValidationError."""
        return cls.model_validate(data, by_alias=True, by_name=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        return of_its_type(cls, value, info)


def of_its_type(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Return ``value`` of a field. Raises PydanticKnownError for a boolean that is to be a number, or the reverse."""
    annotation = model.model_fields[info.field_name or ""].annotation
    choices = get_args(annotation)
    kinds = {annotation, *(map(type, choices) if get_origin(annotation) is Literal else choices)} - {type(None)}
    if isinstance(value, bool):
        if kinds & {int, float} and not kinds & {bool, str}:
            raise PydanticKnownError("int_type" if int in kinds else "float_type")
    elif bool in kinds and str not in kinds and value is not None and str(value).lower() not in ("true", "false"):
        raise PydanticKnownError("bool_parsing" if isinstance(value, str) else "bool_type")
    return value


def issues_of(
    file: str,
    error: ValidationError,
    model: type[BaseModel],
    document: Any,
    prefix: tuple[str | int, ...] = (),
    written: Any = None,
) -> Iterator[ConfigIssue]:
    """Turn pydantic's errors about ``document`` into issues, one for each place.

    ``document`` was validated as ``model`` and stands at ``prefix`` in ``file``; ``written`` is the same before
    variables were put in, and is what the issues show.
    """
    details: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_within(document, detail), []).append(detail)
    around = {location[:length] for location in details for length in range(len(location))}
    for location, found in details.items():
        if location in around:
            continue  # What is wrong inside says more than that another alternative was not taken.
        # Several about one place are those of the alternatives that it was tried as: what is of the right type was
        # meant as that.
        meant = [detail for detail in found if detail["type"] not in _TYPES]
        if meant:
            told = [_explain(each, location, _keys_at(model, location[:-1], each["loc"])) for each in meant]
            message = ", or ".join(dict.fromkeys(told))
        else:
            expected = " or ".join(dict.fromkeys(_TYPES[detail["type"]] for detail in found))
            message = f"expected {expected} (got {_json_type(found[0]['input'])})"
        message = as_written(message, value_at(document, location), value_at(written, location))
        yield ConfigIssue(file, pointer(*prefix, *location), message)


def value_at(document: Any, location: Iterable[str | int]) -> Any:
    """Return what stands at ``location`` in ``document``, or None."""
    for part in location:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def as_written(message: str, value: Any, written: Any) -> str:
    """Return ``message`` about ``value`` with what is ``written`` where it shows texts that variables were put into.

    A variable may hold a secret, and be named where none belongs.
    """
    for found, text in _with_variables(value, written):
        message = message.replace(_shown(found), _shown(text)).replace(repr(found), repr(text))
        if len(found) >= _MIN_LENGTH_BARE:
            bare = rf"(?<!\w){re.escape(found)}(?!\w)"
            message = re.sub(bare, text.replace("\\", r"\\"), message, flags=re.IGNORECASE)
    return message


def _with_variables(value: Any, written: Any) -> Iterator[tuple[str, str]]:
    """Yield each text in ``value`` that is another one in ``written``, and that one."""
    if isinstance(value, str) and isinstance(written, str):
        if value != written and value:
            yield value, written
    elif isinstance(value, dict) and isinstance(written, dict):
        for key, item in value.items():
            yield from _with_variables(item, written.get(key))
    elif isinstance(value, list) and isinstance(written, list):
        for item, text in zip(value, written, strict=False):
            yield from _with_variables(item, text)


def _within(document: Any, detail: ErrorDetails) -> tuple[str | int, ...]:
    """Return the error's location in the document, without the names of the alternatives that pydantic puts in."""
    path: list[str | int] = []
    node: Any = document
    for part in detail["loc"]:
        in_object = isinstance(node, dict) and part in node
        in_array = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_object or in_array:
            node = node[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found") and isinstance(node, dict):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


_DATE = "a date such as 2024-01-31"
_TYPES = {
    "tuple_type": "an array",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "date_type": _DATE,
    "datetime_type": _DATE,
}
_VALUES = {
    "int_parsing": "an integer",
    "int_parsing_size": "an integer that is not too large",
    "int_from_float": "an integer",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "date_parsing": _DATE,
    "date_from_datetime_parsing": _DATE,
    "datetime_parsing": _DATE,
    "datetime_from_date_parsing": _DATE,
}
_BOUNDS = {
    "greater_than": ("gt", "not above"),
    "greater_than_equal": ("ge", "below"),
    "less_than": ("lt", "not below"),
    "less_than_equal": ("le", "above"),
}


def _explain(detail: ErrorDetails, location: tuple[str | int, ...], keys: tuple[str, ...]) -> str:
    last = str(location[-1]) if location else ""
    context, given = detail.get("ctx", {}), detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(last, keys)} (expected one of: {', '.join(sorted(keys))})"
        case "missing" | "union_tag_not_found":
            return "this key is required and missing"
        case "literal_error" | "enum" | "union_tag_invalid":
            word = context.get("tag", given)
            expected = str(context.get("expected") or context.get("expected_tags") or "")
            choices = re.findall(r"'([^']*)'", expected) or [expected]
            near = did_you_mean(word, choices) if isinstance(word, str) else ""
            listed = f"one of: {', '.join(choices)}" if len(choices) > 1 else choices[0]
            return f"{_shown(word)} is not allowed{near} (expected {listed})"
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case "string_pattern_mismatch":
            return f"{_shown(given)} does not match the expected pattern {context.get('pattern')}"
        case kind if kind in _VALUES:
            return f"expected {_VALUES[kind]} (got {_shown(given)})"
        case kind if kind in _BOUNDS:
            bound, relation = _BOUNDS[kind]
            return f"{_shown(given)} is {relation} {context[bound]}"
        case "string_too_short" | "too_short":
            return "is empty" if not given else f"has {len(given)} of at least {context['min_length']} {_items(given)}"
        case "string_too_long" | "too_long":
            return f"has {len(given)} {_items(given)}: at most {context['max_length']} are allowed"
        case _:
            told = detail["msg"].replace("Tuple", "Array")
            message = told[:1].lower() + told[1:]
            return f"{message} (got {_json_type(given)})"


def _items(given: Any) -> str:
    return "characters" if isinstance(given, str) else "keys" if isinstance(given, dict) else "items"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    text = redact(text)  # before it is cut: half a secret looks like none
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...], tags: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the keys that the model at ``location`` below ``model`` knows; ``tags`` tell which of several it is."""
    here: type[BaseModel] = model
    for part in location:
        for name, field in here.model_fields.items():
            if part == (field.alias or name):
                nested = list(_models_in(field.annotation))
                chosen = [found for found in nested if _tags_of(found) & set(tags)]
                here = next(iter(chosen or nested), here)
    return tuple(field.alias or name for name, field in here.model_fields.items())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _tags_of(model: type[BaseModel]) -> set[Any]:
    """Return what a discriminated union may know ``model`` by: the values of its literal fields."""
    literals = (field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal)
    return {value for annotation in literals for value in get_args(annotation)}
