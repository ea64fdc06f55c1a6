"""The commands that show what runs have recorded of themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import click

from pipeline_assets.config_files import pipeline_files
from pipeline_assets.config_loading import load_folder
from pipeline_assets.errors import PipelineError
from pipeline_assets.metrics.run_files import RunFilesReader
from pipeline_assets.plan import DEAD_LETTERS_CHECK, PipelinePlan, Role, check_name
from pipeline_assets.planned_folder import plan_folder
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import ValidateMethod


@click.group()
def metrics() -> None:
    """What runs have recorded of themselves, in numbers."""


@metrics.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9464,
    show_default=True,
    help="Port to listen on; 0 for one that is free.",
)
def serve(host: str, port: int) -> None:
    """Answer Prometheus with the metrics of all runs, from the folder PIPELINE_ASSETS_METRICS, until it is stopped."""
    from prometheus_client import CollectorRegistry, start_http_server

    from pipeline_assets.metrics.prometheus import RecordedMetrics

    settings = Settings.from_environment()
    folder = settings.metrics
    if folder is None:
        raise click.ClickException("PIPELINE_ASSETS_METRICS is not set: it is the folder where runs record metrics")
    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(folder), lambda: in_configs(settings.configs)))
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from None
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    click.echo(f"metrics of {folder.absolute()} at http://{host}:{server.server_port}/metrics")
    stopped.wait()
    server.shutdown()


def in_configs(folder: Path) -> Callable[[Mapping[str, str]], bool]:
    """Return what tells by a series' labels whether it is of something that the configs in ``folder`` have.

    Everything is, where there are none. With one that does not load, so is each pipeline that no other config is of.
    """
    try:
        states = ((path.name, path.stat()) for path in pipeline_files(folder))
        return _in_configs(folder, tuple((name, state.st_mtime_ns, state.st_size) for name, state in states))
    except (PipelineError, OSError):
        return lambda _: True


@lru_cache(maxsize=1)
def _in_configs(folder: Path, _state: tuple[tuple[str, int, int], ...]) -> Callable[[Mapping[str, str]], bool]:
    found = plan_folder(load_folder(folder))
    pipelines = {plan.name for plan in found.plans}
    known = {names for plan in found.plans for names in _names(plan)}

    def is_known(labels: Mapping[str, str]) -> bool:
        if labels["pipeline"] not in pipelines:
            # A secret may be asked for without a pipeline.
            return bool(found.broken) or not pipelines or not labels["pipeline"]
        return "step" not in labels or (labels["pipeline"], labels["step"], labels.get("check")) in known

    return is_known


def _names(plan: PipelinePlan) -> Iterator[tuple[str, str, str | None]]:
    """Yield pipeline, step and check, or None, of what runs of ``plan`` tell of."""
    if plan.is_streaming:
        yield plan.name, plan.stream_op_name.removeprefix(f"{plan.name}__"), None
    for step in plan.steps:
        for asset in (step.name, step.quarantine, step.dead_letters):
            if asset is not None:
                yield plan.name, asset, None
        if step.dead_letters is not None:
            yield plan.name, step.name, DEAD_LETTERS_CHECK
        if isinstance(step.method, ValidateMethod):
            checked = plan.steps[step.inputs[0]] if step.role is Role.CHECK else step
            for expectation in step.method.expectation_names():
                yield plan.name, checked.name, check_name(step.name, expectation)
