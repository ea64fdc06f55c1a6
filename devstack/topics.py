"""Topics on a running broker."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from devstack.errors import DevstackError

if TYPE_CHECKING:
    from devstack.kafka import KafkaServer

_LIMIT = 60.0
# What goes wrong is raised. Without a logger the client tells the terminal, too, as long as the broker is away.
_SILENT = logging.getLogger(f"{__name__}.client")
_SILENT.setLevel(logging.CRITICAL + 1)


def new_topic(kafka: KafkaServer, name: str, partitions: int) -> None:
    """Make the topic, without records: one of that name that is there is deleted first."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}, logger=_SILENT)
    deadline = time.monotonic() + _LIMIT
    if name in client.list_topics(timeout=_LIMIT).topics:
        client.delete_topics([name])[name].result(_LIMIT)
    while True:
        try:
            client.create_topics([NewTopic(name, partitions, 1)])[name].result(_LIMIT)
            return
        except KafkaException as error:
            # A topic that is being deleted is there for a little while longer.
            if time.monotonic() > deadline:
                raise DevstackError(f"the topic {name} can't be made: {error.args[0].str()}") from None
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
