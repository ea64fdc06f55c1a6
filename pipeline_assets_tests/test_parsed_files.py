"""A file that was parsed before is parsed again when its content, or what its variables stand for, has changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets import config_loading
from pipeline_assets.code_location import build_definitions
from pipeline_assets.config_loading import load_file, load_folder
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.json_documents import parse_json
from pipeline_assets.parsed_files import NotedVariables, ParsedFiles
from pipeline_assets.settings import Settings
from pipeline_assets.steps import method_registry
from pipeline_assets.steps.transform import FilterRows
from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config

COUNT = 20


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pipelines' files that are parsed, as it happens."""
    files: list[str] = []

    def counted(file: str, content: bytes) -> dict[str, Any]:
        files.append(file)
        return parse_json(file, content)

    monkeypatch.setattr(config_loading, "parse_json", counted)
    return files


def write(folder: Path, number: int, condition: str) -> Path:
    rows = extract_file("rows", f"/in/{number}.csv")
    return write_config(folder, batch(f"pipeline-{number}", rows, transform("filterRows", condition=condition)))


def conditions(folder: Path, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return the condition of each pipeline."""
    found = {}
    for pipeline in load_folder(folder, environment).pipelines:
        (filtered,) = (method for method in pipeline.methods if isinstance(method, FilterRows))
        found[pipeline.file] = filtered.condition
    return found


def test_a_reload_after_one_change_parses_one_file(tmp_path: Path, parsed: list[str]) -> None:
    for number in range(COUNT):
        write(tmp_path, number, f"amount > {number}")
    before = build_definitions(Settings(configs=tmp_path))
    assert sorted(parsed) == sorted(f"pipeline-{number}.json" for number in range(COUNT))
    parsed.clear()
    write(tmp_path, 7, "amount > 777")
    after = build_definitions(Settings(configs=tmp_path))
    assert parsed == ["pipeline-7.json"]
    versions = [
        {key.to_user_string(): graph.get(key).code_version for key in graph.get_all_asset_keys()}
        for graph in (before.resolve_asset_graph(), after.resolve_asset_graph())
    ]
    assert versions[0].keys() == versions[1].keys()
    assert [key for key in versions[0] if versions[0][key] != versions[1][key]] == ["pipeline_7/filter_rows"]
    assert conditions(tmp_path) == {
        f"pipeline-{number}.json": f"amount > {777 if number == 7 else number}" for number in range(COUNT)
    }


def test_a_file_that_was_only_written_again_is_not_parsed(tmp_path: Path, parsed: list[str]) -> None:
    path = write(tmp_path, 1, "true")
    load_file(path, {})
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    load_file(path, {})
    assert parsed == ["pipeline-1.json"]


@pytest.mark.parametrize("spelled", ["amount > ${LEAST:-0}", "amount > \\u0024{LEAST:-0}"])
def test_a_variable_that_changes_changes_the_pipelines_that_use_it(
    tmp_path: Path, parsed: list[str], spelled: str
) -> None:
    write(tmp_path, 1, "true")
    path = write(tmp_path, 2, "SPELLED")
    path.write_text(path.read_text().replace("SPELLED", spelled))
    expected = {None: "amount > 0", "10": "amount > 10", "20": "amount > 20"}
    for value in (None, "10", "20", "20", None):
        environment = {"OTHER": str(len(parsed))} | ({} if value is None else {"LEAST": value})
        assert conditions(tmp_path, environment) == {"pipeline-1.json": "true", "pipeline-2.json": expected[value]}
    assert parsed == ["pipeline-1.json", "pipeline-2.json", *["pipeline-2.json"] * 3]


def test_a_variable_that_is_no_longer_set_is_missed(tmp_path: Path) -> None:
    path = write(tmp_path, 1, "amount > ${LEAST}")
    for _ in range(2):
        assert load_file(path, {"LEAST": "1"}).methods[1].model_dump()["condition"] == "amount > 1"
        with pytest.raises(ConfigurationError, match="LEAST is not set"):
            load_file(path, {})


def test_a_method_of_another_registry_is_taken(tmp_path: Path) -> None:
    class Other(FilterRows):
        """Filters in another way."""

        behavior_version = "other"

    path = write(tmp_path, 1, "true")
    registry = method_registry()
    for cls in (FilterRows, Other, FilterRows):
        registry["transform", "filterRows"] = cls
        assert type(load_file(path, {}, dict(registry)).methods[1]) is cls


def test_only_so_many_are_kept() -> None:
    files = ParsedFiles[bytes](limit=2)
    parsed: list[bytes] = []

    def of(content: bytes) -> Callable[[NotedVariables], bytes]:
        def parse(_variables: NotedVariables) -> bytes:
            parsed.append(content)
            return content

        return parse

    for content in (b"a", b"b", b"a", b"c", b"a", b"b"):  # b was not asked for the longest when c came
        assert files.get(content, content, NotedVariables({}), of(content)) == content
    assert parsed == [b"a", b"b", b"c", b"b"]


def test_the_garbage_collector_works_on_once_the_location_is_loaded() -> None:
    program = "import gc, pipeline_assets.definitions; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
