"""Batch pipelines on real PostgreSQL, S3, Spark and Delta; what they write is compared with pandas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from devstack.demo_data import cdnow_customers, cdnow_purchases, flight_logs
from devstack.s3 import S3Server
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    load,
    transform,
)
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.spark_jobs import jobs

DAYS = ["2024-01-30", "2024-01-31", "2024-02-01"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("reach_sources")
class TestReferenceConfigs:
    def expected_customer_360(self) -> pd.DataFrame:
        purchases = cdnow_purchases()
        return cdnow_customers(purchases).merge(purchases, left_on="id", right_on="customer_id")

    def test_customer_360(self, location: Location) -> None:
        location.write(CUSTOMER_360)
        location.run("customer_360")
        expected = self.expected_customer_360()
        same_rows(rows_of(location.table("customer_360", "join_data_frames")), expected)

        metadata = location.metadata("customer_360", "join_data_frames")
        assert metadata["dagster/row_count"] == len(expected)
        assert metadata["dagster/uri"] == str(location.table("customer_360", "join_data_frames"))
        assert metadata["dagster/table_name"] == "customer_360.join_data_frames"
        assert metadata["table_version"] == 0
        assert [column.name for column in metadata["dagster/column_schema"].columns] == list(expected.columns)
        lineage = metadata["dagster/column_lineage"].deps_by_column
        assert lineage["amount"] == [dg.TableColumnDep(dg.AssetKey(["customer_360", "orders"]), "amount")]
        assert lineage["id"] == [dg.TableColumnDep(dg.AssetKey(["customer_360", "customers"]), "id")]
        assert "== Physical Plan ==" in metadata["physical_plan"]
        assert len(metadata["preview"].splitlines()) == 12, "a heading, its rule and ten rows"

    def test_one_asset_alone(self, location: Location) -> None:
        location.write(CUSTOMER_360)
        location.run("customer_360", only=["join_data_frames"])
        same_rows(rows_of(location.table("customer_360", "join_data_frames")), self.expected_customer_360())

    def test_a_warehouse_on_s3(
        self, location: Location, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIPELINE_ASSETS_WAREHOUSE", f"s3a://{s3.bucket}/warehouse")
        location.write(CUSTOMER_360)
        for version in (0, 1):
            location.run("customer_360")
            metadata = location.metadata("customer_360", "join_data_frames")
            assert metadata["table_version"] == version
            assert len(metadata["preview"].splitlines()) == 12
        expected = self.expected_customer_360()
        assert metadata["dagster/row_count"] == len(expected)
        assert metadata["dagster/uri"] == f"s3a://{s3.bucket}/warehouse/customer_360/join_data_frames"
        prefix = "warehouse/customer_360/join_data_frames/"
        client = s3.client()
        listed = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
        for key in [entry["Key"] for page in listed for entry in page["Contents"]]:
            copy = tmp_path / "copy" / key.removeprefix(prefix)
            copy.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(s3.bucket, key, str(copy))
        same_rows(rows_of(tmp_path / "copy"), expected)

    def test_views_move_no_data(self, location: Location, spark: Any) -> None:
        location.write(CUSTOMER_360)
        before = jobs(spark)
        location.run("customer_360", only=["customers", "orders"])
        assert len(jobs(spark) - before) == 1, "Spark looks into one Parquet file for the schema, and that is all"
        assert not location.warehouse.exists()
        metadata = location.metadata("customer_360", "customers")
        assert metadata["storage_level"] == "MEMORY_AND_DISK"
        assert metadata.keys() >= {"dagster/column_schema", "physical_plan", "partition_count"}

    def test_optimized_aggregation(self, location: Location) -> None:
        location.write(OPTIMIZED_AGGREGATION)
        location.run("optimized_aggregation")
        logs = flight_logs(31)
        grouped = logs.groupby(["date", "region"], as_index=False)
        expected = grouped.agg(total_events=("flight", "size"), unique_users=("user_id", "nunique"))
        found = rows_of(location.table("optimized_aggregation", "coalesce"))
        same_rows(found.assign(date=found["date"].astype(str)), expected)
        assert location.metadata("optimized_aggregation", "repartition_by_columns")["partition_count"] == 200
        lineage = location.metadata("optimized_aggregation", "aggregate_data")["dagster/column_lineage"].deps_by_column
        upstream = dg.AssetKey(["optimized_aggregation", "repartition_by_columns"])
        assert lineage["unique_users"] == [dg.TableColumnDep(upstream, "user_id")]
        assert lineage.get("total_events", []) == []

    def test_what_a_run_cached_is_released(self, location: Location, spark: Any) -> None:
        location.write(CUSTOMER_360)
        location.run("customer_360")
        kept = [rdd.name() for rdd in spark.sparkContext._jsc.getPersistentRDDs().values()]
        assert [name for name in kept if "Delta Table State" not in str(name)] == []


class TestTables:
    def test_a_table_that_cannot_be_shown(self, location: Location, caplog: pytest.LogCaptureFixture) -> None:
        write_rows(location.folder / "rows.json", [{"id": 1}])
        query = "SELECT id, named_struct('json', parse_json('2')) AS nested FROM rows"
        location.write(
            batch(
                "p",
                extract_file("rows", f"file://{location.folder}/rows.json"),
                transform("sql", query=query, registerAs="shown"),
            )
        )
        location.run("p")
        metadata = location.metadata("p", "shown")
        assert metadata["dagster/row_count"] == 1
        assert "preview" not in metadata
        assert "no preview: " in caplog.text

    def test_a_failed_run_leaves_the_old_table(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"id": 1}, {"id": 2}])
        document = batch(
            "p",
            extract_file("rows", str(source.name)),
            transform("withColumns", columns={"checked": "if(id < 3, id, raise_error('three'))"}, registerAs="checked"),
        )
        document["steps"][0]["config"]["path"] = f"file://{source}"
        location.write(document)
        location.run("p")
        write_rows(source, [{"id": 2}, {"id": 3}])
        location.run("p", fail=True)
        same_rows(rows_of(location.table("p", "checked")), pd.DataFrame({"id": [1, 2], "checked": [1, 2]}))
        write_rows(source, [{"id": 0}])
        location.run("p")
        same_rows(rows_of(location.table("p", "checked")), pd.DataFrame({"id": [0], "checked": [0]}))
        assert location.metadata("p", "checked")["table_version"] == 1

    @pytest.mark.parametrize("retry", [{}, {"retry": {"maxRetries": 1, "delay": 0.01}}], ids=["once", "retried"])
    def test_a_mistake_in_a_later_step_is_found_before_the_first_write(
        self, location: Location, retry: dict[str, Any]
    ) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"id": 1}])
        location.write(
            batch(
                "p",
                extract_file("rows", f"file://{source}"),
                {"type": "load", "method": "toDeltaLake", "config": {"path": "/out", "mode": "overwrite"}},
                transform("filterRows", condition="idd > 0"),
                **retry,
            )
        )
        location.run("p", fail=True)
        assert not (location.folder / "root" / "out").exists()

    def test_a_table_amid_a_pipeline_is_what_the_next_step_reads(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"id": 1}, {"id": 2}])
        location.write(
            batch(
                "p",
                extract_file("rows", f"file://{source}", materialized="table"),
                transform("filterRows", condition="id > 1", registerAs="kept"),
            )
        )
        location.run("p")
        write_rows(source, [{"id": 5}])
        location.run("p", only=["kept"])
        same_rows(rows_of(location.table("p", "kept")), pd.DataFrame({"id": [2]}))

    def test_a_step_reads_what_its_pipeline_has_just_loaded(self, location: Location) -> None:
        source = location.folder / "rows.json"
        location.write(
            batch(
                "p",
                extract_file("rows", f"file://{source}"),
                {"type": "load", "method": "toDeltaLake", "config": {"path": "/lake/t"}},
                {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/t", "registerAs": "all_rows"}},
            )
        )
        for number in (1, 2):
            write_rows(source, [{"id": number}])
            location.run("p")
        same_rows(rows_of(location.table("p", "all_rows")), pd.DataFrame({"id": [1, 2]}))

    def test_a_run_of_two_pipelines_plans_what_the_other_has_just_loaded(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"id": 1}, {"id": 2}])
        table = {"path": "/lake/t"}
        location.write(
            batch(
                "first",
                extract_file("rows", f"file://{source}"),
                transform("filterRows", condition="id > 0"),
                load("toDeltaLake", **table),
            ),
            batch(
                "second",
                extract_file("wanted", f"file://{source}"),
                {"type": "validate", "method": "notNull", "config": {"columns": ["id"]}},
                {"type": "extract", "method": "fromDeltaLake", "config": {**table, "registerAs": "loaded"}},
                transform("joinDataFrames", inputDataFrames=["wanted", "loaded"], keys=["id"], registerAs="both"),
            ),
        )
        location.run("__ASSET_JOB")
        same_rows(rows_of(location.table("second", "both")), pd.DataFrame({"id": [1, 2]}))

    @pytest.mark.parametrize(
        ("of_pipeline", "of_step"),
        [({"optimize": False}, {}), ({}, {}), ({}, {"cache": True})],
        ids=["read again", "kept", "cached"],
    )
    def test_a_table_is_read_as_it_was_before_the_pipeline_wrote_it(
        self, location: Location, spark: Any, of_pipeline: dict[str, Any], of_step: dict[str, Any]
    ) -> None:
        source, table = location.folder / "rows.json", location.folder / "root" / "lake" / "t"
        spark.range(3).write.format("delta").save(str(table))
        write_rows(source, [{"id": number} for number in range(5)])
        join = {"inputDataFrames": ["rows", "known"], "joinType": "leftanti", "keys": ["id"], **of_step}
        location.write(
            batch(
                "p",
                {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/t", "registerAs": "known"}},
                extract_file("rows", f"file://{source}"),
                transform("joinDataFrames", **join),
                load("toDeltaLake", path="/lake/t"),
                load("toDeltaLake", path="/lake/fresh"),
                **of_pipeline,
            )
        )
        location.run("p")
        same_rows(rows_of(table), pd.DataFrame({"id": range(5)}))
        same_rows(rows_of(table.with_name("fresh")), pd.DataFrame({"id": [3, 4]}))

    def test_a_table_that_is_missing_says_what_to_materialize(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"id": 1}])
        location.write(
            batch(
                "p",
                extract_file("rows", f"file://{source}", materialized="table"),
                transform("filterRows", condition="id > 1", registerAs="kept"),
            )
        )
        text = failure_text(location.run("p", only=["kept"], fail=True))
        assert "materialize p/rows first" in text

    def test_a_partition_is_replaced_alone(self, location: Location) -> None:
        def put(day: str, *ids: int) -> None:
            write_rows(location.folder / day / "rows.json", [{"id": i} for i in ids])

        location.write(
            batch(
                "parted",
                extract_file("rows", f"file://{location.folder}/${{partition}}/rows.json"),
                transform("withColumns", columns={"day": "'${partition}'"}, registerAs="kept"),
                partitions={"type": "daily", "start": "2024-01-01"},
            )
        )
        put("2024-01-01", 1, 2)
        put("2024-01-02", 3)
        location.run("parted", partition="2024-01-01")
        location.run("parted", partition="2024-01-02")
        put("2024-01-01", 7)
        location.run("parted", partition="2024-01-01")
        location.run("parted", partition="2024-01-01")
        assert location.metadata("parted", "kept")["dagster/partition_row_count"] == 1
        text = failure_text(location.run("parted", fail=True))
        assert "pipeline parted is partitioned" in text
        assert "dg launch -m pipeline_assets.definitions --job parted --partition KEY" in text
        # As `dagster job execute --tags` gives it, Dagster does not look at the key.
        job, tags = location.definitions().resolve_job_def("parted"), {"dagster/partition": "2024-1-2"}
        unknown = job.execute_in_process(instance=location.instance, tags=tags, raise_on_error=False)
        assert "there is no partition '2024-1-2'" in failure_text(unknown)
        table = location.table("parted", "kept")
        found = pd.concat(
            pd.read_parquet(file).assign(partition_key=Path(file).parent.name.removeprefix("partition_key="))
            for file in delta_files(table)
        )
        assert sorted(zip(found["id"], found["day"], found["partition_key"], strict=True)) == [
            (3, "2024-01-02", "2024-01-02"),
            (7, "2024-01-01", "2024-01-01"),
        ]

    @pytest.mark.parametrize(
        ("partitions", "keys", "condition"),
        [
            (
                {"type": "monthly", "start": "2024-01-01"},
                ["2024-01-01", "2024-02-01", "2024-01-01"],
                "substr(partition_key, 1, 7) = substr('${partition}', 1, 7)",
            ),
            ({"type": "daily", "start": "2024-01-01"}, DAYS, "partition_key = '${partition}'"),
            ({"type": "static", "values": DAYS}, DAYS, "partition_key = '${partition}'"),
        ],
        ids=["monthly", "daily", "static"],
    )
    def test_keys_of_another_pipeline_are_not_lost(
        self, location: Location, partitions: dict[str, Any], keys: list[str], condition: str
    ) -> None:
        rows = [
            {"id": f"{day} {number}", "partition_key": day} for n, day in enumerate(DAYS) for number in range(n + 1)
        ]
        for day in DAYS:
            of_day = [{"id": row["id"]} for row in rows if row["partition_key"] == day]
            write_rows(location.folder / day / "rows.json", of_day)
        source = extract_file("rows", f"file://{location.folder}/${{partition}}/rows.json")
        location.write(batch("a", source, partitions={"type": "daily", "start": "2024-01-01"}))
        for day in DAYS:
            location.run("a", partition=day)
        steps = [
            {"type": "extract", "method": "fromDeltaLake", "config": {"table": "a.rows", "registerAs": "all"}},
            transform("filterRows", condition=condition, registerAs="kept", materialized="table"),
            transform("aggregateData", groupBy=["partition_key"], aggregations={"n": "count(*)"}, registerAs="counts"),
            load("toDeltaLake", path="/counts", mode="overwrite"),
            load("toS3", path="/files/${partition}"),
        ]
        ids = transform("selectColumns", inputDataFrame="all", columns=["id"], registerAs="ids")
        kept = {**steps[1], "config": {**steps[1]["config"], "inputDataFrame": "all"}}
        location.write(batch("b", steps[0], ids, kept, partitions=partitions))
        text = failure_text(location.run("b", partition=keys[0], fail=True))
        assert "b: step 2 (transform filterRows): the DataFrame has a column 'partition_key'" in text
        assert not location.table("b", "ids").exists(), "told before anything is written"

        location.write(batch("b", *steps, partitions={**partitions, "column": "partition_key"}))
        for key in keys:
            location.run("b", partition=key)
        expected = pd.DataFrame(rows)
        same_rows(rows_of(location.table("b", "kept")), expected)
        counts = expected.groupby("partition_key", as_index=False).agg(n=("id", "count"))
        same_rows(rows_of(location.folder / "root" / "counts"), counts)
        files = (location.folder / "root" / "files").rglob("*.parquet")
        same_rows(pd.concat(pd.read_parquet(file, partitioning=None) for file in files), counts)

    def test_a_partition_of_files_is_replaced_alone(self, location: Location) -> None:
        rows = location.folder / "rows.json"
        write_rows(rows, [{"id": 1}])
        shared = load("toS3", path="/out", mode="overwrite", inputDataFrame="rows")
        own = load("toS3", path="/own-${partition}", mode="overwrite", inputDataFrame="rows")
        partitions = {"type": "static", "values": ["out", "x"]}  # one is in the path of all
        location.write(batch("files", extract_file("rows", f"file://{rows}"), shared, own, partitions=partitions))
        for key in ("x", "out"):
            location.run("files", partition=key)
        root = location.folder / "root"
        files = [file.relative_to(root) for file in root.rglob("*.parquet")]
        assert sorted(str(file.parent) for file in files) == [
            "out/partition_key=out", "out/partition_key=x", "own-out", "own-x",
        ]  # fmt: skip

    def test_spark_conf_is_that_of_one_pipeline(self, location: Location) -> None:
        rows = location.folder / "rows.json"
        write_rows(rows, [{"id": number} for number in range(40)])
        by_id = transform("repartitionByColumns", columns=["id"], registerAs="by_id")
        given: list[tuple[str, dict[str, Any]]] = [("three", {"spark.sql.shuffle.partitions": 3}), ("usual", {})]
        for name, conf in given:
            out = load("toDeltaLake", path=f"/{name}")
            # Adaptive execution would write so few rows into one file.
            conf = {"spark.sql.adaptive.enabled": False, **conf}
            location.write(batch(name, extract_file("rows", f"file://{rows}"), by_id, out, sparkConf=conf))
            location.run(name)
        found = {name: len(delta_files(location.folder / "root" / name)) for name, _ in given}
        assert found == {"three": 3, "usual": 4}, "the tests' Spark has 4 otherwise"


class TestChecks:
    def document(self, source: Path, **config: Any) -> dict[str, Any]:
        return batch(
            "checked",
            extract_file("rows", f"file://{source}"),
            {
                "type": "validate",
                "method": "expectations",
                "config": {"expectations": {"positive": "amount > 0", "named": "name IS NOT NULL"}, **config},
            },
            {"type": "load", "method": "toDeltaLake", "config": {"path": "/out"}},
        )

    def results(self, run: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        return {found.check_name: found for found in run.get_asset_check_evaluations()}

    def test_a_failed_check_blocks_what_comes_after(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"amount": 1, "name": "a"}, {"amount": -1, "name": "b"}, {"amount": 2}, {"amount": 3}])
        location.write(self.document(source))
        results = self.results(location.run("checked", fail=True))
        assert not results["expectations_positive"].passed
        assert results["expectations_positive"].metadata["failed_rows"].value == 1
        assert results["expectations_named"].metadata["failed_percent"].value == 50.0
        assert not (location.folder / "root" / "out").exists(), "nothing is loaded"

    def test_a_check_that_does_not_block(self, location: Location) -> None:
        source = location.folder / "rows.json"
        write_rows(source, [{"amount": -1, "name": "b"}])
        location.write(self.document(source, blocking=False))
        results = self.results(location.run("checked"))
        assert {name: result.passed for name, result in results.items()} == {
            "expectations_positive": False,
            "expectations_named": True,
        }
        assert len(rows_of(location.folder / "root" / "out")) == 1


def test_cache_control(location: Location, spark: Any) -> None:
    source = location.folder / "rows.json"
    write_rows(source, [{"id": 1}, {"id": 2}])
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            transform("cache", storageLevel="DISK_ONLY"),
            transform("filterRows", condition="id > 1", registerAs="kept"),
            transform("uncacheAll"),
        )
    )
    location.run("p")
    same_rows(rows_of(location.table("p", "kept")), pd.DataFrame({"id": [2]}))
    assert location.metadata("p", "cache")["cached_dataframes"] == "rows (DISK_ONLY)"
    assert location.metadata("p", "uncache_all")["cached_dataframes"] == "none"
    assert "InMemoryTableScan" in location.metadata("p", "kept")["physical_plan"]


def test_sql_keeps_to_its_own_pipeline(location: Location) -> None:
    for name in ("one", "two"):
        source = location.folder / f"{name}.json"
        write_rows(source, [{"word": name}])
        location.write(
            batch(name, extract_file("rows", f"file://{source}"), transform("sql", query="SELECT word AS w FROM rows"))
        )
    keys = [dg.AssetKey([name, asset]) for name in ("one", "two") for asset in ("rows", "sql")]
    job = location.definitions().resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=location.instance, asset_selection=keys).success
    for name in ("one", "two"):
        same_rows(rows_of(location.table(name, "sql")), pd.DataFrame({"w": [name]}))
        lineage = location.metadata(name, "sql")["dagster/column_lineage"].deps_by_column
        assert lineage["w"] == [dg.TableColumnDep(dg.AssetKey([name, "rows"]), "word")]


@pytest.mark.usefixtures("reach_sources")
def test_columns_come_from_sources_that_have_the_partition_in_their_names(location: Location) -> None:
    for name in ("a", "b"):
        write_rows(location.folder / "customers" / f"{name}.json", [{"id": 1}])

    def extract(method: str, name: str, **config: Any) -> dict[str, Any]:
        return {"type": "extract", "method": method, "config": {**config, "registerAs": name, "materialized": "view"}}

    paths = [f"file://{location.folder}/${{partition}}/{name}.json" for name in ("a", "b")]
    location.write(
        batch(
            "parted",
            extract("fromFile", "files", paths=paths),
            extract("fromPostgres", "whole", table="public.${partition}", columns=["id"]),
            extract("fromPostgres", "asked", query="SELECT id FROM customers WHERE '${partition}' <> ''"),
            partitions={"type": "static", "values": ["customers"]},
        )
    )
    location.run("parted", partition="customers")
    graph = location.definitions().resolve_asset_graph()
    for name in ("files", "whole", "asked"):
        (source,) = graph.get(dg.AssetKey(["parted", name])).parent_keys
        lineage = location.metadata("parted", name)["dagster/column_lineage"].deps_by_column
        assert lineage == {"id": [dg.TableColumnDep(source, "id")]}
