"""The tutorial, command by command, in an empty folder, as somebody follows it who has the package installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from devstack.ports import LOOPBACK, free_port
from pipeline_assets_tests.docs.pages import PROJECT, Example, commands, examples, links, matches
from pipeline_assets_tests.docs.shell import Shell, shell
from pipeline_assets_tests.e2e.conftest import ARTIFACTS, CHROMIUM_OPTIONS, PAGE_LIMIT
from pipeline_assets_tests.integration.run_processes import MARK, kill_processes_of, processes_of, wait_until

TUTORIAL = PROJECT / "docs" / "tutorial.md"
# Done already: the tests run in such a venv.
INSTALLATION = ["python3 -m venv .venv", 'pip install "$CHECKOUT" deltalake']
UI = "dagster dev -m pipeline_assets.definitions"
AT = "http://127.0.0.1:3000"
# What may be set where the tests run, and is not where the tutorial is read.
FOREIGN = ("DAGSTER_", "PIPELINE_ASSETS_", "SPARK_REMOTE", "SPARK_MASTER", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.fixture
def mark() -> Iterator[str]:
    """What is in the environment of all that the tutorial starts."""
    mark = str(uuid.uuid4())
    yield mark
    kill_processes_of(mark)


@pytest.fixture
def environment(tmp_path: Path, mark: str) -> Mapping[str, str]:
    """A home with the checkout in it; what has been downloaded already stays where it is."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "pipeline-assets").symlink_to(PROJECT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": cache, MARK: mark}


def test_the_tutorial(tmp_path: Path, mark: str, environment: Mapping[str, str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    installation = list(INSTALLATION)
    (graph,) = (link for link in links(TUTORIAL) if link.startswith(AT))
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
                    look_at_the_ui(reader, graph)
                else:
                    code, output = reader.run(command)
                    assert shown is None or matches(shown, output), f"{example}: {command} printed:\n{output}"
                    assert shown is not None or code == 0, f"{example}: {command}: {code}\n{output}"
    assert installation == []
    wait_until(lambda: not processes_of(mark))


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


def look_at_the_ui(reader: Shell, graph: str) -> None:
    """Start it, hold that it shows the pipeline with the run that was made before, and press Ctrl+C."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    reader.run("set -m")  # else what is in the background ignores Ctrl+C
    reader.run(f"{UI} --port {port} > ui.log 2>&1 &")

    def runs() -> Any:
        try:
            return ask(url, "{ runsOrError { ... on Runs { results { jobName status } } } }")["runsOrError"]["results"]
        except OSError:
            return None

    wait_until(lambda: runs() is not None)
    assert runs() == [{"jobName": "orders", "status": "SUCCESS"}]
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1840, "height": 900})
        page.goto(graph.replace(AT, url))
        for text, times in (("Materialized", 4), ("1 / 1 Passed", 1), ("spending", 1), ("to_delta_lake", 1)):
            expect(page.get_by_text(text, exact=True)).to_have_count(times, timeout=PAGE_LIMIT)
        page.screenshot(path=ARTIFACTS / "tutorial.png")
        browser.close()
    code, log = reader.run("kill -INT %1; wait %1")
    assert code == 0, log
    reader.run("set +m")


def ask(url: str, query: str) -> Any:
    """Return what Dagster's web server answers to a GraphQL query."""
    request = urllib.request.Request(
        f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["data"]
