"""The fixture of all tests of sensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.sensors.bench import Bench, document


@pytest.fixture
def bench(settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    settings.configs.mkdir()
    write_config(settings.configs, document())
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Bench(settings, instance)
