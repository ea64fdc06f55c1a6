"""The report of a run, as people read it in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from pipeline_assets.report.page import duration
from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config
from pipeline_assets_tests.e2e.conftest import ARTIFACTS
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of
from pipeline_assets_tests.integration.run_processes import JobProcess, with_spark_conf

ROWS = pd.DataFrame({"id": range(900), "kind": [number % 9 for number in range(900)]})
COUNTS = transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds")
HOSTILE = "<script>document.title = 'taken over'</script>"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of ``dagster job execute``: of a pipeline, and of the same with another column.

    Spark notes in its own event log what it does; reports are made by the command line.
    """
    folder = tmp_path_factory.mktemp("executed")
    for name in ("home", "configs", "spark-events"):
        (folder / name).mkdir()
    rows = ROWS.assign(note=HOSTILE)
    rows.to_parquet(folder / "rows.parquet", index=False)
    expectations = {"small": "id < 890", "any": "kind IS NOT NULL"}
    check = {"type": "validate", "method": "expectations", "name": "ids"}
    steps = (
        extract_file("rows", f"file://{folder}/rows.parquet"),
        {**check, "config": {"onFailure": "warn", "expectations": expectations}},
    )
    for number, counts in enumerate((COUNTS, _counting("sum(id)"))):
        write_config(folder / "configs", batch("counted", *steps, counts, description=HOSTILE))
        job = JobProcess("counted", _environment(folder), folder / f"log{number}")
        try:
            assert job.end() == 0, job.output
        finally:
            job.kill_all()
        (log,) = (folder / "spark-events").iterdir()
        log.rename(folder / f"spark-events-{number}")
    return folder


def _counting(more: str) -> dict[str, object]:
    aggregations = {"n": "cast(count(*) as int)", "more": more}
    return transform("aggregateData", groupBy=["kind"], aggregations=aggregations, registerAs="kinds")


def _environment(folder: Path) -> dict[str, str]:
    event_log = {
        "enabled": "true", "dir": f"file://{folder}/spark-events", "compress": "false", "rolling.enabled": "false",
    }  # fmt: skip
    return {
        "DAGSTER_HOME": str(folder / "home"),
        "PIPELINE_ASSETS_CONFIGS": str(folder / "configs"),
        "PIPELINE_ASSETS_WAREHOUSE": str(folder / "warehouse"),
        **with_spark_conf({f"spark.eventLog.{name}": value for name, value in event_log.items()}),
        "SPARK_MASTER": "local[2]",
    }


def _stages(events: Path) -> dict[int, dict[str, float]]:
    """Return what Spark's own event log has of the stages that ran."""
    found = {}
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["Event"] == "SparkListenerStageCompleted":
            stage = event["Stage Info"]
            sums = {one["Name"]: one["Value"] for one in stage["Accumulables"]}
            found[stage["Stage ID"]] = {
                "seconds": (stage["Completion Time"] - stage["Submission Time"]) / 1000,
                "tasks": stage["Number of Tasks"],
                "rows": float(sums.get("internal.metrics.input.recordsRead", 0)),
            }
    return found


def test_the_page_of_a_run_by_the_command_line(page: Page, executed: Path) -> None:
    file = executed / "report.html"
    command = [Path(sys.executable).parent / "pipeline-assets", "report", "counted", "--output", file]
    environment = {**os.environ, **_environment(executed)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(file)), done.stderr

    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"file://{file}")
    page.screenshot(path=ARTIFACTS / "report.png", full_page=True)
    assert (said, asked) == ([], [f"file://{file}"])
    expect(page).to_have_title(re.compile("counted: run [0-9a-f]{8}, succeeded"))
    expect(page.get_by_text(HOSTILE).first).to_be_visible()

    def cells(table: str, row: str) -> list[str]:
        found = page.get_by_role("region", name=table).get_by_role("row").filter(
            has=page.get_by_role("rowheader", name=row, exact=True)
        )  # fmt: skip
        return found.first.get_by_role("cell").all_inner_texts()

    table = executed / "warehouse" / "counted" / "kinds"
    assert len(rows_of(table)) == ROWS["kind"].nunique()
    size = sum(os.path.getsize(path) for path in delta_files(table))
    _, status, rows_read, rows_written, _, written, version, where = cells("Numbers of the steps", "kinds")
    assert (status, rows_read, rows_written, version) == ("✓ succeeded", str(len(ROWS)), "9", "1")
    assert (written, where) == (f"{size / 1000:.3g} kB", str(table))
    failed = int((ROWS["id"] >= 890).sum())
    assert cells("Data quality", "ids_small")[1:6] == ["! not met", "warn", str(failed), "900", f"{failed / 9:.3g}"]
    assert cells("Data quality", "ids_any")[1:4] == ["✓ passed", "warn", "0"]
    changes = page.get_by_role("region", name="Changes of the schema").get_by_role("row").all_inner_texts()
    assert [change.split("\t")[1:5] for change in changes[1:]] == [
        ["n", "type", "bigint", "int"],
        ["more", "added", "\N{EN DASH}", "bigint"],
    ]

    told = _stages(executed / "spark-events-1")
    shown = page.get_by_role("region", name="Where the time went").get_by_role("row").all()[1:]
    assert shown
    for row in shown:
        took, _, stage, _, tasks, rows, *_ = row.get_by_role("cell").all_inner_texts()
        own = told[int(stage)]
        assert (int(tasks), float(rows.replace(",", ""))) == (own["tasks"], own["rows"])
        assert took == duration(own["seconds"])

    page.set_viewport_size({"width": 400, "height": 800})
    page.screenshot(path=ARTIFACTS / "report-narrow.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
