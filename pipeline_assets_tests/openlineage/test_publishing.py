"""When OpenLineage is on, and what its receiver may do to a run: nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline_assets.openlineage import publishing
from pipeline_assets.openlineage.configuration import configured_by, job_namespace
from pipeline_assets.openlineage.publishing import LineagePublisher, lineage_publisher
from pipeline_assets.settings import Settings
from pipeline_assets_tests.openlineage.event_schema import problems
from pipeline_assets_tests.openlineage.transports import FailingTransport, SilentTransport

TRANSPORTS = "pipeline_assets_tests.openlineage.transports"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as made:
        yield made


@dg.op
def nothing() -> None:
    pass


@dg.job
def idle() -> None:
    nothing()


def published(instance: dg.DagsterInstance, runs: int = 1) -> tuple[LineagePublisher | None, str]:
    """Run a job of one op, and have its events published as often as ``runs`` says."""
    run_id = str(uuid.uuid4())
    entries: list[dg.EventLogEntry] = []
    instance.add_event_listener(run_id, entries.append)
    idle.execute_in_process(instance=instance, run_id=run_id)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    publisher = lineage_publisher(Settings(), run, instance)
    if publisher is not None:
        publisher.of_job(None, tells_steps=True)
        ends = (dg.DagsterEventType.RUN_SUCCESS,)
        for entry in entries * runs:
            if entry.dagster_event is not None and entry.dagster_event.event_type not in ends:
                publisher.take(entry)
        publisher.end()
    return publisher, run_id


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == publishing.__name__ and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize(
    ("environment", "by"),
    [
        ({}, None),
        ({"OPENLINEAGE_URL": "http://lineage:5000"}, "OPENLINEAGE_URL"),
        ({"OPENLINEAGE_URL": ""}, None),
        ({"OPENLINEAGE__TRANSPORT": '{"type": "console"}'}, "OPENLINEAGE__TRANSPORT"),
        ({"OPENLINEAGE__TRANSPORT__TYPE": "console"}, "OPENLINEAGE__TRANSPORT__TYPE"),
        ({"OPENLINEAGE_CONFIG": "/etc/ol.yml"}, "OPENLINEAGE_CONFIG=/etc/ol.yml"),
        ({"OPENLINEAGE_URL": "http://lineage:5000", "OPENLINEAGE_DISABLED": "True"}, None),
        ({"OPENLINEAGE_NAMESPACE": "shop"}, None),
    ],
)
def test_what_switches_it_on(environment: dict[str, str], by: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert configured_by() == by
    assert job_namespace() == environment.get("OPENLINEAGE_NAMESPACE", "default")


@pytest.mark.parametrize("place", ["openlineage.yml", ".openlineage/openlineage.yml"])
def test_a_file_switches_it_on(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("transport: {type: console}")
    monkeypatch.chdir(tmp_path)
    assert configured_by() == str(tmp_path / place)


def test_nothing_of_it_is_imported_when_it_is_off(tmp_path: Path) -> None:
    program = (
        "import sys, dagster as dg\n"
        "from pipeline_assets.openlineage.publishing import lineage_publisher\n"
        "from pipeline_assets.settings import Settings\n"
        "from pipeline_assets import definitions\n"
        "assert lineage_publisher(Settings(), dg.DagsterRun('job'), None) is None\n"
        "print(sorted(name for name in sys.modules if name.startswith('openlineage')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_without_the_client_there_is_one_warning(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://ann:horse@lineage:5000")
    monkeypatch.setitem(sys.modules, "openlineage", None)
    publisher, run_id = published(instance)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert (publisher, lineage_publisher(Settings(), run, instance)) == (None, None)
    (warning,) = warnings_of(caplog)
    assert "install pipeline-assets with its extra 'openlineage'" in warning
    assert "horse" not in warning


def test_a_file_that_is_not_there(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(tmp_path / "none.yml"))
    publisher, _ = published(instance)
    assert publisher is None
    assert warnings_of(caplog) == [
        f"no lineage events: OPENLINEAGE_CONFIG names {tmp_path / 'none.yml'}, which can't be read"
    ]


def test_a_receiver_that_refuses_is_asked_once(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FailingTransport, "refused", 0)
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", f"{TRANSPORTS}.FailingTransport")
    published(instance, runs=25)
    assert FailingTransport.refused == 1
    (warning,) = warnings_of(caplog)
    assert "refuses the connection" in warning
    assert "horse" not in warning


def test_a_receiver_that_does_not_answer_is_not_waited_for(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SilentTransport, "taken", 0)
    monkeypatch.setattr(publishing, "_STUCK_SECONDS", 0.2)
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", f"{TRANSPORTS}.SilentTransport")
    SilentTransport.released.clear()
    try:
        publisher, _ = published(instance, runs=25)  # comes back, which is what this is about
        assert SilentTransport.taken == 1
        assert warnings_of(caplog) == ["lineage events were left unsent: their receiver does not answer in time"]
    finally:
        SilentTransport.released.set()
    assert publisher is not None
    publisher._thread.join()


def test_a_client_that_cannot_be_made(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", f"{TRANSPORTS}.NoTransport")
    published(instance)
    assert warnings_of(caplog) == [
        "no lineage events: OpenLineage's client could not be started: ValueError: no such place"
    ]


def test_the_repository_is_told_without_the_user_of_its_url(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text('[remote "origin"]\nurl = https://ann:horse@git.example.com/shop.git\n')
    monkeypatch.chdir(tmp_path)
    transport: dict[str, Any] = {"type": "file", "log_file_path": str(tmp_path / "events"), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    monkeypatch.setenv("OPENLINEAGE__FACETS__SOURCE_CODE_LOCATION__DISABLED", "false")
    published(instance)
    text = (tmp_path / "events").read_text()
    assert "horse" not in text
    assert "ann:" not in text
    events = [json.loads(line) for line in text.splitlines()]
    assert {event["job"]["facets"]["sourceCodeLocation"]["url"] for event in events} == {
        "https://git.example.com/shop.git"
    }
    assert [problem for event in events for problem in problems(event)] == []
