"""What a streaming pipeline may be, as far as its config tells. Pure: no Spark, no Dagster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

from pipeline_assets.errors import ConfigIssue
from pipeline_assets.graphs import reach
from pipeline_assets.json_documents import pointer
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.steps.base import (
    DataFrameMethod,
    ExtractMethod,
    LoadMethod,
    OutputMode,
    StreamTraits,
    TransformMethod,
    ValidateMethod,
)
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.paths import delta_dataset, lies_in, paths_aside, place_of
from pipeline_assets.steps.sql_names import changing_part
from pipeline_assets.steps.sql_texts import sql_texts
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets.steps.transform import WithWatermark

Inputs = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Guarded:
    """The validate steps that stand before a load, ``guards``, in their order.

    ``source``: the step whose DataFrame the first of them checks. From there on the load's query works on each
    micro-batch as on a batch.
    """

    source: int
    guards: tuple[int, ...]


def guarded(pipeline: Pipeline, inputs: Inputs, load: int) -> Guarded | None:
    """Return what stands before the load of that index; None when it writes whatever comes."""
    upstream = reach(load, lambda step: inputs[step])
    guards = tuple(
        index
        for index, method in enumerate(pipeline.methods)
        if isinstance(method, ValidateMethod)
        and (index in upstream if method.quarantines else inputs[index][0] in upstream)
    )
    return Guarded(min(inputs[index][0] for index in guards), guards) if guards else None


def stream_flags(pipeline: Pipeline, inputs: Inputs) -> list[bool]:
    """Return for each step whether its DataFrame, or what it takes, is a stream. ``inputs``: step indices."""
    flags: list[bool] = []
    for index, method in enumerate(pipeline.methods):
        if isinstance(method, ExtractMethod):
            flags.append(pipeline.is_streaming and method.streams)
        else:
            flags.append(any(flags[source] for source in inputs[index]))
    return flags


def stream_issues(pipeline: Pipeline, inputs: Inputs) -> Iterator[ConfigIssue]:
    """Yield what keeps ``pipeline`` from running as streams."""
    flags = stream_flags(pipeline, inputs)
    if not any(flags):
        yield ConfigIssue(
            pipeline.file, "/mode", "no step reads a stream (fromKafka, or fromDeltaLake): use mode 'batch'"
        )
        return
    loads = [method for method in pipeline.methods if isinstance(method, StreamingLoad)]
    if pipeline.config.schedule is not None and not all(load.takes_what_there_is for load in loads):
        yield ConfigIssue(
            pipeline.file,
            "/schedule",
            "its runs do not end, so there is nothing to start anew: give every load the trigger 'availableNow', or "
            "leave the schedule out and switch the sensor on",
        )
    if len({load.takes_what_there_is for load in loads}) > 1:
        yield ConfigIssue(
            pipeline.file,
            "/steps",
            "some loads end when they have read the available data (trigger availableNow), the others keep the run "
            "alive: those that have ended would get no further data; give all loads one kind of trigger, or each kind "
            "a pipeline of its own",
        )
    yield from _places_in_others(pipeline)
    checkpoints: dict[str, int] = {}
    for index, method in enumerate(pipeline.methods):
        found = [method.stream_problem(_traits(pipeline, inputs, flags, index))]
        if isinstance(method, DataFrameMethod):
            found.append(_dataframe_problem(method, is_stream=flags[index]))
        has_rows = isinstance(method, DataFrameMethod) or (isinstance(method, ValidateMethod) and method.quarantines)
        if has_rows and not _is_needed(pipeline, inputs, index):
            found.append("nothing comes of it: each DataFrame of a streaming pipeline has to end in a load step")
        if isinstance(method, StreamingLoad) and method.checkpoint_location:
            other = checkpoints.setdefault(place_of(method.checkpoint_location), index)
            if other != index:
                found.append(f"checkpointLocation is that of step {other}: each load needs a checkpoint of its own")
        for problem in filter(None, found):
            yield ConfigIssue(pipeline.file, pointer("steps", index), problem)
        if isinstance(method, LoadMethod):
            yield from _guard_issues(pipeline, inputs, flags, index)
            yield from _topic_issues(pipeline, inputs, index)


def _places_in_others(pipeline: Pipeline) -> Iterator[ConfigIssue]:
    """Yield what would be written among the rows, or the files, of something else."""
    loads = [(index, sink) for index, method in enumerate(pipeline.methods) for sink in method.sinks()]
    aside = [
        (index, key, delta_dataset(path))
        for index, method in enumerate(pipeline.methods)
        for key, path in paths_aside(method)
    ]
    for index, key, table in aside:
        for load, sink in loads:
            if table.overlaps(sink):
                yield ConfigIssue(
                    pipeline.file,
                    pointer("steps", index, "config", key),
                    f"step {load} loads its rows there, and those that are put aside would be among them: give them a "
                    "table of their own",
                )
    sources = (source for method in pipeline.methods for source in method.sources())
    tables = [*sources, *(sink for _, sink in loads), *(table for _, _, table in aside)]
    places = {place_of(table.uri) for table in tables if table.kind == "deltalake"}
    checkpoints = {
        index: place_of(method.checkpoint_location)
        for index, method in enumerate(pipeline.methods)
        if isinstance(method, StreamingLoad) and method.checkpoint_location
    }
    for index, checkpoint in checkpoints.items():
        for place in sorted(places):
            if _is_swept(checkpoint, place):
                yield ConfigIssue(
                    pipeline.file,
                    pointer("steps", index, "config", "checkpointLocation"),
                    f"it lies in the Delta table at {place}, whose VACUUM deletes what the table does not know: put it "
                    "beside the table, or into a folder there whose name begins with '_'",
                )
        for other, outer in checkpoints.items():
            if checkpoint != outer and lies_in(checkpoint, outer):
                yield ConfigIssue(
                    pipeline.file,
                    pointer("steps", index, "config", "checkpointLocation"),
                    f"it lies in that of step {other}: put it beside it",
                )


def _is_swept(folder: str, table: str) -> bool:
    """Whether a Delta table's VACUUM deletes what is in ``folder``: not in what is hidden.

    Source: https://docs.delta.io/latest/delta-utility.html (directories that begin with an underscore)
    """
    return lies_in(folder, table) and not folder.removeprefix(f"{table}/").startswith(("_", "."))


def _guard_issues(pipeline: Pipeline, inputs: Inputs, flags: Sequence[bool], load: int) -> Iterator[ConfigIssue]:
    """Yield why the validate steps before a load can't check its micro-batches one by one."""
    found = guarded(pipeline, inputs, load)
    if found is None:
        return
    source, first = found.source, next(index for index in found.guards if inputs[index][0] == found.source)
    beside = reach(load, lambda step: () if step == source else inputs[step]) - {source}
    if any(flags[step] and isinstance(pipeline.methods[step], ExtractMethod) for step in beside):
        yield ConfigIssue(
            pipeline.file,
            pointer("steps", first),
            f"it checks one of several streams that step {load} loads together: put it after the step that brings "
            "them together, or load each stream by a pipeline of its own",
        )
    for step in sorted(_after(inputs, source) & beside):
        method = pipeline.methods[step]
        state = (
            method.stream_state(tuple(flags[i] for i in inputs[step])) if isinstance(method, TransformMethod) else None
        )
        if state is not None:
            yield ConfigIssue(
                pipeline.file,
                pointer("steps", step),
                f"it needs rows of earlier micro-batches, and after step {first} (validate) each is looked at alone: "
                "put the validate step after this one, or load what it has checked into a table by toDeltaLake and "
                "go on from there in another streaming pipeline",
            )
    before = reach(source, lambda step: inputs[step]) | {source}
    for guard in (index for index in found.guards if cast(ValidateMethod, pipeline.methods[index]).quarantines):
        others = cast(ValidateMethod, pipeline.methods[guard]).deciding_references()
        if others and len(loads := _loads_after(pipeline, inputs, guard)) > 1:
            yield ConfigIssue(
                pipeline.file,
                pointer("steps", guard),
                f"it puts rows into quarantine by what {others[0]!r} has, and {len(loads)} loads come after it, which "
                "would look at it at different times: have one load after it, and go on from that table in another "
                "streaming pipeline",
            )
        # What rows are compared with is asked once.
        checked = reach(guard, lambda step: inputs[step][:1] if step in found.guards else inputs[step])
        for step in sorted(checked - before):
            method = pipeline.methods[step]
            texts = sql_texts(method) if isinstance(method, DataFrameMethod) else ()
            changing = next((part for _, text, _ in texts if (part := changing_part(text))), None)
            if changing is not None:
                yield ConfigIssue(
                    pipeline.file,
                    pointer("steps", step),
                    f"{changing} gives another answer each time, and after step {first} (validate) a micro-batch is "
                    f"queried more than once, so step {guard} could put a row into quarantine and let it pass: move it "
                    f"before step {first}",
                )


def _topic_issues(pipeline: Pipeline, inputs: Inputs, load: int) -> Iterator[ConfigIssue]:
    """Yield which Kafka extracts a load can't take together: its query's offsets are told by the topic's name alone."""
    upstream = reach(load, lambda step: inputs[step])
    extracts = [(step, method) for step in sorted(upstream) if isinstance(method := pipeline.methods[step], FromKafka)]
    for (first, earlier), (second, later) in combinations(extracts, 2):
        topic = _topic_of_both(earlier, later)
        if topic is None:
            continue
        if earlier.connection == later.connection:
            advice = "read it by one of them alone ('topics' takes several) and use that DataFrame twice"
        else:
            advice = "load what each connection has by a pipeline of its own"
        yield ConfigIssue(
            pipeline.file,
            pointer("steps", second),
            f"it reads {topic!r}, step {first} reads a topic of that name too, and step {load} loads both: their "
            f"offsets and their broken records could not be kept apart; {advice}",
        )


def _topic_of_both(one: FromKafka, other: FromKafka) -> str | None:
    """Return a topic's name, or the pattern of some, that both read, as far as their configs tell."""
    if one.topic_pattern is not None and one.topic_pattern == other.topic_pattern:
        return one.topic_pattern
    pairs = [*((name, other) for name in one.topic_names()), *((name, one) for name in other.topic_names())]
    try:
        return next((name for name, reader in pairs if reader.subscribes(name)), None)
    except re.error:
        return None  # it is no regular expression, and the start says so


def _dataframe_problem(method: DataFrameMethod, *, is_stream: bool) -> str | None:
    if method.materialized == "table":
        return "a streaming pipeline writes no tables of its own: use a toDeltaLake step"
    if is_stream and method.cache:
        return "'cache' keeps a DataFrame's data in memory, and a stream has no end: leave it out"
    return None


def _traits(pipeline: Pipeline, inputs: Inputs, flags: Sequence[bool], index: int) -> StreamTraits:
    upstream = reach(index, lambda step: inputs[step])
    modes: set[OutputMode] = {
        method.output_mode or "append"
        for method in _loads_after(pipeline, inputs, index)
        if isinstance(method, StreamingLoad)
    }
    return StreamTraits(
        inputs=tuple(flags[source] for source in inputs[index]),
        watermarked=any(isinstance(pipeline.methods[step], WithWatermark) for step in upstream),
        output_modes=frozenset(modes),
    )


def _is_needed(pipeline: Pipeline, inputs: Inputs, index: int) -> bool:
    """Whether rows of the step are loaded, or others are compared with them."""
    rows = _after(inputs, index) | {index}
    return any(
        isinstance(method, LoadMethod) or (isinstance(method, ValidateMethod) and rows & set(inputs[step][1:]))
        for step, method in enumerate(pipeline.methods)
        if step in rows
    )


def _loads_after(pipeline: Pipeline, inputs: Inputs, index: int) -> list[LoadMethod]:
    after = sorted(_after(inputs, index))
    return [method for step in after if isinstance(method := pipeline.methods[step], LoadMethod)]


def _after(inputs: Inputs, index: int) -> set[int]:
    return reach(index, lambda step: [later for later, sources in enumerate(inputs) if step in sources])
