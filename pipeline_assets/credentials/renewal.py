"""Keeps what expires alive: one thread per run, which ends with the run."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

_log = logging.getLogger(__name__)
_JOIN_SECONDS = 5.0
_RETRY_SECONDS = 5.0


class Renewable(Protocol):
    """Something that expires unless it is renewed."""

    due: float | None
    """When to renew it next, by the monotonic clock; None when that is over."""

    def renew(self) -> None:
        """Renew it, and set ``due`` anew. Handles its own failures: nobody waits for it."""
        ...


class Renewer:
    """Renews what it watches, each when it is due. The thread starts with the first thing to watch."""

    def __init__(self) -> None:
        self._watched: list[Renewable] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def watch(self, renewable: Renewable) -> None:
        """Renew ``renewable`` from now on."""
        with self._changed:
            if self._stopped or renewable.due is None:
                return
            self._watched.append(renewable)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vault-renewal", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread. A request that it is in the middle of is waited for, but not for long."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                due = self._next_due()
                while not self._stopped and (due is None or due > time.monotonic()):
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
                    due = self._next_due()
                if self._stopped:
                    return
                ready = [it for it in self._watched if it.due is not None and it.due <= time.monotonic()]
            for renewable in ready:
                try:
                    renewable.renew()
                except Exception:  # noqa: BLE001  (the thread keeps the others alive as well)
                    _log.exception("what Vault gave could not be renewed: it is tried again in %.0f s", _RETRY_SECONDS)
                    renewable.due = time.monotonic() + _RETRY_SECONDS

    def _next_due(self) -> float | None:
        self._watched = [it for it in self._watched if it.due is not None]
        return min((it.due for it in self._watched if it.due is not None), default=None)
