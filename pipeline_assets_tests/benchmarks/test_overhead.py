"""What telling of itself costs a run is measured of runs that did so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.measured_process import ProcessCost, ProgramFailedError
from benchmarks.overhead import BATCH_TELLS, STREAM_TELLS, batch_overhead, check_told, everything_on
from pipeline_assets.settings import Settings


def test_everything_is_on(tmp_path: Path) -> None:
    settings = Settings.from_environment(everything_on(tmp_path))
    settings.check()
    assert settings.log_format == "json"
    assert settings.metrics_listen
    assert {settings.metrics, settings.reports, settings.audit_file} == {
        tmp_path / "metrics",
        tmp_path / "reports",
        tmp_path / "audit.jsonl",
    }


def test_what_was_not_told_is_missed(tmp_path: Path) -> None:
    for name in ("metrics/run.jsonl", "lineage.jsonl", "reports/p-run.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("told")
    check_told(tmp_path, STREAM_TELLS)
    with pytest.raises(ProgramFailedError, match="no audit$"):
        check_told(tmp_path, BATCH_TELLS)
    (tmp_path / "reports/p-run.html").write_text("")
    (tmp_path / "metrics/run.jsonl").unlink()
    with pytest.raises(ProgramFailedError, match="no metrics and no report$"):
        check_told(tmp_path, STREAM_TELLS)


def test_runs_that_tell_nothing_are_not_measured(tmp_path: Path) -> None:
    cost = ProcessCost(0.0, 1.0, 1.0, 1, 1, "")
    workplace: Any = SimpleNamespace(folder=tmp_path, run_job=lambda more: cost, check_table=lambda orders: None)
    # What another run has told is not what this one tells.
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "lineage.jsonl").write_text("told")
    with pytest.raises(ProgramFailedError, match="no metrics and no lineage and no report and no audit"):
        batch_overhead(workplace, 1, 2, lambda _: None)
