"""The runs that Dagster has of a pipeline."""

# No postponed annotations here, as in all modules that know Dagster's runs.
import re
from collections.abc import Iterable

import dagster as dg

from pipeline_assets.asset_keys import asset_key
from pipeline_assets.errors import RunNotFoundError
from pipeline_assets.plan import PipelinePlan

_RUNS_SEARCHED = 1000
_SHORT_ID = re.compile("[0-9a-f-]{4,35}")


def find_run(instance: dg.DagsterInstance, plan: PipelinePlan, run_id: str | None = None) -> dg.RunRecord:
    """Return the run ``run_id`` (or the only one that starts so), or else the last one that had steps of ``plan``.

    Raises RunNotFoundError when there is none or more than one, and for a run without any step of ``plan``.
    """
    name = plan.pipeline.config.name
    if run_id is None:
        found = _last_run(instance, plan)
        if found is None:
            raise RunNotFoundError(
                f"pipeline {name!r} has not run yet, as far as this Dagster instance knows: "
                f"run it (`dagster job execute -m pipeline_assets.definitions -j {plan.name}`), or look at DAGSTER_HOME"
            )
        return found
    found = _run(instance, run_id)
    if found is None:
        raise RunNotFoundError(
            f"there is no run {run_id!r} in this Dagster instance: look at its page in the UI for the id, and at "
            "DAGSTER_HOME"
        )
    if not _has_steps(instance, plan, found.dagster_run):
        raise RunNotFoundError(f"run {run_id!r} is one of {found.dagster_run.job_name!r}: no step of {name!r} is in it")
    return found


def _run(instance: dg.DagsterInstance, run_id: str) -> dg.RunRecord | None:
    found = instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))
    if not found and _SHORT_ID.fullmatch(run_id):
        # The UI shows the first eight characters.
        recent = instance.get_run_records(limit=_RUNS_SEARCHED)
        found = [record for record in recent if record.dagster_run.run_id.startswith(run_id)]
    if len(found) > 1:
        raise RunNotFoundError(f"the ids of {len(found)} runs start with {run_id!r}: give more of it")
    return found[0] if found else None


def _last_run(instance: dg.DagsterInstance, plan: PipelinePlan) -> dg.RunRecord | None:
    candidates = list(instance.get_run_records(dg.RunsFilter(job_name=plan.name), limit=1))
    keys = [asset_key(plan, step) for step in plan.steps]
    # Any job may have materialized them.
    others = {record.asset_entry.last_run_id for record in instance.get_asset_records(keys)} - {None}
    if others:
        candidates += instance.get_run_records(dg.RunsFilter(run_ids=[str(run_id) for run_id in others]))
    return max(candidates, key=lambda record: record.create_timestamp, default=None)


def _has_steps(instance: dg.DagsterInstance, plan: PipelinePlan, run: dg.DagsterRun) -> bool:
    return run.job_name == plan.name or bool(own_ops(plan, run, selected_ops(instance, run)))


def selected_ops(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """Return the keys of the ops that the run was to execute."""
    if run.step_keys_to_execute:
        return list(run.step_keys_to_execute)
    if run.execution_plan_snapshot_id is None:
        return []
    snapshot = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    return list(snapshot.step_keys_to_execute) if snapshot else []


def own_ops(plan: PipelinePlan, run: dg.DagsterRun, keys: Iterable[str]) -> list[str]:
    """Return those of ``keys`` that are ops of the pipeline; of its own job, all."""
    known = {plan.op_name(step) for step in plan.steps} | {plan.stream_op_name}
    return [key for key in dict.fromkeys(keys) if run.job_name == plan.name or key in known]
