"""SIGINT and SIGTERM as requests to end a run: what it is doing is interrupted where it is done, and cleaned up."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from pipeline_assets.errors import PipelineCancelledError

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPT_SECONDS = 0.2
# A terminal sends Ctrl+C to every process of a run, and a parent passes it on to its children.
_SAME_REQUEST_SECONDS = 1.0


class Cancellation:
    """Whether the run of this process is to end. Entered, it takes the signals over from Dagster.

    Dagster's own handler raises wherever the program is, in the middle of a call to the JVM too. Dagster puts its
    handlers back around each op, and each time it resumes a generator: ``reassert`` then. In a thread other than the
    main one, where Python has no handlers, signals do nothing.
    """

    def __init__(self, grace_seconds: float = 5.0) -> None:
        self.stop = threading.Event()
        """Set when the run is to end."""
        self.hurry = threading.Event()
        """Set when it was asked for a second time: nothing is to be waited for."""
        self._grace_seconds = grace_seconds
        self._requested_at = 0.0
        self._is_guarding = False
        self._interrupts: list[_Interrupt] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.reassert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def reassert(self) -> None:
        """Put the handlers in place again."""
        for number in self._before:
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise PipelineCancelledError when the run is to end."""
        if self.stop.is_set():
            raise PipelineCancelledError("the run was asked to stop")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run what is inside so that a stop ends it, with PipelineCancelledError.

        When a stop is asked for, all that is entered by ``interrupting`` is interrupted until it has ended: its error,
        and what is cleaned up on its way, is the end of it. What does not end within the grace period, or is asked to
        stop again, is left by an exception wherever it is.
        """
        self.reassert()
        self.check()
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), name="cancellation", daemon=True)
        watcher.start()
        self._is_guarding = bool(self._before)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._is_guarding = False
            if not self.stop.is_set() or isinstance(error, PipelineCancelledError):
                raise
            raise PipelineCancelledError("the run was asked to stop, and what it was doing was given up") from error
        finally:
            self._is_guarding = False
            ended.set()
            watcher.join()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """While inside, have a stop call ``interrupt``, from other threads, again and again.

        It is not waited for: a call that is still on its way when what is inside has ended is left to itself.
        """
        own = _Interrupt(interrupt)
        self._interrupts.append(own)
        try:
            yield
        finally:
            self._interrupts.remove(own)

    def _watch(self, ended: threading.Event) -> None:
        while not self.stop.is_set() and not ended.wait(_INTERRUPT_SECONDS):
            pass
        deadline = time.monotonic() + self._grace_seconds
        while not ended.is_set():
            for interrupt in list(self._interrupts):
                interrupt.call()
            if time.monotonic() > deadline and self._is_guarding:
                self.hurry.set()
                os.kill(os.getpid(), signal.SIGINT)
                return
            ended.wait(_INTERRUPT_SECONDS)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self.stop.is_set():
            self._requested_at = time.monotonic()
            self.stop.set()
        elif self.hurry.is_set() or time.monotonic() > self._requested_at + _SAME_REQUEST_SECONDS:
            self.hurry.set()
            if self._is_guarding:
                self._is_guarding = False
                # Py4J closes its connection to the JVM for this exception alone.
                raise KeyboardInterrupt


class _Interrupt:
    """Calls ``action`` in a thread of its own: a Spark that does not answer holds it for minutes, or for good."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._thread: threading.Thread | None = None

    def call(self) -> None:
        """Begin a call, unless the last one is on its way still."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="interrupt", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:  # noqa: BLE001  (what can't be interrupted is left after the grace period)
            _log.debug("interrupting: %s", type(error).__name__)
