"""The list of methods: complete, unique, open to other packages, each with a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline_assets.steps
from pipeline_assets.config_schema import field_docstrings
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps import METHODS, method_registry
from pipeline_assets.steps.base import SingleInputTransform, StepMethod
from pipeline_assets.steps.transform import FilterRows

HERE = Path(__file__).parent


class FromElsewhere(SingleInputTransform):
    """A method that another package brings."""

    method = "fromElsewhere"


class LikeFilterRows(FilterRows):
    """A method with a name that is taken."""


class _EntryPoint:
    name = "it"
    value = "other.package:It"

    def __init__(self, brought: Any) -> None:
        self.load: Callable[[], Any] = lambda: brought


def bring(monkeypatch: pytest.MonkeyPatch, brought: Any) -> None:
    monkeypatch.setattr(pipeline_assets.steps, "entry_points", lambda group: [_EntryPoint(brought)])


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_has_a_test(cls: type[StepMethod]) -> None:
    texts = [path.read_text() for path in HERE.glob("test_*.py") if path.name != Path(__file__).name]
    assert any(f"{cls.__name__}(" in text or f"{cls.__name__}.model_validate(" in text for text in texts)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_field_and_method_is_described(cls: type[StepMethod]) -> None:
    assert cls.__doc__
    docstrings = field_docstrings(cls)
    undescribed = [name for name, field in cls.model_fields.items() if not (field.description or docstrings.get(name))]
    assert undescribed == []


def test_methods_by_type_and_name() -> None:
    registry = method_registry()
    assert list(registry.values()) == list(METHODS)
    assert registry["transform", "filterRows"] is FilterRows


def test_another_package_brings_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, FromElsewhere)
    assert method_registry()["transform", "fromElsewhere"] is FromElsewhere


@pytest.mark.parametrize(
    ("brought", "message"),
    [(LikeFilterRows, "the transform method 'filterRows', which .*FilterRows is already"), (str, "is not a class")],
)
def test_what_cannot_be_brought(brought: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, brought)
    with pytest.raises(ConfigurationError, match=message):
        method_registry()
