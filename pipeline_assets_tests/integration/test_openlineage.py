"""OpenLineage events of real runs: valid, complete, and with the lineage that the same work in SQL has."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from sqlglot import exp
from sqlglot.lineage import lineage

from devstack.kafka import KafkaServer
from devstack.postgres import PostgresServer
from devstack.spark_servers import SparkConnectServer
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.test_reports import links
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events
from pipeline_assets_tests.openlineage.event_schema import problems

Event = dict[str, Any]
ORDERS = pd.DataFrame({"id": range(6), "buyer": [1, 1, 2, 2, 3, 9], "amount": [5.0, 7.5, 1.0, 2.0, 4.0, 8.0]})
BUYERS = [(1, "ann", "Bonn"), (2, "bo", "Ulm"), (3, "cy", "Bonn")]
# What the pipeline does, in one query.
SQL = """
SELECT b.city AS city, SUM(o.amount) AS total, COUNT(*) AS n, MAX(CONCAT(b.name, o.id)) AS last
FROM orders AS o JOIN buyers AS b ON o.buyer = b.id GROUP BY b.city
"""
AGGREGATE = {
    "groupBy": ["city"],
    "aggregations": {"total": "sum(amount)", "n": "count(*)", "last": "max(concat(name, id))"},
}


@pytest.fixture(autouse=True)
def _not_configured() -> Iterator[None]:
    yield
    # Its client adds variables of its own.
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE__TRANSPORT")]:
        del os.environ[name]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that events go to, of runs in this process and in others."""
    path = tmp_path / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(path), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "tests")
    return path


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(201)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def valid(lines: list[str] | list[bytes]) -> list[Event]:
    found = [json.loads(line) for line in lines]
    assert [problem for event in found for problem in problems(event)] == []
    return found


def read(file: Path) -> list[Event]:
    return valid(file.read_text().splitlines()) if file.exists() else []


def states(found: list[Event]) -> Counter[tuple[str, str]]:
    return Counter((event["job"]["name"], event["eventType"]) for event in found)


def of(found: list[Event], job: str, state: str) -> Event:
    (event,) = [event for event in found if (event["job"]["name"], event["eventType"]) == (job, state)]
    return event


def started_and_completed(*jobs: str) -> Counter[tuple[str, str]]:
    return Counter((job, state) for job in jobs for state in ("START", "COMPLETE"))


def lineage_of(output: Event) -> dict[str, set[tuple[str, str, str]]]:
    return {
        column: {(origin["namespace"], origin["name"], origin["field"]) for origin in told["inputFields"]}
        for column, told in output["facets"]["columnLineage"]["fields"].items()
    }


def lineage_of_sql(tables: dict[str, tuple[str, str]]) -> dict[str, set[tuple[str, str, str]]]:
    """Return the same for ``SQL``, whose tables are the datasets ``tables``."""
    schema = {"orders": dict.fromkeys(ORDERS, "int"), "buyers": dict.fromkeys(("id", "name", "city"), "int")}
    found: dict[str, set[tuple[str, str, str]]] = {}
    for column in ("city", "total", "n", "last"):
        leaves = [node for node in lineage(column, SQL, schema=schema).walk() if isinstance(node.expression, exp.Table)]
        origins = {(*tables[leaf.expression.name], exp.to_column(leaf.name).name) for leaf in leaves}
        if origins:
            found[column] = origins
    return found


def put_orders(location: Location) -> tuple[str, str]:
    path = location.folder / "root" / "orders.parquet"
    path.parent.mkdir(exist_ok=True)
    ORDERS.to_parquet(path, index=False)
    return ("file", str(path))


def home(location: Location) -> dict[str, str]:
    (location.folder / "home").mkdir()
    return {**location.environment, "DAGSTER_HOME": str(location.folder / "home"), "NO_PROXY": "127.0.0.1"}


def test_a_batch_from_the_command_line(location: Location, postgres: PostgresServer, file: Path) -> None:
    with postgres.connect() as database:
        database.execute("DROP TABLE IF EXISTS buyers")
        database.execute("CREATE TABLE buyers (id int, name text, city text)")
        for buyer in BUYERS:
            database.execute("INSERT INTO buyers VALUES (%s, %s, %s)", buyer)
        database.commit()
    orders = put_orders(location)
    buyers = (f"postgres://{postgres.host}:{postgres.port}", f"{postgres.database}.public.buyers")
    location.write(
        batch(
            "sales",
            {"type": "extract", "method": "fromPostgres", "config": {"table": "buyers", "registerAs": "buyers"}},
            extract_file("orders", "/orders.parquet"),
            transform("joinDataFrames", inputDataFrames=["orders", "buyers"], leftKeys=["buyer"], rightKeys=["id"]),
            transform("aggregateData", **AGGREGATE, registerAs="totals", materialized="view"),
            {"type": "validate", "method": "notNull", "name": "named", "config": {"columns": ["city"]}},
            load("toDeltaLake", path="/totals"),
        )
    )
    job = JobProcess("sales", {**home(location), **postgres.environment}, location.folder / "log")
    assert job.end() == 0, job.output
    found = read(file)
    steps = ("buyers", "orders", "join_data_frames", "totals", "named", "to_delta_lake")
    assert states(found) == started_and_completed("sales", *(f"sales.{step}" for step in steps))
    assert {event["job"]["namespace"] for event in found} == {"tests"}
    assert (found[-1]["job"]["name"], found[-1]["eventType"]) == ("sales", "COMPLETE")
    run = found[-1]["run"]["runId"]
    steps_of = {event["run"]["facets"]["parent"]["run"]["runId"] for event in found if event["job"]["name"] != "sales"}
    assert steps_of == {run}
    end = of(found, "sales.to_delta_lake", "COMPLETE")
    table = location.folder / "root" / "totals"
    assert sorted((each["namespace"], each["name"]) for each in end["inputs"]) == sorted([orders, buyers])
    (output,) = end["outputs"]
    assert (output["namespace"], output["name"]) == ("file", str(table))
    assert lineage_of(output) == lineage_of_sql({"orders": orders, "buyers": buyers})
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == len(rows_of(table)) == 2
    assert output["facets"]["version"]["datasetVersion"] == "0"
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["city", "total", "n", "last"]
    (test,) = of(found, "sales.named", "COMPLETE")["run"]["facets"]["test"]["tests"]
    assert (test["name"], test["status"]) == ("named", "pass")
    assert postgres.password not in file.read_text()


def test_steps_in_processes_of_their_own(
    location: Location, receiver: Receiver, spark_connect_server: SparkConnectServer
) -> None:
    """One run that puts rows aside, over Connect: its rows, its events, and its one report."""
    orders = put_orders(location)
    aside = {"column": "amount", "min": 2, "onFailure": "quarantine"}
    location.write(
        batch(
            "sales",
            extract_file("orders", "/orders.parquet"),
            {"type": "validate", "method": "inRange", "name": "good", "config": aside},
            transform("aggregateData", groupBy=["buyer"], aggregations={"total": "sum(amount)"}, registerAs="totals"),
            load("toDeltaLake", path="/totals"),
        )
    )
    reports = location.folder / "reports"
    environment = {
        **home(location),
        **spark_connect_server.environment,
        "PIPELINE_ASSETS_EXECUTOR": "multiprocess",
        "PIPELINE_ASSETS_REPORTS": str(reports),
        "OPENLINEAGE_URL": f"http://127.0.0.1:{receiver.server_address[1]}",
    }
    job = JobProcess("sales", environment, location.folder / "log")
    try:
        assert job.end() == 0, job.output
    finally:
        job.kill_all()
    kept = ORDERS[ORDERS["amount"] >= 2].groupby("buyer", as_index=False).agg(total=("amount", "sum"))
    same_rows(rows_of(location.folder / "root" / "totals"), kept)
    assert list(rows_of(location.table("sales", "good_quarantine"))["amount"]) == [1.0]

    (page,) = reports.glob("*.html")
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        (filed,) = instance.get_runs()
        assert links(instance, filed.run_id) == [str(page)]
    told = page.read_text()
    # Dagster files the end of the run after that of its last step.
    assert re.search(r"<title>sales: run [0-9a-f]{8}, succeeded</title>", told)
    assert "Dagster had not filed the end of the run by then" in told
    assert told.count("✓ succeeded</span></td>") == 4

    assert {path for path, _ in receiver.bodies} == {"/api/v1/lineage"}
    found = valid([body for _, body in receiver.bodies])
    steps = [f"sales.{name}" for name in ("orders", "good", "totals", "to_delta_lake")]
    assert states(found) == started_and_completed("sales", *steps)
    run = of(found, "sales", "COMPLETE")["run"]["runId"]
    assert of(found, "sales", "START")["run"]["runId"] == run
    parents = {event["run"]["facets"]["parent"]["run"]["runId"] for event in found if event["job"]["name"] != "sales"}
    assert parents == {run}
    # The views' lineage was told in other processes.
    (output,) = of(found, "sales.to_delta_lake", "COMPLETE")["outputs"]
    assert lineage_of(output) == {"buyer": {(*orders, "buyer")}, "total": {(*orders, "amount")}}


def test_a_run_that_is_stopped(location: Location, file: Path) -> None:
    put_orders(location)
    endless = "SELECT max(a.id % 7 + o.id) AS total FROM range(10000000000000) AS a, orders AS o"
    location.write(
        batch(
            "long",
            extract_file("orders", "/orders.parquet"),
            transform("sql", query=endless, registerAs="endless", materialized="view"),
            load("toDeltaLake", path="/out"),
        )
    )
    job = JobProcess("long", home(location), location.folder / "log")
    try:
        job.wait_until(lambda: states(read(file))["long.to_delta_lake", "START"])
        job.signal(signal.SIGTERM)
        job.end()
    finally:
        job.kill_all()
    found = states(read(file))
    assert found["long.to_delta_lake", "ABORT"] == found["long", "ABORT"] == 1
    assert not [job for job, state in found if state == "FAIL"]
    assert ("long", "COMPLETE") not in found


def test_a_step_that_fails(location: Location, file: Path) -> None:
    put_orders(location)
    location.write(
        batch(
            "wrong",
            extract_file("orders", "/orders.parquet"),
            transform("filterRows", condition="amounts > 3", registerAs="many"),
        )
    )
    result = location.run("wrong", fail=True)
    failed = of(read(file), "wrong.many", "FAIL")
    said = failed["run"]["facets"]["errorMessage"]["message"]
    assert said in failure_text(result)
    assert "amounts" in said
    assert [each["name"] for each in failed["inputs"]] == [str(location.folder / "root" / "orders.parquet")]


def test_a_stream(location: Location, topic: Topic, kafka: KafkaServer, file: Path) -> None:
    topic.send([*events(0, 40), "no JSON"])
    location.write(
        stream(from_kafka(topic), transform("selectColumns", columns=["id", "amount * 2 AS twice"]), to_delta())
    )
    location.run("stream")
    found = read(file)
    assert states(found) == Counter({("stream.stream", state): 1 for state in ("START", "RUNNING", "COMPLETE")})
    end = of(found, "stream.stream", "COMPLETE")
    source = (f"kafka://{kafka.bootstrap_servers}", topic.name)
    assert [(each["namespace"], each["name"]) for each in end["inputs"]] == [source]
    outputs = {each["name"]: each for each in end["outputs"]}
    out, letters = str(location.folder / "root" / "out"), str(location.table("stream", "events_dead_letters"))
    assert set(outputs) == {out, letters}
    assert outputs[out]["outputFacets"]["outputStatistics"]["rowCount"] == 40
    assert lineage_of(outputs[out]) == {"id": {(*source, "value")}, "twice": {(*source, "value")}}
    assert outputs[letters]["outputFacets"]["outputStatistics"]["rowCount"] == 1
    assert lineage_of(outputs[letters])["reason"] == {(*source, "value")}
    assert end["job"]["facets"]["jobType"]["processingType"] == "STREAMING"
