"""SIGINT and SIGTERM as requests to stop, for what must not be torn off in the middle."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first signal sets ``stop`` and a second one ``hurry``.

    Dagster's own SIGINT handler raises wherever the program is, in the middle of a call to the JVM too, and it lets
    SIGTERM, which Kubernetes and systemd send, pass. Dagster puts its handler back each time it resumes a generator:
    ``reassert`` after every yield. In a thread other than the main one, where Python has no handlers, nothing happens.
    """

    def __init__(self, stop: threading.Event, hurry: threading.Event) -> None:
        self._stop = stop
        self._hurry = hurry
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.reassert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reassert(self) -> None:
        """Put the handlers in place again."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()
