"""What runs push when they end, to a real Pushgateway."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.prometheus import PushgatewayServer
from pipeline_assets.metrics.publishing import RunPublisher
from pipeline_assets.settings import Settings


def step(job: str, name: str) -> dg.OpDefinition:
    @dg.op(name=f"{job}__{name}", ins={}, out=dg.Out(dg.Nothing))
    def run() -> Iterator[Any]:
        yield dg.AssetMaterialization([job, name], metadata={"dagster/row_count": 7})
        yield dg.AssetObservation([job, name], metadata={"lag": 5})
        yield dg.Output(None)

    return run


def told(job: str, names: Sequence[str]) -> tuple[dg.DagsterRun, list[dg.EventLogEntry]]:
    """Return a run of a job with steps of these ``names``, and its events."""

    @dg.job(name=job)
    def steps() -> None:
        for name in names:
            step(job, name)()

    with dg.DagsterInstance.ephemeral() as instance:
        result = steps.execute_in_process(instance=instance)
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        return run, list(instance.all_logs(result.run_id))


def samples(gateway: PushgatewayServer, job: str) -> dict[tuple[str, str], float]:
    """Return what the gateway has of ``job``, by metric and step."""
    families = text_string_to_metric_families(gateway.exposition())
    return {
        (found.name.removeprefix("pipeline_assets_"), found.labels["step"]): found.value
        for family in families
        for found in family.samples
        if found.labels.get("dagster_job") == job and "step" in found.labels
    }


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_no_step_replaces_another(pushgateway: PushgatewayServer, executor: str) -> None:
    job, names = f"pushed_{uuid.uuid4().hex}", ("rows", "kinds", "out")
    run, entries = told(job, names)
    settings = Settings(executor=executor, pushgateway=pushgateway.url)
    keys: list[str | None] = [f"{job}__{name}" for name in names]
    # With the multiprocess executor each step has a process, which sees its own events.
    for seen in [keys] if executor == "in_process" else [[key] for key in keys]:
        publisher = RunPublisher(settings, run)
        for entry in entries:
            if entry.dagster_event is not None and entry.dagster_event.step_key in seen:
                publisher.take(entry)
        publisher.end()
    found = samples(pushgateway, job)
    assert {name: found["step_written_rows_total", name] for name in names} == dict.fromkeys(names, 7)
    assert {name: found["step_attempts_total", name] for name in names} == dict.fromkeys(names, 1)
    assert not [metric for metric, _ in found if metric.startswith("stream_")], "how an ended stream went"


@pytest.mark.parametrize("url", ["http://gw:abc", "http://[gw", "http://127.0.0.1:1", "http://127.0.0.1:1/a b"])
def test_a_gateway_that_is_none_fails_no_run(caplog: pytest.LogCaptureFixture, url: str) -> None:
    run, _ = told("pushed", ["rows"])
    RunPublisher(Settings(pushgateway=url), run).end()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the metrics of this run could not be pushed to {url}: ")
