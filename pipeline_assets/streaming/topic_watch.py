"""Whether the topics that a stream reads are still those that it began with: Spark goes by their names alone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pipeline_assets.connections import KafkaConnection
from pipeline_assets.errors import PipelineError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.kafka_offsets import read_topic_ids
from pipeline_assets.steps.kafka_stream_start import keep_topic_ids, kept_source, require_same_topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline_assets.steps.checkpoint import Checkpoint

_log = logging.getLogger(__name__)
_EVERY_SECONDS = 60.0
# Whoever watches the queries waits meanwhile.
_TIMEOUT_SECONDS = 2.0


@dataclass
class _Source:
    """A Kafka source, and the ids that its topics had when each was first seen, also kept in ``checkpoints``.

    ``connection`` has the secrets in it, as each look would be one more access to them, in the audit and in the run's
    events; None: it is to be made. ``is_failing``: the last look was in vain.
    """

    step: PlannedStep
    topic_ids: Mapping[str, str]
    checkpoints: Sequence[Checkpoint]
    connection: KafkaConnection | None = field(default=None, repr=False)
    is_failing: bool = False


class TopicWatch:
    """Watches the topics of a ``run`` whose queries have been planned, but for those that may lose records."""

    def __init__(self, run: PipelineRun) -> None:
        self._run = run
        self._sources = tuple(self._found())
        self._next_look = time.monotonic() + _EVERY_SECONDS

    def _found(self) -> Iterator[_Source]:
        plan = self._run.plan
        for step in plan.steps:
            if not step.is_stream or not isinstance(step.method, FromKafka) or not step.method.fail_on_data_loss:
                continue
            loads = plan.stream_loads_of(step)
            with self._run.scope.errors_of(step):
                checkpoints = [self._run.checkpoint(load) for load in loads]
                kept = kept_source(step.name, checkpoints) or {}
                if kept.get("topicIds"):
                    yield _Source(step, kept["topicIds"], checkpoints)

    def _ids_now(self, source: _Source) -> Mapping[str, str]:
        connections, method = self._run.context.connections, cast(FromKafka, source.step.method)
        if source.connection is None:
            connection = method.kafka(connections)
            options = connections.secrets.resolve(connection.options)
            source.connection = connection.model_copy(update={"options": options})
        return read_topic_ids(
            source.connection,
            connections.secrets,
            list(source.topic_ids),
            pattern=method.topic_pattern,
            timeout=_TIMEOUT_SECONDS,
        )

    def _keep_new(self, source: _Source, ids: Mapping[str, str]) -> None:
        """Keep the ids of topics that have been made since the start, and that Spark reads by their pattern as well."""
        known = {**ids, **source.topic_ids}
        if known != source.topic_ids:
            keep_topic_ids(source.step.name, source.checkpoints, known)
            source.topic_ids = known

    def look(self) -> None:
        """Raise PipelineExecutionError for a topic that was made again. Asks the brokers once in a while only."""
        if time.monotonic() < self._next_look:
            return
        for source in self._sources:
            try:
                ids = self._ids_now(source)
                self._keep_new(source, ids)
            except PipelineError as error:
                # Where it can't go on, Spark tells. The secrets may have been replaced.
                source.connection = None
                if not source.is_failing:
                    told = "%s: whether a topic was deleted and made again can't be told for now: %s"
                    _log.warning(told, self._run.plan.location(source.step), error)
                source.is_failing = True
                continue
            source.is_failing = False
            with self._run.scope.errors_of(source.step):
                require_same_topics(source.topic_ids, ids)
        self._next_look = time.monotonic() + _EVERY_SECONDS
