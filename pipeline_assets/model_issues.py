"""Pydantic's errors about JSON as issues, each with the place where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline_assets.errors import ConfigIssue, did_you_mean
from pipeline_assets.json_documents import json_type, pointer, shown_value

_MIN_LENGTH_BARE = 4  # of a text that is looked for without quotes: a shorter one may stand for something else


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
            message = f"expected {expected} (got {json_type(found[0]['input'])})"
        message = as_written(message, _value_at(document, location), _value_at(written, location))
        yield ConfigIssue(file, pointer(*prefix, *location), message)


def _value_at(document: Any, location: Iterable[str | int]) -> Any:
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
        message = message.replace(shown_value(found), shown_value(text)).replace(repr(found), repr(text))
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
            return f"{shown_value(word)} is not allowed{near} (expected {listed})"
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case "string_pattern_mismatch":
            return f"{shown_value(given)} does not match the expected pattern {context.get('pattern')}"
        case kind if kind in _VALUES:
            return f"expected {_VALUES[kind]} (got {shown_value(given)})"
        case kind if kind in _BOUNDS:
            bound, relation = _BOUNDS[kind]
            return f"{shown_value(given)} is {relation} {context[bound]}"
        case "string_too_short" | "too_short":
            return "is empty" if not given else f"has {len(given)} of at least {context['min_length']} {_items(given)}"
        case "string_too_long" | "too_long":
            return f"has {len(given)} {_items(given)}: at most {context['max_length']} are allowed"
        case _:
            told = detail["msg"].replace("Tuple", "Array")
            message = told[:1].lower() + told[1:]
            return f"{message} (got {json_type(given)})"


def _items(given: Any) -> str:
    return "characters" if isinstance(given, str) else "keys" if isinstance(given, dict) else "items"


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
