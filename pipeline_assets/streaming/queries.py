"""The life of a pipeline's streaming queries: started, watched and stopped, in one place."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline_assets.errors import (
    DataValidationError,
    PipelineError,
    PipelineExecutionError,
    RetryableError,
    StreamingQueryError,
)
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.run_log import log_fields
from pipeline_assets.spark.failures import is_spark_error, spark_failure
from pipeline_assets.spark.jvm_log import log_as
from pipeline_assets.spark.stream_support import check_stream_support
from pipeline_assets.steps.base import ValidateMethod
from pipeline_assets.steps.delta_log import Commit
from pipeline_assets.steps.file_systems import Folder, folder_seen_from_here
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets.steps.s3_paths import normalize
from pipeline_assets.stream_rules import Guarded, guarded
from pipeline_assets.streaming.checkpoint_binding import bind
from pipeline_assets.streaming.checkpoint_lease import CheckpointLease
from pipeline_assets.streaming.commits import Commits
from pipeline_assets.streaming.connect_batches import connect_batches
from pipeline_assets.streaming.dead_letters import DeadLetters, dead_letters_of
from pipeline_assets.streaming.micro_batches import BatchChecks, MicroBatches
from pipeline_assets.streaming.quarantine_writer import quarantine_writer
from pipeline_assets.streaming.topic_watch import TopicWatch
from pipeline_assets.transience import marked, transience_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.query import StreamingQuery

_log = logging.getLogger(__name__)
# How long to wait between two looks at the queries: at first, as one that takes what there is may end in a moment, and
# at most, to which it grows within four seconds.
_FIRST_POLL_SECONDS, _POLL_SECONDS, _POLL_GROWTH = 0.1, 0.5, 1.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class BatchProgress:
    """What a streaming query tells after a micro-batch, or now and then while it waits for data.

    ``end_offsets`` and ``lag`` (records to come) are by topic and partition, as in ``events/0``; ``lag`` is as of the
    start of the batch. ``written`` is the Delta commit of the batch; without ``is_written_known`` it could not be
    looked up, or the target, as a topic, has none. ``dead_letters``: records that did not parse, by the extract that
    read them. ``operation_ms``: how long the query has spent on each of Spark's operations since it started, as far as
    Spark has told: by the name that Spark's UI has for it (``addBatch``), and on all of them (``triggerExecution``).

    Source: https://spark.apache.org/docs/latest/web-ui.html#structured-streaming-tab
    """

    load: PlannedStep
    query_id: str
    batch_id: int
    timestamp: str
    input_rows: int
    input_rows_per_second: float
    processed_rows_per_second: float
    duration_ms: int
    operation_ms: Mapping[str, int]
    end_offsets: Mapping[str, int]
    lag: Mapping[str, int]
    written: Commit | None
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    is_written_known: bool = True


class StreamingPipeline:
    """The streaming queries of ``run``'s pipeline. Stopped by the run's cancellation, at once when it hurries.

    ``is_finished`` tells whether the run of an id has ended: what it held of checkpoints is free once it does not renew
    that either.
    """

    def __init__(self, run: PipelineRun, is_finished: Callable[[str], bool], grace_seconds: float) -> None:
        self.run = run
        self.made_up: dict[str, int] = {}
        """Dead letters of before the start that were written at it, by the extract that read them."""
        self._cancellation = run.context.cancellation
        self._is_finished = is_finished
        self._grace_seconds = grace_seconds
        self._is_remote = run.context.settings.spark_remote is not None
        self._queries: list[_Watched] = []

    def watch(self) -> Generator[BatchProgress | BatchChecks, None, None]:
        """Start every query, yield their progress and how their micro-batches were checked, and end when all have ended
        or a stop is asked for.

        On every way out, errors included, all queries have been stopped: after the batch in flight where the grace
        period allows it, at once when another run has a checkpoint by now. Raises ConfigurationError before any query
        starts for what can't run, DataValidationError when a micro-batch does not meet a validate step,
        StreamingQueryError when a query fails otherwise, and PipelineCancelledError for a stop before any query runs.
        """
        poll_seconds = _FIRST_POLL_SECONDS
        with ExitStack() as held:
            with self._cancellation.guard():
                self._take_checkpoints(held)
                self._prepare()
            try:
                self._start(held)
                topics = TopicWatch(self.run)
                while not self._cancellation.stop.is_set() and any(query.is_active for query in self._queries):
                    yield from self._news()
                    yield from self._until_failure()
                    self._check_leases()
                    topics.look()
                    self._cancellation.stop.wait(poll_seconds)
                    poll_seconds = min(_POLL_SECONDS, poll_seconds * _POLL_GROWTH)
            finally:
                self._stop_all()
            yield from self._until_failure()
            yield from self._news()

    def _take_checkpoints(self, held: ExitStack) -> None:
        self._leases = []
        for load in self.run.plan.stream_loads():
            with self.run.scope.errors_of(load):
                lease = CheckpointLease(
                    self.run.checkpoint(load), self.run.context.run_id, is_finished=self._is_finished
                )
                lease.acquire(self._cancellation.stop)
            held.callback(lease.release)
            self._leases.append(lease)

    def _check_leases(self) -> None:
        for lease in self._leases:
            if lease.lost is not None:
                raise PipelineExecutionError(f"another run writes to the same checkpoint now: {lease.lost}")

    def _prepare(self) -> None:
        """Plan every query and find what is wrong with any, before the first one starts."""
        plan = self.run.plan
        _fit_state_to_machine(self.run)
        for load in plan.stream_loads():
            bind(self.run.checkpoint(load), plan, load)
        for load in plan.stream_loads():
            method = load.streaming_load
            frame = self.run.dataframe(plan.steps[load.inputs[0]])
            with self.run.scope.errors_of(load, [frame]):
                method.check_schema(frame, self.run.context)
                check_stream_support(frame, method.output_mode or "append")
        for step in plan.steps:
            if isinstance(step.method, ValidateMethod):
                self.run.checked_rows.check_fit(step, self.run.inputs(step))
        self._tellers = self._telling()
        self._dead_letters: dict[int, list[DeadLetters]] = {}
        for load, dead_letters in dead_letters_of(self.run):
            found = dead_letters.make_up()
            if found:
                self.made_up[dead_letters.extract.name] = found
                _log.warning("%s: %d broken records of before the start", plan.location(load), found)
            self._dead_letters.setdefault(load.index, []).append(dead_letters)

    def _telling(self) -> dict[int, int]:
        """Return which load's query tells about each validate step, and writes its rows for quarantine."""
        plan = self.run.plan
        loads: dict[int, list[PlannedStep]] = {}
        for load in plan.stream_loads():
            found = self._by_batches(load)
            for guard in found.guards if found is not None else ():
                loads.setdefault(guard, []).append(load)
        tellers: dict[int, int] = {}
        for guard, after in loads.items():
            step = plan.steps[guard]
            with self.run.scope.errors_of(step):
                quarantines = step.validate_method.quarantines
                tellers[guard] = (quarantine_writer(self.run, step, after) if quarantines else after[0]).index
        return tellers

    def _start(self, held: ExitStack) -> None:
        plan = self.run.plan
        for load in plan.stream_loads():
            name, letters = f"{plan.name}/{load.name}", self._dead_letters.get(load.index, [])
            found = self._by_batches(load)
            # A query's jobs keep what the thread that starts it tells.
            log_as(self.run.context.spark, {**log_fields(plan, load), "run_id": self.run.context.run_id})
            batches: MicroBatches | None = None
            if found is None:
                query = self.run.start_stream(load, name)
            else:
                told = frozenset(guard for guard in found.guards if self._tellers[guard] == load.index)
                batches = MicroBatches(self.run, load, found, told)
                each = self._for_each(batches, load, held)
                query = self.run.start_batches(load, plan.steps[found.source], name, each)
            try:
                watched = _Watched(self.run, load, query, letters, batches)
            except BaseException:
                query.stop()  # those that are watched alone are stopped in the end
                raise
            _log.info("%s: the streaming query %s has started, id %s", plan.location(load), name, watched.id)
            self._queries.append(watched)

    def _by_batches(self, load: PlannedStep) -> Guarded | None:
        """Return from where on ``load`` works on each micro-batch in Python here; None when Spark does all of it."""
        plan = self.run.plan
        found = guarded(plan.pipeline, [step.inputs for step in plan.steps], load.index)
        if found is None and self._is_remote and load.streaming_load.takes_batches:
            return Guarded(load.inputs[0], ())
        return found

    def _for_each(self, batches: MicroBatches, load: PlannedStep, held: ExitStack) -> Callable[[DataFrame, int], None]:
        if not self._is_remote:
            return batches
        with self.run.scope.errors_of(load):
            return held.enter_context(connect_batches(self.run.context.spark, batches))

    def _news(self) -> Iterator[BatchProgress | BatchChecks]:
        for query in self._queries:
            yield from query.news()

    def _until_failure(self) -> Iterator[BatchProgress | BatchChecks]:
        """Raise why a query has failed, if one has, after what is there to tell."""
        for query in self._queries:
            if (failure := query.failure()) is not None:
                yield from self._news()
                raise failure

    def _stop_all(self) -> None:
        """Stop every query between two batches; in the middle of one when the grace period is over, or a lease lost."""
        deadline = time.monotonic() + self._grace_seconds
        waiting = [query for query in self._queries if query.is_active]
        batches = {query: query.last_batch for query in waiting}
        while waiting and time.monotonic() < deadline and not self._must_hurry():
            for query in list(waiting):
                if query.is_idle or query.last_batch != batches[query]:
                    query.stop()
                    waiting.remove(query)
            self._cancellation.hurry.wait(0.1 if waiting else 0)
        for query in waiting:
            query.stop()
        for query in self._queries:
            _log.info("the streaming query %s has ended, after batch %s", query.id, query.last_batch)

    def _must_hurry(self) -> bool:
        # Who has taken the lease of a checkpoint over may be writing the same batch already.
        return self._cancellation.hurry.is_set() or any(lease.lost is not None for lease in self._leases)


class _Watched:
    """A started query of one load."""

    def __init__(
        self,
        run: PipelineRun,
        load: PlannedStep,
        query: StreamingQuery,
        dead_letters: list[DeadLetters],
        batches: MicroBatches | None = None,
    ) -> None:
        self._batches = batches
        self._run = run
        self._load = load
        self._query = query
        self._dead_letters = dead_letters
        self._seen = ""
        self._failure: PipelineError | None = None
        self._is_stopped = False
        self._operation_ms: Counter[str] = Counter()
        self.id = str(query.id)
        self._last: Any = None
        method = load.streaming_load
        self._app_id = method.transaction_app_id(self.id, run.checkpoint(load))
        self._commits = Commits(self._open_table)

    @property
    def is_active(self) -> bool:
        return self._ask(lambda: bool(self._query.isActive), otherwise=False)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is in flight."""
        return self._ask(lambda: not self._query.isActive or not self._query.status["isTriggerActive"], otherwise=True)

    @property
    def last_batch(self) -> int:
        progress = self._last_progress()
        return -1 if progress is None else int(progress.batchId)

    def stop(self) -> None:
        """Stop the query. A batch that it is in the middle of is given up, and done again at the next start.

        What Spark then says of that batch is no failure of the query; that Spark could not be asked is one.
        """
        if self.failure() is None:
            self._ask(self._query.stop, otherwise=None)
            self._is_stopped = self._ask(lambda: not self._query.isActive, otherwise=False)

    def _last_progress(self) -> Any:
        self._last = self._ask(lambda: self._query.lastProgress, otherwise=self._last)
        return self._last

    def _ask(self, question: Callable[[], _T], otherwise: _T) -> _T:
        """Return Spark's answer; ``otherwise`` when it has none, which is then the failure of the query."""
        try:
            return question()
        except Exception as error:
            if not is_spark_error(error) and not isinstance(error, ConnectionError):
                raise
            if self._failure is None:
                self._failure = self._explained(error)
            return otherwise

    def news(self) -> Iterator[BatchProgress | BatchChecks]:
        """Yield what has not been told yet: checks, and progress with the dead letters of its batch written."""
        if self._batches is not None:
            yield from self._batches.news()
        last = self._last_progress()
        if last is None or last.timestamp == self._seen:
            return
        recent: list[Any] = self._ask(lambda: list(self._query.recentProgress), otherwise=[])
        for event in recent:
            if event.timestamp > self._seen:
                self._seen = event.timestamp
                try:
                    told = self._told(json.loads(event.json))
                except (ConnectionError, PipelineError):
                    # Of a JVM that is gone, what was to be written is the first to know, and not of which query.
                    failure = self.failure()
                    if failure is None:
                        raise
                    raise failure from None
                yield told

    def _told(self, progress: Mapping[str, Any]) -> BatchProgress:
        # The sums over the sources are not in what Spark Connect tells.
        sources = progress["sources"]
        ended = _by_partition(progress, "endOffset")
        latest = _by_partition(progress, "latestOffset")
        was_run = "addBatch" in progress["durationMs"]
        self._operation_ms.update(progress["durationMs"])
        written, is_known = self._commit(progress["batchId"]) if was_run else (None, True)
        return BatchProgress(
            load=self._load,
            query_id=progress["id"],
            batch_id=progress["batchId"],
            timestamp=progress["timestamp"],
            input_rows=sum(source["numInputRows"] for source in sources),
            input_rows_per_second=_sum(sources, "inputRowsPerSecond"),
            processed_rows_per_second=_sum(sources, "processedRowsPerSecond"),
            duration_ms=progress["durationMs"].get("triggerExecution", 0),
            operation_ms=dict(self._operation_ms),
            end_offsets=ended,
            lag={partition: max(0, offset - ended.get(partition, offset)) for partition, offset in latest.items()},
            written=written,
            is_written_known=is_known,
            dead_letters={letters.extract.name: letters.after(progress) for letters in self._dead_letters}
            if was_run
            else {},
        )

    def _commit(self, batch: int) -> tuple[Commit | None, bool]:
        return (None, False) if self._app_id is None else self._commits.find(self._app_id, batch)

    def _open_table(self) -> Folder | None:
        method, context = self._load.method, self._run.context
        if not isinstance(method, ToDeltaLake):
            return None
        path = context.settings.resolve(normalize(method.path))
        return folder_seen_from_here(path, method.connection, context.connections)

    def failure(self) -> PipelineError | None:
        """Return why the query has ended, when it was not for having done its work."""
        if self._is_stopped:
            return None
        if self._failure is None and not self.is_active:
            self._last_progress()
            self._ask(lambda: self._query.awaitTermination(1), otherwise=None)
        return self._failure

    def _explained(self, error: Exception) -> PipelineError:
        """Return what ended the query, with what helps to find it again in logs and tables."""
        refused = self._batches.failure if self._batches is not None else None
        if isinstance(refused, DataValidationError):
            return refused
        if refused is not None:
            cause: PipelineError = refused
        elif isinstance(error, ConnectionError):
            cause = RetryableError("Spark's JVM is gone", kind="lostExecutor", details=str(error))
        else:
            cause = spark_failure(error)
        facts = [
            f"query {self._run.plan.name}/{self._load.name}, id {self.id}",
            f"last progress: {json.dumps(json.loads(self._last.json)) if self._last is not None else 'none yet'}",
            cause.details,
        ]
        message = f"the streaming query ended: {cause.message}"
        failure = StreamingQueryError(message, details="\n".join(facts), location=self._run.plan.location(self._load))
        return marked(failure, transience_of(cause))


def _sum(sources: Sequence[Mapping[str, Any]], rate: str) -> float:
    # JSON has no infinity: Spark leaves it out, or writes it as text.
    values = (source.get(rate) for source in sources)
    return float(sum(value for value in values if isinstance(value, int | float)))


def _by_partition(progress: Mapping[str, Any], which: str) -> dict[str, int]:
    """Return the offsets of all Kafka sources of a progress event, by ``topic/partition``."""
    found: dict[str, int] = {}
    for source in progress["sources"]:
        offsets = source.get(which)
        if isinstance(offsets, str):
            with suppress(ValueError):
                offsets = json.loads(offsets)
        if not isinstance(offsets, dict):
            continue
        for topic, partitions in offsets.items():
            if isinstance(partitions, dict):
                found |= {f"{topic}/{partition}": int(offset) for partition, offset in partitions.items()}
    return found


def _fit_state_to_machine(run: PipelineRun) -> None:
    """Keep the state of streams in as many partitions as a single machine has use for.

    Spark's 200 are for clusters; adaptive execution, which brings them down in batches, does not work on state. A
    checkpoint keeps the number that it was made with.
    """
    conf = run.context.spark.conf
    master = str(conf.get("spark.master", ""))
    if master.startswith("local") and conf.get("spark.sql.shuffle.partitions") == "200":
        conf.set("spark.sql.shuffle.partitions", "8")
