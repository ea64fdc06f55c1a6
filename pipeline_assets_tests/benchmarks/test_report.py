"""A run's results go where it is told to put them, and into no published page by themselves."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks import __main__ as command
from benchmarks.location_loading import Load, LoadingComparison
from benchmarks.report import BEGIN, END, PAGE_NAMES, Results

STARTED = datetime(2026, 11, 28, tzinfo=UTC)


def loads(count: int, seconds: float) -> LoadingComparison:
    """Return a comparison whose loads took that long, and by hand twice as long."""
    told = {"define": seconds, "resolve": 0.0, "pyspark_imported": False}
    memory = int(seconds * 10**6)
    return LoadingComparison(count, [Load(seconds, memory, told)], [Load(2 * seconds, memory, told)])


def results(*measured: LoadingComparison) -> Results:
    """Return results of locations."""
    return Results({"cores": "2"}, {"Python": "3"}, "python -m benchmarks", STARTED, loading=list(measured))


def test_only_what_was_measured_is_replaced(tmp_path: Path) -> None:
    for name in PAGE_NAMES:
        (tmp_path / name).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert results(loads(10, 1.0)).write_pages(tmp_path) == [tmp_path / "benchmarks.md"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.startswith(f"before\n{BEGIN}\nMeasured on 2026-11-28 by `python -m benchmarks`.\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "## Loading the location" in page
    assert "old" not in page
    assert "old" in (tmp_path / "tuning.md").read_text()


def test_growth_says_between_which_sizes() -> None:
    measured = [loads(count, seconds) for count, seconds in ((10, 1.0), (100, 2.0), (1000, 11.0), (2000, 31.0))]
    (growth,) = (goal for goal in results(*measured).goals() if goal.what.startswith("linear growth: time"))
    assert growth.what.endswith("from 1,000 to 2,000 over that from 100 to 1,000")
    assert growth.measured.median == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}\n{BEGIN}"])
def test_a_page_without_a_place_for_them_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text(text)
    with pytest.raises(click.ClickException, match=r"benchmarks\.md has no place"):
        results(loads(10, 1.0)).write_pages(tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == text


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the command measure nothing, and keep its results here; returns what it would have measured."""
    found: list[int] = []

    def compare(_folder: Path, count: int, *_: Any) -> LoadingComparison:
        found.append(count)
        return loads(count, 1.0)

    monkeypatch.setattr(command, "compare_loading", compare)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return found


def run(*arguments: str) -> Result:
    """Run the command for a location of ten configs."""
    return CliRunner().invoke(command.main, ["--part", "loading", "--configs", "10", *arguments])


def test_pages_are_new_ones_beside_the_json_when_none_are_given(tmp_path: Path, measured: list[int]) -> None:
    done = run()
    assert (done.exit_code, measured) == (0, [10])
    (page,) = (tmp_path / "results").glob("*/*.md")
    assert page.parent.with_suffix(".json").exists()
    assert page.name == "benchmarks.md"


def test_pages_without_a_place_are_refused_before_anything_is_measured(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "scaling.md").write_text("# Scaling\n")
    done = run("--pages", str(tmp_path))
    assert (done.exit_code, measured) == (1, [])
    assert f"scaling.md has no place for what is measured: put a line {BEGIN}" in done.output
