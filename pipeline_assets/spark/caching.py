"""What a run keeps in memory or on disk, by DataFrame name."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline_assets.partitions import sql_string
from pipeline_assets.spark.temporary_conf import temporary_conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.storagelevel import StorageLevel

    from pipeline_assets.spark.storage_levels import StorageLevelName

_log = logging.getLogger(__name__)

# Spark's own levels: use disk, use memory, use off-heap memory, keep deserialized, replication. They are
# written out because PySpark has no *_SER constants, and because its MEMORY_ONLY is Spark's MEMORY_ONLY_SER.
_LEVELS: dict[StorageLevelName, tuple[bool, bool, bool, bool, int]] = {
    "NONE": (False, False, False, False, 1),
    "DISK_ONLY": (True, False, False, False, 1),
    "DISK_ONLY_2": (True, False, False, False, 2),
    "DISK_ONLY_3": (True, False, False, False, 3),
    "MEMORY_ONLY": (False, True, False, True, 1),
    "MEMORY_ONLY_2": (False, True, False, True, 2),
    "MEMORY_ONLY_SER": (False, True, False, False, 1),
    "MEMORY_ONLY_SER_2": (False, True, False, False, 2),
    "MEMORY_AND_DISK": (True, True, False, True, 1),
    "MEMORY_AND_DISK_2": (True, True, False, True, 2),
    "MEMORY_AND_DISK_SER": (True, True, False, False, 1),
    "MEMORY_AND_DISK_SER_2": (True, True, False, False, 2),
    "OFF_HEAP": (True, True, True, False, 1),
}

# In Spark's text of a plan: the run and the pipeline of a step that reads a source.
READER = r"isnotnull\(([\w-]+):(\w+)/"
_ADAPTIVE = {"spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true"}


def storage_level(name: StorageLevelName) -> StorageLevel:
    """Return Spark's storage level called ``name``."""
    from pyspark.storagelevel import StorageLevel

    return StorageLevel(*_LEVELS[name])


def reader_of(run_id: str, pipeline: str, step: str) -> str:
    """Return how ``read_by`` calls a step of a run; ``READER`` finds run and pipeline in it."""
    return f"{run_id}:{pipeline}/{step}"


def read_by(reader: str, frame: DataFrame) -> DataFrame:
    """Return ``frame``, which reads a source, such that no other ``reader`` has the same: no rows are left out.

    All sessions of a Spark share what is cached, and a plan that looks the same takes it, however old it is: of another
    run at the same time, of one that was killed, or of a step that has read before others wrote. The condition is
    always true, and is not in the plan that Spark carries out.
    https://spark.apache.org/docs/latest/api/java/org/apache/spark/sql/Dataset.html#persist()
    """
    # As text: PySpark's functions would take 80 MB.
    return frame.where(f"{sql_string(reader)} IS NOT NULL")


@dataclass(frozen=True)
class CachedDataFrame:
    """One cached DataFrame.

    Sizes are those of now: 0 before an action has computed the data, None where Spark does not tell them
    (over Spark Connect).
    """

    name: str
    level: StorageLevelName
    memory_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass
class DataFrameCache:
    """The DataFrames that one run has asked Spark to keep."""

    _cached: dict[str, tuple[DataFrame, StorageLevelName]] = field(default_factory=dict)
    _by_decision: set[str] = field(default_factory=set)

    def cache(
        self,
        name: str,
        frame: DataFrame,
        level: StorageLevelName = "MEMORY_AND_DISK",
        *,
        adaptive: bool = False,
        by_decision: bool = False,
    ) -> DataFrame:
        """Have Spark keep ``frame`` once an action has computed it, and return it.

        The same again changes nothing; another level, or another DataFrame under the name, replaces what is
        kept. ``NONE`` keeps nothing. ``adaptive``: with as few partitions as adaptive execution finds enough. Spark
        keeps those of the plan otherwise, 200 of a few rows too, since a later shuffle by the same columns may be
        spared for them: https://spark.apache.org/docs/latest/configuration.html
        ``by_decision``: no step has said so, and ``uncache_all`` leaves it.
        """
        wanted = storage_level(level)
        kept = frame.storageLevel
        if kept != wanted:
            if name in self._cached:
                self._unpersist(name, blocking=True)
            # Spark ignores another level for what it keeps already, by whatever name.
            if keeps(kept):
                frame.unpersist(blocking=True)
            if level != "NONE":
                with temporary_conf(frame.sparkSession, _ADAPTIVE if adaptive else {}):
                    frame.persist(wanted)
        if level != "NONE":
            self._cached[name] = (frame, level)
            if by_decision:
                self._by_decision.add(name)
        return frame

    def uncache(self, name: str) -> None:
        """Let go of the DataFrame called ``name``, if it is kept here.

        It need not be: another run, or another process of this one, may have run the step that caches it.
        """
        if name in self._cached:
            self._unpersist(name)

    def uncache_all(self) -> None:
        """Let go of every DataFrame that steps of this run have cached."""
        for name in self._cached.keys() - self._by_decision:
            self._unpersist(name)

    def take_over(self, name: str, frame: DataFrame) -> None:
        """Know ``frame`` by ``name``, if Spark keeps it since another process of the run has asked for it."""
        level = frame.storageLevel
        if name not in self._cached and keeps(level):
            self._cached[name] = (frame, next(each for each in _LEVELS if storage_level(each) == level))

    def release(self, *, but: Collection[str] = ()) -> None:
        """Let go of everything at the end, ``but`` what other processes of the run go on with.

        Never raises: Spark may be gone already.
        """
        for name in self._cached.keys() - set(but):
            try:
                self._unpersist(name)
            except Exception as error:  # noqa: BLE001  (a run must be able to end when its Spark has)
                _log.debug("DataFrame %s was not released: %s", name, type(error).__name__)

    def cached(self) -> tuple[CachedDataFrame, ...]:
        """Return what is cached now, in the order it was asked for, with sizes where Spark tells them."""
        return tuple(CachedDataFrame(name, level, *_sizes(frame)) for name, (frame, level) in self._cached.items())

    def _unpersist(self, name: str, *, blocking: bool = False) -> None:
        frame, _ = self._cached.pop(name)
        self._by_decision.discard(name)
        frame.unpersist(blocking=blocking)


def keeps(level: StorageLevel) -> bool:
    """Whether Spark keeps a DataFrame of that level at all."""
    return level.useDisk or level.useMemory or level.useOffHeap


def _sizes(frame: Any) -> tuple[int | None, int | None]:
    from pyspark.sql.classic.dataframe import DataFrame as ClassicDataFrame

    if not isinstance(frame, ClassicDataFrame):
        return None, None
    # PySpark has no way to ask; the JVM knows the cached RDD by the name that the cached plan gave it.
    spark: Any = frame.sparkSession
    data = spark._jsparkSession.sharedState().cacheManager().lookupCachedData(frame._jdf)
    if data.isDefined():
        cached_name = data.get().cachedRepresentation().cacheBuilder().cachedName()
        for info in spark.sparkContext._jsc.sc().getRDDStorageInfo():
            if info.name() == cached_name:
                return info.memSize(), info.diskSize()
    return 0, 0
