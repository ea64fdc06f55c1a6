"""Valid configs that together use every method: what the fuzz of configs mutates."""

from __future__ import annotations

from typing import Any

from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    transform,
)


def _load(method: str, **config: Any) -> dict[str, Any]:
    return {"type": "load", "method": method, "config": config}


def _validate(method: str, **config: Any) -> dict[str, Any]:
    return {"type": "validate", "method": method, "config": config}


EVERY_TRANSFORM = batch(
    "every-transform",
    extract_file("rows", "/in/${DAY:-today}/*.json", schema="id BIGINT, day DATE", options={"multiLine": True}),
    transform("selectColumns", columns=["id", "day", "id * 2 AS double"], registerAs="selected"),
    transform("withColumns", columns={"year": "year(day)"}, cache=True, cacheStorageLevel="DISK_ONLY"),
    transform("sql", query="SELECT id, count(*) AS n FROM rows JOIN selected USING (id) GROUP BY id"),
    transform("union", inputDataFrames=["rows", "selected"], allowMissingColumns=True),
    transform("dropDuplicates", columns=["id"]),
    transform("repartition", numPartitions="4"),
    transform("cache", dataFrames=["rows"], storageLevel="MEMORY_ONLY"),
    transform("uncache", dataFrames=["rows"]),
    transform("uncacheAll"),
    {
        "type": "validate",
        "method": "expectations",
        "config": {"expectations": {"positive": "id > 0"}, "minRows": 1, "blocking": False},
    },
    _validate("notNull", columns=["id"], severity="warn"),
    _validate("unique", columns=["id"]),
    _validate("inRange", column="id", min=0, max=10),
    _validate("inSet", column="day", values=["2024-01-01"]),
    _validate("matches", column="day", pattern="^2024"),
    _validate("expression", condition="id > 0", onFailure="warn"),
    _validate("rowCount", min=1),
    _validate("freshness", column="day", maxAge="30 days"),
    _validate("referential", columns=["id"], references="rows"),
    _validate("schema", columns={"id": "BIGINT"}),
    _load("toPostgres", table="shop.target", mode="upsert", keys=["id"], batchSize=500),
    _load("toS3", path="s3a://data/out", format="parquet", partitionBy=["day"]),
    _load("toKafka", topic="out", keyColumn="id"),
    _load("toDeltaLake", path="/data/out", mode="overwrite", replaceWhere="day > '2024-01-01'"),
    description="All of it",
    owners=["team:data", "someone@example.org"],
    tags={"domain": "sales"},
    schedule={"cron": "0 2 * * *", "timezone": "Europe/Berlin"},
    automation="on_cron",
    retry={"maxRetries": 3, "delay": 1.5, "maxDelay": 60, "timeBudget": 600, "on": ["timeout", "conflict"]},
)

PARTITIONED = batch(
    "partitioned",
    {"type": "extract", "method": "fromDeltaLake", "name": "history", "config": {"path": "/data/history"}},
    transform("filterRows", condition="day = '${partition}' AND note <> '$${partition}'"),
    {
        "type": "extract",
        "method": "fromPostgres",
        "retry": {"maxRetries": 1},
        "config": {
            "query": "SELECT * FROM orders",
            "partitionColumn": "id",
            "numPartitions": 4,
            "registerAs": "orders",
        },
    },
    transform("joinDataFrames", inputDataFrames=["history", "orders"], joinType="left", condition="history.id = id"),
    partitions={"type": "daily", "start": "2024-01-01", "end": "2025-01-01", "timezone": "UTC"},
    schedule="0 3 * * 1-5",
)

STREAM = {
    "name": "clicks",
    "mode": "streaming",
    "sensor": {"status": "running", "maxRestarts": 3, "delay": 5, "maxDelay": 60.5, "interval": 30},
    "steps": [
        {
            "type": "extract",
            "method": "fromKafka",
            "config": {
                "topics": ["clicks", "views"],
                "schema": "id STRING, at TIMESTAMP",
                "startingOffsets": "earliest",
            },
        },
        transform("withWatermark", eventTime="at", delay="10 minutes"),
        transform("dropDuplicatesWithinWatermark", columns=["id"]),
        _load("toKafka", topic="out", checkpointLocation="/checkpoints/clicks", trigger="5 seconds"),
    ],
}

SEEDS: tuple[dict[str, Any], ...] = (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    EVERY_TRANSFORM,
    PARTITIONED,
    STREAM,
)
