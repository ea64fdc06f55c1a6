"""How much work the reference pipelines make Spark do. It does not depend on the machine: a change here is a change of
the product's speed, or of Spark's, and wants a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.spark_event_log import SparkWork, event_log_conf, read_event_log
from pipeline_assets_tests.config_documents import CUSTOMER_360, OPTIMIZED_AGGREGATION
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.integration.run_processes import JobProcess
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

Counted = Callable[..., SparkWork]


@pytest.fixture
def counted(location: Location, tmp_path: Path) -> Counted:
    """Run a job by Dagster's command line, and count what Spark did for it by Spark's own event log."""
    conf = event_log_conf(tmp_path / "events") | {"spark.master": "local[2]"}
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in conf.items()))
    (tmp_path / "home").mkdir()

    def run(job: str) -> SparkWork:
        environment = {
            **location.environment,
            "DAGSTER_HOME": str(tmp_path / "home"),
            "SPARK_CONF_DIR": str(tmp_path / "conf"),
        }
        process = JobProcess(job, environment, tmp_path / "log")
        assert process.end() == 0, process.output
        return read_event_log(tmp_path / "events")

    return run


def shape(work: SparkWork) -> dict[str, int]:
    return {name: getattr(work, name) for name in ("jobs", "stages", "scans", "shuffles", "broadcasts", "rows_read")}


@pytest.mark.usefixtures("reach_sources")
def test_customer_360(location: Location, counted: Counted) -> None:
    location.write(CUSTOMER_360)
    assert shape(counted("customer_360")) == {
        "jobs": 6, "stages": 4, "scans": 4, "shuffles": 0, "broadcasts": 1, "rows_read": 93_232,
    }  # fmt: skip


@pytest.mark.usefixtures("reach_sources")
def test_optimized_aggregation(location: Location, counted: Counted) -> None:
    location.write(OPTIMIZED_AGGREGATION)
    # All rows twice, as there is no schema in the config.
    assert shape(counted("optimized_aggregation")) == {
        "jobs": 5, "stages": 3, "scans": 3, "shuffles": 1, "broadcasts": 0, "rows_read": 54_008,
    }  # fmt: skip


def test_a_stream_of_one_micro_batch(location: Location, topic: Topic, counted: Counted) -> None:
    topic.send(events(0, 60))
    location.write(stream(from_kafka(topic), to_delta()))
    assert shape(counted("stream")) == {
        "jobs": 4, "stages": 3, "scans": 2, "shuffles": 0, "broadcasts": 0, "rows_read": 61,
    }  # fmt: skip
