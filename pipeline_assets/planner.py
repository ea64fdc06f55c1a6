"""From the steps of a pipeline to its graph: names are given and looked up. Pure: no Spark, no Dagster."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from pipeline_assets.errors import ConfigIssue, ConfigurationError, DataFrameResolutionError
from pipeline_assets.graph_rules import dead_letter_issues, graph_issues, input_key, plan_issues, reference_key
from pipeline_assets.json_documents import pointer
from pipeline_assets.pipeline_documents import InvalidPipelineError, Pipeline, sorted_issues
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role, quarantine_name, quarantines
from pipeline_assets.steps.base import (
    CacheControlMethod,
    DataFrameMethod,
    ExtractMethod,
    LoadMethod,
    StepMethod,
    ValidateMethod,
)
from pipeline_assets.steps.transform import Uncache, UncacheAll
from pipeline_assets.stream_rules import stream_flags, stream_issues


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
        self.issues: list[ConfigIssue] = []
        self.names = self._step_names()
        self.made_by = self._makers()
        self.registered: dict[str, int] = {}  # DataFrame name -> the step that registers it, of the steps so far
        self.primary: int | None = None
        self.quarantined: dict[int, int] = {}  # step -> the step that puts rows of its DataFrame into quarantine

    def reference_issues(self) -> list[ConfigIssue]:
        """Return what is wrong with the names of DataFrames, as far as the steps could be read."""
        for index, method in enumerate(self.pipeline.methods):
            self._place(index, method)
        return self.issues

    def plan(self) -> PipelinePlan:
        inputs = [self._place(index, method) for index, method in enumerate(self.pipeline.methods)]
        self.issues += graph_issues(self.pipeline, self.names, inputs)
        if not self.issues and self.pipeline.is_streaming:
            self.issues += dict.fromkeys(stream_issues(self.pipeline, inputs))
            self.issues += dead_letter_issues(self.pipeline, self.names)
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
                    role=_role(method, is_leaf=index not in consumed and not self.pipeline.is_streaming),
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
        if not self.pipeline.is_streaming and (issues := list(plan_issues(plan))):
            raise ConfigurationError.from_issues(issues)
        return plan

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
            aside = quarantine_name(found[index])
            if quarantines(method) and aside in found:
                other = found.index(aside)
                self._issue(("steps", index), f"its table {aside!r} is called like step {other}: give one a 'name'")
        return found

    def _place(self, index: int, method: StepMethod) -> tuple[int, ...]:
        """Resolve the inputs of a step and make what it yields known to the steps after it."""
        unreadable = index in self.pipeline.unreadable
        inputs = () if unreadable or isinstance(method, ExtractMethod) else self._inputs(index, method)
        if quarantines(method) and inputs:
            self.quarantined[inputs[0]] = index
        # Of a check that can't be read nobody knows whether it puts rows into quarantine.
        may_yield = unreadable and isinstance(method, ValidateMethod)
        if may_yield or isinstance(method, DataFrameMethod) or quarantines(method):
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
        inputs = tuple(self._look_up(index, name, input_key(method, at)) for at, name in enumerate(names or ()))
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
        return tuple(self._look_up(index, name, reference_key(method, name)) for name in names)

    def _refuse_unchecked(self, index: int, names: Sequence[str], inputs: Sequence[int]) -> None:
        """Refuse a name that stands for all rows still, those that an earlier step puts into quarantine too."""
        for at, (name, source) in enumerate(zip(names, inputs, strict=False)):
            if source in self.quarantined:
                by = self.quarantined[source]
                self._issue(
                    ("steps", index, "config", *input_key(self.pipeline.methods[index], at)),
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
        later = self.made_by.get(name, -1)
        if later >= index:
            message = self._order_message(index, name, later)
        else:
            message = DataFrameResolutionError.unknown_dataframe(name, self.registered).message
        self._issue(("steps", index, "config", *key), message)
        return index

    def _makers(self) -> dict[str, int]:
        """Return, by its name, the last step that makes a DataFrame."""
        return {
            name: index
            for index, method in enumerate(self.pipeline.methods)
            for name in filter(None, (_registered_name(method), self.names[index]))
            if isinstance(method, DataFrameMethod) or quarantines(method)
        }

    def _order_message(self, index: int, name: str, later: int) -> str:
        """Say that ``name`` comes later, and when moving it would not help, that it is a cycle."""
        back = self._path(later, index)
        if back:
            return f"a cycle of DataFrames: {' <- '.join([self.names[index], *back])}"
        return (
            f"DataFrame {name!r} is made by step {later}, which runs after this one: "
            f"steps run in order, so move it before step {index}"
        )

    def _path(self, start: int, target: int) -> list[str]:
        """Return the names along the references from step ``start`` to ``target``, or an empty list."""
        came_from = {start: start}
        pending = [start]
        for step in pending:  # which grows meanwhile: a path may be as long as there are steps
            if step == target:
                path = [step]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return [self.names[each] for each in reversed(path)]
            names = () if step in self.pipeline.unreadable else self.pipeline.methods[step].input_names()
            for source in (self.made_by[name] for name in names or () if name in self.made_by):
                if source not in came_from:
                    came_from[source] = step
                    pending.append(source)
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


def _role(method: StepMethod, *, is_leaf: bool) -> Role:
    if isinstance(method, LoadMethod):
        return Role.LOAD
    if isinstance(method, ValidateMethod) and not method.quarantines:
        return Role.CHECK
    if isinstance(method, CacheControlMethod):
        return Role.CONTROL
    wanted = method.materialized if isinstance(method, DataFrameMethod) else None
    return Role(wanted) if wanted else (Role.TABLE if is_leaf else Role.VIEW)
