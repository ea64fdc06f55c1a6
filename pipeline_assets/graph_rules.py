"""What the steps of a pipeline may not be to one another. Pure: from steps and their inputs to issues.

``inputs`` are, for each step, the indices of the steps whose DataFrames it takes; ``names`` are those of their assets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from pipeline_assets.errors import ConfigIssue
from pipeline_assets.json_documents import pointer
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role, check_name, dead_letters_name
from pipeline_assets.steps.base import CacheControlMethod, DataFrameMethod, LoadMethod, StepMethod, ValidateMethod
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.load_files import ToS3
from pipeline_assets.steps.paths import lies_in, paths_aside, place_of
from pipeline_assets.steps.s3_paths import bucket_of, is_s3
from pipeline_assets.steps.transform import Sql, Uncache


def graph_issues(pipeline: Pipeline, names: Sequence[str], inputs: Sequence[tuple[int, ...]]) -> Iterator[ConfigIssue]:
    """Yield what keeps steps from standing where they do."""
    yield from _checks_alike(pipeline, names)
    yield from _in_partitions(pipeline)
    if not pipeline.is_streaming:
        for index, method in enumerate(pipeline.methods):
            if (problem := method.batch_problem()) is not None:
                yield _issue(pipeline, ("steps", index), problem)
    yield from _idle_uncaching(pipeline, names, inputs)
    yield from _buckets_of_two_connections(pipeline)


def plan_issues(plan: PipelinePlan) -> Iterator[ConfigIssue]:
    """Yield what keeps the steps of a batch from running in any order."""
    yield from _checks_in_a_circle(plan)
    yield from _others_in_a_quarantine(plan)
    yield from _others_below_an_overwrite(plan)


def dead_letter_issues(pipeline: Pipeline, names: Sequence[str]) -> Iterator[ConfigIssue]:
    """Yield which steps of a stream are called like the dead letters of another."""
    for index, method in enumerate(pipeline.methods):
        letters = dead_letters_name(names[index])
        if isinstance(method, FromKafka) and letters in names:
            at = names.index(letters)
            yield _issue(
                pipeline,
                ("steps", at),
                f"{letters!r} is the asset of step {index}'s dead letters: give this step a 'name'",
            )


def input_key(method: StepMethod, at: int) -> tuple[str | int, ...]:
    """Return the key of the config under which the ``at``-th input is named."""
    if isinstance(method, Sql):
        return ("query",)
    for field in ("input_data_frames", "data_frames"):
        if getattr(method, field, None):
            return (type(method).model_fields[field].alias or field, at)
    return ("inputDataFrame",)


def reference_key(method: ValidateMethod, name: str) -> tuple[str | int, ...]:
    """Return the key of the config under which a check names another DataFrame."""
    for stated, expectation in getattr(method, "expectations", {}).items():
        if getattr(expectation, "references", None) == name:
            return ("expectations", stated, "references")
    return ("references",)


def _checks_alike(pipeline: Pipeline, names: Sequence[str]) -> Iterator[ConfigIssue]:
    taken: dict[str, tuple[int, str]] = {}
    for index, method in enumerate(pipeline.methods):
        for name in method.expectation_names() if isinstance(method, ValidateMethod) else ():
            called = check_name(names[index], name)
            other, same = taken.setdefault(called, (index, name))
            if (other, same) != (index, name):
                yield _issue(
                    pipeline,
                    ("steps", index),
                    f"its expectation {name!r} would be the check {called!r}, which {same!r} of step {other} is: "
                    "rename one of them",
                )


def _in_partitions(pipeline: Pipeline) -> Iterator[ConfigIssue]:
    partitions = pipeline.config.partitions
    if partitions is None:
        return
    for index, method in enumerate(pipeline.methods):
        if isinstance(method, LoadMethod) and (problem := method.partition_problem()) is not None:
            yield _issue(pipeline, ("steps", index), problem)
        if isinstance(method, ToS3) and "path" in pipeline.keys_with_partition(index):
            yield from _folders_in_one_another(pipeline, index, partitions.values)


def _folders_in_one_another(pipeline: Pipeline, index: int, partitions: Sequence[str]) -> Iterator[ConfigIssue]:
    """Yield partitions one of whose folders is, or lies in, that of another: a run for that deletes its files."""
    paths = {key: pipeline.text_for_partition(index, "path", key) for key in partitions}
    parts = {key: place_of(path).split("/") for key, path in paths.items()}
    outer: str | None = None
    # What lies in a folder comes right after it.
    for key in sorted(partitions, key=parts.__getitem__):
        if outer is None or parts[key][: len(parts[outer])] != parts[outer]:
            outer = key
            continue
        yield _issue(
            pipeline,
            ("steps", index, "config", "path"),
            f"a run for partition {outer!r}, which replaces the files below {paths[outer]}, would delete those of "
            f"partition {key!r} at {paths[key]}: rename one of the two in 'partitions', or leave ${{partition}} "
            "out of the path, so that each has a folder 'partition_key=...' below it",
        )


def _idle_uncaching(
    pipeline: Pipeline, names: Sequence[str], inputs: Sequence[tuple[int, ...]]
) -> Iterator[ConfigIssue]:
    cached: set[int] = set()
    for index, method in enumerate(pipeline.methods):
        if isinstance(method, DataFrameMethod) and method.cache:
            cached.add(index)
        elif isinstance(method, Uncache):
            for at, source in enumerate(inputs[index]):
                if source not in cached | {index}:
                    yield _issue(
                        pipeline,
                        ("steps", index, "config", *input_key(method, at)),
                        f"no step before this one caches DataFrame {names[source]!r}: leave it out, or give "
                        "'cache': true where it is made",
                    )
        elif isinstance(method, CacheControlMethod):
            cached |= set(inputs[index])


def _buckets_of_two_connections(pipeline: Pipeline) -> Iterator[ConfigIssue]:
    """Yield where a bucket is opened by another connection than before, to which nobody would listen.

    Hadoop keeps one client for a bucket as long as the JVM lives, whatever the settings of later sessions say.
    """
    opened: dict[str, tuple[str, int]] = {}
    for index, method in enumerate(pipeline.methods):
        for key, connection, bucket in dict.fromkeys(_opened_buckets(method)):
            first, at = opened.setdefault(bucket, (connection, index))
            if connection != first:
                yield _issue(
                    pipeline,
                    ("steps", index, "config", key),
                    f"bucket {bucket!r} is opened by connection {first!r} in step {at}, and here by {connection!r}: "
                    "Spark keeps one client for a bucket, use one connection for it, or give what needs the other one "
                    "a pipeline of its own",
                )


def _opened_buckets(method: StepMethod) -> Iterator[tuple[str, str, str]]:
    """Yield the buckets that a step names: the key of its config that tells the connection, that, and the bucket."""
    if method.connection_kind == "s3":
        connection = getattr(method, "connection", "default")
        for dataset in (*method.sources(), *method.sinks()):
            if is_s3(dataset.uri):
                yield "connection", connection, bucket_of(dataset.uri)
    checkpoint = getattr(method, "checkpoint_location", None) or ""
    if is_s3(checkpoint):
        yield "checkpointConnection", getattr(method, "checkpoint_connection", "default"), bucket_of(checkpoint)
    for key, path in paths_aside(method):
        if is_s3(path):
            yield key, "default", bucket_of(path)


def _checks_in_a_circle(plan: PipelinePlan) -> Iterator[ConfigIssue]:
    """Yield a check that would wait for itself.

    What takes a DataFrame waits for the checks that may stop it, and for what is written before it: see ``waits_for``.
    """
    stopping: dict[int, list[int]] = {}  # step -> the checks of its DataFrame
    for step in plan.steps:
        if step.role is Role.CHECK and step.validate_method.reaction == "fail":
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
        circle = [plan.steps[index] for index in error.args[1][1:]]
        check = max((step for step in circle if step.role is Role.CHECK), key=lambda step: step.index)
        at = circle.index(check)
        after_check = [*circle[at + 1 :], *circle[:at]]
        around = " <- ".join(step.name for step in (check, *reversed(after_check), check))
        yield _issue(
            plan.pipeline,
            ("steps", check.index, *_key_of_reference(check, circle[at - 1], stopping)),
            f"this check would wait for itself ({around}): use onFailure 'warn', or compare in a pipeline of its own",
        )


def _key_of_reference(
    check: PlannedStep, before: PlannedStep, stopping: Mapping[int, Sequence[int]]
) -> tuple[str | int, ...]:
    """Return the key by which ``check`` comes to wait for ``before``: for a DataFrame, or for a check of one."""
    for name, source in zip(check.input_names[1:], check.inputs[1:], strict=True):
        if source == before.index or before.index in stopping.get(source, ()):
            return ("config", *reference_key(check.validate_method, name))
    return ()


def _others_in_a_quarantine(plan: PipelinePlan) -> Iterator[ConfigIssue]:
    """Yield what is written into a table of rows in quarantine by another step: each run overwrites it."""
    written = [(step, asset, dataset) for step in plan.steps for asset, dataset in plan.written_by(step)]
    for step, aside, table in written:
        for other, asset, dataset in written:
            if aside == step.quarantine and asset != aside and dataset.overlaps(table):
                yield _issue(
                    plan.pipeline,
                    ("steps", step.index, "config", "quarantinePath"),
                    f"step {other.index} writes {asset!r} there, and this step overwrites the table in each run: "
                    "give it a table of its own",
                )


def _others_below_an_overwrite(plan: PipelinePlan) -> Iterator[ConfigIssue]:
    """Yield what another step writes below the folder whose files are all replaced."""
    for step in plan.steps:
        if not isinstance(step.method, ToS3) or step.method.mode != "overwrite":
            continue
        folder = place_of(step.method.path)
        for other in plan.steps:
            for asset, dataset in plan.written_by(other) if other is not step else ():
                if lies_in(place_of(dataset.uri), folder) and dataset.kind != "postgres":
                    yield _issue(
                        plan.pipeline,
                        ("steps", step.index, "config", "path"),
                        f"step {other.index} writes {asset!r} to {dataset.uri}, and this step replaces all files below "
                        f"{step.method.path}: give each a folder of its own",
                    )


def _issue(pipeline: Pipeline, key: Sequence[str | int], message: str) -> ConfigIssue:
    return ConfigIssue(pipeline.file, pointer(*key), message)
