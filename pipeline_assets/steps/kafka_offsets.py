"""Where Kafka's topics begin and end, and which they are, asked of the brokers without Spark: a look takes no JVM."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline_assets.errors import (
    ConfigurationError,
    CredentialError,
    PipelineError,
    PipelineExecutionError,
    did_you_mean,
)
from pipeline_assets.steps.kafka_client_settings import SECRET_SETTINGS, client_settings
from pipeline_assets.transience import execution_error, transience_of

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from pipeline_assets.connections import KafkaConnection
    from pipeline_assets.credentials import Secrets

Offsets = dict[str, dict[int, int]]
"""Topic -> partition -> offset: that of the next record to read."""

# A pattern never subscribes to these (exclude.internal.topics).
_INTERNAL_TOPICS = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})
_LISTED_TOPICS = 10
# librdkafka's _RESOLVE and _SSL: behind these, no answer is no matter of time. _AUTHENTICATION: it was an answer.
_NEVER = frozenset({-193, -181})
_AUTHENTICATION = -169


def read_offsets(
    connection: KafkaConnection,
    secrets: Secrets,
    *,
    topics: Sequence[str] = (),
    pattern: str | None = None,
    which: Literal["earliest", "latest"],
    timeout: float = 10.0,
    settings: Mapping[str, Any] | None = None,
) -> Offsets:
    """Return the offsets of every partition of ``topics``, and of the topics that ``pattern`` matches as a whole.

    ``earliest`` is the first record that is still there, ``latest`` the one that comes next (with `isolation.level`
    `read_committed` among the connection's options: the first that is not committed yet). Makes no topics. ``settings``
    are the ``client_settings`` of ``connection``, for a caller who has them.

    Raises ConfigurationError for a topic that is not there, for a pattern that is no regular expression and for
    options that can't be translated; CredentialError when the broker refuses the login; PipelineExecutionError when no
    broker answers within ``timeout`` seconds.
    """
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    with _asking(connection, secrets, timeout, settings) as asking:
        found = asking.client.list_topics(timeout=asking.left()).topics
        partitions = {
            TopicPartition(topic, partition): OffsetSpec.earliest() if which == "earliest" else OffsetSpec.latest()
            for topic in _chosen(topics, pattern, found, logs_in=asking.logs_in)
            for partition in found[topic].partitions
        }
        if not partitions:
            return {}
        level = IsolationLevel.READ_COMMITTED if _reads_committed(connection) else IsolationLevel.READ_UNCOMMITTED
        futures = asking.client.list_offsets(
            partitions, isolation_level=level, request_timeout=max(0.001, asking.left())
        )
        offsets: Offsets = {}
        for partition, future in futures.items():
            answer = future.result(timeout=asking.left())
            offsets.setdefault(partition.topic, {})[partition.partition] = answer.offset
        return _sorted(offsets)


def read_topic_ids(
    connection: KafkaConnection,
    secrets: Secrets,
    topics: Sequence[str],
    *,
    pattern: str | None = None,
    timeout: float = 10.0,
) -> dict[str, str]:
    """Return the ids of ``topics``, and of those that ``pattern`` matches: one that is made again has another.

    Brokers before Kafka 2.8 know none: their topics are left out. Raises what ``read_offsets`` does, and
    PipelineExecutionError for a topic that is not there.
    """
    from confluent_kafka import TopicCollection

    with _asking(connection, secrets, timeout) as asking:
        wanted = set(topics)
        if pattern is not None:
            there = asking.client.list_topics(timeout=asking.left()).topics
            wanted.update(_chosen((), pattern, there, logs_in=asking.logs_in))
        futures = asking.client.describe_topics(
            TopicCollection(sorted(wanted)), request_timeout=max(0.001, asking.left())
        )
        found = {topic: future.result(timeout=asking.left()).topic_id for topic, future in futures.items()}
    return {
        topic: str(topic_id)
        for topic, topic_id in sorted(found.items())
        if topic_id.get_most_significant_bits() or topic_id.get_least_significant_bits()
    }


@dataclass(frozen=True)
class _Asking:
    """A client of the brokers, for as long as there is time. ``logs_in``: whether it is somebody to them."""

    client: AdminClient
    deadline: float
    logs_in: bool

    def left(self) -> float:
        """Return how many seconds are left."""
        return max(0.0, self.deadline - time.monotonic())


@contextmanager
def _asking(
    connection: KafkaConnection, secrets: Secrets, timeout: float, settings: Mapping[str, Any] | None = None
) -> Iterator[_Asking]:
    """Give a client, and turn what it raises inside into this package's errors."""
    from confluent_kafka import KafkaException

    if settings is None:
        settings = client_settings(connection, secrets)
    deadline = time.monotonic() + timeout
    reasons: list[str] = []
    codes: list[int] = []

    def heard(error: Any) -> None:
        reasons.append(error.str())
        codes.append(error.code())

    client = _client(connection, settings, heard)
    try:
        yield _Asking(client, deadline, logs_in="security.protocol" in settings)
    except (KafkaException, TimeoutError) as error:
        client.poll(0)  # hands over to error_cb what has happened
        raise _answer_error(error, connection, reasons, codes, timeout) from None


def _client(connection: KafkaConnection, settings: Mapping[str, Any], heard: Callable[[Any], None]) -> AdminClient:
    """Return a client that tells ``heard`` of its errors. Raises ConfigurationError for what it does not take."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        return AdminClient(
            {
                "bootstrap.servers": connection.bootstrap_servers,
                **settings,
                # A broker may make the topics that it is asked for by name.
                "allow.auto.create.topics": False,
                "error_cb": heard,
            },
            logger=_logger(),  # without one, librdkafka writes to stderr
        )
    except KafkaException as error:
        # Not chained: librdkafka may show the value.
        said = error.args[0].str()
        for secret in SECRET_SETTINGS & settings.keys():
            said = said.replace(settings[secret] or "\0", "***")
        raise ConfigurationError(f"the Kafka client does not take the options in connections.json: {said}") from None


def _answer_error(
    error: Exception, connection: KafkaConnection, reasons: Sequence[str], codes: Sequence[int], timeout: float
) -> PipelineError:
    """Return what ``error`` means: an answer of the brokers, or none within ``timeout`` seconds.

    ``reasons`` and ``codes`` are those of the errors that the client has told of until then.
    """
    from confluent_kafka import KafkaException

    if isinstance(error, KafkaException):
        said = error.args[0].str()
        reasons = [*reasons, said]
        if error.args[0].code() > 0:  # said by the broker; librdkafka's own are negative
            return execution_error(
                f"Kafka at {connection.bootstrap_servers} answers: {said}: see to what its user may do there",
                transience_of(error),
            )
    if _AUTHENTICATION in codes:
        return CredentialError(
            f"Kafka at {connection.bootstrap_servers} refused the login: {reasons[codes.index(_AUTHENTICATION)]}; "
            "check the user and the password that the connection's options refer to"
        )
    reason = reasons[0] if reasons else "no answer"
    # It may be there, and too far away for the time of a sensor.
    patience = "" if reasons else "; a sensor waits longer with a larger 'brokerTimeout'"
    return execution_error(
        f"no Kafka broker at {connection.bootstrap_servers} answered within {round(timeout, 1):g} s ({reason}): "
        f"start it, or correct the connection in connections.json{patience}",
        None if _NEVER & set(codes) else transience_of(error),
    )


def offsets_json(offsets: Offsets) -> str:
    """Return ``offsets`` as Spark's Kafka source takes and prints them."""
    return json.dumps(_sorted(offsets), separators=(",", ":"))


def parse_offsets(text: str) -> Offsets:
    """Return the offsets that Spark's Kafka source printed. Raises PipelineExecutionError when ``text`` is none."""
    try:
        found = json.loads(text)
        return {
            str(topic): {int(partition): int(offset) for partition, offset in partitions.items()}
            for topic, partitions in found.items()
        }
    except (ValueError, TypeError, AttributeError):
        raise PipelineExecutionError(f"these are not the offsets of a Kafka source: {text[:200]}") from None


def lag(end: Offsets, processed: Offsets) -> Offsets:
    """Return how many records are to come, by partition of ``end``: from 0 on where ``processed`` does not have it."""
    return {
        topic: {
            partition: max(0, last - processed.get(topic, {}).get(partition, 0))
            for partition, last in partitions.items()
        }
        for topic, partitions in end.items()
    }


def _sorted(offsets: Offsets) -> Offsets:
    return {topic: dict(sorted(partitions.items())) for topic, partitions in sorted(offsets.items())}


def _logger() -> logging.Logger:
    """Return the logger for what librdkafka says; the error that matters is raised, so only for those who ask."""
    logger = logging.getLogger(f"{__name__}.librdkafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    return logger


def _chosen(topics: Sequence[str], pattern: str | None, there: Iterable[str], *, logs_in: bool) -> list[str]:
    """Return the topics that are asked for, out of those that are there."""
    known = sorted(set(there) - _INTERNAL_TOPICS)
    for topic in topics:
        if topic not in known:
            listed = ", ".join(known[:_LISTED_TOPICS]) + (", ..." if len(known) > _LISTED_TOPICS else "")
            # A broker does not tell a user of what they may not see.
            hidden = ", or have the connection's user be allowed to see it" if logs_in else ""
            raise ConfigurationError(
                f"there is no Kafka topic {topic!r}{did_you_mean(topic, known)}: "
                f"make it, or correct its name{hidden} (topics there: {listed or 'none'})"
            )
    if pattern is None:
        return list(dict.fromkeys(topics))
    try:
        matches = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"topicPattern {pattern!r} is no regular expression: {error}") from None
    return list(dict.fromkeys([*topics, *(topic for topic in known if matches.fullmatch(topic))]))


def _reads_committed(connection: KafkaConnection) -> bool:
    names = ("isolation.level", "kafka.isolation.level")
    return any(connection.options.get(name) == "read_committed" for name in names)
