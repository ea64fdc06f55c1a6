"""The schedules of pipelines. One of time-based partitions runs each of them once, when it has ended."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into schedules.
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from typing import Any

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG, REPOSITORY_LABEL_TAG, SCHEDULE_NAME_TAG

from pipeline_assets.plan import PipelinePlan

Requests = dg.RunRequest | dg.SkipReason | Sequence[dg.RunRequest]
# A run that was made and never launched, as when the daemon has ended in between, is none.
_LAUNCHED = [status for status in dg.DagsterRunStatus if status is not dg.DagsterRunStatus.NOT_STARTED]


def schedules_of(
    plan: PipelinePlan, job: Any, partitions_def: dg.PartitionsDefinition[str] | None
) -> Iterator[dg.ScheduleDefinition]:
    """Yield the schedule of ``plan``, which launches ``job``: none where the config has none, or has assets follow it
    by automation.
    """
    schedule = plan.pipeline.config.cron_schedule
    if schedule is None or plan.pipeline.config.automation == "on_cron":
        return
    name = f"{plan.name}_schedule"
    yield dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=schedule.cron,
        execution_timezone=schedule.timezone,
        execution_fn=_requests(name, partitions_def),
    )


def _requests(
    schedule: str, partitions_def: dg.PartitionsDefinition[str] | None
) -> Callable[[dg.ScheduleEvaluationContext], Requests] | None:
    """Return what a tick asks for; None for Dagster's own: one run."""
    if partitions_def is None:
        return None
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        windows = partitions_def
        return lambda context: _last_partition(context, schedule, windows)
    keys = partitions_def.get_partition_keys()
    return lambda context: [
        dg.RunRequest(run_key=f"{context.scheduled_execution_time.isoformat()}|{key}", partition_key=key)
        for key in keys
    ]


def _last_partition(
    context: dg.ScheduleEvaluationContext, schedule: str, partitions_def: dg.TimeWindowPartitionsDefinition
) -> dg.RunRequest | dg.SkipReason:
    """Request the run of the last partition that had ended when the schedule ticked, if that has not had one yet.

    So it is requested once: not again at each tick until the next one ends, nor after the last of all.
    """
    tick = context.scheduled_execution_time
    with dg.partition_loading_context(effective_dt=tick):
        key = partitions_def.get_last_partition_key()
    if key is None:
        return dg.SkipReason(f"no partition has ended by {tick.isoformat()}: the first starts at the config's 'start'")
    # Dagster itself looks for the runs of one tick alone, whatever their key.
    for run in context.instance.get_runs(_runs_of_partition(context, schedule, partitions_def, key), limit=1):
        return dg.SkipReason(
            f"partition {key} is the last that has ended, and run {run.run_id} of this schedule was for it: a schedule "
            "runs each once; to run it again, launch it by hand"
        )
    return dg.RunRequest(partition_key=key)


def _runs_of_partition(
    context: dg.ScheduleEvaluationContext, schedule: str, partitions_def: dg.TimeWindowPartitionsDefinition, key: str
) -> dg.RunsFilter:
    repository = context.repository_def
    loaded = repository.repository_load_data
    # Another code location may have a pipeline of the same name. Where Dagster does not say which one this is, as of a
    # server that was started without its name, the runs of both count.
    location = loaded.code_location_name if loaded is not None else None
    of_location = {REPOSITORY_LABEL_TAG: f"{repository.name}@{location}"} if location is not None else {}
    tags = {PARTITION_NAME_TAG: key, SCHEDULE_NAME_TAG: schedule, **of_location}
    # Before it had ended, a run was for another one with the same key: of the first day, when partitions were days.
    # Dagster takes the zone off, and compares with UTC.
    ended = partitions_def.time_window_for_partition_key(key).end.astimezone(UTC)
    return dg.RunsFilter(tags=tags, statuses=_LAUNCHED, created_after=ended)
