"""What Spark's jobs and stages have done: read from the driver's status store after them, with no job of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from heapq import nlargest
from typing import Any

_LISTENERS_SECONDS = 10.0
# How Delta names the jobs by which it reads its own log.
_DELTA_DESCRIPTION = "Delta: "
_DELTA_NAME = "DatabricksLogging.scala"
# How it names the state of a table that it has cached.
_DELTA_STATE = "Delta Table State"
_CACHE_SCAN = "InMemoryTableScan"
# How Spark Connect names all stages of a request, with the text of the request behind it.
_CONNECT_NAME = "Spark Connect - "
STAGES_KEPT = 20


@dataclass(frozen=True)
class JobMetrics:
    """Sums over Spark's jobs, by Spark's own task metrics, with the names that they are shown by.

    ``spark_seconds``: how long at least one of them ran. ``bytes_read`` are those of sources and caches, ``rows_read``
    those of sources, by stages that read no cache; both without Delta's reading of its own log. ``peak_memory_bytes``
    is the largest execution memory of a stage's tasks.

    Source: https://spark.apache.org/docs/latest/monitoring.html#executor-task-metrics
    """

    spark_seconds: float = 0.0
    spark_task_seconds: float = 0.0
    spark_jobs: int = 0
    spark_stages: int = 0
    spark_tasks: int = 0
    rows_read: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    shuffle_read_bytes: int = 0
    shuffle_write_bytes: int = 0
    memory_spilled_bytes: int = 0
    disk_spilled_bytes: int = 0
    peak_memory_bytes: int = 0

    def plus(self, other: JobMetrics) -> JobMetrics:
        """Return the metrics of both, of which the second ran after the first."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        sums["peak_memory_bytes"] = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return JobMetrics(**sums)


WORK_NUMBERS = frozenset(field.name for field in fields(JobMetrics))
"""The metadata that tell what Spark jobs did."""


@dataclass(frozen=True)
class StageTime:
    """What one of Spark's stages took, by the numbers of its last attempt; ``start`` is in seconds since 1970.

    ``what``: the action that it is of, where Spark names one, and the operators in it, as in the physical plan
    (``WholeStageCodegen (2)`` is ``codegen id : 2`` there).
    """

    stage: int
    what: str
    start: float
    seconds: float
    tasks: int
    rows_read: int = 0
    bytes_read: int = 0
    shuffle_read_bytes: int = 0
    shuffle_write_bytes: int = 0
    spilled_bytes: int = 0


def longest(stages: Iterable[StageTime]) -> tuple[StageTime, ...]:
    """Return the STAGES_KEPT longest of ``stages``, the longest first."""
    return tuple(nlargest(STAGES_KEPT, stages, key=lambda stage: stage.seconds))


def work_of_jobs(
    core: Any, tag: str, listeners_seconds: float = _LISTENERS_SECONDS
) -> tuple[JobMetrics, tuple[StageTime, ...]]:
    """Return what the jobs with ``tag`` have done in ``core``, the JVM's SparkContext, and the longest of their stages.

    Raises Py4JError when Spark does not tell, in that time either.
    """
    # The store hears of the end of a job by an event, which may come after the action's return.
    core.listenerBus().waitUntilEmpty(int(listeners_seconds * 1000))
    store = core.statusStore()
    jobs = [store.job(number) for number in core.statusTracker().getJobIdsForTag(tag)]
    own: set[int] = set()
    deltas: set[int] = set()
    for job in jobs:
        stages = job.stageIds()
        numbers = [stages.apply(index) for index in range(stages.size())]
        (deltas if _is_deltas_own(store, job, numbers) else own).update(numbers)
    found = [(number in own, store.lastStageAttempt(number)) for number in sorted(own | deltas)]
    ran = [(is_own, stage) for is_own, stage in found if stage.status().name() not in ("SKIPPED", "PENDING")]
    sums = JobMetrics(
        spark_jobs=len(jobs),
        spark_stages=len(ran),
        spark_tasks=sum(stage.numCompleteTasks() for _, stage in ran),
        spark_seconds=_seconds_covered(_interval(job) for job in jobs),
        spark_task_seconds=sum(stage.executorRunTime() for _, stage in ran) / 1000,
        rows_read=sum(_rows_read(store, stage) for is_own, stage in ran if is_own),
        bytes_read=sum(stage.inputBytes() for is_own, stage in ran if is_own),
        bytes_written=sum(stage.outputBytes() for _, stage in ran),
        shuffle_read_bytes=sum(stage.shuffleReadBytes() for _, stage in ran),
        shuffle_write_bytes=sum(stage.shuffleWriteBytes() for _, stage in ran),
        memory_spilled_bytes=sum(stage.memoryBytesSpilled() for _, stage in ran),
        disk_spilled_bytes=sum(stage.diskBytesSpilled() for _, stage in ran),
        peak_memory_bytes=max((stage.peakExecutionMemory() for _, stage in ran), default=0),
    )
    timed = [(_interval(stage), is_own, stage) for is_own, stage in ran]
    kept = nlargest(STAGES_KEPT, timed, key=lambda entry: entry[0][1] - entry[0][0])
    return sums, tuple(_stage_time(store, stage, interval, is_own) for interval, is_own, stage in kept)


def _stage_time(store: Any, stage: Any, interval: tuple[int, int], is_own: bool) -> StageTime:
    number = stage.stageId()
    return StageTime(
        stage=number,
        what=_what(store, stage) if is_own else "Delta reads its log",
        start=interval[0] / 1000,
        seconds=(interval[1] - interval[0]) / 1000,
        tasks=stage.numCompleteTasks(),
        rows_read=_rows_read(store, stage),
        bytes_read=stage.inputBytes(),
        shuffle_read_bytes=stage.shuffleReadBytes(),
        shuffle_write_bytes=stage.shuffleWriteBytes(),
        spilled_bytes=stage.diskBytesSpilled(),
    )


def _rows_read(store: Any, stage: Any) -> int:
    rows: int = stage.inputRecords()
    # Of a cache Spark counts batches, each of thousands of rows.
    return 0 if rows and _CACHE_SCAN in _operators(store, stage.stageId()) else rows


def _what(store: Any, stage: Any) -> str:
    told = " → ".join(_operators(store, stage.stageId()))
    # Where another thread has started the job, Spark names a closure of its own as the action.
    action = stage.name().partition(" at ")[0]
    return told if action.startswith(("$", _CONNECT_NAME)) else f"{action}: {told}" if told else action


def _operators(store: Any, stage: int) -> list[str]:
    operators = store.operationGraphForStage(stage).rootCluster().childClusters()
    return list(dict.fromkeys(operators.apply(index).name().strip() for index in range(operators.size())))


def _is_deltas_own(store: Any, job: Any, stages: Iterable[int]) -> bool:
    description = job.description()
    told = description.get() if description.isDefined() else ""
    if told.startswith(_DELTA_DESCRIPTION) or _DELTA_NAME in job.name():
        return True
    # Over Connect a job has the name of its request, whoever has started it.
    return job.name().startswith(_CONNECT_NAME) and any(
        _DELTA_STATE in name for stage in stages for name in _operators(store, stage)
    )


def _interval(job_or_stage: Any) -> tuple[int, int]:
    start, end = job_or_stage.submissionTime(), job_or_stage.completionTime()
    if not start.isDefined() or not end.isDefined():
        return 0, 0
    return start.get().getTime(), end.get().getTime()


def _seconds_covered(intervals: Iterable[tuple[int, int]]) -> float:
    """Return how long at least one of the intervals, in milliseconds, lasts."""
    total = until = 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total / 1000
