"""A code location in a folder of its own: what the programs that are measured are given, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured_process import ProcessCost, run_measured
from devstack.dagster_daemon import PROJECT, program

# Read from the caller's environment they would change what is measured.
NOT_PASSED_ON = ("DAGSTER_", "PIPELINE_ASSETS_", "SPARK_", "PYSPARK_", "PG", "AWS_", "PYTHON")


def inherited() -> dict[str, str]:
    """Return what the programs are given of the caller's environment, and where they find this project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
    return {**kept, "PYTHONPATH": str(PROJECT)}


def job_command(job: str) -> tuple[str, ...]:
    """Return the command that runs a pipeline, as users have it."""
    return ("dagster", "job", "execute", "-m", "pipeline_assets.definitions", "-j", job)


def script_conf() -> dict[str, str]:
    """Return Spark's conf for a bare script: what the location gives its sessions, and its JARs."""
    from pipeline_assets.settings import Settings
    from pipeline_assets.spark.session_conf import driver_jars, session_conf

    return session_conf(Settings()) | {"spark.jars": ",".join(map(str, driver_jars()))}


class CodeLocation:
    """A folder with Dagster's home, configs and tables; ``environment`` is that of its programs."""

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None) -> None:
        """Make it in ``folder``; ``more`` environment wins."""
        self.folder = folder
        self.configs = folder / "configs"
        self.dagster_home = folder / "dagster_home"
        self.root = folder / "root"
        self.warehouse = folder / "warehouse"
        for each in (self.configs, self.dagster_home):
            each.mkdir(parents=True)
        shutil.copy(PROJECT / "dagster.yaml", self.dagster_home)
        self.environment = {
            **inherited(),
            "DAGSTER_HOME": str(self.dagster_home),
            "PIPELINE_ASSETS_CONFIGS": str(self.configs),
            "PIPELINE_ASSETS_WAREHOUSE": str(self.warehouse),
            "PIPELINE_ASSETS_PATH_PREFIX": str(self.root),
            **(more or {}),
        }

    def write(self, config: Mapping[str, Any]) -> None:
        """Put a pipeline into the location."""
        (self.configs / f"{config['name']}.json").write_text(json.dumps(config))

    def execute(
        self,
        job: str,
        spark_conf: Mapping[str, str] | None = None,
        more: Mapping[str, str] | None = None,
        run_by: Sequence[str] = (),
    ) -> ProcessCost:
        """Run a pipeline by Dagster's command line, with ``more`` environment.

        ``run_by``: a program that runs Python's scripts, a profiler for instance, with its arguments.
        """
        name, *arguments = job_command(job)
        command = [*run_by, program(name), *arguments]
        if spark_conf:
            config = self.folder / "run_config.json"  # JSON is YAML
            config.write_text(json.dumps({"resources": {"spark": {"config": {"spark_conf": dict(spark_conf)}}}}))
            command += ["-c", str(config)]
        return run_measured(command, {**self.environment, **(more or {})}, self.folder)
