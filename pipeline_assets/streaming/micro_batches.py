"""What a load's query does with each micro-batch when validate steps stand before it, or when it merges over Connect.

The query's own plan ends at the DataFrame that the first of these steps checks. Each micro-batch of it is kept, checked
in one pass, and goes on by the later steps as a batch: rows for quarantine into their table, the others into the
target, each by one Delta commit that carries the query's id and the batch's number, so that a batch that is repeated
after a crash is not written twice. What it was compared with may have changed by then: which rows were put aside is
read from the first of these commits, and that none was, from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline_assets.errors import ConfigurationError, DataValidationError, PipelineError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.steps.base import ExpectationResult
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.delta_log import newest_version
from pipeline_assets.steps.delta_stream import append_once, rows_of_append
from pipeline_assets.steps.file_systems import Folder, folder_seen_from_here
from pipeline_assets.stream_rules import Guarded
from pipeline_assets.streaming.commits import Commits
from pipeline_assets.validation import raise_for_failures

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclasses.dataclass(frozen=True)
class BatchChecks:
    """How one validate step came out for one micro-batch of a load; ``quarantined`` rows were put aside."""

    load: PlannedStep
    step: PlannedStep
    batch_id: int
    results: tuple[ExpectationResult, ...]
    quarantined: int = 0


class MicroBatches:
    """For ``foreachBatch`` of the query of ``load``.

    ``told``: the validate steps that this query tells about. Where several loads come after one of them, the query of
    one does, and writes the rows for quarantine; the others leave these rows out.
    """

    def __init__(self, run: PipelineRun, load: PlannedStep, guarded: Guarded, told: frozenset[int]) -> None:
        self.failure: PipelineError | None = None
        """Why the last micro-batch was not written, when it was not."""
        self._run = run
        self._load = load
        self._source = run.plan.steps[guarded.source]
        self._guards = [run.plan.steps[index] for index in guarded.guards]
        self._told = told
        self._recalled: set[int] = set()
        self._aside: dict[int, Commits] = {}
        self._may_be_repeated = True
        self._news: queue.SimpleQueue[BatchChecks] = queue.SimpleQueue()

    def news(self) -> Iterator[BatchChecks]:
        """Yield what has been checked since the last call."""
        while not self._news.empty():
            yield self._news.get()

    def __call__(self, frame: DataFrame, batch_id: int) -> None:
        """Check the micro-batch and write it.

        Raises DataValidationError, and has written nothing, when it does not meet a step with onFailure ``fail``.
        """
        # A micro-batch lives in a session of its own: what is joined with it has to be read there.
        context = dataclasses.replace(self._run.context, spark=frame.sparkSession, is_micro_batch=True)
        batch = PipelineRun(self._run.plan, context, selected=())
        batch.given(self._source, frame)
        with ExitStack() as kept, self._failures_kept():
            if self._guards:
                _keep(frame, kept)
            self._recalled.clear()
            for guard in filter(_decides_by_others, self._guards):
                with batch.scope.errors_of(guard):
                    compared = self._told_once(batch, guard, batch_id)
                    _keep(compared, kept)
                batch.checked_rows.decide_by(guard, compared)
            self._may_be_repeated = True
            self._write(batch, batch_id)
            self._may_be_repeated = False  # the next one is new, until this query ends

    def _told_once(self, batch: PipelineRun, guard: PlannedStep, batch_id: int) -> DataFrame:
        """Return the rows that ``guard`` checks, with what they are told by: the same at each try of the batch."""
        path = batch.checked_rows.quarantine_path(guard)
        folder = self._opened(path)
        if folder is None:
            raise ConfigurationError(
                f"quarantinePath {path}: where rows are compared with another DataFrame, their table is on S3 or on a "
                "mounted file system"
            )
        rows = batch.checked_rows
        note = self._checkpoint.read_document(_aside_note(guard)) if self._may_be_repeated else None
        if note is None or note["batchId"] != batch_id:
            return rows.compared(guard, batch.inputs(guard))
        if note["tableVersion"] is None:
            bad = rows.bad(guard, batch.inputs(guard)).limit(0)
        else:
            app_id, after = self._aside_app_id(guard), note["tableVersion"]
            found = rows_of_append(batch.context.spark, path, folder, app_id, batch_id, after)
            if found is None:
                return rows.compared(guard, batch.inputs(guard))
            _require_reasons(note["reasons"], guard)
            bad = found
        self._recalled.add(guard.index)
        return rows.recalled(guard, batch.inputs(guard), bad)

    def _write(self, batch: PipelineRun, batch_id: int) -> None:
        found = {guard.index: batch.check(guard) for guard in self._guards if self._checks(guard)}
        checks = [
            BatchChecks(self._load, guard, batch_id, found[guard.index])
            for guard in self._guards
            if guard.index in found
        ]
        try:
            for guard in self._guards:
                if guard.validate_method.reaction == "fail":
                    with batch.scope.errors_of(guard):
                        raise_for_failures(guard, found[guard.index])
        except DataValidationError:
            self._tell(checks)
            raise
        told = [self._put_aside(batch, check) for check in checks]
        method = self._load.streaming_load
        rows = batch.dataframe(batch.plan.steps[self._load.inputs[0]])
        with batch.scope.errors_of(self._load, [rows]):
            method.write_batch(rows, batch.context, batch_id, self._app_id)
        self._tell(told)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return self._run.checkpoint(self._load)

    # Both stay the same while the query runs, and are in files, which may be far away.
    @cached_property
    def _query_id(self) -> str:
        return self._checkpoint.query_id() or ""

    @cached_property
    def _app_id(self) -> str | None:
        return self._load.streaming_load.transaction_app_id(self._query_id, self._checkpoint)

    def _aside_app_id(self, guard: PlannedStep) -> str:
        return f"{self._query_id}:{guard.name}"

    def _opened(self, path: str) -> Folder | None:
        return folder_seen_from_here(path, "default", self._run.context.connections)

    def _checks(self, guard: PlannedStep) -> bool:
        return guard.index in self._told or guard.validate_method.reaction == "fail"

    def _tell(self, checks: list[BatchChecks]) -> None:
        for check in checks:
            if check.step.index in self._told:
                self._news.put(check)

    def _note_aside(self, check: BatchChecks, table: Folder | None) -> None:
        """Note, before rows go into ``table``, that those of this micro-batch are found after the version that it has.

        ``table`` is None when there are none: the next try might find some.
        """
        version = None
        if table is not None:
            newest = newest_version(table)
            version = -1 if newest is None else newest
        reasons = sorted(check.step.validate_method.reasons())
        note = {"batchId": check.batch_id, "tableVersion": version, "reasons": reasons}
        self._checkpoint.write_document(_aside_note(check.step), note)

    @contextmanager
    def _failures_kept(self) -> Iterator[None]:
        try:
            self.failure = None
            yield
        except PipelineError as error:
            # Through Spark it would come back as a text.
            self.failure = error
            raise

    def _put_aside(self, batch: PipelineRun, check: BatchChecks) -> BatchChecks:
        method = check.step.validate_method
        if not method.quarantines:
            return check
        found, noted = any(result.failed for result in check.results), _decides_by_others(check.step)
        if not found and not noted:
            return check
        app_id = self._aside_app_id(check.step)
        with batch.scope.errors_of(check.step):
            path = batch.checked_rows.quarantine_path(check.step)
            if noted and check.step.index not in self._recalled:
                self._note_aside(check, self._opened(path) if found else None)
            if not found:
                return check
            bad = batch.checked_rows.bad(check.step, batch.inputs(check.step))
            append_once(bad, path, app_id, check.batch_id)
            commits = self._aside.setdefault(check.step.index, Commits(lambda: self._opened(path)))
            return dataclasses.replace(check, quarantined=commits.rows_appended(app_id, check.batch_id, bad))


def _decides_by_others(guard: PlannedStep) -> bool:
    """Whether rows go into quarantine by what there is in other DataFrames."""
    return bool(guard.validate_method.deciding_references())


def _aside_note(guard: PlannedStep) -> str:
    """Return the name under which the checkpoint says where to find what the last micro-batch was told by."""
    return f"aside_{guard.name}"


def _require_reasons(reasons: Sequence[str], guard: PlannedStep) -> None:
    """Raise ConfigurationError when rows were put aside for other ``reasons`` than the step has now."""
    now = guard.validate_method.reasons()
    changed = sorted(now.symmetric_difference(reasons))
    if changed:
        raise ConfigurationError(
            "the last run put rows of this micro-batch into quarantine and did not load the others, and the step has "
            f"been changed since ({changed[0]!r}): restore the step, let the stream load this micro-batch, and change "
            "it then"
        )


def _keep(frame: DataFrame, kept: ExitStack) -> None:
    frame.persist()
    kept.callback(frame.unpersist)
