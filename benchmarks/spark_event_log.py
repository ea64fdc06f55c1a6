"""What Spark did, counted from the event log that Spark itself writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SQL = "org.apache.spark.sql.execution.ui.SparkListenerSQL"
# Leaves of a plan that read nothing.
_NO_SCANS = ("Scan OneRowRelation",)


def event_log_conf(folder: Path) -> dict[str, str]:
    """Return the Spark conf that makes Spark write one plain event log into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": folder.as_uri(),
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.compress": "false",
    }


@dataclass(frozen=True)
class SparkWork:
    """The Spark jobs of an application, and the scans and shuffles in the plans that they ran.

    ``rows_read``: rows that tasks took from outside (tables, files, what is cached). ``memory``: what the driver's heap
    has for data, in bytes. The dictionaries say how often what was run.
    """

    jobs: int
    stages: int
    tasks: int
    scans: int
    shuffles: int
    broadcasts: int
    rows_read: int
    memory: int
    job_calls: dict[str, int]
    scanned: dict[str, int]


def read_event_log(folder: Path) -> SparkWork:
    """Count the one event log in ``folder``."""
    plans: dict[int, dict[str, Any]] = {}
    executions_with_jobs: set[int] = set()
    calls: Counter[str] = Counter()
    stages = tasks = rows = memory = 0
    for event in read_events(folder):
        match event["Event"]:
            case "SparkListenerBlockManagerAdded":
                memory = event["Maximum Memory"]
            case "SparkListenerJobStart":
                properties = event.get("Properties", {})
                if execution := properties.get("spark.sql.execution.id"):
                    executions_with_jobs.add(int(execution))
                described = properties.get("spark.job.description") or properties.get("callSite.short") or "?"
                calls[" ".join(described.split())] += 1
            case "SparkListenerStageCompleted":
                stages += 1
            case "SparkListenerTaskEnd":
                tasks += 1
                metrics = event.get("Task Metrics") or {}
                rows += metrics.get("Input Metrics", {}).get("Records Read", 0)
            case name if name in (f"{_SQL}ExecutionStart", f"{_SQL}AdaptiveExecutionUpdate"):
                plans[event["executionId"]] = event["sparkPlanInfo"]
    nodes = Counter(
        node for execution, plan in plans.items() if execution in executions_with_jobs for node in _nodes(plan)
    )
    scanned = {
        name: count
        for name, count in nodes.items()
        if name.startswith(("Scan ", "BatchScan")) and not name.startswith(_NO_SCANS)
    }
    return SparkWork(
        jobs=calls.total(),
        stages=stages,
        tasks=tasks,
        scans=sum(scanned.values()),
        shuffles=nodes["Exchange"],
        broadcasts=nodes["BroadcastExchange"],
        rows_read=rows,
        memory=memory,
        job_calls=dict(calls),
        scanned=scanned,
    )


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what is in the one event log in ``folder``."""
    (log,) = (path for path in folder.iterdir() if path.is_file())
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["nodeName"].strip()
    for child in plan["children"]:
        yield from _nodes(child)
