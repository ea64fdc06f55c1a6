"""What the commands share: how they print, and how they end with an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console

from pipeline_assets.errors import PipelineError


def console() -> Console:
    """Return what tables are printed on: into a file or a pipe a line is never cut, as programs read it."""
    return Console() if sys.stdout.isatty() else Console(width=500)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with the error's own text and exit code 1; a traceback helps nobody here."""
    try:
        yield
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
