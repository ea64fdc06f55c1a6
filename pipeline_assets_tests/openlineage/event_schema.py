"""JSON Schema of OpenLineage's events, as far as it can be had from a package.

No package carries the published schema files. The client's classes are generated from them, one for each definition,
with its version: what is there, what is required and of which type is read from these. What they leave out is stated
here: the formats, and the key that each facet stands under. It is stricter than the published schema in one thing:
properties that it does not name are refused.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import attr
from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import facet_v2
from openlineage.client.event_v2 import RunEvent
from openlineage.client.generated import base

KEYS = {
    "ColumnLineageDatasetFacet": "columnLineage",
    "DataQualityAssertionsDatasetFacet": "dataQualityAssertions",
    "DatasetVersionDatasetFacet": "version",
    "DatasourceDatasetFacet": "dataSource",
    "DocumentationJobFacet": "documentation",
    "ErrorMessageRunFacet": "errorMessage",
    "InputStatisticsInputDatasetFacet": "inputStatistics",
    "JobTypeJobFacet": "jobType",
    "NominalTimeRunFacet": "nominalTime",
    "OutputStatisticsOutputDatasetFacet": "outputStatistics",
    "OwnershipJobFacet": "ownership",
    "ParentRunFacet": "parent",
    "ProcessingEngineRunFacet": "processing_engine",
    "SQLJobFacet": "sql",
    "SchemaDatasetFacet": "schema",
    "SourceCodeLocationJobFacet": "sourceCodeLocation",
    "StorageDatasetFacet": "storage",
    "TagsJobFacet": "tags",
    "TagsRunFacet": "tags",
    "TestRunFacet": "test",
}
_FORMATS = {
    **dict.fromkeys(("eventTime", "nominalStartTime", "nominalEndTime"), "date-time"),
    **dict.fromkeys(("producer", "_producer", "schemaURL", "_schemaURL", "uri", "url"), "uri"),
    "runId": "uuid",
}
_checker = FormatChecker(["uuid"])


@_checker.checks("date-time", raises=ValueError)
def _is_time(text: object) -> bool:
    return datetime.fromisoformat(str(text)).tzinfo is not None and "T" in str(text)


@_checker.checks("uri")
def _is_uri(text: object) -> bool:
    return bool(urlsplit(str(text)).scheme)


def _facet_classes() -> Iterator[type[Any]]:
    for name in facet_v2.__all__:
        if name.islower() and name != "set_producer":
            module = import_module(f"openlineage.client.generated.{name}")
            yield from (
                cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base.BaseFacet)
            )


FACETS = {cls._get_schema(): cls for cls in _facet_classes()}


def schema_of(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema of one of the client's classes."""
    definitions: dict[str, Any] = {}
    _define(cls, definitions)
    return {"$ref": f"#/$defs/{cls.__qualname__}", "$defs": definitions}


def _define(cls: type[Any], definitions: dict[str, Any]) -> None:
    if cls.__qualname__ not in definitions:
        definitions[cls.__qualname__] = {}  # for a class that has itself as a part
        definitions[cls.__qualname__] = _object(cls, definitions)


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _type(inner, definitions)
    if origin is list:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is dict:
        # Facets are looked at one by one: each has a class of its own.
        is_facet = isinstance(arguments[1], type) and issubclass(arguments[1], base.BaseFacet)
        return {
            "type": "object",
            "additionalProperties": {"type": "object"} if is_facet else _type(arguments[1], definitions),
        }
    if hint is Any:
        return {}
    if issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if attr.has(hint):
        _define(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__qualname__}"}
    return {"type": {str: "string", bool: "boolean", int: "integer", float: "number"}[hint]}


def _object(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    properties, required = {}, []
    for field in attr.fields(cls):
        properties[field.name] = _type(hints[field.name], definitions)
        if field.name in _FORMATS:
            properties[field.name]["format"] = _FORMATS[field.name]
        # What the classes fill in themselves is required all the same.
        filled = field.name in ("producer", "schemaURL", "_producer", "_schemaURL")
        if field.default is attr.NOTHING or filled:
            required.append(field.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def problems(event: dict[str, Any]) -> list[str]:
    """Return what is wrong with an event, as it is sent."""
    found = list(_errors(RunEvent, event, "event"))
    places = [("run", base.RunFacet, event["run"], "facets"), ("job", base.JobFacet, event["job"], "facets")]
    for dataset in event.get("inputs", []):
        places += [("input", base.DatasetFacet, dataset, "facets")]
        places += [("input", base.InputDatasetFacet, dataset, "inputFacets")]
    for dataset in event.get("outputs", []):
        places += [("output", base.DatasetFacet, dataset, "facets")]
        places += [("output", base.OutputDatasetFacet, dataset, "outputFacets")]
    for where, kind, holder, name in places:
        for key, facet in holder.get(name, {}).items():
            cls = FACETS.get(facet.get("_schemaURL"))
            if cls is None:
                found.append(f"{where} facet {key} has no known _schemaURL")
                continue
            if not issubclass(cls, kind) or KEYS[cls.__name__] != key:
                found.append(f"{where} facet {key} is a {cls.__name__}")
            found += _errors(cls, facet, f"{where} facet {key}")
    return found


def _errors(cls: type[Any], instance: Any, where: str) -> Iterator[str]:
    validator = Draft202012Validator(schema_of(cls), format_checker=_checker)
    for error in validator.iter_errors(instance):
        yield f"{where}: /{'/'.join(map(str, error.absolute_path))}: {error.message}"
