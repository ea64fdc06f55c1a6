"""What all models of JSON have in common."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticKnownError


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
