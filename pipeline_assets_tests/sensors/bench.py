"""A sensor that a test lets look, on a real instance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.plan.objects import StepSuccessData
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from pipeline_assets.config_loading import load_folder
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.sensors import build_sensors
from pipeline_assets.settings import Settings
from pipeline_assets.streaming.checkpoint_lease import Process
from pipeline_assets.streaming.process_tags import process_tags
from pipeline_assets_tests.config_documents import write_config


def document(name: str = "stream", trigger: str | None = "5 seconds", **extract: Any) -> dict[str, Any]:
    load: dict[str, Any] = {"path": f"/data/{name}", "checkpointLocation": f"/checkpoints/{name}"}
    if trigger:
        load["trigger"] = trigger
    return {
        "name": name,
        "mode": "streaming",
        "sensor": {"delay": 10, "maxRestarts": 2, "interval": 5},
        "steps": [
            {"type": "extract", "method": "fromKafka", "config": {"topic": "events", "format": "text", **extract}},
            {"type": "load", "method": "toDeltaLake", "config": load},
        ],
    }


def origin_of(location: str) -> CodeLocationOrigin:
    return GrpcServerCodeLocationOrigin(host="localhost", port=4000, location_name=location)


@dataclass
class Bench:
    """The sensor of one pipeline on an instance, with a clock that can be put forward."""

    settings: Settings
    instance: dg.DagsterInstance
    ahead: float = 0.0
    cursor: str | None = None
    name: str = "stream"
    location: str | None = None
    switched_on: float | None = None

    def clock(self) -> float:
        return time.time() + self.ahead

    def sensor(self) -> dg.SensorDefinition:
        plans = plan_folder(load_folder(self.settings.configs)).plans
        (sensor,) = build_sensors(plans, self.settings, clock=self.clock, random=lambda: 1.0)
        return sensor

    def tick(self, *, save: bool = True) -> Any:
        """Return the key of the run that is requested, or the reason why there is none."""
        sensor = self.sensor()
        context = dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            log_key=None,
            repository_name="__repository__",
            instance=self.instance,
            sensor_name=sensor.name,
            last_sensor_start_time=self.switched_on,
            code_location_origin=origin_of(self.location) if self.location else None,
        )
        data = sensor.evaluate_tick(context)
        if save:
            self.cursor = data.cursor
        return data.run_requests[0].run_key if data.run_requests else data.skip_message

    def run(
        self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, process: Process | None = None, **tags: str
    ) -> dg.DagsterRun:
        """Make a run of the pipeline's job, with the events that such a one has, and tags that tell of ``process``."""
        run = create_run_for_test(
            self.instance,
            job_name=self.name,
            tags={key.replace("__", "/"): value for key, value in tags.items()},
            remote_job_origin=self._job_origin() if self.location else None,
        )
        if process is not None:
            self.instance.add_run_tags(run.run_id, process_tags(process, run.run_id))
        events = [DagsterEventType.PIPELINE_START] if status is not dg.DagsterRunStatus.NOT_STARTED else []
        if status is dg.DagsterRunStatus.CANCELED:
            events.append(DagsterEventType.PIPELINE_CANCELED)
        for kind in events:
            self.instance.report_dagster_event(DagsterEvent(kind.value, self.name), run.run_id)
        return run

    def run_of_assets(self, *assets: Sequence[str], process: Process | None = None) -> dg.DagsterRun:
        """Make a started run of ``assets``, as Dagster's UI starts one; of all that there are when none is named."""
        selection = frozenset(dg.AssetKey(asset) for asset in assets) or None
        run = create_run_for_test(self.instance, job_name=IMPLICIT_ASSET_JOB_NAME, asset_selection=selection)
        if process is not None:
            self.instance.add_run_tags(run.run_id, process_tags(process, run.run_id))
        started = DagsterEvent(DagsterEventType.PIPELINE_START.value, IMPLICIT_ASSET_JOB_NAME)
        self.instance.report_dagster_event(started, run.run_id)
        return run

    def step_event(self, run: dg.DagsterRun, kind: DagsterEventType, step: str) -> None:
        """Have ``run`` say of one of its steps that it has begun or ended."""
        data = StepSuccessData(duration_ms=0.0) if kind is DagsterEventType.STEP_SUCCESS else None
        event = DagsterEvent(kind.value, run.job_name, event_specific_data=data, step_key=step)
        self.instance.report_dagster_event(event, run.run_id)

    def _job_origin(self) -> RemoteJobOrigin:
        return RemoteRepositoryOrigin(origin_of(self.location or ""), "__repository__").get_job_origin(self.name)

    def executed(self, error: str | None, key: str | None = None) -> str:
        """Run a job of the pipeline's name to its end, by Dagster, and return the run's id."""

        @dg.op
        def work() -> None:
            if error:
                try:
                    raise ValueError(error)
                except ValueError as cause:
                    raise RuntimeError("wrapped") from cause

        @dg.job(name=self.name)
        def job() -> None:
            work()

        tags = {"dagster/run_key": key, "dagster/sensor_name": f"{self.name}_sensor"} if key else {}
        return job.execute_in_process(instance=self.instance, raise_on_error=False, tags=tags).run_id

    def status(self, run: dg.DagsterRun) -> dg.DagsterRunStatus:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status


def connect(bench: Bench, servers: str) -> None:
    write_config(bench.settings.configs, {"kafka": {"default": {"bootstrapServers": servers}}}, "connections.json")
