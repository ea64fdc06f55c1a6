"""What a config leaves open is decided here: what is kept, what is read once, which writes are clustered.

Pure, from the plan alone: the same config is run the same way everywhere, and `pipeline-assets plan` can tell. Costs
are in reads of the same rows from Parquet. They only have to tell apart what is far apart: a join, or text to parse,
from a second look at a Parquet file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.spark.storage_levels import StorageLevelName
from pipeline_assets.steps.base import (
    CacheControlMethod,
    DataFrameMethod,
    ExtractMethod,
    LoadMethod,
    StepMethod,
    ValidateMethod,
)
from pipeline_assets.steps.extract_delta import FromDeltaLake
from pipeline_assets.steps.extract_files import FilesExtract
from pipeline_assets.steps.extract_postgres import FromPostgres
from pipeline_assets.steps.sql_names import chance_part, has_filter, has_groups, moves_rows
from pipeline_assets.steps.sql_texts import sql_texts
from pipeline_assets.steps.transform import (
    AggregateData,
    Cache,
    Coalesce,
    FilterRows,
    Repartition,
    RepartitionByColumns,
    SelectColumns,
    Sql,
    Union,
    WithColumns,
    WithWatermark,
)

_COLUMNAR = 1.0
_NARROW = 0.25
_SHUFFLED = 4.0
_PARSED = 5.0
_FETCHED = 6.0
# Making Spark's columns in memory, of all rows or of those of groups; and reading them.
_KEEPING = 3.0
_KEEPING_GROUPS = 0.5
_KEPT = 0.5
# A filter reads less of what is computed before it; how much less, no config tells.
_FILTERED = 0.5


@dataclass(frozen=True)
class Kept:
    """A DataFrame that is kept once it has been computed, until the ``readers``, steps that move data, are done."""

    readers: frozenset[int]
    reason: str


@dataclass(frozen=True)
class Optimizations:
    """What was decided for a pipeline, by step index.

    ``same``: the earlier extract whose DataFrame a step takes, since it reads the same. ``clustered``: the loads whose
    rows are brought together by the columns that the target is partitioned by. ``adaptive``: the DataFrames that, when
    they are kept, may have fewer partitions than Spark's plan says.
    """

    kept: dict[int, Kept]
    same: dict[int, int]
    clustered: frozenset[int]
    adaptive: frozenset[int]

    def told(self, plan: PipelinePlan, step: PlannedStep) -> str | None:
        """Return what was decided for ``step`` and why, as a sentence; None when nothing was."""
        if step.index in self.same:
            return f"not read again: it reads the same as {plan.steps[self.same[step.index]].name}"
        if step.index in self.kept:
            return self.kept[step.index].reason
        if step.index in self.clustered:
            columns = ", ".join(cast(LoadMethod, step.method).partition_columns)
            return f"rows are brought together by {columns} before they are written: few files a partition, not many"
        return None


def optimize(
    plan: PipelinePlan, selected: Collection[int] | None = None, *, in_one_process: bool = True
) -> Optimizations:
    """Decide for a run of the ``selected`` steps, or all, what the config of ``plan`` does not say.

    Nothing is decided for a stream, nor with ``"optimize": false``. Where each step has a process of its own, none of
    them knows when the last reader is done, and nothing is kept by decision.
    """
    if plan.is_streaming or not plan.pipeline.config.optimize:
        return Optimizations({}, {}, frozenset(), frozenset())
    # Once: to know what a query does it is parsed.
    own_costs = {step.index: _own_cost(step.method) for step in plan.steps}
    laid_out = _laid_out(plan, own_costs)
    adaptive = frozenset(step.index for step in plan.steps) - laid_out
    chosen = frozenset(range(len(plan.steps)) if selected is None else selected)
    clustered = frozenset(
        step.index
        for step in plan.steps
        if step.index in chosen
        and isinstance(step.method, LoadMethod)
        and step.method.partition_columns
        and step.inputs[0] in adaptive
    )
    if not in_one_process:
        return Optimizations({}, {}, clustered, adaptive)
    keeping = _Keeping(plan, chosen, own_costs)
    kept = keeping.decide()
    same = {index: first for index, first in keeping.same.items() if first in kept or first in keeping.kept_by_config}
    return Optimizations(kept, same, clustered, adaptive)


def kept_by_config(plan: PipelinePlan, selected: Collection[int]) -> frozenset[int]:
    """Return the DataFrames that the config of ``plan`` says to keep, in a run of the ``selected`` steps."""
    return frozenset(index for index, level in _levels_by_config(plan, selected) if level != "NONE")


def _levels_by_config(plan: PipelinePlan, selected: Collection[int]) -> Iterator[tuple[int, StorageLevelName]]:
    """Yield the DataFrames of which the config says how they are kept; ``NONE``: not at all."""
    for step in plan.steps:
        if isinstance(step.method, Cache) and step.index in selected:
            yield from ((index, step.method.storage_level) for index in step.inputs)
        if isinstance(step.method, DataFrameMethod) and step.method.cache:
            yield step.index, step.method.cache_storage_level


class _Keeping:
    """Finds the DataFrames that cost less to keep than to compute again. All its tables are by step index."""

    def __init__(self, plan: PipelinePlan, selected: frozenset[int], own_costs: Mapping[int, float]) -> None:
        self.kept_by_config = kept_by_config(plan, selected)
        self._never_kept = {index for index, _ in _levels_by_config(plan, selected)} - self.kept_by_config
        self.same = dict(_same_extracts(plan, self._never_kept))
        self._steps = plan.steps
        self._selected = selected
        self._readers: dict[int, list[PlannedStep]] = {step.index: [] for step in plan.steps}
        for step in plan.steps:
            for index in step.inputs:
                self._readers[self.same.get(index, index)].append(step)
        self._own_costs = own_costs
        self._scans: dict[int, bool] = {}
        self._groups: dict[int, bool] = {}
        for step in plan.steps:
            self._scans[step.index] = self._is_scan(step)
            self._groups[step.index] = self._is_grouped(step)
        self._runs: dict[int, float] = {}
        self._passes: dict[int, float] = {}
        self._own_chance = {step.index: chance_of(step.method) for step in plan.steps}
        self._rewritten: dict[int, bool] = {}
        for step in plan.steps:
            self._rewritten[step.index] = _is_rewritten(plan, step) or any(
                self._rewritten[index] for index in step.inputs if not self._is_there(index)
            )

    def decide(self) -> dict[int, Kept]:
        """Return what is to be kept."""
        kept: set[int] = set()
        costs, chances = self._costs(kept), self._chances(kept)
        # The last steps first: what is kept there is not read again before.
        for step in reversed(self._steps):
            self._passes[step.index] = sum(self._times(step, reader) for reader in self._readers[step.index])
            if self._is_worth_it(step, costs[step.index], chances[step.index]):
                kept.add(step.index)
            self._runs[step.index] = self._run(step, step.index in kept)
        # What is made of something kept may have become cheap.
        for index in sorted(kept):
            cost, chance = self._costs(kept)[index], self._chances(kept)[index]
            if not self._is_worth_it(self._steps[index], cost, chance):
                kept.discard(index)
        costs, chances = self._costs(kept), self._chances(kept)
        return {index: self._described(index, costs[index], chances[index]) for index in sorted(kept)}

    def _costs(self, kept: Collection[int]) -> dict[int, float]:
        """Return what it costs to compute each DataFrame once more, when the ``kept`` are there."""
        own: dict[int, float] = {}
        read: dict[int, float] = {}
        for step in self._steps:
            index = step.index
            own[index] = self._own_costs[index] + sum(read[source] for source in step.inputs)
            if index in kept or index in self.kept_by_config or step.quarantine is not None:
                read[index] = _KEPT
            else:
                read[index] = _COLUMNAR if step.role is Role.TABLE else own[index]
        return own

    def _chances(self, kept: Collection[int]) -> dict[int, str | None]:
        """Return, of each DataFrame, a part that gives other values each time it is computed; of the ``kept``, once."""
        found: dict[int, str | None] = {}
        handed_on: dict[int, str | None] = {}
        for step in self._steps:
            index = step.index
            inherited = (handed_on[source] for source in step.inputs)
            found[index] = self._own_chance[index] or next(filter(None, inherited), None)
            handed_on[index] = None if index in kept or self._is_there(index) else found[index]
        return found

    def _is_there(self, index: int) -> bool:
        """Whether a DataFrame is computed once whatever is decided here."""
        step = self._steps[index]
        return index in self.kept_by_config or step.quarantine is not None or step.role is Role.TABLE

    def _is_worth_it(self, step: PlannedStep, cost: float, chance: str | None) -> bool:
        index = step.index
        if step.role is not Role.VIEW or step.quarantine or index in self.same:
            return False
        if index in self.kept_by_config or index in self._never_kept:
            return False
        readers = self._readers[index]
        if len(readers) == 1 and _passes(readers[0].method) == 1:
            return False  # where its one reader is read twice, that one is the one to keep
        if chance is not None and self._is_read_again(index):
            return True
        if self._rewritten[index] and len(self._movers(index)) > 1:
            return False  # the later of them may be to read what the pipeline has written by then
        passes = self._passes[index]
        keep = _KEEPING_GROUPS if self._groups[index] else _KEEPING
        return (passes - 1) * cost > keep + passes * _KEPT

    def _is_read_again(self, index: int) -> bool:
        """Whether the rows of a DataFrame that divides here are taken more than once in a run."""
        taking = [step for step in self._readers[index] if self._takes_rows(step)]
        return len(taking) > 1 or any(_passes(step.method) > 1 for step in taking)

    def _takes_rows(self, step: PlannedStep) -> bool:
        """Whether rows go through ``step`` in the run."""
        if step.role is Role.VIEW and step.quarantine is None:
            return bool(self._movers(step.index))
        return step.index in self._selected and not isinstance(step.method, CacheControlMethod)

    def _times(self, step: PlannedStep, reader: PlannedStep) -> float:
        """Return how many passes over the rows of ``step`` one reader stands for."""
        times = self._runs[reader.index] * _passes(reader.method)
        if not _filters(reader.method):
            return times
        # Sources leave out what a filter does not want: to read all of it may cost any number of times more.
        return 0.0 if self._scans[step.index] else times * _FILTERED

    def _run(self, step: PlannedStep, is_kept: bool) -> float:
        """Return how often what ``step`` does is done."""
        if isinstance(step.method, CacheControlMethod):
            return 0.0
        if step.role is not Role.VIEW or (step.quarantine and step.index in self._selected):
            return 1.0 if step.index in self._selected else 0.0
        passes = self._passes[step.index]
        return min(passes, 1.0) if is_kept or step.index in self.kept_by_config else passes

    def _is_scan(self, step: PlannedStep) -> bool:
        """Whether a DataFrame is read from sources that can leave rows out, and only changed row by row since."""
        if step.role is Role.TABLE or isinstance(step.method, ExtractMethod):
            return step.role is Role.TABLE or _leaves_rows_out(step.method)
        return self._own_costs[step.index] == _NARROW and all(self._scans[source] for source in step.inputs)

    def _is_grouped(self, step: PlannedStep) -> bool:
        """Whether a DataFrame has the few rows of groups."""
        if isinstance(step.method, AggregateData) or (isinstance(step.method, Sql) and has_groups(step.method.query)):
            return True
        narrow = self._own_costs[step.index] == _NARROW and bool(step.inputs)
        return narrow and all(self._groups[source] for source in step.inputs)

    def _described(self, index: int, cost: float, chance: str | None) -> Kept:
        *names, last = dict.fromkeys(reader.name for reader in self._readers[index])
        taking = f"{', '.join(names)} and {last} take it" if names else f"{last} takes it again and again"
        movers = frozenset(self._movers(index))
        why = (
            f"{chance} would give each other values"
            if chance is not None
            else f"each time it would cost as much as {cost:.0f} reads of its rows from Parquet"
        )
        return Kept(
            movers, f"kept in memory and on disk until {self._steps[max(movers)].name} is done: {taking}, and {why}"
        )

    def _movers(self, index: int) -> set[int]:
        """Return the steps that move the rows of a DataFrame, directly or by way of views."""
        found: set[int] = set()
        seen: set[int] = set()
        pending = list(self._readers[index])
        while pending:
            step = pending.pop()
            if step.index in seen:
                continue
            seen.add(step.index)
            if step.role is Role.VIEW:
                pending += self._readers[step.index]
            moves = step.role not in (Role.VIEW, Role.CONTROL) or step.quarantine is not None
            if moves and step.index in self._selected:
                found.add(step.index)
        return found


_NOT_READ_BY = {"register_as", "cache", "cache_storage_level", "materialized"}


def _same_extracts(plan: PipelinePlan, never_kept: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield (step, earlier step) of the extracts that read the same, whenever their rows are taken.

    Not of those that are ``never_kept``: they are read each time.
    """
    found: dict[tuple[object, ...], int] = {}
    for step in plan.steps:
        differs = step.index in never_kept or _is_rewritten(plan, step) or chance_of(step.method) is not None
        if isinstance(step.method, ExtractMethod) and step.role is Role.VIEW and not differs:
            config = step.method.model_dump_json(exclude=_NOT_READ_BY)
            writers = tuple(writer.index for writer in plan.writers_before(step))
            first = found.setdefault((step.method.method, config, writers), step.index)
            if first != step.index and not step.method.cache:
                yield step.index, first


def _is_rewritten(plan: PipelinePlan, step: PlannedStep) -> bool:
    """Whether ``step`` reads from outside what the pipeline writes, and not one state of it, as of a Delta table."""
    return (
        isinstance(step.method, ExtractMethod)
        and not isinstance(step.method, FromDeltaLake)
        and plan.writes_source_of(step)
    )


def _laid_out(plan: PipelinePlan, own_costs: Mapping[int, float]) -> frozenset[int]:
    """Return the DataFrames of which the config says how their rows are spread over partitions."""
    found: set[int] = set()
    for step in plan.steps:
        is_narrow = own_costs[step.index] == _NARROW and not isinstance(step.method, Coalesce | Union)
        if step.inputs and is_narrow:
            stays = step.inputs[0] in found
        else:
            stays = isinstance(step.method, Coalesce | Repartition | RepartitionByColumns)
        if stays:  # whoever says so means it
            found.add(step.index)
    return frozenset(found)


def _own_cost(method: StepMethod) -> float:
    match method:
        case FilterRows() | SelectColumns() | WithColumns() | Union() | Coalesce() | WithWatermark():
            return _NARROW
        case Sql():
            return _SHUFFLED if moves_rows(method.query) else _NARROW
        case ValidateMethod():
            return _SHUFFLED if method.deciding_references() else _NARROW
        case FilesExtract():
            return _COLUMNAR if _is_columnar(method) else _PARSED
        case FromDeltaLake():
            return _COLUMNAR
        case ExtractMethod():
            return _FETCHED
        case _:
            return _SHUFFLED


def _is_columnar(method: FilesExtract) -> bool:
    return method.file_format() in ("parquet", "orc")


def _leaves_rows_out(method: StepMethod) -> bool:
    match method:
        case FilesExtract():
            return _is_columnar(method)
        case FromDeltaLake() | FromPostgres():
            return True
        case _:
            return False


def _filters(method: StepMethod) -> bool:
    return isinstance(method, FilterRows) or (isinstance(method, Sql) and has_filter(method.query))


def chance_of(method: StepMethod) -> str | None:
    """Return the first part of the SQL of ``method`` that gives other values each time, as ``uuid()`` does; or None."""
    texts = sql_texts(method) if isinstance(method, DataFrameMethod) else ()
    found = [chance_part(text) for _, text, _ in texts]
    if isinstance(method, FromPostgres):
        found += (chance_part(text, "postgres") for text in (method.query, method.predicate) if text is not None)
    return next((part for part in found if part is not None), None)


def _passes(method: StepMethod) -> int:
    return method.passes if isinstance(method, DataFrameMethod) else 1
