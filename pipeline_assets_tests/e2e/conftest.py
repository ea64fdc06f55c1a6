"""Fixtures of the tests that use Dagster as people do: in a browser."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from devstack.demo_data import load_cdnow
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server
from pipeline_assets_tests.e2e.dagster_servers import PROJECT, DagsterServers, dagster_servers

ARTIFACTS = PROJECT / "artifacts"
PAGE_LIMIT = 60_000  # milliseconds; a code location loads in seconds, on a busy machine in tens of them
CHROMIUM_OPTIONS = [
    "--no-sandbox",  # Chromium has none for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def cdnow(postgres: PostgresServer, s3: S3Server) -> dict[str, str]:
    """CDNOW's customers in a database of their own, its orders in S3; returns the environment to reach them."""
    database = replace(postgres, database="e2e")
    assert database.create_database() is None
    load_cdnow(database, s3)
    return {**database.environment, **s3.environment}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A folder for reports that is served; returns the environment that has runs write to it, and link there."""
    folder = tmp_path_factory.mktemp("reports")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"PIPELINE_ASSETS_REPORTS": str(folder), "PIPELINE_ASSETS_REPORTS_URL": url}
        server.shutdown()


@pytest.fixture(scope="module")
def dagster(
    cdnow: dict[str, str], reports: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DagsterServers]:
    """Dagster's web server and daemon on a copy of the project's configs."""
    folder = tmp_path_factory.mktemp("e2e")
    configs = shutil.copytree(PROJECT / "configs", folder / "configs")
    with dagster_servers(folder, ARTIFACTS / "logs", configs, {**cdnow, **reports}) as servers:
        yield servers


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the system's when there is one, else Playwright's own.

    Not for the whole session: as long as Playwright runs, its event loop is that of the tests' thread.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_OPTIONS)
        expect.set_options(timeout=PAGE_LIMIT)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page without a history; how the test left it is kept in ``artifacts/``."""
    with browser.new_context(viewport={"width": 1840, "height": 900}) as context:
        context.set_default_timeout(PAGE_LIMIT)
        page = context.new_page()
        yield page
        page.screenshot(path=ARTIFACTS / f"{request.node.name}.png")
