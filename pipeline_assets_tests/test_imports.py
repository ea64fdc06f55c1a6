"""What the webserver and the daemon load stays light, and imports go one way only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_assets

HEAVY = (
    "pyspark",
    "delta",
    "hvac",
    "psycopg",
    "confluent_kafka",
    "pyarrow",
    "pandas",
    "dagster_pyspark",
    "openlineage",
)
PACKAGE = Path(pipeline_assets.__file__).parent
# Each may import those before it.
LAYERS = re.findall(
    r"^  (\w+)(?:\.py|/)  ", PACKAGE.with_name("CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


@pytest.mark.parametrize("module", ["config", "plan", "assets", "sensors", "resources", "definitions", "cli"])
def test_heavy_packages_are_not_imported(module: str) -> None:
    program = (
        f"import sys, pipeline_assets.{module}\nprint(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_its_layer() -> None:
    assert sorted({layer_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}) == sorted(LAYERS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    own = LAYERS.index(layer_of(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline_assets."):
            imported = (node.module or "").split(".")[1]
            assert LAYERS.index(imported) <= own, f"{path.name}:{node.lineno} imports {node.module}"
