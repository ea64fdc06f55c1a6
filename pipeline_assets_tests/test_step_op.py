"""What Dagster is told when a step goes wrong."""

from __future__ import annotations

import dagster as dg
import pytest

from pipeline_assets.errors import (
    ConfigurationError,
    OriginalError,
    PipelineCancelledError,
    PipelineExecutionError,
    StepLocation,
)
from pipeline_assets.step_op import told_to_dagster

STEP = StepLocation("orders", 2, "load", "toDeltaLake")


def test_a_failure_starts_with_the_line_to_act_on_and_ends_with_the_trace() -> None:
    error = PipelineExecutionError("the disk is full: make room at /data", details="caused by: No space left")
    error.located(STEP, {"path": "/data/orders"}, "a-run")
    with pytest.raises(dg.Failure) as raised, told_to_dagster():
        raise error from OriginalError("Py4JJavaError: ...\n\tat java.io")
    failure = raised.value
    assert failure.description == "orders: step 2 (load toDeltaLake): the disk is full: make room at /data"
    assert [(key, value.value) for key, value in failure.metadata.items()] == [
        ("error", "PipelineExecutionError"),
        ("pipeline", "orders"),
        ("step_index", 2),
        ("step_type", "load"),
        ("method", "toDeltaLake"),
        ("config", '```json\n{\n  "path": "/data/orders"\n}\n```'),
        ("details", "```\ncaused by: No space left\n```"),
        ("trace", "```\nPy4JJavaError: ...\n\tat java.io\n```"),
    ]
    assert failure.__cause__ is error


def test_a_step_nearer_to_the_cause_stays_named() -> None:
    error = ConfigurationError("wrong").located(STEP, {}, "a-run")
    assert error.located(StepLocation("orders", 5, "load", "toS3"), {"x": 1}, "b-run").location == STEP
    assert (error.config, error.run_id) == ({}, "a-run")


def test_a_cancelled_step_interrupts_the_run() -> None:
    with pytest.raises(dg.DagsterExecutionInterruptedError), told_to_dagster():
        raise PipelineCancelledError("the run was asked to stop")


def test_what_is_not_of_this_package_passes() -> None:
    with pytest.raises(KeyError), told_to_dagster():
        raise KeyError("bug")
