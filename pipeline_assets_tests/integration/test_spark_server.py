"""The Spark server that stays between runs: the runs on it start no JVM, do not mix, and leave nothing there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from benchmarks.spark_event_log import read_events
from pipeline_assets.settings import Settings
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.counted_orders import ROWS, Database, expected, extract, reads
from pipeline_assets_tests.integration.delta_tables import count_rows, rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, metadata_of
from pipeline_assets_tests.integration.run_processes import JobProcess, wait_until
from pipeline_assets_tests.integration.spark_server_program import SparkServer
from pipeline_assets_tests.integration.test_streams import SCHEMA, from_kafka, root, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

RUNS = 8
ISOLATION = "spark.sql.artifact.isolation.enabled"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkServer]:
    conf = {
        "spark.master": "local[2]",
        "spark.sql.shuffle.partitions": "4",
        # Less than half of what it is: a test waits for it.
        "spark.connect.session.manager.defaultSessionTimeout": "20s",
    }
    with SparkServer(tmp_path_factory.mktemp("cache")).started(conf) as started:
        yield started


@pytest.fixture
def job(location: Location, server: SparkServer, tmp_path: Path) -> Iterator[Callable[..., JobProcess]]:
    """Starts jobs of the location on the server."""
    running = []

    def start(name: str, **environment: str) -> JobProcess:
        home = tmp_path / f"{name}_home"
        home.mkdir(exist_ok=True)
        environment |= {**location.environment, "DAGSTER_HOME": str(home), "SPARK_REMOTE": server.remote}
        running.append(JobProcess(name, environment, tmp_path / f"{name}.log"))
        return running[-1]

    yield start
    for each in running:
        each.kill_all()


def test_a_second_one_is_refused(server: SparkServer) -> None:
    refused = server.command("start")
    assert refused.returncode == 1
    assert f"a Spark server runs at {server.remote} already" in refused.stderr


def test_sessions_are_isolated_unless_the_server_is_told_not_to(server: SparkServer, tmp_path: Path) -> None:
    """Spark's own server isolates them whatever its conf says, and compiles the code of queries for each anew."""
    assert isolation(server) == "true"
    with SparkServer(tmp_path).started({"spark.master": "local[2]", ISOLATION: "false"}) as other:
        assert isolation(other) == "false"


def isolation(server: SparkServer) -> str | None:
    with SparkSessions(Settings(spark_remote=server.remote)) as sessions:
        return sessions.session("a_run", "a_pipeline").conf.get(ISOLATION)


def test_many_runs_at_once_do_not_mix(location: Location, job: Callable[..., JobProcess]) -> None:
    """They cache, and call their DataFrames by the same names."""
    expected = {}
    for number in range(RUNS):
        rows = pd.DataFrame({"id": range(1000 + number), "kind": [row % (number + 2) for row in range(1000 + number)]})
        rows.to_parquet(location.folder / f"rows{number}.parquet", index=False)
        counts = "SELECT kind, count(*) AS n, max(id) AS last FROM rows GROUP BY kind"
        location.write(
            batch(
                f"run{number}",
                extract_file("rows", f"file://{location.folder}/rows{number}.parquet", cache=True),
                transform("sql", query=counts, registerAs="kinds"),
                transform("joinDataFrames", inputDataFrames=["rows", "kinds"], joinType="inner",
                          leftKeys=["kind"], rightKeys=["kind"], registerAs="joined"),
            )
        )  # fmt: skip
        kinds = rows.groupby("kind").agg(n=("id", "size"), last=("id", "max")).reset_index()
        expected[number] = rows.merge(kinds, on="kind")
    jobs = [job(f"run{number}") for number in range(RUNS)]
    for each in jobs:
        assert each.end() == 0, each.output
        assert "over Connect, session" in each.output
    for number, frame in expected.items():
        found = rows_of(location.table(f"run{number}", "joined"))
        columns = ["id", "kind", "n", "last"]
        pd.testing.assert_frame_equal(
            found.sort_values("id")[columns].reset_index(drop=True), frame[columns], check_dtype=False
        )


def test_a_run_has_the_numbers_of_its_jobs(
    location: Location, server: SparkServer, job: Callable[..., JobProcess], tmp_path: Path
) -> None:
    """They are those in Spark's own event log, but for the rows that Delta reads of its log to overwrite a table."""
    rows = pd.DataFrame({"id": range(5000), "kind": [row % 7 for row in range(5000)]})
    rows.to_parquet(location.folder / "rows.parquet", index=False)
    kinds = transform("aggregateData", groupBy=["kind"], aggregations={"n": "count(*)"}, registerAs="kinds")
    location.write(batch("counted", extract_file("rows", f"file://{location.folder}/rows.parquet"), kinds))
    first = job("counted")
    assert first.end() == 0, first.output
    run = job("counted")
    assert run.end() == 0, run.output
    with dg.DagsterInstance.from_config(str(tmp_path / "counted_home")) as instance:
        told = metadata_of(instance, "counted", "kinds")
    logged = logged_work(server.event_log, f"_Session_{session_of(run)}_")
    assert told["rows_read"] == len(rows) < logged.pop("rows_read")
    assert logged["shuffle_write_bytes"] > 0
    assert {key: told[key] for key in logged} == logged
    stages = [record.data for record in told["spark_stage_times"].records]
    assert len(stages) == logged["spark_stages"]
    assert "Exchange" in str(stages)
    assert "session_id" not in str(stages)  # of the request's text


def logged_work(folder: Path, mark: str) -> dict[str, int]:
    """Return what tasks did, by Spark's event log, for the jobs that have a tag with ``mark``."""
    found = Counter({"spark_jobs": 0})
    stages: set[int] = set()
    for event in read_events(folder):
        match event["Event"]:
            case "SparkListenerJobStart" if mark in event["Properties"].get("spark.job.tags", ""):
                found["spark_jobs"] += 1
                stages.update(event["Stage IDs"])
            case "SparkListenerStageCompleted" if event["Stage Info"]["Stage ID"] in stages:
                found["spark_stages"] += 1
            case "SparkListenerTaskEnd" if event["Stage ID"] in stages:
                metrics = event["Task Metrics"]
                found["spark_tasks"] += 1
                found["rows_read"] += metrics["Input Metrics"]["Records Read"]
                found["shuffle_write_bytes"] += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
    return dict(found)


def test_the_session_of_a_run_that_was_killed_goes(
    location: Location, server: SparkServer, topic: Topic, job: Callable[..., JobProcess]
) -> None:
    """That of a stream too, while the server waits for the run to write a micro-batch.

    Later runs do not take for what they read what it has cached, which goes with the session.
    """
    file = location.folder / "rows.parquet"
    pd.DataFrame({"id": range(4)}).to_parquet(file, index=False)
    slow = "reflect('java.lang.Thread', 'sleep', 600000L) IS NULL"
    rows = extract_file("rows", f"file://{file}", cache=True)
    location.write(batch("slow", rows, transform("filterRows", condition=slow, registerAs="copy")))
    location.write(batch("later", rows, transform("selectColumns", columns=["id"], registerAs="copy")))
    check = {
        "type": "validate",
        "method": "expression",
        "config": {"condition": f"id < 4 OR {slow}", "onFailure": "warn"},
    }
    location.write(stream(from_kafka(topic, schema=SCHEMA), check, to_delta(trigger="100 milliseconds")))
    log = server.log()
    before = log.stat().st_size
    batch_run, stream_run = job("slow"), job("stream")
    sessions = [batch_run.wait_until(partial(session_of, batch_run))]
    cached = batch_run.wait_until(partial(cached_rdd, log, before))
    batch_run.signal(signal.SIGKILL)
    pd.DataFrame({"id": range(6)}).to_parquet(file, index=False)
    later_run = job("later")
    assert later_run.end() == 0, later_run.output
    assert sorted(rows_of(location.table("later", "copy"))["id"]) == list(range(6))
    topic.send(events(0, 4))
    stream_run.wait_until(lambda: count_rows(root(location, "out")) == 4)
    offsets = root(location, "checkpoints/out") / "offsets"
    last = max(int(file.name) for file in offsets.iterdir() if file.name.isdigit())
    topic.send(events(4, 4))
    stream_run.wait_until((offsets / str(last + 1)).exists)
    sessions += [session_of(stream_run)]
    stream_run.signal(signal.SIGKILL)
    for session in sessions:
        wait_until(partial(has_closed, log, session))
    wait_until(lambda: f"Removing RDD {cached} from persistence list" in log.read_text(errors="replace"))


def test_a_session_outlives_the_wait_for_another_pipeline(
    location: Location, server: SparkServer, tmp_path: Path
) -> None:
    """Of a run with a process for each step: none works in it meanwhile, for longer than the server keeps it.

    And not the run.
    """
    pd.DataFrame({"id": range(4)}).to_parquet(location.folder / "rows.parquet", index=False)
    rows = extract_file("rows", f"file://{location.folder}/rows.parquet")
    slow = "reflect('java.lang.Thread', 'sleep', 9000L) IS NULL OR id >= 0"
    load = {"type": "load", "method": "toDeltaLake", "config": {"path": "/slow", "mode": "overwrite"}}
    location.write(batch("first", rows, transform("filterRows", condition=slow, registerAs="slowly"), load))
    others = {"type": "extract", "method": "fromDeltaLake", "name": "others", "config": {"path": "/slow"}}
    joined = transform(
        "joinDataFrames",
        inputDataFrames=["rows", "others"],
        joinType="inner",
        leftKeys=["id"],
        rightKeys=["id"],
        registerAs="joined",
    )
    location.write(batch("second", rows, others, joined))
    (tmp_path / "home").mkdir()
    environment = {
        **os.environ, **location.environment, "DAGSTER_HOME": str(tmp_path / "home"), "SPARK_REMOTE": server.remote,
        "PIPELINE_ASSETS_EXECUTOR": "multiprocess",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize"]
    done = subprocess.run(
        [*command, "-m", "pipeline_assets.definitions", "--select", "*"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    opened = set(re.findall(r"over Connect, session (\S+) of the server", done.stdout + done.stderr))
    assert len(opened) == 2
    assert all(has_closed(server.log(), session) for session in opened)
    assert sorted(rows_of(location.table("second", "joined"))["id"]) == list(range(4))


def test_what_is_cached_is_there_for_the_other_processes_of_a_run(
    location: Location, server: SparkServer, job: Callable[..., JobProcess], database: Database, tmp_path: Path
) -> None:
    """Until a step, or the end of the run, lets go of it: the server keeps nothing that nobody will ever ask for."""
    days = {"query": "SELECT id % 7 AS day, count(*) FROM counted.orders GROUP BY 1", "cache": True}
    location.write(
        batch(
            "p",
            extract("orders", cache=True, cacheStorageLevel="DISK_ONLY"),
            *({"type": "extract", "method": "fromPostgres", "config": {**days, "registerAs": name}} for name in "ab"),
            *(
                load("toDeltaLake", path=f"/{name}", inputDataFrame="orders", mode="overwrite")
                for name in ("one", "two")
            ),
            *({**load("toDeltaLake", path=f"/{name}", inputDataFrame=name), "name": f"to_{name}"} for name in "ab"),
            {**transform("uncache", dataFrames=["a"]), "name": "first"},
            {**transform("uncache", dataFrames=["orders"]), "name": "second"},
        )
    )
    log = server.log()
    before = log.stat().st_size
    run = job("p", PIPELINE_ASSETS_EXECUTOR="multiprocess")
    assert run.end() == 0, run.output
    assert reads(database) == ROWS
    tables = [rows_of(root(location, name)) for name in ("one", "two")]
    same_rows(*tables)
    same_rows(tables[0][["id", "day"]], expected())
    with dg.DagsterInstance.from_config(str(tmp_path / "p_home")) as instance:
        assert metadata_of(instance, "p", "first")["cached_dataframes"] == "orders (DISK_ONLY), b (MEMORY_AND_DISK)"
        assert metadata_of(instance, "p", "second")["cached_dataframes"] == "b (MEMORY_AND_DISK)"
    said = log.read_bytes()[before:].decode(errors="replace")
    kept = set(re.findall(r"[Bb]lock rdd_(\d+)_\d+", said))
    assert len(kept) == 3
    wait_until(lambda: kept == removed(log, before))
    assert "what it had cached is let go of" not in said


def session_of(run: JobProcess) -> str | None:
    found = re.search(r"over Connect, session (\S+) of the server", run.output)
    return found[1] if found else None


def removed(log: Path, since: int) -> set[str]:
    return set(re.findall(r"Removing RDD (\d+) from", log.read_bytes()[since:].decode(errors="replace")))


def cached_rdd(log: Path, since: int) -> int | None:
    found = re.search(rb"Block rdd_(\d+)_\d+ stored as values in memory", log.read_bytes()[since:])
    return int(found[1]) if found else None


def has_closed(log: Path, session: str | None) -> bool:
    said = rf"Closing session with userId: \S* and sessionId: {session}"
    return re.search(said, log.read_text(errors="replace")) is not None
