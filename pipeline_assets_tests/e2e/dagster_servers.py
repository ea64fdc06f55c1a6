"""Dagster's web server and daemon as processes of their own, on a code location in one folder."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, is_alive

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class DagsterServers:
    """A running web server and daemon, and where their code location has its files."""

    url: str
    configs: Path
    warehouse: Path
    run: PartRun

    def processes(self) -> list[psutil.Process]:
        """The web server, the daemon, and all that they started and that still runs."""
        leaders = [psutil.Process(record.pid) for record in self.run.records if record.alive()]
        return leaders + [child for leader in leaders for child in leader.children(recursive=True)]


@contextmanager
def dagster_servers(folder: Path, logs: Path, configs: Path, sources: Mapping[str, str]) -> Iterator[DagsterServers]:
    """Run both on ``configs``, with their own files in ``folder``; at the end none of their processes is left."""
    home, warehouse = folder / "home", folder / "warehouse"
    home.mkdir()
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    shutil.copy(PROJECT / "dagster.yaml", home)
    # Dagster takes its dialog that offers a newsletter as seen.
    (home / ".nux").mkdir()
    (home / ".nux" / "nux.yaml").touch()
    environment = {
        **os.environ,
        **sources,
        "DAGSTER_HOME": str(home),
        "PIPELINE_ASSETS_CONFIGS": str(configs),
        "PIPELINE_ASSETS_WAREHOUSE": str(warehouse),
        "PIPELINE_ASSETS_PATH_PREFIX": str(folder / "root"),
        "SPARK_MASTER": "local[2]",
    }
    programs = Path(sys.executable).parent
    workspace = PROJECT / "workspace.yaml"
    port = free_port()
    run = PartRun("dagster", data=home, logs=logs)
    servers = DagsterServers(f"http://{LOOPBACK}:{port}", configs, warehouse, run)
    started: list[psutil.Process] = []
    try:
        webserver: list[str | Path] = [programs / "dagster-webserver", "-w", workspace, "-h", LOOPBACK]
        run.spawn("dagster-webserver", [*webserver, "-p", str(port)], environment=environment)
        # Two processes that make Dagster's database at the same time leave it unusable.
        run.wait_until_ready(lambda: _problem(f"{servers.url}/server_info"), limit=180)
        daemon: list[str | Path] = [programs / "dagster-daemon", "run", "-w", workspace]
        run.spawn("dagster-daemon", daemon, environment=environment)
        yield servers
    finally:
        started += servers.processes()
        run.stop()
    assert not [process for process in started if is_alive(process)]


def _problem(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except OSError as error:
        return str(error)
