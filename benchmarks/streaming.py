"""A streaming pipeline beside a bare script that does the same: what is in a Kafka topic, into a Delta table."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.bare_stream import CONDITION, MAX_OFFSETS_PER_TRIGGER, SCHEMA, TOPIC
from benchmarks.code_location import CodeLocation, job_command, script_conf
from benchmarks.customer_360 import Runs
from benchmarks.measured_process import ProcessCost, ProgramFailedError, run_measured
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.spark_event_log import event_log_conf, read_events
from devstack.dagster_daemon import PROJECT
from devstack.delta_tables import read_columns
from devstack.kafka import Kafka, KafkaServer
from devstack.stack import Stack
from devstack.topics import TopicWriter, new_topic

JOB = "event_stream"
STREAM_COMMAND = job_command(JOB)
STREAM_SCRIPT_COMMAND = ("python", "benchmarks/bare_stream.py", "CONF", "TABLE", "CHECKPOINT")
PARTITIONS = 4
_KINDS = ("purchase", "view", "purchase", "cart")
_PROGRESS = "org.apache.spark.sql.streaming.StreamingQueryListener$QueryProgressEvent"


@dataclass
class StreamingComparison:
    """``job``: the pipeline in Dagster; ``script``: bare PySpark. The rates are those of the queries: records a second
    from the begin of the first micro-batch to the end of the last.
    """

    records: int
    job: Runs = field(default_factory=Runs)
    script: Runs = field(default_factory=Runs)
    job_rates: list[float] = field(default_factory=list)
    script_rates: list[float] = field(default_factory=list)

    def over_script(self) -> Spread:
        """The job's wall time over the script's, round by round."""
        return Spread.of_ratios(self.job.seconds, self.script.seconds)

    def rate_over_script(self) -> Spread:
        """The job's throughput over the script's, round by round."""
        return Spread.of_ratios(self.job_rates, self.script_rates)


@contextmanager
def kafka_server(home: Path) -> Iterator[KafkaServer]:
    """Start Kafka with its state in ``home``, and stop it at the end."""
    stack = Stack(home)
    try:
        yield stack.server(Kafka(), KafkaServer)
    finally:
        stack.down()


def fill_topic(kafka: KafkaServer, records: int) -> None:
    """Make the topic with ``records`` records, the same each time."""
    new_topic(kafka, TOPIC, PARTITIONS)
    writer = TopicWriter(kafka, TOPIC)
    for number in range(records):
        writer.write(None, event(number), number % PARTITIONS)
    writer.flush()


def event(number: int) -> str:
    """Return the record of that number."""
    kind = _KINDS[number // PARTITIONS % len(_KINDS)]
    return f'{{"id": {number}, "event_type": "{kind}", "user_id": "u{number % 1009}", "amount": {number % 9973 / 4}}}'


def stream_config(name: str, trigger: str, **extra: Any) -> dict[str, Any]:
    """Return the config of a pipeline that does what the bare script does."""
    return {
        "name": name,
        "mode": "streaming",
        **extra,
        "steps": [
            {
                "type": "extract",
                "method": "fromKafka",
                "config": {
                    "topic": TOPIC,
                    "schema": SCHEMA,
                    "startingOffsets": "earliest",
                    "maxOffsetsPerTrigger": MAX_OFFSETS_PER_TRIGGER,
                },
            },
            {"type": "transform", "method": "filterRows", "config": {"condition": CONDITION}},
            {
                "type": "load",
                "method": "toDeltaLake",
                "config": {
                    "path": f"/tables/{name}",
                    "checkpointLocation": f"/checkpoints/{name}",
                    "outputMode": "append",
                    "trigger": trigger,
                },
            },
        ],
    }


class StreamWorkplace(CodeLocation):
    """A location of streams, with their tables and checkpoints."""

    def __init__(
        self, folder: Path, kafka: Mapping[str, Mapping[str, str]], more: Mapping[str, str] | None = None
    ) -> None:
        """Make it in ``folder``. ``kafka`` are the connections by name, as connections.json has them."""
        super().__init__(folder, more)
        (self.configs / "connections.json").write_text(json.dumps({"kafka": kafka}))

    def table(self, name: str) -> Path:
        """Return where the pipeline of that name has its table."""
        return self.root / "tables" / name

    def checkpoint(self, name: str) -> Path:
        """Return where the pipeline of that name has its checkpoint."""
        return self.root / "checkpoints" / name


class StreamPrograms:
    """The two programs that are compared, each with an event log that says what its query did."""

    def __init__(self, folder: Path, kafka: KafkaServer) -> None:
        connections = {"default": {"bootstrapServers": kafka.bootstrap_servers}}
        self._place = StreamWorkplace(folder, connections, kafka.environment)
        self._place.write(stream_config(JOB, "availableNow"))
        self._script_table = folder / "script_table"
        self._script_checkpoint = folder / "script_checkpoint"
        self._logs = folder / "event_log"

    def run_job(self, more: Mapping[str, str] | None = None) -> tuple[ProcessCost, float]:
        """Run the pipeline by Dagster's command line, with ``more`` environment, from the topic's first record; returns
        its rate, too.
        """
        shutil.rmtree(self._place.root, ignore_errors=True)
        return self._with_rate(lambda: self._place.execute(JOB, event_log_conf(self._logs), more))

    def run_script(self) -> tuple[ProcessCost, float]:
        """Run the bare script, from the topic's first record; returns its rate, too."""
        conf = self._place.folder / "conf.json"
        conf.write_text(json.dumps(script_conf() | event_log_conf(self._logs)))
        for path in (self._script_table, self._script_checkpoint):
            shutil.rmtree(path, ignore_errors=True)
        script = str(PROJECT / "benchmarks" / "bare_stream.py")
        command = [sys.executable, script, str(conf), str(self._script_table), str(self._script_checkpoint)]
        return self._with_rate(lambda: run_measured(command, self._place.environment, self._place.folder))

    def check_table(self, records: int) -> None:
        """Hold that the job's table has all purchases, once: what was measured is the work that was meant."""
        _check_purchases(self._place.table(JOB), records)

    def check_tables(self, records: int) -> None:
        """Hold that both tables have all purchases, once."""
        self.check_table(records)
        _check_purchases(self._script_table, records)

    def _with_rate(self, run: Callable[[], ProcessCost]) -> tuple[ProcessCost, float]:
        try:
            return run(), _rate(self._logs)
        finally:
            shutil.rmtree(self._logs)


def compare_streaming(
    folder: Path, kafka: KafkaServer, records: int, pairs: int, report: Report
) -> StreamingComparison:
    """Run job and script in ``pairs`` rounds, on a topic that is filled already."""
    programs = StreamPrograms(folder, kafka)
    found = StreamingComparison(records)
    variants = (
        (programs.run_job, found.job, found.job_rates),
        (programs.run_script, found.script, found.script_rates),
    )
    for counts, order in rounds(f"{records:,} records", variants, pairs, report):
        for run, runs, rates in order:
            cost, rate = run()
            if counts:
                runs.add(cost, {})
                rates.append(rate)
        programs.check_tables(records)
    return found


def _check_purchases(table: Path, records: int) -> None:
    wanted = [number for number in range(records) if '"purchase"' in event(number)]
    found = read_columns(table, ["id"])
    ids = found["id"].to_numpy() if found is not None else []
    if (len(ids), int(sum(ids))) != (len(wanted), sum(wanted)):
        raise ProgramFailedError(f"{table} has {len(ids):,} rows, {len(wanted):,} are expected (or other ids)")


def _rate(logs: Path) -> float:
    """Return the records a second of the one streaming query in the event log."""
    rows, begins, ends = 0, [], []
    for found in read_events(logs):
        if found["Event"] == _PROGRESS:
            progress = found["progress"]
            rows += sum(source["numInputRows"] for source in progress["sources"])
            begins.append(datetime.fromisoformat(progress["timestamp"]))
            ends.append(begins[-1] + timedelta(milliseconds=progress["durationMs"]["triggerExecution"]))
    return rows / (max(ends) - min(begins)).total_seconds()
