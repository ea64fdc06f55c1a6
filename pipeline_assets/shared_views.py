"""The views that processes of a run hand on to each other in the session that they share on a Spark Connect server."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline_assets.optimizer import kept_by_config
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def shared_views(plan: PipelinePlan, selected: Collection[int]) -> list[PlannedStep]:
    """Return the views that the config of ``plan`` says to keep, in a run of the ``selected`` steps.

    Where each step has a process of its own and all have one session, the others find them there.
    """
    kept = (plan.steps[index] for index in sorted(kept_by_config(plan, selected)))
    return [step for step in kept if step.role is Role.VIEW]


def release_shared(spark: SparkSession, plan: PipelinePlan) -> None:
    """Let go of what the processes of a run have kept for each other in ``spark``, their session for ``plan``."""
    for step in shared_views(plan, range(len(plan.steps))):
        if (frame := handed_on_in(spark, step)) is not None:
            frame.unpersist()


def handed_on_in(spark: SparkSession, step: PlannedStep) -> DataFrame | None:
    """Return the DataFrame of ``step`` that another process has handed on in ``spark``; None when none has."""
    name = handed_on(step)
    if spark.catalog.tableExists(name) and spark.catalog.getTable(name).isTemporary:
        return spark.table(name)
    return None


def handed_on(step: PlannedStep) -> str:
    """Return the temp view by which processes of a run hand on the DataFrame of ``step``.

    Not by its name: a query that takes it has it by that, and be it only to look whether the query fits.
    """
    return f"handed_on_{step.dataframe}"
