"""The command that makes the report of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from pipeline_assets.command_line import clear_errors
from pipeline_assets.config_loading import load_folder
from pipeline_assets.planned_folder import plan_folder, select
from pipeline_assets.redaction import redact
from pipeline_assets.settings import Settings


@click.command()
@click.argument("name")
@click.option("--run", "run_id", metavar="ID", help="The run, by its id or the start of it; default: the last one.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it; default: <pipeline>-<run>.html in this folder.",
)
def report(name: str, run_id: str | None, output: Path | None) -> None:
    """Write one page of HTML about a run of the pipeline NAME, and print where it is.

    It is made from what Dagster's instance (DAGSTER_HOME) has of the run. Exit code 1 when there is no such pipeline or
    run, or when the instance can't be read.
    """
    # Not before: they load Dagster, and take a second.
    import dagster as dg

    from pipeline_assets.report.page import render_page
    from pipeline_assets.report.run_history import read_run
    from pipeline_assets.report.run_reports import save

    try:
        with clear_errors():
            plan = select(plan_folder(load_folder(Settings.from_environment().configs)), name)
            if not os.environ.get("DAGSTER_HOME"):
                raise click.ClickException("DAGSTER_HOME is not set: it is the folder where Dagster keeps its runs")
            with _instance_errors(), dg.DagsterInstance.get() as instance:
                found = read_run(instance, plan, run_id)
            file = output or Path(f"{plan.name}-{found.run_id[:8]}.html")
            save(render_page(found), file)
    except OSError as error:
        raise click.ClickException(f"the report can't be written: {error.strerror}: {error.filename}") from error
    click.echo(file)


@contextmanager
def _instance_errors() -> Iterator[None]:
    """Say in a line why Dagster's instance can't be opened or read."""
    from dagster import DagsterError

    try:
        yield
    except _storage_errors() as error:
        # Of a database, the cause says more than that it was tried often; of YAML, the second line says where.
        told = error if isinstance(error, DagsterError) else error.__cause__ or error
        lines = [line.strip() for line in str(told).splitlines() if line.strip()][:2]
        raise click.ClickException(f"Dagster's instance can't be read: {redact(' '.join(lines))}") from error


def _storage_errors() -> tuple[type[Exception], ...]:
    """Return what comes of a dagster.yaml that is wrong, and of files and databases that can't be had."""
    from dagster import DagsterError
    from dagster._check import CheckError
    from sqlalchemy.exc import SQLAlchemyError
    from yaml import YAMLError

    known = (DagsterError, CheckError, SQLAlchemyError, YAMLError, OSError, UnicodeDecodeError)
    with suppress(ImportError):  # an extra
        from dagster_postgres.utils import DagsterPostgresException

        return (*known, DagsterPostgresException)
    return known
