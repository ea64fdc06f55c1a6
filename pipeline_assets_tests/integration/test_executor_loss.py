"""A standalone cluster loses an executor and a worker in the middle of a run: it goes on, and its rows are right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from devstack.loopback_http import open_without_proxy
from devstack.ports import LOOPBACK, free_port
from devstack.processes import is_alive
from devstack.spark_servers import OwnSparkCluster
from pipeline_assets_tests.config_documents import batch, extract_file, transform, write_config
from pipeline_assets_tests.integration.delta_tables import rows_of, same_rows
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.spark_server_program import SparkServer

FILES, ROWS, KEYS, TASKS = 4, 50_000, 64, 16
# So long does each group take in the task that it is in: some seconds in all, however fast the machine is.
SLOW_GROUP = "reflect('java.lang.Thread', 'sleep', 200L) = 'null'"
# Each of these JVMs lives for seconds.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"


@dataclass(frozen=True)
class SparkState:
    """What the UI of the one application on a port tells about its executors and stages."""

    port: int

    def get(self, what: str) -> Any:
        base = f"http://{LOOPBACK}:{self.port}/api/v1/applications"
        try:
            with open_without_proxy(base) as answer:
                (application,) = json.load(answer)
            with open_without_proxy(f"{base}/{application['id']}/{what}") as answer:
                return json.load(answer)
        except (OSError, ValueError):  # there is no UI yet, or no application in it
            return []

    def executor(self, executor_id: str) -> dict[str, Any]:
        (found,) = (each for each in self.get("allexecutors") if each["id"] == executor_id)
        return dict(found)

    def at_work(self) -> str:
        """Return the id of an executor that works on what was shuffled, or "" when there is none.

        It has cached blocks and shuffle files.
        """
        reading = [stage for stage in self.get("stages?status=active") if stage["shuffleReadRecords"]]
        for each in self.get("executors") if reading else ():
            if each["id"] != "driver" and each["activeTasks"] and each["rddBlocks"] and each["totalShuffleWrite"]:
                return str(each["id"])
        return ""

    def repeats(self) -> int:
        """Return how many stages were run again for what was missing of them."""
        return sum(stage["attemptId"] > 0 for stage in self.get("stages"))


@dataclass(frozen=True)
class Address:
    """How a run reaches Spark: what is in its environment, and in the Spark conf of its config."""

    environment: Mapping[str, str]
    spark_conf: Mapping[str, str]


@contextmanager
def address(kind: str, master: str, ui_port: int, folder: Path) -> Iterator[Address]:
    """Give the address of a cluster to a run that is its driver, or that is a client of the driver."""
    conf = {
        "spark.ui.enabled": "true",
        "spark.ui.port": str(ui_port),
        "spark.ui.liveUpdate.period": "0",
        "spark.executor.extraJavaOptions": JAVA_OPTIONS,
    }
    if kind == "driver":
        yield Address({"SPARK_MASTER": master}, conf)
        return
    server = SparkServer(folder / "cache", {"SPARK_MASTER": master, "SPARK_SUBMIT_OPTS": JAVA_OPTIONS})
    with server.started(conf):
        yield Address({"SPARK_REMOTE": server.remote}, {})


@pytest.mark.parametrize(("kind", "losses"), [("driver", ("executor", "worker")), ("connect", ("executor",))])
def test_a_run_goes_on_without_what_was_lost(
    tmp_path: Path, own_spark_cluster: OwnSparkCluster, kind: str, losses: tuple[str, ...]
) -> None:
    state = SparkState(free_port())
    with (
        address(kind, own_spark_cluster.cluster.master, state.port, tmp_path) as reached,
        counting_job(tmp_path, reached) as job,
    ):
        killed = []
        for lost in losses:
            executor_id = job.wait_until(state.at_work)
            before, executor = state.repeats(), own_spark_cluster.executor(executor_id)
            (executor if lost == "executor" else own_spark_cluster.worker_of(executor)).kill()
            # What it had shuffled is computed again, from the files, as what it had cached is gone as well.
            job.wait_until(lambda before=before: state.repeats() > before)
            assert not state.executor(executor_id)["isActive"]
            killed.append(executor)
        assert job.end() == 0, job.output
    assert not any(map(is_alive, killed))
    expected = duckdb.sql(
        f"""SELECT key, count(*) AS "rows", sum(value)::BIGINT AS total
        FROM read_parquet('{tmp_path / "root" / "rows" / "*.parquet"}') GROUP BY key"""
    ).df()
    assert len(expected) == KEYS
    same_rows(rows_of(tmp_path / "warehouse" / "counted" / "slow"), expected)


@contextmanager
def counting_job(folder: Path, reached: Address) -> Iterator[JobProcess]:
    """Run a pipeline that caches rows, shuffles them, and takes its time with what it has shuffled."""
    for name in ("configs", "root", "home"):
        (folder / name).mkdir()
    write_rows(folder / "root")
    write_config(
        folder / "configs",
        batch(
            "counted",
            extract_file("numbers", "/rows/*.parquet", cache=True),
            transform("repartitionByColumns", columns=["key"], numPartitions=TASKS),
            transform("aggregateData", groupBy=["key"], aggregations={"rows": "count(*)", "total": "sum(value)"}),
            {**transform("filterRows", condition=SLOW_GROUP), "name": "slow"},
        ),
    )
    run_config = folder / "run.json"
    run_config.write_text(json.dumps({"resources": {"spark": {"config": {"spark_conf": dict(reached.spark_conf)}}}}))
    environment = {
        **reached.environment,
        "DAGSTER_HOME": str(folder / "home"),
        "PIPELINE_ASSETS_CONFIGS": str(folder / "configs"),
        "PIPELINE_ASSETS_WAREHOUSE": str(folder / "warehouse"),
        "PIPELINE_ASSETS_PATH_PREFIX": str(folder / "root"),
    }
    job = JobProcess("counted", environment, folder / "log", run_config)
    try:
        yield job
    finally:
        job.kill_all()


def write_rows(folder: Path) -> None:
    random = np.random.default_rng(36)
    (folder / "rows").mkdir()
    for number in range(FILES):
        keys, values = random.integers(0, KEYS, ROWS), random.integers(-(10**9), 10**9, ROWS)
        pd.DataFrame({"key": keys, "value": values}).to_parquet(folder / "rows" / f"{number}.parquet")
