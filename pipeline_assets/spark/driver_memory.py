"""How much heap a driver gets that is all of Spark: as much as Java takes by itself, where Spark would say 1 GB.

Of a larger machine that leaves most unused: what does not fit into a tenth of what is there goes to disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from pipeline_assets.spark.java_options import default_heap

_MIB = 2**20
_LEAST = 1024 * _MIB
# Above it Java's pointers are twice as long: such a heap holds less, and is for its user to ask for.
_MOST = 31 * 1024 * _MIB


def runs_in_driver(master: str) -> bool:
    """Whether Spark has no executors of their own with ``master``."""
    return re.fullmatch(r"local(\[.*\])?", master) is not None


def default_driver_memory(master: str) -> AbstractContextManager[None]:
    """Have the drivers that are started inside take a share of the memory if they are all of Spark."""
    return default_heap(f"{driver_memory() // _MIB}m") if runs_in_driver(master) else nullcontext()


def driver_memory(processes: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return a quarter of the memory of this machine or container, in bytes, within 1 and 31 GiB.

    Source: Java's own rule, MaxRAMPercentage
    (https://docs.oracle.com/en/java/javase/17/docs/specs/man/java.html).
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(min([there, *_limits(processes, groups)]) // 4, _LEAST), _MOST)


def _limits(processes: Path, groups: Path) -> Iterator[int]:
    """Yield what Linux grants to this process's control groups, of version 2 or 1, as far as they are to be seen.

    Source: https://man7.org/linux/man-pages/man7/cgroups.7.html
    """
    with suppress(OSError):
        for line in (processes / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, limit = groups, "memory.max"
            elif "memory" in controllers.split(","):
                root, limit = groups / "memory", "memory.limit_in_bytes"
            else:
                continue
            # In a container the root is the group of the container itself.
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):  # "max": no limit
                    yield int((folder / limit).read_text())
                if folder == root:
                    break
