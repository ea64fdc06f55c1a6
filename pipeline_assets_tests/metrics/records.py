"""Records as runs make them."""

from __future__ import annotations

from typing import Any

from pipeline_assets.metrics.records import MetricsRecord


def record(**says: Any) -> MetricsRecord:
    """Return an ``asset`` record of orders/load, with what ``says`` changes."""
    return MetricsRecord(**{"kind": "asset", "time": 1.0, "run_id": "r", "pipeline": "orders", "step": "load", **says})
