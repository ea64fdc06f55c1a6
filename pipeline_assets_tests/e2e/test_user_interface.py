"""What a data engineer does in Dagster's UI: look at a pipeline, materialize it, read about what came out."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import psutil
from playwright.sync_api import FloatRect, Page, expect

from devstack.demo_data import cdnow_customers, cdnow_purchases
from pipeline_assets_tests.e2e.conftest import ARTIFACTS
from pipeline_assets_tests.e2e.dagster_servers import DagsterServers
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows

RUN_LIMIT = 300_000  # milliseconds; a run takes 20 s, on a busy machine some minutes
COLUMNS = {
    "id": "bigint",
    "first_order_date": "date",
    "customer_id": "bigint",
    "order_date": "date",
    "quantity": "int",
    "amount": "double",
}
# Where the page has the graph, without the controls around it.
GRAPH: FloatRect = {"x": 340, "y": 200, "width": 1400, "height": 650}
BROKEN = """{
  "name": "orders", "mode": "batch",
  "steps": [{"type": "extract", "method": "fromPostgres", "config": {"tabel": "orders"}}]
}"""


def test_materialize_customer_360(page: Page, dagster: DagsterServers, reports: dict[str, str]) -> None:
    page.goto(f"{dagster.url}/locations/pipeline_assets/asset-groups/customer_360/lineage")
    expect(page.get_by_text("Never materialized", exact=True)).to_have_count(3)
    page.screenshot(path=ARTIFACTS / "customer_360-before.png")

    page.get_by_role("button", name="Materialize all").click()
    expect(page.get_by_text("Materialized", exact=True)).to_have_count(3, timeout=RUN_LIMIT)
    page.screenshot(path=ARTIFACTS / "customer_360-materialized.png")
    _no_spark_is_left(dagster)

    page.goto(f"{dagster.url}/assets/customer_360/join_data_frames")
    expect(page.get_by_text("69,659", exact=True)).to_be_visible()
    for column, column_type in COLUMNS.items():
        row = page.get_by_role("row").filter(has=page.get_by_text(column, exact=True))
        expect(row.filter(has=page.get_by_text(column_type, exact=True))).to_be_visible()
    page.screenshot(path=ARTIFACTS / "join_data_frames.png")
    _holds_every_purchase(dagster.warehouse / "customer_360" / "join_data_frames")

    page.get_by_role("tab", name="Lineage").click()
    page.get_by_role("button", name="Upstream").click()
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.get_by_text("sources", exact=True)).to_be_visible()
    expect(page.get_by_text("Materialized", exact=True)).to_have_count(3)
    expect(page.get_by_text("Loading...")).to_have_count(0)
    page.screenshot(path=ARTIFACTS / "asset-graph.png", clip=GRAPH)

    _report_is_linked(page, dagster, reports["PIPELINE_ASSETS_REPORTS_URL"])


def test_a_broken_config_is_shown_with_its_reason_beside_those_that_load(page: Page, dagster: DagsterServers) -> None:
    page.goto(f"{dagster.url}/asset-groups")
    expect(page.get_by_text("customer_360", exact=True).first).to_be_visible()
    expect(page.get_by_text("broken_configs", exact=True)).to_have_count(0)

    broken = dagster.configs / "orders.json"
    broken.write_text(BROKEN)
    page.get_by_role("button", name="Reload definitions").click()
    for group in ("broken_configs", "customer_360", "event_stream", "optimized_aggregation", "sources"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()

    page.goto(f"{dagster.url}/assets/broken_configs/orders")
    expect(page.get_by_text("/steps/0/config/tabel").first).to_be_visible()
    expect(page.get_by_text("did you mean 'table'?").first).to_be_visible()


def _report_is_linked(page: Page, dagster: DagsterServers, url: str) -> None:
    """Hold that the run, and the table that it made, lead to the run's report."""
    with dg.DagsterInstance.from_config(str(dagster.run.data)) as instance:
        (run,) = instance.get_runs()
    name = f"{url}customer_360-{run.run_id}.html"
    page.goto(f"{dagster.url}/runs/{run.run_id}")
    expect(page.get_by_text("The report of customer_360 in this run.")).to_be_visible(timeout=RUN_LIMIT)
    link = page.get_by_role("link", name=name).last
    expect(link).to_be_visible()
    page.screenshot(path=ARTIFACTS / "report-linked-from-the-run.png")
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value).to_have_title(f"customer-360: run {run.run_id[:8]}, succeeded")
    opened.value.screenshot(path=ARTIFACTS / "report-opened-from-the-run.png")

    page.goto(f"{dagster.url}/assets/customer_360/join_data_frames")
    expect(page.get_by_role("link", name=name).first).to_be_visible()


def _no_spark_is_left(dagster: DagsterServers) -> None:
    """Hold that the JVM of a run ends with the run."""
    spark = [process for process in dagster.processes() if process.name() == "java"]
    _, alive = psutil.wait_procs(spark, timeout=60)
    assert not alive


def _holds_every_purchase(table: Path) -> None:
    """Compare the Delta table, read without Spark, with the join that pandas makes of CDNOW's data."""
    purchases = cdnow_purchases()
    expected = cdnow_customers(purchases).merge(purchases, left_on="id", right_on="customer_id")
    same_rows(rows_of(table), expected)
