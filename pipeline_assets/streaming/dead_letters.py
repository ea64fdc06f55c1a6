"""Records of a topic that do not parse: into a Delta table, each once, whenever the stream stopped in between.

A streaming query counts them as it goes (an observation in its plan), and leaves them out. Only when there are any
are the offsets of the batch read again, for the broken ones alone. The checkpoint keeps up to which batch this is
done; a start makes up for batches that a crash came before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.steps.delta_stream import append_once
from pipeline_assets.steps.delta_table import table_columns
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.kafka_offsets import offsets_json, parse_offsets
from pipeline_assets.steps.kafka_ranges import not_before, or_earliest
from pipeline_assets.steps.kafka_stream_start import kept_source
from pipeline_assets.steps.paths import open_for_spark
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.streaming.commits import Commits

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from pipeline_assets.steps.checkpoint import Checkpoint
    from pipeline_assets.steps.kafka_offsets import Offsets

_DOCUMENT = "dead_letters"
# What tells a record of a topic from one of another topic that had the name before.
_RECORD = ("topic", "partition", "offset", "timestamp")


class DeadLetters:
    """The broken records of one Kafka extract, as the streaming query of ``load`` meets them.

    ``table`` is the Delta table's path: columns topic, partition, offset, timestamp, key, value and reason, among
    others.
    """

    def __init__(self, run: PipelineRun, extract: PlannedStep, load: PlannedStep) -> None:
        self.extract = extract
        self._run = run
        self._method = cast(FromKafka, extract.method)
        self._context = run.source_context(extract)
        self._checkpoint: Checkpoint = run.checkpoint(load)
        own = self._method.dead_letter_path
        self.table = own or run.context.settings.table_path(run.plan.name, extract.dead_letters or "")
        if own or is_s3(self.table):
            (self.table,) = open_for_spark([self.table], "default", run.context)
        connections = run.context.connections
        self._commits = Commits(lambda: folder_seen_from_here(self.table, "default", connections))
        self._document = _named(extract)
        self._reached: Offsets | None = None  # up to where all of them are in the table; None: to the stream's start

    def make_up(self) -> int:
        """Write those of batches that were committed before anyone looked; returns how many. To be called first.

        What of them has gone since is no loss of the stream's, which has read it: it is left out, with a warning.
        """
        committed = self._checkpoint.committed_offsets()
        if committed is None:
            return 0
        last, _ = committed
        document = self._checkpoint.read_document(self._document) or {"batch": -1, "offsets": None}
        noted, self._reached = document["batch"], self._own([document["offsets"]])
        written = 0
        left: Offsets | None = None
        for batch in self._checkpoint.planned_batches():
            if not noted < batch <= last:
                continue
            end = self._own(self._checkpoint.offsets_of(batch))
            if end is not None and end != self._reached:
                left = self._left() if left is None else left
                start = not_before(self._reached or {}, left)
                written += self._write(self._checkpoint.query_id() or "", batch, start, end)
                self._done(batch, end)
                noted = batch
        if noted < last:
            # In the batches since, nothing was read: the next start need not look at them.
            self._done(last, self._reached)
        return written

    def after(self, progress: Mapping[str, Any]) -> int:
        """Write those of the micro-batch of ``progress`` (a StreamingQueryProgress); returns how many there were."""
        sources = progress["sources"]
        end = self._own([_text(source["endOffset"]) for source in sources])
        start = self._own([_text(source["startOffset"]) for source in sources])
        # Spark tells of the last 100 batches only: what came before this one may never have been told.
        missed, start = start != self._reached, self._reached
        if end is None or end == start:
            return 0
        observed = (progress.get("observedMetrics") or {}).get(f"kafka_{self.extract.name}") or {}
        found = int(observed.get("dead_letters", 0))
        # A batch that the sink had committed before a crash is not computed again: nothing has been observed then.
        if found or missed or not observed.get("records"):
            found = self._write(progress["id"], progress["batchId"], start, end)
        self._done(progress["batchId"], end)
        return found

    def _write(self, query_id: str, batch: int, start: Offsets | None, end: Offsets) -> int:
        with self._run.scope.errors_of(self.extract):
            # No load has a note of what was looked at: that may be long ago, and gone without any loss.
            start = or_earliest(self._left() if start is None else start, end)
            frame = self._method.dead_letters(self._context, start, end)
            if frame is None:
                return 0
            app_id = f"{query_id}:{self.extract.name}"
            if self._beside_others:
                append_once(self._not_there(frame), self.table, app_id, batch)
                return frame.count()
            append_once(frame, self.table, app_id, batch)
            return self._commits.rows_appended(app_id, batch, frame)

    @cached_property
    def _beside_others(self) -> bool:
        """Whether others had written to the table when this query began to count."""
        document = self._checkpoint.read_document(self._document)
        if document is not None:
            return bool(document.get("besideOthers", False))
        with self._run.scope.errors_of(self.extract):
            return table_columns(self._context.spark, self.table) is not None

    def _not_there(self, frame: DataFrame) -> DataFrame:
        """Leave out what the query of a load that is gone, or of the extract's earlier name, has written."""
        known = self._context.spark.read.format("delta").load(self.table)
        return frame.join(known.select(*_RECORD), list(_RECORD), "left_anti")

    def _left(self) -> Offsets:
        """Return from where on records that nobody has looked at are left in Kafka."""
        with self._run.scope.errors_of(self.extract):
            start = self._reached
            if start is None:
                source = self._context.source
                document = (kept_source(source.step, source.checkpoints) if source is not None else None) or {}
                start = parse_offsets(json.dumps(document.get("startingOffsets", {})))
            return self._method.left_from(self._context, start)

    def _own(self, offsets: Sequence[str | None] | None) -> Offsets | None:
        """Return the offsets of this extract's source among those of a query."""
        for text in offsets or ():
            if text is not None and text.startswith("{"):
                found = {topic: _numbers(parts) for topic, parts in json.loads(text).items() if isinstance(parts, dict)}
                if found and all(self._method.subscribes(topic) for topic in found):
                    return found
        return None

    def _done(self, batch: int, end: Offsets | None) -> None:
        offsets = offsets_json(end) if end is not None else None
        document = {"batch": batch, "offsets": offsets, "besideOthers": self._beside_others}
        self._checkpoint.write_document(self._document, document)
        self._reached = end


def _named(extract: PlannedStep) -> str:
    return f"{_DOCUMENT}_{extract.name}"


def _numbers(partitions: Mapping[str, Any]) -> dict[int, int]:
    return {int(partition): int(offset) for partition, offset in partitions.items()}


def _text(offset: Any) -> str | None:
    return offset if offset is None or isinstance(offset, str) else json.dumps(offset)


def dead_letters_of(run: PipelineRun) -> Iterator[tuple[PlannedStep, DeadLetters]]:
    """Yield, with the load whose query counts them, those of each Kafka extract whose records can be broken.

    That is the load whose checkpoint says up to where they are written, wherever it stands by now; else the first.
    """
    for extract in run.plan.steps:
        if extract.dead_letters is not None:
            loads = run.plan.stream_loads_of(extract)
            counting = (load for load in loads if run.checkpoint(load).read_document(_named(extract)) is not None)
            load = next(counting, loads[0])
            yield load, DeadLetters(run, extract, load)
