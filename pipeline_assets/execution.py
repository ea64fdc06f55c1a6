"""The DataFrames of one pipeline in one run: planned lazily, handed on by name, written when they are tables."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline_assets.credentials.secrets import secrets_needed_by
from pipeline_assets.errors import PipelineError, PipelineExecutionError, error_line
from pipeline_assets.optimizer import optimize
from pipeline_assets.partitions import PARTITION_KEY_COLUMN, Partitions
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.redaction import redact_data
from pipeline_assets.spark.failures import is_spark_error, original_error, spark_errors, spark_failure
from pipeline_assets.spark.job_metrics import JobMetrics, StageTime, longest, watched_jobs
from pipeline_assets.steps.base import (
    DataFrameMethod,
    ExpectationResult,
    ExtractMethod,
    LoadMethod,
    LoadResult,
    StepContext,
    StreamingLoad,
    StreamSource,
    TransformMethod,
    ValidateMethod,
)
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.delta_preview import Preview, rows_by_arrow, rows_by_driver
from pipeline_assets.steps.delta_table import DeltaWrite, find_write, is_missing_table, with_partition, write_delta
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.paths import open_for_spark
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.steps.validate import RUN_ID_COLUMN

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.query import StreamingQuery

_log = logging.getLogger(__name__)
PREVIEW_ROWS = 10


@dataclass(frozen=True)
class Quarantined:
    """What a step with onFailure ``quarantine`` made of its input: the rows that go on, and what is in ``path``."""

    good: DataFrame
    bad: DataFrame
    results: tuple[ExpectationResult, ...]
    path: str
    written: DeltaWrite


class PipelineRun:
    """One pipeline in one run, in this process.

    A DataFrame that this process has not built comes from the Spark session when another process of the run left it
    there (Spark Connect), from the warehouse when it is a table, and is planned anew from its config otherwise. All
    three give the same rows. ``selected``: the steps that the run is for; all of them when left out. ``waiting``: those
    that read what the run is yet to write for other pipelines. ``in_one_process``: whether this process runs all of
    these.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        context: StepContext,
        selected: Collection[int] | None = None,
        waiting: Collection[int] = (),
        *,
        in_one_process: bool = True,
    ) -> None:
        self.plan = plan
        self.context = context
        self._selected = frozenset(range(len(plan.steps)) if selected is None else selected)
        self._waiting = frozenset(waiting)
        self.optimizations = optimize(plan, self._selected, in_one_process=in_one_process)
        self._done: set[int] = set()
        self._frames: dict[int, DataFrame] = {}
        self._compared: dict[int, DataFrame] = {}
        self._versions: dict[int, int] = {}
        self._work: dict[int, JobMetrics] = {}
        self._stages: dict[int, tuple[StageTime, ...]] = {}
        self._checked = False

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
            self._recall(step)
        frame = self._planned(
            step, lambda source: given[source.index] if source.index in given else self.dataframe(source)
        )
        adaptive = step.index in self.optimizations.adaptive
        if isinstance(step.method, DataFrameMethod) and step.method.cache:
            with self.errors_of(step):
                level = step.method.cache_storage_level
                frame = self.context.cache.cache(step.dataframe, frame, level, adaptive=adaptive)
        elif step.index in self.optimizations.kept:
            with self.errors_of(step):
                frame = self.context.cache.cache(step.dataframe, frame, adaptive=adaptive)
        self._frames[step.index] = frame
        return frame

    def _planned(self, step: PlannedStep, frame_of: Callable[[PlannedStep], DataFrame]) -> DataFrame:
        """Plan ``step`` on the DataFrames that ``frame_of`` gives of other steps."""
        first = self.optimizations.same.get(step.index)
        if first is not None:
            # Not the very same: joined with itself, Spark would take one for the other.
            return frame_of(self.plan.steps[first]).select("*")
        return self._apply(step, {index: frame_of(self.plan.steps[index]) for index in step.inputs})

    def register(self, step: PlannedStep, frame: DataFrame) -> None:
        """Hand a view on by name: to this process, and through the session's temp views to others."""
        self._frames[step.index] = frame
        with self.errors_of(step):
            frame.createOrReplaceTempView(step.dataframe)

    def work(self, step: PlannedStep) -> JobMetrics | None:
        """Return what Spark's jobs have done for ``step`` so far; None where Spark does not tell."""
        return self._work.get(step.index)

    def stages(self, step: PlannedStep) -> tuple[StageTime, ...]:
        """Return the longest of Spark's stages for ``step`` so far, the longest first."""
        return self._stages.get(step.index, ())

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
                with self.errors_of(step):
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
        with self.errors_of(step), self._working(step):
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
        context = dataclasses.replace(
            self.context,
            optimize=step.index in self.optimizations.clustered,
            by_partition=self.plan.pipeline.keys_with_partition(step.index),
            transaction=self._transaction(step),
        )
        with self.errors_of(step, [frame]), self._working(step):
            result = cast(LoadMethod, step.method).load(frame, context)
        self._let_go_after_write(step)
        return result

    def _transaction(self, step: PlannedStep) -> str | None:
        """Return what a write of ``step`` is known by at each of its tries in the run; None when there is but one."""
        retry = self.plan.pipeline.retry_of(step.index)
        if retry is None or retry.max_retries == 0:
            return None
        return f"pipeline-assets:{self.context.run_id}:{self.plan.name}/{step.name}"

    def written(self, step: PlannedStep, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with the columns that a load's target, or the table of ``step``, gets."""
        if isinstance(step.method, LoadMethod):
            return step.method.written(frame, self.context)
        return with_partition(frame, self.context.partition) if step.role is Role.TABLE else frame

    def inputs(self, step: PlannedStep) -> dict[int, DataFrame]:
        """Return the DataFrames that ``step`` takes, by step index."""
        return {index: self.dataframe(self.plan.steps[index]) for index in step.inputs}

    def check_fit(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> None:
        """Raise ConfigurationError when a validate step does not fit ``frames``, those that it takes by step index.

        Moves no data.
        """
        frame, references = _compared_by(step, frames)
        with self.errors_of(step, [frame]):
            cast(ValidateMethod, step.method).check_schema(frame, references, self.context)

    def check(self, step: PlannedStep) -> tuple[ExpectationResult, ...]:
        """Evaluate the expectations of a validate step."""
        self._check_before_data_moves()
        results = self._evaluated(step, self.inputs(step))
        self._let_go_after(step)
        return results

    def _evaluated(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> tuple[ExpectationResult, ...]:
        with self.errors_of(step, [frames[step.inputs[0]]]), self._working(step):
            return cast(ValidateMethod, step.method).validate_frame(self._rows_compared(step, frames), self.context)

    def _rows_compared(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        if step.index in self._compared:
            return self._compared[step.index]
        return cast(ValidateMethod, step.method).compared(*_compared_by(step, frames))

    def compared(self, step: PlannedStep) -> DataFrame:
        """Return the rows that a validate step checks, with what it has to know of the DataFrames beside."""
        return self._rows_compared(step, self.inputs(step))

    def recalled(self, step: PlannedStep, bad: DataFrame) -> DataFrame:
        """Return the rows that a validate step checks, told by what it has put into quarantine before: ``bad``."""
        return cast(ValidateMethod, step.method).recalled(*_compared_by(step, self.inputs(step)), bad)

    def given_compared(self, step: PlannedStep, compared: DataFrame) -> None:
        """Take what the rows that ``step`` puts into quarantine, and those that it lets pass, are told by."""
        self._compared[step.index] = compared

    def quarantine(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> Quarantined:
        """Evaluate a validate step, write the rows that do not meet it to its table, and hand the others on.

        ``frames``: what the step takes, by step index. The rows are computed, and compared with others, once: they are
        kept for the rest of the run, unless that is done already. The table holds the rows of the last run, or of the
        last run of each partition. What rows were compared with may change: from then on that table tells which are
        the others.
        """
        self._check_before_data_moves()
        method = cast(ValidateMethod, step.method)
        source, frame = self.plan.steps[step.inputs[0]], frames[step.inputs[0]]
        by_others = bool(method.deciding_references())
        self._compared.pop(step.index, None)  # of another try: this one writes both tables anew
        with self.errors_of(step, [frame]):
            level = frame.storageLevel
            is_kept = source.role is Role.TABLE or level.useMemory or level.useDisk or level.useOffHeap
            compared = self._rows_compared(step, frames)
            if by_others or not is_kept:
                laid_out = step if by_others else source
                adaptive = laid_out.index in self.optimizations.adaptive
                compared = self.context.cache.cache(step.dataframe, compared, adaptive=adaptive)
            self.given_compared(step, compared)
            results = self._evaluated(step, frames)
            found = any(result.failed for result in results)
            bad = method.bad_rows(compared, self.context)
            with self._working(step):
                written = self._write_quarantine(step, bad if found else bad.limit(0))
            if by_others:
                _, references = _compared_by(step, frames)
                compared = method.recalled(compared, references, self._rows_put_aside(step, written))
                self.given_compared(step, compared)
            good = method.good_rows(compared, self.context)
            _ = good.schema
        self._frames[step.index] = good
        if step.role is not Role.TABLE:
            self._let_go_after(step)
        return Quarantined(good, bad, results, self.quarantine_path(step), written)

    def quarantined(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        """Return the rows that ``step`` puts into quarantine, lazily. ``frames``: what it takes, by step index."""
        return cast(ValidateMethod, step.method).bad_rows(self._rows_compared(step, frames), self.context)

    def quarantine_path(self, step: PlannedStep) -> str:
        """Return where the rows are that ``step`` puts into quarantine, as Spark can reach it."""
        path = cast(ValidateMethod, step.method).quarantine_path
        if path is None:
            path = self.context.settings.table_path(self.plan.name, step.quarantine or "")
            if not is_s3(path):
                return path
        (path,) = open_for_spark([path], "default", self.context)
        return path

    def _write_quarantine(self, step: PlannedStep, bad: DataFrame) -> DeltaWrite:
        path = self.quarantine_path(step)
        partition = self.context.partition
        # By the partition's key alone: a row may be there for having none of the partition's values.
        part = Partitions(type="static", values=(partition.key,)).slice(partition.key) if partition else None
        return write_delta(
            bad,
            path,
            mode="overwrite",
            overwrite_schema=part is None,
            merge_schema=part is not None,
            partition=part,
            folder=folder_seen_from_here(path, "default", self.context.connections),
            mark=self._mark_aside(step),
        )

    def _mark_aside(self, step: PlannedStep) -> str | None:
        """Return what the write of ``step`` is found by later, where another look at the rows may tell otherwise."""
        if not cast(ValidateMethod, step.method).deciding_references():
            return None
        key = self.context.partition.key if self.context.partition else ""
        return f"pipeline-assets:{self.context.run_id}:{self.plan.name}/{step.quarantine}:{key}"

    def _recall(self, step: PlannedStep) -> None:
        """Have ``step`` let pass what it did when this run put rows aside, in another process or JVM."""
        mark = self._mark_aside(step)
        if mark is None:
            return
        with self.errors_of(step):
            path = self.quarantine_path(step)
            folder = folder_seen_from_here(path, "default", self.context.connections)
            written = find_write(self.context.spark, path, mark, folder)
            if written is not None:
                self.given_compared(step, self.recalled(step, self._rows_put_aside(step, written)))

    def _rows_put_aside(self, step: PlannedStep, written: DeltaWrite) -> DataFrame:
        reader = self.context.spark.read.format("delta").option("versionAsOf", written.version)
        rows = reader.load(self.quarantine_path(step))
        rows = rows.where(rows[RUN_ID_COLUMN] == self.context.run_id)
        partition = self.context.partition
        return rows.where(rows[PARTITION_KEY_COLUMN] == partition.key) if partition else rows

    def _let_go_after(self, step: PlannedStep) -> None:
        """Let go of what was kept here for ``step`` and others, once all of them are done."""
        self._done.add(step.index)
        for index, kept in self.optimizations.kept.items():
            name = self.plan.steps[index].dataframe
            if step.index in kept.readers <= self._done:
                with self.errors_of(step):
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
        context = dataclasses.replace(self.context, optimize=self.optimizations.adaptive.issuperset(step.inputs))
        with self.errors_of(step):
            cast(TransformMethod, step.method).transform(frames, context)

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
                self.check_fit(step, {index: plan(self.plan.steps[index]) for index in step.inputs})
            if step.has_dataframe:
                plan(step)
            elif step.role is Role.LOAD:
                frame = plan(self.plan.steps[step.inputs[0]])
                with self.errors_of(step, [frame]):
                    cast(LoadMethod, step.method).check_schema(frame, self.context)
        # Not before: after a mistake, a step that does not depend on it would go on and write.
        self._checked = True

    def _waits_for_a_write(self, step: PlannedStep) -> bool:
        """Whether ``step`` depends on data that the run may be yet to write outside, for it or another pipeline."""
        if step.index in self._waiting or self.plan.writers_before(step):
            return True
        return any(self._waits_for_a_write(self.plan.steps[index]) for index in step.inputs)

    def _apply(self, step: PlannedStep, frames: Mapping[int, DataFrame]) -> DataFrame:
        method = step.method
        with self.errors_of(step, frames.values()):
            if isinstance(method, ExtractMethod) and step.is_stream:
                frame = method.extract_stream(self.source_context(step))
            elif isinstance(method, ExtractMethod):
                config = self.plan.pipeline.config
                rewritten = config.mode == "batch" and self.plan.writes_source_of(step)
                with self._working(step):  # what it reads to learn the columns
                    frame = method.extract(
                        dataclasses.replace(self.context, optimize=config.optimize, rewritten=rewritten)
                    )
            elif isinstance(method, ValidateMethod):
                frame = method.good_rows(self._rows_compared(step, frames), self.context)
            else:
                frame = cast(TransformMethod, method).transform(_by_name(step, frames), self.context)
            # Connect analyses a plan when its schema is asked for; classic Spark has done so by now.
            _ = frame.schema
        return frame

    def source_context(self, step: PlannedStep) -> StepContext:
        """Return the context of a streaming extract: with the checkpoint of the first query that it feeds."""
        loads = [load for load in self.plan.stream_loads() if step in self.plan.upstream_of(load)]
        ends = cast(StreamingLoad, loads[0].method).takes_what_there_is
        first, *others = map(self.checkpoint, loads)
        stop = self.context.cancellation.stop
        source = StreamSource(step.name, first, stop, may_wait=not ends, others=tuple(others))
        return dataclasses.replace(self.context, source=source)

    def checkpoint(self, load: PlannedStep) -> Checkpoint:
        """Return the checkpoint of the streaming query of ``load``."""
        method = cast(StreamingLoad, load.method)
        return method.checkpoint(self.context.settings, self.context.connections)

    def start_stream(self, load: PlannedStep, query_name: str) -> StreamingQuery:
        """Start the streaming query of ``load``."""
        frame = self.dataframe(self.plan.steps[load.inputs[0]])
        with self.errors_of(load, [frame]):
            return cast(StreamingLoad, load.method).start_stream(frame, self.context, query_name)

    def start_batches(
        self, load: PlannedStep, source: PlannedStep, query_name: str, each: Callable[[DataFrame, int], None]
    ) -> StreamingQuery:
        """Start the streaming query of ``load`` so that each micro-batch of the DataFrame of ``source`` goes to
        ``each``.
        """
        frame = self.dataframe(source)
        with self.errors_of(load, [frame]):
            return cast(StreamingLoad, load.method).start_batches(frame, self.context, query_name, each)

    def given(self, step: PlannedStep, frame: DataFrame) -> None:
        """Take ``frame`` for the DataFrame of ``step``."""
        self._frames[step.index] = frame

    def _session_view(self, step: PlannedStep) -> DataFrame | None:
        if self.context.settings.spark_remote is None or step.role is not Role.VIEW:
            return None
        if self.plan.pipeline.config.mode == "streaming":
            # All of it is in one process. What has the name is the stream, or a micro-batch, that was planned last.
            return None
        catalog = self.context.spark.catalog
        name = step.dataframe
        if catalog.tableExists(name) and catalog.getTable(name).isTemporary:
            return self.context.spark.table(name)
        return None

    def _read_table(self, step: PlannedStep) -> DataFrame:
        path = self._reachable_table_path(step)
        reader = self.context.spark.read.format("delta")
        if step.index in self._versions:
            reader = reader.option("versionAsOf", self._versions[step.index])
        with self.errors_of(step):
            try:
                frame = reader.load(path)
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

    @contextmanager
    def _working(self, step: PlannedStep) -> Iterator[None]:
        """Add what Spark's jobs do inside to the work of ``step``."""
        if self.plan.pipeline.config.mode == "streaming":
            # A stream tells of itself by its progress, and a micro-batch is not to wait for the jobs' events.
            yield
            return

        def add(work: JobMetrics, stages: tuple[StageTime, ...]) -> None:
            self._work[step.index] = self._work.get(step.index, JobMetrics()).plus(work)
            self._stages[step.index] = longest((*self.stages(step), *stages))

        with watched_jobs(self.context.spark, add):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have a stop of the run cancel what Spark does inside, by a tag of the run's own."""
        spark: Any = self.context.spark
        tag = f"pipeline-assets-{self.context.run_id}"
        if self.context.settings.spark_remote is None:
            # The session's own tags are those of one thread: another can't interrupt by them.
            add, remove, interrupt = (
                spark.sparkContext.addJobTag, spark.sparkContext.removeJobTag, spark.sparkContext.cancelJobsWithTag,
            )  # fmt: skip
        else:
            add, remove, interrupt = spark.addTag, spark.removeTag, spark.interruptTag
        with spark_errors():  # it may be gone since the step before
            add(tag)
        try:
            with self.context.cancellation.interrupting(lambda: interrupt(tag)):
                yield
        finally:
            with suppress(Exception):  # Spark may be gone
                remove(tag)

    @contextmanager
    def errors_of(self, step: PlannedStep, frames: Iterable[DataFrame] = ()) -> Iterator[None]:
        """Turn what any library raises inside into this package's errors, with the step, its config and the run."""
        location, run_id = self.plan.location(step), self.context.run_id
        try:
            with secrets_needed_by(location):
                yield
        except PipelineError as error:
            error.located(location, _shown_config(step), run_id)
            raise
        except Exception as error:  # noqa: BLE001  (it is raised again as one of this package's)
            failure: PipelineError
            if is_spark_error(error):
                columns = tuple(dict.fromkeys(column for frame in frames for column in frame.columns))
                failure = spark_failure(error, columns=columns)
            else:
                failure = PipelineExecutionError(error_line(error))
            # The original is not chained, only its text: it may show a secret.
            raise failure.located(location, _shown_config(step), run_id) from original_error(error)


def _shown_config(step: PlannedStep) -> dict[str, Any]:
    config = step.method.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    shown: dict[str, Any] = redact_data(config)
    return shown


def _compared_by(step: PlannedStep, frames: Mapping[int, DataFrame]) -> tuple[DataFrame, dict[str, DataFrame]]:
    return checked_and_references(step, _by_name(step, frames))


def _by_name(step: PlannedStep, frames: Mapping[int, DataFrame]) -> dict[str, DataFrame]:
    """Return the inputs of ``step`` by the names that its config gives them, in its order."""
    return {name: frames[index] for name, index in zip(step.input_names, step.inputs, strict=True)}


def checked_and_references(
    step: PlannedStep, frames: Mapping[str, DataFrame]
) -> tuple[DataFrame, dict[str, DataFrame]]:
    """Return the DataFrame that a validate step checks, and those that it compares it with, of ``frames`` by name."""
    checked, *references = step.input_names
    return frames[checked], {name: frames[name] for name in references}
