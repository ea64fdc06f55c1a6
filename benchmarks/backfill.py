"""A backfill: one run for each partition of a small daily pipeline, launched by Dagster's daemon as users have it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.code_location import CodeLocation
from benchmarks.measured_process import ProgramFailedError
from benchmarks.paired_runs import Report
from benchmarks.spark_server import spark_server
from devstack.dagster_daemon import PROJECT, WORKSPACE, dagster_daemon, program
from devstack.delta_tables import row_count

if TYPE_CHECKING:
    from dagster import DagsterInstance

JOB = "daily"
BACKFILL_COMMAND = ("dagster", "job", "backfill", "-w", "workspace.yaml", "-j", JOB, "--all", "x", "--noprompt")
_FIRST = date(2020, 1, 1)
_STORES, _ROWS = 50, 5_000
_LIMIT = 4 * 3600.0
# docs/configuration.md, "Starting faster".
_SHARED_CODE = ("spark.sql.artifact.isolation.enabled=false",)


class Spark(StrEnum):
    """The Spark that the runs of a backfill use."""

    OWN = "a JVM for each run"
    SERVER = "a server that stays"
    SHARED_CODE = "a server that stays, with shared code"


@dataclass(frozen=True)
class Backfill:
    """A backfill of ``partitions`` whose runs use ``spark``.

    ``at_once``: how many runs Dagster had at a time. ``seconds``: from the command to the end of the last run.
    ``runs``: the seconds of the single runs, in the order of their ends.
    """

    partitions: int
    spark: Spark
    at_once: int
    seconds: float
    runs: list[float]


def measure_backfill(folder: Path, partitions: int, spark: Spark, report: Report) -> Backfill:
    """Backfill all partitions of a location that is made in ``folder``."""
    import dagster as dg

    place = _SalesLocation(folder, partitions)
    with (
        _spark(spark, place.environment) as more,
        dagster_daemon({**place.environment, **more}, folder / "logs"),
        dg.DagsterInstance.from_config(str(place.dagster_home)) as instance,
    ):
        report(f"a backfill of {partitions:,} partitions: {spark}")
        begun = time.time()
        command = [program(BACKFILL_COMMAND[0]), *BACKFILL_COMMAND[1:]]
        command[command.index("workspace.yaml")] = str(WORKSPACE)
        done = subprocess.run(
            command, env={**place.environment, **more}, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ProgramFailedError(done.stdout + done.stderr)
        runs = _finished(instance, partitions)
    rows = row_count(place.table)
    if rows != partitions * _STORES:
        raise ProgramFailedError(f"{rows:,} rows were written, {partitions * _STORES:,} are expected")
    return Backfill(
        partitions,
        spark,
        place.at_once,
        max(ended for _, ended in runs) - begun,
        [ended - started for started, ended in sorted(runs, key=lambda run: run[1])],
    )


@contextmanager
def _spark(spark: Spark, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Give what tells a run of its Spark."""
    if spark is Spark.OWN:
        yield {}
        return
    with spark_server(environment, _SHARED_CODE if spark is Spark.SHARED_CODE else ()) as remote:
        yield remote


class _SalesLocation(CodeLocation):
    """A location with a file of sales for each day, and a pipeline that sums them up by store."""

    def __init__(self, folder: Path, partitions: int) -> None:
        super().__init__(folder)
        self.table = self.warehouse / JOB / "totals"
        self.at_once = os.cpu_count() or 1
        file = self.dagster_home / "dagster.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["concurrency"]["runs"] = {"max_concurrent_runs": self.at_once}
        file.write_text(yaml.safe_dump(settings))
        self.write(_config(partitions))
        self._write_sales(partitions)

    def _write_sales(self, partitions: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self.root / "sales"
        folder.mkdir(parents=True)
        for number in range(partitions):
            sales = {
                "store": [sale % _STORES for sale in range(_ROWS)],
                "amount": [float((sale * 7919 + number) % 10_000) for sale in range(_ROWS)],
            }
            pq.write_table(pa.table(sales), folder / f"{_FIRST + timedelta(days=number)}.parquet")


def _config(partitions: int) -> dict[str, object]:
    return {
        "name": JOB,
        "mode": "batch",
        "partitions": {
            "type": "daily",
            "start": str(_FIRST),
            "end": str(_FIRST + timedelta(days=partitions)),
        },
        "steps": [
            {
                "type": "extract",
                "method": "fromFile",
                "config": {"path": "/sales/${partition}.parquet", "registerAs": "sales"},
            },
            {
                "type": "transform",
                "method": "aggregateData",
                "name": "totals",
                "config": {"groupBy": ["store"], "aggregations": {"total": "sum(amount)"}},
            },
        ],
    }


def _finished(instance: DagsterInstance, count: int) -> list[tuple[float, float]]:
    """Wait until ``count`` runs have succeeded; returns when each started and ended."""
    import dagster as dg

    def runs(status: dg.DagsterRunStatus) -> dg.RunsFilter:
        return dg.RunsFilter(job_name=JOB, statuses=[status])

    deadline = time.monotonic() + _LIMIT
    # Counted, as to read all of them again and again would take from what is measured.
    while (succeeded := instance.get_runs_count(runs(dg.DagsterRunStatus.SUCCESS))) < count:
        for failed in instance.get_runs(runs(dg.DagsterRunStatus.FAILURE), limit=1):
            raise ProgramFailedError(_failure(instance, failed.run_id))
        if time.monotonic() > deadline:
            raise ProgramFailedError(f"{succeeded} of {count} runs have ended after {_LIMIT:.0f} s")
        threading.Event().wait(1.0)
    records = instance.get_run_records(runs(dg.DagsterRunStatus.SUCCESS))
    return [(record.start_time or 0.0, record.end_time or 0.0) for record in records]


def _failure(instance: DagsterInstance, run_id: str) -> str:
    """Return what made a run fail."""
    import dagster as dg

    texts = [f"run {run_id} of the backfill failed:"]
    for record in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        assert record.dagster_event is not None
        error = record.dagster_event.step_failure_data.error
        while error is not None:
            texts.append(error.message)
            error = error.cause
    return "\n".join(texts)
