"""Topics on a running broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from devstack.errors import DevstackError

if TYPE_CHECKING:
    from devstack.kafka import KafkaServer

_LIMIT = 60.0
_ANSWER = 5.0
# What goes wrong is raised. Without a logger the client tells the terminal, too, as long as the broker is away.
_SILENT = logging.getLogger(f"{__name__}.client")
_SILENT.setLevel(logging.CRITICAL + 1)


def new_topic(kafka: KafkaServer, name: str, partitions: int) -> None:
    """Make the topic, without records, and wait until it can be read: one of that name that is there is deleted."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

    def admin() -> AdminClient:
        return AdminClient({"bootstrap.servers": kafka.bootstrap_servers}, logger=_SILENT)

    client = admin()
    if name in client.list_topics(timeout=_LIMIT).topics:
        client.delete_topics([name])[name].result(_LIMIT)
    # A topic that is being deleted is there for a little while longer.
    _repeated(name, lambda: client.create_topics([NewTopic(name, partitions, 1)])[name].result(_LIMIT))
    # A partition of a topic that has just been made may have no leader yet. A client that has heard so may go on
    # believing it, for longer than it takes another to ask.
    latest = {TopicPartition(name, partition): OffsetSpec.latest() for partition in range(partitions)}

    def ask() -> None:
        asking = admin()  # kept until it has answered: without it there is no answer
        for future in asking.list_offsets(latest, request_timeout=_ANSWER).values():
            future.result(_LIMIT)

    _repeated(name, ask)


def _repeated(topic: str, action: Callable[[], object]) -> None:
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + _LIMIT
    while True:
        try:
            action()
            return
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise DevstackError(f"the topic {topic} can't be made: {error.args[0].str()}") from None
            threading.Event().wait(0.2)


class TopicWriter:
    """Produces to one topic, in batches; ``flush`` raises DevstackError when the broker has not taken all."""

    def __init__(self, kafka: KafkaServer, topic: str, **settings: Any) -> None:
        from confluent_kafka import Producer

        self._topic = topic
        self._refused: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 50,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "on_delivery": self._delivered,
                "delivery.report.only.error": True,
                **settings,
            },
            logger=_SILENT,
        )

    def write(self, key: str | None, value: str | bytes | None, partition: int | None = None) -> None:
        """Hand one record over; the key chooses the partition, unless it is given."""
        where = {} if partition is None else {"partition": partition}
        while True:
            try:
                self._producer.produce(self._topic, key=key, value=value, **where)
                return
            except BufferError:  # the broker is slower than we are
                self._producer.poll(0.1)

    def poll(self) -> None:
        """Take note of what the broker has answered so far."""
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has all."""
        left = self._producer.flush(_LIMIT)
        if left or self._refused:
            reason = self._refused[0] if self._refused else f"{left} of them wait since {_LIMIT:.0f} s"
            raise DevstackError(f"the broker has not taken all records of {self._topic}: {reason}")

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._refused.append(str(error))
