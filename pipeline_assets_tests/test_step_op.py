"""What Dagster is told when a step goes wrong, and when it is tried again."""

# No postponed annotations here: Dagster inspects those of ops.
import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.plan.objects import ErrorSource
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark.errors import PySparkException

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.code_location import build_definitions
from pipeline_assets.config import Retry
from pipeline_assets.config_loading import load_file
from pipeline_assets.errors import (
    ConfigurationError,
    OriginalError,
    PipelineCancelledError,
    PipelineExecutionError,
    RetryableError,
    StepLocation,
)
from pipeline_assets.execution import PipelineRun
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.settings import Settings
from pipeline_assets.step_op import _selected, step_op, told_to_dagster
from pipeline_assets_tests.config_documents import batch, extract_file, write_config

STEP = StepLocation("orders", 2, "load", "toDeltaLake")


def outcome(*failures: BaseException | None, retry: Retry | None = None) -> dg.ExecuteInProcessResult:
    """Run an op whose tries end in ``failures``, one after the other; None is success."""
    left = list(failures)

    @dg.op
    def step(context: dg.OpExecutionContext) -> None:
        with told_to_dagster(context.get_step_execution_context(), Cancellation(), retry):
            if (failure := left.pop(0)) is not None:
                raise failure

    @dg.job(executor_def=dg.in_process_executor)
    def job() -> None:
        step()

    return job.execute_in_process(raise_on_error=False)


def retries_of(result: dg.ExecuteInProcessResult) -> int:
    return sum(event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY for event in result.all_events)


def failure_of(result: dg.ExecuteInProcessResult) -> Any:
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    return event.step_failure_data.user_failure_data


def test_a_failure_starts_with_the_line_to_act_on_and_ends_with_the_trace() -> None:
    error = PipelineExecutionError("the disk is full: make room at /data", details="caused by: No space left")
    error.located(STEP, {"path": "/data/orders"}, "a-run")
    error.__cause__ = OriginalError("Py4JJavaError: ...\n\tat java.io")
    failure = failure_of(outcome(error))
    assert failure.description == "orders: step 2 (load toDeltaLake): the disk is full: make room at /data"
    assert [(key, value.value) for key, value in failure.metadata.items()] == [
        ("error", "PipelineExecutionError"),
        ("transient", "no"),
        ("pipeline", "orders"),
        ("step_index", 2),
        ("step_type", "load"),
        ("method", "toDeltaLake"),
        ("config", '```json\n{\n  "path": "/data/orders"\n}\n```'),
        ("details", "```\ncaused by: No space left\n```"),
        ("trace", "```\nPy4JJavaError: ...\n\tat java.io\n```"),
    ]


def test_a_step_nearer_to_the_cause_stays_named() -> None:
    error = ConfigurationError("wrong").located(STEP, {}, "a-run")
    assert error.located(StepLocation("orders", 5, "load", "toS3"), {"x": 1}, "b-run").location == STEP
    assert (error.config, error.run_id) == ({}, "a-run")


def refused() -> RetryableError:
    return RetryableError("nobody answers", kind="connection")


QUICK = Retry(max_retries=2, delay=0.001)


@pytest.mark.parametrize(
    ("failures", "retry", "retries", "succeeds"),
    [
        pytest.param([refused(), None], QUICK, 1, True, id="passes"),
        pytest.param([refused(), refused(), refused()], QUICK, 2, False, id="stays"),
        pytest.param([refused()], None, 0, False, id="none-asked-for"),
        pytest.param([ConfigurationError("no such table")], QUICK, 0, False, id="permanent"),
        pytest.param([refused()], Retry(max_retries=2, on=("conflict",)), 0, False, id="other-kind"),
        pytest.param([refused(), PipelineExecutionError("disk full")], QUICK, 1, False, id="permanent-then"),
    ],
)
def test_only_what_may_pass_is_tried_again(
    failures: list[BaseException | None], retry: Retry | None, retries: int, succeeds: bool
) -> None:
    result = outcome(*failures, retry=retry)
    assert (retries_of(result), result.success) == (retries, succeeds)
    if not succeeds:
        assert failure_of(result).description == str(failures[-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_wait_before_the_next_try(number: signal.Signals) -> None:
    @dg.op
    def step(context: dg.OpExecutionContext) -> None:
        with Cancellation() as cancellation:
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
            failing: Callable[[], None] = _fail
            with told_to_dagster(context.get_step_execution_context(), cancellation, Retry(max_retries=1, delay=1e9)):
                failing()

    @dg.job(executor_def=dg.in_process_executor)
    def job() -> None:
        step()

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        job.execute_in_process()


def _fail() -> None:
    raise RetryableError("busy", kind="throttled", retry_after=3600)


def test_a_cancelled_step_interrupts_the_run() -> None:
    (event,) = outcome(PipelineCancelledError("asked to stop"), retry=QUICK).filter_events(lambda e: e.is_step_failure)
    assert event.step_failure_data.error_source is ErrorSource.INTERRUPT


def test_what_is_not_of_this_package_passes() -> None:
    result = outcome(KeyError("bug"), retry=QUICK)
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    assert event.step_failure_data.error.cause.cls_name == "KeyError"


@pytest.mark.parametrize(
    "error",
    [
        Py4JNetworkError("Error while sending or receiving"),
        # What Py4J makes of it when the JVM goes while it is asked.
        Py4JError("An error occurred while calling o44.addJobTag"),
    ],
    ids=["send", "receive"],
)
def test_a_jvm_that_is_gone_between_two_steps_is_tried_again(error: Py4JError, tmp_path: Path) -> None:
    class Gone:
        def addJobTag(self, tag: str) -> None:  # noqa: N802  (Spark's name)
            raise error

        removeJobTag = cancelJobsWithTag = addJobTag  # noqa: N815

    def work() -> None:
        raise AssertionError("there is no Spark to work with")

    failure = failure_of(outcome_of_step(tmp_path, Gone(), work))
    assert failure.description.startswith("p: step 0 (extract fromFile): Spark's JVM is gone")
    assert failure.metadata["transient"].value == "lostExecutor"


class Living:
    """As much of a SparkContext as a step op takes."""

    def addJobTag(self, tag: str) -> None:  # noqa: N802  (Spark's name)
        pass

    removeJobTag = cancelJobsWithTag = addJobTag  # noqa: N815


def outcome_of_step(
    folder: Path, spark_context: Any, work: Callable[[], None], retries: int = 0
) -> dg.ExecuteInProcessResult:
    """Run an op of a pipeline's step that does ``work``, which is no part of the step's own."""
    config = folder / "p.json"
    retry = {"maxRetries": retries, "delay": 0}
    config.write_text(json.dumps(batch("p", extract_file("rows", "/rows.json"), retry=retry)))
    plan = plan_pipeline(load_file(config))
    spark: Any = SimpleNamespace(sparkContext=spark_context)
    cancellation = Cancellation()
    own: Any = SimpleNamespace(run_id="r", spark=spark, settings=Settings(), cancellation=cancellation)
    log: Any = SimpleNamespace(of_step=lambda _: nullcontext(), tell_spark=lambda _: None)
    source: Any = SimpleNamespace(
        cancellation=cancellation, run_log=log, pipeline_run=lambda *_: PipelineRun(plan, own)
    )

    @dg.op
    def step(context: dg.OpExecutionContext) -> None:
        with step_op(source, context.get_step_execution_context(), plan, plan.steps[0], None):
            work()

    @dg.job(executor_def=dg.in_process_executor)
    def job() -> None:
        step()

    return job.execute_in_process(raise_on_error=False)


def test_what_spark_says_beside_the_work_of_a_step_is_told_like_it(tmp_path: Path) -> None:
    """When it is asked for a plan to show, for instance."""

    def explain() -> None:
        raise PySparkException("no plan for jdbc:postgresql://h/db?user=me&password=hunter2")

    failure = failure_of(outcome_of_step(tmp_path, Living(), explain, retries=1))
    assert failure.description.startswith("p: step 0 (extract fromFile): no plan for jdbc:postgresql://h/db?")
    assert (failure.metadata["error"].value, failure.metadata["transient"].value) == ("PipelineExecutionError", "no")
    assert "PySparkException" in failure.metadata["trace"].value
    assert "hunter2" not in repr(failure)


def test_and_is_tried_again_like_it(tmp_path: Path) -> None:
    left = [Py4JNetworkError("Error while sending or receiving")]

    def explain() -> None:
        if left:
            raise left.pop()

    result = outcome_of_step(tmp_path, Living(), explain, retries=1)
    assert (result.success, retries_of(result)) == (True, 1)


def test_what_is_not_of_spark_beside_the_work_of_a_step_passes(tmp_path: Path) -> None:
    def explain() -> None:
        raise KeyError("bug")

    (event,) = outcome_of_step(tmp_path, Living(), explain).filter_events(lambda event: event.is_step_failure)
    assert event.step_failure_data.error.cause.cls_name == "KeyError"


@pytest.mark.parametrize(
    ("chosen", "selected"), [([], {0, 2}), (["check_a"], {0, 2}), (["check_a", "check_b"], {0, 1, 2})]
)
def test_a_check_is_part_of_a_run_that_makes_all_of_it(tmp_path: Path, chosen: list[str], selected: set[int]) -> None:
    """Of one that a sensor or a schedule asks for, too: it does not say which steps it has."""
    check = {"type": "validate", "method": "expectations", "name": "check",
             "config": {"expectations": {"a": "x > 0", "b": "x < 9"}}}  # fmt: skip
    load = {"type": "load", "method": "toDeltaLake", "name": "load", "config": {"path": "/t"}}
    write_config(tmp_path, batch("p", extract_file("rows", "/rows.json"), check, load))
    plan = plan_pipeline(load_file(tmp_path / "p.json"))
    rows = dg.AssetKey(["p", "rows"])
    part = (
        build_definitions(Settings(configs=tmp_path))
        .resolve_job_def("p")
        .get_subset(
            asset_selection={rows, dg.AssetKey(["p", "load"])},
            asset_check_selection={dg.AssetCheckKey(rows, name) for name in chosen},
        )
    )
    context: Any = SimpleNamespace(job_def=part, dagster_run=SimpleNamespace(step_keys_to_execute=None))
    assert _selected(context, plan) == selected
