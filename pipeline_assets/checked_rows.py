"""The rows that the validate steps of a run check: told good from bad once, and the bad ones put into quarantine.

What rows are compared with may have changed when they are looked at again, by another process of the run, after Spark
has died, or at the next try. From the write to the quarantine table on, that table tells which rows are good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.optimizer import Optimizations
from pipeline_assets.partitions import PARTITION_KEY_COLUMN, Partitions, sql_string
from pipeline_assets.plan import PlannedStep, Role
from pipeline_assets.run_scope import RunScope
from pipeline_assets.spark.caching import keeps
from pipeline_assets.steps.base import ExpectationResult
from pipeline_assets.steps.columns import quote
from pipeline_assets.steps.delta_table import DeltaWrite, find_write, is_missing_table, write_delta
from pipeline_assets.steps.evaluation import REASONS_COLUMN
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.paths import open_for_spark
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.steps.transform import Uncache, UncacheAll
from pipeline_assets.steps.validate import RUN_ID_COLUMN, TIME_COLUMN

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class Quarantined:
    """What a step with onFailure ``quarantine`` made of its input: the rows that go on, and what is in ``path``."""

    good: DataFrame
    bad: DataFrame
    results: tuple[ExpectationResult, ...]
    path: str
    written: DeltaWrite


class CheckedRows:
    """The rows of the validate steps of one run. ``frames`` are the DataFrames that a step takes, by step index."""

    def __init__(self, scope: RunScope, optimizations: Optimizations) -> None:
        self._scope = scope
        self._plan = scope.plan
        self._context = scope.context
        self._optimizations = optimizations
        self._compared: dict[int, DataFrame] = {}

    def check_fit(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> None:
        """Raise ConfigurationError when ``step`` does not fit ``frames``. Moves no data."""
        frame, references = checked_and_references(step, step.named_inputs(frames))
        with self._scope.errors_of(step, [frame]):
            step.validate_method.check_schema(frame, references, self._context)

    def results(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> tuple[ExpectationResult, ...]:
        """Evaluate the expectations of ``step``."""
        with self._scope.errors_of(step, [frames[step.inputs[0]]]), self._scope.working(step):
            return step.validate_method.validate_frame(self.compared(step, frames), self._context)

    def compared(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        """Return the rows that ``step`` checks, with what it has to know of the DataFrames beside."""
        if step.index in self._compared:
            return self._compared[step.index]
        return step.validate_method.compared(*checked_and_references(step, step.named_inputs(frames)))

    def recalled(self, step: PlannedStep, frames: Mapping[int, DataFrame], bad: DataFrame) -> DataFrame:
        """Return the rows that ``step`` checks, told by what it has put into quarantine before: ``bad``."""
        return step.validate_method.recalled(*checked_and_references(step, step.named_inputs(frames)), bad)

    def decide_by(self, step: PlannedStep, compared: DataFrame) -> None:
        """From now on, tell good rows of ``step`` from bad by ``compared``."""
        self._compared[step.index] = compared

    def good(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        """Return the rows that ``step`` lets pass, lazily."""
        return step.validate_method.good_rows(self.compared(step, frames), self._context)

    def bad(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        """Return the rows that ``step`` puts into quarantine, lazily."""
        return step.validate_method.bad_rows(self.compared(step, frames), self._context)

    def not_put_aside(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        """Return, as JSON, the rows that ``step`` would put into quarantine and that no run has put there, lazily."""
        from pyspark.sql import functions as F  # noqa: N812

        bad = self.bad(step, frames).drop(REASONS_COLUMN, RUN_ID_COLUMN, TIME_COLUMN)

        def rows(frame: DataFrame) -> DataFrame:
            # Not as they are: MAPs can't be compared.
            return frame.select(F.to_json(F.struct(*(frame[quote(name)] for name in bad.columns))).alias("row"))

        try:
            there = self._of_partition(self._context.spark.read.format("delta").load(self.quarantine_path(step)))
            _ = there.schema
        except Exception as error:
            if not is_missing_table(error):
                raise
            return rows(bad)
        return rows(bad).exceptAll(rows(there))

    def quarantine_path(self, step: PlannedStep) -> str:
        """Return where the rows are that ``step`` puts into quarantine, as Spark can reach it."""
        path = step.validate_method.quarantine_path
        if path is None:
            path = self._context.settings.table_path(self._plan.name, step.quarantine or "")
            if not is_s3(path):
                return path
        (path,) = open_for_spark([path], "default", self._context)
        return path

    def quarantine(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> Quarantined:
        """Evaluate ``step``, write the rows that do not meet it to its table, and return the others.

        The rows are computed, and compared with others, once: they are kept for the rest of the run, unless that is
        done already. The table holds the rows of the last run, or of the last run of each partition.
        """
        method = step.validate_method
        frame = frames[step.inputs[0]]
        self._compared.pop(step.index, None)  # of another try: this one writes both tables anew
        with self._scope.errors_of(step, [frame]):
            self.decide_by(step, self._cached(step, frame, self.compared(step, frames)))
            results = self.results(step, frames)
            found = any(result.failed for result in results)
            bad = self.bad(step, frames)
            with self._scope.working(step):
                written = self._write(step, bad if found else bad.limit(0))
            if method.deciding_references():
                _, references = checked_and_references(step, step.named_inputs(frames))
                compared = self.compared(step, frames)
                self.decide_by(step, method.recalled(compared, references, self._put_aside(step, written)))
            good = self.good(step, frames)
            _ = good.schema
            path = self.quarantine_path(step)
        return Quarantined(good, bad, results, path, written)

    def restore(self, step: PlannedStep, inputs_of: Callable[[], Mapping[int, DataFrame]]) -> None:
        """Have ``step`` let pass what it did when this run put rows aside, in another process or JVM.

        ``inputs_of`` returns the DataFrames that the step takes, and is asked only when it did.
        """
        mark = self._mark(step)
        if mark is None:
            return
        with self._scope.errors_of(step):
            path = self.quarantine_path(step)
            folder = folder_seen_from_here(path, "default", self._context.connections)
            written = find_write(self._context.spark, path, mark, folder)
            if written is not None:
                self.decide_by(step, self.recalled(step, inputs_of(), self._put_aside(step, written)))

    def _cached(self, step: PlannedStep, frame: DataFrame, compared: DataFrame) -> DataFrame:
        """Return ``compared``, kept for the rest of the run unless ``frame``, of which it was made, does for that."""
        by_others = bool(step.validate_method.deciding_references())
        source = self._plan.steps[step.inputs[0]]
        is_kept = source.role is Role.TABLE or self._stays_kept(source, frame)
        if is_kept and not by_others:
            return compared
        laid_out = step if by_others else source
        adaptive = laid_out.index in self._optimizations.adaptive
        # Not by the name of the DataFrame, which a later step may cache, or let go of; nor as the plan of the one that
        # is checked, of which Spark keeps one thing for all names.
        name = f"{step.dataframe}, as checked"
        compared = compared.where(f"{sql_string(name)} IS NOT NULL") if compared is frame else compared
        return self._context.cache.cache(name, compared, adaptive=adaptive, by_decision=True)

    def _stays_kept(self, source: PlannedStep, frame: DataFrame) -> bool:
        """Whether ``frame``, which ``source`` has made, is kept for as long as somebody reads it."""
        if source.index in self._optimizations.kept:
            return True
        lets_go = any(isinstance(step.method, Uncache | UncacheAll) for step in self._plan.steps)
        return keeps(frame.storageLevel) and not lets_go

    def _write(self, step: PlannedStep, bad: DataFrame) -> DeltaWrite:
        path = self.quarantine_path(step)
        partition = self._context.partition
        # By the partition's key alone: a row may be there for having none of the partition's values.
        part = Partitions(type="static", values=(partition.key,)).slice(partition.key) if partition else None
        return write_delta(
            bad,
            path,
            mode="overwrite",
            overwrite_schema=part is None,
            merge_schema=part is not None,
            partition=part,
            folder=folder_seen_from_here(path, "default", self._context.connections),
            mark=self._mark(step),
        )

    def _mark(self, step: PlannedStep) -> str | None:
        """Return what the write of ``step`` is found by later, where another look at the rows may tell otherwise."""
        if not step.validate_method.deciding_references():
            return None
        key = self._context.partition.key if self._context.partition else ""
        return f"pipeline-assets:{self._context.run_id}:{self._plan.name}/{step.quarantine}:{key}"

    def _put_aside(self, step: PlannedStep, written: DeltaWrite) -> DataFrame:
        """Return the rows that this run has put aside, for its partition, as of the version ``written``."""
        reader = self._context.spark.read.format("delta").option("versionAsOf", written.version)
        rows = reader.load(self.quarantine_path(step))
        return self._of_partition(rows.where(rows[RUN_ID_COLUMN] == self._context.run_id))

    def _of_partition(self, rows: DataFrame) -> DataFrame:
        partition = self._context.partition
        return rows.where(rows[PARTITION_KEY_COLUMN] == partition.key) if partition else rows


def checked_and_references(
    step: PlannedStep, frames: Mapping[str, DataFrame]
) -> tuple[DataFrame, dict[str, DataFrame]]:
    """Return the DataFrame that a validate step checks, and those that it compares it with, of ``frames`` by name."""
    checked, *references = step.input_names
    return frames[checked], {name: frames[name] for name in references}
