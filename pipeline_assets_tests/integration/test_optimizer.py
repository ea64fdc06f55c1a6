"""What is decided beyond a config changes no result; PostgreSQL itself counts what is read of it, by a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from devstack.spark_servers import SparkConnectServer
from pipeline_assets_tests.config_documents import batch, load, transform
from pipeline_assets_tests.integration.counted_orders import ROWS, Database, expected, extract, reads
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of, same_rows
from pipeline_assets_tests.integration.location import Location


def to_delta(name: str, source: str, **config: Any) -> dict[str, Any]:
    found = load("toDeltaLake", path=f"/{name}", inputDataFrame=source, mode="overwrite", **config)
    return {**found, "name": name}


def persistent(spark: Any) -> list[str]:
    names = [str(rdd.name()) for rdd in spark.sparkContext._jsc.getPersistentRDDs().values()]
    return [name for name in names if "Delta Table State" not in name]


@pytest.mark.parametrize("optimize", [True, False])
def test_what_several_steps_take_is_read_once(
    location: Location, database: Database, spark: Any, optimize: bool
) -> None:
    location.write(
        batch(
            "p",
            extract("orders"),
            {"type": "validate", "method": "expectations", "config": {"expectations": {"positive": "id > 0"}}},
            to_delta("all", "orders"),
            transform("filterRows", registerAs="late", inputDataFrame="orders", condition="day > 3"),
            to_delta("late_ones", "late"),
            extract("again"),
            to_delta("twice", "again"),
            optimize=optimize,
        )
    )
    location.run("p")
    tables = {name: rows_of(location.folder / "root" / name) for name in ("all", "late_ones", "twice")}
    same_rows(tables["all"][["id", "day"]], expected())
    same_rows(tables["twice"][["id", "day"]], expected())
    same_rows(tables["late_ones"][["id", "day"]], expected().query("day > 3"))
    # PostgreSQL filters for itself, where it is asked again.
    assert reads(database) == (ROWS if optimize else 3 * ROWS + len(tables["late_ones"]))
    assert persistent(spark) == []
    told = location.metadata("p", "orders").get("optimization")
    if not optimize:
        assert told is None
        return
    assert told is not None
    assert told.startswith("kept in memory and on disk until twice is done: ")
    assert location.metadata("p", "orders")["storage_level"] == "MEMORY_AND_DISK"
    assert location.metadata("p", "again")["optimization"] == "not read again: it reads the same as orders"
    # All of it is one state of the source.
    same_rows(tables["all"], tables["twice"])


def test_a_server_that_forgets_plans_reads_once(
    location: Location, database: Database, spark_connect_server: SparkConnectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the last 32 of a session, and all steps are planned before the first load."""
    monkeypatch.setenv("SPARK_REMOTE", spark_connect_server.remote)
    location.write(
        batch(
            "p",
            extract("orders"),
            to_delta("one", "orders"),
            transform("filterRows", registerAs="late", inputDataFrame="orders", condition="day > 3"),
            to_delta("late_ones", "late"),
            to_delta("two", "orders"),
            {"type": "extract", "method": "fromPostgres", "config": {"table": "counted.orders", "registerAs": "other"}},
            *(transform("withColumns", columns={"id": "id + 1"}, registerAs=f"other{n}") for n in range(40)),
        )
    )
    location.run("p")
    assert reads(database) == ROWS
    tables = {name: rows_of(location.folder / "root" / name) for name in ("one", "two", "late_ones")}
    same_rows(tables["one"][["id", "day"]], expected())
    same_rows(tables["one"], tables["two"])
    same_rows(tables["late_ones"], tables["one"].query("day > 3"))


def test_queries_and_merges_let_go_of_nothing(location: Location, database: Database) -> None:
    merged = load("toDeltaLake", path="/merged", inputDataFrame="keyed", mode="merge", mergeKeys=["id"])
    location.write(
        batch(
            "p",
            extract("orders"),
            transform("sql", query="SELECT uuid() AS key, read, id, day FROM orders", registerAs="keyed"),
            merged,
            transform("sql", query="SELECT day, count(*) AS orders FROM keyed GROUP BY day", registerAs="days"),
            to_delta("by_day", "days"),
            to_delta("all", "keyed"),
        )
    )
    location.run("p")  # makes the table that the next run merges into
    reads(database)
    location.run("p")
    assert reads(database) == ROWS
    found = {name: rows_of(location.folder / "root" / name) for name in ("merged", "all", "by_day")}
    same_rows(found["all"][["id", "day"]], expected())
    same_rows(found["all"], found["merged"])
    same_rows(found["by_day"], expected().groupby("day").size().reset_index(name="orders"))


def test_it_is_let_go_after_its_last_reader(location: Location, database: Database) -> None:
    location.write(
        batch(
            "p",
            extract("orders"),
            to_delta("one", "orders"),
            to_delta("two", "orders"),
            {"type": "extract", "method": "fromPostgres", "config": {"table": "counted.orders", "registerAs": "other"}},
            transform("cache", dataFrames=["other"]),
            to_delta("three", "other"),
            {**transform("uncache", dataFrames=["other"]), "name": "end"},
        )
    )
    location.run("p")
    assert reads(database) == ROWS
    assert location.metadata("p", "end")["cached_dataframes"] == "none"


def test_a_run_that_fails_lets_go(location: Location, database: Database, spark: Any) -> None:
    checked = transform(
        "withColumns", registerAs="checked", columns={"bad": "if(id > 990, raise_error('too late'), 1)"}
    )
    location.write(batch("p", extract("orders"), to_delta("one", "orders"), checked, to_delta("two", "checked")))
    location.run("p", fail=True)
    assert reads(database) == ROWS
    same_rows(rows_of(location.folder / "root" / "one")[["id", "day"]], expected())
    assert persistent(spark) == []


def test_one_load_alone_keeps_nothing(location: Location, database: Database) -> None:
    location.write(batch("p", extract("orders"), to_delta("one", "orders"), to_delta("two", "orders")))
    location.run("p", only=["orders", "one"])
    assert reads(database) == ROWS
    assert "optimization" not in location.metadata("p", "orders")
    assert not (location.folder / "root" / "two").exists()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("optimize", [True, False])
def test_a_small_table_is_sent_to_what_it_is_joined_with(location: Location, optimize: bool) -> None:
    facts = location.folder / "facts.parquet"
    pd.DataFrame({"order_id": [n % ROWS + 1 for n in range(5000)], "n": range(5000)}).to_parquet(facts)
    location.write(
        batch(
            "p",
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{facts}", "registerAs": "facts"}},
            {
                "type": "extract",
                "method": "fromPostgres",
                "config": {"table": "counted.orders", "registerAs": "orders"},
            },
            # What makes the facts too large, to Spark, to be sent themselves.
            transform("filterRows", registerAs="some", inputDataFrame="orders", condition="id > 10"),
            transform(
                "joinDataFrames",
                registerAs="joined",
                joinType="left",
                inputDataFrames=["facts", "some"],
                leftKeys=["order_id"],
                rightKeys=["id"],
            ),
            optimize=optimize,
        )
    )
    location.run("p")
    plan = location.metadata("p", "joined")["physical_plan"]
    assert ("BroadcastHashJoin" in plan) is optimize
    assert ("SortMergeJoin" in plan) is not optimize
    facts_rows = pd.read_parquet(facts)
    orders = expected().query("id > 10")[["id"]].assign(key=lambda rows: rows["id"])
    same_rows(
        rows_of(location.table("p", "joined")),
        facts_rows.merge(orders, how="left", left_on="order_id", right_on="key")[["order_id", "n", "id"]],
    )


@pytest.mark.parametrize("method", ["toDeltaLake", "toS3"])
@pytest.mark.parametrize("optimize", [True, False])
def test_partitioned_targets_get_few_files(location: Location, method: str, optimize: bool) -> None:
    source = location.folder / "source"
    source.mkdir()
    rows = pd.DataFrame({"id": range(600), "day": [n % 5 for n in range(600)]})
    for number in range(40):  # Spark packs small files into tasks: some four of these
        rows[rows["id"] % 40 == number].to_parquet(source / f"{number:02}.parquet", index=False)
    target = location.folder / "root" / "out"
    location.write(
        batch(
            "p",
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{source}/*.parquet"}},
            load(method, path="/out", partitionBy=["day"]),
            optimize=optimize,
        )
    )
    location.run("p")
    if method == "toDeltaLake":
        files = [Path(file).relative_to(target) for file in delta_files(target)]
    else:
        files = [file.relative_to(target) for file in target.rglob("*.parquet")]
    found = [pd.read_parquet(target / file, partitioning=None).assign(day=int(file.parent.name[4:])) for file in files]
    same_rows(pd.concat(found), rows)
    assert (len(files) == 5) is optimize, "one for each day"


@pytest.mark.parametrize("by_step", [True, False])
@pytest.mark.parametrize("optimize", [True, False])
def test_what_a_config_caches_is_in_few_partitions(location: Location, by_step: bool, optimize: bool) -> None:
    source = location.folder / "rows.parquet"
    rows = pd.DataFrame({"id": range(600), "day": [n % 50 for n in range(600)]})
    rows.to_parquet(source, index=False)
    groups = transform(
        "aggregateData", registerAs="days", groupBy=["day"], aggregations={"n": "count(*)"}, cache=not by_step
    )
    location.write(
        batch(
            "p",
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{source}"}},
            groups,
            *([transform("cache", dataFrames=["days"])] if by_step else []),
            to_delta("out", "days"),
            optimize=optimize,
        )
    )
    location.run("p")
    target = location.folder / "root" / "out"
    same_rows(rows_of(target), rows.groupby("day", as_index=False).agg(n=("id", "count")))
    assert len(delta_files(target)) == (1 if optimize else 4), "the tests' shuffles have 4 partitions"


def test_a_target_that_is_partitioned_by_the_key_of_the_run(location: Location) -> None:
    source = location.folder / "rows.parquet"
    rows = pd.DataFrame({"id": range(20), "day": [n % 4 for n in range(20)]})
    rows.to_parquet(source, index=False)
    location.write(
        batch(
            "p",
            {"type": "extract", "method": "fromFile", "config": {"path": f"file://{source}"}},
            load("toDeltaLake", path="/out", partitionBy=["partition_key", "day"]),
            partitions={"type": "static", "values": ["a", "b"]},
        )
    )
    for key in ("a", "b"):
        location.run("p", partition=key)
    files = [Path(file).parent for file in delta_files(location.folder / "root" / "out")]
    assert sorted((file.parent.name, file.name) for file in files) == [
        (f"partition_key={key}", f"day={day}") for key in "ab" for day in range(4)
    ]
