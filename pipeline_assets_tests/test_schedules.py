"""Schedules of partitioned pipelines, by Dagster's own scheduler. The runs are queued, and nothing takes them."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
import dagster._daemon
import pytest
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from pipeline_assets_tests.config_documents import batch, extract_file, write_config

_log = logging.getLogger(__name__)
DAILY = {"type": "daily", "start": "2024-01-01", "end": "2024-03-01"}


class Scheduler:
    """The schedules of a workspace, all of them on."""

    def __init__(self, workspace: WorkspaceProcessContext, on_since: dt.datetime) -> None:
        self._workspace = workspace
        self.instance = workspace.instance
        self._schedules = [
            schedule
            for entry in workspace.create_request_context().get_code_location_entries().values()
            for repository in (entry.code_location.get_repositories().values() if entry.code_location else ())
            for schedule in repository.get_schedules()
        ]
        for schedule in self._schedules:
            since = ScheduleInstigatorData(schedule.cron_schedule, on_since.timestamp())
            origin = schedule.get_remote_origin()
            state = InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, since)
            self.instance.add_instigator_state(state)

    def look(self, *at: int, fails: bool = False) -> list[str]:
        """Have Dagster look at the clock at ``at``; return the partitions that have a run by then, the first first."""
        time = dt.datetime(*at, tzinfo=dt.UTC)  # type: ignore[misc,arg-type]
        errors = [error for error in launch_scheduled_runs(self._workspace, _log, time, {}) if error is not None]
        assert bool(errors) is fails, errors
        return [run.tags["dagster/partition"] for run in reversed(self.instance.get_runs())]

    def told(self) -> str | None:
        """Return why the last tick of the one schedule was skipped."""
        (schedule,) = self._schedules
        return self.instance.get_ticks(schedule.get_remote_origin_id(), schedule.selector_id, limit=1)[0].skip_reason


@contextmanager
def scheduler(
    folder: Path,
    cron: str,
    on_since: tuple[int, ...],
    locations: Sequence[str] = ("here",),
    partitions: Mapping[str, str] = DAILY,
) -> Iterator[Scheduler]:
    configs = folder / "configs"
    configs.mkdir()
    rows = extract_file("rows", "/in/${partition}.csv")
    write_config(configs, batch("parted", rows, partitions=partitions, schedule=cron))
    origins = []
    for name in locations:
        file = folder / f"{name}_{folder.name}.py"
        file.write_text(
            "from pathlib import Path\n"
            "from pipeline_assets.code_location import build_definitions\n"
            "from pipeline_assets.settings import Settings\n"
            f"defs = build_definitions(Settings(configs=Path({str(configs)!r})))\n"
        )
        origins.append(InProcessCodeLocationOrigin(LoadableTargetOrigin(python_file=str(file)), location_name=name))
    queue = {"module": "dagster._core.run_coordinator.queued_run_coordinator", "class": "QueuedRunCoordinator"}
    overrides = {"run_coordinator": queue, "telemetry": {"enabled": False}}
    since = dt.datetime(*on_since, tzinfo=dt.UTC)  # type: ignore[misc,arg-type]
    with (
        DefinitionsLoadContext.scoped(DefinitionsLoadContext.get()),
        dg.DagsterInstance.local_temp(str(folder), overrides) as instance,
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origins)) as workspace,
    ):
        yield Scheduler(workspace, since)


def test_the_last_partition_that_has_ended_is_run(tmp_path: Path) -> None:
    with scheduler(tmp_path, "0 2 * * *", (2024, 1, 1)) as found:
        assert found.look(2024, 1, 1, 2) == []
        assert "no partition has ended by 2024-01-01" in (found.told() or "")
        assert found.look(2024, 2, 28, 3) == ["2024-02-27"]
        assert found.look(2024, 2, 29, 3) == ["2024-02-27", "2024-02-28"]


def test_each_partition_is_run_once(tmp_path: Path) -> None:
    """Also when the schedule ticks more often than partitions end, and after the last of all has ended."""
    with scheduler(tmp_path, "0 * * * *", (2024, 2, 28, 1)) as found:
        runs = found.look(2024, 2, 28, 1)
        assert runs == found.look(2024, 2, 28, 2) == ["2024-02-27"]
        (run,) = found.instance.get_runs()
        assert f"run {run.run_id} of this schedule was for it" in (found.told() or "")
        found.instance.report_run_failed(run)
        assert found.look(2024, 2, 28, 3) == runs
        assert found.look(2024, 2, 29, 0) == [*runs, "2024-02-28"]
        assert found.look(2024, 3, 1, 0) == [*runs, "2024-02-28", "2024-02-29"]
        assert found.look(2024, 3, 2, 0) == [*runs, "2024-02-28", "2024-02-29"]


def test_a_run_that_was_not_launched_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduler(tmp_path, "0 * * * *", (2024, 2, 28, 1)) as found:
        with monkeypatch.context() as patch:
            patch.setattr(dg.DagsterInstance, "submit_run", _refuses)
            found.look(2024, 2, 28, 1, fails=True)
        assert [run.status for run in found.instance.get_runs()] == [dg.DagsterRunStatus.NOT_STARTED]
        assert found.look(2024, 2, 28, 2) == ["2024-02-27"] * 2
        assert found.look(2024, 2, 28, 3) == ["2024-02-27"] * 2


def test_a_pipeline_of_another_code_location_is_another_one(tmp_path: Path) -> None:
    with scheduler(tmp_path, "0 * * * *", (2024, 2, 28, 1), ("ours", "theirs")) as found:
        assert found.look(2024, 2, 28, 1) == ["2024-02-27"] * 2
        assert found.look(2024, 2, 28, 2) == ["2024-02-27"] * 2
        origins = [run.remote_job_origin for run in found.instance.get_runs()]
        assert {origin.location_name for origin in origins if origin is not None} == {"ours", "theirs"}


def test_a_run_of_before_the_partition_had_ended_was_for_another_one(tmp_path: Path) -> None:
    """As that of a month's first day, when days were the partitions. Runs are made today, whatever ticks say."""
    coming = {"type": "monthly", "start": "2024-01-01"}
    with scheduler(tmp_path, "0 * * * *", (2099, 2, 1, 1), partitions=coming) as found:
        assert found.look(2099, 2, 1, 1) == ["2099-01-01"]
        assert found.look(2099, 2, 1, 2) == ["2099-01-01"] * 2


@pytest.mark.parametrize(("timezone", "hours", "runs"), [("Asia/Tokyo", 0, 1), ("America/New_York", 2, 2)])
def test_whether_a_partition_had_ended_is_known_in_any_zone(
    timezone: str, hours: int, runs: int, tmp_path: Path
) -> None:
    """The run is made today: after the end of the partition, or more than an hour before it.

    In that hour the next one may begin, while less than New York is behind UTC.
    """
    ended = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0) + dt.timedelta(hours=hours)
    hourly = {"type": "hourly", "start": "2026-11-01T00:00", "timezone": timezone}
    with scheduler(tmp_path, "*/10 * * * *", ended.timetuple()[:5], partitions=hourly) as found:
        (first,) = found.look(*ended.timetuple()[:5])
        assert found.look(*ended.timetuple()[:4], 10) == [first] * runs


def _refuses(*_: Any) -> NoReturn:
    raise OSError("there is no room in the queue")
