"""What the streaming pipeline of this benchmark does, as a bare PySpark script: the measure of what this project adds.

``python bare_stream.py CONF TABLE CHECKPOINT``: a JSON file with Spark's conf, and where the Delta table and the
checkpoint go. It finds the broker by KAFKA_BOOTSTRAP_SERVERS.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

TOPIC = "events"
SCHEMA = "id BIGINT, event_type STRING, user_id STRING, amount DOUBLE"
MAX_OFFSETS_PER_TRIGGER = "1000000"
CONDITION = "event_type = 'purchase'"


def main(conf_file: str, table: str, checkpoint: str) -> None:
    """Read what is in the topic, parse and filter it, and append it to a Delta table."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F  # noqa: N812

    builder = SparkSession.builder
    for key, value in json.loads(Path(conf_file).read_text(encoding="utf-8")).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    records = (
        spark.readStream.format("kafka")
        .options(
            **{
                "kafka.bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
                "subscribe": TOPIC,
                "startingOffsets": "earliest",
                "maxOffsetsPerTrigger": MAX_OFFSETS_PER_TRIGGER,
            }
        )
        .load()
    )
    events = records.select(F.from_json(F.col("value").cast("string"), SCHEMA).alias("event")).select("event.*")
    query = (
        events.where(CONDITION)
        .writeStream.format("delta")
        .outputMode("append")
        .option("checkpointLocation", checkpoint)
        .trigger(availableNow=True)
        .start(table)
    )
    query.awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
