"""The command line: ``python -m devstack up|down|status|env``."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from devstack.errors import DevstackError
from devstack.interrupts import run_command
from devstack.parts import Part
from devstack.spark_servers import SparkConnect
from devstack.stack import DEFAULT_PARTS, PARTS, Report, Stack, default_home
from pipeline_assets.command_line import console

_PART = click.Choice(list(PARTS))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """PostgreSQL, S3, Kafka, Vault and Spark servers on loopback, without Docker.

    State, data and logs are in $DEVSTACK_HOME, else in a folder per user among the temporary files.
    """


@main.command()
@click.argument("parts", nargs=-1, type=_PART)
@click.option("--with", "extra", multiple=True, type=_PART, help="Start this part too; may be repeated.")
@click.option("--conf", multiple=True, metavar="KEY=VALUE", help="Spark conf of spark-connect; may be repeated.")
def up(parts: tuple[str, ...], extra: tuple[str, ...], conf: tuple[str, ...]) -> None:
    """Start PARTS (default: postgres s3 kafka vault) and leave them running."""
    names = dict.fromkeys([*(parts or DEFAULT_PARTS), *extra])
    spark_conf = _pairs(conf)
    chosen: list[Part] = [SparkConnect(conf=spark_conf) if name == "spark-connect" else PARTS[name]() for name in names]
    if not parts:
        for part in list(chosen):
            advice = part.missing()
            if advice is not None and part.name not in extra:
                click.echo(f"warning: {part.name} is left out: {advice}", err=True)
                chosen.remove(part)
    with _progress([part.name for part in chosen]) as report:
        results = Stack(default_home()).up(chosen, report)
    failures = [result for result in results.values() if isinstance(result, DevstackError)]
    for failure in failures:
        click.echo(f"error: {failure}", err=True)
    if len(failures) < len(results):
        click.echo(f'To use them:  eval "$({_program()} env)"    To stop them:  {_program()} down')
    sys.exit(1 if failures else 0)


@main.command()
def down() -> None:
    """Stop all that runs and remove its data."""
    with _progress([]) as report:
        names = Stack(default_home()).down(report)
    if not names:
        click.echo("nothing was running")


@main.command()
@click.argument("parts", nargs=-1, type=_PART)
def status(parts: tuple[str, ...]) -> None:
    """Show PARTS (default: those that were started); exit code 0 when every one is healthy, else 1."""
    states = Stack(default_home()).states()
    names = parts or tuple(states)
    table = Table("part", "state", "address", "processes", "log folder", box=None, pad_edge=False)
    healthy = bool(names)
    for name in names:
        state = states.get(name)
        problem = "not started" if state is None else state.problem()
        healthy = healthy and problem is None
        address = state.server.address if state is not None and state.server is not None else ""
        pids = " ".join(str(record.pid) for record in state.processes) if state is not None else ""
        log = str(default_home() / "logs" / name) if state is not None else ""
        table.add_row(name, "healthy" if problem is None else problem, address, pids, log)
    if names:
        console().print(table)
    else:
        click.echo("nothing is running")
    sys.exit(0 if healthy else 1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of shell lines.")
def env(as_json: bool) -> None:
    """Print how to reach what runs, as lines for a shell to eval."""
    environment = Stack(default_home()).environment()
    if not environment:
        raise click.ClickException(f"nothing is running; start it with: {_program()} up")
    if as_json:
        click.echo(json.dumps(environment, indent=2))
        return
    for name, value in environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _pairs(conf: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for each in conf:
        key, separator, value = each.partition("=")
        if not separator:
            raise click.BadParameter(f"{each!r} is not KEY=VALUE", param_hint="--conf")
        pairs[key] = value
    return pairs


def _program() -> str:
    return "python -m devstack"


@contextmanager
def _progress(names: list[str]) -> Iterator[Report]:
    """One line per part that says what it does now; plain lines when nobody watches."""
    if not sys.stdout.isatty():
        begun = time.monotonic()
        yield lambda name, text: click.echo(f"{time.monotonic() - begun:6.1f} s  {name}: {text}")
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[part]:14}"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console()) as progress:
        tasks = {name: progress.add_task("waiting", part=name, total=1) for name in names}

        def report(name: str, text: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task("", part=name, total=1)
            done = text in ("ready", "already running", "stopped") or text.startswith("failed")
            progress.update(tasks[name], description=text, completed=1 if done else 0)

        yield report


if __name__ == "__main__":
    run_command(main)
