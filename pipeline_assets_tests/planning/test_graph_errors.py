"""What can't be planned, and what of it is told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import load_file, load_folder
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.plan import PipelinePlan, Role
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.planner import plan_pipeline
from pipeline_assets_tests.config_documents import CUSTOMER_360, batch, extract_file, transform, write_config
from pipeline_assets_tests.planning.bench import DELTA, all_issues_of, issues, issues_of, planned


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
