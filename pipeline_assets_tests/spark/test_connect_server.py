"""The start and the end of a Spark server that stays between runs; its life is in integration/test_spark_server.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from devstack.ports import free_port
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.settings import Settings
from pipeline_assets.spark.connect_server import ConnectServer, ServerRecord, _end
from pipeline_assets_tests.integration.run_processes import wait_until

SERVER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(worker.pid, flush=True)
worker.wait()
"""


def test_what_it_has_started_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = psutil.Process(int(server.stdout.readline()))
        try:
            _end(psutil.Process(server.pid))
            worker.wait(60)
        finally:
            if worker.is_running():
                worker.kill()


@pytest.fixture
def spark_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands in for Spark's own program, and for the test's user has a cache of its own: it ends at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    program = tmp_path / "spark" / "bin" / "spark-submit"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    started, popen = [], psutil.Popen

    def kept(*args: Any, **kwargs: Any) -> psutil.Popen:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(psutil, "Popen", kept)
    monkeypatch.setattr(ConnectServer, "_wait_until_it_answers", lambda *_: started[-1].wait(60))
    yield program
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def start(port: int, host: str = "127.0.0.1") -> None:
    ConnectServer(host, port).start(Settings(spark_master="local[1]"), {"spark.jars": ""})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_another_program_is_refused(host: str, spark_submit: Path) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(
            ConfigurationError,
            match=f"^port {port} of {host} is taken by another program: give another one with --port$",
        ),
    ):
        start(port, host)
    start(port, host)


def test_an_address_of_another_machine_is_refused(spark_submit: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^cannot listen at port 15002 of 192\.0\.2\.1: "):
        start(15002, "192.0.2.1")


def record_of(process: psutil.Process, folder: Path) -> ServerRecord:
    return ServerRecord("127.0.0.1", 15002, process.pid, process.create_time(), str(folder / "server.log"))


@pytest.mark.parametrize("text", ["", '{"host": "127.0', "[]", '{"host": "127.0.0.1", "address": 15002}', b"\xff"])
def test_an_unreadable_record_is_none(text: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server = ConnectServer("127.0.0.1", 15002)
    file = tmp_path / "pipeline-assets" / "spark-server" / "15002" / "server.json"
    file.parent.mkdir(parents=True)
    own = record_of(psutil.Process(), tmp_path)
    file.write_text(json.dumps(asdict(own)))
    assert server.running() == own
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert server.running() is None
    assert server.stop() is None


def test_a_record_is_written_in_one_go(spark_submit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another command reads in the meantime is the record before it, or none."""
    spark_submit.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(ConnectServer, "_wait_until_it_answers", lambda *_: None)
    written, replaced = [], Path.replace

    def seen(source: Path, target: Path) -> Path:
        written.append((json.loads(source.read_text())["port"], target.name, target.exists()))
        return replaced(source, target)

    monkeypatch.setattr(Path, "replace", seen)
    port = free_port()
    start(port)
    ended = ConnectServer("127.0.0.1", port).stop()
    assert written == [(port, "server.json", False)]
    assert ended is not None
    assert sorted(file.name for file in Path(ended.log).parent.glob("server.*")) == ["server.json", "server.log"]


def test_a_server_is_known_when_the_clock_has_been_set(tmp_path: Path) -> None:
    sleeping = [sys.executable, "-c", "import signal; signal.pause()"]
    properties = ["--properties-file", str(tmp_path / "spark.properties")]
    for arguments, is_known in ((properties, True), ([], False)):
        process = psutil.Popen([*sleeping, *arguments])
        try:
            record = record_of(process, tmp_path)
            assert record.process() == process
            later = replace(record, started=record.started - 3600)
            wait_until(process.cmdline)  # a process that is just being made has none yet
            assert (later.process() is not None) is is_known
        finally:
            process.kill()
            process.wait()
        assert record.process() is None


def test_a_remote_for_runs_is_none_of_the_server(spark_submit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself tells users to set it."""
    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1:1")
    monkeypatch.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
    start(port := free_port())
    log = spark_submit.parents[2] / "cache" / "pipeline-assets" / "spark-server" / str(port) / "server.log"
    given = {line.partition("=")[0] for line in log.read_text().splitlines()}
    assert "SPARK_HOME" in given
    assert not given & {"SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED"}
    assert (os.environ["SPARK_REMOTE"], os.environ["SPARK_CONNECT_MODE_ENABLED"]) == ("sc://127.0.0.1:1", "1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_start_that_is_ended_leaves_no_server_that_nobody_finds(number: signal.Signals, spark_submit: Path) -> None:
    spark_submit.write_text("#!/bin/sh\nexec sleep 600\n")
    server = ConnectServer("127.0.0.1", port := free_port())
    program = str(Path(sys.executable).parent / "pipeline-assets")
    command = [program, "spark-server", "start", "--port", str(port)]
    with subprocess.Popen([*command, "--conf", "spark.master=local[1]", "--conf", "spark.jars="]) as starting:
        wait_until(lambda: server.running() is not None)
        record = server.running()
        assert record is not None
        starting.send_signal(number)
        starting.wait(60)
    if number is signal.SIGKILL:
        assert server.stop() == record
    assert record.process() is None
