"""The asset factory: what Dagster is told about a pipeline. Nothing runs here, and Spark is not loaded."""

from __future__ import annotations

import copy
import datetime as dt
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._utils.schedules import get_latest_completed_cron_tick, get_next_cron_tick
from dagster._vendored.croniter import CroniterBadDateError

from pipeline_assets.code_location import build_definitions
from pipeline_assets.config import PipelineConfig, Schedule
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.partitions import Partitions
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    transform,
    write_config,
)


def definitions(folder: Path, *documents: Any) -> dg.Definitions:
    for document in documents:
        write_config(folder, document)
    found = build_definitions(Settings(configs=folder))
    dg.Definitions.validate_loadable(found)
    return found


def node(defs: dg.Definitions, *key: str) -> Any:
    return defs.resolve_asset_graph().get(dg.AssetKey(list(key)))


def test_the_reference_configs_become_assets_and_jobs(tmp_path: Path) -> None:
    defs = definitions(tmp_path, CUSTOMER_360, EVENT_STREAM, OPTIMIZED_AGGREGATION)
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "customer_360/customers",
        "customer_360/orders",
        "customer_360/join_data_frames",
        "event_stream/from_kafka",
        "event_stream/from_kafka_dead_letters",
        "event_stream/filter_rows",
        "event_stream/to_delta_lake",
        "optimized_aggregation/from_s3",
        "optimized_aggregation/repartition_by_columns",
        "optimized_aggregation/aggregate_data",
        "optimized_aggregation/coalesce",
        "postgres/default/public/customers",
        "s3/data/orders",
        "s3/data/logs",
        "kafka/default/events",
    }
    joined = node(defs, "customer_360", "join_data_frames")
    assert joined.parent_keys == {dg.AssetKey(["customer_360", "customers"]), dg.AssetKey(["customer_360", "orders"])}
    assert node(defs, "customer_360", "customers").parent_keys == {
        dg.AssetKey(["postgres", "default", "public", "customers"])
    }
    assert not node(defs, "s3", "data", "orders").is_materializable
    assert joined.group_name == "customer_360"
    assert {"spark", "postgres"} <= node(defs, "customer_360", "customers").kinds
    assert defs.resolve_job_def("customer_360").executor_def.name == "in_process"


def test_code_versions_reach_dagster(tmp_path: Path) -> None:
    defs = definitions(tmp_path, CUSTOMER_360)
    versions = {
        key.to_user_string(): node(defs, *key.path).code_version
        for key in defs.resolve_asset_graph().materializable_asset_keys
    }
    assert len(set(versions.values())) == 3
    assert all(versions.values())


def test_owners_tags_and_descriptions(tmp_path: Path) -> None:
    document = {**CUSTOMER_360, "owners": ["team:data", "a@b.example"], "tags": {"domain": "sales"}}
    found = node(definitions(tmp_path, document), "customer_360", "orders")
    assert set(found.owners) == {"team:data", "a@b.example"}
    assert found.tags["domain"] == "sales"
    assert "fromS3" in found.description


def test_what_is_put_aside_has_the_pipelines_owners_and_tags(tmp_path: Path) -> None:
    told = {"owners": ["team:data"], "tags": {"domain": "sales"}}
    check = {
        "type": "validate",
        "method": "notNull",
        "name": "good",
        "config": {"columns": ["id"], "onFailure": "quarantine"},
    }
    rows = batch("aside", extract_file("rows", "/in.csv"), check)
    defs = definitions(tmp_path, {**rows, **told}, {**EVENT_STREAM, **told})
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string(): graph.get(key) for key in graph.materializable_asset_keys}
    assert {"aside/good_quarantine", "event_stream/from_kafka_dead_letters"} <= keys.keys()
    for found in keys.values():
        assert found.owners == ["team:data"]
        assert found.tags["domain"] == "sales"


def test_a_broken_config_is_an_asset_that_says_why(tmp_path: Path) -> None:
    write_config(tmp_path, "{ no json", "broken.json")
    document = batch("bad-graph", transform("filterRows", condition="x"))
    defs = definitions(tmp_path, CUSTOMER_360, document)
    shown = node(defs, "broken_configs", "broken")
    assert not shown.is_materializable
    assert "line 1, column 3" in shown.description
    assert "start with an extract" in node(defs, "broken_configs", "bad_graph").description
    assert defs.resolve_job_def("customer_360")


def test_a_source_is_written_when_all_before_have_read_it(tmp_path: Path) -> None:
    """A view is read when its rows are moved, so that the order of the moves is the order of the config."""

    def load(name: str, source: str, table: str) -> dict[str, Any]:
        config = {"inputDataFrame": source, "table": table, "mode": "overwrite"}
        return {"type": "load", "method": "toPostgres", "name": name, "config": config}

    events = {"type": "extract", "method": "fromPostgres", "config": {"table": "events", "registerAs": "events"}}
    document = batch(
        "p",
        events,
        transform("filterRows", registerAs="old", inputDataFrame="events", condition="age > 9"),
        load("archive", "old", "archive"),
        transform("filterRows", registerAs="current", inputDataFrame="events", condition="age <= 9"),
        load("keep", "current", "events"),
        load("keep_again", "current", "events"),
        load("other", "current", "others"),
    )
    defs = definitions(tmp_path, document)

    def parents(name: str) -> set[str]:
        return {key.path[-1] for key in node(defs, "p", name).parent_keys}

    assert parents("archive") == {"old"}
    assert parents("keep") == {"current", "archive"}
    assert parents("keep_again") == {"current", "archive", "keep"}
    assert parents("other") == {"current"}


def test_a_check_that_waits_for_itself_by_what_is_written_is_refused(tmp_path: Path) -> None:
    """`a` is archived before its table is written; that waits for the check, and the check for what is read then."""

    def extract(name: str) -> dict[str, Any]:
        return {"type": "extract", "method": "fromPostgres", "config": {"table": "t", "registerAs": name}}

    def load(source: str, table: str) -> dict[str, Any]:
        config = {"inputDataFrame": source, "table": table, "mode": "overwrite"}
        return {"type": "load", "method": "toPostgres", "name": f"to_{table}", "config": config}

    compared: dict[str, Any] = {"inputDataFrame": "a", "columns": ["id"], "references": "b"}
    check = {"type": "validate", "method": "referential", "name": "check", "config": compared}
    steps = [extract("a"), load("a", "x"), extract_file("c", "/c.csv"), load("c", "t"), extract("b"), check]
    defs = definitions(tmp_path, CUSTOMER_360, batch("circle", *steps))
    assert "would wait for itself" in node(defs, "broken_configs", "circle").description
    assert defs.resolve_job_def("customer_360")
    compared["onFailure"] = "warn"
    assert definitions(tmp_path, batch("circle", *steps)).resolve_job_def("circle")


def test_lineage_crosses_pipelines(tmp_path: Path) -> None:
    delta = {"type": "load", "method": "toDeltaLake", "config": {"path": "/lake/b"}}
    writer = batch("writer", extract_file("rows", "/in.csv"), delta)
    reader = batch("reader", {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/b"}})
    of_leaf = batch(
        "of-leaf", {"type": "extract", "method": "fromDeltaLake", "config": {"table": "reader.from_delta_lake"}}
    )
    defs = definitions(tmp_path, writer, reader, of_leaf)
    assert node(defs, "reader", "from_delta_lake").parent_keys == {dg.AssetKey(["writer", "to_delta_lake"])}
    assert node(defs, "of_leaf", "from_delta_lake").parent_keys == {dg.AssetKey(["reader", "from_delta_lake"])}


def test_a_job_is_resolved_without_the_other_pipelines(tmp_path: Path) -> None:
    delta = {"type": "load", "method": "toDeltaLake", "config": {"path": "/lake/b"}}
    writer = batch("writer", extract_file("rows", "/in.csv"), delta)
    reader = batch(
        "reader",
        {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/b", "registerAs": "rows"}},
        {"type": "validate", "method": "notNull", "config": {"columns": ["id"]}},
    )
    other = batch("other", extract_file("rows", "/other.csv"))
    job = definitions(tmp_path, writer, reader, other).resolve_job_def("reader")
    looked_at = job.asset_layer.asset_graph.source_asset_graph.get_all_asset_keys()
    # The writer's own input is known by its key alone.
    assert {key.to_user_string() for key in looked_at} == {"writer/rows", "writer/to_delta_lake", "reader/rows"}
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {"reader/rows"}
    assert {key.name for key in job.asset_layer.asset_graph.asset_check_keys} == {"not_null"}


def test_a_validate_step_is_a_blocking_check_for_each_expectation(tmp_path: Path) -> None:
    expectations = {"expectations": {"has_id": "id IS NOT NULL", "positive": "amount > 0"}}
    document = batch(
        "checked",
        extract_file("rows", "/in.csv"),
        {"type": "validate", "method": "expectations", "config": expectations},
    )
    graph = definitions(tmp_path, document).resolve_asset_graph()
    keys = graph.get_check_keys_for_assets({dg.AssetKey(["checked", "rows"])})
    assert {key.name for key in keys} == {"expectations_has_id", "expectations_positive"}
    assert all(graph.get(key).blocking for key in keys)


def test_a_quarantine_is_an_asset_beside_the_rows_that_go_on(tmp_path: Path) -> None:
    step = {
        "type": "validate",
        "method": "notNull",
        "name": "good",
        "config": {"columns": ["id"], "onFailure": "quarantine"},
    }
    document = batch("sorted", extract_file("rows", "/in.csv"), step, transform("filterRows", condition="id > 1"))
    reader = batch(
        "reader", {"type": "extract", "method": "fromDeltaLake", "config": {"table": "sorted.good_quarantine"}}
    )
    defs = definitions(tmp_path, document, reader)
    graph = defs.resolve_asset_graph()
    aside = dg.AssetKey(["sorted", "good_quarantine"])
    assert node(defs, "sorted", "good").parent_keys == {dg.AssetKey(["sorted", "rows"])}
    assert node(defs, *aside.path).parent_keys == {dg.AssetKey(["sorted", "rows"])}
    assert node(defs, "sorted", "filter_rows").parent_keys == {dg.AssetKey(["sorted", "good"])}
    assert node(defs, "reader", "from_delta_lake").parent_keys == {aside}
    (check,) = graph.get_check_keys_for_assets({dg.AssetKey(["sorted", "good"])})
    assert (check.name, graph.get(check).blocking) == ("good", False)
    assert aside in defs.resolve_job_def("sorted").asset_layer.selected_asset_keys


def test_a_check_of_a_stream_names_what_it_compares_with(tmp_path: Path) -> None:
    extract, _, load = EVENT_STREAM["steps"]
    config = {"inputDataFrame": "events", "columns": ["user_id"], "references": "users"}
    known = {"type": "validate", "method": "referential", "name": "known", "config": config}
    read = {**extract, "config": {**extract["config"], "registerAs": "events"}}
    write = {**load, "config": {**load["config"], "inputDataFrame": "events"}}
    steps = [extract_file("users", "/users.csv"), read, known, write]
    defs = definitions(tmp_path, {**EVENT_STREAM, "steps": steps})
    (key,) = (key for key in defs.resolve_asset_graph().asset_check_keys if key.name == "known")
    spec = defs.resolve_asset_graph().get_check_spec(key)
    assert spec.asset_key == dg.AssetKey(["event_stream", "events"])
    assert [dep.asset_key for dep in spec.additional_deps] == [dg.AssetKey(["event_stream", "users"])]


def test_a_stream_has_checks(tmp_path: Path) -> None:
    step = {"type": "validate", "method": "notNull", "config": {"columns": ["id"]}}
    aside = {**step, "name": "good", "config": {"columns": ["id"], "onFailure": "quarantine"}}
    extract, kept, load = EVENT_STREAM["steps"]
    defs = definitions(tmp_path, {**EVENT_STREAM, "steps": [extract, step, aside, kept, load]})
    names = {(key.asset_key.path[-1], key.name) for key in defs.resolve_asset_graph().asset_check_keys}
    assert names == {("from_kafka", "not_null"), ("good", "good"), ("from_kafka", "no_dead_letters")}
    assert node(defs, "event_stream", "good_quarantine").parent_keys == {dg.AssetKey(["event_stream", "from_kafka"])}
    assert not defs.resolve_asset_graph().has(dg.AssetKey(["event_stream", "not_null"]))


@pytest.mark.parametrize(
    ("partitions", "first", "count"),
    [
        ({"type": "hourly", "start": "2024-01-01T00:00", "end": "2024-01-02T00:00"}, "2024-01-01-00:00", 24),
        ({"type": "daily", "start": "2024-01-01", "end": "2024-02-01"}, "2024-01-01", 31),
        ({"type": "weekly", "start": "2024-01-07", "end": "2024-02-04"}, "2024-01-07", 4),
        ({"type": "monthly", "start": "2024-01-01", "end": "2025-01-01"}, "2024-01-01", 12),
        ({"type": "static", "values": ["eu", "us"]}, "eu", 2),
    ],
)
def test_partitions(tmp_path: Path, partitions: dict[str, Any], first: str, count: int) -> None:
    defs = definitions(tmp_path, batch("parted", extract_file("rows", "/in/${partition}.csv"), partitions=partitions))
    keys = node(defs, "parted", "rows").partitions_def.get_partition_keys()
    assert keys[0] == first
    assert len(keys) == count


def test_a_schedule_runs_the_job(tmp_path: Path) -> None:
    document = {**CUSTOMER_360, "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}}
    schedule = definitions(tmp_path, document).resolve_schedule_def("customer_360_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "Europe/Berlin")
    assert schedule.job_name == "customer_360"


def test_a_schedule_runs_a_stream_that_ends(tmp_path: Path) -> None:
    document = copy.deepcopy(EVENT_STREAM)
    document["steps"][-1]["config"]["trigger"] = "availableNow"
    defs = definitions(tmp_path, {**document, "schedule": "0 2 * * *"})
    schedule = defs.resolve_schedule_def("event_stream_schedule")
    assert (schedule.cron_schedule, schedule.job_name) == ("0 2 * * *", "event_stream")


@pytest.mark.parametrize(("automation", "label"), [("eager", "eager"), ("on_cron", "on_cron")])
def test_automation_conditions(tmp_path: Path, automation: str, label: str) -> None:
    document = {**CUSTOMER_360, "automation": automation, "schedule": "0 2 * * *"}
    defs = definitions(tmp_path, document)
    condition = node(defs, "customer_360", "orders").automation_condition
    assert label in condition.get_label()
    has_schedule = [schedule.name for schedule in defs.schedules or ()] == ["customer_360_schedule"]
    assert has_schedule is (automation == "eager"), "with on_cron the schedule says when, and would run it twice"


class Automation:
    """What the automation conditions of one pipeline request, look after look."""

    def __init__(self, defs: dg.Definitions, instance: dg.DagsterInstance, pipeline: str) -> None:
        self._defs, self._instance, self._selection = defs, instance, dg.AssetSelection.groups(pipeline)
        self._cursor: Any = None

    def requested(self, *at: int) -> set[str]:
        result = dg.evaluate_automation_conditions(
            self._defs,
            self._instance,
            asset_selection=self._selection,
            evaluation_time=dt.datetime(*at, tzinfo=dt.UTC),  # type: ignore[misc,arg-type]
            cursor=self._cursor,
        )
        self._cursor = result.cursor
        return {one.key.to_user_string() for one in result.results if one.true_subset.size}


def test_on_cron_does_not_wait_for_what_nobody_looks_at(tmp_path: Path) -> None:
    defs = definitions(tmp_path, {**CUSTOMER_360, "automation": "on_cron", "schedule": "0 2 * * *"})
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as instance:
        automation = Automation(defs, instance, "customer_360")
        assert automation.requested(2024, 5, 1, 1, 59) == set()
        assert automation.requested(2024, 5, 1, 2, 1) == {
            "customer_360/customers",
            "customer_360/orders",
            "customer_360/join_data_frames",
        }
        assert automation.requested(2024, 5, 1, 2, 2) == set()


def test_eager_follows_other_pipelines_beside_what_nobody_looks_at(tmp_path: Path) -> None:
    upstream = batch("raw", extract_file("rows", "/in.csv"))
    joined = transform("union", inputDataFrames=["theirs", "outside"])
    theirs = {"type": "extract", "method": "fromDeltaLake", "config": {"table": "raw.rows", "registerAs": "theirs"}}
    downstream = batch("p", theirs, extract_file("outside", "/in.csv"), joined, automation="eager")
    defs = definitions(tmp_path, upstream, downstream)
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as instance:
        automation = Automation(defs, instance, "p")
        assert automation.requested(2024, 5, 1, 1) == set()
        instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey(["raw", "rows"])))
        assert automation.requested(2024, 5, 1, 2) == {"p/theirs", "p/union"}


def test_on_cron_does_not_wait_for_dead_letters(tmp_path: Path) -> None:
    table = {"table": "event_stream.from_kafka_dead_letters", "registerAs": "broken"}
    broken = {"type": "extract", "method": "fromDeltaLake", "config": table}
    late = transform("filterRows", condition="offset > 9", registerAs="late")
    defs = definitions(tmp_path, EVENT_STREAM, batch("p", broken, late, automation="on_cron", schedule="0 2 * * *"))
    letters = dg.AssetKey(["event_stream", "from_kafka_dead_letters"])
    assert letters in node(defs, "p", "broken").parent_keys
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as instance:
        automation = Automation(defs, instance, "p")
        assert automation.requested(2024, 5, 1, 1, 59) == set()
        assert automation.requested(2024, 5, 1, 2, 1) == {"p/broken", "p/late"}


@pytest.mark.parametrize(
    ("theirs", "ours", "all_of_them"),
    [
        ({"type": "daily", "start": "2024-01-01", "timezone": "Europe/Berlin"}, {"type": "daily"}, True),
        ({"type": "daily", "start": "2024-01-01"}, {"type": "hourly", "timezone": "UTC"}, False),
        ({"type": "static", "values": ["a", "b"]}, {"type": "daily"}, True),
    ],
)
def test_a_table_of_other_partitions_is_read_as_a_whole(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], all_of_them: bool
) -> None:
    read = {"type": "extract", "method": "fromDeltaLake", "config": {"table": "raw.rows", "registerAs": "theirs"}}
    upstream = batch("raw", extract_file("rows", "/in.csv"), partitions={**theirs})
    downstream = batch("p", read, partitions={"start": "2024-01-02", **ours})
    defs = definitions(tmp_path, upstream, downstream)
    graph, key = defs.resolve_asset_graph(), dg.AssetKey(["p", "theirs"])
    mapping = graph.get_partition_mapping(key, dg.AssetKey(["raw", "rows"]))
    assert isinstance(mapping, dg.AllPartitionMapping) is all_of_them
    here, there = graph.get(key).partitions_def, graph.get(dg.AssetKey(["raw", "rows"])).partitions_def
    assert here is not None
    assert there is not None
    with dg.partition_loading_context(effective_dt=dt.datetime(2024, 1, 4, tzinfo=dt.UTC)):
        last = here.subset_with_partition_keys([here.get_partition_keys()[-1]])
        found = mapping.get_upstream_mapped_partitions_result_for_partitions(last, here, there).partitions_subset
        wanted = there.get_partition_keys() if all_of_them else ["2024-01-03"]
    assert sorted(found.get_partition_keys()) == wanted


def test_what_dagster_refuses_in_names_is_refused_in_configs() -> None:
    from dagster._core.definitions.partitions.utils.base import INVALID_PARTITION_SUBSTRINGS
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    for name in sorted(DISALLOWED_NAMES):
        with pytest.raises(ValueError, match="reserved"):
            PipelineConfig.model_validate(batch(name, extract_file("rows", "/in.csv")))
    for text in INVALID_PARTITION_SUBSTRINGS:
        with pytest.raises(ValueError, match="no key of a partition"):
            Partitions.model_validate({"type": "static", "values": [f"a{text}b"]})


@pytest.mark.parametrize(
    ("cron", "comes"),
    [
        ("0 0 31 4 *", False), ("0 0 31 2,4 *", False), ("0 0 30,31 2 *", False), ("0 0 31 4 1", False),
        ("0 0 8 * 1#1", False), ("0 0 29 2 *", True), ("0 0 30 2,4 *", True), ("0 0 31 * 1", True),
        ("0 0 l 2 *", True), ("0 0 29 2 1", True), ("0 0 29 2 1#5", True), ("@daily", True),
    ],
)  # fmt: skip
def test_a_time_that_dagster_does_not_find_is_refused(cron: str, comes: bool) -> None:
    now = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
    with nullcontext() if comes else pytest.raises(CroniterBadDateError):
        get_latest_completed_cron_tick(cron, now, "UTC")
        get_next_cron_tick(cron, now, "UTC")
    with nullcontext() if comes else pytest.raises(ValueError, match="names a day that never comes"):
        Schedule(cron=cron)


def test_broken_configs_of_like_names_are_all_shown(tmp_path: Path) -> None:
    for file in ("a-b.json", "a-b-2.json", "a_b.json"):
        write_config(tmp_path, "{", file)
    defs = definitions(tmp_path, batch("good", extract_file("rows", "/in.csv")))
    shown = [spec.metadata["file"] for spec in defs.resolve_all_asset_specs() if spec.group_name == "broken_configs"]
    assert sorted(shown) == ["a-b-2.json", "a-b.json", "a_b.json"]
    assert node(defs, "good", "rows")


def test_a_pipeline_that_dagster_refuses_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever a config's own checks do not know of: here they are taken away.
    write_config(tmp_path, batch("bad", extract_file("rows", "/in.csv"), schedule="0 2 * * *"))
    monkeypatch.setattr(
        PipelineConfig,
        "cron_schedule",
        property(lambda self: Schedule.model_construct(cron="never") if self.schedule else None),
    )
    defs = definitions(tmp_path, batch("good", extract_file("rows", "/in.csv")))
    assert node(defs, "good", "rows")
    assert "invalid cron schedule" in node(defs, "broken_configs", "bad").description


@pytest.mark.parametrize("name", ["executor", "log_format", "log_level"])
def test_a_setting_that_is_none_of_its_choices_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PIPELINE_ASSETS_{name.upper()} is 'multi': expected '"):
        build_definitions(Settings(configs=tmp_path, **{name: "multi"}))
