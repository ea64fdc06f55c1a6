"""The pipelines of a folder, planned together: one that is broken keeps no other from loading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline_assets.config_loading import BrokenConfig, ConfigFolder, unforeseen_error
from pipeline_assets.errors import ConfigIssue, ConfigurationError, did_you_mean
from pipeline_assets.json_documents import pointer
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.planner import plan_pipeline, with_graph_issues
from pipeline_assets.steps.base import DataFrameMethod
from pipeline_assets.steps.extract_delta import FromDeltaLake
from pipeline_assets.steps.paths import place_of
from pipeline_assets.steps.s3_paths import is_s3

# Each is planned whenever the folder is loaded: what more of them hold shows when they are run.
_TRIED_KEYS = 20


@dataclass(frozen=True)
class PlannedFolder:
    """A folder of configs, planned. ``broken`` are those that do not load or whose graph is wrong."""

    plans: tuple[PipelinePlan, ...]
    broken: tuple[BrokenConfig, ...]


def plan_folder(folder: ConfigFolder) -> PlannedFolder:
    """Plan every pipeline of ``folder``; one that can't be planned joins the broken ones."""
    plans: list[PipelinePlan] = []
    broken = [_with_graph_issues(each) for each in folder.broken]
    for pipeline in folder.pipelines:
        try:
            plans.append(plan_pipeline(pipeline))
        except ConfigurationError as error:
            broken.append(BrokenConfig(pipeline.file, pipeline.config.name, error))
        except Exception as error:  # noqa: BLE001  (a config that does not load never takes the others with it)
            broken.append(BrokenConfig(pipeline.file, pipeline.config.name, unforeseen_error(pipeline.file, error)))
    issues = [
        *_shared_checkpoints(plans),
        *_shared_quarantines(plans),
        *_unknown_tables(plans),
        *_unusable_keys(plans),
    ]
    wrong = {issue.file for issue in issues}
    found = [
        BrokenConfig(
            plan.pipeline.file,
            plan.pipeline.config.name,
            ConfigurationError.from_issues([issue for issue in issues if issue.file == plan.pipeline.file]),
        )
        for plan in plans
        if plan.pipeline.file in wrong
    ]
    return PlannedFolder(tuple(plan for plan in plans if plan.pipeline.file not in wrong), (*broken, *found))


def _with_graph_issues(broken: BrokenConfig) -> BrokenConfig:
    try:
        return replace(broken, error=with_graph_issues(broken.error))
    except Exception:  # noqa: BLE001  (what is wrong with it is known)
        return broken


def _shared_checkpoints(plans: Sequence[PipelinePlan]) -> Iterator[ConfigIssue]:
    """Yield where pipelines have a checkpoint in common: each would read only what the other has not."""
    users: dict[tuple[str, str], list[tuple[PipelinePlan, PlannedStep]]] = {}
    for plan in plans:
        for load in plan.stream_loads():
            method = load.streaming_load
            place = place_of(method.checkpoint_location or "")
            # The same bucket and key may be on two services.
            users.setdefault((place, method.checkpoint_connection if is_s3(place) else ""), []).append((plan, load))
    for group in users.values():
        for plan, load in group if len(group) > 1 else ():
            others = ", ".join(f"step {at.index} of {other.pipeline.file}" for other, at in group if other is not plan)
            message = (
                f"it is the checkpoint of {others} too, and what one of them has read the other leaves out: "
                "give each load a checkpointLocation of its own"
            )
            key = pointer("steps", load.index, "config", "checkpointLocation")
            yield ConfigIssue(plan.pipeline.file, key, message)


def _shared_quarantines(plans: Sequence[PipelinePlan]) -> Iterator[ConfigIssue]:
    """Yield where a batch puts rows into a table that other pipelines write: each of its runs overwrites it."""
    writers: dict[tuple[str, tuple[str, ...]], list[tuple[PipelinePlan, PlannedStep]]] = {}
    for plan in plans:
        for step in plan.steps:
            for _, written in plan.written_by(step):
                writers.setdefault((written.kind, written.parts), []).append((plan, step))
    for plan in plans:
        for step in () if plan.is_streaming else plan.steps:
            aside = (written for asset, written in plan.written_by(step) if asset == step.quarantine)
            found = [other for written in aside for other in writers[written.kind, written.parts]]
            others = [f"step {at.index} of {other.pipeline.file}" for other, at in found if other is not plan]
            if others:
                writes = "writes" if len(others) == 1 else "write"
                message = f"{' and '.join(others)} {writes} there, and this step overwrites the table in each run"
                key = pointer("steps", step.index, "config", "quarantinePath")
                yield ConfigIssue(plan.pipeline.file, key, f"{message}: give it a table of its own")


def _unknown_tables(plans: Sequence[PipelinePlan]) -> Iterator[ConfigIssue]:
    """Yield where a step reads a table that a pipeline of the folder does not keep."""
    by_name = {plan.name: plan for plan in plans}
    for plan, step, table in _tables_read(plans):
        pipeline, _, asset = table.replace("-", "_").partition(".")
        kept = by_name[pipeline].tables if pipeline in by_name else None
        if kept is not None and asset not in kept:
            message = f"pipeline {pipeline!r} keeps no table {asset!r} in the warehouse"
            key = pointer("steps", step.index, "config", "table")
            yield ConfigIssue(plan.pipeline.file, key, f"{message}{_table_advice(by_name[pipeline], asset)}")


def unknown_pipelines(folder: PlannedFolder) -> Iterator[ConfigIssue]:
    """Yield where a step reads a table of a pipeline that ``folder`` does not have, not as a broken one either.

    It keeps none from loading: the table may be there, of a pipeline that was there before.
    """
    names = sorted([*(plan.pipeline.config.name for plan in folder.plans), *(broken.name for broken in folder.broken)])
    known = {name.replace("-", "_") for name in names}
    for plan, step, table in _tables_read(folder.plans):
        pipeline = table.partition(".")[0]
        if pipeline.replace("-", "_") not in known:
            key = pointer("steps", step.index, "config", "table")
            message = (
                f"there is no pipeline {pipeline!r}{did_you_mean(pipeline, names)} (pipelines: {', '.join(names)})"
            )
            yield ConfigIssue(plan.pipeline.file, key, f"{message}: a table of another location is read by its 'path'")


def _tables_read(plans: Sequence[PipelinePlan]) -> Iterator[tuple[PipelinePlan, PlannedStep, str]]:
    for plan in plans:
        for step in plan.steps:
            if isinstance(step.method, FromDeltaLake) and step.method.table is not None:
                yield plan, step, step.method.table


def _unusable_keys(plans: Sequence[PipelinePlan]) -> Iterator[ConfigIssue]:
    """Yield the keys of static partitions with which a run would fail, or have another graph, for what they hold."""
    for plan in plans:
        pipeline, partitions = plan.pipeline, plan.pipeline.config.partitions
        if partitions is None or not any(pipeline.keys_with_partition(step.index) for step in plan.steps):
            continue
        for at in _of_each_shape(partitions.values):
            try:
                steps = plan_pipeline(pipeline.for_partition(partitions.values[at])).steps
            except ConfigurationError as error:
                first = error.issues[0]
                wrong = f"in the place of ${{partition}} it makes {first.pointer} wrong: {first.message}"
            except RecursionError:
                continue  # a run has more room, and tells if that is too little
            except Exception as error:  # noqa: BLE001  (a config that does not load never takes the others with it)
                first = unforeseen_error(pipeline.file, error).issues[0]
                wrong = f"with it in the place of ${{partition}} the file {first.message}"
            else:
                pairs = zip(plan.steps, steps, strict=True)
                other = next((step for step, with_key in pairs if step.inputs != with_key.inputs), None)
                if other is None:
                    continue
                wrong = (
                    f"in the place of ${{partition}} it makes step {other.index} take other DataFrames: does a quote "
                    "in it end a text of SQL?"
                )
            yield ConfigIssue(pipeline.file, pointer("partitions", "values", at), wrong)


def _of_each_shape(keys: Sequence[str]) -> list[int]:
    """Return which of ``keys`` to try: of a word in one, SQL and paths care only whether it begins with a digit."""
    first: dict[str, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(re.sub(r"[^\W_]+", lambda word: "0" if word[0][0].isdigit() else "a", key), at)
    return list(first.values())[:_TRIED_KEYS]


def _table_advice(plan: PipelinePlan, asset: str) -> str:
    view = next((step for step in plan.steps if step.name == asset and step.role is Role.VIEW), None)
    if view is None:
        return f"{did_you_mean(asset, plan.tables)} (tables: {', '.join(plan.tables) or 'none'})"
    if isinstance(view.method, DataFrameMethod) and not plan.is_streaming:
        return ', but a view of that name: give its step "materialized": "table"'
    return ", but a view of that name: load that by toDeltaLake, and read it by 'path' here"


def select(folder: PlannedFolder, name: str) -> PipelinePlan:
    """Return the plan of the pipeline called ``name`` (dashes or underscores).

    Raises ConfigurationError when there is none: that of the pipeline when it is broken.
    """
    wanted = name.replace("-", "_")
    known = {plan.name: plan for plan in folder.plans}
    if wanted not in known:
        for broken in folder.broken:
            if broken.name.replace("-", "_") == wanted:
                raise broken.error
        names = sorted(plan.pipeline.config.name for plan in known.values())
        raise ConfigurationError(
            f"there is no pipeline {name!r}{did_you_mean(name, names)} (pipelines: {', '.join(names) or 'none'})"
        )
    return known[wanted]
