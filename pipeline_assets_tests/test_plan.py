"""The planner: who takes whose DataFrame, what is a view and what a table, and what can't be planned."""

from __future__ import annotations

import copy
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets import planned_folder
from pipeline_assets.config_loading import BrokenConfig, Pipeline, load_file, load_folder
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.links import left_out, link_pipelines
from pipeline_assets.plan import PipelinePlan, Role
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.planner import plan_pipeline
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    load,
    transform,
    write_config,
)

DELTA = {"type": "load", "method": "toDeltaLake"}


def planned(folder: Path, document: dict[str, Any]) -> PipelinePlan:
    return plan_pipeline(load_file(write_config(folder, document), {}))


def issues_of(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        planned(folder, document)
    return {issue.pointer: issue.message for issue in caught.value.issues}


def all_issues_of(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    write_config(folder, document, "p.json")
    ((broken),) = plan_folder(load_folder(folder, {})).broken
    return {issue.pointer: issue.message for issue in broken.error.issues}


class TestAllAtOnce:
    """A wrong name of a DataFrame is told beside what is wrong inside of other steps."""

    def test_what_could_be_read(self, tmp_path: Path) -> None:
        document = batch(
            "p",
            extract_file("orders", "/orders.csv"),
            extract_file("customers", "/customers.csv"),
            transform("filterRows", inputDataFrame="order", condition="x > 1"),
            transform("joinDataFrames", inputDataFrames=["orders", "customers"], keys=["id"], joinType="iner"),
            transform("selectColumns", inputDataFrame="join_data_frames", columns=["a"]),
            transform("selectColumns", inputDataFrame="late", columns=["a"]),
            transform("sql", query="SELECT 1", registerAs="late"),
            {**DELTA, "config": {"inputDataFrame": "unread", "path": "/out", "mode": "overwritee"}},
            {**DELTA, "config": {"inputDataFrame": "late", "path": "/out"}},
            {**DELTA, "config": {"inputDataFrame": "to_delta_lake", "path": "/other"}},
        )
        del document["steps"][1]["config"]["path"]
        found = all_issues_of(tmp_path, document)
        assert list(found) == [
            "/steps/1/config",
            "/steps/2/config/inputDataFrame",
            "/steps/3/config/joinType",
            "/steps/5/config/inputDataFrame",
            "/steps/7/config/mode",
            "/steps/9/config/inputDataFrame",
        ]
        assert found["/steps/2/config/inputDataFrame"] == (
            "there is no DataFrame 'order', did you mean 'orders'? (DataFrames here: customers, orders)"
        )
        assert "is made by step 6, which runs after this one" in found["/steps/5/config/inputDataFrame"]

    @pytest.mark.parametrize(
        "wrong", [{"mode": "bach"}, {"name": None}, {"no": "such key"}], ids=lambda wrong: next(iter(wrong))
    )
    def test_when_what_is_around_the_steps_is_wrong(self, wrong: dict[str, Any], tmp_path: Path) -> None:
        steps = (extract_file("orders", "/orders.csv"), transform("dropDuplicates", inputDataFrame="order"))
        found = all_issues_of(tmp_path, {**batch("p", *steps), **wrong})
        assert list(found) == [f"/{next(iter(wrong))}", "/steps/1/config/inputDataFrame"]

    @pytest.mark.parametrize(
        "step",
        [
            {"type": "validate", "method": "expectations", "name": "good", "config": {"onFailure": "quarantine"}},
            {"type": "transform", "method": "dropDuplicate"},
            {"type": "transform", "method": ["dropDuplicates"]},
            {"type": "transform"},
            "dropDuplicates",
        ],
        ids=str,
    )
    def test_nothing_is_told_of_what_may_be_right(self, step: Any, tmp_path: Path) -> None:
        steps = (extract_file("rows", "/rows.csv"), step, transform("dropDuplicates", inputDataFrame="good"))
        assert not [key for key in all_issues_of(tmp_path, batch("p", *steps)) if key.startswith("/steps/2")]


def test_customer_360(tmp_path: Path) -> None:
    steps = planned(tmp_path, CUSTOMER_360).steps
    assert [step.name for step in steps] == ["customers", "orders", "join_data_frames"]
    assert [step.role for step in steps] == [Role.VIEW, Role.VIEW, Role.TABLE]
    assert [step.inputs for step in steps] == [(), (), (0, 1)]


def test_steps_without_names_follow_one_another(tmp_path: Path) -> None:
    steps = planned(tmp_path, OPTIMIZED_AGGREGATION).steps
    assert [step.name for step in steps] == ["from_s3", "repartition_by_columns", "aggregate_data", "coalesce"]
    assert [step.inputs for step in steps] == [(), (0,), (1,), (2,)]
    assert [step.role for step in steps] == [Role.VIEW, Role.VIEW, Role.VIEW, Role.TABLE]


def test_loads_checks_and_cache_control_leave_the_primary_as_it_is(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("rows", "/in.csv"),
        transform("cache"),
        {"type": "validate", "method": "expectations", "config": {"expectations": {"has_id": "id IS NOT NULL"}}},
        {**DELTA, "config": {"path": "/out"}},
        transform("filterRows", condition="id > 1"),
        transform("uncacheAll"),
    )
    steps = planned(tmp_path, document).steps
    assert [step.role for step in steps] == [
        Role.VIEW,
        Role.CONTROL,
        Role.CHECK,
        Role.LOAD,
        Role.TABLE,
        Role.CONTROL,
    ]
    assert steps[4].inputs == (0,)
    assert steps[4].after == (1,), "what takes a cached DataFrame runs after the caching"
    assert steps[5].after == (0, 1, 2, 3, 4), "uncaching comes last"


def test_names_made_from_methods_are_numbered(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("rows", "/in.csv"),
        transform("filterRows", condition="a"),
        transform("filterRows", condition="b"),
    )
    assert [step.name for step in planned(tmp_path, document).steps] == ["rows", "filter_rows", "filter_rows_2"]


def test_materialized_overrules(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("rows", "/in.csv", materialized="table"),
        transform("filterRows", condition="a", materialized="view"),
    )
    assert [step.role for step in planned(tmp_path, document).steps] == [Role.TABLE, Role.VIEW]


def test_sql_takes_the_dataframes_it_names(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("a", "/a.csv"),
        extract_file("b", "/b.csv"),
        extract_file("c", "/c.csv"),
        transform("sql", query="WITH x AS (SELECT * FROM c) SELECT * FROM x JOIN a ON x.id = a.id"),
    )
    assert set(planned(tmp_path, document).steps[3].inputs) == {0, 2}


@pytest.mark.parametrize(
    ("steps", "pointer", "expected"),
    [
        ([transform("filterRows", condition="a")], "/steps/0", "start with an extract"),
        (
            [extract_file("rows", "/a.csv"), extract_file("rows", "/b.csv")],
            "/steps/1/config/registerAs",
            "names step 0 already",
        ),
        (
            [extract_file("customers", "/a.csv"), transform("filterRows", condition="a", inputDataFrame="custmers")],
            "/steps/1/config/inputDataFrame",
            "did you mean 'customers'",
        ),
        (
            [
                extract_file("a", "/a.csv"),
                transform("filterRows", condition="x", inputDataFrame="late"),
                transform("filterRows", condition="x", inputDataFrame="a", registerAs="late"),
            ],
            "/steps/1/config/inputDataFrame",
            "move it before step 1",
        ),
        (
            [
                extract_file("a", "/a.csv"),
                transform("filterRows", condition="x", inputDataFrame="two", registerAs="one"),
                transform("filterRows", condition="x", inputDataFrame="one", registerAs="two"),
            ],
            "/steps/1/config/inputDataFrame",
            "a cycle of DataFrames: one <- two <- one",
        ),
        (
            [extract_file("a", "/a.csv"), transform("sql", query="SELECT * FROM b")],
            "/steps/1/config/query",
            "there is no DataFrame 'b'",
        ),
    ],
)
def test_graphs_that_cannot_be(tmp_path: Path, steps: list[dict[str, Any]], pointer: str, expected: str) -> None:
    issues = issues_of(tmp_path, batch("p", *steps))
    assert pointer in issues, issues
    assert expected in issues[pointer]


def test_a_long_pipeline_in_reverse_order(tmp_path: Path) -> None:
    count = 1_100
    later = [
        transform("filterRows", condition="x", inputDataFrame=f"f{number + 1}", registerAs=f"f{number}")
        for number in range(count - 1)
    ]
    steps = [extract_file("a", "/a.csv"), *later, extract_file(f"f{count - 1}", "/b.csv")]
    issues = issues_of(tmp_path, batch("p", *steps))
    assert "move it before step 1" in issues["/steps/1/config/inputDataFrame"]


@pytest.mark.parametrize(
    "at", ["pipeline_assets.config_loading.load_file", "pipeline_assets.planned_folder.plan_pipeline"]
)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RecursionError(), "is nested too deeply: break its longest texts up"),
        (
            KeyError("rows"),
            "can't be looked at, by a mistake in pipeline-assets and not in the file: KeyError: 'rows'",
        ),
    ],
)
def test_what_the_program_fails_on_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, error: Exception, told: str
) -> None:
    read = {"pipeline_assets.config_loading.load_file": load_file}.get(at, plan_pipeline)

    def failing(first: Any, *more: Any) -> Any:
        if "pit" in str(first):
            raise error
        return read(first, *more)

    write_config(tmp_path, batch("pit", extract_file("rows", "/a.csv")))
    write_config(tmp_path, batch("other", extract_file("rows", "/a.csv")))
    monkeypatch.setattr(at, failing)
    folder = plan_folder(load_folder(tmp_path, {}))
    assert [plan.name for plan in folder.plans] == ["other"]
    ((broken),) = folder.broken
    assert (broken.file, broken.name) == ("pit.json", "pit")
    assert issues(broken) == {"": told}


def test_a_key_that_the_program_fails_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(pipeline: Pipeline) -> PipelinePlan:
        if pipeline.methods[0].model_dump()["path"] == "/eu.csv":
            raise KeyError("rows")
        return plan_pipeline(pipeline)

    rows = extract_file("rows", "/${partition}.csv")
    write_config(tmp_path, batch("by-place", rows, partitions={"type": "static", "values": ["eu"]}))
    monkeypatch.setattr("pipeline_assets.planned_folder.plan_pipeline", failing)
    ((broken),) = plan_folder(load_folder(tmp_path, {})).broken
    assert "KeyError: 'rows'" in issues(broken)["/partitions/values/0"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT * FROM orders |> LIMIT 3", None),
        ("SELECT map('a',", None),
        ("SELECT * FROM spark_catalog..orders", None),
        ("SELECT * FROM nowhere |> LIMIT 3", "there is no DataFrame 'nowhere'"),
    ],
)
def test_sql_that_sqlglot_fails_on_leaves_the_others(tmp_path: Path, query: str, told: str | None) -> None:
    rows = extract_file("orders", "/o.csv")
    table = {"type": "extract", "method": "fromPostgres", "config": {"query": "SELECT * FROM public..orders"}}
    write_config(tmp_path, batch("odd", table, rows, transform("sql", query=query)))
    write_config(tmp_path, batch("other", rows))
    folder = plan_folder(load_folder(tmp_path, {}))
    assert [plan.name for plan in folder.plans] == (["other"] if told else ["odd", "other"])
    assert [told in issues(broken)["/steps/2/config/query"] for broken in folder.broken] == [True] * bool(told)


def test_an_unknown_dataframe_lists_those_there_are(tmp_path: Path) -> None:
    document = copy.deepcopy(CUSTOMER_360)
    document["steps"][2]["config"]["inputDataFrames"] = ["customers", "order"]
    message = issues_of(tmp_path, document)["/steps/2/config/inputDataFrames/1"]
    assert "did you mean 'orders'" in message
    assert "DataFrames here: customers, orders" in message


def test_code_versions_follow_what_is_computed(tmp_path: Path) -> None:
    def versions(document: dict[str, Any]) -> list[str]:
        return [step.code_version for step in planned(tmp_path, document).steps]

    before = versions(CUSTOMER_360)
    document = copy.deepcopy(CUSTOMER_360)
    assert versions({**document, "description": "new words", "owners": ["team:data"]}) == before
    assert not set(before) & set(versions({**document, "sparkConf": {"spark.sql.ansi.enabled": False}}))
    document["steps"][1]["config"]["path"] = "s3a://data/new/*.parquet"
    after = versions(document)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] != before[2], "a step is out of date when what it depends on is"


def test_code_versions_follow_the_order_of_columns_and_nothing_that_leaves_the_data_alone(tmp_path: Path) -> None:
    def version(partitions: dict[str, Any], **config: Any) -> str:
        made = transform("aggregateData", groupBy=["id"], **config)
        document = batch("p", extract_file("rows", "/in.csv"), made, partitions=partitions)
        return planned(tmp_path, document).steps[-1].code_version

    sums = {"least": "min(x)", "most": "max(x)"}
    days = {"type": "daily", "start": "2024-01-01"}
    before = version(days, aggregations=sums)
    assert version(days, aggregations=dict(reversed(sums.items()))) != before
    assert version({**days, "column": "day"}, aggregations=sums) != before
    assert version(days, aggregations=sums, cache=True) == before
    assert version({**days, "start": "2023-01-01", "end": "2025-01-01"}, aggregations=sums) == before


STREAMING_KEYS: list[tuple[dict[str, Any], str]] = [
    ({**DELTA, "config": {"path": "/t", "outputMode": "update", "mergeKeys": ["id"]}}, "'outputMode': of streaming"),
    (
        {**DELTA, "config": {"path": "/t", "trigger": "1 second", "checkpointLocation": "/c"}},
        "'checkpointLocation' and 'trigger': of streaming pipelines alone, leave them out",
    ),
    ({"type": "load", "method": "toKafka", "config": {"topic": "t", "trigger": "once"}}, "'trigger'"),
    ({"type": "extract", "method": "fromDeltaLake", "config": {"path": "/t", "streaming": True}}, "'streaming'"),
    (
        {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/t", "skipChangeCommits": True}},
        "'skipChangeCommits'",
    ),
    (
        {"type": "extract", "method": "fromKafka", "config": {"topic": "t", "maxOffsetsPerTrigger": 5}},
        "'maxOffsetsPerTrigger'",
    ),
    ({"type": "extract", "method": "fromKafka", "config": {"topic": "t", "deadLetterPath": "/d"}}, "'deadLetterPath'"),
    ({"type": "extract", "method": "fromKafka", "config": {"topic": "t", "missingTopic": "wait"}}, "leave it out"),
    ({"type": "extract", "method": "fromKafka", "config": {"topic": "t", "startingOffsets": "latest"}}, "'earliest'"),
]


@pytest.mark.parametrize(("step", "message"), STREAMING_KEYS)
def test_what_means_nothing_in_a_batch_is_refused_there(tmp_path: Path, step: dict[str, Any], message: str) -> None:
    issues = issues_of(tmp_path, batch("p", extract_file("rows", "/in.csv"), step))
    assert message in issues["/steps/1"]


def test_uncaching_what_nothing_caches_is_refused(tmp_path: Path) -> None:
    rows = {**extract_file("rows", "/in.csv"), "name": "read"}
    uncache = transform("uncache", dataFrames=["rows"])
    issues = issues_of(tmp_path, batch("p", rows, uncache))
    assert "no step before this one caches DataFrame 'read'" in issues["/steps/1/config/dataFrames/0"]
    for caching in (transform("cache", dataFrames=["read"]), transform("cache")):
        assert len(planned(tmp_path, batch("p", rows, caching, uncache)).steps) == 3
    cached = {**rows, "config": {**rows["config"], "cache": True}}
    assert len(planned(tmp_path, batch("p", cached, transform("uncache", dataFrames=["read"]))).steps) == 2


@pytest.mark.parametrize("config", [{"replaceWhere": "id > 3"}, {"partitionOverwriteMode": "dynamic"}])
def test_what_a_run_for_a_partition_would_leave_out(tmp_path: Path, config: dict[str, str]) -> None:
    target = {**DELTA, "config": {"path": "/t", "mode": "overwrite", **config}}
    document = batch("p", extract_file("rows", "/a.csv"), target)
    planned(tmp_path, document)
    with pytest.raises(ConfigurationError, match=f"'{next(iter(config))}' is for pipelines without partitions"):
        planned(tmp_path, {**document, "partitions": {"type": "daily", "start": "2024-01-01"}})


@pytest.mark.parametrize(
    ("path", "values", "pairs"),
    [
        ("/out/${partition}", ["eu", "eu/north", "eu-west", "europe"], [("eu", "eu/north")]),
        ("/out/${partition}", ["a/b/c", "x", "a/d", "a"], [("a", "a/b/c"), ("a", "a/d")]),
        ("s3://data/${partition}/", ["eu//north", "eu-west", "eu"], [("eu", "eu//north")]),
        ("/out/${partition}", ["eu", "eu/"], [("eu", "eu/")]),
        ("/out/${partition}/of", ["eu", "eu/of", "eu/north"], [("eu", "eu/of")]),
        ("/out/day=${partition}", ["eu/north", "us/north"], []),
        ("/out", ["eu", "eu/north"], []),
        ("/out/$${partition}", ["eu", "eu/north"], []),
    ],
)
def test_a_folder_of_one_partition_in_that_of_another(
    tmp_path: Path, path: str, values: list[str], pairs: list[tuple[str, str]]
) -> None:
    document = batch("p", extract_file("rows", "/a.csv"), load("toS3", path=path))
    document["partitions"] = {"type": "static", "values": values}
    if not pairs:
        planned(tmp_path, document)
        return
    with pytest.raises(ConfigurationError) as caught:
        planned(tmp_path, document)
    assert {issue.pointer for issue in caught.value.issues} == {"/steps/1/config/path"}
    for (outer, inner), issue in zip(pairs, caught.value.issues, strict=True):
        told = f"a run for partition {outer!r}, .* would delete those of partition {inner!r} at"
        assert re.match(told, issue.message)


def test_keys_of_partitions_that_a_run_could_not_use(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("rows", "/data/${partition}.csv"),
        transform("sql", query="SELECT * FROM rows WHERE region = '${partition}'"),
        partitions={"type": "static", "values": ["EMEA", "Côte d'Ivoire", "../all", "a b"]},
    )
    issues = all_issues_of(tmp_path, document)
    assert list(issues) == ["/partitions/values/1", "/partitions/values/2"]
    assert "it makes step 1 take other DataFrames" in issues["/partitions/values/1"]
    assert "it makes /steps/0/config/path wrong: " in issues["/partitions/values/2"]
    assert "contains '..'" in issues["/partitions/values/2"]
    document["partitions"]["values"] = ["EMEA", "Ivory Coast"]
    planned(tmp_path, document)
    assert plan_folder(load_folder(tmp_path, {})).broken == ()


def test_keys_of_partitions_that_no_step_names(tmp_path: Path) -> None:
    document = batch("p", extract_file("rows", "/data/in.csv"))
    document["partitions"] = {"type": "static", "values": ["../all", "Côte d'Ivoire"]}
    write_config(tmp_path, document)
    assert plan_folder(load_folder(tmp_path, {})).broken == ()


def test_of_many_keys_of_partitions_few_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[PipelinePlan] = []

    def counted(pipeline: Pipeline) -> PipelinePlan:
        plans.append(plan_pipeline(pipeline))
        return plans[-1]

    monkeypatch.setattr(planned_folder, "plan_pipeline", counted)
    document = batch("p", extract_file("rows", "/data/${partition}.csv"))
    document["partitions"] = {"type": "static", "values": [str(uuid.uuid4()) for _ in range(500)]}
    write_config(tmp_path, document)
    assert plan_folder(load_folder(tmp_path, {})).broken == ()
    assert len(plans) <= 1 + 20


def write_pipeline(folder: Path, name: str, reads: str, writes: str) -> None:
    write_config(
        folder,
        batch(
            name,
            {"type": "extract", "method": "fromDeltaLake", "config": {"path": reads}},
            {**DELTA, "config": {"path": writes}},
        ),
    )


def test_a_table_that_one_pipeline_loads_and_another_reads_connects_them(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "first", "/a", "/b")
    write_pipeline(tmp_path, "second", "/b", "/c")
    plans = plan_folder(load_folder(tmp_path, {})).plans
    links = link_pipelines(plans)
    assert set(links) == {("second", 0)}
    [[link]] = links["second", 0].values()
    assert (link.upstream, link.producer) == ("first", 1)


@pytest.mark.parametrize(
    ("written", "read", "linked"),
    [
        ("gs://staging/orders", "gs://staging/orders/", True),
        ("gs://staging/orders", "gs://production/orders", False),
        ("abfss://a@store/orders", "abfss://b@store/orders", False),
        ("hdfs://host/orders", "/orders", False),
        ("/orders", "file:/orders", True),
    ],
)
def test_a_table_is_where_its_file_system_is(tmp_path: Path, written: str, read: str, *, linked: bool) -> None:
    table = extract_file("rows", "/in.csv")
    writer = planned(tmp_path, batch("writer", table, {**DELTA, "config": {"path": written}}))
    reader = {"type": "extract", "method": "fromDeltaLake", "config": {"path": read}}
    plans = [writer, planned(tmp_path, batch("reader", reader))]
    assert (("reader", 0) in link_pipelines(plans)) is linked


def test_pipelines_that_read_one_another_do_not_make_a_circle(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "first", "/a", "/b")
    write_pipeline(tmp_path, "second", "/b", "/a")
    write_pipeline(tmp_path, "itself", "/x", "/x")
    plans = plan_folder(load_folder(tmp_path, {})).plans
    links = link_pipelines(plans)
    assert len(links) == 1, "one direction stays an external asset"
    assert ("itself", 0) not in links
    [(plan, step, link)] = left_out(plans, links)
    assert {(plan.name, link.upstream), (next(iter(links))[0], plan.name)} == {
        ("first", "second"),
        ("second", "first"),
    }
    assert step.index == 0


def test_a_step_that_reads_what_its_pipeline_has_loaded_comes_after_the_load(tmp_path: Path) -> None:
    document = batch(
        "p",
        extract_file("rows", "/in.csv"),
        {**DELTA, "config": {"path": "/lake/t"}},
        {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/t"}},
    )
    plan = planned(tmp_path, document)
    [[link]] = link_pipelines([plan])["p", 2].values()
    assert (link.upstream, link.producer) == ("p", 1)
    assert [step.index for step in plan.writers_before(plan.steps[2])] == [1]


@pytest.mark.parametrize(
    ("writes", "reads", "after"),
    [
        ("/out", "/out/day=2024-01-01/*.parquet", True),
        ("/out", "/out/part-1.parquet", True),
        ("/out/orders", "/out/*/new.parquet", True),
        ("/out/orders", "/out", True),
        ("/out/orders", "/outer/orders.parquet", False),
        ("/out/orders", "/out/customers/*.parquet", False),
    ],
)
def test_a_part_of_what_its_pipeline_has_loaded_comes_after_the_load(
    tmp_path: Path, writes: str, reads: str, after: bool
) -> None:
    plan = planned(
        tmp_path,
        batch(
            "p",
            extract_file("rows", "/in.csv"),
            {"type": "load", "method": "toS3", "config": {"path": f"s3a://data{writes}"}},
            {"type": "extract", "method": "fromS3", "config": {"path": f"s3a://data{reads}", "format": "parquet"}},
        ),
    )
    assert [step.index for step in plan.writers_before(plan.steps[2])] == [1] * after
    found = [(link.upstream, link.producer) for links in link_pipelines([plan]).values() for (link,) in links.values()]
    assert found == [("p", 1)] * after


@pytest.mark.parametrize(
    ("table", "files", "same"),
    [
        ("/lake/t", "/lake/t", True),
        ("/lake/t", "/lake/t/part-*.parquet", True),
        ("/lake/t", "/lake/*.parquet", False),
        ("/lake/t", "/lake/t2", False),
        ("s3a://lake/t", "s3://lake/t/day=1/", True),
        ("s3a://lake/t", "/lake/t", False),
        ("gs://lake/t", "gs://lake/t", True),
    ],
)
def test_files_in_the_folder_of_a_table_are_its_data(tmp_path: Path, table: str, files: str, *, same: bool) -> None:
    method = "fromS3" if files.startswith("s3") else "fromFile"
    document = batch(
        "p",
        extract_file("rows", "/in.csv"),
        {**DELTA, "config": {"path": table}},
        {"type": "extract", "method": method, "config": {"path": files, "format": "parquet"}},
    )
    plan = planned(tmp_path, document)
    assert [step.index for step in plan.writers_before(plan.steps[2])] == ([1] if same else [])
    assert (("p", 2) in link_pipelines([plan])) is same


def test_files_beside_those_of_a_table_come_after_it(tmp_path: Path) -> None:
    delta = {**DELTA, "config": {"path": "/lake/t"}}
    replace = load("toS3", path="/lake/t")
    plan = planned(tmp_path, batch("p", extract_file("rows", "/in.csv"), delta, replace))
    assert [step.index for step in plan.waits_for(plan.steps[2])] == [1]
    aside = quarantine(quarantinePath="/lake/t")
    issues = issues_of(tmp_path, batch("p", extract_file("rows", "/in.csv"), aside, replace))
    assert "step 2 writes 'to_s3' there" in issues["/steps/1/config/quarantinePath"]


def test_each_name_is_used_once_whichever_key_gives_it(tmp_path: Path) -> None:
    first = {**extract_file("rows", "/in.csv"), "name": "first"}
    cases = {
        "/steps/1/config/registerAs": [{**extract_file("rows", "/in.csv"), "name": "second"}],
        "/steps/1/name": [{**extract_file("others", "/in.csv"), "name": "Rows"}],
        "/steps/2/config/registerAs": [extract_file("a", "/in.csv"), extract_file("A", "/in.csv")],
    }
    for at, steps in cases.items():
        issues = issues_of(tmp_path, batch("p", first, *steps))
        assert list(issues) == [at]
        assert "each name is used once" in issues[at]


def test_a_step_may_be_called_what_its_dataframe_is_called(tmp_path: Path) -> None:
    plan = planned(tmp_path, batch("p", {**extract_file("rows", "/in.csv"), "name": "rows"}))
    assert [step.name for step in plan.steps] == ["rows"]


def referential(checked: str, references: str, **config: Any) -> dict[str, Any]:
    more = {"inputDataFrame": checked, "columns": ["id"], "references": references, **config}
    return {"type": "validate", "method": "referential", "config": more}


def test_checks_that_would_wait_for_one_another_are_refused(tmp_path: Path) -> None:
    orders, customers = extract_file("orders", "/o.csv"), extract_file("customers", "/c.csv")
    made = transform("filterRows", inputDataFrame="customers", condition="true", registerAs="known")
    circles = [
        [orders, customers, referential("orders", "customers"), referential("customers", "orders")],
        # known is made of customers, which wait for the check that orders are among them.
        [orders, customers, made, referential("orders", "known"), referential("customers", "orders")],
    ]
    for steps in circles:
        issues = issues_of(tmp_path, batch("p", *steps))
        assert list(issues) == [f"/steps/{len(steps) - 1}/config/references"]
        assert "this check would wait for itself (" in issues[f"/steps/{len(steps) - 1}/config/references"]
    told = [*circles[0][:-1], referential("customers", "orders", onFailure="warn")]
    assert planned(tmp_path, batch("p", *told)).steps[-1].role is Role.CHECK
    both = [orders, customers, referential("orders", "customers"), referential("orders", "customers", columns=["x"])]
    assert len(planned(tmp_path, batch("p", *both)).steps) == 4


def event_stream(name: str, checkpoint: str, connection: str = "default") -> dict[str, Any]:
    document = copy.deepcopy(EVENT_STREAM)
    document["name"] = name
    document["steps"][2]["config"] |= {"checkpointLocation": checkpoint, "checkpointConnection": connection}
    return document


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/c/one", "/c//one/"),
        ("s3://lake/c/one", "s3a://lake/c/one/"),
        ("c/one", "./c/one"),
        ("//c/one", "/c/one"),
        ("file:/c/one", "/c/one"),
        ("s3a://lake", "s3://lake//"),
    ],
)
def test_pipelines_with_one_checkpoint_are_all_refused(tmp_path: Path, first: str, second: str) -> None:
    write_config(tmp_path, event_stream("one", first))
    write_config(tmp_path, event_stream("copy", second))
    write_config(tmp_path, event_stream("other", f"{first}-2"))
    folder = plan_folder(load_folder(tmp_path, {}))
    assert [plan.name for plan in folder.plans] == ["other"]
    found = {broken.file: broken.error.issues for broken in folder.broken}
    assert {file: [issue.pointer for issue in issues] for file, issues in found.items()} == {
        name: ["/steps/2/config/checkpointLocation"] for name in ("one.json", "copy.json")
    }
    assert "the checkpoint of step 2 of one.json too" in found["copy.json"][0].message
    assert "the checkpoint of step 2 of copy.json too" in found["one.json"][0].message


def test_checkpoints_of_one_name_on_two_services_are_two(tmp_path: Path) -> None:
    write_config(tmp_path, event_stream("one", "s3a://lake/c"))
    write_config(tmp_path, event_stream("two", "s3a://lake/c", connection="elsewhere"))
    assert plan_folder(load_folder(tmp_path, {})).broken == ()


def quarantine(**config: Any) -> dict[str, Any]:
    config = {"columns": ["id"], "onFailure": "quarantine", **config}
    return {"type": "validate", "method": "notNull", "name": "good", "config": config}


def read_s3(name: str, path: str, **config: Any) -> dict[str, Any]:
    return {"type": "extract", "method": "fromS3", "config": {"path": path, "registerAs": name, **config}}


ROWS = read_s3("rows", "s3a://data/in/*.csv", connection="old")


@pytest.mark.parametrize(
    ("steps", "place", "first"),
    [
        ([ROWS, read_s3("more", "s3://data/more.csv", connection="new")], "/steps/1/config/connection", "old"),
        (
            [ROWS, read_s3("more", "s3a://other/x.csv"), load("toS3", path="s3a://data/out")],
            "/steps/2/config/connection",
            "old",
        ),
        ([ROWS, load("toDeltaLake", path="s3n://data/table", connection="new")], "/steps/1/config/connection", "old"),
        (
            [ROWS, {"type": "extract", "method": "fromDeltaLake", "config": {"path": "s3a://data/t"}}],
            "/steps/1/config/connection",
            "old",
        ),
        ([ROWS, quarantine(quarantinePath="s3a://data/bad")], "/steps/1/config/quarantinePath", "old"),
        (
            [
                read_s3("rows", "s3a://data/in.csv"),
                {**quarantine(quarantinePath="s3a://data/bad"), "name": "one"},
                load("toS3", path="s3a://data/out", connection="old"),
            ],
            "/steps/2/config/connection",
            "default",
        ),
    ],
)
def test_a_bucket_has_one_connection(tmp_path: Path, steps: list[dict[str, Any]], place: str, first: str) -> None:
    issues = issues_of(tmp_path, batch("p", *steps))
    assert list(issues) == [place]
    assert f"bucket 'data' is opened by connection {first!r} in step 0, and here by " in issues[place]


def test_a_bucket_of_a_stream_has_one_connection(tmp_path: Path) -> None:
    document = event_stream("p", "s3a://lake/c", connection="elsewhere")
    document["steps"][2]["config"]["path"] = "s3a://lake/t"
    document["steps"][0]["config"]["deadLetterPath"] = "s3a://data/letters"
    expected = "bucket 'lake' is opened by connection 'default' in step 2, and here by 'elsewhere'"
    issues = issues_of(tmp_path, document)
    assert list(issues) == ["/steps/2/config/checkpointConnection"]
    assert expected in issues["/steps/2/config/checkpointConnection"]
    document["steps"][2]["config"] |= {"connection": "elsewhere", "path": "s3a://data/t", "checkpointLocation": "/c"}
    assert list(issues_of(tmp_path, document)) == ["/steps/2/config/connection"]


def test_two_buckets_have_two_connections(tmp_path: Path) -> None:
    """And so has what is no bucket: a database may be called like one."""
    steps = (
        ROWS,
        read_s3("more", "s3a://data2/in/*.csv", connection="new"),
        read_s3("again", "s3a://data/again.csv", connection="old"),
        {"type": "extract", "method": "fromPostgres", "config": {"table": "data", "registerAs": "table"}},
        load("toDeltaLake", path="/data/out", connection="new"),
    )
    assert len(planned(tmp_path, batch("p", *steps)).steps) == 5


def test_no_step_of_a_stream_is_called_like_the_dead_letters_of_another(tmp_path: Path) -> None:
    document = copy.deepcopy(EVENT_STREAM)
    document["steps"][1]["name"] = "from_kafka_dead_letters"
    assert "dead letters" in issues_of(tmp_path, document)["/steps/1"]


def test_a_quarantine_step_yields_the_rows_that_go_on(tmp_path: Path) -> None:
    document = batch("p", extract_file("rows", "/a.csv"), quarantine(), transform("filterRows", condition="id > 1"))
    plan = planned(tmp_path, document)
    assert [step.role for step in plan.steps] == [Role.VIEW, Role.VIEW, Role.TABLE]
    assert plan.steps[2].inputs == (1,)
    assert plan.steps[1].quarantine == "good_quarantine"
    leaf = planned(tmp_path, batch("p", extract_file("rows", "/a.csv"), quarantine()))
    assert [step.role for step in leaf.steps] == [Role.VIEW, Role.TABLE]
    checked = batch("p", extract_file("rows", "/a.csv"), quarantine(onFailure="warn"))
    assert [step.role for step in planned(tmp_path, checked).steps] == [Role.TABLE, Role.CHECK]


def test_a_table_of_rows_in_quarantine_is_of_one_step(tmp_path: Path) -> None:
    """A run overwrites it: what another step has put there would be lost."""
    first, second = quarantine(quarantinePath="/q/bad"), quarantine(quarantinePath="/q/bad/", columns=["kind"])
    both = batch("p", extract_file("rows", "/a.csv"), {**first, "name": "one"}, {**second, "name": "two"})
    with pytest.raises(ConfigurationError, match=r"step 2 writes 'two_quarantine' there, and this step overwrites"):
        planned(tmp_path, both)
    load = {"type": "load", "method": "toDeltaLake", "config": {"path": "/q/bad", "mode": "append"}}
    with pytest.raises(ConfigurationError, match=r"step 2 writes 'to_delta_lake' there"):
        planned(tmp_path, batch("p", extract_file("rows", "/a.csv"), first, load))
    apart = {**quarantine(quarantinePath="/q/others", columns=["kind"]), "name": "two"}
    planned(tmp_path, batch("p", extract_file("rows", "/a.csv"), {**first, "name": "one"}, apart))


@pytest.mark.parametrize(
    ("path", "said"),
    [(" ", "is empty"), ("s3a://", "names no bucket"), ("/q/../out", "contains '..'"), ("/q/*", "contains a glob")],
)
def test_a_path_of_rows_in_quarantine_is_that_of_a_table(tmp_path: Path, path: str, said: str) -> None:
    document = batch("p", extract_file("rows", "/a.csv"), quarantine(quarantinePath=path))
    assert said in issues_of(tmp_path, document)["/steps/1/config/quarantinePath"]


def test_a_table_of_rows_in_quarantine_is_of_one_pipeline(tmp_path: Path) -> None:
    rows, aside = extract_file("rows", "/a.csv"), quarantine(quarantinePath="/q/bad")
    load = {"type": "load", "method": "toDeltaLake", "config": {"path": "/q/bad/", "mode": "append"}}
    write_config(tmp_path, batch("first", rows, aside))
    write_config(tmp_path, batch("second", rows, {**aside, "name": "checked"}))
    write_config(tmp_path, batch("appends", rows, load))
    write_config(tmp_path, batch("other", rows, quarantine(quarantinePath="/q/other")))
    folder = plan_folder(load_folder(tmp_path, {}))
    assert [plan.name for plan in folder.plans] == ["appends", "other"]
    ((at, said),) = next(issues(each) for each in folder.broken if each.name == "first").items()
    assert at == "/steps/1/config/quarantinePath"
    assert said.startswith("step 1 of appends.json and step 1 of second.json write there")


def issues(broken: BrokenConfig) -> dict[str, str]:
    return {issue.pointer: issue.message for issue in broken.error.issues}


def test_tables_of_rows_in_quarantine_lie_in_two_containers(tmp_path: Path) -> None:
    rows = extract_file("rows", "/a.csv")
    for name in ("one", "two"):
        aside = quarantine(quarantinePath=f"abfss://{name}@store.dfs.core.windows.net/q/bad")
        write_config(tmp_path, batch(name, rows, aside))
    assert plan_folder(load_folder(tmp_path, {})).broken == ()


def test_code_versions_follow_what_a_quarantine_leaves(tmp_path: Path) -> None:
    def version(**config: Any) -> str:
        steps = (extract_file("rows", "/a.csv"), quarantine(**config), transform("filterRows", condition="id > 1"))
        return planned(tmp_path, batch("p", *steps)).steps[2].code_version

    assert version(columns=["id", "name"]) != version()
    assert version(onFailure="warn") != version()
    assert version(sampleSize=3, maskColumns=["id"]) == version(), "it is only shown differently"


def test_a_pipeline_that_reads_what_another_puts_into_quarantine(tmp_path: Path) -> None:
    writer = batch("writer", extract_file("rows", "/a.csv"), quarantine())
    reader = batch(
        "reader",
        {"type": "extract", "method": "fromDeltaLake", "config": {"table": "writer.good_quarantine"}},
        {"type": "extract", "method": "fromDeltaLake", "config": {"table": "writer.good"}},
    )
    for document in (writer, reader):
        write_config(tmp_path, document)
    links = link_pipelines(plan_folder(load_folder(tmp_path, {})).plans)
    found = [[(link.producer, link.asset) for link in found] for at in (0, 1) for found in links["reader", at].values()]
    assert found == [[(1, "good_quarantine")], [(1, "good")]]


def from_table(name: str) -> dict[str, Any]:
    return {"type": "extract", "method": "fromDeltaLake", "config": {"table": name}}


def test_a_pipeline_that_reads_the_dead_letters_of_a_stream(tmp_path: Path) -> None:
    write_config(tmp_path, EVENT_STREAM)
    write_config(tmp_path, batch("reader", from_table("event-stream.from_kafka_dead_letters")))
    (found,) = link_pipelines(plan_folder(load_folder(tmp_path, {})).plans)["reader", 0].values()
    assert [(link.upstream, link.producer, link.asset) for link in found] == [
        ("event_stream", 0, "from_kafka_dead_letters")
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("writer.god", "'writer' keeps no table 'god' in the warehouse, did you mean 'good'? (tables: good, good_quar"),
        ("writer.rows", "'writer' keeps no table 'rows' in the warehouse, but a view of that name: give its step"),
        ("stream.events", "but a view of that name: load that by toDeltaLake, and read it by 'path' here"),
        ("sorter.good", "but a view of that name: load that by toDeltaLake, and read it by 'path' here"),
        ("loader.to_delta_lake", "'loader' keeps no table 'to_delta_lake' in the warehouse (tables: none)"),
    ],
)
def test_a_table_that_no_pipeline_keeps(table: str, said: str, tmp_path: Path) -> None:
    write_config(tmp_path, batch("writer", extract_file("rows", "/a.csv"), quarantine()))
    write_config(tmp_path, batch("loader", extract_file("rows", "/a.csv"), {**DELTA, "config": {"path": "/t"}}))
    write_config(tmp_path, batch("reader", extract_file("more", "/b.csv"), from_table(table)))
    to_table = {**DELTA, "config": {"path": "/t"}}
    write_config(tmp_path, batch("sorter", extract_file("rows", "/a.csv"), quarantine(), to_table))
    named = copy.deepcopy(EVENT_STREAM) | {"name": "stream"}
    named["steps"][0]["config"]["registerAs"] = "events"
    write_config(tmp_path, named)
    # A pipeline that is not here may have been.
    write_config(tmp_path, batch("other", from_table("elsewhere.rows")))
    folder = plan_folder(load_folder(tmp_path, {}))
    assert {plan.name for plan in folder.plans} == {"writer", "loader", "other", "sorter", "stream"}
    ((broken,),) = (found.error.issues for found in folder.broken)
    assert (broken.file, broken.pointer) == ("reader.json", "/steps/1/config/table")
    assert said in broken.message


def test_tables_of_a_pipeline_that_is_broken_may_be_there(tmp_path: Path) -> None:
    write_config(tmp_path, batch("writer", extract_file("rows", "/a.csv"), quarantine(columns=[])))
    write_config(tmp_path, batch("reader", from_table("writer.any")))
    assert [plan.name for plan in plan_folder(load_folder(tmp_path, {})).plans] == ["reader"]


def expectations(found: dict[str, Any]) -> dict[str, Any]:
    return {"type": "validate", "method": "expectations", "config": {"expectations": found}}


REFERENTIAL = {"expect": "referential", "columns": ["id"], "references": "other"}


@pytest.mark.parametrize(
    ("steps", "pointer", "expected"),
    [
        (
            [quarantine(), transform("sql", query="SELECT * FROM rows")],
            "/steps/2/config/query",
            "'good': take that one",
        ),
        (
            [quarantine(), transform("filterRows", condition="true", inputDataFrame="rows")],
            "/steps/2/config/inputDataFrame",
            "has the rows, too, that step 1 puts into quarantine",
        ),
        (
            [quarantine(), transform("union", inputDataFrames=["good", "goo"])],
            "/steps/2/config/inputDataFrames/1",
            "'good'",
        ),
        (
            [quarantine(), transform("filterRows", condition="true", registerAs="good_quarantine")],
            "/steps/1",
            "called like step 2",
        ),
        (
            [
                {
                    "type": "validate",
                    "method": "expectations",
                    "config": {"expectations": {"a b": "true", "a.b": "true", "a_b": "true"}},
                }
            ],
            "/steps/1",
            "would be the check 'expectations_a_b'",
        ),
        (
            [expectations({"a": REFERENTIAL})],
            "/steps/1/config/expectations/a/references",
            "no DataFrame 'other'",
        ),
        (
            [
                transform("filterRows", condition="true", registerAs="other"),
                {
                    "type": "validate",
                    "method": "referential",
                    "config": {"inputDataFrame": "rows", "columns": ["id"], "references": "other"},
                },
            ],
            "/steps/2/config/references",
            "this check would wait for itself (referential <- other <- referential)",
        ),
        (
            [expectations({"a": {"expect": "notNul"}})],
            "/steps/1/config/expectations/a/expect",
            "did you mean 'notNull'",
        ),
        (
            [expectations({"a": {"columns": ["id"]}})],
            "/steps/1/config/expectations/a/expect",
            "required and missing",
        ),
        (
            [expectations({"a": {"expect": "inSet", "column": "id", "valuse": [1]}})],
            "/steps/1/config/expectations/a/valuse",
            "did you mean 'values'",
        ),
        (
            [expectations({"a": 5})],
            "/steps/1/config/expectations/a",
            "expected an object",
        ),
    ],
)
def test_checks_that_cannot_be(tmp_path: Path, steps: list[dict[str, Any]], pointer: str, expected: str) -> None:
    issues = issues_of(tmp_path, batch("p", extract_file("rows", "/a.csv"), *steps))
    assert pointer in issues, issues
    assert expected in issues[pointer]


def test_the_steps_in_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "validation.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    steps = [extract_file("customers", "/c.csv"), extract_file("orders", "/o.csv"), *blocks]
    assert len(planned(tmp_path, batch("p", *steps)).steps) == 5


@pytest.mark.parametrize("path", ["/lake/t", "/lake", "/lake/"])
@pytest.mark.parametrize(
    "other",
    [
        {**DELTA, "config": {"path": "/lake/t"}},
        load("toS3", path="/lake/t", format="json"),
        quarantine(quarantinePath="/lake/t"),
    ],
    ids=["delta", "files", "quarantine"],
)
def test_no_load_deletes_what_another_step_writes(tmp_path: Path, path: str, other: dict[str, Any]) -> None:
    rows, replace = extract_file("rows", "/in.csv"), load("toS3", path=path, mode="overwrite")
    said = issues_of(tmp_path, batch("p", rows, other, replace))["/steps/2/config/path"]
    assert said.startswith("step 1 writes ")
    assert said.endswith(f"this step replaces all files below {path}: give each a folder of its own")
    beside = load("toS3", path="/lake/t2", mode="overwrite")
    assert len(planned(tmp_path, batch("p", rows, other, beside)).steps) == 3
