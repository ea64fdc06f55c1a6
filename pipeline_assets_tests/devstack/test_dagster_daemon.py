"""A demo that was killed, or that somebody else's daemon is in the way of: what is found, and what is done about it."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from devstack import demo_stream
from devstack.dagster_daemon import StreamControl, running_daemons
from devstack.errors import DevstackError
from devstack.processes import PartRun, ProcessRecord
from devstack.stack import Stack
from pipeline_assets.streaming.checkpoint_lease import Process
from pipeline_assets.streaming.process_tags import process_tags
from pipeline_assets_tests.integration.run_processes import wait_until

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dagster's home for the streaming demo."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    monkeypatch.setattr(demo_stream, "DAGSTER_HOME", home)
    return home


def daemon(part_run: PartRun, home: Path) -> ProcessRecord:
    """Start what looks like a daemon on the instance in ``home``."""
    program = part_run.data / "dagster-daemon"
    program.write_text("import signal\nsignal.pause()\n")
    record = part_run.spawn("daemon", [sys.executable, program], environment={"DAGSTER_HOME": str(home)})
    wait_until(lambda: record.pid in [process.pid for process in running_daemons(home)])
    return record


def started_run(instance: dg.DagsterInstance, pid: int) -> dg.DagsterRun:
    """Return a run that is said to be in the process ``pid``, and whose code server has gone."""
    tags = {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": "/nowhere/dagster.sock"})}
    run = create_run_for_test(instance, "stream", status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.add_run_tags(run.run_id, process_tags(Process(socket.gethostname(), pid), run.run_id))
    return run


def test_a_run_of_which_nothing_is_left_is_filed_as_ended(home: Path, part_run: PartRun) -> None:
    ended = part_run.spawn("ended", ["true"], environment={})
    wait_until(lambda: not ended.alive())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = started_run(instance, ended.pid)
        StreamControl(instance, "stream").end()
        found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.CANCELED


def test_a_run_that_its_code_server_has_left_behind_is_interrupted(
    home: Path, part_run: PartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devstack.dagster_daemon._CANCEL_LIMIT", 0.1)
    worker = part_run.spawn("worker", ["sleep", "600"], environment=dict(os.environ))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        started_run(instance, worker.pid)
        # There is nobody who would file its end.
        with pytest.raises(DevstackError, match="has not ended"):
            StreamControl(instance, "stream").end()
    wait_until(lambda: not worker.alive())


def test_what_a_killed_demo_has_left_is_ended_by_down(home: Path, part_run: PartRun, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack")
    stack.home.mkdir(mode=0o700)
    other = daemon(part_run, home)
    part_run.marker = stack.companion_marker
    left = daemon(part_run, home)
    stack.down()
    assert not left.alive()
    assert other.alive()


def test_the_streaming_demo_is_alone_on_its_instance(home: Path, part_run: PartRun, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack")
    with (
        demo_stream._alone(stack),
        pytest.raises(DevstackError, match="another streaming demo"),
        demo_stream._alone(stack),
    ):
        pass
    marker, part_run.marker = part_run.marker, stack.companion_marker
    daemon(part_run, home)
    with demo_stream._alone(stack):
        pass  # what an earlier demo has left is no hindrance
    part_run.marker = marker
    other = daemon(part_run, home)
    with pytest.raises(DevstackError, match=f"process {other.pid}"), demo_stream._alone(stack):
        pass
