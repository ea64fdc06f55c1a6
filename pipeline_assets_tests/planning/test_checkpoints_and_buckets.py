"""What steps share where they read and write: checkpoints, and connections to buckets."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import load_folder
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, load, write_config
from pipeline_assets_tests.planning.bench import issues_of, planned, quarantine


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
