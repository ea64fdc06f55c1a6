"""The commands that show what runs have recorded of themselves."""

from __future__ import annotations

import signal
import threading

import click

from pipeline_assets.metrics.run_files import RunFilesReader
from pipeline_assets.settings import Settings


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

    folder = Settings.from_environment().metrics
    if folder is None:
        raise click.ClickException("PIPELINE_ASSETS_METRICS is not set: it is the folder where runs record metrics")
    registry = CollectorRegistry()
    registry.register(RecordedMetrics(RunFilesReader(folder)))
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
