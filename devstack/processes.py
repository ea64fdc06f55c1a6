"""The life of server processes: start in a session of their own, wait until they answer, stop."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from devstack.errors import CancelledStartError, PartFailedError

# What a server gets from the caller's environment. Everything else, secrets above all, stays out.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "JAVA_HOME")
_MARKER = "DEVSTACK_PROCESS"
_POLL = 0.1
_STOP_LIMIT = 15.0
_TAIL_LINES = 20


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The little of the caller's environment that servers need, and ``extra`` on top."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(extra or {})


@dataclass(frozen=True)
class ProcessRecord:
    """What it takes to stop a process from another process later."""

    name: str
    pid: int
    started: float
    marker: str
    log: str
    stop_signal: int

    def alive(self) -> bool:
        """Whether this very process runs; another one that got the same pid does not count."""
        try:
            process = psutil.Process(self.pid)
            # The clock that start times are computed with may be adjusted a little while a process runs.
            return abs(process.create_time() - self.started) < 1.0 and is_alive(process)
        except psutil.NoSuchProcess:
            return False

    def session(self) -> list[psutil.Process]:
        """The processes that this one started and that still run, itself included."""
        leader_alive = self.alive()
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) != self.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                # Without its leader a session's number proves nothing: it may have been given out again.
                if leader_alive or process.environ().get(_MARKER) == self.marker:
                    members.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return members


def stop_processes(records: Iterable[ProcessRecord], limit: float = _STOP_LIMIT) -> None:
    """Stop the processes, the last one first: its stop signal, then SIGKILL for the rest of its session."""
    for record in reversed(list(records)):
        members = record.session()
        if record.alive():
            os.kill(record.pid, record.stop_signal)
            _wait_for_end([process for process in members if process.pid == record.pid], limit)
        # What the leader left behind ends by itself when it sees that the leader has gone, or not at all.
        stragglers = {process.pid: process for process in members + record.session() if is_alive(process)}
        for process in stragglers.values():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _wait_for_end(list(stragglers.values()), limit)


def unrecorded_processes(marker: str) -> list[ProcessRecord]:
    """The processes of a run that was killed itself before it could write down what it had just started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARKER) == marker and os.getsid(process.pid) == process.pid:
                name, started = process.name(), process.create_time()
                found.append(ProcessRecord(name, process.pid, started, marker, "", signal.SIGTERM))
        except (ProcessLookupError, psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still does anything; one that waits for its parent to notice its end does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_end(processes: list[psutil.Process], limit: float) -> None:
    deadline = time.monotonic() + limit
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        threading.Event().wait(_POLL / 5)


@dataclass
class PartRun:
    """One start of one part: its folders, its logs and its processes."""

    part: str
    data: Path
    logs: Path
    cancel: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = lambda _text: None
    changed: Callable[[], None] = lambda: None
    records: list[ProcessRecord] = field(default_factory=list)
    marker: str = field(default_factory=lambda: secrets.token_hex(8))  # in its processes' environment
    leftovers: list[Path] = field(default_factory=list)  # outside the data folder
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _secrets: list[re.Pattern[str]] = field(default_factory=list)

    def secret(self) -> str:
        """A new random password; it is masked wherever this run quotes a log."""
        value = secrets.token_hex(16)
        self.masks(re.compile(value))
        return value

    def masks(self, pattern: re.Pattern[str]) -> None:
        """Mask what matches wherever this run quotes a log: a secret that the server makes itself."""
        self._secrets.append(pattern)

    def folder_of(self, user: str | None) -> Path:
        """A folder that ``user`` owns and can reach; the data folder itself when there is no such user."""
        if user is None:
            return self.data
        folder = Path(tempfile.mkdtemp(prefix=f"pipeline-assets-{self.part}-"))
        self.leaves(folder)
        shutil.chown(folder, user)
        return folder

    def leaves(self, *paths: Path) -> None:
        """Note files and folders outside the data folder that are to be removed at the end."""
        self.leftovers += paths
        self.changed()

    def spawn(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        user: str | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> ProcessRecord:
        """Start a process in a session of its own: the terminal's Ctrl+C does not reach it."""
        if self.cancel.is_set():
            raise CancelledStartError(self.part)
        log = self.logs / f"{name}.log"
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
            try:
                child = subprocess.Popen(
                    [str(word) for word in command],
                    env={**environment, _MARKER: self.marker},
                    cwd=cwd or self.data,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=user,
                    group=None if user is None else pwd.getpwnam(user).pw_gid,
                    extra_groups=None if user is None else [],
                )
            except OSError as error:
                raise PartFailedError(self.part, f"{command[0]} cannot be run: {error}") from error
        started = psutil.Process(child.pid).create_time()
        record = ProcessRecord(name, child.pid, started, self.marker, str(log), stop_signal)
        self._children[child.pid] = child
        self.records.append(record)
        self.changed()
        return record

    def run_to_end(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        limit: float,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a program that ends by itself, such as the one that prepares a data folder."""
        record = self.spawn(name, command, environment=environment, user=user, cwd=cwd)
        child = self._children[record.pid]
        deadline = time.monotonic() + limit
        try:
            while child.poll() is None:
                if self.cancel.is_set():
                    raise CancelledStartError(self.part)
                if time.monotonic() > deadline:
                    raise self.failure(record, f"{name} did not end within {limit:.0f} s")
                self.cancel.wait(_POLL / 2)
        finally:
            self._stop([record])
        if child.returncode != 0:
            raise self.failure(record, f"{name} ended with exit code {child.returncode}")

    def wait_until_ready(self, problem: Callable[[], str | None], limit: float) -> None:
        """Wait until ``problem`` returns None, while every process of this run stays alive."""
        deadline = time.monotonic() + limit
        while True:
            if self.cancel.is_set():
                raise CancelledStartError(self.part)
            for record in self.records:
                code = self._children[record.pid].poll()
                if code is not None:
                    raise self.failure(record, f"{record.name} ended with exit code {code}")
            reason = problem()
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise self.failure(self.records[-1], f"not ready within {limit:.0f} s: {reason}")
            self.cancel.wait(_POLL)

    def failure(self, record: ProcessRecord, reason: str) -> PartFailedError:
        """The error that names the process's log and quotes its end."""
        log = Path(record.log)
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        tail = "\n".join(lines)
        for pattern in self._secrets:
            tail = pattern.sub("*****", tail)
        return PartFailedError(self.part, reason, log, tail)

    def stop(self) -> None:
        """Stop every process of this run and remove its data; the logs stay."""
        self._stop(list(self.records))
        remove_paths([self.data, *self.leftovers])

    def stop_process(self, record: ProcessRecord) -> None:
        """Stop one process of this run; the data stay."""
        self._stop([record])

    def reap(self) -> None:
        """Take note of the end of processes that were stopped by their records."""
        for child in self._children.values():
            child.wait()
        self._children.clear()

    def _stop(self, records: list[ProcessRecord]) -> None:
        stop_processes(records)
        for record in records:
            self._children.pop(record.pid).wait()
            self.records.remove(record)
        self.changed()


def remove_paths(paths: Iterable[Path]) -> None:
    """Remove files, and folders with all that is in them; what has gone already is fine."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
