"""The DataFrames of one pipeline in one run: planned lazily, handed on by name, written when they are tables."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, cast

from pipeline_assets.checked_rows import CheckedRows, Quarantined
from pipeline_assets.errors import DataValidationError, PipelineError, PipelineExecutionError
from pipeline_assets.optimizer import chance_of, kept_by_config, optimize
from pipeline_assets.partitions import PARTITION_KEY_COLUMN
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.run_scope import RunScope
from pipeline_assets.shared_views import handed_on, handed_on_in, shared_views
from pipeline_assets.spark.caching import read_by, reader_of
from pipeline_assets.steps.base import (
    DataFrameMethod,
    ExpectationResult,
    ExtractMethod,
    LoadMethod,
    LoadResult,
    StepContext,
    StreamSource,
    Transaction,
    TransformMethod,
    ValidateMethod,
)
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.delta_preview import Preview, rows_by_arrow, rows_by_driver
from pipeline_assets.steps.delta_table import DeltaWrite, is_missing_table, write_delta
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.partition_rows import with_partition
from pipeline_assets.steps.paths import open_for_spark
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.steps.transform import WithWatermark
from pipeline_assets.validation import raise_for_failures

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.query import StreamingQuery

_log = logging.getLogger(__name__)
PREVIEW_ROWS = 10


class PipelineRun:
    """One pipeline in one run, in this process.

    A DataFrame that this process has not built comes from the Spark session when another process of the run left it
    there (Spark Connect), from the warehouse when it is a table, and is planned anew from its config otherwise. All
    three give the same rows. ``selected``: the steps that the run is for; all of them when left out. ``waiting``: those
    that read what the run is yet to write for other pipelines. ``in_one_process``: whether this process runs all of
    these. ``first_try``: gives, by the name of an op, the id of the run in which it was first tried, where this one
    resumes that.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        context: StepContext,
        selected: Collection[int] | None = None,
        waiting: Collection[int] = (),
        *,
        in_one_process: bool = True,
        first_try: Callable[[str], str] | None = None,
    ) -> None:
        self.plan = plan
        self.context = context
        self.scope = RunScope(plan, context)
        self._selected = frozenset(range(len(plan.steps)) if selected is None else selected)
        self._shares_session = not in_one_process and context.settings.spark_remote is not None
        self._waiting = frozenset(waiting)
        self._first_try = first_try or (lambda _op_name: context.run_id)
        self.optimizations = optimize(plan, self._selected, in_one_process=in_one_process)
        self.checked_rows = CheckedRows(self.scope, self.optimizations)
        self._pinned_steps = self._steps_to_pin()
        self._done: set[int] = set()
        self._frames: dict[int, DataFrame] = {}
        self._versions: dict[int, int] = {}
        self._checked = False
        self._held: set[int] = set()

    def _steps_to_pin(self) -> frozenset[int]:
        # A session lives as long as its stream, and a view as long as its session.
        if self.context.settings.spark_remote is None or self.plan.is_streaming:
            return frozenset()
        by_chance = (step.index for step in self.plan.steps if chance_of(step.method) is not None)
        return kept_by_config(self.plan, self._selected).union(self.optimizations.kept, by_chance)

    def dataframe(self, step: PlannedStep) -> DataFrame:
        """Return the DataFrame of ``step``, wherever it is to be had."""
        frame = self._frames.get(step.index)
        if frame is None:
            frame = self._session_view(step)
            if frame is None:
                frame = self._read_table(step) if step.role is Role.TABLE else self.build(step)
            self._frames[step.index] = frame
        return frame

    def build(self, step: PlannedStep, inputs: Mapping[int, DataFrame] | None = None) -> DataFrame:
        """Plan ``step`` on its inputs, given by step index where the caller has them. Moves no data.

        Raises ConfigurationError when an expression does not fit the schema that it meets.
        """
        if step.index in self.optimizations.kept and step.index in self._frames:
            # A step that takes it may have come first: that of another extract of the same.
            return self._frames[step.index]
        given = inputs or {}
        if step.quarantine is not None and step.index in self._selected and not step.is_stream:
            self.checked_rows.restore(step, lambda: self.inputs(step))
        frame = self._planned(
            step, lambda source: given[source.index] if source.index in given else self.dataframe(source)
        )
        adaptive = step.index in self.optimizations.adaptive
        if isinstance(step.method, DataFrameMethod) and step.method.cache:
            with self.scope.errors_of(step):
                level = step.method.cache_storage_level
                frame = self.context.cache.cache(step.dataframe, frame, level, adaptive=adaptive)
        elif step.index in self.optimizations.kept:
            with self.scope.errors_of(step):
                frame = self.context.cache.cache(step.dataframe, frame, adaptive=adaptive, by_decision=True)
        self._frames[step.index] = frame
        return frame

    def _planned(self, step: PlannedStep, frame_of: Callable[[PlannedStep], DataFrame]) -> DataFrame:
        """Plan ``step`` on the DataFrames that ``frame_of`` gives of other steps."""
        first = self.optimizations.same.get(step.index)
        if first is not None:
            # Not the very same: joined with itself, Spark would take one for the other.
            return frame_of(self.plan.steps[first]).select("*")
        frame = self._apply(step, {index: frame_of(self.plan.steps[index]) for index in step.inputs})
        return self._pinned(frame) if step.index in self._pinned_steps else frame

    def _pinned(self, frame: DataFrame) -> DataFrame:
        """Return ``frame`` as the server has understood it now.

        It would draw the seeds of ``uuid()`` anew each time it is asked for the DataFrame, and once it has forgotten
        the plan (``spark.connect.session.planCache.maxSize``), read a table of PostgreSQL anew: for Spark's cache that
        is another one. It would find nothing of what it keeps of either.
        """
        view = f"pinned_{uuid.uuid4().hex}"
        frame.createOrReplaceTempView(view)
        return self.context.spark.table(view)

    def register(self, step: PlannedStep, frame: DataFrame) -> None:
        """Hand a view on by name: to this process, and through the session's temp views to others."""
        self._frames[step.index] = frame
        with self.scope.errors_of(step):
            frame.createOrReplaceTempView(step.dataframe)
            if self.context.settings.spark_remote is not None:
                frame.createOrReplaceTempView(handed_on(step))

    def table_path(self, step: PlannedStep) -> str:
        """Return where the table of ``step`` is."""
        return self.context.settings.table_path(self.plan.name, step.name)

    def preview(self, step: PlannedStep, written: DeltaWrite) -> Preview | None:
        """Return the first rows that a write added, read from its files; None where they can't be read from here."""
        if written.commit is None:
            return None
        path = self.table_path(step)
        try:
            if self.context.settings.spark_remote is None:
                with self.scope.errors_of(step):
                    return rows_by_driver(self.context.spark, path, written.commit, PREVIEW_ROWS)
            folder = folder_seen_from_here(path, "default", self.context.connections)
            return rows_by_arrow(folder, written.commit, PREVIEW_ROWS) if folder is not None else None
        except PipelineError as error:
            # The table has been written: what only shows it may not fail the run.
            _log.warning("%s: no preview: %s", self.plan.location(step), error)
            return None

    def _reachable_table_path(self, step: PlannedStep) -> str:
        path = self.table_path(step)
        if is_s3(path):
            open_for_spark([path], "default", self.context)
        return path

    def write_table(self, step: PlannedStep, frame: DataFrame) -> DeltaWrite:
        """Write ``frame`` as the table of ``step``: whole, or just the run's partition. All or nothing."""
        self._check_before_data_moves()
        self._hold_to_checks(step)
        with self.scope.errors_of(step), self.scope.working(step):
            path = self._reachable_table_path(step)
            written = write_delta(
                frame,
                path,
                mode="overwrite",
                overwrite_schema=self.context.partition is None,
                merge_schema=self.context.partition is not None,
                partition=self.context.partition,
                folder=folder_seen_from_here(path, "default", self.context.connections),
                # Each try puts rows aside anew, and the others have to be of the same look.
                transaction=self._transaction(step) if step.quarantine is None else None,
            )
        self._let_go_after_write(step)
        # Whoever takes the DataFrame next reads what has been written, in just this version.
        self._frames.pop(step.index, None)
        self._versions[step.index] = written.version
        return written

    def load(self, step: PlannedStep, frame: DataFrame) -> LoadResult:
        """Run a load step."""
        self._check_before_data_moves()
        self._hold_to_checks(step)
        context = self._load_context(step)
        with self.scope.errors_of(step, [frame]), self.scope.working(step):
            result = cast(LoadMethod, step.method).load(frame, context)
        self._let_go_after_write(step)
        return result

    def _load_context(self, step: PlannedStep) -> StepContext:
        return dataclasses.replace(
            self.context,
            optimize=step.index in self.optimizations.clustered,
            by_partition=self.plan.pipeline.keys_with_partition(step.index),
            transaction=self._transaction(step),
        )

    def _reader(self, step: PlannedStep) -> str:
        return reader_of(self.context.run_id, self.plan.name, step.name)

    def _transaction(self, step: PlannedStep) -> Transaction:
        """Return what a write of ``step`` is known by."""
        retry = self.plan.pipeline.retry_of(step.index)
        id_, first_id = (
            f"pipeline-assets:{reader_of(run_id, self.plan.name, step.name)}"
            for run_id in (self.context.run_id, self._first_try(self.plan.op_name(step)))
        )
        return Transaction(id_, first_id, has_retries=retry is not None and retry.max_retries > 0)

    def written(self, step: PlannedStep, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with the columns that a load's target, or the table of ``step``, gets.

        Raises ConfigurationError when one of them would take the place of one that is there.
        """
        with self.scope.errors_of(step, [frame]):
            if isinstance(step.method, LoadMethod):
                return step.method.written(frame, self.context)
            return with_partition(frame, self.context.partition) if step.role is Role.TABLE else frame

    def inputs(self, step: PlannedStep) -> dict[int, DataFrame]:
        """Return the DataFrames that ``step`` takes, by step index."""
        return {index: self.dataframe(self.plan.steps[index]) for index in step.inputs}

    def check(self, step: PlannedStep) -> tuple[ExpectationResult, ...]:
        """Evaluate the expectations of a validate step."""
        self._check_before_data_moves()
        results = self.checked_rows.results(step, self.inputs(step))
        self._let_go_after(step)
        return results

    def quarantine(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> Quarantined:
        """Evaluate a validate step, write the rows that do not meet it to its table, and hand the others on.

        ``frames``: what the step takes, by step index.
        """
        self._check_before_data_moves()
        self._hold_to_checks(step)
        found = self.checked_rows.quarantine(step, frames)
        self._frames[step.index] = found.good
        if step.role is not Role.TABLE:
            self._let_go_after(step)
        return found

    def _let_go_after(self, step: PlannedStep) -> None:
        """Let go of what was kept here for ``step`` and others, once all of them are done."""
        self._done.add(step.index)
        for index, kept in self.optimizations.kept.items():
            name = self.plan.steps[index].dataframe
            if step.index in kept.readers <= self._done:
                with self.scope.errors_of(step):
                    self.context.cache.uncache(name)

    def _let_go_after_write(self, step: PlannedStep) -> None:
        try:
            self._let_go_after(step)
        except PipelineError as error:
            # The rows are in: the step may not fail now, to be tried again.
            _log.warning("what is kept was not let go of: %s", error)

    def control(self, step: PlannedStep) -> None:
        """Run a step that says what stays cached."""
        # Not by the names that the step has for them: a DataFrame may have two.
        frames = {self.plan.steps[i].dataframe: self.dataframe(self.plan.steps[i]) for i in step.inputs}
        for kept in self._kept_for_others():
            if (view := self._session_view(kept)) is not None:
                self.context.cache.take_over(kept.dataframe, view)
        context = dataclasses.replace(self.context, optimize=self.optimizations.adaptive.issuperset(step.inputs))
        with self.scope.errors_of(step):
            cast(TransformMethod, step.method).transform(frames, context)

    def release_cache(self) -> None:
        """Let go of what is kept, but of what other processes of the run go on with: ``release_shared`` does."""
        self.context.cache.release(but=[step.dataframe for step in self._kept_for_others()])

    def _kept_for_others(self) -> list[PlannedStep]:
        return shared_views(self.plan, self._selected) if self._shares_session else []

    def _check_before_data_moves(self) -> None:
        """Plan all steps of the run once, so that a mistake in a later one is found before the first write."""
        if self._checked:
            return
        planned = dict(self._frames)

        def plan(step: PlannedStep) -> DataFrame:
            if step.index not in planned:
                # A table that this run is yet to write is planned like a view.
                if step.role is Role.TABLE and step.index not in self._selected:
                    planned[step.index] = self._read_table(step)
                else:
                    planned[step.index] = self._planned(step, plan)
            return planned[step.index]

        for step in (self.plan.steps[index] for index in sorted(self._selected)):
            if self._waits_for_a_write(step):
                continue
            if isinstance(step.method, ValidateMethod):
                self.checked_rows.check_fit(step, {index: plan(self.plan.steps[index]) for index in step.inputs})
            if step.has_dataframe:
                frame = plan(step)
            elif step.role is Role.LOAD:
                frame = plan(self.plan.steps[step.inputs[0]])
                with self.scope.errors_of(step, [frame]):
                    cast(LoadMethod, step.method).check_schema(frame, self._load_context(step))
            else:
                continue
            self.written(step, frame)
        # Not before: after a mistake, a step that does not depend on it would go on and write.
        self._checked = True

    def _hold_to_checks(self, step: PlannedStep) -> None:
        """Raise DataValidationError when rows that ``step`` is to move fail a check that is no part of the run.

        Views that the run leaves out are planned here anew: what was checked may be another state of their sources.
        Tables that it leaves out are as they were.
        """
        views = {view.index for view in self.plan.views_under(step)}
        read = {source for index in (step.index, *views) for source in self.plan.steps[index].inputs}
        checked = views | (read & self._selected)
        for check in self.plan.steps:
            if check.index in self._selected | self._held or not isinstance(check.method, ValidateMethod):
                continue
            if check.quarantine is not None and check.index in views:
                self._hold_to_quarantine(check)
            elif check.method.reaction == "fail" and check.inputs[0] in checked:
                results = self.checked_rows.results(check, self.inputs(check))
                with self.scope.errors_of(check):
                    raise_for_failures(check, results)
            else:
                continue
            # Not before: the next load is not to go on where this one was stopped.
            self._held.add(check.index)

    def _hold_to_quarantine(self, check: PlannedStep) -> None:
        frames = self.inputs(check)
        with self.scope.errors_of(check, frames.values()), self.scope.working(check):
            if not self.checked_rows.not_put_aside(check, frames).isEmpty():
                raise DataValidationError(
                    f"some rows fail the check and are not in {check.quarantine} yet, and this run does not write that "
                    f"table: materialize {self.plan.name}/{check.name} in the same run, or these rows are in no table"
                )

    def _waits_for_a_write(self, step: PlannedStep) -> bool:
        """Whether ``step`` depends on data that the run may be yet to write outside, for it or another pipeline."""
        if step.index in self._waiting or self.plan.writers_before(step):
            return True
        return any(self._waits_for_a_write(self.plan.steps[index]) for index in step.inputs)

    def _apply(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        method = step.method
        with self.scope.errors_of(step, frames.values()):
            if isinstance(method, ExtractMethod) and step.is_stream:
                frame = method.extract_stream(self.source_context(step))
            elif isinstance(method, ExtractMethod):
                config = self.plan.pipeline.config
                rewritten = not self.plan.is_streaming and self.plan.writes_source_of(step)
                with self.scope.working(step):  # what it reads to learn the columns
                    frame = method.extract(
                        dataclasses.replace(self.context, optimize=config.optimize, rewritten=rewritten)
                    )
            elif isinstance(method, ValidateMethod):
                frame = self.checked_rows.good(step, frames)
            else:
                frame = cast(TransformMethod, method).transform(step.named_inputs(frames), self.context)
            if not frames and not step.is_stream:
                frame = read_by(self._reader(step), frame)
            # Connect analyses a plan when its schema is asked for; classic Spark has done so by now.
            _ = frame.schema
        return frame

    def source_context(self, step: PlannedStep) -> StepContext:
        """Return the context of a streaming extract: with the checkpoints of the queries that it feeds."""
        loads = self.plan.stream_loads_of(step)
        ends = loads[0].streaming_load.takes_what_there_is
        checkpoints = tuple(map(self.checkpoint, loads))
        source = StreamSource(
            step.name,
            checkpoints,
            self.context.cancellation.stop,
            may_wait=not ends,
            watermarked=self._is_watermarked(step),
        )
        return dataclasses.replace(self.context, source=source)

    def _is_watermarked(self, step: PlannedStep) -> bool:
        watermarks = (other for other in self.plan.steps if isinstance(other.method, WithWatermark))
        return any(step in self.plan.upstream_of(other) for other in watermarks)

    def checkpoint(self, load: PlannedStep) -> Checkpoint:
        """Return the checkpoint of the streaming query of ``load``."""
        method = load.streaming_load
        return method.checkpoint(self.context.settings, self.context.connections)

    def start_stream(self, load: PlannedStep, query_name: str) -> StreamingQuery:
        """Start the streaming query of ``load``."""
        frame = self.dataframe(self.plan.steps[load.inputs[0]])
        with self.scope.errors_of(load, [frame]):
            return load.streaming_load.start_stream(frame, self.context, query_name)

    def start_batches(
        self, load: PlannedStep, source: PlannedStep, query_name: str, each: Callable[[DataFrame, int], None]
    ) -> StreamingQuery:
        """Start the streaming query of ``load`` so that each micro-batch of the DataFrame of ``source`` goes to
        ``each``.
        """
        frame = self.dataframe(source)
        with self.scope.errors_of(load, [frame]):
            return load.streaming_load.start_batches(frame, self.context, query_name, each)

    def given(self, step: PlannedStep, frame: DataFrame) -> None:
        """Take ``frame`` for the DataFrame of ``step``."""
        self._frames[step.index] = frame

    def _session_view(self, step: PlannedStep) -> DataFrame | None:
        if self.context.settings.spark_remote is None or step.role is not Role.VIEW:
            return None
        if self.plan.is_streaming:
            # All of it is in one process. What has the name is the stream, or a micro-batch, that was planned last.
            return None
        return handed_on_in(self.context.spark, step)

    def _read_table(self, step: PlannedStep) -> DataFrame:
        path = self._reachable_table_path(step)
        reader = self.context.spark.read.format("delta")
        if step.index in self._versions:
            reader = reader.option("versionAsOf", self._versions[step.index])
        with self.scope.errors_of(step):
            try:
                frame = read_by(self._reader(step), reader.load(path))
                _ = frame.schema
            except Exception as error:
                if not is_missing_table(error):
                    raise
                raise PipelineExecutionError(
                    f"there is no Delta table at {path} yet: materialize {self.plan.name}/{step.name} first"
                ) from None
        partition = self.context.partition
        if partition is None:
            return frame
        frame = frame.where(partition.of(dict(frame.dtypes)).predicate)
        return frame if partition.column else frame.drop(PARTITION_KEY_COLUMN)
