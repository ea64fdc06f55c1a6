"""Every SQL text of a config is known as one, and Spark's parser says what is wrong with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from pipeline_assets.cli import main
from pipeline_assets.config_loading import load_file
from pipeline_assets.config_schema import field_docstrings
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.sql_check import sql_issues
from pipeline_assets.steps import METHODS
from pipeline_assets.steps.base import StepMethod
from pipeline_assets.steps.sql_texts import SqlText, sql_texts
from pipeline_assets_tests.config_documents import CUSTOMER_360, EVENT_STREAM, batch, extract_file, write_config
from pipeline_assets_tests.config_documents import transform as step
from pipeline_assets_tests.fuzz_seeds import SEEDS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# PostgreSQL's SQL, which Spark's parser has no say in.
FOREIGN = {("FromPostgres", "query"), ("FromPostgres", "predicate")}


def _marks(annotation: Any, metadata: Any = ()) -> bool:
    if any(isinstance(mark, SqlText) for mark in (*metadata, *getattr(annotation, "__metadata__", ()))):
        return True
    return any(_marks(argument) for argument in getattr(annotation, "__args__", ()))


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_a_field_that_speaks_of_sql_is_marked_as_such(cls: type[StepMethod]) -> None:
    docstrings = field_docstrings(cls)
    for name, field in cls.model_fields.items():
        speaks = re.search(r"\bSQL\b|\bDDL\b", field.description or docstrings[name]) is not None
        if (cls.__name__, name) not in FOREIGN:
            assert _marks(field.annotation, field.metadata) == speaks, name


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Any], Pipeline]:
    return lambda document: load_file(write_config(tmp_path, document), {})


def test_texts_are_found_wherever_they_stand(loaded: Callable[[Any], Pipeline]) -> None:
    document = batch(
        "all",
        extract_file("a", "/a.csv", schema="id INT"),
        extract_file("b", "/b.csv"),
        extract_file("c", "/c.csv"),
        step("joinDataFrames", inputDataFrames=["a", "b", "c"], condition=["a.id = b.id", "a.id = c.id"]),
        step("aggregateData", groupBy=["x"], aggregations={"n/m": "count(*)"}, having="n > 1"),
        step("sql", query="SELECT 1 AS one"),
    )
    found = {
        (index, *place): (text, mark.kind)
        for index, method in enumerate(loaded(document).methods)
        for place, text, mark in sql_texts(method)
    }
    assert found == {
        (0, "schema"): ("id INT", "columns"),
        (3, "condition", 0): ("a.id = b.id", "expression"),
        (3, "condition", 1): ("a.id = c.id", "expression"),
        (4, "groupBy", 0): ("x", "column"),
        (4, "aggregations", "n/m"): ("count(*)", "expression"),
        (4, "having"): ("n > 1", "expression"),
        (5, "query"): ("SELECT 1 AS one", "query"),
    }


def test_configs_that_are_right_have_no_issues(spark: SparkSession, loaded: Callable[[Any], Pipeline]) -> None:
    assert list(sql_issues([loaded(seed) for seed in SEEDS], spark)) == []
    names = batch("names", extract_file("a", "/a.csv"), step("selectColumns", columns=["first name", "a-b", "*"]))
    assert list(sql_issues([loaded(names)], spark)) == []
    days = batch(
        "days",
        extract_file("a", "/a.csv"),
        step("filterRows", condition="id % ${partition} = 0"),
        partitions={"type": "static", "values": ["1", "2"]},
    )
    assert list(sql_issues([loaded(days)], spark)) == []


def test_each_kind_of_text_is_checked(spark: SparkSession, loaded: Callable[[Any], Pipeline]) -> None:
    document = batch(
        "wrong",
        extract_file("a", "/a.csv", schema="id INTT"),
        step("filterRows", condition="id = = 1"),
        step("selectColumns", columns=["id", "sum(id"]),
        step("withColumns", columns={"a/b": "CASE WHEN x"}),
        step("sql", query="SELECT id\nFROM a\nWHERE GROUP id BY"),
        {"type": "validate", "method": "expectations", "config": {"expectations": {"some": "id >"}}},
        {
            "type": "load",
            "method": "toDeltaLake",
            "config": {"path": "/out", "mode": "overwrite", "replaceWhere": "day = '"},
        },
    )
    issues = {issue.pointer: issue.message for issue in sql_issues([loaded(document)], spark)}
    assert set(issues) == {
        "/steps/0/config/schema",
        "/steps/1/config/condition",
        "/steps/2/config/columns/1",
        "/steps/3/config/columns/a~1b",
        "/steps/4/config/query",
        "/steps/5/config/expectations/some",
        "/steps/6/config/replaceWhere",
    }
    assert issues["/steps/1/config/condition"] == "SQL: Syntax error at or near '=' (line 1, position 6)"
    assert "(line 3, position" in issues["/steps/4/config/query"]


def test_the_command_checks_a_folder_in_one_go(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy.deepcopy(EVENT_STREAM)
    broken["steps"][1]["config"]["condition"] = "event_type == = 'x'"
    write_config(tmp_path, CUSTOMER_360)
    write_config(tmp_path, broken)
    monkeypatch.setenv("PIPELINE_ASSETS_CONFIGS", str(tmp_path))
    monkeypatch.setenv("SPARK_REMOTE", "sc://nowhere.invalid")  # there is no parser to ask there
    assert CliRunner().invoke(main, ["validate"]).exit_code == 0
    checked = CliRunner().invoke(main, ["validate", "--with-spark"])
    assert checked.exit_code == 1
    assert checked.stderr.splitlines() == [
        "event-stream.json:1: /steps/1/config/condition: SQL: Syntax error at or near '=' (line 1, position 15)"
    ]
    (tmp_path / "event-stream.json").unlink()
    checked = CliRunner().invoke(main, ["validate", "--with-spark"])
    assert (checked.exit_code, checked.stdout) == (0, "1 config is valid\n")
