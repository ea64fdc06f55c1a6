"""The start and the end of a Spark server that stays between runs; its life is in integration/test_spark_server.py."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.settings import Settings
from pipeline_assets.spark.connect_server import ConnectServer, _end

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
def spark_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for Spark's own program, and for the test's user has a cache of its own: it ends at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    program = tmp_path / "spark" / "bin" / "spark-submit"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    return program


def start(port: int, host: str = "127.0.0.1") -> None:
    ConnectServer(host, port).start(Settings(spark_master="local[1]"), {"spark.jars": ""})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_another_program_is_refused(host: str, spark_submit: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigurationError,
            match=f"^port {port} of {host} is taken by another program: give another one with --port$",
        ):
            start(port, host)
    with pytest.raises(PipelineExecutionError, match="the Spark server has ended"):
        start(port, host)


def test_an_address_of_another_machine_is_refused(spark_submit: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^cannot listen at port 15002 of 192\.0\.2\.1: "):
        start(15002, "192.0.2.1")
