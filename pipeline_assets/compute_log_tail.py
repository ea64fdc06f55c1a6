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

# A terminal that takes nothing, such as a pager, is not to hold up the run. A `tail` that is not told of changes looks
# each second.
_PATIENCE_SECONDS = 2.0


def wait_until_shown(descriptor: int) -> None:
    """Return when the file behind ``descriptor`` is shown as far as it has been written, or when that takes too long.

    At once where nothing shows it, or where the system does not tell how far (other than Linux).
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with suppress(OSError, psutil.Error):
        process = _tail_of(descriptor)
        size = os.fstat(descriptor).st_size
        while process is not None and _shown_by(process) < size and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)


def _tail_of(descriptor: int) -> psutil.Process | None:
    log = os.fstat(descriptor)
    for child in psutil.Process().children():
        with suppress(OSError, psutil.Error):
            program, *_, path = child.cmdline()
            if Path(program).name == "tail" and os.path.samestat(os.stat(path), log):
                return child
    return None


def _shown_by(process: psutil.Process) -> int:
    """Return how many bytes ``process`` has written. (What it has read may still be lost with it.)"""
    told = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    return int(told["wchar"])
