"""What DataFrames are called, who takes whose, and what is a view and what a table."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

from pipeline_assets.plan import Role
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    transform,
)
from pipeline_assets_tests.planning.bench import DELTA, issues_of, planned


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


def test_no_step_of_a_stream_is_called_like_the_dead_letters_of_another(tmp_path: Path) -> None:
    document = copy.deepcopy(EVENT_STREAM)
    document["steps"][1]["name"] = "from_kafka_dead_letters"
    assert "dead letters" in issues_of(tmp_path, document)["/steps/1"]


def test_the_steps_in_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "validation.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    steps = [extract_file("customers", "/c.csv"), extract_file("orders", "/o.csv"), *blocks]
    assert len(planned(tmp_path, batch("p", *steps)).steps) == 5
