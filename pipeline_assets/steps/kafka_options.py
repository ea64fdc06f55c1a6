"""How Spark reaches a Kafka cluster, and what a topic is called outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline_assets.credentials.references import is_reference
from pipeline_assets.steps.base import Dataset
from pipeline_assets.steps.paths import OptionValue, check_options

if TYPE_CHECKING:
    from pipeline_assets.connections import KafkaConnection
    from pipeline_assets.credentials import Secrets


def check_kafka_options(options: dict[str, OptionValue]) -> dict[str, OptionValue]:
    """Return the ``options`` of a step. Raises ValueError for one that would hold a secret, or fetch one."""
    for name, value in options.items():
        # With the connection's these are resolved, and sent to the broker.
        if name.startswith("kafka.") and is_reference(str(value)):
            raise ValueError(f"option {name!r} is a reference to a secret: references stand in connections.json alone")
    return check_options(options)


def with_options(connection: KafkaConnection, options: Mapping[str, str]) -> KafkaConnection:
    """Return ``connection`` with those of a step's ``options`` that are the Kafka client's (``kafka.*``).

    Where both say something, the step's holds.
    """
    own = {name: value for name, value in options.items() if name.startswith("kafka.")}
    merged = {name.removeprefix("kafka."): value for name, value in (*connection.options.items(), *own.items())}
    return connection.model_copy(update={"options": merged})


def kafka_options(connection: KafkaConnection, secrets: Secrets) -> dict[str, str]:
    """Return the options of Spark's Kafka source and sink for ``connection``, with its secrets fetched."""
    options = {"kafka.bootstrap.servers": connection.bootstrap_servers}
    for name, value in connection.options.items():
        option = name if name.startswith("kafka.") else f"kafka.{name}"
        options[option] = value
    return secrets.resolve(options)


def kafka_dataset(connection: str, topic: str) -> Dataset:
    """Return the dataset of a topic (or of the topics that a pattern stands for): the same for every step."""
    return Dataset("kafka", (connection, topic), f"kafka://{connection}/{topic}")
