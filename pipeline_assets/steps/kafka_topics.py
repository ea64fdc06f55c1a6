"""The topics that an extract from Kafka reads, from where to where, and how their brokers are asked."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.base import Dataset, ExtractMethod, StepContext
from pipeline_assets.steps.kafka_offsets import Offsets, offsets_json, read_offsets
from pipeline_assets.steps.kafka_options import check_kafka_options, kafka_dataset, kafka_options, with_options
from pipeline_assets.steps.kafka_ranges import EARLIEST, LATEST, or_earliest
from pipeline_assets.steps.paths import OptionValue, option_texts

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from pipeline_assets.connections import Connections, KafkaConnection

# Options of Spark's source that say the same as a key of the config, or override what is made of it.
_TAKEN = {
    name.casefold(): key
    for name, key in {
        "subscribe": "topic",
        "assign": "topic",
        "subscribePattern": "topicPattern",
        "startingOffsets": "startingOffsets",
        "startingTimestamp": "startingOffsets",
        "startingOffsetsByTimestamp": "startingOffsets",
        "endingOffsets": "endingOffsets",
        "endingTimestamp": "endingOffsets",
        "endingOffsetsByTimestamp": "endingOffsets",
        "maxOffsetsPerTrigger": "maxOffsetsPerTrigger",
        "failOnDataLoss": "failOnDataLoss",
        "kafka.bootstrap.servers": "connection",
    }.items()
}

# After the records that it was asked for, Spark asks the broker where the topic ends, behind a fetch of more that the
# Kafka client has sent ahead: that waits for records that are not there. By Kafka's own default, of 500 ms, no
# micro-batch at the end of a topic is done before half a second is over.
_FETCH_WAIT_MILLISECONDS = "50"

Partition = Annotated[int, Field(ge=0)]


class KafkaTopics(ExtractMethod):
    """What of Kafka is read, whatever is in the records."""

    kinds = frozenset({"spark", "kafka"})
    connection_kind = "kafka"

    topic: str | None = Field(default=None, min_length=1)
    """The topic to read."""
    topics: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Several topics to read together."""
    topic_pattern: str | None = Field(default=None, min_length=1)
    """Regular expression for the whole names of the topics to read."""
    connection: str = "default"
    """Kafka connection (from connections.json)."""
    starting_offsets: Literal["earliest", "latest"] | dict[str, dict[Partition, int]] | None = None
    """`earliest`, `latest`, or the first offset to read by topic and partition, such as `{"events": {"0": 42}}`, where
    -2 stands for the earliest and -1 for the latest. When left out: earliest in a batch pipeline, latest in a streaming
    one, where it holds for the first start."""
    ending_offsets: Literal["latest"] | dict[str, dict[Partition, int]] | None = None
    """Where a batch ends: `latest` (when left out), or the offset after the last one by topic and partition (-1 stands
    for the latest). Not for streaming."""
    max_offsets_per_trigger: int | None = Field(default=None, gt=0)
    """At most this many records in each micro-batch of a streaming pipeline."""
    fail_on_data_loss: bool = True
    """Fail when records that were to be read are no longer there, by retention or because the topic was made anew;
    with false, go on with what there is."""
    missing_topic: Literal["fail", "wait"] = "fail"
    """A topic that is not there: `fail`, or, in a streaming pipeline, `wait` until it is there; all of it is read."""
    options: Annotated[dict[str, OptionValue], AfterValidator(check_kafka_options)] = {}
    """Further options of Spark's Kafka source, e.g. `minPartitions`. Those of the Kafka client, such as
    `kafka.isolation.level`, go before the connection's; `kafka.fetch.max.wait.ms` is 50 where neither says it."""

    @model_validator(mode="after")
    def _topics_and_offsets(self) -> Self:
        given = [name for name in ("topic", "topics", "topic_pattern") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("give exactly one of 'topic', 'topics' and 'topicPattern'")
        for option in self.options:
            if key := _TAKEN.get(option.casefold()):
                raise ValueError(f"option {option!r}: use the key {key!r} of this step")
            if option.casefold() == "includeheaders":
                raise ValueError(f"option {option!r}: no column is made of the records' headers here: leave it out")
        self._check_offsets("startingOffsets", self.starting_offsets, least=EARLIEST)
        self._check_offsets("endingOffsets", self.ending_offsets, least=LATEST)
        return self

    def _check_offsets(self, key: str, offsets: str | Offsets | None, least: int) -> None:
        if offsets is None or isinstance(offsets, str):
            return
        for topic, partitions in offsets.items():
            if not self.topic_pattern and topic not in self.topic_names():
                raise ValueError(
                    f"{key} names topic {topic!r}, which is not read here: {', '.join(self.topic_names())}"
                )
            for partition, offset in partitions.items():
                if offset < least:
                    also = "-1 for the latest" + (" or -2 for the earliest" if least == EARLIEST else "")
                    raise ValueError(
                        f"{key} of topic {topic!r}, partition {partition} is {offset}: expected an offset, or {also}"
                    )

    def topic_names(self) -> tuple[str, ...]:
        """Return the topics that are named; none when they are given by pattern."""
        return (self.topic,) if self.topic else self.topics

    def subscribes(self, topic: str) -> bool:
        """Whether this reads the topic of that name."""
        if self.topic_pattern:
            return re.fullmatch(self.topic_pattern, topic) is not None
        return topic in self.topic_names()

    def sources(self) -> tuple[Dataset, ...]:
        names = (self.topic_pattern,) if self.topic_pattern else self.topic_names()
        return tuple(kafka_dataset(self.connection, name) for name in names)

    def stream_identity(self) -> dict[str, str]:
        if self.topic_pattern:
            return {"topicPattern": self.topic_pattern, "connection": self.connection}
        if self.topic:
            return {"topic": self.topic, "connection": self.connection}
        return {"topics": ",".join(sorted(self.topics)), "connection": self.connection}

    def batch_problem(self) -> str | None:
        if self.missing_topic == "wait":
            return "missingTopic 'wait' is for streaming pipelines: leave it out"
        if self.starting_offsets == "latest":
            return "startingOffsets 'latest' is where a batch ends: use 'earliest', or offsets by topic and partition"
        return super().batch_problem()

    def kafka(self, connections: Connections) -> KafkaConnection:
        """Return the connection that everything here is asked by, with what the step itself says to the client."""
        return with_options(connections.kafka(self.connection), option_texts(self.options))

    def reader_options(self, context: StepContext) -> dict[str, str]:
        """Return the options of Spark's Kafka source that hold for batches and streams alike."""
        return {
            "kafka.fetch.max.wait.ms": _FETCH_WAIT_MILLISECONDS,
            **option_texts(self.options),
            **kafka_options(self.kafka(context.connections), context.connections.secrets),
            "failOnDataLoss": str(self.fail_on_data_loss).lower(),
        }

    def described(self) -> str:
        """Return what an error calls the topics."""
        if self.topic_pattern:
            return f"topics like {self.topic_pattern!r}"
        return f"topic{'s' if self.topics else ''} {', '.join(map(repr, self.topic_names()))}"

    def offsets(self, context: StepContext, which: Literal["earliest", "latest"]) -> Offsets:
        """Return the offsets of all partitions. Raises ConfigurationError for a topic that is not there."""
        found = read_offsets(
            self.kafka(context.connections),
            context.connections.secrets,
            topics=self.topic_names(),
            pattern=self.topic_pattern,
            which=which,
        )
        if not found:
            raise ConfigurationError(
                f"there is no Kafka topic like {self.topic_pattern!r}: make one, or correct 'topicPattern'"
            )
        return found

    def records(self, context: StepContext, start: Offsets, end: Offsets, **options: str) -> DataFrame:
        """Return the records, as Spark has them, of the partitions that ``end`` has, up to there."""
        bounds = {
            "assign": json.dumps({topic: sorted(partitions) for topic, partitions in end.items()}),
            "startingOffsets": offsets_json(or_earliest(start, end)),
            "endingOffsets": offsets_json(end),
        }
        reader = context.spark.read.format("kafka").options(**self.reader_options(context))
        return reader.options(**bounds, **options).load()
