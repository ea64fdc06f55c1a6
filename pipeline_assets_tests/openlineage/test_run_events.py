"""OpenLineage's events, made from those of Dagster runs whose assets tell what Spark would; there is no Spark."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from openlineage.client.serde import Serde

from pipeline_assets.connections import Connections, parse_connections
from pipeline_assets.openlineage import run_events
from pipeline_assets.openlineage.run_events import LineageEvents, attempt_uuid, run_uuid
from pipeline_assets.redaction import register_secret
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.openlineage.event_schema import problems
from pipeline_assets_tests.planning.bench import planned

SETTINGS = Settings(warehouse="s3a://lake/warehouse", path_prefix="/sandbox")
CONNECTIONS = Connections(
    parse_connections(
        {
            "postgres": {
                "default": {
                    "host": "db.example.com",
                    "port": 5433,
                    "database": "shop",
                    "user": "ann",
                    "password": "env:P",
                }
            },
            "kafka": {"default": {"bootstrapServers": "one:9092,two:9092"}},
        }
    )
)
SALES = batch(
    "sales",
    {"type": "extract", "method": "fromPostgres", "config": {"table": "customers", "registerAs": "customers"}},
    extract_file("orders", "/data/orders/*.parquet"),
    {"type": "validate", "method": "inRange", "name": "paid", "config": {"column": "amount", "min": 0}},
    transform(
        "joinDataFrames",
        inputDataFrames=["orders", "customers"],
        leftKeys=["by"],
        rightKeys=["id"],
        registerAs="joined",
    ),
    transform("sql", query="SELECT name, sum(amount) AS total FROM joined GROUP BY name", registerAs="totals"),
    load("toKafka", topic="totals", keyColumn="name"),
    description="What each customer has paid.",
    owners=["team:sales"],
    tags={"domain": "sales"},
)
Event = dict[str, Any]


def key(step: str) -> dg.AssetKey:
    return dg.AssetKey(["sales", step])


def columns(*names: str) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, "string") for name in names])


def lineage(**deps: list[tuple[str, str]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(
        {column: [dg.TableColumnDep(key(step), name) for step, name in origins] for column, origins in deps.items()}
    )


TOLD: dict[str, dict[str, Any]] = {
    "customers": {"dagster/column_schema": columns("id", "name")},
    "orders": {"dagster/column_schema": columns("by", "amount")},
    "joined": {
        "dagster/column_schema": columns("by", "amount", "id", "name"),
        "dagster/column_lineage": lineage(
            by=[("orders", "by")], amount=[("orders", "amount")], id=[("customers", "id")], name=[("customers", "name")]
        ),
    },
    "totals": {"dagster/column_lineage": lineage(name=[("joined", "name")], total=[("joined", "amount")])},
    "to_kafka": {
        "dagster/column_schema": columns("key", "value"),
        "dagster/column_lineage": lineage(key=[("totals", "name")], value=[("totals", "name"), ("totals", "total")]),
        "dagster/row_count": 7,
        "bytes_written": 700,
    },
}


def asset(name: str, deps: list[Any], before: Callable[[], None]) -> Any:
    @dg.asset(key=key(name), deps=deps, retry_policy=dg.RetryPolicy(max_retries=2))
    def made() -> dg.MaterializeResult[Any]:
        before()
        return dg.MaterializeResult(metadata=TOLD[name])

    return made


def assets(**before: Callable[[], None]) -> list[Any]:
    """Return the assets of ``SALES``, each after the one before it; ``before``: what they do first, by name."""
    made: list[Any] = []
    for name in TOLD:
        made.append(asset(name, made[-1:], before.get(name, lambda: None)))

    @dg.multi_asset_check(name="sales__paid", specs=[dg.AssetCheckSpec("paid", asset=key("orders"))])
    def paid() -> Iterator[dg.AssetCheckResult]:
        yield dg.AssetCheckResult(passed=False, metadata={"failed_rows": 3, "total_rows": 9})

    return [*made, paid]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as made:
        yield made


class Heard:
    """A Dagster run, and the OpenLineage events that are made of what it tells."""

    def __init__(
        self, instance: dg.DagsterInstance, definitions: list[Any], job: str = "sales", **execution: Any
    ) -> None:
        self.run_id = str(uuid.uuid4())
        self.entries: list[dg.EventLogEntry] = []
        self._instance = instance
        instance.add_event_listener(self.run_id, self.entries.append)
        checks = [found for found in definitions if isinstance(found, dg.AssetChecksDefinition)]
        others = [found for found in definitions if found not in checks]
        selection = dg.AssetSelection.all()
        defined = dg.Definitions(assets=others, asset_checks=checks, jobs=[dg.define_asset_job(job, selection)])
        resolved = defined.resolve_job_def(job)
        self.result: dg.ExecuteInProcessResult | None = None
        with suppress(dg.DagsterExecutionInterruptedError):
            self.result = resolved.execute_in_process(
                instance=instance, run_id=self.run_id, raise_on_error=False, **execution
            )

    def events(self, plan: Any, *, of_run: bool = False) -> list[Event]:
        run = self._instance.get_run_by_id(self.run_id)
        assert run is not None
        made = LineageEvents(run, "tests", lambda key: {}, self._retries)
        if of_run:
            made.of_job(plan, tells_steps=False)
        found: list[Any] = []
        told = False
        for entry in self.entries:
            found += made.events_of(entry)
            event = entry.dagster_event
            if not told and not of_run and event is not None and event.event_type == dg.DagsterEventType.STEP_START:
                told = True
                found += made.planned(plan, SETTINGS, CONNECTIONS)
        sent = [json.loads(Serde.to_json(event)) for event in found]
        assert [problem for event in sent for problem in problems(event)] == []
        return sent

    def _retries(self, step: str, before: float) -> int:
        return sum(
            entry.step_key == step and entry.timestamp <= before and entry.dagster_event is not None
            and entry.dagster_event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
            for entry in self.entries
        )  # fmt: skip


def of(events: list[Event], job: str, state: str) -> Event:
    (found,) = [event for event in events if (event["job"]["name"], event["eventType"]) == (job, state)]
    return found


def names(datasets: list[Event]) -> list[tuple[str, str]]:
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


CUSTOMERS = ("postgres://db.example.com:5433", "shop.public.customers")
ORDERS = ("file", "/sandbox/data/orders")
TOTALS = ("kafka://one:9092", "totals")


def test_each_step_starts_and_completes_below_its_run(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    heard = Heard(instance, assets())
    events = heard.events(planned(tmp_path, SALES))
    expected = {f"sales.{step}" for step in (*TOLD, "paid")}
    for state in ("START", "COMPLETE"):
        assert {event["job"]["name"] for event in events if event["eventType"] == state} == expected
    assert len(events) == 2 * len(expected)
    assert len({event["run"]["runId"] for event in events}) == len(expected)
    parents = [event["run"]["facets"]["parent"] for event in events]
    assert {(found["run"]["runId"], found["job"]["name"]) for found in parents} == {(heard.run_id, "sales")}
    for job in expected:
        start, end = of(events, job, "START"), of(events, job, "COMPLETE")
        assert start["run"]["runId"] == end["run"]["runId"]
        assert start["eventTime"] <= end["eventTime"]


def test_the_run_itself(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    heard = Heard(instance, assets())
    events = heard.events(planned(tmp_path, SALES), of_run=True)
    assert [(event["eventType"], event["job"]["name"]) for event in events] == [
        ("START", "sales"),
        ("COMPLETE", "sales"),
    ]
    assert {event["run"]["runId"] for event in events} == {heard.run_id}
    job = events[0]["job"]["facets"]
    assert (job["jobType"]["processingType"], job["jobType"]["integration"]) == ("BATCH", "DAGSTER")
    assert job["documentation"]["description"] == "What each customer has paid."
    assert [owner["name"] for owner in job["ownership"]["owners"]] == ["team:sales"]
    assert [(tag["key"], tag["value"]) for tag in job["tags"]["tags"]] == [("domain", "sales")]


def test_datasets_are_those_behind_the_views(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    events = Heard(instance, assets()).events(planned(tmp_path, SALES))
    end = of(events, "sales.to_kafka", "COMPLETE")
    assert sorted(names(end["inputs"])) == [ORDERS, CUSTOMERS]
    (output,) = end["outputs"]
    assert names([output]) == [TOTALS]
    fields = {
        column: {(origin["namespace"], origin["name"], origin["field"]) for origin in told["inputFields"]}
        for column, told in output["facets"]["columnLineage"]["fields"].items()
    }
    assert fields == {"key": {(*CUSTOMERS, "name")}, "value": {(*CUSTOMERS, "name"), (*ORDERS, "amount")}}
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["key", "value"]
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (7, 700)
    start = of(events, "sales.to_kafka", "START")
    assert (names(start["inputs"]), names(start["outputs"])) == (names(end["inputs"]), [TOTALS])
    assert of(events, "sales.joined", "COMPLETE").get("outputs") == []
    sql = of(events, "sales.totals", "START")["job"]["facets"]["sql"]
    assert (sql["query"], sql["dialect"]) == (SALES["steps"][4]["config"]["query"], "spark")


PARSED = extract_file("rows", "/rows.csv")
SORTED = {
    "type": "validate",
    "method": "notNull",
    "name": "good",
    "config": {"columns": ["a"], "onFailure": "quarantine"},
}
SMALL = transform("selectColumns", columns=["a"], registerAs="small")
OUT = {**load("toS3", path="/out"), "name": "out"}


@pytest.mark.parametrize(
    ("steps", "is_told"),
    [
        pytest.param([PARSED, SMALL], True, id="nothing-kept"),
        pytest.param([extract_file("rows", "/rows.csv", cache=True), SMALL], False, id="cache"),
        pytest.param([PARSED, transform("cache", dataFrames=["rows"]), SMALL], False, id="cache-step"),
        pytest.param([PARSED, SORTED], False, id="quarantine"),
        pytest.param([PARSED, SMALL, load("toS3", path="/all", inputDataFrame="rows")], False, id="by-decision"),
    ],
)
def test_what_was_read_of_a_source_is_told_where_no_cache_was_read_instead(
    instance: dg.DagsterInstance, tmp_path: Path, steps: list[Any], is_told: bool
) -> None:
    @dg.asset(key=key("out"))
    def out() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(metadata={"rows_read": 7, "bytes_read": 70})

    events = Heard(instance, [out]).events(planned(tmp_path, batch("sales", *steps, OUT)))
    (source,) = of(events, "sales.out", "COMPLETE")["inputs"]
    assert names([source]) == [("file", "/sandbox/rows.csv")]
    found = source.get("inputFacets", {}).get("inputStatistics", {})
    assert {name: found[name] for name in ("rowCount", "size") if name in found} == (
        {"rowCount": 7, "size": 70} if is_told else {}
    )


def test_checks_of_what_a_source_holds(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    end = of(Heard(instance, assets()).events(planned(tmp_path, SALES)), "sales.paid", "COMPLETE")
    (checked,) = end["inputs"]
    assert names([checked]) == [ORDERS]
    (assertion,) = checked["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert assertion["success"] is False
    assert {name: assertion[name] for name in ("assertion", "name", "column", "severity", "actual")} == {
        "assertion": "inRange",
        "name": "paid",
        "column": "amount",
        "severity": "error",
        "actual": "3",
    }
    (test,) = end["run"]["facets"]["test"]["tests"]
    assert (test["name"], test["status"]) == ("paid", "fail")


def test_a_table_within_the_pipeline_is_where_lineage_ends(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    document = copy.deepcopy(SALES)
    document["steps"][3]["config"]["materialized"] = "table"
    events = Heard(instance, assets()).events(planned(tmp_path, document))
    joined = ("s3://lake", "warehouse/sales/joined")
    assert names(of(events, "sales.joined", "COMPLETE")["outputs"]) == [joined]
    end = of(events, "sales.to_kafka", "COMPLETE")
    assert names(end["inputs"]) == [joined]
    lineage = end["outputs"][0]["facets"]["columnLineage"]["fields"]
    assert [origin["field"] for origin in lineage["value"]["inputFields"]] == ["amount", "name"]


def test_a_failure_says_why_and_shows_no_secret(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    register_secret("correct-horse")

    def fail() -> None:
        raise dg.Failure("the password correct-horse is refused", allow_retries=False)

    heard = Heard(instance, assets(totals=fail))
    events = heard.events(planned(tmp_path, SALES))
    failed = of(events, "sales.totals", "FAIL")
    said = failed["run"]["facets"]["errorMessage"]["message"]
    assert said.startswith("the password *")
    assert "correct-horse" not in json.dumps(events)
    assert not [event for event in events if event["job"]["name"] == "sales.to_kafka"], "it never began"
    run = heard.events(planned(tmp_path, SALES), of_run=True)
    assert [event["eventType"] for event in run] == ["START", "FAIL"]
    assert run[-1]["run"]["facets"]["errorMessage"]["message"] == said


def test_each_try_is_a_run_of_its_own(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    tries: list[int] = []

    def fail_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")

    heard = Heard(instance, assets(joined=fail_twice))
    assert heard.result is not None
    assert heard.result.success
    events = [event for event in heard.events(planned(tmp_path, SALES)) if event["job"]["name"] == "sales.joined"]
    assert [event["eventType"] for event in events] == ["START", "FAIL", "START", "FAIL", "START", "COMPLETE"]
    ids = [event["run"]["runId"] for event in events]
    assert ids[::2] == ids[1::2]
    assert ids[::2] == [attempt_uuid(heard.run_id, "sales__joined", number) for number in (1, 2, 3)]
    assert len(set(ids)) == 3
    assert events[1]["run"]["facets"]["errorMessage"]["message"] == "not yet"


def test_ids_are_uuids_and_the_same_everywhere() -> None:
    own = "0f7b3d7a-52a3-4b51-9a25-2f0fa5b4a3aa"
    assert run_uuid(own) == own
    assert run_uuid("run") == str(uuid.UUID(run_uuid("run")))
    assert attempt_uuid("run", "a", 1) == attempt_uuid("run", "a", 1) != attempt_uuid("run", "a", 2)


def test_a_partition_is_a_time(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    days = dg.DailyPartitionsDefinition("2024-03-01", timezone="Europe/Berlin")

    @dg.asset(key=key("orders"), partitions_def=days)
    def orders() -> None:
        pass

    document = batch("sales", extract_file("orders", "/o.csv"))
    document["partitions"] = {"type": "daily", "start": "2024-03-01", "timezone": "Europe/Berlin"}
    heard = Heard(instance, [orders], partition_key="2024-03-31")
    for event in heard.events(planned(tmp_path, document)):
        times = event["run"]["facets"]["nominalTime"]
        # The day on which clocks go forward.
        assert times["nominalStartTime"] == "2024-03-31T00:00:00+01:00"
        assert times["nominalEndTime"] == "2024-04-01T00:00:00+02:00"
        tags = {tag["key"]: tag["value"] for tag in event["run"]["facets"]["tags"]["tags"]}
        assert tags["partition"] == "2024-03-31"


STREAM = {
    "name": "stream",
    "mode": "streaming",
    "steps": [
        {"type": "extract", "method": "fromKafka", "config": {"topic": "events", "registerAs": "events"}},
        load("toDeltaLake", path="s3a://lake/out", checkpointLocation="/checkpoint"),
    ],
}


def stream_of(numbers: list[int], *, is_stopped: bool = False) -> Any:
    out, letters = dg.AssetKey(["stream", "to_delta_lake"]), dg.AssetKey(["stream", "events_dead_letters"])
    specs = [dg.AssetSpec(found, skippable=True) for found in (dg.AssetKey(["stream", "events"]), out, letters)]
    deps = {"id": [dg.TableColumnDep(dg.AssetKey(["stream", "events"]), "id")]}
    about = {"dagster/column_schema": columns("id"), "dagster/column_lineage": dg.TableColumnLineage(deps)}

    @dg.multi_asset(name="stream__stream", specs=specs)
    def stream() -> Iterator[Any]:
        yield dg.AssetMaterialization(specs[0].key, metadata={"dagster/column_schema": columns("id")})
        for version, number in enumerate(numbers):
            told = {"rows_written": number, "table_version": version, **about}
            yield dg.AssetMaterialization(out, metadata=told)
        if is_stopped:
            raise dg.DagsterExecutionInterruptedError("stopped")

    return stream


def test_a_stream_tells_of_itself_now_and_then(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(instance, [stream_of([5, 6, 7, 8])], job="stream")
    moments = iter([0.0, 299.0, 300.0, 599.0])
    monkeypatch.setattr(run_events, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    events = heard.events(planned(tmp_path, STREAM))
    assert [event["eventType"] for event in events] == ["START", "RUNNING", "RUNNING", "COMPLETE"]
    assert {event["job"]["name"] for event in events} == {"stream.stream"}
    assert {event["job"]["facets"]["jobType"]["processingType"] for event in events} == {"STREAMING"}
    assert all(names(event["inputs"]) == [("kafka://one:9092", "events")] for event in events)
    told = [event["outputs"][0] for event in events[1:]]
    assert [names([output]) for output in told] == [[("s3://lake", "out")]] * 3
    assert [output["outputFacets"]["outputStatistics"]["rowCount"] for output in told] == [5, 5 + 6 + 7, 5 + 6 + 7 + 8]
    assert [output["facets"]["version"]["datasetVersion"] for output in told] == ["0", "2", "3"]
    (origin,) = told[0]["facets"]["columnLineage"]["fields"]["id"]["inputFields"]
    assert (origin["namespace"], origin["name"], origin["field"]) == ("kafka://one:9092", "events", "value")


def test_a_stream_that_is_stopped_has_written_what_it_has(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    heard = Heard(instance, [stream_of([5, 6], is_stopped=True)], job="stream")
    events = heard.events(planned(tmp_path, STREAM))
    assert [event["eventType"] for event in events] == ["START", "RUNNING", "ABORT"]
    (output,) = events[-1]["outputs"]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 5 + 6
    assert output["facets"]["version"]["datasetVersion"] == "1"
    assert "errorMessage" not in events[-1]["run"]["facets"]
