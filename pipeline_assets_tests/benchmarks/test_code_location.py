"""What is measured depends on nothing that the caller's environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.code_location import CodeLocation
from benchmarks.tpch import environment
from pipeline_assets.settings import Settings


def test_programs_see_their_own_location_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPARK_DRIVER_MEMORY", "PIPELINE_ASSETS_EXECUTOR", "DAGSTER_HOME", "PGHOST", "PYTHONPATH"):
        monkeypatch.setenv(name, "of the caller")
    monkeypatch.setenv("LANG", "C.UTF-8")
    location = CodeLocation(tmp_path, {"PGHOST": "db"})
    assert "of the caller" not in location.environment.values()
    assert (location.environment["LANG"], location.environment["PGHOST"]) == ("C.UTF-8", "db")
    assert (Path(location.environment["DAGSTER_HOME"]) / "dagster.yaml").exists()
    settings = Settings.from_environment(location.environment)
    assert settings.configs == location.configs
    assert settings.resolve("/tables/a") == str(location.root / "tables" / "a")


def test_paths_of_claims_and_queries_are_what_they_say(tmp_path: Path) -> None:
    location = CodeLocation(tmp_path, environment(tmp_path / "data", 1.0))
    assert Settings.from_environment(location.environment).resolve("/data/orders.parquet") == "/data/orders.parquet"
