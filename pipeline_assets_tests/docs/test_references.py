"""What pages say of keys, variables and files is what the code has: all of it, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from pipeline_assets.config import PipelineConfig, Retry, Sensor
from pipeline_assets.connections import KafkaConnection, PostgresConnection, S3Connection
from pipeline_assets.errors import TransientKind
from pipeline_assets.partitions import Partitions
from pipeline_assets.steps import METHODS
from pipeline_assets_tests.docs.pages import PAGES, PROJECT, inline_code

PACKAGE = PROJECT / "pipeline_assets"
VARIABLE = re.compile(r"(PIPELINE_ASSETS|VAULT|SPARK|PYSPARK|JAVA|XDG)(_[A-Z]+)+")
# Set here for Spark, or by Spark for here; the second is an error code of Spark's.
INTERNAL = {
    "SPARK_CONNECT_MODE_ENABLED",
    "JAVA_GATEWAY_EXITED",
    "PYSPARK_GATEWAY_PORT",
    "PYSPARK_GATEWAY_SECRET",
}
# What Dagster and Spark read themselves.
THEIRS = {"DAGSTER_HOME", "DAGSTER_CLI_JOB_EXECUTE_MODULE_NAME", "SPARK_LOCAL_HOSTNAME", "SPARK_LOCAL_DIRS"}
# Made by a user, or by a run.
NOT_HERE = {"docs/deployment/pipelines.env", "pipeline_assets/lease.json"}
CONFIGURATION = PROJECT / "docs" / "configuration.md"


def variables_read() -> set[str]:
    """Return the environment variables whose names stand in the package's code."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value):
                found.add(node.value)
    return found - INTERNAL


def variables_named() -> set[str]:
    """Return those that pages speak of."""
    words = {word for page in PAGES for code in inline_code(page) for word in re.findall(r"[A-Z][A-Z_]+", code)}
    return {word for word in words if VARIABLE.fullmatch(word) or word.startswith("DAGSTER_")}


def test_variables() -> None:
    read = variables_read()
    assert len(read) > 25
    assert variables_named() == read | THEIRS


def first_column(page: Path, heading: str, at: int = 0) -> list[str]:
    """Return what the ``at``-th table below a heading is about: the code in its first column, row by row."""
    section = re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    table = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[at]
    rows = table.splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def keys_of(model: type[BaseModel]) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items())


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("The pipeline", PipelineConfig),
        ("Partitions", Partitions),
        ("Retries", Retry),
        ("The sensor of a stream", Sensor),
        ("Keys of postgres", PostgresConnection),
        ("Keys of s3", S3Connection),
        ("Keys of kafka", KafkaConnection),
    ],
)
def test_keys(heading: str, model: type[BaseModel]) -> None:
    assert sorted(first_column(CONFIGURATION, heading)) == [key for key in keys_of(model) if key != "$schema"]


def test_kinds_of_failures() -> None:
    assert first_column(CONFIGURATION, "Retries", 1) == list(get_args(TransientKind))


def test_expectations() -> None:
    methods = [method.method for method in METHODS if method.type == "validate" and method.method != "expectations"]
    assert sorted(first_column(PROJECT / "docs" / "validation.md", "Validation")) == sorted(methods)


def files_named() -> Iterator[tuple[str, str]]:
    folders = {path.name for path in PROJECT.iterdir() if path.is_dir()} | {path.name for path in PACKAGE.iterdir()}
    for page in PAGES:
        if page.name == "tutorial.md":
            continue  # It makes its own.
        for code in sorted(set(inline_code(page))):
            if re.fullmatch(r"[\w./-]+/[\w.-]+\.\w+", code) and code.split("/")[0] in folders and code not in NOT_HERE:
                yield page.name, code


@pytest.mark.parametrize(("page", "name"), list(files_named()))
def test_a_file_that_a_page_names(page: str, name: str) -> None:
    assert (PROJECT / name).exists() or (PACKAGE / name).exists()
