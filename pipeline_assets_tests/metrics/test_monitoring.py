"""The alerts and dashboards of docs/monitoring, by Prometheus' own tool and against a real one."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from prometheus_client import generate_latest

from devstack.prometheus import PrometheusServer
from pipeline_assets.asset_keys import dead_letters_key
from pipeline_assets.config_loading import load_file
from pipeline_assets.metrics.dagster_events import RunRecords
from pipeline_assets.metrics.prometheus import RunMetrics
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.steps.base import ExpectationResult
from pipeline_assets.stream_report import StreamReport, progress_metadata
from pipeline_assets.streaming.micro_batches import BatchChecks
from pipeline_assets.streaming.queries import BatchProgress
from pipeline_assets_tests.config_documents import EVENT_STREAM, write_config
from pipeline_assets_tests.integration.run_processes import wait_until

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))


def queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Yield the panels' titles and queries, with Grafana's variables as they would be."""
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$pipeline", ".*").replace("$__rate_interval", "1m")


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]])
def test_alerts(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_the_step_of_a_stream_has_the_label_that_the_alerts_know(tmp_path: Path) -> None:
    name = plan_pipeline(load_file(write_config(tmp_path, EVENT_STREAM), {})).stream_op_name

    @dg.job(name="clicks")
    def clicks() -> None:
        dg.op(name=name)(lambda: None)()

    with dg.DagsterInstance.ephemeral() as instance:
        run = clicks.execute_in_process(instance=instance).dagster_run
        events = RunRecords(run, instance)
        (step,) = {found.step for entry in instance.all_logs(run.run_id) for found in events.records_of(entry)}
    rules = (MONITORING / "alerts.yaml").read_text()
    assert f'pipeline_assets_step_last_success_timestamp_seconds{{step="{step}"}}' in rules
    assert f'{{pipeline="clicks", step="{step}"}}' in (MONITORING / "alerts_test.yaml").read_text()


@pytest.mark.parametrize(("trigger", "goes_on"), [("5 seconds", 1), (None, 1), ("availableNow", 0), ("once", 0)])
def test_progress_tells_whether_a_stream_goes_on(tmp_path: Path, trigger: str | None, goes_on: int) -> None:
    document = copy.deepcopy(EVENT_STREAM)
    document["steps"][2]["config"] |= {"trigger": trigger}
    (load,) = plan_pipeline(load_file(write_config(tmp_path, document), {})).stream_loads()
    progress = BatchProgress(load, "id", 0, "2026-11-28T10:00:00Z", 1, 1.0, 1.0, 10, {}, {}, {}, None)
    assert progress_metadata(progress)["continuous"] == goes_on


def test_what_a_stream_puts_aside_is_counted_from_none_on(tmp_path: Path) -> None:
    """A panel with an increase needs a series before there is one."""
    document = copy.deepcopy(EVENT_STREAM)
    config = {"column": "amount", "max": 20, "onFailure": "quarantine"}
    document["steps"].insert(1, {"type": "validate", "method": "inRange", "name": "good", "config": config})
    plan = plan_pipeline(load_file(write_config(tmp_path, document), {}))
    keys = {step.index: dg.AssetKey([plan.name, step.name]) for step in plan.steps}
    letters = dead_letters_key(keys[0])
    of_run: Any = SimpleNamespace(plan=plan)
    report = StreamReport(of_run, keys, {}, {"from_kafka": letters}, {"from_kafka": keys[0]}, {})
    report._views_told = True

    def events() -> Iterator[Any]:
        (load,) = plan.stream_loads()
        for number, bad in enumerate((0, 0, 3, 1)):
            results = (ExpectationResult("amount is <= 20", bad == 0, bad, 10),)
            yield from report.take(BatchChecks(load, plan.steps[1], number, results, quarantined=bad))
            broken = {"from_kafka": bad}
            yield from report.take(BatchProgress(load, "id", number, "", 1, 1.0, 1.0, 9, {}, {}, {}, None, broken))
        yield from report.rest()
        yield dg.Output(None)

    @dg.job(name="clicks")
    def clicks() -> None:
        dg.op(name=plan.stream_op_name, out=dg.Out(dg.Nothing))(events)()

    told: dict[tuple[str, str], list[float]] = {}
    with dg.DagsterInstance.ephemeral() as instance:
        run = clicks.execute_in_process(instance=instance).dagster_run
        metrics, records = RunMetrics(), RunRecords(run, instance)
        for found in (found for entry in instance.all_logs(run.run_id) for found in records.records_of(entry)):
            metrics.take(found)
            for sample in (sample for family in metrics.registry.collect() for sample in family.samples):
                values = told.setdefault((sample.name, sample.labels["step"]), [])
                if sample.value not in values:
                    values.append(sample.value)
    assert {
        series: values for series, values in told.items() if "quarantine" in series[0] or "letter" in series[0]
    } == {
        ("pipeline_assets_step_quarantined_rows_total", "good"): [0, 4],
        ("pipeline_assets_step_dead_letter_records_total", letters.path[-1]): [0, 4],
    }


_M = "pipeline_assets"
# One load is killed each night, after its source was read; one pipeline only has views.
_ENDED = {
    f'{_M}_step_last_success_timestamp_seconds{{pipeline="orders", step="rows"}}': "7200x400",
    f'{_M}_step_last_success_timestamp_seconds{{pipeline="orders", step="load"}}': "60x400",
    f'{_M}_step_written_rows_total{{pipeline="orders", step="load"}}': "5x400",
    f'{_M}_step_last_success_timestamp_seconds{{pipeline="views", step="rows"}}': "30x400",
    f'{_M}_step_last_success_timestamp_seconds{{pipeline="nightly", step="stream"}}': "90x400",
}
# Of two streams that have failed, one has told of itself for long enough since.
_FAILED = {
    f'{_M}_step_last_failure_timestamp_seconds{{pipeline="clicks", step="stream"}}': "120x400",
    f'{_M}_stream_last_progress_timestamp_seconds{{pipeline="clicks", step="out"}}': "7200x400",
    f'{_M}_step_last_failure_timestamp_seconds{{pipeline="loops", step="stream"}}': "6900x400",
    f'{_M}_stream_last_progress_timestamp_seconds{{pipeline="loops", step="out"}}': "7200x400",
    f'{_M}_step_last_failure_timestamp_seconds{{pipeline="orders", step="load"}}': "180x400",
}
# One step of an hour with two tasks at a time, and thirty days of a stream.
_RAN = {
    f'{_M}_step_duration_seconds_sum{{pipeline="orders", step="load"}}': "100x200 3700x200",
    f'{_M}_step_spark_task_seconds_total{{pipeline="orders", step="load"}}': "200x200 7400x200",
    f'{_M}_step_spark_seconds_total{{pipeline="orders", step="load"}}': "100x200 3700x200",
    f'{_M}_step_duration_seconds_sum{{pipeline="clicks", step="stream"}}': "100x200 2592100x200",
}


@pytest.mark.parametrize(
    ("dashboard", "title", "series", "answer"),
    [
        (
            "pipelines", "Last success", _ENDED,
            {'{pipeline="orders"}': 60_000, '{pipeline="views"}': 30_000, '{pipeline="nightly"}': 90_000},
        ),
        ("pipelines", "Steps that have failed since they last succeeded", _FAILED, {"{}": 2}),
        (
            "pipelines", "Failed since their last success", _FAILED,
            {'{pipeline="loops", step="stream"}': 6_900_000, '{pipeline="orders", step="load"}': 180_000},
        ),
        ("pipelines", "Time in steps", _RAN, {'{pipeline="orders"}': 0.04}),  # one in 24
        ("pipelines", "Time of executors", _RAN, {'{pipeline="orders"}': 0.08}),
        ("pipeline", "Time of a step in which Spark ran its jobs", _RAN, {'{step="load"}': 0.04}),
    ],
)  # fmt: skip
def test_a_panel_says(
    dashboard: str, title: str, series: Mapping[str, str], answer: Mapping[str, float], tmp_path: Path
) -> None:
    """What it says, rounded, when it has a value of each series in five minutes, in the middle of the second day."""
    (query,) = (asked for name, asked in queries(MONITORING / "dashboards" / f"{dashboard}.json") if name == title)
    expected = [{"labels": labels, "value": value} for labels, value in answer.items()]
    test = {
        "interval": "5m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": f"round({query}, 0.01)", "eval_time": "30h", "exp_samples": expected}],
    }
    (tmp_path / "test.yaml").write_text(json.dumps({"tests": [test]}))
    command = ["promtool", "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    alerts = {line.split()[-1] for line in (MONITORING / "alerts.yaml").read_text().splitlines() if "- alert:" in line}
    tests = (MONITORING / "alerts_test.yaml").read_text()
    assert len(alerts) == 7
    assert {alert for alert in alerts if f"alertname: {alert}\n        exp_alerts" in tests} == alerts


def test_every_metric_is_on_a_dashboard() -> None:
    shown = " ".join(query for dashboard in DASHBOARDS for _, query in queries(dashboard))
    # Of what is measured twice, one way is enough to look at.
    elsewhere = {"step_shuffle_read_bytes", "step_memory_spilled_bytes", "step_spark_tasks", "step_cached_memory_bytes",
                 "step_cached_disk_bytes"}  # fmt: skip
    for line in generate_latest(RunMetrics().registry).decode().splitlines():
        if line.startswith("# TYPE pipeline_assets_"):
            name = line.split()[2]
            assert (name in shown) != (name.removeprefix("pipeline_assets_").removesuffix("_total") in elsewhere), name


def test_every_panel_has_an_answer(
    folder: Path, exporter: str, prometheus_of: Callable[[str], PrometheusServer]
) -> None:
    prometheus = prometheus_of(exporter)
    asked = [(dashboard.stem, *each) for dashboard in DASHBOARDS for each in queries(dashboard)]
    assert len(asked) > 40

    def unanswered() -> list[Any]:
        return [each for each in asked if not prometheus.query(each[2])]

    # A rate needs two scrapes.
    wait_until(lambda: not unanswered(), 60)
