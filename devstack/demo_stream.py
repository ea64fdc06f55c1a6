"""The streaming demo: ``python -m devstack.demo_stream``, Kafka to Delta as configs/event-stream.json says.

Each run begins anew, with an empty topic, and without the table and the checkpoint of the run before. What it leaves
in warehouse/ is there to be looked at.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from filelock import FileLock, Timeout
from rich.live import Live
from rich.table import Table

from devstack.dagster_daemon import PROJECT, StreamControl, dagster_daemon, running_daemons
from devstack.delta_tables import read_columns, row_count
from devstack.demo import DAGSTER_HOME, console, dagster_environment, step
from devstack.demo_data import EventKind, StreamEvent, stream_events
from devstack.errors import DevstackError
from devstack.interrupts import ignore_signals, run_command
from devstack.kafka import Kafka, KafkaServer
from devstack.processes import unrecorded_processes
from devstack.stack import Stack, default_home
from devstack.topics import TopicWriter, new_topic

if TYPE_CHECKING:
    from pipeline_assets.connections import Connections
    from pipeline_assets.steps.kafka_offsets import Offsets

JOB = "event_stream"
EXTRACT = "from_kafka"
TOPIC = "events"
PARTITIONS = 4
LOGS = DAGSTER_HOME / "demo_stream"
_START_LIMIT = 300.0
_STALL_LIMIT = 120.0
_LOOK_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 5.0
# From these the stream infers its columns.
_OPENING = 1000


@click.command()
@click.option("--rate", default=3000, show_default=True, type=click.IntRange(min=1), help="Records a second.")
def main(rate: int) -> None:
    """Stream purchases and clicks through Kafka into a Delta table, watch it, and verify what came out."""
    with step("reading CDNOW's purchases and retentioneering's click stream"):
        events = stream_events()
    with ExitStack() as parts:
        try:
            stack = Stack(default_home())
            parts.enter_context(_alone(stack))
            kafka = parts.enter_context(_kafka(stack))
            environment = dagster_environment(stack)
            stream = _stream(environment)
            with step("ending what an earlier demo has left running"):
                stream.end()
                stack.stop_companions()
            demo = Demo.prepare(kafka, environment)
            with step("Dagster's daemon and code location; the sensor is started"):
                daemon = parts.enter_context(dagster_daemon(demo.environment, LOGS, stack.companion_marker))
                parts.callback(_end, stream)
                stream.forget_sensor()
                stream.start_sensor(daemon, demo.environment)
            with step("the stream's run takes the end of the topic as its start"):
                demo.wait_for_start(stream)
            demo.feed_and_watch(stream, events, rate)
            console.print()
            problems = demo.problems(events)
        finally:
            ignore_signals()
    run = stream.newest_run()
    console.print(f"[green]✓[/] the run is {run.status.value if run else 'gone'}, nothing is left running")
    if problems:
        raise DevstackError("the table is not what was produced: " + "; ".join(problems))
    console.print(f"\nThe table is [bold]{demo.table}[/]. See the run in Dagster: [bold]make ui[/]")


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    """Share the instance with nobody: a daemon that somebody uses would run the stream whose table is removed."""
    DAGSTER_HOME.mkdir(exist_ok=True)
    try:
        held = FileLock(DAGSTER_HOME / "demo_stream.lock").acquire(timeout=0)
    except Timeout as error:
        raise DevstackError(f"another streaming demo works in {DAGSTER_HOME}: wait for it, or end it") from error
    with held:
        left = {record.pid for record in unrecorded_processes(stack.companion_marker)}
        for daemon in running_daemons(DAGSTER_HOME):
            if daemon.pid not in left:
                raise DevstackError(
                    f"a daemon of Dagster works in {DAGSTER_HOME} (process {daemon.pid}): "
                    "end `make ui`, or whatever else has started it, and call this again"
                )
        yield


@contextmanager
def _kafka(stack: Stack) -> Iterator[KafkaServer]:
    """Have Kafka up; at the end it is stopped, unless it was running before."""
    state = stack.states().get("kafka")
    was_running = state is not None and state.runs()
    try:
        with step("Kafka"):
            server = stack.server(Kafka(), KafkaServer)
        yield server
    finally:
        if not was_running:
            with step("stopping Kafka"):
                stack.stop("kafka")


def _stream(environment: Mapping[str, str]) -> StreamControl:
    """Return the handle of the stream's sensor and runs."""
    import dagster as dg

    # Never closed: what became of the run is asked for after the end.
    return StreamControl(dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]), JOB)


def _end(stream: StreamControl) -> None:
    """Leave the sensor off and no run in progress."""
    with step("stopping the sensor, cancelling the run"):
        stream.end()


@dataclass(frozen=True)
class Look:
    """What there is to see at one moment. ``lag`` is by partition; None before the first batch."""

    produced: int
    rows: int
    dead_letters: int
    lag: Mapping[int, int] | None
    run: str
    sensor: str

    def __str__(self) -> str:
        lag = "-" if self.lag is None else f"{sum(self.lag.values()):,}"
        return (
            f"produced {self.produced:,}, in the table {self.rows:,}, dead letters {self.dead_letters:,}, "
            f"to come {lag}, run {self.run}; sensor: {self.sensor}"
        )

    def table(self, total: int, seconds: float) -> Table:
        """Return it for the terminal."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        lag = "-" if self.lag is None else f"{sum(self.lag.values()):,}  ({_partitions(self.lag)})"
        for name, text in (
            ("produced", f"{self.produced:,} of {total:,} records in {seconds:.0f} s"),
            ("rows in the table", f"{self.rows:,}"),
            ("dead letters", f"{self.dead_letters:,}"),
            ("records to come", lag),
            ("run", self.run),
            ("sensor", self.sensor),
        ):
            table.add_row(f"[bold]{name}[/]", text)
        return table


@dataclass(frozen=True)
class Demo:
    """Where the stream reads, and where what it writes is to be found."""

    kafka: KafkaServer
    environment: Mapping[str, str]
    table: Path
    dead_letters: Path
    checkpoint: Path
    connections: Connections

    @classmethod
    def prepare(cls, kafka: KafkaServer, environment: Mapping[str, str]) -> Demo:
        """Make the topic, and remove what the run before wrote."""
        from pipeline_assets.connections_loading import load_connections

        root = Path(environment["PIPELINE_ASSETS_PATH_PREFIX"])
        warehouse = Path(environment["PIPELINE_ASSETS_WAREHOUSE"])
        connections = load_connections(PROJECT / "configs", environment)
        demo = cls(
            kafka=kafka,
            environment=environment,
            table=root / "data" / "purchases",
            dead_letters=warehouse / JOB / f"{EXTRACT}_dead_letters",
            checkpoint=root / "checkpoints" / "purchases",
            connections=connections,
        )
        for folder in (demo.table, demo.dead_letters, demo.checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
        new_topic(kafka, TOPIC, PARTITIONS)
        return demo

    def wait_for_start(self, stream: StreamControl) -> None:
        """Wait until the run has kept the offsets that it begins at: what is produced from then on is read."""
        from pipeline_assets.steps.checkpoint import Checkpoint

        checkpoint = Checkpoint.at(str(self.checkpoint), "default", self.connections)
        deadline = time.monotonic() + _START_LIMIT
        while checkpoint.read_document(f"source_{EXTRACT}") is None:
            if time.monotonic() > deadline:
                raise DevstackError(f"the stream has not started within {_START_LIMIT:.0f} s: {stream.says()}")
            threading.Event().wait(_LOOK_SECONDS)

    def feed_and_watch(self, stream: StreamControl, events: Sequence[StreamEvent], rate: int) -> None:
        """Produce at ``rate`` and show what becomes of it, until all has come out or nothing moves any more."""
        begun = time.monotonic()
        seconds = shown = 0.0
        produced = self._open(events[:_OPENING])
        writer = TopicWriter(self.kafka, TOPIC)
        kinds = Counter(event.kind for event in events)
        before, changed_at = self.look(stream, produced), begun
        with Live(before.table(len(events), 0), console=console, refresh_per_second=4) as live:
            while not _is_done(before, kinds) and time.monotonic() - changed_at < _STALL_LIMIT:
                due = min(len(events), _OPENING + int(rate * (time.monotonic() - begun)))
                for event in events[produced:due]:
                    writer.write(event.key, event.value)
                if produced < due == len(events):
                    writer.flush()
                produced = due
                writer.poll()
                now = self.look(stream, produced)
                if (now.produced, now.rows, now.dead_letters) != (before.produced, before.rows, before.dead_letters):
                    changed_at = time.monotonic()
                before, seconds = now, time.monotonic() - begun
                live.update(now.table(len(events), seconds))
                if not console.is_terminal and seconds >= shown + _PLAIN_LINE_SECONDS:
                    shown = seconds
                    console.print(f"{seconds:5.1f} s  {now}", soft_wrap=True)
                threading.Event().wait(_LOOK_SECONDS)

    def _open(self, events: Sequence[StreamEvent]) -> int:
        """Produce the first events in one batch: the columns are inferred from them, so all are seen, or none."""
        writer = TopicWriter(self.kafka, TOPIC, **{"linger.ms": 1000})
        for event in events:
            writer.write(event.key, event.value, partition=0)
        writer.flush()
        return len(events)

    def look(self, stream: StreamControl, produced: int) -> Look:
        """Look at tables, offsets, run and sensor."""
        run = stream.newest_run()
        return Look(
            produced=produced,
            rows=row_count(self.table),
            dead_letters=row_count(self.dead_letters),
            lag=self._lag(),
            run="none" if run is None else f"{run.status.value}  {run.run_id}",
            sensor=stream.says(),
        )

    def _lag(self) -> Mapping[int, int] | None:
        """Return the records from the newest offsets that the checkpoint says are processed to the topic's end."""
        from pipeline_assets.steps.checkpoint import Checkpoint
        from pipeline_assets.steps.kafka_offsets import lag, parse_offsets, read_offsets

        found = Checkpoint.at(str(self.checkpoint), "default", self.connections).committed_offsets()
        if found is None:
            return None
        _, (processed,) = found
        kafka = self.connections.kafka("default")
        end: Offsets = read_offsets(kafka, self.connections.secrets, topics=[TOPIC], which="latest")
        return lag(end, parse_offsets(processed))[TOPIC]

    def problems(self, events: Sequence[StreamEvent]) -> list[str]:
        """Compare what was produced, key by key, with what is in the table and in the dead letters; tell both."""
        found: list[str] = []
        for name, table, column, kind in (
            ("purchases in the table", self.table, "event_id", "purchase"),
            ("broken records in the dead letters", self.dead_letters, "key", "broken"),
        ):
            rows = read_columns(table, [column])
            written = Counter(_text(key) for key in (rows[column].to_pylist() if rows is not None else []))
            expected = Counter(event.key for event in events if event.kind == kind)
            if written == expected:
                console.print(f"[green]✓[/] {expected.total():,} {name}: each that was produced, once")
            else:
                missing, extra = (expected - written).total(), (written - expected).total()
                found.append(f"{name}: {missing:,} of {expected.total():,} are missing, {extra:,} are too many")
        return found


def _is_done(look: Look, kinds: Mapping[EventKind, int]) -> bool:
    """Whether all has been produced and processed; what is too much is found afterwards."""
    return (
        look.produced == sum(kinds.values())
        and look.lag is not None
        and sum(look.lag.values()) == 0
        and look.rows >= kinds["purchase"]
        and look.dead_letters >= kinds["broken"]
    )


def _text(key: str | bytes | None) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def _partitions(lag: Mapping[int, int]) -> str:
    return "  ".join(f"{partition}: {records:,}" for partition, records in sorted(lag.items()))


if __name__ == "__main__":
    run_command(main)
