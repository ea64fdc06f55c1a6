"""Config documents that tests start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CUSTOMER_360: dict[str, Any] = {
    "name": "customer-360",
    "mode": "batch",
    "steps": [
        {
            "type": "extract",
            "method": "fromPostgres",
            "config": {
                "table": "customers",
                "registerAs": "customers",
                "cache": True,
                "cacheStorageLevel": "MEMORY_AND_DISK",
            },
        },
        {
            "type": "extract",
            "method": "fromS3",
            "config": {"path": "s3a://data/orders/*.parquet", "registerAs": "orders"},
        },
        {
            "type": "transform",
            "method": "joinDataFrames",
            "config": {
                "inputDataFrames": ["customers", "orders"],
                "joinType": "inner",
                "leftKeys": ["id"],
                "rightKeys": ["customer_id"],
            },
        },
    ],
}

EVENT_STREAM: dict[str, Any] = {
    "name": "event-stream",
    "mode": "streaming",
    "steps": [
        {
            "type": "extract",
            "method": "fromKafka",
            "config": {"topic": "events", "startingOffsets": "latest", "maxOffsetsPerTrigger": "1000000"},
        },
        {"type": "transform", "method": "filterRows", "config": {"condition": "event_type = 'purchase'"}},
        {
            "type": "load",
            "method": "toDeltaLake",
            "config": {
                "path": "/data/purchases",
                "checkpointLocation": "/checkpoints/purchases",
                "outputMode": "append",
                "trigger": "5 seconds",
            },
        },
    ],
}

OPTIMIZED_AGGREGATION: dict[str, Any] = {
    "name": "optimized-aggregation",
    "mode": "batch",
    "steps": [
        {"type": "extract", "method": "fromS3", "config": {"path": "s3a://data/logs/*.json"}},
        {
            "type": "transform",
            "method": "repartitionByColumns",
            "config": {"columns": ["date", "region"], "numPartitions": 200},
        },
        {
            "type": "transform",
            "method": "aggregateData",
            "config": {
                "groupBy": ["date", "region"],
                "aggregations": {"total_events": "count(*)", "unique_users": "count(distinct user_id)"},
            },
        },
        {"type": "transform", "method": "coalesce", "config": {"numPartitions": 10}},
    ],
}


def extract_file(name: str, path: str, **config: Any) -> dict[str, Any]:
    """Return an extract step that reads ``path`` and registers ``name``."""
    return {"type": "extract", "method": "fromFile", "config": {"path": path, "registerAs": name, **config}}


def transform(method: str, **config: Any) -> dict[str, Any]:
    """Return a transform step."""
    return {"type": "transform", "method": method, "config": config}


def load(method: str, **config: Any) -> dict[str, Any]:
    """Return a load step."""
    return {"type": "load", "method": method, "config": config}


def batch(name: str, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a batch pipeline of ``steps``."""
    return {"name": name, "mode": "batch", "steps": list(steps), **more}


def write_config(folder: Path, document: Any, file: str | None = None) -> Path:
    """Write ``document`` to ``folder`` as ``<name>.json`` (or ``file``), and return its path."""
    path = folder / (file or f"{document['name']}.json")
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path
