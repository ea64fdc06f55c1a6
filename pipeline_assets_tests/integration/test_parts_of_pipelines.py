"""Runs of a part of a pipeline: of assets that were picked, and of what another run has left.

What they take of views that are no part of the run is planned in them anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from pyspark.sql import DataFrame

from devstack.spark_servers import SparkConnectServer
from pipeline_assets.code_location import build_definitions
from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import LoadResult
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows
from pipeline_assets_tests.integration.location import Location, failure_text


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def job() -> dg.JobDefinition:
    """Load the job as another process would."""
    return build_definitions(Settings.from_environment()).resolve_job_def("p")


@pytest.fixture(autouse=True)
def _no_job_is_known() -> None:
    """Dagster gives the job that it has last loaded in a process, whatever the configs say by now."""
    ReconstructableJob.get_repository_definition.cache_clear()
    ReconstructableJob.get_definition.cache_clear()


@pytest.fixture
def source(location: Location) -> Path:
    return location.folder / "rows.json"


@pytest.fixture
def lake(location: Location) -> Path:
    return location.folder / "root" / "lake"


def test_views_are_those_of_the_partition(location: Location, source: Path, lake: Path) -> None:
    days = ("2024-01-01", "2024-01-02")
    write_rows(source, *({"id": number, "day": day} for number, day in enumerate(days)))
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            transform("filterRows", condition="day = '${partition}'", registerAs="kept"),
            load("toDeltaLake", path="/lake/t", mode="overwrite"),
            partitions={"type": "daily", "start": days[0]},
        )
    )
    for day in days:
        location.run("p", partition=day)
    location.run("p", partition=days[1], only=["to_delta_lake"])
    found = rows_of(lake / "t")
    assert sorted(zip(found["id"], found["day"], strict=True)) == [*enumerate(days)]


def test_loads_come_in_the_order_of_what_they_write_and_read(location: Location, source: Path, lake: Path) -> None:
    """Also where their names say another one, and in another pipeline."""
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            {**load("toDeltaLake", path="/lake/staged", mode="overwrite"), "name": "z_stage"},
            {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/lake/staged", "registerAs": "staged"}},
            transform("withColumns", columns={"twice": "id * 2"}, registerAs="doubled"),
            {**load("toDeltaLake", path="/lake/published", mode="overwrite"), "name": "publish"},
        ),
        batch(
            "copies",
            {
                "type": "extract",
                "method": "fromDeltaLake",
                "config": {"path": "/lake/published", "registerAs": "published"},
            },
            {**load("toDeltaLake", path="/lake/copy", mode="overwrite"), "name": "a_copy"},
        ),
    )
    write_rows(source, {"id": 1})
    whole = location.definitions().resolve_job_def("__ASSET_JOB")
    assert whole.execute_in_process(instance=location.instance).success
    write_rows(source, {"id": 2})
    picked = [dg.AssetKey(key) for key in (["p", "z_stage"], ["p", "publish"], ["copies", "a_copy"])]
    result = whole.execute_in_process(instance=location.instance, asset_selection=picked)
    assert len(result.get_asset_materialization_events()) == 3
    expected = pd.DataFrame({"id": [2], "twice": [4]})
    same_rows(rows_of(lake / "published"), expected)
    same_rows(rows_of(lake / "copy"), expected)


@pytest.mark.parametrize(
    ("on_failure", "says"),
    [
        ("fail", "the data do not meet what is expected"),
        ("quarantine", "are not in validated_quarantine yet, and this run does not write"),
    ],
)
def test_rows_are_held_to_checks_that_are_no_part_of_the_run(
    location: Location, source: Path, lake: Path, on_failure: str, says: str
) -> None:
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            {
                "type": "validate",
                "method": "inRange",
                "name": "validated",
                "config": {"column": "amount", "min": 0, "onFailure": on_failure},
            },
            transform("withColumns", columns={"twice": "amount * 2"}, registerAs="doubled"),
            {**load("toDeltaLake", path="/lake/t", mode="overwrite"), "name": "publish"},
            {**load("toDeltaLake", path="/lake/u", mode="overwrite"), "name": "publish_too"},
        )
    )
    write_rows(source, {"amount": 1})
    location.run("p")
    write_rows(source, {"amount": 3})
    location.run("p", only=["publish"])
    same_rows(rows_of(lake / "t"), pd.DataFrame({"amount": [3], "twice": [6]}))
    write_rows(source, {"amount": 4}, {"amount": -4})
    text = failure_text(location.run("p", only=["publish", "publish_too"], fail=True))
    assert text.count(says) >= 2
    same_rows(rows_of(lake / "t"), pd.DataFrame({"amount": [3], "twice": [6]}))
    same_rows(rows_of(lake / "u"), pd.DataFrame({"amount": [1], "twice": [2]}))
    location.run("p", fail=on_failure == "fail")
    assert location.run("p", only=["publish"], fail=on_failure == "fail").success is (on_failure == "quarantine")
    loaded = 3 if on_failure == "fail" else 4
    same_rows(rows_of(lake / "t"), pd.DataFrame({"amount": [loaded], "twice": [2 * loaded]}))


@pytest.mark.parametrize("chosen", [(), ("validated_even",)], ids=["none", "one"])
@pytest.mark.parametrize("materialized", ["view", "table"])
def test_rows_are_held_to_checks_that_the_run_of_their_asset_leaves_out(
    location: Location, source: Path, lake: Path, materialized: str, chosen: tuple[str, ...]
) -> None:
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}", materialized=materialized),
            {
                "type": "validate",
                "method": "expectations",
                "name": "validated",
                "config": {"expectations": {"even": "amount % 2 = 0", "positive": "amount > 0"}},
            },
            {**load("toDeltaLake", path="/lake/t", mode="overwrite"), "name": "publish"},
        )
    )
    write_rows(source, {"amount": 2})
    location.run("p")
    rows, publish = dg.AssetKey(["p", "rows"]), dg.AssetKey(["p", "publish"])
    part = job().get_subset(
        asset_selection={rows, publish}, asset_check_selection={dg.AssetCheckKey(rows, name) for name in chosen}
    )
    write_rows(source, {"amount": 4})
    assert part.execute_in_process(instance=location.instance).success
    same_rows(rows_of(lake / "t"), pd.DataFrame({"amount": [4]}))
    write_rows(source, {"amount": 4}, {"amount": -4})
    result = part.execute_in_process(instance=location.instance, raise_on_error=False)
    assert result.is_node_success("p__rows")
    assert "the data do not meet what is expected" in failure_text(result)
    same_rows(rows_of(lake / "t"), pd.DataFrame({"amount": [4]}))


def test_a_run_from_a_failure_needs_what_is_left_alone(location: Location, source: Path, lake: Path) -> None:
    """Not the sources of what its first run has written."""
    write_rows(source, {"id": 1}, {"id": 2})
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            transform("filterRows", condition="id > 1", registerAs="kept", materialized="table"),
            load("toDeltaLake", path="/lake/t"),
        )
    )
    lake.parent.mkdir(parents=True, exist_ok=True)
    lake.write_text("No folder can be here.")
    with dg.execute_job(dg.reconstructable(job), instance=location.instance) as first:
        assert not first.success
        assert first.is_node_success("p__kept")
    lake.unlink()
    shutil.move(source, source.with_suffix(".done"))
    left = dg.ReexecutionOptions.from_failure(first.run_id, location.instance)
    with dg.execute_job(dg.reconstructable(job), instance=location.instance, reexecution_options=left) as second:
        assert second.success
    same_rows(rows_of(lake / "t"), pd.DataFrame({"id": [2]}))


@pytest.mark.parametrize("retry", [None, {"maxRetries": 1}])
def test_what_a_run_had_written_is_not_added_by_runs_that_resume_it(
    retry: dict[str, Any] | None, location: Location, source: Path, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends between a commit and telling of it, as one does whose worker is killed; so does the second."""
    write_rows(source, {"id": 1}, {"id": 2})
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            load("toDeltaLake", path="/lake/t"),
            load("toS3", path="/lake/files", format="json", inputDataFrame="rows"),
            **({"retry": retry} if retry else {}),
        )
    )

    def ends(run: PipelineRun, step: PlannedStep, frame: DataFrame) -> LoadResult:
        loaded(run, step, frame)
        raise PipelineExecutionError("the worker was killed")

    loaded = PipelineRun.load
    with monkeypatch.context() as patched:
        patched.setattr(PipelineRun, "load", ends)
        with dg.execute_job(dg.reconstructable(job), instance=location.instance) as first:
            assert first.is_node_failed("p__to_delta_lake")
        left = dg.ReexecutionOptions.from_failure(first.run_id, location.instance)
        with dg.execute_job(dg.reconstructable(job), location.instance, reexecution_options=left) as second:
            assert second.is_node_failed("p__to_s3")
    wanted = pd.DataFrame({"id": [1, 2]})
    left = dg.ReexecutionOptions.from_failure(second.run_id, location.instance)
    with dg.execute_job(dg.reconstructable(job), location.instance, reexecution_options=left) as third:
        assert third.success
    same_rows(rows_of(lake / "t"), wanted)
    same_rows(pd.concat(pd.read_json(file, lines=True) for file in (lake / "files").glob("*.json")), wanted)
    assert location.metadata("p", "to_delta_lake")["dagster/row_count"] == 2
    # What was told is wanted once more by whoever asks for it.
    resumed = {"dagster/is_resume_retry": "true"}
    whole = dg.ReexecutionOptions(third.run_id)
    with dg.execute_job(dg.reconstructable(job), location.instance, tags=resumed, reexecution_options=whole) as fourth:
        assert fourth.success
    same_rows(rows_of(lake / "t"), pd.concat([wanted, wanted]))


def test_a_view_is_made_of_the_table_that_was_written_over_connect(
    location: Location,
    source: Path,
    lake: Path,
    spark_connect_server: SparkConnectServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a first write all is planned to find mistakes, and the query below then has a view of the table's plan."""
    monkeypatch.setenv("SPARK_REMOTE", spark_connect_server.remote)
    write_rows(source, *({"n": number} for number in range(5)))
    location.write(
        batch(
            "p",
            extract_file("rows", f"file://{source}"),
            transform("withColumns", columns={"id": "uuid()"}, registerAs="t", materialized="table"),
            transform("filterRows", condition="n > 1", registerAs="x"),
            {**load("toDeltaLake", path="/lake/x", mode="overwrite"), "name": "l_x"},
            transform("sql", query="SELECT id FROM x", registerAs="s"),
            {**load("toDeltaLake", path="/lake/s", mode="overwrite"), "name": "l_s"},
        )
    )
    location.run("p", only=["t", "l_s", "l_x"])
    written = rows_of(location.table("p", "t"))
    wanted = sorted(written.query("n > 1")["id"])
    assert len(wanted) == 3
    assert sorted(rows_of(lake / "x")["id"]) == wanted
    assert sorted(rows_of(lake / "s")["id"]) == wanted
