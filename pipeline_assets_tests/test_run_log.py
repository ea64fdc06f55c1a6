"""What log lines say of the run, the pipeline and the step that they are about."""

# No postponed annotations here: Dagster inspects those of ops.
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest

from pipeline_assets.config_loading import load_file
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.redacted_output import redacted_logs
from pipeline_assets.run_log import RunLog
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import batch, extract_file, write_config

_log = logging.getLogger("pipeline_assets.somewhere")
_other = logging.getLogger("another_library")


@pytest.fixture
def plan(tmp_path: Path) -> PipelinePlan:
    check = {"type": "validate", "method": "rowCount", "config": {"min": 1}}
    return plan_pipeline(load_file(write_config(tmp_path, batch("p-q", extract_file("rows", "/rows.json"), check))))


Messages = list[tuple[str, str | None]]
Body = Callable[[dg.OpExecutionContext], object]


def run(
    plan: PipelinePlan, settings: Settings, body: Body, listener: Callable[..., None] | None = None
) -> tuple[str, Messages]:
    """Run ``body`` as the step that extracts rows; returns the run's id and the messages that Dagster has filed."""

    @dg.op(name="p_q__rows")
    def rows(context: dg.OpExecutionContext) -> None:
        step = context.get_step_execution_context()
        # The logger of the run, as a resource gets it, has no step yet.
        log = RunLog(settings, context.run, step.log.with_tags(step_key=None))  # type: ignore[arg-type]
        log.know(plan)
        if listener is not None:
            context.instance.add_event_listener(context.run.run_id, listener)
        # Without the handlers that pytest has put there.
        with patch.object(logging.getLogger(), "handlers", []):
            with log.written(), log.of_step(context.log):
                body(context)
            assert logging.getLogger().handlers == []

    @dg.job
    def p_q() -> None:
        rows()

    with dg.DagsterInstance.ephemeral() as instance:
        result = p_q.execute_in_process(instance=instance)
        filed = [(entry.user_message, entry.step_key) for entry in instance.all_logs(result.run_id)]
        return result.run_id, filed


def test_text_has_dagsters_form_and_the_rest_in_brackets(
    plan: PipelinePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, filed = run(plan, Settings(), lambda _: _log.info("%d rows\nand more", 3))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "3 rows" in line]
    told = f" - dagster - INFO - p_q - {run_id} - p_q__rows - 3 rows [step_index=0 method=fromFile asset=p_q/rows]"
    assert line.endswith(told)
    assert ("3 rows\nand more", "p_q__rows") in filed


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def tell_of_an_error(_: dg.OpExecutionContext) -> None:
    try:
        raise ValueError("no number")
    except ValueError:
        _log.warning("that's %s", "it", exc_info=True)


def test_json_has_the_schema_of_sparks_log(plan: PipelinePlan, capsys: pytest.CaptureFixture[str]) -> None:
    with redacted_logs():  # as in every run
        run_id, _ = run(plan, Settings(log_format="json"), tell_of_an_error)
    (line,) = [line for line in json_lines(capsys.readouterr().err) if line["msg"] == "that's it"]
    exception = line.pop("exception")
    assert exception["class"] == "ValueError"
    assert exception["msg"].startswith("Traceback (most recent call last):")
    assert exception["msg"].endswith("\nValueError: no number")
    assert line.pop("ts")[-1] == "Z"
    assert line == {
        "level": "WARN",
        "logger": "pipeline_assets.somewhere",
        "context": {"step_index": "0", "step": "rows", "method": "fromFile", "asset": "p_q/rows"},
        "msg": "that's it",
        "pipeline": "p_q",
        "run_id": run_id,
    }


def test_text_has_the_trace_of_an_error_as_python_writes_it(
    plan: PipelinePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    with redacted_logs():
        run(plan, Settings(), tell_of_an_error)
    _, _, told = capsys.readouterr().err.partition("that's it")
    assert told.splitlines()[1] == "Traceback (most recent call last):"
    assert "\nValueError: no number\n" in told
    assert "_LoggedError" not in told


@pytest.mark.parametrize("form", ["text", "json"])
def test_another_library_s_line_says_whose_it_is_and_is_none_of_dagsters(
    plan: PipelinePlan, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, filed = run(plan, Settings(log_format=form), lambda _: _other.warning("slow"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "slow" in line]
    assert run_id in line
    assert "fromFile" in line
    assert all("slow" not in message for message, _ in filed)


def test_a_line_of_a_listener_is_written_although_dagster_does_not_take_it(
    plan: PipelinePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    def listener(entry: dg.EventLogEntry) -> None:
        if "first" in entry.user_message:
            _log.warning("the disk is full")

    run_id, filed = run(plan, Settings(), lambda _: _log.info("first"), listener)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "the disk is full" in line]
    assert run_id in line
    assert ("first", "p_q__rows") in filed


def test_its_lock_can_be_taken_as_each_python_takes_it(plan: PipelinePlan) -> None:
    def body(context: dg.OpExecutionContext) -> None:
        (handler,) = logging.getLogger().handlers
        handler.acquire()
        handler.release()
        assert handler.lock is not None
        with handler.lock:  # from Python 3.13 on
            pass

    run(plan, Settings(), body)


def test_the_level_is_that_of_the_settings(plan: PipelinePlan, capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: dg.OpExecutionContext) -> None:
        _log.info("of less weight")
        _log.error("of more weight")

    before = logging.getLogger("pipeline_assets").level
    _, filed = run(plan, Settings(log_level="ERROR"), body)
    said = capsys.readouterr().err
    assert [text for text in ("of less weight", "of more weight") if text in said] == ["of more weight"]
    assert [text for text, _ in filed if "weight" in text] == ["of more weight"]
    assert logging.getLogger("pipeline_assets").level == before


def test_a_check_is_about_the_asset_that_it_checks(plan: PipelinePlan) -> None:
    log = RunLog(Settings(), dg.DagsterRun(job_name="p_q"), None)  # type: ignore[arg-type]
    log.know(plan)
    assert log.fields({"step_key": "p_q__row_count"}) == {
        "step_index": "1", "step": "row_count", "method": "rowCount", "asset": "p_q/rows",
    }  # fmt: skip


def test_a_micro_batch_is_named(plan: PipelinePlan, capsys: pytest.CaptureFixture[str]) -> None:
    observed = dg.AssetObservation(["s", "out"], metadata={"batch_id": 7})
    run(plan, Settings(log_format="json"), lambda context: context.log_event(observed))
    (line,) = [line for line in json_lines(capsys.readouterr().err) if line["context"].get("batch_id")]
    assert line["context"] == {
        "step_index": "0", "step": "rows", "method": "fromFile", "asset": "s/out", "batch_id": "7",
        "event": "ASSET_OBSERVATION",
    }  # fmt: skip


def test_a_partition_is_named() -> None:
    run = dg.DagsterRun(job_name="s", tags={"dagster/partition": "2024-01-31"})
    log = RunLog(Settings(), run, None)  # type: ignore[arg-type]
    assert log.fields({"step_key": "s__stream"}) == {"step": "stream", "partition": "2024-01-31"}
