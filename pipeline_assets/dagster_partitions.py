"""The partitions of a pipeline as Dagster has them."""

from __future__ import annotations

from typing import Any

import dagster as dg

from pipeline_assets.partitions import Partitions


def partitions_definition(partitions: Partitions | None) -> dg.PartitionsDefinition[str] | None:
    """Return Dagster's partitions definition for those of a config."""
    if partitions is None:
        return None
    if partitions.type == "static":
        return dg.StaticPartitionsDefinition(list(partitions.values))
    cls: Any = {
        "hourly": dg.HourlyPartitionsDefinition,
        "daily": dg.DailyPartitionsDefinition,
        "weekly": dg.WeeklyPartitionsDefinition,
        "monthly": dg.MonthlyPartitionsDefinition,
    }[partitions.type]
    found: dg.PartitionsDefinition[str] = cls(**partitions.window())
    return found
