"""What a checkpoint belongs to: to one pipeline, its offsets to sources, its state to the steps that keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.steps.base import ExtractMethod, TransformMethod
from pipeline_assets.steps.checkpoint import OWN_FOLDER, Checkpoint

_DOCUMENT = "binding"
# Not a part of the binding: an older version would take it for a change, and a person deletes it to take over.
_OWNER = "owner"


def bind(checkpoint: Checkpoint, plan: PipelinePlan, load: PlannedStep) -> None:
    """Hold ``checkpoint`` to the pipeline ``plan``, and to the sources and the stateful steps of the query of ``load``.

    A new checkpoint is bound to them, and one that is nobody's yet belongs to the pipeline; so is one that no
    micro-batch has been planned in, whatever it was bound to, and its sources begin anew. The pipeline's loads may
    be renamed and change places: no two of them have one checkpoint. Filters, columns and sinks may change between
    starts; Spark's rule for the others: https://spark.apache.org/docs/latest/streaming/apis-on-dataframes-and-datasets.html#recovery-semantics-after-changes-in-a-streaming-query
    Raises ConfigurationError, saying what has changed, for a checkpoint that is bound to something else, and for that
    of another pipeline.
    """
    owner, bound = checkpoint.read_document(_OWNER), checkpoint.read_document(_DOCUMENT)
    own, wanted = {"pipeline": plan.name}, _facts(plan, load)
    if not checkpoint.is_read:
        owner = bound = None
        checkpoint.forget_beginnings()
    if owner is not None and owner != own:
        raise ConfigurationError(_whose(checkpoint, owner["pipeline"], plan.name), location=plan.location(load))
    if bound is not None and bound != wanted:
        raise ConfigurationError(
            f"the checkpoint {checkpoint.path} can't carry this change: {'; '.join(_changes(bound, wanted))}. Either "
            "undo the change, or give a new checkpointLocation: the load then begins anew, at startingOffsets, or "
            "beside other loads where their stream began, with the records that are left. A target that has the same "
            "rows already gets them again unless you empty it or load by mergeKeys",
            location=plan.location(load),
        )
    if bound is None:
        checkpoint.write_document(_DOCUMENT, wanted)
    if owner is None:
        checkpoint.write_document(_OWNER, own)


def _whose(checkpoint: Checkpoint, owner: str, pipeline: str) -> str:
    return (
        f"the checkpoint {checkpoint.path} is that of pipeline {owner!r}, and what one of the two has read the other "
        f"would leave out: give this one a checkpointLocation of its own. If {owner!r} has been renamed to "
        f"{pipeline!r}, delete {checkpoint.path}/{OWN_FOLDER}/{_OWNER}.json: the next start then takes it over"
    )


def _facts(plan: PipelinePlan, load: PlannedStep) -> dict[str, Any]:
    upstream = plan.upstream_of(load)
    sources = [
        {"method": step.method.method, **step.method.stream_identity()}
        for step in upstream
        if step.is_stream and isinstance(step.method, ExtractMethod)
    ]
    state = []
    for step in upstream:
        if step.is_stream and isinstance(step.method, TransformMethod):
            kept = step.method.stream_state(tuple(plan.steps[index].is_stream for index in step.inputs))
            if kept is not None:
                state.append({"method": step.method.method, **kept})
    facts: dict[str, Any] = {"sources": sources, "state": state}
    if state:
        facts["outputMode"] = load.streaming_load.output_mode or "append"
    # As it comes back from JSON.
    return cast(dict[str, Any], json.loads(json.dumps(facts)))


def _changes(bound: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key, what in (("sources", "it reads"), ("state", "it keeps state for"), ("outputMode", "its outputMode is")):
        before, now = bound.get(key), wanted.get(key)
        if before != now:
            yield f"{what} {_told(now)}, and the checkpoint was made for {_told(before)}"


def _told(facts: Any) -> str:
    if isinstance(facts, list):
        return ", ".join(_told(fact) for fact in facts) or "nothing"
    if isinstance(facts, dict):
        others = {key: value for key, value in facts.items() if key != "method"}
        return f"{facts.get('method', '')} {json.dumps(others)}".strip()
    return repr(facts)
