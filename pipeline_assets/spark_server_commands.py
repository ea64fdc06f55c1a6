"""The commands that keep a Spark Connect server between runs."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime

import click

from pipeline_assets.command_line import clear_errors
from pipeline_assets.settings import Settings
from pipeline_assets.spark.connect_server import ConnectServer, ServerRecord

_at = click.option(
    "--port", type=click.IntRange(1, 65535), default=15002, show_default=True, help="The port of the server."
)


@click.group("spark-server")
def spark_server() -> None:
    """A Spark Connect server on this machine: with it, runs start no JVM of their own."""


@spark_server.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. It asks for no password.")
@_at
@click.option("--conf", multiple=True, metavar="KEY=VALUE", help="A Spark setting of the server; repeatable.")
def start(host: str, port: int, conf: tuple[str, ...]) -> None:
    """Start the server, on the cluster of SPARK_MASTER or in itself, and return when it answers."""
    given = dict(_pair(text) for text in conf)
    settings = Settings.from_environment()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    with clear_errors():
        settings.check()
        server = ConnectServer(host, port).start(settings, given)
    _tell(server)
    click.echo(f"runs use it with SPARK_REMOTE={server.remote} in the environment")


@spark_server.command()
@_at
def status(port: int) -> None:
    """Say whether the server runs; exit code 1 when it does not."""
    server = ConnectServer("127.0.0.1", port).running()
    if server is None:
        click.echo(f"no Spark server was started at port {port}, or it has ended")
        sys.exit(1)
    _tell(server)


@spark_server.command()
@_at
def stop(port: int) -> None:
    """Stop the server, and with it what runs on it."""
    server = ConnectServer("127.0.0.1", port).stop()
    click.echo("there is none to stop" if server is None else f"{server.remote} has ended")


def _exit(number: int, _: object) -> None:
    """Leave in order, so that a server which does not answer yet is not left behind."""
    sys.exit(128 + number)


def _tell(server: ServerRecord) -> None:
    since = datetime.fromtimestamp(server.started, UTC).isoformat(timespec="seconds")
    click.echo(f"{server.remote}, process {server.pid} since {since}, log {server.log}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--conf")
    return key, value
