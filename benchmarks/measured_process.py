"""Running a program as a process of its own, and what it cost: time of the wall and of processors, peak memory."""

from __future__ import annotations

import ctypes
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_MEMORY_EVERY = 0.05
_CHILDREN_EVERY = 0.25
_GONE_WITHIN = 60.0
# prctl(2)
_PR_SET_CHILD_SUBREAPER = 36


class ProgramFailedError(Exception):
    """A program that was to be measured ended with an error."""


@dataclass(frozen=True)
class ProcessCost:
    """One run. ``memory`` is the peak of the process alone, ``java_memory`` that of the JVM it started, in bytes.

    ``cpu_seconds`` are those that processors spent on the process and on all that it started, to the end of the last.
    ``started`` and ``ended`` are times of the clock, in seconds; ``output`` is what it wrote to standard output.
    """

    started: float
    seconds: float
    cpu_seconds: float
    memory: int
    java_memory: int
    output: str

    @property
    def ended(self) -> float:
        """When the process had gone."""
        return self.started + self.seconds


def run_measured(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> ProcessCost:
    """Run ``command`` in ``folder`` to its end; ProgramFailedError when that is not a success.

    It returns when everything that the program started has gone, too; the time is that of the program alone.
    """
    with (
        _adopting_orphans(),
        (folder / "stdout.log").open("w+b") as output,
        (folder / "stderr.log").open("w+b") as errors,
    ):
        cpu_before = _cpu_of_ended()
        started, begun = time.time(), time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=output, stderr=errors)
        watch = _MemoryWatch(child.pid)
        try:
            child.wait()
            seconds = time.perf_counter() - begun
        finally:
            watch.stop()
            if child.poll() is None:
                child.terminate()
                child.wait()
            watch.wait_for_children()
    text = (folder / "stdout.log").read_text(encoding="utf-8", errors="replace")
    if child.returncode != 0:
        tail = (text + (folder / "stderr.log").read_text(encoding="utf-8", errors="replace")).splitlines()[-40:]
        raise ProgramFailedError("\n".join([f"{' '.join(command)} ended with {child.returncode}:", *tail]))
    cpu_seconds = _cpu_of_ended() - cpu_before
    return ProcessCost(started, seconds, cpu_seconds, watch.memory, watch.java_memory, text)


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Have a JVM that outlives the program become a child of this process, which hears the times of its own alone.

    No longer than it is waited for: nobody would reap those of others.
    """
    if not psutil.LINUX:
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _cpu_of_ended() -> float:
    """Return the seconds that processors have spent on children of this process that are gone."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _MemoryWatch:
    """Looks again and again at the memory of a process and of the JVMs below it."""

    def __init__(self, pid: int) -> None:
        self.memory = 0
        self.java_memory = 0
        self._process = psutil.Process(pid)
        self._children: dict[int, psutil.Process] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def wait_for_children(self) -> None:
        """Wait until the processes below have gone: a JVM outlives the program a little."""
        _, alive = psutil.wait_procs(self._children.values(), timeout=_GONE_WITHIN)
        if alive:
            raise ProgramFailedError(f"{len(alive)} processes are still there after {_GONE_WITHIN:.0f} s")

    def _run(self) -> None:
        children_at = 0.0
        while not self._stopped.wait(_MEMORY_EVERY):
            self.memory = max(self.memory, _peak(self._process))
            if time.monotonic() >= children_at:
                children_at = time.monotonic() + _CHILDREN_EVERY
                self._look_below()

    def _look_below(self) -> None:
        try:
            self._children |= {child.pid: child for child in self._process.children(recursive=True)}
        except psutil.NoSuchProcess:
            return
        for child in self._children.values():
            try:
                if child.name() == "java":
                    self.java_memory = max(self.java_memory, _peak(child))
            except psutil.NoSuchProcess:
                continue


def _peak(process: psutil.Process) -> int:
    """Return the most memory that the process has held so far; where the system does not tell, what it holds now."""
    try:
        if psutil.LINUX:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            return int(found[1]) * 1024 if found else 0
        return int(process.memory_info().rss)
    except (OSError, psutil.NoSuchProcess):
        return 0
