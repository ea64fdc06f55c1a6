"""The demo: ``python -m devstack.demo run`` and ``ui``, on real PostgreSQL and S3 with CDNOW's purchases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import click
from rich.console import Console
from rich.markdown import Markdown

from devstack.dagster_daemon import PROJECT, program
from devstack.demo_data import is_loaded, load_cdnow, load_flight_logs
from devstack.errors import DevstackError
from devstack.interrupts import Interrupted, ignore_signals, run_command
from devstack.ports import free_port, is_free
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server
from devstack.stack import PARTS, Stack, default_home

DAGSTER_HOME = PROJECT / ".dagster_home"
JOB = "customer_360"
TABLE_ASSET = [JOB, "join_data_frames"]
_END_LIMIT = 60.0
# `dagster dev` advises to call `dg dev` instead; a user of `make ui` calls neither.
_NO_ADVICE = {"PYTHONWARNINGS": "ignore:Function `dev_command` is superseded"}

console = Console()


@click.group()
def main() -> None:
    """Run the demo, or open Dagster on it."""


@main.command()
def run() -> None:
    """Start the servers, load the data, run customer_360 and show the table that it made."""
    environment = _ready()
    with step(f"dagster job execute -m pipeline_assets.definitions -j {JOB}"):
        _execute(JOB, environment)
    _show_table(environment)
    console.print("\nOpen Dagster on it:  [bold]make ui[/]     Stop the servers:  [bold]make down[/]")


@main.command()
@click.option("--port", default=3000, show_default=True, help="Port of the web server; another when it is taken.")
def ui(port: int) -> None:
    """Run Dagster's web server and daemon on the demo's servers until Ctrl+C."""
    environment = _ready()
    free = port if is_free(port) else free_port()
    console.print(f"\nDagster: [bold]http://127.0.0.1:{free}[/]  (Ctrl+C ends it)")
    arguments = ["dev", "--host", "127.0.0.1", "--port", str(free), "-w", "workspace.yaml"]
    try:
        sys.exit(_dagster(arguments, _NO_ADVICE | environment))
    except Interrupted:
        return  # as announced


def _ready() -> dict[str, str]:
    """Bring up PostgreSQL and S3 with the data in them; returns the environment to run Dagster in."""
    stack = Stack(default_home())
    with step("PostgreSQL and S3"):
        servers = stack.up([PARTS["postgres"](), PARTS["s3"]()])
    for result in servers.values():
        if isinstance(result, DevstackError):
            raise result
    postgres, s3 = servers["postgres"], servers["s3"]
    assert isinstance(postgres, PostgresServer)
    assert isinstance(s3, S3Server)
    if is_loaded(postgres, s3):
        console.print("[green]✓[/] the data are there already")
    else:
        with step("loading CDNOW's customers into PostgreSQL, its orders and a month of flights into S3"):
            load_flight_logs(s3)
            load_cdnow(postgres, s3)  # last, as is_loaded() looks at what it loads
    return dagster_environment(stack)


def dagster_environment(stack: Stack) -> dict[str, str]:
    """Return the environment to run Dagster in, on the servers of ``stack``; makes Dagster's home."""
    DAGSTER_HOME.mkdir(exist_ok=True)
    (DAGSTER_HOME / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    return {
        **os.environ,
        **stack.environment(),
        "DAGSTER_HOME": str(DAGSTER_HOME),
        "PIPELINE_ASSETS_CONFIGS": str(PROJECT / "configs"),
        "PIPELINE_ASSETS_WAREHOUSE": str(PROJECT / "warehouse"),
        "PIPELINE_ASSETS_PATH_PREFIX": str(PROJECT / "warehouse" / "_root"),
    }


def _execute(job: str, environment: dict[str, str]) -> None:
    """Run the job as a user would; what it prints goes to a file, of which a failure shows the end."""
    log = DAGSTER_HOME / "demo.log"
    with log.open("w") as output:
        code = _dagster(["job", "execute", "-m", "pipeline_assets.definitions", "-j", job], environment, output)
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-40:])
        raise click.ClickException(f"the job failed; the end of {log}:\n{tail}")


def _dagster(arguments: Sequence[str], environment: Mapping[str, str], output: IO[str] | None = None) -> int:
    """Run Dagster's command line to its end, and return its exit code; ``output`` takes what it prints.

    When this process is interrupted it is too, and has time to end what it does.
    """
    # In a session of its own: the terminal's Ctrl+C, which a signal to this process alone is not, would come twice.
    process = subprocess.Popen(
        [program("dagster"), *arguments],
        cwd=PROJECT,
        env=environment,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait()
    except Interrupted:
        ignore_signals()
        with step("waiting for Dagster to end what it does"):
            _interrupt(process)
        raise


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the process and its children, as a terminal does, and wait until it has ended."""
    with suppress(ProcessLookupError):  # it has ended in this moment
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        console.print(f"It did not within {_END_LIMIT:.0f} s and was killed: Dagster may show its run as started.")


def _show_table(environment: dict[str, str]) -> None:
    import dagster as dg

    os.environ["DAGSTER_HOME"] = environment["DAGSTER_HOME"]
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(TABLE_ASSET))
    if event is None or event.asset_materialization is None:
        raise click.ClickException(f"the job has materialized no asset {'/'.join(TABLE_ASSET)}")
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    console.print()
    console.print(Markdown(str(metadata["preview"])))
    console.print(
        f"\n{metadata['dagster/row_count']:,} rows in the Delta table [bold]{metadata['dagster/uri']}[/], "
        f"version {metadata['table_version']}"
    )


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show what is being done, and how long it took."""
    begun = time.monotonic()
    with console.status(text):
        yield
    console.print(f"[green]✓[/] {text}  [dim]{time.monotonic() - begun:.1f} s[/]")


if __name__ == "__main__":
    run_command(main)
