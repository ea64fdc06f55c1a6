"""From the steps of a pipeline to a graph of named DataFrames, sources and sinks. Pure: no Spark, no Dagster."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar, cast

from pipeline_assets.config import InvalidPipelineError, Pipeline, sorted_issues
from pipeline_assets.errors import (
    ConfigIssue,
    ConfigurationError,
    DataFrameResolutionError,
    StepLocation,
)
from pipeline_assets.json_documents import pointer
from pipeline_assets.steps.base import (
    CacheControlMethod,
    DataFrameMethod,
    Dataset,
    ExtractMethod,
    LoadMethod,
    StepMethod,
    ValidateMethod,
)
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.load_files import ToS3
from pipeline_assets.steps.paths import delta_dataset, place_of, warehouse_dataset
from pipeline_assets.steps.transform import Sql, Uncache, UncacheAll
from pipeline_assets.stream_rules import stream_flags, stream_issues

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
    def quarantine(self) -> str | None:
        """The name of the asset with the rows that it puts into quarantine; None when it does not."""
        return f"{self.name}_quarantine" if _quarantines(self.method) else None

    @property
    def moves_rows(self) -> bool:
        """Whether it writes rows, of a batch."""
        return self.role in (Role.LOAD, Role.TABLE) or self.quarantine is not None

    @property
    def dead_letters(self) -> str | None:
        """The name of the asset with the records of a stream that it can't read; None when it reads none such."""
        may_break = isinstance(self.method, FromKafka) and self.is_stream and self.method.can_break
        return f"{self.name}_dead_letters" if may_break else None


@dataclass(frozen=True)
class PipelinePlan:
    """The graph of one pipeline."""

    pipeline: Pipeline
    steps: tuple[PlannedStep, ...]

    @property
    def name(self) -> str:
        """The pipeline's name as Dagster takes it."""
        return self.pipeline.config.asset_prefix

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

    def upstream_of(self, step: PlannedStep) -> tuple[PlannedStep, ...]:
        """Return the steps that ``step`` takes its data from, directly or not, in their order."""
        found: set[int] = set()
        pending = list(step.inputs)
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending.extend(self.steps[index].inputs)
        return tuple(self.steps[index] for index in sorted(found))

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
            yield step.quarantine, self._own_table(step.quarantine, cast(ValidateMethod, step.method).quarantine_path)
        if step.dead_letters is not None:
            yield step.dead_letters, self._own_table(step.dead_letters, cast(FromKafka, step.method).dead_letter_path)

    def _own_table(self, asset: str, path: str | None) -> Dataset:
        return delta_dataset(path) if path else warehouse_dataset(self.name, asset)

    @property
    def tables(self) -> list[str]:
        """The assets that the pipeline keeps as tables of the warehouse."""
        written = (found for step in self.steps for found in self.written_by(step))
        return [asset for asset, dataset in written if dataset == warehouse_dataset(self.name, asset)]

    def for_partition(self, key: str) -> PipelinePlan:
        """Return the plan of one partition: the same graph, with the key in the methods' config."""
        return plan_pipeline(self.pipeline.for_partition(key))


def check_name(step: str, expectation: str) -> str:
    """Return how the check of one expectation of a validate step is called; the expectation may have no name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{step}_{expectation}" if expectation else step)


def plan_pipeline(pipeline: Pipeline) -> PipelinePlan:
    """Plan a pipeline's steps. Raises ConfigurationError with every issue of the graph."""
    return _Planner(pipeline).plan()


def with_graph_issues(error: ConfigurationError) -> ConfigurationError:
    """Return ``error`` with what is wrong in the graph of the steps that could be read: a file's issues at once."""
    if not isinstance(error, InvalidPipelineError) or error.readable is None:
        return error
    return ConfigurationError.from_issues(sorted_issues([*error.issues, *_Planner(error.readable).reference_issues()]))


class _Planner:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.is_streaming = pipeline.config.mode == "streaming"
        self.issues: list[ConfigIssue] = []
        self.names = self._step_names()
        self.registered: dict[str, int] = {}  # DataFrame name -> the step that registers it, of the steps so far
        self.primary: int | None = None
        self.inputs: dict[int, tuple[int, ...]] = {}  # of the steps so far
        self.quarantined: dict[int, int] = {}  # step -> the step that puts rows of its DataFrame into quarantine

    def reference_issues(self) -> list[ConfigIssue]:
        """Return what is wrong with the names of DataFrames, as far as the steps could be read."""
        for index, method in enumerate(self.pipeline.methods):
            self._place(index, method)
        return self.issues

    def plan(self) -> PipelinePlan:
        inputs = [self._place(index, method) for index, method in enumerate(self.pipeline.methods)]
        self._refuse_checks_alike()
        self._refuse_checks_in_a_circle()
        self._refuse_in_partitions()
        self._refuse_in_batches()
        self._refuse_idle_uncaching()
        if not self.issues and self.is_streaming:
            self.issues += dict.fromkeys(stream_issues(self.pipeline, inputs))
            self._check_dead_letter_names()
        if self.issues:
            raise ConfigurationError.from_issues(self.issues)
        streams = stream_flags(self.pipeline, inputs)
        consumed = {
            source
            for index, method in enumerate(self.pipeline.methods)
            if not isinstance(method, CacheControlMethod | ValidateMethod)
            for source in inputs[index]
        }
        # A check takes no DataFrame away, but what it compares with is there for that.
        consumed |= {
            source
            for index, method in enumerate(self.pipeline.methods)
            if isinstance(method, ValidateMethod)
            for source in inputs[index][0 if method.quarantines else 1 :]
        }
        steps: list[PlannedStep] = []
        for index, method in enumerate(self.pipeline.methods):
            after = self._after(index, method, inputs)
            steps.append(
                PlannedStep(
                    index=index,
                    name=self.names[index],
                    method=method,
                    role=_role(method, is_leaf=index not in consumed and not self.is_streaming),
                    inputs=inputs[index],
                    input_names=self._input_names(method, [steps[i] for i in inputs[index]]),
                    after=after,
                    dataframe=_registered_name(method) or self.names[index],
                    code_version=self._code_version(method, [steps[i] for i in inputs[index]]),
                    description=self.pipeline.config.steps[index].description,
                    is_stream=streams[index],
                )
            )
        plan = PipelinePlan(self.pipeline, tuple(steps))
        if not self.is_streaming:
            self._refuse_writes_in_a_circle(plan)
            self._refuse_others_in_a_quarantine(plan)
        return plan

    def _refuse_others_in_a_quarantine(self, plan: PipelinePlan) -> None:
        """Refuse what is written into a table of rows in quarantine by another step: each run overwrites it."""
        written = [(step, asset, dataset) for step in plan.steps for asset, dataset in plan.written_by(step)]
        for step, aside, table in written:
            for other, asset, dataset in written:
                if aside == step.quarantine and asset != aside and dataset.overlaps(table):
                    self._issue(
                        ("steps", step.index, "config", "quarantinePath"),
                        f"step {other.index} writes {asset!r} there, and this step overwrites the table in each run: "
                        "give it a table of its own",
                    )
        if self.issues:
            raise ConfigurationError.from_issues(self.issues)

    def _step_names(self) -> list[str]:
        """Name every step; names that the user chose must differ, those made from the method get a number."""
        chosen: dict[str, int] = {}
        names: list[str | None] = []
        for index, (step, method) in enumerate(zip(self.pipeline.config.steps, self.pipeline.methods, strict=True)):
            registered = _registered_name(method)
            given = step.name.replace("-", "_") if step.name else None
            for name, key in ((given, ("name",)), (registered, ("config", "registerAs"))):
                # Spark's views, and the folders of some file systems, know no upper and lower case.
                other = chosen.setdefault(name.casefold(), index) if name else index
                if other != index:
                    self._issue(("steps", index, *key), f"{name!r} names step {other} already: each name is used once")
            names.append(given or registered)
        taken = set(chosen)
        found = [name or _free_name(self.pipeline.methods[index].method, taken) for index, name in enumerate(names)]
        for index, method in enumerate(self.pipeline.methods):
            aside = f"{found[index]}_quarantine"
            if _quarantines(method) and aside in found:
                other = found.index(aside)
                self._issue(("steps", index), f"its table {aside!r} is called like step {other}: give one a 'name'")
        return found

    def _refuse_checks_alike(self) -> None:
        taken: dict[str, tuple[int, str]] = {}
        for index, method in enumerate(self.pipeline.methods):
            for name in method.expectation_names() if isinstance(method, ValidateMethod) else ():
                called = check_name(self.names[index], name)
                other, same = taken.setdefault(called, (index, name))
                if (other, same) != (index, name):
                    self._issue(
                        ("steps", index),
                        f"its expectation {name!r} would be the check {called!r}, which {same!r} of step {other} is: "
                        "rename one of them",
                    )

    def _refuse_in_partitions(self) -> None:
        partitions = self.pipeline.config.partitions
        if partitions is None:
            return
        for index, method in enumerate(self.pipeline.methods):
            if isinstance(method, LoadMethod) and (problem := method.partition_problem()) is not None:
                self._issue(("steps", index), problem)
            if isinstance(method, ToS3) and "path" in self.pipeline.keys_with_partition(index):
                self._refuse_folders_in_one_another(index, partitions.values)

    def _refuse_folders_in_one_another(self, index: int, partitions: Sequence[str]) -> None:
        """Refuse partitions one of whose folders is, or lies in, that of another: a run for that deletes its files."""
        paths = {key: self.pipeline.text_for_partition(index, "path", key) for key in partitions}
        parts = {key: place_of(path).split("/") for key, path in paths.items()}
        outer: str | None = None
        # What lies in a folder comes right after it.
        for key in sorted(partitions, key=parts.__getitem__):
            if outer is None or parts[key][: len(parts[outer])] != parts[outer]:
                outer = key
                continue
            self._issue(
                ("steps", index, "config", "path"),
                f"a run for partition {outer!r}, which replaces the files below {paths[outer]}, would delete those of "
                f"partition {key!r} at {paths[key]}: rename one of the two in 'partitions', or leave ${{partition}} "
                "out of the path, so that each has a folder 'partition_key=...' below it",
            )

    def _refuse_in_batches(self) -> None:
        for index, method in enumerate(() if self.is_streaming else self.pipeline.methods):
            if (problem := method.batch_problem()) is not None:
                self._issue(("steps", index), problem)

    def _refuse_idle_uncaching(self) -> None:
        cached: set[int] = set()
        for index, method in enumerate(self.pipeline.methods):
            if isinstance(method, DataFrameMethod) and method.cache:
                cached.add(index)
            elif isinstance(method, Uncache):
                for at, source in enumerate(self.inputs[index]):
                    if source not in cached | {index}:
                        self._issue(
                            ("steps", index, "config", *_input_key(method, at)),
                            f"no step before this one caches DataFrame {self.names[source]!r}: leave it out, or give "
                            "'cache': true where it is made",
                        )
            elif isinstance(method, CacheControlMethod):
                cached |= set(self.inputs[index])

    def _check_dead_letter_names(self) -> None:
        for index, method in enumerate(self.pipeline.methods):
            letters = f"{self.names[index]}_dead_letters"
            if isinstance(method, FromKafka) and letters in self.names:
                at = self.names.index(letters)
                self._issue(
                    ("steps", at), f"{letters!r} is the asset of step {index}'s dead letters: give this step a 'name'"
                )

    def _place(self, index: int, method: StepMethod) -> tuple[int, ...]:
        """Resolve the inputs of a step and make what it yields known to the steps after it."""
        unreadable = index in self.pipeline.unreadable
        inputs = () if unreadable or isinstance(method, ExtractMethod) else self._inputs(index, method)
        self.inputs[index] = inputs
        if _quarantines(method) and inputs:
            self.quarantined[inputs[0]] = index
        # Of a check that can't be read nobody knows whether it puts rows into quarantine.
        may_yield = unreadable and isinstance(method, ValidateMethod)
        if may_yield or isinstance(method, DataFrameMethod) or _quarantines(method):
            self.primary = index
            for name in filter(None, (_registered_name(method), self.names[index])):
                self.registered.setdefault(name, index)
        return inputs

    def _inputs(self, index: int, method: StepMethod) -> tuple[int, ...]:
        if isinstance(method, UncacheAll):
            return ()
        names = method.input_names()
        if names is None and self.primary is None:
            self._issue(
                ("steps", index),
                f"a {method.type} needs a DataFrame, and no step before this one yields any: "
                "start with an extract step",
            )
            return ()
        inputs = tuple(self._look_up(index, name, _input_key(method, at)) for at, name in enumerate(names or ()))
        if names is None and self.primary is not None:
            inputs = (self.primary,)
        if not isinstance(method, CacheControlMethod):
            self._refuse_unchecked(index, names or (), inputs)
        return (*inputs, *self._references(index, method))

    def _references(self, index: int, method: StepMethod) -> tuple[int, ...]:
        """Resolve the DataFrames that a check compares its own with."""
        if not isinstance(method, ValidateMethod):
            return ()
        names = method.reference_names()
        return tuple(self._look_up(index, name, _reference_key(method, name)) for name in names)

    def _refuse_checks_in_a_circle(self) -> None:
        """Refuse a check that would wait for itself: what takes a DataFrame waits for the checks that may stop it."""
        stopping: dict[int, list[int]] = {}  # step -> the checks of its DataFrame
        for index, method in enumerate(self.pipeline.methods):
            if not isinstance(method, ValidateMethod) or method.reaction != "fail" or not self.inputs[index]:
                continue
            checked, *references = self.inputs[index]
            stopping.setdefault(checked, []).append(index)
            for name, other in zip(method.reference_names(), references, strict=True):
                known = index not in (checked, other)
                if known and other != checked and index in self._waited_for(other, stopping):
                    self._issue(
                        ("steps", index, "config", *_reference_key(method, name)),
                        f"DataFrame {name!r} would wait for this check, and this check for {name!r}: use onFailure "
                        "'warn', or compare in a pipeline of its own",
                    )

    def _refuse_writes_in_a_circle(self, plan: PipelinePlan) -> None:
        """Refuse a check that would wait for itself by way of what is written: see ``waits_for``."""
        stopping: dict[int, list[int]] = {}
        for step in plan.steps:
            if step.role is Role.CHECK and cast(ValidateMethod, step.method).reaction == "fail":
                stopping.setdefault(step.inputs[0], []).append(step.index)
        waits: dict[int, set[int]] = {}
        for step in plan.steps if stopping else ():
            is_check = step.role is Role.CHECK
            # A check waits for no more than it takes, and not for the others of what it checks.
            others = () if is_check else (*plan.waits_for(step), *plan.writers_before(step))
            before = {*step.inputs, *(other.index for other in others)}
            checked = step.inputs[:1] if is_check else ()
            checks = {check for source in before.difference(checked) for check in stopping.get(source, ())}
            waits[step.index] = before | checks
        try:
            TopologicalSorter(waits).prepare()
        except CycleError as error:
            circle = [plan.steps[index] for index in error.args[1]]
            check = next(step for step in circle if step.role is Role.CHECK)
            self._issue(
                ("steps", check.index),
                f"this check would wait for itself ({' <- '.join(step.name for step in reversed(circle))}): use "
                "onFailure 'warn', or compare in a pipeline of its own",
            )
            raise ConfigurationError.from_issues(self.issues) from None

    def _waited_for(self, index: int, stopping: Mapping[int, Sequence[int]]) -> set[int]:
        """Return the steps that come before something that takes the DataFrame of step ``index``."""
        found: set[int] = set()
        pending = [index, *stopping.get(index, ())]
        while pending:
            step = pending.pop()
            if step not in found:
                found.add(step)
                for source in self.inputs[step]:
                    # A check does not wait for the others of the DataFrame that it checks itself.
                    waits = () if step in stopping.get(source, ()) else stopping.get(source, ())
                    pending += [source, *waits]
        return found

    def _refuse_unchecked(self, index: int, names: Sequence[str], inputs: Sequence[int]) -> None:
        """Refuse a name that stands for all rows still, those that an earlier step puts into quarantine too."""
        for at, (name, source) in enumerate(zip(names, inputs, strict=False)):
            if source in self.quarantined:
                by = self.quarantined[source]
                self._issue(
                    ("steps", index, "config", *_input_key(self.pipeline.methods[index], at)),
                    f"DataFrame {name!r} has the rows, too, that step {by} puts into quarantine; the others are "
                    f"DataFrame {self.names[by]!r}: take that one, or move this step before step {by}",
                )

    @staticmethod
    def _input_names(method: StepMethod, upstream: Sequence[PlannedStep]) -> tuple[str, ...]:
        if isinstance(method, ValidateMethod) and upstream:
            (first,) = method.input_names() or (upstream[0].dataframe,)
            return (first, *method.reference_names())
        return (method.input_names() if upstream else ()) or tuple(step.dataframe for step in upstream)

    def _look_up(self, index: int, name: str, key: Sequence[str | int]) -> int:
        if name in self.registered:
            return self.registered[name]
        later = self._registered_later(index)
        if name in later:
            message = self._order_message(index, name, later[name])
        else:
            message = DataFrameResolutionError.unknown_dataframe(name, self.registered).message
        self._issue(("steps", index, "config", *key), message)
        return index

    def _registered_later(self, index: int) -> dict[str, int]:
        return {
            name: later
            for later in range(index, len(self.names))
            for name in filter(None, (_registered_name(self.pipeline.methods[later]), self.names[later]))
            if isinstance(self.pipeline.methods[later], DataFrameMethod) or _quarantines(self.pipeline.methods[later])
        }

    def _order_message(self, index: int, name: str, later: int) -> str:
        """Say that ``name`` comes later, and when moving it would not help, that it is a cycle."""
        back = self._path(later, index, self._registered_later(0), set())
        if back:
            return f"a cycle of DataFrames: {' <- '.join([self.names[index], *back])}"
        return (
            f"DataFrame {name!r} is made by step {later}, which runs after this one: "
            f"steps run in order, so move it before step {index}"
        )

    def _path(self, start: int, target: int, known: Mapping[str, int], seen: set[int]) -> list[str]:
        """Return the names along the references from step ``start`` to ``target``, or an empty list."""
        if start == target:
            return [self.names[start]]
        seen.add(start)
        names = () if start in self.pipeline.unreadable else self.pipeline.methods[start].input_names()
        for name in names or ():
            source = known.get(name)
            if source is not None and source not in seen:
                rest = self._path(source, target, known, seen)
                if rest:
                    return [self.names[start], *rest]
        return []

    def _after(self, index: int, method: StepMethod, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Uncaching comes after every step before it; what takes a cached DataFrame comes after the caching."""
        if isinstance(method, Uncache | UncacheAll):
            return tuple(i for i in range(index) if i not in inputs[index])
        return tuple(
            earlier
            for earlier in range(index)
            if isinstance(self.pipeline.methods[earlier], CacheControlMethod)
            and not isinstance(self.pipeline.methods[earlier], Uncache | UncacheAll)
            and set(inputs[earlier]) & set(inputs[index])
        )

    def _code_version(self, method: StepMethod, upstream: Iterable[PlannedStep]) -> str:
        """Hash what the step computes: its method, its config, its partitions and its upstream steps."""
        partitions, spark_conf = self.pipeline.config.partitions, self.pipeline.config.spark_conf
        facts = [
            method.type,
            method.method,
            method.behavior_version,
            method.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_THE_DATA),
            partitions.model_dump(mode="json", include={"type", "timezone", "column"}) if partitions else None,
            [step.code_version for step in upstream],
            dict(sorted(spark_conf.items())),
        ]
        # In the order of the config: that of aggregations and of new columns is that of the result's columns.
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _issue(self, key: Sequence[str | int], message: str) -> None:
        self.issues.append(ConfigIssue(self.pipeline.file, pointer(*key), message))


# Keys that change what is shown of the data, or how fast it comes, and not the data.
_NOT_THE_DATA = {"sample_size", "mask_columns", "cache", "cache_storage_level", "fetch_size", "batch_size"}


def _quarantines(method: StepMethod) -> bool:
    """Whether ``method`` is a check that yields a DataFrame."""
    return isinstance(method, ValidateMethod) and method.quarantines


def _registered_name(method: StepMethod) -> str | None:
    return method.register_as if isinstance(method, DataFrameMethod) else None


def _free_name(method: str, taken: set[str]) -> str:
    base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", method).lower().replace("-", "_")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def _input_key(method: StepMethod, at: int) -> tuple[str | int, ...]:
    """Return the key of the config under which the ``at``-th input is named."""
    if isinstance(method, Sql):
        return ("query",)
    for field in ("input_data_frames", "data_frames"):
        if getattr(method, field, None):
            return (type(method).model_fields[field].alias or field, at)
    return ("inputDataFrame",)


def _reference_key(method: ValidateMethod, name: str) -> tuple[str | int, ...]:
    """Return the key of the config under which a check names another DataFrame."""
    for stated, expectation in getattr(method, "expectations", {}).items():
        if getattr(expectation, "references", None) == name:
            return ("expectations", stated, "references")
    return ("references",)


def _role(method: StepMethod, *, is_leaf: bool) -> Role:
    if isinstance(method, LoadMethod):
        return Role.LOAD
    if isinstance(method, ValidateMethod) and not method.quarantines:
        return Role.CHECK
    if isinstance(method, CacheControlMethod):
        return Role.CONTROL
    wanted = method.materialized if isinstance(method, DataFrameMethod) else None
    return Role(wanted) if wanted else (Role.TABLE if is_leaf else Role.VIEW)
