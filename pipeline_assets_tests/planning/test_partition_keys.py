"""What partitions are called, and what a run for one of them could not do."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from pipeline_assets import planned_folder
from pipeline_assets.config_loading import load_folder
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.planner import plan_pipeline
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform, write_config
from pipeline_assets_tests.planning.bench import DELTA, all_issues_of, planned


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
