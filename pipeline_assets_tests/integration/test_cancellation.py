"""Batch runs that are asked to stop, by signals: they are CANCELED within seconds, and leave everything as it was."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from devstack.postgres import PostgresServer
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess, wait_until

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def pipeline(location: Location, *, is_endless: bool) -> dict[str, Any]:
    """A cached DataFrame that feeds a table, in a moment or in some days."""
    rows = 10**13 if is_endless else 10
    return batch(
        "long",
        extract_file("numbers", "/numbers.parquet", cache=True),
        transform("sql", query=f"SELECT max(a.id % 7 + n.x) AS total FROM range({rows}) AS a, numbers AS n"),
        load("toDeltaLake", path="/out", mode="overwrite"),
    )


@pytest.fixture
def numbers(location: Location) -> None:
    folder = location.folder / "root"
    folder.mkdir()
    pd.DataFrame({"x": [1, 2]}).to_parquet(folder / "numbers.parquet")


def kill_when(condition: Callable[[], object], *numbers: signal.Signals) -> threading.Thread:
    def watch() -> None:
        wait_until(condition)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def cached_by_the_run(spark: Any) -> list[str]:
    """Return what Spark keeps, without what Delta keeps for itself."""
    names = [str(rdd.name()) for rdd in spark.sparkContext._jsc.getPersistentRDDs().values()]
    return [name for name in names if "Delta Table State" not in name]


def run_cancelled(location: Location, job: str) -> dg.DagsterRun:
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        location.definitions().resolve_job_def(job).execute_in_process(instance=location.instance)
    (run,) = location.instance.get_runs(limit=1)
    return run


@SIGNALS
@pytest.mark.usefixtures("numbers")
def test_a_stop_cancels_the_jobs_and_leaves_the_table(location: Location, spark: Any, number: signal.Signals) -> None:
    location.write(pipeline(location, is_endless=False))
    location.run("long")
    out = location.folder / "root" / "out"
    files, rows = delta_files(out), rows_of(out)
    location.write(pipeline(location, is_endless=True))
    tracker = spark.sparkContext.statusTracker()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Any] = []

    def endless_job_runs() -> bool:
        seen.append(set(tracker.getActiveJobsIds()))
        return len(seen) > 5 and bool(set.intersection(*seen[-5:]))

    killer = kill_when(endless_job_runs, number)
    run = run_cancelled(location, "long")
    killer.join()
    assert run.status == dg.DagsterRunStatus.CANCELED
    wait_until(lambda: not tracker.getActiveJobsIds())
    wait_until(lambda: not cached_by_the_run(spark))
    assert delta_files(out) == files
    assert rows_of(out).equals(rows)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.usefixtures("spark")
def test_a_statement_of_postgres_is_cancelled(
    location: Location, sources: dict[str, str], postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sources.items():
        monkeypatch.setenv(name, value)
    with postgres.connect() as database:
        database.autocommit = True
        database.execute("CREATE TABLE cancelled (x bigint)")
        database.execute("INSERT INTO cancelled VALUES (7)")
        location.write(
            batch(
                "into_postgres",
                extract_file("numbers", "/numbers.parquet"),
                load("toPostgres", table="cancelled", mode="overwrite"),
            )
        )
        folder = location.folder / "root"
        folder.mkdir()
        pd.DataFrame({"x": [1, 2]}).to_parquet(folder / "numbers.parquet")
        with postgres.connect() as other:
            other.execute("LOCK TABLE cancelled IN ROW EXCLUSIVE MODE")  # as who writes it has
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK%'"
            killer = kill_when(lambda: database.execute(waiting).fetchone() == (1,), signal.SIGTERM)
            run = run_cancelled(location, "into_postgres")
            killer.join()
        assert run.status == dg.DagsterRunStatus.CANCELED
        assert database.execute("SELECT x FROM cancelled").fetchall() == [(7,)]
        left = database.execute("SELECT relname FROM pg_class WHERE relname LIKE '\\_staging%'").fetchall()
        assert left == []


@SIGNALS
def test_between_two_steps_too(location: Location, number: signal.Signals) -> None:
    """A signal that arrives while Dagster is at work, before an op has begun."""
    location.write(pipeline(location, is_endless=False))
    (location.folder / "root").mkdir()
    pd.DataFrame({"x": [1, 2]}).to_parquet(location.folder / "root" / "numbers.parquet")

    run_id = str(uuid.uuid4())

    def stop(event: dg.EventLogEntry) -> None:
        if event.step_key == "long__numbers" and event.dagster_event_type is dg.DagsterEventType.STEP_SUCCESS:
            os.kill(os.getpid(), number)

    location.instance.add_event_listener(run_id, stop)
    job = location.definitions().resolve_job_def("long")
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        job.execute_in_process(instance=location.instance, run_id=run_id)
    (run,) = location.instance.get_runs(limit=1)
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert not (location.folder / "root" / "out").exists()


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("number", "executor"),
    [(signal.SIGTERM, "in_process"), (signal.SIGINT, "in_process"), (signal.SIGTERM, "multiprocess")],
)
def test_a_process_leaves_none_behind(
    location: Location, tmp_path: Path, number: signal.Signals, executor: str
) -> None:
    location.write(pipeline(location, is_endless=True))
    home = tmp_path / "dagster_home"
    home.mkdir()
    environment = {
        **location.environment,
        "DAGSTER_HOME": str(home),
        "SPARK_MASTER": "local[2]",
        "PIPELINE_ASSETS_EXECUTOR": executor,
    }
    run = JobProcess("long", environment, tmp_path / "run.log")
    try:
        # With a process and a JVM for each step, the first is as good as the last.
        step = "long__to_delta_lake" if executor == "in_process" else "long__numbers"
        run.wait_until(lambda: f"{step} - STEP_START" in run.output, 240)
        run.signal(number)
        assert run.end() != 0
    finally:
        run.kill_all()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (ended,) = instance.get_runs()
        assert ended.status == dg.DagsterRunStatus.CANCELED
