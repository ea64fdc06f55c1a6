"""The tutorial, command by command, in an empty folder, as somebody follows it who has the package installed."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from devstack.ports import LOOPBACK, free_port
from pipeline_assets_tests.docs.pages import PROJECT, Example, commands, examples, matches
from pipeline_assets_tests.docs.shell import Shell, shell
from pipeline_assets_tests.integration.run_processes import MARK, processes_of, wait_until

TUTORIAL = PROJECT / "docs" / "tutorial.md"
# Done already: the tests run in such a venv.
INSTALLATION = ["python3 -m venv .venv", 'pip install "$CHECKOUT" deltalake']
UI = "dagster dev -m pipeline_assets.definitions"
QUERY = "{ assetNodes { groupName opNames } runsOrError { ... on Runs { results { jobName status } } } }"
# What may be set where the tests run, and is not where the tutorial is read.
FOREIGN = ("DAGSTER_", "PIPELINE_ASSETS_", "SPARK_REMOTE", "SPARK_MASTER", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.fixture
def mark() -> Iterator[str]:
    """What is in the environment of all that the tutorial starts. Nothing of it is left at the end."""
    mark = str(uuid.uuid4())
    yield mark
    wait_until(lambda: not processes_of(mark))


@pytest.fixture
def environment(tmp_path: Path, mark: str) -> Mapping[str, str]:
    """A home with the checkout in it; what has been downloaded already stays where it is."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "pipeline-assets").symlink_to(PROJECT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": cache, MARK: mark}


def test_the_tutorial(tmp_path: Path, environment: Mapping[str, str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    installation = list(INSTALLATION)
    with shell(folder, environment) as reader:
        for example in examples(TUTORIAL):
            if example.title is not None:
                save(example, folder)
                continue
            assert example.language in ("sh", "console"), f"{example} is neither saved nor run"
            for command, shown in commands(example):
                if command in installation:
                    installation.remove(command)
                elif command == UI:
                    look_at_the_ui(reader)
                else:
                    code, output = reader.run(command)
                    assert shown is None or matches(shown, output), f"{example}: {command} printed:\n{output}"
                    assert shown is not None or code == 0, f"{example}: {command}: {code}\n{output}"
    assert installation == []


def save(example: Example, folder: Path) -> None:
    """Save a file as the tutorial says; with ``step N`` after its name, in place of that step in it."""
    assert example.title is not None
    name, _, step = example.title.partition(" step ")
    path = folder / name
    if step:
        document = json.loads(path.read_text())
        document["steps"][int(step)] = json.loads(example.text)
        path.write_text(json.dumps(document))
    else:
        path.write_text(example.text)


def look_at_the_ui(reader: Shell) -> None:
    """Start it, hold that it shows the pipeline with the run that was made before, and press Ctrl+C."""
    url = f"http://{LOOPBACK}:{free_port()}"
    reader.run("set -m")  # else what is in the background ignores Ctrl+C
    reader.run(f"{UI} --port {url.rsplit(':', 1)[1]} > ui.log 2>&1 &")

    def answer() -> Any:
        try:
            return ask(
                url,
                "{ assetNodes { id groupName opNames } runsOrError { ... on Runs { results { jobName status } } } }",
            )
        except OSError:
            return None

    wait_until(lambda: (answer() or {}).get("assetNodes"))
    found = answer()
    assert {node["groupName"] for node in found["assetNodes"] if node["opNames"]} == {"orders"}
    assert found["runsOrError"]["results"] == [{"jobName": "orders", "status": "SUCCESS"}]
    code, _ = reader.run(f"kill -{signal.SIGINT.name} %1; wait %1; cat ui.log")
    assert code == 0
    reader.run("set +m")


def ask(url: str, query: str) -> Any:
    """Return what Dagster's web server answers to a GraphQL query."""
    request = urllib.request.Request(
        f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["data"]
