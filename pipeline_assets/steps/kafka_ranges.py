"""Ranges of offsets in Kafka's topics: what a config gives, and what is in them. Pure."""

from __future__ import annotations

from pipeline_assets.errors import ConfigurationError, did_you_mean
from pipeline_assets.steps.kafka_offsets import Offsets

LATEST, EARLIEST = -1, -2  # Kafka's words, and Spark's


def resolved_offsets(key: str, given: str | Offsets, earliest: Offsets, latest: Offsets) -> Offsets:
    """Return ``given`` as explicit offsets of all partitions. Raises ConfigurationError where it does not fit them."""
    if isinstance(given, str):
        return earliest if given == "earliest" else latest
    for topic in given:
        if topic not in latest:
            raise ConfigurationError(
                f"{key} names topic {topic!r}, which is not read here{did_you_mean(topic, latest)} "
                f"(topics: {', '.join(latest)})"
            )
    resolved: Offsets = {}
    for topic, partitions in latest.items():
        there = given.get(topic, {})
        left_out = [str(partition) for partition in partitions if partition not in there]
        unknown = [str(partition) for partition in there if partition not in partitions]
        if left_out or unknown:
            wrong = f"leaves out {', '.join(left_out)}" if left_out else f"has {', '.join(unknown)}"
            raise ConfigurationError(
                f"{key} of topic {topic!r} {wrong}: give every partition that there is "
                f"({', '.join(map(str, partitions))}), with -1 for the latest offset"
                + (" or -2 for the earliest" if key == "startingOffsets" else "")
            )
        resolved[topic] = {}
        for partition, offset in there.items():
            first, last = earliest[topic][partition], latest[topic][partition]
            exact = {EARLIEST: first, LATEST: last}.get(offset, offset)
            if not first <= exact <= last:
                raise ConfigurationError(
                    f"{key} of topic {topic!r}, partition {partition} is {offset}, but there are the offsets {first} "
                    f"to {last}: give one of them, -1 for the latest" + (" or -2 for the earliest" if first else "")
                )
            resolved[topic][partition] = exact
    return resolved


def or_earliest(start: Offsets, there: Offsets) -> Offsets:
    """Return ``start`` for every partition that is ``there``; EARLIEST for one that it does not have."""
    return {
        topic: {partition: start.get(topic, {}).get(partition, EARLIEST) for partition in partitions}
        for topic, partitions in there.items()
    }


def with_records(start: Offsets, end: Offsets) -> Offsets:
    """Return those partitions of ``end`` that have something after ``start``."""
    found = {
        topic: {
            partition: offset
            for partition, offset in partitions.items()
            if offset > max(0, start.get(topic, {}).get(partition, 0))
        }
        for topic, partitions in end.items()
    }
    return {topic: partitions for topic, partitions in found.items() if partitions}


def not_before(start: Offsets, earliest: Offsets) -> Offsets:
    """Return ``start`` for every partition that is there, and what is left where the records there have gone."""
    return {
        topic: {partition: max(start.get(topic, {}).get(partition, first), first) for partition, first in parts.items()}
        for topic, parts in earliest.items()
    }


def still_there(start: Offsets, earliest: Offsets) -> Offsets:
    """Return those partitions of ``start`` whose records from there on have not gone."""
    return {
        topic: {
            partition: offset
            for partition, offset in partitions.items()
            if offset >= earliest.get(topic, {}).get(partition, offset)
        }
        for topic, partitions in start.items()
    }


def newest_records(start: Offsets, end: Offsets, count: int) -> Offsets:
    """Return where to begin to read the newest ``count`` records before ``end``, in all partitions together.

    None of them is before ``start``; partitions without any are left out.
    """
    sizes = sorted(
        (offset - start[topic][partition], topic, partition)
        for topic, partitions in end.items()
        for partition, offset in partitions.items()
        if offset > start.get(topic, {}).get(partition, offset)
    )
    found: Offsets = {}
    left = count
    for position, (size, topic, partition) in enumerate(sizes):
        # What small partitions do not use goes to the bigger ones after them.
        taken = min(size, max(1, left // (len(sizes) - position)))
        left -= taken
        found.setdefault(topic, {})[partition] = end[topic][partition] - taken
    return found
