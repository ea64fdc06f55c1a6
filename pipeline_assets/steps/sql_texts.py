"""Which texts of a step's config are SQL. A field says so by its type, and is then checked like every other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field

from pipeline_assets.errors import ConfigurationError, first_line
from pipeline_assets.steps.sql_names import check_is_query


@dataclass(frozen=True)
class SqlText:
    """Marks a type, in its Annotated, as Spark SQL of the ``kind``: ``column`` may be a column's bare name too."""

    kind: Literal["expression", "column", "query", "columns", "type"]


SqlExpression = Annotated[str, Field(min_length=1), SqlText("expression")]
ColumnOrExpression = Annotated[str, Field(min_length=1), SqlText("column")]
SqlQuery = Annotated[str, AfterValidator(check_is_query), SqlText("query")]
SqlColumns = Annotated[str, Field(min_length=1), SqlText("columns")]
"""Columns with their types, as Spark's DDL has them."""
SqlType = Annotated[str, Field(min_length=1), SqlText("type")]


def no_columns(ddl: str, error: Exception) -> ConfigurationError:
    """Return the error for a ``schema`` that Spark's parser has refused by ``error``."""
    return ConfigurationError(
        f"'schema' is no list of columns: {ddl!r}: expected DDL such as 'id BIGINT, event_type STRING'",
        details=first_line(str(error)),
    )


Place = tuple[str | int, ...]


def sql_texts(model: BaseModel) -> Iterator[tuple[Place, str, SqlText]]:
    """Yield every SQL text in ``model``, with its keys below the model's config and what it is."""
    for name, field in type(model).model_fields.items():
        place = (field.alias or name,)
        yield from dict.fromkeys(_in(getattr(model, name), field.annotation, field.metadata, place))


def _in(value: Any, annotation: Any, metadata: Any, place: Place) -> Iterator[tuple[Place, str, SqlText]]:
    marks = [mark for mark in metadata if isinstance(mark, SqlText)]
    arguments = get_args(annotation)
    if isinstance(value, str):
        yield from ((place, value, mark) for mark in marks)
    if get_origin(annotation) is Annotated:
        yield from _in(value, arguments[0], annotation.__metadata__, place)
    elif isinstance(value, BaseModel):
        yield from ((place + inner, text, mark) for inner, text, mark in sql_texts(value))
    elif isinstance(value, Mapping) and get_origin(annotation) is dict:
        for key, item in value.items():
            yield from _in(item, arguments[1], (), (*place, key))
    elif isinstance(value, tuple | list) and get_origin(annotation) in (tuple, list):
        for index, item in enumerate(value):
            of_item = arguments[0] if len(arguments) == 1 or arguments[-1] is ... else arguments[index]
            yield from _in(item, of_item, (), (*place, index))
    else:
        for alternative in arguments:
            yield from _in(value, alternative, (), place)
