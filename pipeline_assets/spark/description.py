"""What can be said about a DataFrame without moving its data, and a look at its first rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pipeline_assets.redaction import redact, redact_field
from pipeline_assets.spark.caching import keeps
from pipeline_assets.spark.plan_tree import PlanNode, explain_text, parse_tree

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class Column:
    """One column; ``type`` is Spark's simple string (``bigint``, ``array<string>``)."""

    name: str
    type: str
    nullable: bool
    comment: str | None = None


@dataclass(frozen=True)
class FrameDescription:
    """Schema, physical plan and partitioning of a DataFrame.

    ``partitions`` is None where only execution tells: file scans, and shuffles that adaptive execution may
    coalesce. ``storage_level`` is Spark's text for it (``Disk Memory Deserialized 1x Replicated``), None when
    the DataFrame is not cached.
    """

    columns: tuple[Column, ...]
    plan: str
    partitions: int | None
    storage_level: str | None


def describe(frame: DataFrame) -> FrameDescription:
    """Return schema, plan and partitioning of ``frame``. Runs no Spark job; secrets are masked."""
    plan = explain_text(frame, "formatted").strip()
    level = frame.storageLevel
    return FrameDescription(
        columns=columns_of(frame),
        plan=redact(plan),
        partitions=partitions_of(plan),
        storage_level=str(level) if keeps(level) else None,
    )


def columns_of(frame: DataFrame) -> tuple[Column, ...]:
    """Return the columns of ``frame``. Runs no Spark job."""
    return tuple(
        Column(
            name=field.name,
            type=field.dataType.simpleString(),
            nullable=field.nullable,
            comment=field.metadata.get("comment"),
        )
        for field in frame.schema.fields
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], width: int = 40) -> str:
    """Return ``rows`` as a Markdown table, values cut to ``width`` characters. Secrets are masked."""
    head = [_cell(redact(name), width) for name in columns]
    body = ([_cell(_shown(name, value), width) for name, value in zip(columns, row, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(columns), *body))


def _shown(column: str, value: Any) -> str:
    # Before it is cut: of half a secret no one can tell that it is one.
    if value is None:
        return "NULL"
    return redact_field(column, value.hex() if isinstance(value, bytes | bytearray) else str(value))


def _cell(text: str, width: int) -> str:
    text = " ".join(text.split())
    if len(text) > width:
        text = f"{text[: width - 1]}…"
    return text.replace("\\", "\\\\").replace("|", "\\|")


def partitions_of(plan: str) -> int | None:
    """Return the number of partitions that a formatted physical plan is sure to have, or None."""
    lines = plan.splitlines()
    start = lines.index("== Physical Plan ==") + 1 if "== Physical Plan ==" in lines else 0
    root = parse_tree(takewhile(str.strip, lines[start:]))
    details = dict(re.findall(r"^\((\d+)\) [^\n]*\n((?:[^\n]+\n?)*)", plan, re.MULTILINE))
    return None if root is None else _partitions(root, details, adaptive=False)


# Operators that leave the partitions of their one input as they are.
_NARROW = frozenset(
    {
        "AppendColumns",
        "ArrowEvalPython",
        "BatchEvalPython",
        "CollectMetrics",
        "ColumnarToRow",
        "DeserializeToObject",
        "Expand",
        "Filter",
        "FlatMapGroupsInPandas",
        "Generate",
        "HashAggregate",
        "InMemoryRelation",
        "InMemoryTableScan",
        "InputAdapter",
        "LocalLimit",
        "MapElements",
        "MapGroups",
        "MapInArrow",
        "MapInPandas",
        "MapPartitions",
        "ObjectHashAggregate",
        "Project",
        "ResultQueryStage",
        "RowToColumnar",
        "Sample",
        "SerializeFromObject",
        "ShuffleQueryStage",
        "Sort",
        "SortAggregate",
        "TableCacheQueryStage",
        "WholeStageCodegen",
        "Window",
        "WindowGroupLimit",
    }
)
_SINGLE = frozenset({"CollectLimit", "CollectTail", "TakeOrderedAndProject", "GlobalLimit"})


def _partitions(node: PlanNode, details: Mapping[str, str], adaptive: bool) -> int | None:
    below = [*node.children, *node.subqueries]
    arguments = _arguments(node, details)
    if node.text.startswith("AdaptiveSparkPlan"):
        return _partitions(below[0], details, "isFinalPlan=false" in arguments)
    if node.text.startswith("== "):
        return _partitions(below[0], details, adaptive=False)
    if node.name in _SINGLE:
        return 1
    if node.name == "Exchange":
        return _exchanged(arguments, adaptive)
    if node.name == "Coalesce":
        asked = int(arguments)
        available = _partitions(below[0], details, adaptive)
        return asked if asked == 1 else None if available is None else min(asked, available)
    if node.name == "Range":
        found = re.search(r"splits=Some\((\d+)\)", arguments)
        return int(found[1]) if found else None
    if node.name == "Scan" and (found := re.search(r"JDBCRelation.*\[numPartitions=(\d+)\]", node.text)):
        return int(found[1])
    if node.name in ("BroadcastHashJoin", "BroadcastNestedLoopJoin"):
        return _partitions(below[0 if "BuildRight" in node.text else 1], details, adaptive)
    if node.name in ("SortMergeJoin", "ShuffledHashJoin"):
        # Adaptive execution may broadcast one side, and keep the partitions of the other.
        left, right = (_partitions(side, details, adaptive) for side in below[:2])
        return left if left == right else None
    if node.name in _NARROW and below:
        return _partitions(below[0], details, adaptive)
    return None


def _arguments(node: PlanNode, details: Mapping[str, str]) -> str:
    numbers = re.findall(r"\((\d+)\)", node.text)
    block = details.get(numbers[-1], "") if numbers else ""
    found = re.search(r"^Arguments: (.*)$", block, re.MULTILINE)
    return found[1] if found else ""


def _exchanged(arguments: str, adaptive: bool) -> int | None:
    if arguments.startswith("SinglePartition"):
        return 1
    found = re.search(r"partitioning\((?:.*, )?(\d+)\), (\w+)", arguments, re.IGNORECASE)
    if found is None or (adaptive and found[2] != "REPARTITION_BY_NUM"):
        return None
    return int(found[1])
