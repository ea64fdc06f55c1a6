"""Where a stream from Kafka begins, and with which columns: the same at each of its starts.

Both are kept in the checkpoints of the queries that it feeds, as a document of the extract step.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pipeline_assets.errors import PipelineCancelledError, PipelineExecutionError
from pipeline_assets.steps.base import StepContext, StreamSource
from pipeline_assets.steps.kafka_offsets import Offsets, offsets_json, parse_offsets, read_offsets, read_topic_ids
from pipeline_assets.steps.kafka_ranges import not_before, or_earliest, resolved_offsets, still_there, with_records
from pipeline_assets.steps.kafka_topics import KafkaTopics

if TYPE_CHECKING:
    from pipeline_assets.steps.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class StreamStart:
    """Where Spark's source begins that has no checkpoint of its own yet, and the columns of its records as DDL.

    ``schema`` is None where it was never inferred.
    """

    offsets: Offsets
    schema: str | None


@dataclass(frozen=True)
class KafkaStreamStart:
    """A start of the stream of ``topics``.

    ``infer`` returns the columns of the records in a range as DDL, None where none tells them; it is None where nobody
    has to.
    """

    topics: KafkaTopics
    context: StepContext
    source: StreamSource
    infer: Callable[[Offsets, Offsets], str | None] | None

    def begin(self) -> StreamStart:
        """Return where the stream begins, found now or kept by an earlier start, and keep it.

        Raises and waits as ``extract_stream`` of the step says.
        """
        document = kept_source(self.source.step, self.source.checkpoints)
        if document is None or not goes_on(self.topics, document, is_read=self.source.is_read):
            start = self._first_offsets()
            document = {"startingOffsets": start, "schema": None, "configured": _beginning(self.topics)}
            # A topic may be made again before all of them are there.
            document = self._known_by_ids(document, start)
            _keep(self.source, document)
        there = self._wait_for_topics()
        document = self._known_by_ids(document, there)
        _keep(self.source, document)
        start = parse_offsets(json.dumps(document["startingOffsets"]))
        schema = document["schema"]
        if schema is None and self.infer is not None:
            schema = self._wait_for_schema(start, self.infer)
            _keep(self.source, {**document, "schema": schema})
        # Spark wants to be told of every partition that there is, until it has a checkpoint of its own.
        offsets = or_earliest(self._left_of(start, there), there)
        return StreamStart(offsets, schema)

    def _offsets_there(self, which: Literal["earliest", "latest"]) -> Offsets:
        """Return the offsets of those topics that are there already."""
        return read_offsets(
            self.topics.kafka(self.context.connections),
            self.context.connections.secrets,
            pattern=pattern_of(self.topics),
            which=which,
        )

    def _first_offsets(self) -> Offsets:
        """Return where the stream begins, in explicit offsets.

        With ``latest``, a topic that is waited for is left out: it has no record yet, so it begins at its earliest one.
        That is to be kept before the wait, which may outlast this run.
        """
        given = self.topics.starting_offsets or "latest"
        if given == "latest" and self.topics.missing_topic == "wait":
            return self._offsets_there("latest")
        earliest = self._wait_for_topics()
        return resolved_offsets("startingOffsets", given, earliest, self.topics.offsets(self.context, "latest"))

    def _wait_for_topics(self) -> Offsets:
        """Return the earliest offsets once all topics are there, or raise when they aren't and nobody is to wait."""
        if self.topics.missing_topic == "fail":
            return self.topics.offsets(self.context, "earliest")
        said: set[str] = set()
        while True:
            found = self._offsets_there("earliest")
            missing = missing_topics(self.topics, found)
            if missing is None:
                return found
            self._pause(missing, said)

    def _known_by_ids(self, document: dict[str, Any], there: Offsets) -> dict[str, Any]:
        """Return ``document`` with the ids of the topics, those that it has not kept yet and those made again included.

        Raises PipelineExecutionError for a topic that was made again, unless failOnDataLoss is false: it then begins at
        its earliest record for a query that has not begun yet.
        """
        known: dict[str, str] = document.get("topicIds", {})
        ids = known | read_topic_ids(
            self.topics.kafka(self.context.connections), self.context.connections.secrets, list(there)
        )
        if self.topics.fail_on_data_loss:
            require_same_topics(known, ids)
        again = _made_again(known, ids)
        if again:
            told = "%s: %s; it goes on at the old offsets, as failOnDataLoss is false"
            _log.warning(told, self.source.step, _said_of(again))
        start = document["startingOffsets"] | {topic: there[topic] for topic in again}
        return {**document, "startingOffsets": start, "topicIds": ids}

    def _left_of(self, start: Offsets, there: Offsets) -> Offsets:
        """Return ``start`` for queries that begin now, without partitions whose records from there on have gone.

        Those are no loss where a query has read the stream before, and another one joins it; without such a query all
        of ``start`` is returned, and Spark says what is lost.
        """
        left = still_there(start, there)
        joining = [checkpoint.path for checkpoint in self.source.checkpoints if not checkpoint.is_read]
        if left == start or not joining or not self.source.is_read:
            return start
        _log.warning(
            "%s: the records that the stream first began with, at %s, are no longer in Kafka: the query of the "
            "checkpoint %s begins at %s",
            self.source.step,
            offsets_json(start),
            ", ".join(joining),
            offsets_json(not_before(start, there)),
        )
        return left

    def _wait_for_schema(self, start: Offsets, infer: Callable[[Offsets, Offsets], str | None]) -> str:
        """Return the columns of the JSON from ``start`` on, once there is a record that tells them."""
        seen: Offsets | None = None
        said: set[str] = set()
        while True:
            end = self.topics.offsets(self.context, "latest")
            if end != seen:
                seen, earliest = end, self.topics.offsets(self.context, "earliest")
                begin = not_before(start, earliest)
                # What was there before tells the columns as well, where nothing has come since.
                for first, last in ((begin, end), (earliest, begin)):
                    schema = infer(first, last)
                    if schema is not None:
                        return schema
            records = "a JSON object among its newest records" if with_records({}, end) else "a first record"
            waited_for = f"{records} in {self.topics.described()}, to infer the columns from (or give 'schema')"
            if not self.source.may_wait:
                raise PipelineExecutionError(
                    f"{self.topics.described()}: there is not {records} to infer the columns from: give 'schema', or "
                    "start the stream when there is one"
                )
            self._pause(waited_for, said)

    def _pause(self, waited_for: str, said: set[str]) -> None:
        """Say what is waited for, if it was not ``said``, and wait until it is worth another look.

        Raises PipelineCancelledError when the run is to end.
        """
        if waited_for not in said:
            _log.warning("%s: waiting for %s", self.source.step, waited_for)
            said.add(waited_for)
        if self.source.stop.wait(_POLL_SECONDS):
            raise PipelineCancelledError(f"stopped while waiting for {waited_for}")


def pattern_of(topics: KafkaTopics) -> str:
    """Return the pattern that the names of ``topics`` match: by it, those that are not there are no error."""
    return topics.topic_pattern or "|".join(map(re.escape, topics.topic_names()))


def missing_topics(topics: KafkaTopics, there: Offsets) -> str | None:
    """Return what is waited for until all of ``topics`` are ``there``, for a person to read; None when they are."""
    missing = [topic for topic in topics.topic_names() if topic not in there]
    if there and not missing:
        return None
    named = f"topic {', '.join(map(repr, missing))}" if missing else f"a topic like {topics.topic_pattern!r}"
    return f"Kafka {named} to be there"


def goes_on(topics: KafkaTopics, document: Mapping[str, Any], *, is_read: bool) -> bool:
    """Whether a start begins where ``document`` says, which an earlier one has kept.

    ``is_read``: whether a query has read anything since. As long as none has, another beginning can be asked for.
    """
    return is_read or bool(document.get("configured", _beginning(topics)) == _beginning(topics))


def _beginning(topics: KafkaTopics) -> dict[str, Any]:
    """Return what the config says of where the stream begins, as it comes back from JSON."""
    asked = {**topics.stream_identity(), "startingOffsets": topics.starting_offsets or "latest"}
    return cast(dict[str, Any], json.loads(json.dumps(asked)))


def source_of(context: StepContext) -> StreamSource:
    """Return where a streaming extract stands."""
    if context.source is None:
        raise TypeError("a streaming extract needs context.source")
    return context.source


def kept_source(step: str, checkpoints: Sequence[Checkpoint]) -> dict[str, Any] | None:
    """Return what ``extract_stream`` has kept of the stream of ``step``; None before its first start.

    ``checkpoints`` are those of all queries that it feeds. Each has it, so that any of them may go; a query that has
    read the stream goes before one that has not.
    """
    documents = (found.read_document(_named(step)) for found in sorted(checkpoints, key=lambda each: not each.is_read))
    return next((document for document in documents if document is not None), None)


def keep_topic_ids(step: str, checkpoints: Sequence[Checkpoint], ids: Mapping[str, str]) -> None:
    """Have what ``extract_stream`` has kept of the stream of ``step`` tell of ``ids``, which may be of newer topics."""
    for checkpoint in checkpoints:
        document = checkpoint.read_document(_named(step))
        if document is not None:
            checkpoint.write_document(_named(step), {**document, "topicIds": dict(ids)})


def require_same_topics(known: Mapping[str, str], ids: Mapping[str, str]) -> None:
    """Raise PipelineExecutionError when ``ids`` has another id for a topic than is ``known``."""
    again = _made_again(known, ids)
    if again:
        raise PipelineExecutionError(
            f"{_said_of(again)}. Give each load of the stream a new checkpointLocation, with startingOffsets "
            "'earliest' to begin with the first record that is there; or start once with failOnDataLoss false, to go "
            "on at the old offsets"
        )


def _made_again(known: Mapping[str, str], ids: Mapping[str, str]) -> list[str]:
    return [topic for topic in known if ids.get(topic, known[topic]) != known[topic]]


def _said_of(again: Sequence[str]) -> str:
    return (
        f"topic {', '.join(map(repr, again))} is not that of the stream's last start: it was deleted and made again, "
        "or is on another cluster, and what the stream had not read yet is lost"
    )


def _keep(source: StreamSource, document: dict[str, Any]) -> None:
    written = json.loads(json.dumps(document))
    for checkpoint in source.checkpoints:
        if checkpoint.read_document(_named(source.step)) != written:
            checkpoint.write_document(_named(source.step), document)


def _named(step: str) -> str:
    return f"source_{step}"
