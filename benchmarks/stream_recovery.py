"""How long a stream whose run worker was killed takes to be back, and how long the sensors' looks take."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.bare_stream import TOPIC
from benchmarks.paired_runs import Report
from benchmarks.streaming import PARTITIONS, StreamWorkplace, event, stream_config
from devstack.dagster_daemon import StreamControl, dagster_daemon
from devstack.delta_tables import first_rows_after, row_count
from devstack.errors import DevstackError
from devstack.kafka import KafkaServer
from devstack.ports import LOOPBACK, free_port
from devstack.topics import TopicWriter, new_topic

PIPELINES = 50
_JOB = "kept_alive"
_LIMIT = 600.0
_FEED_SECONDS = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Recovery:
    """Where the seconds from a kill to the first new row went.

    ``noticed``: the sensor has filed the run as failed. ``launched``: there is a new run (a pause before a restart
    included). ``started``: its worker has loaded the location and begun. ``spark``: the session is there and the
    checkpoint is held. ``first_batch``: rows are committed to the table.
    """

    noticed: float
    launched: float
    started: float
    spark: float
    first_batch: float

    @property
    def seconds(self) -> float:
        """The sum."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Ticks:
    """The seconds of single looks of ``pipelines`` sensors, and how many runs they started."""

    pipelines: int
    seconds: list[float]
    started: int = 0

    @property
    def longest(self) -> float:
        """The longest one."""
        return max(self.seconds)

    @property
    def median(self) -> float:
        """The median."""
        return median(self.seconds)


def measure_recovery(folder: Path, kafka: KafkaServer, kills: int, report: Report) -> list[Recovery]:
    """Run a stream by Dagster's daemon and its sensor, and kill its run worker ``kills`` times."""
    import dagster as dg

    new_topic(kafka, TOPIC, PARTITIONS)
    place = StreamWorkplace(folder, {"default": {"bootstrapServers": kafka.bootstrap_servers}})
    place.write(stream_config(_JOB, "1 second", sensor={"status": "running"}))
    with (
        _fed(kafka),
        dagster_daemon(place.environment, folder / "logs"),
        closing(_Watch(place, dg.DagsterInstance.from_config(str(place.dagster_home)))) as watch,
    ):
        report("waiting for the stream to run")
        until(lambda: row_count(place.table(_JOB)), "the stream writes rows")
        found = []
        for number in range(kills):
            report(f"killing the run worker: {number + 1} of {kills}")
            found.append(watch.kill())
        return found


class _Watch:
    """Kills run workers, and sees what happens then."""

    def __init__(self, place: StreamWorkplace, instance: object) -> None:
        import dagster as dg

        assert isinstance(instance, dg.DagsterInstance)
        self._place = place
        self._instance = instance
        self._stream = StreamControl(instance, _JOB)

    def close(self) -> None:
        """Stop the sensor and end the run."""
        self._stream.end()
        self._instance.dispose()

    def kill(self) -> Recovery:
        """Kill the worker of the newest run, and wait until another one has written rows."""
        from pipeline_assets.streaming.process_tags import PID_TAG

        killed = self._stream.newest_run()
        assert killed is not None
        begun = time.time()
        os.kill(int(killed.tags[PID_TAG]), signal.SIGKILL)
        noticed = until(lambda: self._ended(killed.run_id), "the sensor notices")
        run_id, launched = until(lambda: self._newer_than(killed.run_id), "there is a new run")
        started = until(lambda: self._step_started(run_id), "its worker begins")
        held = until(lambda: self._lease_of(run_id), "it holds the checkpoint")
        written = until(lambda: first_rows_after(self._place.table(_JOB), held), "it writes rows")
        points = [begun, noticed, launched, started, held, written]
        return Recovery(*(max(0.0, after - before) for before, after in pairwise(points)))

    def _ended(self, run_id: str) -> float | None:
        record = self._instance.get_run_record_by_id(run_id)
        return record.end_time if record is not None and record.dagster_run.is_finished else None

    def _newer_than(self, run_id: str) -> tuple[str, float] | None:
        run = self._stream.newest_run()
        if run is None or run.run_id == run_id:
            return None
        record = self._instance.get_run_record_by_id(run.run_id)
        return None if record is None else (run.run_id, record.create_timestamp.timestamp())

    def _step_started(self, run_id: str) -> float | None:
        import dagster as dg

        for record in self._instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START):
            return record.timestamp
        return None

    def _lease_of(self, run_id: str) -> float | None:
        from pipeline_assets.connections import Connections
        from pipeline_assets.steps.checkpoint import Checkpoint
        from pipeline_assets.streaming.checkpoint_lease import Holder

        holder = Holder.of(Checkpoint.at(str(self._place.checkpoint(_JOB)), "default", Connections()))
        return holder.acquired_at.timestamp() if holder is not None and holder.run_id == run_id else None


def measure_ticks(folder: Path, report: Report) -> Ticks:
    """Run the sensors of 50 pipelines whose brokers are dead twice: half refuse to talk, half never answer."""
    import dagster as dg

    with socket.create_server((LOOPBACK, 0), backlog=1000) as silent:
        place = StreamWorkplace(
            folder,
            {
                "refusing": {"bootstrapServers": f"{LOOPBACK}:{free_port()}"},
                "silent": {"bootstrapServers": f"{LOOPBACK}:{silent.getsockname()[1]}"},
            },
        )
        streams = []
        for number in range(PIPELINES):
            # Those that take what there is and end look at the broker before they are started.
            config = stream_config(f"stream_{number}", "availableNow", sensor={"status": "running"})
            config["steps"][0]["config"]["connection"] = ("refusing", "silent")[number % 2]
            place.write(config)
            streams.append(f"stream_{number}")
        with (
            dagster_daemon(place.environment, folder / "logs"),
            dg.DagsterInstance.from_config(str(place.dagster_home)) as instance,
        ):
            report(f"waiting until {PIPELINES} sensors have looked at dead brokers twice")
            controls = [StreamControl(instance, name) for name in streams]
            until(lambda: all(len(control.tick_seconds()) > 1 for control in controls), "every sensor looks twice")
            return Ticks(PIPELINES, [seconds for control in controls for seconds in control.tick_seconds()])


@contextmanager
def _fed(kafka: KafkaServer) -> Iterator[None]:
    """Have a hundred records a second in the topic, as long as this lasts."""
    ended = threading.Event()

    def feed() -> None:
        writer = TopicWriter(kafka, TOPIC)
        number = 0
        while not ended.wait(_FEED_SECONDS):
            for _ in range(10):
                writer.write(None, event(number), number % PARTITIONS)
                number += 1
            writer.poll()
        writer.flush()

    thread = threading.Thread(target=feed, name="feed")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def until(look: Callable[[], _T | None], what: str) -> _T:
    """Return the first of what ``look`` finds."""
    deadline = time.monotonic() + _LIMIT
    while not (found := look()):
        if time.monotonic() > deadline:
            raise DevstackError(f"waited {_LIMIT:.0f} s in vain until {what}")
        threading.Event().wait(0.1)
    return found
