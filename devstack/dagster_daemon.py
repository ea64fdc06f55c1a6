"""Dagster's daemon on the project's code location, and what the UI does with a pipeline's sensor and runs."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from devstack.errors import DevstackError
from devstack.processes import PartRun

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun
    from dagster._core.scheduler.instigation import InstigatorState

PROJECT = Path(__file__).resolve().parent.parent
WORKSPACE = PROJECT / "workspace.yaml"
_COMMAND_LIMIT = 300.0
_CANCEL_LIMIT = 120.0


@contextmanager
def dagster_daemon(environment: Mapping[str, str], logs: Path, marker: str | None = None) -> Iterator[PartRun]:
    """Have the daemon with the code location running on the instance in DAGSTER_HOME of ``environment``.

    At the end, none of its processes is left: no run worker either. Should there be no end, as after a SIGKILL, its
    processes are found by ``marker``.
    """
    import dagster as dg

    # Processes that make Dagster's database at the same time leave it unusable.
    dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]).dispose()
    logs.mkdir(parents=True, exist_ok=True)
    run = PartRun("dagster", data=Path(tempfile.mkdtemp(prefix="pipeline-assets-dagster-")), logs=logs)
    run.marker = marker or run.marker
    try:
        command: list[str | Path] = [program("dagster-daemon"), "run", "-w", WORKSPACE]
        run.spawn("dagster-daemon", command, environment=environment, cwd=PROJECT, stop_signal=signal.SIGINT)
        yield run
    finally:
        run.stop()


def running_daemons(home: Path) -> list[psutil.Process]:
    """Return the daemons on the instance in ``home``, whoever has started them: also those of `dagster dev`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile, or is another user's
            is_daemon = any(word.endswith(("dagster-daemon", "dagster._daemon")) for word in process.cmdline())
            if is_daemon and process.environ().get("DAGSTER_HOME") == str(home):
                found.append(process)
    return found


@dataclass
class StreamControl:
    """The sensor and the runs of one streaming pipeline, of an instance that a daemon works on."""

    instance: DagsterInstance
    job: str

    @property
    def sensor(self) -> str:
        """The sensor's name."""
        return f"{self.job}_sensor"

    def forget_sensor(self) -> None:
        """Reset the sensor: what it remembers of earlier runs, its ticks, and that somebody started it."""
        for state in self._sensor_states():
            self.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)

    def start_sensor(self, daemon: PartRun, environment: Mapping[str, str]) -> None:
        """Start the sensor by Dagster's command line."""
        command: list[str | Path] = [program("dagster"), "sensor", "start", self.sensor, "-w", WORKSPACE]
        daemon.run_to_end("dagster-sensor", command, environment=environment, limit=_COMMAND_LIMIT, cwd=PROJECT)

    def newest_run(self) -> DagsterRun | None:
        """Return the run that was made last."""
        import dagster as dg

        return next(iter(self.instance.get_runs(dg.RunsFilter(job_name=self.job), limit=1)), None)

    def says(self) -> str:
        """Return why the sensor did nothing when it last looked, or what it did."""
        for state in self._sensor_states():
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1):
                if tick.error is not None:
                    return tick.error.message.splitlines()[0]
                return tick.skip_reason or ("started a run" if tick.run_ids else tick.status.value.lower())
        return "has not looked yet"

    def tick_seconds(self) -> list[float]:
        """Return how long each look of the sensor took, of those that are over."""
        return [
            tick.tick_data.end_timestamp - tick.tick_data.timestamp
            for state in self._sensor_states()
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if tick.tick_data.end_timestamp is not None
        ]

    def end(self) -> None:
        """Stop the sensor, then cancel what runs and wait until it has ended.

        Raises DevstackError when a run does not end.
        """
        for state in self._sensor_states():
            self.instance.stop_sensor(state.instigator_origin_id, state.selector_id, None)
        asked: set[str] = set()
        deadline = time.monotonic() + _CANCEL_LIMIT
        # Again and again: the sensor may have been about to launch one.
        while runs := self._unfinished():
            for run in runs:
                if run.run_id not in asked:
                    asked.add(run.run_id)
                    self._cancel(run)
            if time.monotonic() > deadline:
                raise DevstackError(f"run {runs[0].run_id} has not ended {_CANCEL_LIMIT:.0f} s after it was cancelled")
            threading.Event().wait(0.2)

    def _cancel(self, run: DagsterRun) -> None:
        """Ask the run to end: by its code server, else itself; when that has gone too, file it as ended."""
        from dagster._core.errors import DagsterUserCodeUnreachableError

        from pipeline_assets.streaming.process_tags import tagged_process

        with suppress(DagsterUserCodeUnreachableError):
            if self.instance.run_coordinator.cancel_run(run.run_id):
                return
        process = tagged_process(run)
        if process is not None and process.is_here():
            os.kill(process.pid, signal.SIGINT)
        else:
            self.instance.report_run_canceled(run)

    def _unfinished(self) -> Sequence[DagsterRun]:
        import dagster as dg
        from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

        return self.instance.get_runs(dg.RunsFilter(job_name=self.job, statuses=NOT_FINISHED_STATUSES))

    def _sensor_states(self) -> list[InstigatorState]:
        from dagster._core.definitions.run_request import InstigatorType

        states = self.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        return [state for state in states if state.instigator_name == self.sensor]


def program(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).parent / name)
