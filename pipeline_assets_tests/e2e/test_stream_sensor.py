"""The daemon keeps a stream alive: what is killed is noticed and replaced, and no record is lost or doubled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from devstack.dagster_daemon import StreamControl, dagster_daemon
from devstack.kafka import KafkaServer
from pipeline_assets.streaming.process_tags import PID_TAG
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.e2e.conftest import ARTIFACTS
from pipeline_assets_tests.e2e.dagster_servers import PROJECT
from pipeline_assets_tests.integration.conftest import CONNECTIONS
from pipeline_assets_tests.integration.delta_tables import count_rows, rows_of
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.integration.test_streams import from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

LIMIT = 400.0  # seconds; a run takes 20 to start, on a busy machine a hundred


@pytest.fixture
def environment(tmp_path: Path, kafka: KafkaServer) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    configs = tmp_path / "configs"
    configs.mkdir()
    write_config(configs, CONNECTIONS.read_text(), "connections.json")
    return {
        **os.environ,
        **kafka.environment,
        "DAGSTER_HOME": str(home),
        "PIPELINE_ASSETS_CONFIGS": str(configs),
        "PIPELINE_ASSETS_WAREHOUSE": str(tmp_path / "warehouse"),
        "PIPELINE_ASSETS_PATH_PREFIX": str(tmp_path / "root"),
        "SPARK_MASTER": "local[2]",
    }


def test_a_killed_worker_is_replaced(tmp_path: Path, kafka: KafkaServer, environment: dict[str, str]) -> None:
    topic = Topic(kafka).make()
    document = stream(from_kafka(topic, maxOffsetsPerTrigger=200), to_delta(trigger="200 milliseconds"))
    sensor = {"status": "running", "interval": 1, "delay": 1}
    write_config(tmp_path / "configs", {**document, "sensor": sensor})
    topic.send(events(0, 2000))

    table = tmp_path / "root" / "out"

    with (
        dagster_daemon(environment, ARTIFACTS / "logs" / "stream-sensor"),
        dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance,
    ):
        control = StreamControl(instance, "stream")
        wait_until(lambda: count_rows(table) >= 200, LIMIT)
        first = control.newest_run()
        assert first is not None
        os.kill(int(first.tags[PID_TAG]), signal.SIGKILL)
        assert count_rows(table) < 2000
        topic.send(events(2000, 500))
        wait_until(lambda: count_rows(table) >= 2500, LIMIT)
        second = control.newest_run()
        assert second is not None
        assert second.run_id != first.run_id
        killed = instance.get_run_by_id(first.run_id)
        assert killed is not None
        assert killed.status == dg.DagsterRunStatus.FAILURE
        assert [run.run_id for run in instance.get_runs()] == [second.run_id, first.run_id]
        control.end()
        ended = instance.get_run_by_id(second.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED
    assert Counter(map(int, rows_of(table)["id"])) == Counter(range(2500))
    topic.delete()


def test_a_run_for_new_data_only(tmp_path: Path, kafka: KafkaServer, environment: dict[str, str]) -> None:
    topic = Topic(kafka).make()
    document = stream(from_kafka(topic), to_delta())
    write_config(tmp_path / "configs", {**document, "sensor": {"status": "running", "interval": 1}})
    table = tmp_path / "root" / "out"
    with (
        dagster_daemon(environment, ARTIFACTS / "logs" / "new-data-sensor"),
        dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance,
    ):
        control = StreamControl(instance, "stream")
        at_rest = f"no new records: {topic.name}/0 at 0 of 0, {topic.name}/1 at 0 of 0"
        wait_until(lambda: control.says() == at_rest, LIMIT)
        topic.send(events(0, 20))
        at_rest = f"no new records: {topic.name}/0 at 10 of 10, {topic.name}/1 at 10 of 10"
        wait_until(lambda: control.says() == at_rest, LIMIT)
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.SUCCESS
        control.end()
    assert Counter(map(int, rows_of(table)["id"])) == Counter(range(20))
    topic.delete()
