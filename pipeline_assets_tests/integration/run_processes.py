"""Runs in processes of their own, to be stopped and killed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
MARK = "PIPELINE_ASSETS_TEST_RUN"
LIMIT = 300.0  # seconds; where nothing else runs a wait takes 20, on a busy machine more than a hundred


def with_spark_conf(conf: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that gives ``conf`` to a driver: by a SPARK_CONF_DIR it would lose its class archive."""
    options = [f"--conf {shlex.quote(f'{name}={value}')}" for name, value in conf.items()]
    return {"PYSPARK_SUBMIT_ARGS": " ".join([*options, "pyspark-shell"])}


# As in conftest's SPARK_CONF, no code is compiled for a few rows; where it matters, tests give a conf of their own.
_INTERPRETED = with_spark_conf({"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"})


def processes_of(mark: str) -> list[str]:
    """Return the command lines of the processes that were started with ``mark`` in their environment."""
    found = []
    for process in _marked(mark):
        with suppress(psutil.Error):  # it has ended meanwhile
            found.append(" ".join(process.cmdline())[:200])
    return found


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_processes_of(mark: str) -> None:
    """Kill what was started with ``mark`` in its environment."""
    for process in _marked(mark):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until(condition: Callable[[], T], seconds: float = LIMIT) -> T:
    """Wait until ``condition`` holds, and return what it found."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition.__name__}"
        time.sleep(0.2)
    return found


class JobProcess:
    """``dagster job execute`` of one job, with ``config`` as the run's config."""

    def __init__(self, job: str, environment: Mapping[str, str], log: Path, config: Path | None = None) -> None:
        self.mark = str(uuid.uuid4())
        self._log = log
        command = [str(Path(sys.executable).parent / "dagster"), "job", "execute"]
        command += ["-m", "pipeline_assets.definitions", "-j", job]
        command += ["-c", str(config)] if config else []
        own = {**_INTERPRETED, MARK: self.mark}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **own, **environment}, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], T], seconds: float = LIMIT) -> T:
        """Wait until ``condition`` holds, while the job runs, and return what it found."""

        def held() -> T:
            assert self._process.poll() is None, self.output
            return condition()

        return wait_until(held, seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process of the run."""
        self._process.send_signal(number)

    def kill_jvm(self) -> None:
        """Kill Spark's driver, and nothing else."""
        killed = 0
        for process in _marked(self.mark):
            with suppress(psutil.NoSuchProcess):  # a process of a moment
                if process.name() == "java":
                    process.kill()
                    killed += 1
        assert killed

    def kill_step(self) -> None:
        """Kill the process of the step that runs in one of its own: the one that has started a JVM."""
        (java,) = [process for process in _marked(self.mark) if process.name() == "java"]
        worker = java.parent()
        assert worker is not None
        assert worker.pid != self._process.pid
        worker.kill()

    def end(self, seconds: float = LIMIT) -> int:
        """Wait for the end; returns the exit code. No process of it is left then."""
        code = self._process.wait(seconds)
        wait_until(lambda: not processes_of(self.mark))
        return code

    def kill_all(self) -> None:
        """Leave nothing behind, whatever the test has come to."""
        kill_processes_of(self.mark)
        self._process.wait(LIMIT)


Start = Callable[[], JobProcess]
