"""What the tests of the planner plan, and how they ask what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import BrokenConfig, load_file, load_folder
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.planner import plan_pipeline
from pipeline_assets_tests.config_documents import write_config

DELTA = {"type": "load", "method": "toDeltaLake"}


def planned(folder: Path, document: dict[str, Any]) -> PipelinePlan:
    return plan_pipeline(load_file(write_config(folder, document), {}))


def issues_of(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        planned(folder, document)
    return {issue.pointer: issue.message for issue in caught.value.issues}


def all_issues_of(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    write_config(folder, document, "p.json")
    ((broken),) = plan_folder(load_folder(folder, {})).broken
    return {issue.pointer: issue.message for issue in broken.error.issues}


def quarantine(**config: Any) -> dict[str, Any]:
    config = {"columns": ["id"], "onFailure": "quarantine", **config}
    return {"type": "validate", "method": "notNull", "name": "good", "config": config}


def issues(broken: BrokenConfig) -> dict[str, str]:
    return {issue.pointer: issue.message for issue in broken.error.issues}
