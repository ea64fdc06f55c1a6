"""The program by which Dagster shows a compute log in the terminal, waited for before Dagster ends it.

Dagster has ``tail`` follow the log and ends it at once when the steps are done, so that on a busy machine the terminal
lacks the last lines: why a step has failed (https://github.com/dagster-io/dagster/issues/23336).

It is found in ``/proc`` (https://man7.org/linux/man-pages/man5/proc.5.html): psutil would be a megabyte in each run.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# A terminal that takes nothing, such as a pager, is not to hold up the run. A `tail` that is not told of changes looks
# each second.
_PATIENCE_SECONDS = 2.0


def wait_until_shown(descriptor: int) -> None:
    """Return when the file behind ``descriptor`` is shown as far as it has been written, or when that takes too long.

    At once where nothing shows it, or where the system does not tell how far (other than Linux).
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with suppress(OSError):
        log = os.fstat(descriptor)
        process = _tail_of(log)
        while process is not None and _shown_by(process) < log.st_size and _follows(process, log):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)


def _tail_of(log: os.stat_result) -> Path | None:
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            if _follows(process := Path("/proc", pid), log):
                return process
    return None


def _follows(process: Path, log: os.stat_result) -> bool:
    """Return whether ``process`` is a ``tail`` of ``log``: one that has ended has no command line, if not yet gone."""
    with suppress(OSError, ValueError):
        program, *_, path = process.joinpath("cmdline").read_text().removesuffix("\0").split("\0")
        return Path(program).name == "tail" and os.path.samestat(os.stat(path), log)
    return False


def _shown_by(process: Path) -> int:
    """Return how many bytes ``process`` has written. (What it has read may still be lost with it.)"""
    told = dict(line.split(": ") for line in process.joinpath("io").read_text().splitlines())
    return int(told["wchar"])
