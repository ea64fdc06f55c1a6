"""Steps that are tried again: a database that comes back, a JVM that is killed; and those for which that is no use."""

from __future__ import annotations

import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psutil
import pytest

from devstack import spark_servers
from devstack.ports import free_port
from devstack.postgres import PostgresServer
from devstack.spark_servers import SparkConnect, SparkConnectServer
from devstack.stack import Stack
from pipeline_assets import asset_metadata
from pipeline_assets.errors import RetryableError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import rows_of
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import JobProcess

RETRY = {"maxRetries": 3, "delay": 0.1}


class Relay(socketserver.ThreadingTCPServer):
    """A port in front of a server, at which nobody listens before ``open``."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((host, port)) as server:
                    back = threading.Thread(target=relay.pump, args=(server, self.request), daemon=True)
                    back.start()
                    relay.pump(self.request, server)
                    back.join()

        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()

    def open(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @staticmethod
    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(postgres: PostgresServer) -> Iterator[Relay]:
    with Relay(postgres.host, postgres.port) as found:
        yield found
        found.shutdown()


@pytest.mark.usefixtures("spark")
def test_a_database_that_comes_back(
    location: Location, sources: dict[str, str], postgres: PostgresServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sources.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(relay.server_address[1]))
    step = {"type": "extract", "method": "fromPostgres", "config": {"table": "customers", "registerAs": "customers"}}
    location.write(batch("patient", step, retry=RETRY))
    run_id, tries = str(uuid.uuid4()), []

    def on_event(entry: dg.EventLogEntry) -> None:
        if entry.dagster_event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY:
            tries.append(entry)
            if len(tries) == 1:
                relay.open()

    location.instance.add_event_listener(run_id, on_event)
    job = location.definitions().resolve_job_def("patient")
    result = job.execute_in_process(instance=location.instance, run_id=run_id, raise_on_error=False)
    assert result.success, failure_text(result)
    assert len(tries) == 1
    with postgres.connect() as database:
        count = database.execute("SELECT count(*) FROM customers").fetchone()
    assert (len(rows_of(location.table("patient", "customers"))),) == count


@pytest.mark.usefixtures("spark")
def test_what_stays_wrong_is_not_tried_again(
    location: Location, sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sources.items():
        monkeypatch.setenv(name, value)
    step = {"type": "extract", "method": "fromPostgres", "config": {"table": "custmers"}}
    location.write(batch("hopeless", step, retry=RETRY))
    result = location.run("hopeless", fail=True)
    assert "hopeless: step 0 (extract fromPostgres): " in failure_text(result)
    assert [event for event in result.all_events if event.is_step_restarted or event.is_step_up_for_retry] == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ToDeltaLake, "load"),
        (PipelineRun, "load"),
        (PipelineRun, "_let_go_after"),
        (asset_metadata, "dataframe_metadata"),
    ],
    ids=lambda found: getattr(found, "__name__", str(found)),
)
def test_rows_that_are_in_are_not_written_again(
    owner: Any, name: str, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails after the commit: each of these does so once, when it has done its work for the load."""
    done = getattr(owner, name)
    calls: list[str] = []

    def fail_once(*arguments: Any, **named: Any) -> Any:
        result = done(*arguments, **named)
        if (location.folder / "root" / "out").exists():
            calls.append(name)
            if len(calls) == 1:
                raise RetryableError("Spark's JVM is gone", kind="lostExecutor")
        return result

    monkeypatch.setattr(owner, name, fail_once)
    (location.folder / "root").mkdir()
    write_numbers(location.folder / "root", 3)
    numbers = extract_file("numbers", "/numbers.parquet")
    location.write(batch("twice", numbers, load("toDeltaLake", path="/out"), retry={"maxRetries": 1, "delay": 0}))
    location.run("twice")
    assert calls
    assert sorted(rows_of(location.folder / "root" / "out")["x"]) == [0, 1, 2]
    location.run("twice")
    assert sorted(rows_of(location.folder / "root" / "out")["x"]) == [0, 0, 1, 1, 2, 2]


def test_files_that_are_in_are_not_written_again(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing in a folder of files that tells which run wrote them: what comes after may not fail the step."""
    out = location.folder / "root" / "out"
    described = asset_metadata.dataframe_metadata

    def fail(*arguments: Any) -> Any:
        if out.exists():
            raise RetryableError("Spark's JVM is gone", kind="lostExecutor")
        return described(*arguments)

    monkeypatch.setattr(asset_metadata, "dataframe_metadata", fail)
    (location.folder / "root").mkdir()
    write_numbers(location.folder / "root", 3)
    numbers = extract_file("numbers", "/numbers.parquet")
    location.write(batch("files", numbers, load("toS3", path="/out"), retry={"maxRetries": 1, "delay": 0}))
    location.run("files")
    assert sorted(pd.read_parquet(out)["x"]) == [0, 1, 2]
    assert location.metadata("files", "to_s3")["dagster/row_count"] == 3


def test_a_step_goes_on_in_another_jvm(location: Location, tmp_path: Path) -> None:
    """The first one is killed while it computes what would take days, of numbers that are fewer the next time."""
    folder, home = location.folder / "root", tmp_path / "home"
    home.mkdir()
    write_endless(location, folder)
    environment = {**location.environment, "SPARK_MASTER": "local[2]", "DAGSTER_HOME": str(home)}
    run = JobProcess("reborn", environment, tmp_path / "run.log")
    try:
        run.wait_until(lambda: "reborn__to_delta_lake - STEP_START" in run.output, 300)
        # What is computed must not meet a file that changes below it.
        run.kill_jvm()
        write_numbers(folder, 3)
        assert run.end(300) == 0, run.output
    finally:
        run.kill_all()
    assert "STEP_UP_FOR_RETRY" in run.output
    expected = max((a * b + c) % 7 for a in range(3) for b in range(3) for c in range(3))
    assert list(rows_of(folder / "out")["most"]) == [expected]


@pytest.mark.timeout(900)
def test_a_step_goes_on_on_a_connect_server_that_was_started_anew(
    location: Location, tmp_path: Path, spark_connect_conf: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows neither the session nor what was made in it; the numbers are fewer by then, as above."""
    port = free_port()
    monkeypatch.setattr(spark_servers, "free_port", lambda: port)
    folder, home, part = location.folder / "root", tmp_path / "home", SparkConnect(conf=spark_connect_conf)
    home.mkdir()
    write_endless(location, folder)
    stack = Stack(tmp_path / "stack")
    try:
        server = stack.up([part])["spark-connect"]
        assert isinstance(server, SparkConnectServer)
        environment = {**location.environment, **server.environment, "DAGSTER_HOME": str(home)}
        run = JobProcess("reborn", environment, tmp_path / "run.log")
        try:
            run.wait_until(lambda: "reborn__to_delta_lake - STEP_START" in run.output, 300)
            (java,) = (process for process in psutil.process_iter() if _listens(process, port))
            java.kill()
            write_numbers(folder, 3)
            stack.up([part])
            assert run.end(400) == 0, run.output
        finally:
            run.kill_all()
    finally:
        stack.down()
    assert "STEP_UP_FOR_RETRY" in run.output
    expected = max((a * b + c) % 7 for a in range(3) for b in range(3) for c in range(3))
    assert list(rows_of(folder / "out")["most"]) == [expected]


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
    except psutil.Error:
        return False


def write_endless(location: Location, folder: Path) -> None:
    """Write the pipeline `reborn`, and so many numbers into ``folder`` that it takes days."""
    folder.mkdir()
    write_numbers(folder, 100_000)
    query = "SELECT max((a.x * b.x + c.x) % 7) AS most FROM numbers AS a, numbers AS b, numbers AS c"
    numbers = extract_file("numbers", "/numbers.parquet")
    out = load("toDeltaLake", path="/out", mode="overwrite")
    location.write(batch("reborn", numbers, transform("sql", query=query), out, retry=RETRY))


def write_numbers(folder: Path, count: int) -> None:
    pd.DataFrame({"x": range(count)}).to_parquet(folder / "numbers.parquet")
