"""What the sources of a streaming pipeline have that its checkpoints have not: read without Spark."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.settings import Settings
from pipeline_assets.steps.checkpoint import NO_OFFSET, Checkpoint
from pipeline_assets.steps.delta_log import newest_version
from pipeline_assets.steps.extract_delta import FromDeltaLake
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.kafka_client_settings import client_settings
from pipeline_assets.steps.kafka_offsets import Offsets, parse_offsets, read_offsets
from pipeline_assets.steps.kafka_ranges import EARLIEST, LATEST
from pipeline_assets.steps.kafka_stream_start import goes_on, kept_source, missing_topics, pattern_of
from pipeline_assets.steps.s3_paths import normalize

_SHOWN = 8


@dataclass(frozen=True)
class Position:
    """How far one partition or table has been read: up to ``at`` of ``end``."""

    name: str
    at: int
    end: int

    @property
    def lag(self) -> int:
        """How much is to come."""
        return max(0, self.end - self.at)

    @property
    def is_beyond(self) -> bool:
        """Whether more has been read than there is: what is there now is not what was read."""
        return self.at > self.end

    def __str__(self) -> str:
        return f"{self.name} at {self.at} of {self.end}"


@dataclass(frozen=True)
class Backlog:
    """What is to come for the load that is furthest behind.

    ``starts`` tells of one that has not started yet and begins at its first start, wherever that is. ``fingerprint``
    is the same as long as neither the sources nor the checkpoints have moved, and the checkpoints are the same.
    """

    positions: tuple[Position, ...]
    fingerprint: str
    starts: bool = False

    @property
    def lag(self) -> int:
        """How many records (of Kafka) and versions (of Delta tables) are to come."""
        return sum(position.lag for position in self.positions)

    @property
    def has_news(self) -> bool:
        """Whether there is something to start for, and be it an error for the run to tell."""
        return self.starts or self.lag > 0 or any(position.is_beyond for position in self.positions)

    def __str__(self) -> str:
        if self.starts:
            return "the stream has not started yet"
        furthest = sorted(self.positions, key=lambda position: -position.lag)
        more = f", and {len(furthest) - _SHOWN} more" if len(furthest) > _SHOWN else ""
        return ", ".join(map(str, furthest[:_SHOWN])) + more


def read_backlog(plan: PipelinePlan, settings: Settings, connections: Connections, broker_seconds: float) -> Backlog:
    """Compare the ends of the sources of ``plan`` with the newest committed batches in its loads' checkpoints.

    ``broker_seconds``: how long brokers may take, all questions together; to get their credentials does not count. A
    Delta table is compared by its version.
    Raises PipelineExecutionError when a broker does not answer, and when a table is not there yet or a topic that the
    step waits for; ConfigurationError for another topic that is not there and for a source that can't be looked at from
    here.
    """
    reader = _Reader(plan, settings, connections, broker_seconds)
    loads = [reader.load(load) for load in plan.stream_loads()]
    facts = json.dumps([[positions, *checkpoint] for positions, checkpoint, _ in loads], default=str)
    positions, _, starts = max(loads, key=_urgency)
    if reader.waited_for and not starts:
        raise PipelineExecutionError(f"waiting for {', '.join(reader.waited_for)}")
    return Backlog(tuple(positions), hashlib.sha256(facts.encode()).hexdigest()[:16], starts)


def _urgency(load: tuple[Sequence[Position], Sequence[Any], bool]) -> tuple[bool, bool, int]:
    positions, _, starts = load
    return starts, any(position.is_beyond for position in positions), sum(position.lag for position in positions)


@dataclass
class _Reader:
    plan: PipelinePlan
    settings: Settings
    connections: Connections
    broker_seconds: float

    def __post_init__(self) -> None:
        self._asked: dict[tuple[int, str], Offsets] = {}
        self.waited_for: dict[str, None] = {}  # in order, each once

    def load(self, load: PlannedStep) -> tuple[list[Position], list[Any], bool]:
        """Return the positions of one load, what is in its checkpoint, and whether it starts wherever it starts."""
        checkpoint = self._checkpoint(load)
        found = checkpoint.committed_offsets()
        committed = [text for text in found[1] if text != NO_OFFSET] if found else []
        positions: list[Position] = []
        starts = False
        sources = [json.loads(text) for text in committed]
        tables: list[tuple[PlannedStep, FromDeltaLake]] = []
        for step in self.plan.upstream_of(load):
            if not (step.is_stream and step.method.type == "extract"):
                continue
            if isinstance(step.method, FromKafka):
                end = self._offsets(step, step.method, "latest")
                processed = _kafka_offsets(committed, sources)
                missing = missing_topics(step.method, end) if step.method.missing_topic == "wait" else None
                if missing is not None:
                    self.waited_for[missing] = None
                start = self._start(step, step.method, end, processed, started=bool(found))
                starts = starts or start is None
                positions += _kafka_positions(end, processed, start or end)
            elif isinstance(step.method, FromDeltaLake):
                tables.append((step, step.method))
            else:
                raise ConfigurationError(
                    f"step {step.index} ({step.method.method}) can't be looked at from a sensor: give the pipeline a "
                    "'schedule' instead",
                    location=self.plan.location(step),
                )
        positions += self._table_positions(tables, sources)
        # Another checkpoint may be as far as this one was, and is to be started for as well.
        return positions, [checkpoint.path, checkpoint.query_id(), committed], starts

    def _checkpoint(self, load: PlannedStep) -> Checkpoint:
        return load.streaming_load.checkpoint(self.settings, self.connections)

    def _offsets(self, step: PlannedStep, method: FromKafka, which: Literal["earliest", "latest"]) -> Offsets:
        """Return the offsets of all topics, or of those that are there where the step waits for the others."""
        key = (step.index, which)
        if key not in self._asked:
            # To load the client takes a while the first time, and is not the brokers' either.
            import confluent_kafka.admin  # noqa: F401

            kafka, secrets = method.kafka(self.connections), self.connections.secrets
            waits = method.missing_topic == "wait"
            try:
                settings = client_settings(kafka, secrets)
                asked_at = time.monotonic()
                self._asked[key] = read_offsets(
                    kafka,
                    secrets,
                    settings=settings,
                    topics=() if waits else method.topic_names(),
                    pattern=pattern_of(method) if waits else method.topic_pattern,
                    which=which,
                    timeout=max(0.05, self.broker_seconds),
                )
                self.broker_seconds -= time.monotonic() - asked_at
            except ConfigurationError as error:
                raise error.located(self.plan.location(step)) from None
        return self._asked[key]

    def _start(
        self, step: PlannedStep, method: FromKafka, end: Offsets, processed: Offsets, *, started: bool
    ) -> Offsets | None:
        """Return where the partitions begin that no committed batch has; None when that is only known at the start."""
        missing = {
            topic: [partition for partition in partitions if partition not in processed.get(topic, {})]
            for topic, partitions in end.items()
        }
        # Before its first start a stream begins, and what comes into a topic that it waits for comes after that.
        if not any(missing.values()) and (started or method.missing_topic == "fail"):
            return {}
        given: Mapping[str, Mapping[int, int]] = {}
        kept = self._kept_start(step, method)
        if kept is not None:
            given = kept
        elif not started and method.starting_offsets in (None, "latest"):
            return None
        elif not started and isinstance(method.starting_offsets, dict):
            given = method.starting_offsets
        start: Offsets = {}
        for topic, partitions in missing.items():
            for partition in partitions:
                # A partition that was added later is read from its beginning.
                offset = given.get(topic, {}).get(partition, EARLIEST)
                if offset == EARLIEST:
                    offset = self._offsets(step, method, "earliest").get(topic, {}).get(partition, 0)
                elif offset == LATEST:
                    offset = end[topic][partition]
                start.setdefault(topic, {})[partition] = offset
        return start

    def _kept_start(self, step: PlannedStep, method: FromKafka) -> Offsets | None:
        """Return where the stream of ``step`` began at its first start.

        None before that, and when the next start is to begin elsewhere.
        """
        loads = self.plan.stream_loads_of(step)
        checkpoints = [self._checkpoint(load) for load in loads]
        document = kept_source(step.name, checkpoints)
        if document is None or not goes_on(method, document, is_read=any(found.is_read for found in checkpoints)):
            return None
        return parse_offsets(json.dumps(document["startingOffsets"]))

    def _table_positions(
        self, tables: Sequence[tuple[PlannedStep, FromDeltaLake]], sources: Sequence[Any]
    ) -> list[Position]:
        # `reservoirVersion` is the next version to read; while it is read in parts, that version.
        read = sorted(source["reservoirVersion"] for source in sources if _is_delta(source))
        newest = [self._newest_version(method) for _, method in tables]
        if len(tables) == 1:
            (only,) = newest
            at = read[0] if read else 0
            return [Position(f"{_table_name(tables[0][1])} version", at - 1, only)]
        # Which offset is whose is not said. None is beyond its table's end, so all are there when the sums are equal.
        end, at = sum(version + 1 for version in newest), sum(read)
        names = " + ".join(_table_name(method) for _, method in tables)
        return [Position(f"versions of {names}", at, end)] if tables else []

    def _newest_version(self, method: FromDeltaLake) -> int:
        if method.table is not None:
            path = self.settings.table_path(*method.table.replace("-", "_").split("."))
        else:
            path = self.settings.resolve(normalize(method.path or ""))
        folder = folder_seen_from_here(path, method.connection, self.connections)
        if folder is None:
            raise ConfigurationError(
                f"the Delta table at {path} can't be looked at from a sensor: give the pipeline a 'schedule' instead"
            )
        version = newest_version(folder)
        if version is None:
            raise PipelineExecutionError(f"there is no Delta table at {path} yet")
        return version


def _is_delta(source: Any) -> bool:
    return isinstance(source, dict) and "reservoirVersion" in source


def _kafka_offsets(committed: Sequence[str], sources: Sequence[Any]) -> Offsets:
    """Return the Kafka offsets among the committed ones; of a topic that is read twice, those further behind."""
    found: Offsets = {}
    for text, source in zip(committed, sources, strict=True):
        if not isinstance(source, dict) or not all(isinstance(partitions, dict) for partitions in source.values()):
            continue
        for topic, partitions in parse_offsets(text).items():
            known = found.setdefault(topic, {})
            for partition, offset in partitions.items():
                known[partition] = min(offset, known.get(partition, offset))
    return found


def _kafka_positions(end: Offsets, processed: Offsets, start: Offsets) -> list[Position]:
    return [
        Position(
            f"{topic}/{partition}",
            processed.get(topic, {}).get(partition, start.get(topic, {}).get(partition, 0)),
            last,
        )
        for topic, partitions in end.items()
        for partition, last in partitions.items()
    ]


def _table_name(method: FromDeltaLake) -> str:
    return method.table or method.path or ""
