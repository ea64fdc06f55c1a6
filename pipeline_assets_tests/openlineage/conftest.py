"""An environment in which OpenLineage is not configured, before each test and after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _not_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    # Its client adds variables of its own.
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        del os.environ[name]
