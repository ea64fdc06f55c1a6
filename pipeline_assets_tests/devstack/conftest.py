from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.processes import PartRun


@pytest.fixture
def part_run(tmp_path: Path) -> Iterator[PartRun]:
    (tmp_path / "data").mkdir()
    (tmp_path / "logs").mkdir()
    run = PartRun("test", tmp_path / "data", tmp_path / "logs")
    yield run
    run.stop()
