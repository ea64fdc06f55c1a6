"""The program by which Dagster shows a compute log in the terminal, waited for before Dagster ends it.

Dagster has ``tail`` follow the log and ends it at once when the steps are done, so that on a busy machine the terminal
lacks the last lines: why a step has failed (https://github.com/dagster-io/dagster/issues/23336).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

# A terminal that takes nothing, such as a pager, is not to hold up the run.
_PATIENCE_SECONDS = 2.0


class ComputeLogTail:
    """The child process that shows the file behind ``descriptor``, if there is one and Linux tells how far it is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._process = _tail_of(descriptor)
        self._position: Path | None = None

    def wait(self) -> None:
        """Return when it has shown what is in the file now; at once from when it has taken too long for that."""
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            size = os.fstat(self._descriptor).st_size
            while self._has_read(process) < size:
                if time.monotonic() > deadline or not _is_alive(process):
                    self._process = None
                    return
                time.sleep(0.001)
        except OSError:
            self._process = None  # one of the two has ended: there is nothing to wait for

    def _has_read(self, process: psutil.Process) -> int:
        """Return how many bytes it has read; 0 as long as it has not opened the file."""
        if self._position is None:
            log = os.fstat(self._descriptor)
            for opened in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # one that it has just closed
                    if os.path.samestat(opened.stat(), log):
                        self._position = Path(f"/proc/{process.pid}/fdinfo/{opened.name}")
        return int(self._position.read_text().split()[1]) if self._position is not None else 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _tail_of(descriptor: int) -> psutil.Process | None:
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None  # no Linux
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            command = child.cmdline()
            if path in command and Path(command[0]).name == "tail":
                return child
    return None
