"""Signals that ask a command to end, as an exception: what was started is stopped on the way out."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.number).name}: what this command started is stopped"


def raise_when_signalled() -> None:
    """From now on raise Interrupted at each signal. One may get lost, where Python calls back into C: not all may."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def ignore_signals() -> None:
    """From now on take no notice of them: what was started is being stopped, and that has time limits of its own."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
