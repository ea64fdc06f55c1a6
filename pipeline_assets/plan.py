"""A pipeline as a graph of named DataFrames, sources and sinks. Pure: no Spark, no Dagster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, cast

from pipeline_assets.errors import StepLocation
from pipeline_assets.graphs import reach
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.steps.base import Dataset, StepMethod, ValidateMethod
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.paths import delta_dataset, warehouse_dataset
from pipeline_assets.steps.streaming_load import StreamingLoad

DEAD_LETTERS_CHECK = "no_dead_letters"
"""The check of a stream's extract with ``dead_letters``."""
T = TypeVar("T")


class Role(Enum):
    """What a step is to the graph."""

    VIEW = "view"
    """A lazy DataFrame."""
    TABLE = "table"
    """A DataFrame that is written to the warehouse."""
    CONTROL = "control"
    """Says what stays cached; has no DataFrame of its own."""
    CHECK = "check"
    LOAD = "load"


@dataclass(frozen=True)
class PlannedStep:
    """A step in its place. ``inputs`` are indices of the steps whose DataFrames it takes, in order, and
    ``input_names`` the names by which it takes them.

    ``after``: steps that must have run, without their data being taken. ``name`` is the asset's name, and the
    DataFrame's unless ``dataframe`` says otherwise. ``is_stream``: whether its DataFrame, or what it loads, is one.
    """

    index: int
    name: str
    method: StepMethod
    role: Role
    inputs: tuple[int, ...]
    input_names: tuple[str, ...]
    after: tuple[int, ...]
    dataframe: str
    code_version: str
    description: str | None
    is_stream: bool = False

    @property
    def has_dataframe(self) -> bool:
        """Whether other steps can take a DataFrame from it."""
        return self.role in (Role.VIEW, Role.TABLE)

    def named_inputs(self, values: Mapping[int, T]) -> dict[str, T]:
        """Return what ``values`` has for each input, by the names that the config gives them, in its order."""
        return {name: values[index] for name, index in zip(self.input_names, self.inputs, strict=True)}

    @property
    def validate_method(self) -> ValidateMethod:
        """The method of a validate step."""
        return cast(ValidateMethod, self.method)

    @property
    def streaming_load(self) -> StreamingLoad:
        """The method of a load that writes a stream."""
        return cast(StreamingLoad, self.method)

    @property
    def quarantine(self) -> str | None:
        """The name of the asset with the rows that it puts into quarantine; None when it does not."""
        return quarantine_name(self.name) if quarantines(self.method) else None

    @property
    def moves_rows(self) -> bool:
        """Whether it writes rows, of a batch."""
        return self.role in (Role.LOAD, Role.TABLE) or self.quarantine is not None

    @property
    def dead_letters(self) -> str | None:
        """The name of the asset with the records of a stream that it can't read; None when it reads none such."""
        may_break = isinstance(self.method, FromKafka) and self.is_stream and self.method.can_break
        return dead_letters_name(self.name) if may_break else None


@dataclass(frozen=True)
class PipelinePlan:
    """The graph of one pipeline."""

    pipeline: Pipeline
    steps: tuple[PlannedStep, ...]

    @property
    def name(self) -> str:
        """The pipeline's name as Dagster takes it."""
        return self.pipeline.config.asset_prefix

    @property
    def is_streaming(self) -> bool:
        """Whether its runs are streams."""
        return self.pipeline.is_streaming

    def location(self, step: PlannedStep) -> StepLocation:
        """Name ``step`` for an error."""
        return StepLocation(self.pipeline.config.name, step.index, step.method.type, step.method.method)

    def op_name(self, step: PlannedStep) -> str:
        """Return the name of the op that runs ``step`` of a batch; it is its step key, too."""
        return f"{self.name}__{step.name}"

    @property
    def stream_op_name(self) -> str:
        """The name of the op that runs a streaming pipeline."""
        return f"{self.name}__stream"

    def stream_loads(self) -> tuple[PlannedStep, ...]:
        """Return the loads that write streams, each by a query of its own."""
        return tuple(step for step in self.steps if step.role is Role.LOAD and step.is_stream)

    def stream_loads_of(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the loads that write the stream of ``step``, or what comes of it."""
        return tuple(load for load in self.stream_loads() if step in self.upstream_of(load))

    def upstream_of(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the steps that ``step`` takes its data from, directly or not, in their order."""
        found = reach(step.index, lambda index: self.steps[index].inputs)
        return tuple(self.steps[index] for index in sorted(found))

    def views_under(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the views that ``step`` takes its rows from, directly or by way of others, in their order."""

        def views(index: int) -> Iterator[int]:
            return (source for source in self.steps[index].inputs if self.steps[source].role is Role.VIEW)

        return tuple(self.steps[index] for index in sorted(reach(step.index, views)))

    def writers_before(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the earlier steps that write what ``step`` reads from outside, or a part of it."""
        sources = step.method.sources()
        return tuple(earlier for earlier in self.steps[: step.index] if self._writes(earlier, sources))

    def writes_source_of(self, step: PlannedStep) -> bool:
        """Whether a step of the pipeline, before or after ``step``, writes what that reads from outside."""
        return any(self._writes(other, step.method.sources()) for other in self.steps)

    def waits_for(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the steps that must have run before ``step``, without its taking their data.

        They are those ``after`` which it comes, and those that write what it writes, or a part of it, or move rows that
        come from it: the rows of a view are read when they are moved. Nothing waits so for a check.
        """
        found = {*step.after, *self._before_write(step)}.difference(step.inputs)
        return tuple(self.steps[index] for index in sorted(found) if self.steps[index].role is not Role.CHECK)

    def _before_write(self, step: PlannedStep) -> Iterator[int]:
        written = [dataset for _, dataset in self.written_by(step)]
        for earlier in self.steps[: step.index] if written else ():
            if self._writes(earlier, written) or (earlier.moves_rows and self._reads(earlier, written)):
                yield earlier.index

    def _reads(self, step: PlannedStep, datasets: Sequence[Dataset]) -> bool:
        sources = [source for each in (step, *self.upstream_of(step)) for source in each.method.sources()]
        return any(dataset.overlaps(source) for dataset in datasets for source in sources)

    def _writes(self, step: PlannedStep, sources: Sequence[Dataset]) -> bool:
        return any(written.overlaps(source) for _, written in self.written_by(step) for source in sources)

    def written_by(self, step: PlannedStep) -> Iterator[tuple[str, Dataset]]:
        """Yield the data outside the pipeline that ``step`` writes, its tables in the warehouse included.

        Each is named by the asset of the pipeline that it is.
        """
        for sink in step.method.sinks():
            yield step.name, sink
        if step.role is Role.TABLE:
            yield step.name, warehouse_dataset(self.name, step.name)
        if step.quarantine is not None:
            yield step.quarantine, self._own_table(step.quarantine, step.validate_method.quarantine_path)
        if step.dead_letters is not None:
            yield step.dead_letters, self._own_table(step.dead_letters, cast(FromKafka, step.method).dead_letter_path)

    def _own_table(self, asset: str, path: str | None) -> Dataset:
        return delta_dataset(path) if path else warehouse_dataset(self.name, asset)

    @property
    def tables(self) -> list[str]:
        """The assets that the pipeline keeps as tables of the warehouse."""
        written = (found for step in self.steps for found in self.written_by(step))
        return [asset for asset, dataset in written if dataset == warehouse_dataset(self.name, asset)]


def check_name(step: str, expectation: str) -> str:
    """Return how the check of one expectation of a validate step is called; the expectation may have no name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{step}_{expectation}" if expectation else step)


def quarantine_name(step: str) -> str:
    """Return how the asset of the rows that the step of that name puts into quarantine is called."""
    return f"{step}_quarantine"


def dead_letters_name(step: str) -> str:
    """Return how the asset of the records that the step of that name can't read is called."""
    return f"{step}_dead_letters"


def quarantines(method: StepMethod) -> bool:
    """Whether ``method`` is a check that yields a DataFrame."""
    return isinstance(method, ValidateMethod) and method.quarantines
