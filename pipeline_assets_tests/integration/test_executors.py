"""The same configs wherever Spark and Dagster's steps run: the rows are the same, and nothing stays behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import cast

import dagster as dg
import pytest
from dagster._core.executor.base import Executor

from devstack.demo_data import cdnow_customers, cdnow_purchases, flight_logs
from pipeline_assets.config_loading import load_file
from pipeline_assets.executors import _TellingExecutor
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.settings import Settings
from pipeline_assets.spark.connect_sessions import KeptSessions
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    write_config,
)
from pipeline_assets_tests.integration.conftest import CONNECTIONS
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows
from pipeline_assets_tests.integration.run_processes import MARK, processes_of

REPOSITORY = CONNECTIONS.parents[1]


@pytest.fixture
def spark_address(request: pytest.FixtureRequest) -> dict[str, str]:
    """What tells a run where Spark is: embedded, a Connect server, a standalone cluster of two workers."""
    if request.param == "connect":
        return dict(request.getfixturevalue("spark_connect_server").environment)
    if request.param == "cluster":
        cluster = request.getfixturevalue("spark_cluster")
        assert cluster.workers == 2
        return dict(cluster.environment)
    return {}


@pytest.mark.parametrize("step", ["p__rows", "p__stream"])
def test_the_session_of_a_step_that_is_to_be_tried_again_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """One that has opened it and told of no asset yet."""
    kept: list[str] = []
    monkeypatch.setattr(KeptSessions, "keep", lambda _, pipeline: kept.append(pipeline))
    plan = plan_pipeline(load_file(write_config(tmp_path, batch("p", extract_file("rows", "/rows.csv")))))
    executor = _TellingExecutor(cast(Executor, None), {"p": plan}, own_processes=True)
    run = dg.DagsterRun("p", "run")
    with executor._kept_sessions(Settings(spark_remote="sc://server"), run) as keep:
        for key in (step, "of_others", None):
            keep(dg.DagsterEvent(dg.DagsterEventType.STEP_UP_FOR_RETRY.value, "p", step_key=key))
    assert kept == ["p"]


@pytest.mark.parametrize(
    ("spark_address", "executor"),
    [
        ("local", "in_process"),
        ("local", "multiprocess"),
        ("connect", "in_process"),
        ("connect", "multiprocess"),
        # Not a process for each step, of which each would be an application that waits for the cores of another.
        ("cluster", "in_process"),
    ],
    indirect=["spark_address"],
)
def test_a_job_from_the_command_line(
    tmp_path: Path, sources: dict[str, str], spark_address: dict[str, str], executor: str
) -> None:
    configs, warehouse, home = tmp_path / "configs", tmp_path / "warehouse", tmp_path / "home"
    configs.mkdir()
    home.mkdir()
    write_config(configs, CONNECTIONS.read_text(), "connections.json")
    # Delta reads a table's state in 50 tasks, which is for more than two small workers.
    few = {"sparkConf": {"spark.databricks.delta.snapshotPartitions": "2"}} if "SPARK_MASTER" in spark_address else {}
    for document in (CUSTOMER_360, OPTIMIZED_AGGREGATION):
        write_config(configs, {**document, **few})
    mark = str(uuid.uuid4())
    environment = {
        **os.environ,
        **sources,
        **spark_address,
        MARK: mark,
        "DAGSTER_HOME": str(home),
        "PIPELINE_ASSETS_CONFIGS": str(configs),
        "PIPELINE_ASSETS_WAREHOUSE": str(warehouse),
        "PIPELINE_ASSETS_EXECUTOR": executor,
    }
    programs = Path(sys.executable).parent
    located = ["-m", "pipeline_assets.definitions"]
    job = [programs / "dagster", "job", "execute", *located, "-j", "customer_360"]
    if executor == "multiprocess":
        commands = [job]  # the other pipeline has more steps than need a process each here
    elif spark_address:
        commands = [[programs / "dagster", "asset", "materialize", *located, "--select", "*"]]
    else:
        commands = [job, [programs / "dg", "launch", "--job", "optimized_aggregation"]]
    for command in commands:
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert processes_of(mark) == []
        if command is job:
            made = "3 assets materialized (customer_360/join_data_frames: 69,659 rows)"
            assert re.search(rf" s: {re.escape(made)}$", output, re.MULTILINE)

    purchases = cdnow_purchases()
    expected = cdnow_customers(purchases).merge(purchases, left_on="id", right_on="customer_id")
    assert len(expected) == 69_659
    same_rows(rows_of(warehouse / "customer_360" / "join_data_frames"), expected)
    if executor == "in_process":
        grouped = flight_logs(31).groupby(["date", "region"], as_index=False)
        counted = grouped.agg(total_events=("flight", "size"), unique_users=("user_id", "nunique"))
        found = rows_of(warehouse / "optimized_aggregation" / "coalesce")
        same_rows(found.assign(date=found["date"].astype(str)), counted)


def test_a_run_that_fails_leaves_no_process(tmp_path: Path, sources: dict[str, str]) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    document = {**CUSTOMER_360, "steps": [CUSTOMER_360["steps"][1]]}
    write_config(configs, document)
    write_config(configs, CONNECTIONS.read_text(), "connections.json")
    mark = str(uuid.uuid4())
    environment = {
        **os.environ,
        **sources,
        MARK: mark,
        "AWS_SECRET_ACCESS_KEY": "wrong-canary-secret",
        "PIPELINE_ASSETS_CONFIGS": str(configs),
        "PIPELINE_ASSETS_WAREHOUSE": str(tmp_path / "warehouse"),
    }
    command = [str(Path(sys.executable).parent / "dagster"), "job", "execute"]
    command += ["-m", "pipeline_assets.definitions", "-j", "customer_360"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "customer-360: step 0 (extract fromS3)" in output
    assert "wrong-canary-secret" not in output
    assert processes_of(mark) == []
