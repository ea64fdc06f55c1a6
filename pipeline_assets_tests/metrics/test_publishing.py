"""What runs push when they end, to a real Pushgateway, and what processes of one run record."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.prometheus import PushgatewayServer
from pipeline_assets.credentials.audit import Access
from pipeline_assets.metrics.publishing import RunPublisher
from pipeline_assets.metrics.records import MetricsRecord
from pipeline_assets.metrics.run_files import RunFilesReader
from pipeline_assets.settings import Settings


@dataclass
class Told:
    """A run that is over, and its events."""

    instance: dg.DagsterInstance
    run: dg.DagsterRun
    entries: Sequence[dg.EventLogEntry]

    def publish(self, settings: Settings, only: Collection[dg.EventLogEntry] | None = None) -> None:
        """Publish the run, or these of its events alone, as one of its processes does that sees no others."""
        publisher = RunPublisher(settings, self.run, self.instance)
        for entry in self.entries if only is None else only:
            publisher.take(entry)
        publisher.end()


def op(pipeline: str, name: str, *, fails: bool, retries: int) -> dg.OpDefinition:
    @dg.op(name=f"{pipeline}__{name}", ins={}, out=dg.Out(dg.Nothing), retry_policy=dg.RetryPolicy(max_retries=retries))
    def run() -> Iterator[Any]:
        yield dg.AssetObservation([pipeline, name], metadata={"lag": 5})
        if fails:
            raise ValueError("no")
        yield dg.AssetMaterialization([pipeline, name], metadata={"dagster/row_count": 7})
        yield dg.Output(None)

    return run


@contextmanager
def told(pipeline: str, steps: Mapping[str, bool], job: str = "__ASSET_JOB", retries: int = 0) -> Iterator[Told]:
    """Give a run of ``job`` with the steps of these names, of which those that are False fail."""

    @dg.job(name=job.strip("_"))
    def all_steps() -> None:
        for name, succeeds in steps.items():
            op(pipeline, name, fails=not succeeds, retries=retries)()

    with dg.DagsterInstance.ephemeral() as instance:
        result = all_steps.execute_in_process(instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        yield Told(instance, run, list(instance.all_logs(result.run_id)))


def samples(gateway: PushgatewayServer, pipeline: str) -> dict[tuple[str, str], float]:
    """Return what the gateway has of ``pipeline``, by metric and step; of attempts, how many there were."""
    families = text_string_to_metric_families(gateway.exposition())
    values: Counter[tuple[str, str]] = Counter()
    for family in families:
        for found in family.samples:
            if found.labels.get("pipeline") == pipeline and found.name.startswith("pipeline_assets_"):
                values[found.name.removeprefix("pipeline_assets_"), found.labels["step"]] += found.value
    return values


@pytest.fixture
def pipeline() -> str:
    return f"pushed_{uuid.uuid4().hex}"


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_no_step_replaces_another(pushgateway: PushgatewayServer, pipeline: str, executor: str) -> None:
    names = ("rows", "kinds", "out")
    settings = Settings(executor=executor, pushgateway=pushgateway.url)
    with told(pipeline, dict.fromkeys(names, True)) as run:
        if executor == "in_process":
            run.publish(settings)
        else:  # each step has a process
            for name in names:
                key = f"{pipeline}__{name}"
                run.publish(settings, [entry for entry in run.entries if entry.step_key == key])
    found = samples(pushgateway, pipeline)
    assert {name: found["step_written_rows_total", name] for name in names} == dict.fromkeys(names, 7)
    assert {name: found["step_attempts_total", name] for name in names} == dict.fromkeys(names, 1)
    assert not [metric for metric, _ in found if metric.startswith("stream_")], "how an ended stream went"


def test_no_check_and_no_secret_replaces_another(pushgateway: PushgatewayServer, pipeline: str) -> None:
    """Each validate step has a process, and all of them check one asset."""
    settings = Settings(pushgateway=pushgateway.url, executor="multiprocess")
    with told(pipeline, {"rows": True}) as run:
        for check, passed, source in (("few", False, "vault"), ("unique", True, "env")):
            publisher = RunPublisher(settings, run.run, run.instance)
            evaluated = dg.AssetCheckEvaluation(dg.AssetKey([pipeline, "rows"]), check, passed=passed, metadata={})
            with_check = next(e for e in run.entries if e.step_key == f"{pipeline}__rows")
            event = dg.DagsterEvent(
                dg.DagsterEventType.ASSET_CHECK_EVALUATION.value, pipeline, step_key=f"{pipeline}__{check}",
                event_specific_data=evaluated,
            )  # fmt: skip
            publisher.take(with_check._replace(dagster_event=event))
            publisher.accessed(
                Access("2026-11-28T10:00:00Z", None, pipeline, None, source, "a", (), "allowed", "ok", None, 1.0), None
            )
            publisher.end()
    families = text_string_to_metric_families(pushgateway.exposition())
    own = [found for each in families for found in each.samples if found.labels.get("pipeline") == pipeline]
    checks = {found.labels["check"]: found.value for found in own if found.name == "pipeline_assets_check_passed"}
    assert checks == {"few": 0, "unique": 1}
    asked = {found.labels["source"] for found in own if found.name == "pipeline_assets_secret_requests_total"}
    assert asked == {"vault", "env"}


def test_no_pipeline_replaces_another(pushgateway: PushgatewayServer, pipeline: str) -> None:
    """Runs from the UI and of automations all have the same job."""
    settings = Settings(pushgateway=pushgateway.url)
    with told(pipeline, {"rows": False}) as run, told(f"{pipeline}_2", {"rows": True}) as other:
        run.publish(settings)
        other.publish(settings)
    assert ("step_last_failure_timestamp_seconds", "rows") in samples(pushgateway, pipeline)
    assert ("step_last_success_timestamp_seconds", "rows") in samples(pushgateway, f"{pipeline}_2")


def test_when_a_step_succeeded_is_known_after_it_has_failed(pushgateway: PushgatewayServer, pipeline: str) -> None:
    settings = Settings(pushgateway=pushgateway.url)
    ends = {}
    for job, succeeds in (("own", True), ("__ASSET_JOB", False)):
        with told(pipeline, {"rows": succeeds}, job) as run:
            run.publish(settings)
            ends[succeeds] = run.entries[-1].timestamp
    found = samples(pushgateway, pipeline)
    assert found["step_last_success_timestamp_seconds", "rows"] == pytest.approx(ends[True], abs=1)
    assert found["step_last_failure_timestamp_seconds", "rows"] == pytest.approx(ends[False], abs=1)
    assert found["step_last_failure_timestamp_seconds", "rows"] > found["step_last_success_timestamp_seconds", "rows"]


def test_a_stream_that_ran_again_has_not_failed(pushgateway: PushgatewayServer, pipeline: str) -> None:
    settings = Settings(pushgateway=pushgateway.url)
    for succeeds in (False, True):
        with told(pipeline, {"stream": succeeds}) as run:
            run.publish(settings)
        failed = ("step_last_failure_timestamp_seconds", "stream") in samples(pushgateway, pipeline)
        assert failed is not succeeds


@pytest.mark.parametrize("url", ["http://gw:abc", "http://[gw", "http://127.0.0.1:1", "http://127.0.0.1:1/a b"])
def test_a_gateway_that_is_none_fails_no_run(caplog: pytest.LogCaptureFixture, url: str) -> None:
    with told("pushed", {"rows": True, "out": True}) as run:
        run.publish(Settings(pushgateway=url))
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline_assets")]
    assert warning.startswith(f"the metrics of this run could not be pushed to {url}: ")


@pytest.mark.parametrize("address", ["127.0.0.1:65536", "127.0.0.1:http", "192.0.2.1:0"])
def test_an_address_that_is_none_fails_no_run(caplog: pytest.LogCaptureFixture, address: str) -> None:
    with told("listening", {"rows": True}) as run:
        publisher = RunPublisher(Settings(metrics_listen=address), run.run, run.instance)
        publisher.listen()
        publisher.end()
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline_assets")]
    assert warning.startswith(f"no metrics at PIPELINE_ASSETS_METRICS_LISTEN={address}: ")


def recorded(folder: Path) -> list[MetricsRecord]:
    return [record for record in RunFilesReader(folder).new_records() if record.kind == "step"]


@pytest.mark.parametrize("processes", ["one", "one for each attempt"])
def test_attempts_are_counted(tmp_path: Path, processes: str) -> None:
    settings = Settings(metrics=tmp_path)
    starts = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED)
    with told("counted", {"rows": False}, retries=2) as run:
        own = [entry for entry in run.entries if entry.step_key == "counted__rows"]
        began = [at for at, entry in enumerate(own) if entry.get_dagster_event().event_type in starts]
        if processes == "one":
            run.publish(settings, own)
        else:
            for start, end in zip(began, [*began[1:], len(own)], strict=True):
                run.publish(settings, own[start:end])
    found = recorded(tmp_path)
    assert [(record.status, record.attempt) for record in found] == [("retried", 1), ("retried", 2), ("failed", 3)]
    assert [record.error for record in found] == [None, None, "ValueError"]
    for start, record in zip(began, found, strict=True):
        assert record.numbers["seconds"] == pytest.approx(record.time - own[start].timestamp, abs=0.002)


def test_a_process_that_sees_only_the_end_of_a_step_knows_its_start(tmp_path: Path) -> None:
    """As the run's own does, with the multiprocess executor, when that of the step has died."""
    with told("ended", {"rows": False}) as run:
        own = [entry for entry in run.entries if entry.step_key == "ended__rows"]
        (end,) = [e for e in own if e.get_dagster_event().event_type is dg.DagsterEventType.STEP_FAILURE]
        (start,) = [e for e in own if e.get_dagster_event().event_type is dg.DagsterEventType.STEP_START]
        run.publish(Settings(metrics=tmp_path), [end])
    (record,) = recorded(tmp_path)
    assert record.numbers["seconds"] == pytest.approx(end.timestamp - start.timestamp, abs=0.002)
    assert (record.status, record.attempt) == ("failed", 1)
