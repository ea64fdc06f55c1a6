"""Topics of the real broker, filled with events that the tests know."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from devstack.kafka import KafkaServer
from devstack.topics import new_topic

Event = dict[str, Any]
KINDS = ("purchase", "view", "purchase", "cart")


def events(first: int, count: int) -> list[Event]:
    """Return ``count`` events with the ids from ``first`` on."""
    return [
        {"id": number, "event_type": KINDS[number % len(KINDS)], "user_id": f"u{number % 7}", "amount": number / 4}
        for number in range(first, first + count)
    ]


def purchases(of: Iterable[Event]) -> list[Event]:
    """Return the events that the reference stream keeps."""
    return [event for event in of if event["event_type"] == "purchase"]


class Topic:
    """A topic of its own name on the broker."""

    def __init__(self, kafka: KafkaServer, partitions: int = 2, name: str | None = None) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient

        self.name = name or f"events-{uuid.uuid4().hex[:8]}"
        self.partitions = partitions
        self._kafka = kafka
        # At the end of the tests the broker goes before the client does, which would say so for ever.
        servers = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0}
        self._admin = AdminClient(servers)
        self._producer = Producer({**servers, "enable.idempotence": True})

    def make(self) -> Topic:
        """Make the topic and wait until it is there."""
        new_topic(self._kafka, self.name, self.partitions)
        return self

    def delete(self) -> None:
        """Delete the topic and wait until it is gone."""
        self._admin.delete_topics([self.name])[self.name].result(30)

    def delete_before(self, offset: int) -> None:
        """Delete the records before ``offset`` in every partition, as retention does."""
        from confluent_kafka import TopicPartition

        wanted = [TopicPartition(self.name, partition, offset) for partition in range(self.partitions)]
        for deleted in self._admin.delete_records(wanted).values():
            deleted.result(30)

    def send(self, values: Sequence[Event | str | bytes | None]) -> None:
        """Produce ``values`` in turn to the partitions (events as JSON) and wait until the broker has them."""
        failed: list[Any] = []
        for number, value in enumerate(values):
            self._producer.produce(
                self.name,
                value=json.dumps(value) if isinstance(value, dict) else value,
                partition=number % self.partitions,
                on_delivery=lambda error, _message: failed.append(error) if error else None,
            )
            self._producer.poll(0)
        assert self._producer.flush(60) == 0
        assert not failed
