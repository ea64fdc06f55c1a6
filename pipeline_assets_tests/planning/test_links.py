"""Which step reads what another writes, in its pipeline and in another one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import load_folder
from pipeline_assets.links import left_out, link_pipelines
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, extract_file, load, write_config
from pipeline_assets_tests.planning.bench import DELTA, issues_of, planned, quarantine


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
