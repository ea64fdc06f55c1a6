"""The report of a run, as people find it in Dagster's UI and read it in a browser."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config
from pipeline_assets_tests.e2e.conftest import ARTIFACTS
from pipeline_assets_tests.e2e.dagster_servers import DagsterServers, dagster_servers

RUN_LIMIT = 300_000  # milliseconds; a run takes 20 s, on a busy machine some minutes
ROWS = pd.DataFrame({"id": range(900), "kind": [number % 9 for number in range(900)]})


@dataclass(frozen=True)
class Reporting:
    """Dagster's servers, whose runs write reports to ``folder``, which is served at ``url``."""

    servers: DagsterServers
    home: Path
    folder: Path
    url: str


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reporting]:
    root = tmp_path_factory.mktemp("reports")
    configs, folder = root / "configs", root / "reports"
    configs.mkdir()
    folder.mkdir()
    ROWS.to_parquet(root / "rows.parquet", index=False)
    counts = transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds")
    write_config(configs, batch("counted", extract_file("rows", f"file://{root}/rows.parquet"), counts))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PIPELINE_ASSETS_REPORTS": str(folder), "PIPELINE_ASSETS_REPORTS_URL": f"{url}/"}
        with dagster_servers(root, ARTIFACTS / "logs-reports", configs, environment) as servers:
            yield Reporting(servers, root / "home", folder, url)
        server.shutdown()


def test_the_report_is_linked_from_the_run_and_from_what_it_made(page: Page, reporting: Reporting) -> None:
    page.goto(f"{reporting.servers.url}/locations/pipeline_assets/asset-groups/counted/lineage")
    page.get_by_role("button", name="Materialize all").click()
    expect(page.get_by_text("Materialized", exact=True)).to_have_count(2, timeout=RUN_LIMIT)

    with dg.DagsterInstance.from_config(str(reporting.home)) as instance:
        (run,) = instance.get_runs()
    file = reporting.folder / f"counted-{run.run_id}.html"
    page.goto(f"{reporting.servers.url}/runs/{run.run_id}")
    page.get_by_placeholder("Filter").fill("The report of counted")
    link = page.get_by_role("link", name=f"{reporting.url}/{file.name}")
    expect(link.first).to_be_visible(timeout=RUN_LIMIT)
    page.screenshot(path=ARTIFACTS / "report-linked-from-the-run.png")

    with page.context.expect_page() as opened:
        link.first.click()
    expect(opened.value).to_have_title(f"counted: run {run.run_id[:8]}, succeeded")
    opened.value.screenshot(path=ARTIFACTS / "report-opened-from-the-run.png")

    page.goto(f"{reporting.servers.url}/assets/counted/kinds")
    expect(page.get_by_role("link", name=f"{reporting.url}/{file.name}").first).to_be_visible()
