"""How much work the reference pipelines make Spark do, and what they have Python load. It does not depend on the
machine: a change here is a change of the product's speed, or of Spark's, and wants a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.spark_event_log import SparkWork, event_log_conf, read_event_log
from pipeline_assets_tests.config_documents import CUSTOMER_360, OPTIMIZED_AGGREGATION
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess, with_spark_conf
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

Counted = Callable[[str], tuple[SparkWork, set[str]]]


@pytest.fixture
def counted(location: Location, tmp_path: Path) -> Counted:
    """Run a job by Dagster's command line. Returns what Spark did, by its own event log, and what Python imported."""
    conf = event_log_conf(tmp_path / "events") | {"spark.master": "local[2]"}
    (tmp_path / "home").mkdir()

    def run(job: str) -> tuple[SparkWork, set[str]]:
        environment = {
            **location.environment,
            "DAGSTER_HOME": str(tmp_path / "home"),
            **with_spark_conf(conf),
            "PYTHONPROFILEIMPORTTIME": "1",
        }
        process = JobProcess(job, environment, tmp_path / "log")
        assert process.end() == 0, process.output
        lines = [line for line in process.output.splitlines() if line.startswith("import time")]
        return read_event_log(tmp_path / "events"), {line.rpartition("|")[2].strip() for line in lines}

    return run


def shape(work: SparkWork) -> dict[str, int]:
    return {name: getattr(work, name) for name in ("jobs", "stages", "scans", "shuffles", "broadcasts", "rows_read")}


@pytest.mark.usefixtures("reach_sources")
def test_customer_360(location: Location, counted: Counted) -> None:
    location.write(CUSTOMER_360)
    work, imported = counted("customer_360")
    assert shape(work) == {
        "jobs": 6, "stages": 4, "scans": 4, "shuffles": 0, "broadcasts": 1, "rows_read": 93_232,
    }  # fmt: skip
    assert {"dagster", "pyspark", "psycopg"} <= imported
    # They take as much memory as all else that a run's process needs beyond Dagster.
    assert not {"pyarrow", "numpy", "pandas"} & imported


@pytest.mark.usefixtures("reach_sources")
def test_optimized_aggregation(location: Location, counted: Counted) -> None:
    location.write(OPTIMIZED_AGGREGATION)
    # All rows twice, as there is no schema in the config.
    work, _ = counted("optimized_aggregation")
    assert shape(work) == {
        "jobs": 5, "stages": 3, "scans": 3, "shuffles": 1, "broadcasts": 0, "rows_read": 54_008,
    }  # fmt: skip


def test_a_stream_of_one_micro_batch(location: Location, topic: Topic, counted: Counted) -> None:
    topic.send(events(0, 60))
    location.write(stream(from_kafka(topic), to_delta()))
    work, _ = counted("stream")
    assert shape(work) == {
        "jobs": 4, "stages": 3, "scans": 2, "shuffles": 0, "broadcasts": 0, "rows_read": 61,
    }  # fmt: skip
