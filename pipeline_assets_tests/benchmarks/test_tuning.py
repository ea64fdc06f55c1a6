"""The claims differ in their tuning alone, and what is told of their runs is what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from benchmarks.customer_360 import Runs
from benchmarks.measured_process import ProcessCost
from benchmarks.table_contents import contents, file_count
from benchmarks.tpch_comparison import TpchComparison
from benchmarks.training_method import TrainClassifiers
from benchmarks.tuning import (
    FIVE_CLAIMS,
    TUNING_KEYS,
    TUNING_METHODS,
    VARIANTS,
    Claim,
    ClaimComparison,
    install_training,
    variant,
    without_tuning,
    work_seconds,
)
from benchmarks.tuning_report import tuning_goals, tuning_tables
from pipeline_assets.config_loading import load_folder
from pipeline_assets_tests.config_documents import batch, extract_file, transform

claims = pytest.mark.parametrize("claim", FIVE_CLAIMS, ids=lambda claim: claim.name)
_INPUTS = ("inputDataFrame", "inputDataFrames")


def bare(step: dict[str, Any]) -> dict[str, Any]:
    """Return the step without what tunes it, and without the names of its inputs."""
    config = {key: value for key, value in step["config"].items() if key not in (*TUNING_KEYS, *_INPUTS)}
    return {**step, "config": config}


@claims
def test_the_variants_differ_in_tuning_alone(claim: Claim) -> None:
    plain, tuned, optimized = (variant(claim.config(), name) for name in VARIANTS)
    assert plain.pop("optimize") is tuned.pop("optimize") is False
    assert plain == optimized == without_tuning(tuned) != tuned
    assert [bare(step) for step in plain["steps"]] == [
        bare(step) for step in tuned["steps"] if step["method"] not in TUNING_METHODS
    ]
    assert not [key for step in plain["steps"] for key in step["config"] if key in TUNING_KEYS]


@claims
@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_a_pipeline(claim: Claim, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_training(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    (tmp_path / "claim.json").write_text(json.dumps(variant(claim.config(), name)))
    folder = load_folder(tmp_path, {"TPCH": "/tpch", "RESULTS": "/results"})
    assert not folder.broken
    (pipeline,) = folder.pipelines
    assert pipeline.config.name.replace("-", "_") == claim.name


def test_who_named_a_tuning_step_gets_what_it_worked_on() -> None:
    tuned = batch(
        "p",
        extract_file("a", "/a.parquet"),
        transform("repartition", numPartitions=4, registerAs="spread"),
        extract_file("b", "/b.parquet"),
        transform("coalesce", inputDataFrame="spread", numPartitions=2, registerAs="few"),
        transform("filterRows", inputDataFrame="few", condition="x > 0"),
        transform("union", inputDataFrames=["spread", "b"], cache=True),
    )
    assert without_tuning(tuned)["steps"][2:] == [
        transform("filterRows", inputDataFrame="a", condition="x > 0"),
        transform("union", inputDataFrames=["a", "b"]),
    ]


def test_the_contents_are_those_of_the_rows_in_any_order(tmp_path: Path) -> None:
    rows = {"one": [1, 2, 2], "other": [1, 2, 2], "more": [1, 1, 2]}
    for folder, numbers in rows.items():
        for part in numbers if folder == "other" else [numbers]:
            table = pa.table({"n": pa.array([part] if isinstance(part, int) else part[::-1], pa.int64())})
            write_deltalake(tmp_path / folder / "p" / "a", table, mode="append")
    one, other, more = (contents(tmp_path / folder) for folder in rows)
    assert one == other != more
    assert one["p/a"][0] == 3
    assert [file_count(tmp_path / folder) for folder in rows] == [1, 3, 1]


def test_work_is_without_the_first_step() -> None:
    phases = {
        "imports": 2.0,
        "before p__a": 0.1,
        "p__a": 5.0,
        "before p__b": 0.2,
        "p__b": 3.0,
        "p__c": 4.0,
        "gone": 1.0,
    }
    assert work_seconds(phases, "p") == 7.0


def test_nothing_is_trained_for_lineage(spark: Any) -> None:
    training = TrainClassifiers(label="y", features=("x",), regularizations=(0.0, 0.1))
    context: Any = type("Context", (), {"spark": spark})
    rows = spark.sql("SELECT cast(id AS DOUBLE) AS x, cast(id % 10 > 6 AS DOUBLE) AS y FROM range(100)")
    assert [row.regularization for row in training.transform({"rows": rows}, context).collect()] == [0.0, 0.1]
    assert training.transform({"rows": rows.where("false")}, context).collect() == []


def comparison(*, adaptive: bool) -> ClaimComparison:
    claim = Claim("claim", "something is cached", 3.8)
    found = ClaimComparison(claim, 1.0, adaptive, files={"plain": 2000, "tuned": 50, "optimized": 2})
    for name, times in {"plain": (40, 44), "tuned": (20, 20), "optimized": (21, 19)}.items():
        runs = Runs()
        for seconds in times:
            runs.add(ProcessCost(0.0, seconds, seconds, 1, 1, ""), {"claim__a": 10.0, "claim__b": seconds - 15.0})
        found.runs[name] = runs
    return found


def test_what_is_told() -> None:
    tpch = TpchComparison(
        1.0,
        {
            "q01": {"plain": [1.0, 2.0], "optimized": [1.0, 2.0]},
            "q02": {"plain": [1.0, 1.0], "optimized": [4.0, 4.0]},
        },
        {"q01": 0, "q02": 1},
    )
    measured = [comparison(adaptive=True), comparison(adaptive=False)]
    tuned, query = tuning_goals(measured, tpch)
    assert (tuned.limit, tuned.measured.median, tuned.met) == (1.0, 1.0, True)
    assert (query.limit, query.measured.median, query.met) == (1.03, 4.0, False)
    assert "q02" in query.what
    summary, times, *_, queries = tuning_tables(measured, tpch)
    assert summary[2][0][1:4] == ["3.8x", "2.10x (2.00 to 2.20)", "5.40x (5.00 to 5.80)"]
    assert summary[2][0][-1] == "plain 2,000, tuned 50, optimized 2"
    assert times[2][0][1:3] == ["42.0 s (40.0 to 44.0)", "27.0 s (25.0 to 29.0)"]
    assert queries[2][-1] == ["geometric mean", "", "", "2.00x", "1"]
