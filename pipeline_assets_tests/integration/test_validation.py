"""Validate steps in pipelines: what is told, what is stopped, what is put aside; compared with pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd
import pytest

import pipeline_assets.steps
from devstack.demo_data import cdnow_purchases
from pipeline_assets.config_loading import load_file
from pipeline_assets.connections import Connections
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.settings import Settings
from pipeline_assets.spark.caching import DataFrameCache
from pipeline_assets.steps.base import SingleInputTransform, StepContext
from pipeline_assets_tests.config_documents import batch, extract_file, transform
from pipeline_assets_tests.integration.delta_tables import delta_files, rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text
from pipeline_assets_tests.integration.run_processes import JobProcess

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LOAD = {"type": "load", "method": "toDeltaLake", "config": {"path": "/out", "mode": "overwrite"}}


def validate(method: str, name: str | None = None, **config: Any) -> dict[str, Any]:
    return {"type": "validate", "method": method, "config": config, **({"name": name} if name else {})}


def results(run: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {found.check_name: found for found in run.get_asset_check_evaluations()}


def told(found: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {key: value.value for key, value in found.metadata.items()}


@pytest.fixture
def rows(location: Location) -> Path:
    """A file with four rows, two of which are amiss."""
    path = location.folder / "rows.json"
    put(path, [(1, 5, "a@b.example"), (2, -1, "c@d.example"), (3, 0, None), (4, 7, "e@f.example")])
    return path


def put(path: Path, of: Sequence[tuple[Any, ...]]) -> None:
    pd.DataFrame(of, columns=["id", "amount", "email"]).to_json(path, orient="records", lines=True)


def extract(path: Path, **config: Any) -> dict[str, Any]:
    return extract_file("rows", f"file://{path}", schema="id BIGINT, amount BIGINT, email STRING", **config)


def out(location: Location) -> Path:
    return location.folder / "root" / "out"


def test_a_failure_stops_what_comes_after_and_shows_a_sample(location: Location, rows: Path) -> None:
    location.write(
        batch(
            "checked",
            extract(rows),
            validate("inRange", column="amount", min=0, maskColumns=["email"]),
            validate("expectations", expectations={"id": "id > 0", "mail": "email LIKE '%@%'"}),
            LOAD,
        )
    )
    run = location.run("checked", fail=True)
    found = results(run)
    assert {name: check.passed for name, check in found.items()} == {
        "in_range": False,
        "expectations_id": True,
        "expectations_mail": False,
    }
    assert found["in_range"].severity == dg.AssetCheckSeverity.ERROR
    metadata = told(found["in_range"])
    assert (metadata["failed_rows"], metadata["total_rows"], metadata["failed_percent"]) == (1, 4, 25.0)
    assert metadata["failed_sample"].splitlines()[2:] == ["| 2 | -1 | ********* |"]
    text = failure_text(run)
    assert "checked: step 1 (validate inRange): the data do not meet what is expected: amount is >= 0 (1 of 4" in text
    assert "id=2, amount=-1, email=*********" in text
    assert "mail: email LIKE '%@%' (1 of 4" in text
    failures = [event.step_failure_data.user_failure_data for event in run.all_events if event.is_step_failure]
    configs = [str(failure.metadata["config"].value) for failure in failures if failure is not None]
    assert any('"min": 0' in config and '"email"' in config for config in configs), configs
    assert not out(location).exists(), "nothing is loaded"


def test_a_warning_is_told_and_stops_nothing(location: Location, rows: Path) -> None:
    entry = {"expect": "notNull", "columns": ["email"], "severity": "warn"}
    location.write(
        batch(
            "checked",
            extract(rows),
            validate("inRange", column="amount", min=0, onFailure="warn"),
            validate("expectations", expectations={"mail": entry, "id": "id > 0"}),
            validate("rowCount", min=10, blocking=False),
            LOAD,
        )
    )
    found = results(location.run("checked"))
    assert [check.passed for check in found.values()].count(False) == 3
    assert {check.severity for check in found.values() if not check.passed} == {dg.AssetCheckSeverity.WARN}
    assert len(rows_of(out(location))) == 4


def quarantine_pipeline(rows: Path, *more: dict[str, Any], **config: Any) -> dict[str, Any]:
    expectations = {"expectations": {"paid": "amount > 0", "mail": {"expect": "notNull", "columns": ["email"]}}}
    return batch(
        "sorted",
        extract(rows),
        validate("expectations", "good", **expectations, onFailure="quarantine", **config),
        *more,
    )


def test_quarantine(location: Location, rows: Path) -> None:
    location.write(quarantine_pipeline(rows, transform("filterRows", condition="id < 10"), LOAD))
    run = location.run("sorted")
    assert sorted(rows_of(out(location))["id"]) == [1, 4]
    aside = rows_of(location.table("sorted", "good_quarantine"))
    reasons = {row.id: list(row.quarantine_reasons) for row in aside.itertuples()}
    assert reasons == {2: ["paid: amount > 0"], 3: ["paid: amount > 0", "mail: email is not null"]}
    assert set(aside["quarantine_run_id"]) == {run.run_id}
    found = results(run)
    assert told(found["good_paid"])["failed_rows"] == 2
    assert found["good_paid"].severity == dg.AssetCheckSeverity.WARN
    assert found["good_paid"].asset_key == dg.AssetKey(["sorted", "good"])
    assert location.metadata("sorted", "good")["quarantined_rows"] == 2
    assert location.metadata("sorted", "good_quarantine")["dagster/row_count"] == 2
    lineage = location.metadata("sorted", "good")["dagster/column_lineage"].deps_by_column
    assert lineage["email"] == [dg.TableColumnDep(dg.AssetKey(["sorted", "rows"]), "email")]


def test_quarantine_holds_what_the_last_run_found(location: Location, rows: Path) -> None:
    location.write(quarantine_pipeline(rows, quarantinePath="/aside"))
    location.run("sorted")
    location.run("sorted")
    aside = location.folder / "root" / "aside"
    assert sorted(rows_of(aside)["id"]) == [2, 3], "a run repeated doubles nothing"
    assert sorted(rows_of(location.table("sorted", "good"))["id"]) == [1, 4], "nobody takes it: it is a table"
    put(rows, [(1, 1, "a")])
    run = location.run("sorted")
    assert delta_files(aside) == []
    assert all(check.passed for check in results(run).values())


def test_quarantine_by_partition(location: Location) -> None:
    document = quarantine_pipeline(Path("unused"))
    document["partitions"] = {"type": "daily", "start": "2024-01-01", "column": "day"}
    source = f"file://{location.folder}/${{partition}}.json"
    document["steps"][0] = extract_file("rows", source, schema="id BIGINT, amount BIGINT, email STRING, day DATE")
    document["steps"][1]["config"]["expectations"]["dated"] = "day = date'${partition}'"
    location.write(document)

    def put_day(day: str, *ids: int) -> None:
        of = [(i, i, "x", day) for i in ids] + [(-1, -1, "x", day), (100, 1, "x", None)]
        frame = pd.DataFrame(of, columns=["id", "amount", "email", "day"])
        frame.to_json(location.folder / f"{day}.json", orient="records", lines=True)

    def aside() -> list[tuple[int, str]]:
        files = delta_files(location.table("sorted", "good_quarantine"))
        found = [(i, Path(file).parent.name) for file in files for i in pd.read_parquet(file)["id"]]
        return sorted((int(i), folder.removeprefix("partition_key=")) for i, folder in found)

    put_day("2024-01-01", 1, 2)
    put_day("2024-01-02", 3)
    for day in ("2024-01-01", "2024-01-02", "2024-01-01"):
        location.run("sorted", partition=day)
    both = [(i, day) for i in (-1, 100) for day in ("2024-01-01", "2024-01-02")]
    assert aside() == both
    assert sorted(rows_of(location.table("sorted", "good"))["id"]) == [1, 2, 3]


def test_rows_without_their_counterpart_by_partition(location: Location) -> None:
    document = changing_pipeline(location)
    document["partitions"] = {"type": "static", "values": ["a", "b"]}
    for part in "ab":
        put_numbers(location.folder / f"{part}.csv", range(100) if part == "a" else range(50, 200))
    document["steps"][0] = extract_file("numbers", f"file://{location.folder}/${{partition}}.csv", schema="id BIGINT")
    document["steps"] = document["steps"][:3]
    location.write(document)
    for part in "aba":
        location.run("changing", partition=part)
    good, aside = (rows_of(location.table("changing", name)) for name in ("good", "good_quarantine"))
    for part, numbers in (("a", range(100)), ("b", range(50, 200))):
        found = [*good[good["partition_key"] == part]["id"], *aside[aside["partition_key"] == part]["id"]]
        assert sorted(found) == list(numbers)
    assert len(good)
    assert len(aside)


def test_checks_of_one_partition(location: Location) -> None:
    document = batch(
        "parted",
        extract_file("rows", f"file://{location.folder}/${{partition}}.csv", schema="id INT"),
        validate("matches", column="id", pattern="[0-9]"),
        LOAD,
        partitions={"type": "static", "values": ["one", "two"]},
    )
    location.write(document)
    (location.folder / "one.csv").write_text("id\n1\n")
    (location.folder / "two.csv").write_text("id\n22\n")
    location.run("parted", partition="one")
    run = location.run("parted", partition="two", fail=True)
    assert told(results(run)["matches"])["failed_rows"] == 1
    assert list(rows_of(out(location))["id"]) == [1]


@pytest.mark.parametrize(
    ("stored", "then"),
    [
        ("view", None),
        ("view", "cache"),
        ("view", "uncacheAll"),
        ("cached", None),
        ("cached", "uncacheAll"),
        ("cached", "uncache"),
        ("table", None),
    ],
)
def test_what_is_put_into_quarantine_is_computed_once(
    stored: str, then: str | None, location: Location, rows: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by a function in the step before it."""
    seen = spark.sparkContext.accumulator(0)

    def count(number: int) -> int:
        seen.add(1)
        return number

    class CountRows(SingleInputTransform):
        """Counts the rows that are computed."""

        method = "countRows"

        def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
            from pyspark.sql.functions import udf

            (frame,) = inputs.values()
            return frame.withColumn("id", udf(count, "bigint", useArrow=False)("id"))

    entry = SimpleNamespace(name="countRows", value="tests:CountRows", load=lambda: CountRows)
    monkeypatch.setattr(pipeline_assets.steps, "entry_points", lambda group: [entry])
    more: dict[str, Any] = {"view": {}, "cached": {"cache": True}, "table": {"materialized": "table"}}[stored]
    document = quarantine_pipeline(rows, LOAD)
    document["steps"].insert(1, transform("countRows", registerAs="counted", **more))
    if then is not None:
        control = transform(then, **({"dataFrames": ["counted"]} if then == "uncache" else {}))
        # Else the load, too, is ready once the rows are put aside, and may come before it.
        document["steps"][3:3] = [control, transform("filterRows", condition="id IS NOT NULL")]
    location.write(document)
    location.run("sorted")
    assert seen.value == 4
    assert sorted(rows_of(out(location))["id"]) == [1, 4]
    assert sorted(rows_of(location.table("sorted", "good_quarantine"))["id"]) == [2, 3]


def test_a_column_that_is_not_there_is_found_before_data_moves(location: Location, rows: Path) -> None:
    location.write(
        batch(
            "checked",
            extract(rows),
            LOAD,
            transform("filterRows", condition="id > 1"),
            validate("unique", columns=["idd"]),
        )
    )
    text = failure_text(location.run("checked", fail=True))
    assert "checked: step 3 (validate unique): DataFrame 'input' has no column 'idd', did you mean 'id'" in text
    assert not out(location).exists()


def test_referential_to_a_dataframe_of_the_pipeline(location: Location, rows: Path) -> None:
    known = location.folder / "known.csv"
    known.write_text("number\n1\n2\n3\n")
    location.write(
        batch(
            "checked",
            extract_file("known", f"file://{known}", schema="number BIGINT"),
            extract(rows),
            validate("referential", columns=["id"], references="known", referencedColumns=["number"]),
            LOAD,
        )
    )
    run = location.run("checked", fail=True)
    assert told(results(run)["referential"])["failed_rows"] == 1
    known.write_text("number\n1\n2\n3\n4\n")
    location.run("checked")
    assert len(rows_of(out(location))) == 4
    assert not location.table("checked", "known").exists(), "what is only compared with is no table"


def put_numbers(path: Path, numbers: Iterable[int]) -> None:
    path.write_text("id\n" + "".join(f"{number}\n" for number in numbers))


def changing_pipeline(location: Location) -> dict[str, Any]:
    """Return a pipeline of the numbers to 200, some of which are known: others each time when somebody asks."""
    numbers = location.folder / "numbers.csv"
    put_numbers(numbers, range(200))
    known = "SELECT id FROM numbers WHERE CAST(reflect('java.lang.System', 'nanoTime') AS BIGINT) % 3 > 0"
    config = {"columns": ["id"], "references": "known", "inputDataFrame": "numbers"}
    return batch(
        "changing",
        extract_file("numbers", f"file://{numbers}", schema="id BIGINT"),
        transform("sql", query=known, registerAs="known"),
        validate("referential", "good", **config, onFailure="quarantine"),
        LOAD,
        {**LOAD, "config": {**LOAD["config"], "path": "/second"}},
    )


def test_rows_without_their_counterpart_are_put_aside(location: Location) -> None:
    location.write(changing_pipeline(location))
    run = location.run("changing")
    aside = rows_of(location.table("changing", "good_quarantine"))
    loaded = list(rows_of(out(location))["id"])
    assert sorted([*aside["id"], *loaded]) == list(range(200))
    assert sorted(rows_of(location.folder / "root" / "second")["id"]) == sorted(loaded)
    assert len(aside)
    assert len(loaded)
    assert {tuple(reasons) for reasons in aside["quarantine_reasons"]} == {("id is in known (id)",)}
    check = results(run)["good"]
    assert (told(check)["failed_rows"], told(check)["total_rows"]) == (len(aside), 200)
    assert location.metadata("changing", "good")["quarantined_rows"] == len(aside)
    asset = location.definitions().resolve_asset_graph().get(dg.AssetKey(["changing", "good"]))
    assert asset.parent_keys == {dg.AssetKey(["changing", "numbers"]), dg.AssetKey(["changing", "known"])}


def changing_plan(location: Location) -> tuple[PipelinePlan, PlannedStep]:
    plan = plan_pipeline(load_file(location.configs / "changing.json", {}))
    return plan, plan.steps[2]


def process_of(plan: PipelinePlan, run_id: str, location: Location, spark: SparkSession) -> PipelineRun:
    """Return a run of ``plan`` as one of its processes has it."""
    context = StepContext(
        pipeline=plan.name,
        run_id=run_id,
        spark=spark.newSession(),
        settings=Settings(warehouse=str(location.warehouse)),
        connections=Connections(),
        cache=DataFrameCache(),
    )
    return PipelineRun(plan, context, in_one_process=False)


def test_each_process_of_a_run_puts_the_same_rows_aside(location: Location, spark: SparkSession) -> None:
    location.write(changing_pipeline(location))
    plan, good = changing_plan(location)

    def process(run_id: str) -> PipelineRun:
        return process_of(plan, run_id, location, spark)

    def ids(frame: DataFrame) -> set[int]:
        return {row["id"] for row in frame.collect()}

    for run_id in ("first", "second"):
        checking = process(run_id)
        checking.quarantine(good, checking.inputs(good))
        checking.context.cache.release()  # another process would not find it
        aside = set(rows_of(location.table("changing", "good_quarantine"))["id"])
        assert ids(checking.dataframe(good)) == set(range(200)) - aside
        assert ids(process(run_id).dataframe(good)) == set(range(200)) - aside
        # A step that is tried again looks again.
        again = checking.quarantine(good, checking.inputs(good))
        assert set(rows_of(location.table("changing", "good_quarantine"))["id"]) != aside
        aside = set(rows_of(location.table("changing", "good_quarantine"))["id"])
        checking.context.cache.release()
        assert ids(again.good) == set(range(200)) - aside
        assert ids(process(run_id).dataframe(good)) == set(range(200)) - aside
    other = process("third")
    assert ids(other.dataframe(good)) != set(range(200)) - aside, "what the last run found is not asked"


def test_that_no_row_was_put_aside_is_remembered(location: Location, spark: SparkSession) -> None:
    document = changing_pipeline(location)
    known = location.folder / "known.csv"
    document["steps"][1] = extract_file("known", f"file://{known}", schema="id BIGINT")
    location.write(document)
    plan, good = changing_plan(location)
    # Delta has nothing to do for the second: no row is there, and none comes.
    for run_id in ("first", "second"):
        put_numbers(known, range(200))
        checking = process_of(plan, run_id, location, spark)
        assert checking.quarantine(good, checking.inputs(good)).written.rows == 0
        checking.context.cache.release()
        put_numbers(known, [1])
        assert process_of(plan, run_id, location, spark).dataframe(good).count() == 200


def test_cdnow_put_aside(location: Location) -> None:
    purchases = cdnow_purchases()
    source = location.folder / "purchases.parquet"
    purchases.to_parquet(source)
    expectations = {
        "paid": {"expect": "inRange", "column": "amount", "min": 0, "exclusive": True},
        "few": {"expect": "inSet", "column": "quantity", "values": [1, 2, 3]},
    }
    location.write(
        batch(
            "cdnow",
            extract_file("rows", f"file://{source}"),
            validate("expectations", "good", expectations=expectations, onFailure="quarantine"),
        )
    )
    run = location.run("cdnow")
    is_good = (purchases["amount"] > 0) & purchases["quantity"].isin([1, 2, 3])
    same_rows(rows_of(location.table("cdnow", "good")), purchases[is_good])
    aside = rows_of(location.table("cdnow", "good_quarantine"))
    same_rows(aside[list(purchases.columns)], purchases[~is_good])
    assert aside["quarantine_reasons"].map(len).sum() == sum(
        told(found)["failed_rows"] for found in results(run).values()
    )


def test_in_processes_of_their_own_over_connect(
    location: Location, rows: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What is not sound stops the load, which would have been in another process."""
    address = {"SPARK_REMOTE": request.getfixturevalue("spark_connect_server").remote}
    location.write(batch("checked", extract(rows), validate("inRange", column="amount", min=0), LOAD))
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **location.environment,
        **address,
        "DAGSTER_HOME": str(home),
        "PIPELINE_ASSETS_EXECUTOR": "multiprocess",
    }
    job = JobProcess("checked", environment, tmp_path / "log")
    try:
        assert job.end() != 0, job.output
    finally:
        job.kill_all()
    assert "the data do not meet what is expected: amount is >= 0 (1 of 4 do not, 25 %)" in job.output
    assert not out(location).exists()
