"""The JSON Schemas of configs and connections, generated from the models, for editors to complete and check by."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from pipeline_assets.config import PipelineConfig
from pipeline_assets.connections import ConnectionsFile
from pipeline_assets.steps import METHODS, method_registry
from pipeline_assets.steps.base import DataFrameMethod, StepMethod, ValidateMethod

_VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"
_NUMBER_AS_TEXT = rf"^\s*-?[0-9]+(\.[0-9]+)?\s*$|{_VARIABLE}"
_BOOLEAN_AS_TEXT = rf"^(true|false)$|{_VARIABLE}"


def pipeline_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a pipeline config.

    Steps are flat: type and method are enumerated, and an if/then per method gives ``config`` its model. Editors
    complete that, while nested alternatives show them the errors of all branches at once.
    """
    schema = PipelineConfig.model_json_schema(by_alias=True, schema_generator=_WithFieldDocstrings)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    methods = list(method_registry().values())
    for method in methods:
        model = method.model_json_schema(by_alias=True, schema_generator=_WithFieldDocstrings)
        definitions.update(model.pop("$defs", {}))
        definitions[method.__name__] = model
    step = definitions["StepEnvelope"]
    step["properties"]["method"] = {"enum": sorted({method.method for method in methods})}
    step["allOf"] = [_branch(method) for method in methods]
    return _finished(schema, "Pipeline")


def connections_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``connections.json``."""
    schema = ConnectionsFile.model_json_schema(by_alias=True, schema_generator=_WithFieldDocstrings)
    return _finished(schema, "Connections")


def _finished(schema: dict[str, Any], title: str) -> dict[str, Any]:
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = title
    widened: dict[str, Any] = _accept_text(schema)
    return widened


def step_reference() -> str:
    """Return the reference of all step methods as Markdown, for docs/steps.md."""
    lines = [*_REFERENCE_HEAD.splitlines(), "", "| type | method | what it does |", "|---|---|---|"]
    for method in METHODS:
        link = f"[`{method.method}`](#{_anchor(f'{method.type} {method.method}')})"
        first_sentence = re.split(r"(?<=\.)\s", inspect.cleandoc(method.__doc__ or ""))[0]
        lines.append(f"| {method.type} | {link} | {' '.join(first_sentence.split())} |")
    for method in METHODS:
        shared = next((base for base in _SHARED if issubclass(method, base)), None)
        lines += ["", f"## {method.type} {method.method}", "", inspect.cleandoc(method.__doc__ or "")]
        own = {name: key for name, key in method.model_fields.items() if not shared or name not in shared.model_fields}
        if own:
            lines += ["", *_key_table(method, own)]
        if shared:
            heading = _SHARED[shared]
            lines += ["", f"{'Further keys' if own else 'Keys'}: [{heading.lower()}](#{_anchor(heading)})."]
        elif not own:
            lines += ["", "It has no keys."]
    for base, heading in _SHARED.items():
        lines += ["", f"## {heading}", "", *_key_table(base, dict(sorted(base.model_fields.items())))]
    return "\n".join(lines) + "\n"


_REFERENCE_HEAD = """# Step methods

The keys of a step's `config`, by its type and method. Which DataFrame a step takes, and how its asset is called:
[configuration.md](configuration.md#a-step).

Made from the models: `pipeline-assets schema --reference > docs/steps.md`."""
_SHARED: dict[type[StepMethod], str] = {
    DataFrameMethod: "Keys of every extract and transform",
    ValidateMethod: "Keys of every validate step",
}


class _WithFieldDocstrings(GenerateJsonSchema):
    """Pydantic does this as well, by ``use_attribute_docstrings``: when a class is made, and so in each process.

    That was more than a quarter of the time that the import of this project takes.
    """

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Return the JSON Schema of a model, with what the docstrings of its fields say."""
        found = super().model_schema(schema)
        model = schema["cls"]
        for name, docstring in field_docstrings(model).items():
            key = found.get("properties", {}).get(model.model_fields[name].alias or name)
            if key is not None:
                key.setdefault("description", docstring)
        return found


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the texts that stand below the fields of a model and of what it derives from, where there are sources."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            found |= _own_docstrings(cls)
    return {name: text for name, text in found.items() if name in model.model_fields}


@cache
def _own_docstrings(cls: type[BaseModel]) -> dict[str, str]:
    # Python reads the whole module to find one class, and most methods derive from the same few.
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    for field, below in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def _key_table(model: type[BaseModel], fields: dict[str, FieldInfo]) -> list[str]:
    docstrings = field_docstrings(model)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        about = " ".join((field.description or docstrings.get(name, "")).split()).replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {_default(field)} | {about} |")
    return lines


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default()
    return "" if default is None or default in ((), {}, []) else f"`{json.dumps(default)}`"


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _branch(method: type[StepMethod]) -> dict[str, Any]:
    named = {"type": {"const": method.type}, "method": {"const": method.method}}
    required = ["config"] if any(field.is_required() for field in method.model_fields.values()) else []
    return {
        "if": {"properties": named, "required": ["type", "method"]},
        "then": {"properties": {"config": {"$ref": f"#/$defs/{method.__name__}"}}, "required": required},
    }


def _accept_text(node: Any) -> Any:
    """Let numbers and booleans be given as text too, as ``"200"`` or ``"${SIZE}"``: the models take them so."""
    if isinstance(node, list):
        return [_accept_text(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") in ("integer", "number", "boolean") and "const" not in node:
        pattern = _BOOLEAN_AS_TEXT if node["type"] == "boolean" else _NUMBER_AS_TEXT
        about = {key: node[key] for key in ("title", "description", "default") if key in node}
        bare = {key: value for key, value in node.items() if key not in about}
        return {**about, "anyOf": [bare, {"type": "string", "pattern": pattern}]}
    return {key: _accept_text(value) for key, value in node.items()}
