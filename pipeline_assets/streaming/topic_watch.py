"""Whether the topics that a stream reads are still those that it began with: Spark goes by their names alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.connections import KafkaConnection
from pipeline_assets.errors import PipelineError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.steps.extract_kafka import FromKafka, kept_source, require_same_topics
from pipeline_assets.steps.kafka_offsets import read_topic_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EVERY_SECONDS = 60.0
# Whoever watches the queries waits meanwhile.
_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class _Source:
    """A Kafka source: its connection with the secrets in it, and the ids of its topics when the stream began."""

    step: PlannedStep
    connection: KafkaConnection
    topic_ids: Mapping[str, str]


class TopicWatch:
    """Watches the topics of a ``run`` whose queries have been planned, but for those that may lose records."""

    def __init__(self, run: PipelineRun) -> None:
        self._run = run
        self._sources = tuple(self._found())
        self._next_look = time.monotonic() + _EVERY_SECONDS

    def _found(self) -> Iterator[_Source]:
        plan, connections = self._run.plan, self._run.context.connections
        for step in plan.steps:
            if not step.is_stream or not isinstance(step.method, FromKafka) or not step.method.fail_on_data_loss:
                continue
            loads = [load for load in plan.stream_loads() if step in plan.upstream_of(load)]
            with self._run.scope.errors_of(step):
                kept = kept_source(step.name, [self._run.checkpoint(load) for load in loads]) or {}
                if kept.get("topicIds"):
                    connection = step.method.kafka(connections)
                    # Once: each look would be one more access to the secrets, in the audit and in the run's events.
                    options = connections.secrets.resolve(connection.options)
                    yield _Source(step, connection.model_copy(update={"options": options}), kept["topicIds"])

    def look(self) -> None:
        """Raise PipelineExecutionError for a topic that was made again. Asks the brokers once in a while only."""
        if time.monotonic() < self._next_look:
            return
        for source in self._sources:
            try:
                topics = list(source.topic_ids)
                secrets = self._run.context.connections.secrets
                ids = read_topic_ids(source.connection, secrets, topics, timeout=_TIMEOUT_SECONDS)
            except PipelineError:  # of brokers that do not answer, and of a topic that is not there, Spark tells
                continue
            with self._run.scope.errors_of(source.step):
                require_same_topics(source.topic_ids, ids)
        self._next_look = time.monotonic() + _EVERY_SECONDS
