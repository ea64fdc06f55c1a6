"""How cost grows: with the rows of a pipeline, with pipelines, with the partitions of a backfill, with topics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import dagster as dg

from benchmarks.backfill import BACKFILL_COMMAND, Backfill, Spark, measure_backfill
from benchmarks.customer_360 import JOB_COMMAND, Runs, Workplace
from benchmarks.demo_servers import demo_servers
from benchmarks.location_loading import Load, load_configs
from benchmarks.measured_process import ProgramFailedError
from benchmarks.paired_runs import Report, Spread
from benchmarks.sections import Section
from benchmarks.stream_recovery import Ticks, until
from benchmarks.streaming import PARTITIONS, StreamWorkplace, event, kafka_server, stream_config
from devstack.dagster_daemon import StreamControl, dagster_daemon
from devstack.delta_tables import row_count
from devstack.kafka import KafkaServer
from devstack.topics import TopicWriter, new_topic

_MEGABYTE = 1_000_000
_STREAM = "many_topics"


@dataclass(frozen=True)
class Sizes:
    """What to measure at which sizes, each in ascending order, and how often.

    ``runs``: those of each number of rows and topics; ``loads``: those of each location.
    """

    rows: Sequence[int]
    pipelines: Sequence[int]
    partitions: Sequence[int]
    topics: Sequence[int]
    records: int
    runs: int
    loads: int


@dataclass
class Size:
    """The measured runs of one program at one size: ``count`` rows, or topics."""

    count: int
    runs: Runs = field(default_factory=Runs)

    @property
    def seconds(self) -> float:
        """The median of the runs' times."""
        return median(self.runs.seconds)


@dataclass
class Scaling:
    """What was measured, by size."""

    rows: list[Size] = field(default_factory=list)
    pipelines: dict[int, list[Load]] = field(default_factory=dict)
    backfills: list[Backfill] = field(default_factory=list)
    records: int = 0
    topics: list[Size] = field(default_factory=list)
    ticks: list[Ticks] = field(default_factory=list)

    def sections(self) -> Iterator[Section]:
        """Yield what was measured, each as title, header and rows of a table."""
        if self.rows:
            yield (
                f"Rows: `{' '.join(JOB_COMMAND)}`",
                ("orders", "runs", "wall time", "peak memory of Python", "peak memory of the JVM"),
                [_size_row(size) for size in self.rows],
            )
        if len(self.rows) > 1:
            yield (
                "One million rows more",
                ("between", "seconds"),
                [_growth_row(few, more) for few, more in pairwise(self.rows)],
            )
        if self.pipelines:
            yield (
                "Pipelines of 5 steps: loading the location",
                ("pipelines", "loads", "wall time", "location alone", "peak memory"),
                [_load_row(count, loads) for count, loads in self.pipelines.items()],
            )
        if self.backfills:
            yield (
                f"Partitions: `{' '.join(BACKFILL_COMMAND)}`",
                ("partitions", "Spark", "runs at once", "wall time", "for each partition", "first runs", "last runs"),
                [_backfill_row(backfill) for backfill in self.backfills],
            )
        if self.topics:
            yield (
                f"Topics: {self.records:,} records in one stream",
                ("topics", "runs", "wall time", "peak memory of Python", "peak memory of the JVM"),
                [_size_row(size) for size in self.topics],
            )
        if self.ticks:
            yield (
                "Topics: one streaming pipeline and sensor for each, nothing new in them",
                ("topics", "looks", "median", "longest", "runs started"),
                [_ticks_row(ticks) for ticks in self.ticks],
            )


def measure_scaling(folder: Path, sizes: Sizes, found: Scaling, report: Report, keep: Callable[[], object]) -> None:
    """Measure all that ``sizes`` name into ``found``; ``keep`` is called after each size."""
    folder.mkdir()
    found.records = sizes.records
    for part in (
        _measure_pipelines(folder / "pipelines", sizes, found, report),
        _measure_topics(folder / "topics", sizes, found, report),
        _measure_partitions(folder / "partitions", sizes, found, report),
        _measure_rows(folder / "rows", sizes, found, report),
    ):
        for _ in part:
            keep()


# Each of these yields whenever there is something new in what was found.


def _measure_rows(folder: Path, sizes: Sizes, found: Scaling, report: Report) -> Iterator[None]:
    if not sizes.rows:
        return
    folder.mkdir()
    with demo_servers(folder / "servers") as servers:
        servers.load_demo()
        workplace = Workplace(folder, servers)
        report("customer_360: a first run that does not count")
        workplace.run_job()
        for count in sizes.rows:
            report(f"writing {count:,} orders")
            servers.repeat_orders(count)
            size = Size(count)
            found.rows.append(size)
            for number in range(sizes.runs):
                report(f"{count:,} orders: run {number + 1} of {sizes.runs}")
                size.runs.add(workplace.run_job(), {})
                workplace.check_table(count)
                yield


def _measure_pipelines(folder: Path, sizes: Sizes, found: Scaling, report: Report) -> Iterator[None]:
    if not sizes.pipelines:
        return
    folder.mkdir()
    for count in sizes.pipelines:
        report(f"loading {count:,} configs, {sizes.loads} times")
        found.pipelines[count] = load_configs(folder, count, sizes.loads)
        yield


def _measure_partitions(folder: Path, sizes: Sizes, found: Scaling, report: Report) -> Iterator[None]:
    for count in sizes.partitions:
        # The slower ones are measured for the least alone: a thousand of them would take hours.
        for spark in Spark if count == sizes.partitions[0] else (Spark.SHARED_CODE,):
            place = folder / f"{count}_{spark.name.lower()}"
            found.backfills.append(measure_backfill(place, count, spark, report))
            shutil.rmtree(place)
            yield


def _measure_topics(folder: Path, sizes: Sizes, found: Scaling, report: Report) -> Iterator[None]:
    if not sizes.topics:
        return
    with kafka_server(folder / "kafka") as kafka:
        for count in sizes.topics:
            report(f"{count} topics: their sensors")
            found.ticks.append(_measure_sensors(folder / f"sensors_{count}", kafka, count))
            yield
            size = Size(count)
            found.topics.append(size)
            report(f"{count} topics: producing {sizes.records:,} records")
            topics = _fill_topics(kafka, count, sizes.records)
            for number in range(sizes.runs + 1):
                report(
                    f"{count} topics in one stream: " + (f"run {number} of {sizes.runs}" if number else "a first run")
                )
                _run_stream(folder / f"stream_{count}_{number}", kafka, topics, sizes.records, size if number else None)
                yield


def _fill_topics(kafka: KafkaServer, count: int, records: int) -> list[str]:
    """Make ``count`` topics, and have the records in them in turn."""
    topics = [f"scaling_{count}_{number}" for number in range(count)]
    for topic in topics:
        new_topic(kafka, topic, PARTITIONS)
    writers = [TopicWriter(kafka, topic) for topic in topics]
    for number in range(records):
        writers[number % count].write(None, event(number), number // count % PARTITIONS)
    for writer in writers:
        writer.flush()
    return topics


def _run_stream(folder: Path, kafka: KafkaServer, topics: list[str], records: int, into: Size | None) -> None:
    """Run one stream over all topics until it has what is in them."""
    place = StreamWorkplace(folder, {"default": {"bootstrapServers": kafka.bootstrap_servers}})
    config = stream_config(_STREAM, "availableNow")
    extract = config["steps"][0]["config"]
    del extract["topic"]
    extract["topics"] = topics
    place.write(config)
    cost = place.execute(_STREAM)
    wanted = sum('"purchase"' in event(number) for number in range(records))
    rows = row_count(place.table(_STREAM))
    if rows != wanted:
        raise ProgramFailedError(f"{rows:,} rows were written of {len(topics)} topics, {wanted:,} are expected")
    if into is not None:
        into.runs.add(cost, {})
    shutil.rmtree(folder)


def _measure_sensors(folder: Path, kafka: KafkaServer, count: int) -> Ticks:
    """Have the sensors of ``count`` pipelines, each of a topic of its own without records, look twice."""
    place = StreamWorkplace(folder, {"default": {"bootstrapServers": kafka.bootstrap_servers}})
    names = [f"quiet_{count}_{number}" for number in range(count)]
    for name in names:
        new_topic(kafka, name, PARTITIONS)
        # Those that take what there is and end look at the broker before they are started.
        config = stream_config(name, "availableNow", sensor={"status": "running"})
        config["steps"][0]["config"]["topic"] = name
        place.write(config)
    with (
        dagster_daemon(place.environment, folder / "logs"),
        dg.DagsterInstance.from_config(str(place.dagster_home)) as instance,
    ):
        controls = [StreamControl(instance, name) for name in names]
        until(lambda: all(len(control.tick_seconds()) > 1 for control in controls), "every sensor looks twice")
        seconds = [seconds for control in controls for seconds in control.tick_seconds()]
        return Ticks(count, seconds, instance.get_runs_count())


def _size_row(size: Size) -> list[str]:
    runs = size.runs
    return [
        f"{size.count:,}",
        str(len(runs.costs)),
        Spread.of(runs.seconds).text(" s"),
        *(Spread.of(each / _MEGABYTE for each in memory).text(" MB", 0) for memory in (runs.memory, runs.java_memory)),
    ]


def _growth_row(few: Size, more: Size) -> list[str]:
    cost = (more.seconds - few.seconds) / (more.count - few.count) * 1_000_000
    return [f"{few.count:,} and {more.count:,}", f"{cost:.2f} s"]


def _load_row(count: int, loads: Iterable[Load]) -> list[str]:
    measured = list(loads)
    return [
        f"{count:,}",
        str(len(measured)),
        Spread.of(load.process for load in measured).text(" s"),
        Spread.of(load.location for load in measured).text(" s"),
        Spread.of(load.memory / _MEGABYTE for load in measured).text(" MB", 0),
    ]


def _ticks_row(ticks: Ticks) -> list[str]:
    looks = [f"{ticks.median:.2f} s", f"{ticks.longest:.2f} s"]
    return [str(ticks.pipelines), str(len(ticks.seconds)), *looks, str(ticks.started)]


def _backfill_row(backfill: Backfill) -> list[str]:
    some = max(1, len(backfill.runs) // 5)
    return [
        f"{backfill.partitions:,}",
        backfill.spark,
        str(backfill.at_once),
        f"{backfill.seconds:.1f} s",
        f"{backfill.seconds / backfill.partitions:.2f} s",
        f"{median(backfill.runs[:some]):.1f} s",
        f"{median(backfill.runs[-some:]):.1f} s",
    ]
