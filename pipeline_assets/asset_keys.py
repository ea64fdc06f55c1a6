"""The keys of assets: of what pipelines make, and of what they read from outside."""

from __future__ import annotations

import re

import dagster as dg

from pipeline_assets.plan import PipelinePlan, PlannedStep, dead_letters_name, quarantine_name
from pipeline_assets.steps.base import Dataset


def pipeline_key(pipeline: str, asset: str) -> dg.AssetKey:
    """Return the key of the asset of that name: ``<pipeline>/<asset>``."""
    return dg.AssetKey([pipeline, asset])


def asset_key(plan: PipelinePlan, step: PlannedStep) -> dg.AssetKey:
    """Return the asset key of a step: ``<pipeline>/<step>``."""
    return pipeline_key(plan.name, step.name)


def quarantine_key(checked: dg.AssetKey) -> dg.AssetKey:
    """Return the key of the table with the rows that the step of that key puts into quarantine."""
    return dg.AssetKey([*checked.path[:-1], quarantine_name(checked.path[-1])])


def dead_letters_key(extract: dg.AssetKey) -> dg.AssetKey:
    """Return the key of the dead-letter table of an extract."""
    return dg.AssetKey([*extract.path[:-1], dead_letters_name(extract.path[-1])])


def dataset_key(dataset: Dataset) -> dg.AssetKey:
    """Return the asset key of data outside all pipelines: its kind and its parts."""
    return dg.AssetKey([dataset.kind, *(key_part(part) for part in dataset.parts)])


def key_part(text: str) -> str:
    """Return ``text`` without what Dagster does not take in a key."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text) or "_"
