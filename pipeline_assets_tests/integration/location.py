"""A code location in a folder of its own, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from pipeline_assets.code_location import build_definitions
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import write_config


class Location:
    """Configs and warehouse below one folder; jobs run in this process, on a Dagster instance of their own."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.configs = folder / "configs"
        self.warehouse = folder / "warehouse"
        self.configs.mkdir()
        self.instance = instance

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process to use this location."""
        return {
            "PIPELINE_ASSETS_CONFIGS": str(self.configs),
            "PIPELINE_ASSETS_WAREHOUSE": str(self.warehouse),
            "PIPELINE_ASSETS_PATH_PREFIX": str(self.folder / "root"),
        }

    def write(self, *documents: dict[str, Any]) -> None:
        """Put pipelines into the configs folder."""
        for document in documents:
            write_config(self.configs, document)

    def definitions(self) -> dg.Definitions:
        """Load the location anew."""
        return build_definitions(Settings.from_environment())

    def run(
        self, job: str, *, partition: str | None = None, only: list[str] | None = None, fail: bool = False
    ) -> dg.ExecuteInProcessResult:
        """Run a job, or ``only`` some assets of it, and hold that it succeeds (or fails, when asked to)."""
        found = self.definitions().resolve_job_def(job)
        result = found.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey([job, name]) for name in only] if only else None,
            raise_on_error=False,
        )
        assert result.success is not fail, failure_text(result)
        return result

    def metadata(self, pipeline: str, asset: str) -> dict[str, Any]:
        """Return the values of the asset's last materialization's metadata."""
        return metadata_of(self.instance, pipeline, asset)

    def table(self, pipeline: str, asset: str) -> Path:
        """Return where the warehouse has the asset's table."""
        return self.warehouse / pipeline / asset


def metadata_of(instance: dg.DagsterInstance, pipeline: str, asset: str) -> dict[str, Any]:
    """Return the values of the metadata of the asset's last materialization in ``instance``."""
    event = instance.get_latest_materialization_event(dg.AssetKey([pipeline, asset]))
    assert event is not None
    assert event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """Return what the failed steps of a run say, causes included."""
    texts = []
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None:
                texts.append(error.message)
                error = error.cause
    return "\n".join(texts)
