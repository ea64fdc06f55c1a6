"""Signals that ask a command to end, as an exception: what was started is stopped on the way out."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from devstack.errors import DevstackError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.number).name}"


def run_command(command: Callable[[], object]) -> None:
    """Run a command line: a signal raises Interrupted in it; that, and what goes wrong, end it with one message."""
    # One may get lost, where Python calls back into C: not all may.
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        command()
    except Interrupted as interruption:
        click.echo(str(interruption), err=True)
        sys.exit(128 + interruption.number)
    except DevstackError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def ignore_signals() -> None:
    """From now on take no notice of them: what was started is being stopped, and that has time limits of its own."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Take no notice of them for as long as something is being stopped; in a thread they do not arrive anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ignore_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
