"""``pipeline-assets spark-server`` as a program, for tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil

from benchmarks.spark_event_log import event_log_conf
from devstack.ports import free_port

PROGRAM = Path(sys.executable).parent / "pipeline-assets"


class SparkServer:
    """A server with its state in ``folder``, and with an event log there of what its Spark does."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.remote = f"sc://127.0.0.1:{self.port}"
        self.event_log = folder / "event_log"
        self._environment = {
            **os.environ, "XDG_CACHE_HOME": str(folder), "PIPELINE_ASSETS_LOG_LEVEL": "INFO", **(environment or {}),
        }  # fmt: skip
        _share_cache(folder / "pipeline-assets")

    @contextmanager
    def started(self, conf: Mapping[str, str]) -> Iterator[Self]:
        """Start it with ``conf`` for the block; when that is over, its process has to be gone."""
        given = [f"--conf={key}={value}" for key, value in {**event_log_conf(self.event_log), **conf}.items()]
        started = self.command("start", *given)
        assert started.returncode == 0, started.stderr
        assert f"SPARK_REMOTE={self.remote}" in started.stdout
        process = self.process()
        try:
            yield self
        finally:
            stopped = self.command("stop")
        assert stopped.returncode == 0
        assert not process.is_running()
        assert self.command("status").returncode == 1

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of it, such as ``status``."""
        return subprocess.run(
            [PROGRAM, "spark-server", *arguments, "--port", str(self.port)],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def process(self) -> psutil.Process:
        """Return its process."""
        found = re.search(r"process (\d+)", self.command("status").stdout)
        assert found is not None
        return psutil.Process(int(found[1]))

    def log(self) -> Path:
        """Return where its log is."""
        found = re.search(r"log (\S+)", self.command("status").stdout)
        assert found is not None
        return Path(found[1])


def _share_cache(folder: Path) -> None:
    """Have the list of JARs that there are, so that nothing is looked for again, and the archive of their classes."""
    folder.mkdir(parents=True)
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipeline-assets"
    for jars in own.glob("*.txt"):
        (folder / jars.name).write_text(jars.read_text())
    for classes in own.glob("*.jsa"):
        (folder / classes.name).symlink_to(classes)
