"""Rows that validate steps put aside, and checks that can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import load_folder
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import Role
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config
from pipeline_assets_tests.planning.bench import issues, issues_of, planned, quarantine


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


def test_tables_of_rows_in_quarantine_lie_in_two_containers(tmp_path: Path) -> None:
    rows = extract_file("rows", "/a.csv")
    for name in ("one", "two"):
        aside = quarantine(quarantinePath=f"abfss://{name}@store.dfs.core.windows.net/q/bad")
        write_config(tmp_path, batch(name, rows, aside))
    assert plan_folder(load_folder(tmp_path, {})).broken == ()


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
