"""One writer per checkpoint: a lease on it, which another run takes over when its holder is gone.

Spark's own checkpoint log is a second line of defence: of two queries that plan the same batch, one fails.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pipeline_assets.errors import PipelineCancelledError, PipelineError, PipelineExecutionError
from pipeline_assets.steps.checkpoint import OWN_FOLDER, Checkpoint, TornFileError
from pipeline_assets.steps.file_systems import LocalFolder

_log = logging.getLogger(__name__)
_DOCUMENT = "lease"
_LOCK_FILE = "lease.lock"
_LOCK_WAIT_SECONDS = 5.0
# Object stores have no lock: of two that write at once, the later one is there after this.
_SETTLE_SECONDS = 2.0
# A run can be filed as ended while its process writes on: that it does so no more, its renewals tell.
_MISSED_RENEWALS = 2
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process, so that others can tell whether it still runs. ``machine`` and ``started`` are None without /proc.

    ``machine`` is the boot and the process namespace that ``pid`` counts in: a host's name alone may be that of two.
    """

    host: str
    pid: int
    machine: str | None = None
    started: int | None = None

    @classmethod
    def this(cls) -> Self:
        """Return the process that we are."""
        pid = os.getpid()
        state = _process_state(pid)
        return cls(socket.gethostname(), pid, _machine(), state[1] if state else None)

    def is_gone(self) -> bool:
        """Whether it is known to have ended: False for one on another host, which can't be looked at from here."""
        if self.host != socket.gethostname() or (self.machine and self.machine != _machine()):
            return False
        state = _process_state(self.pid)
        if state is None:  # there is no /proc, or it does not show the processes of others
            return not _answers(self.pid)
        # A zombie runs no more; another start time is another process that got the same number.
        return state[0] == "Z" or self.started not in (None, state[1])

    def is_here(self) -> bool:
        """Whether it is known to run: False for one on another host."""
        on_this_machine = self.host == socket.gethostname() and self.machine in (None, _machine())
        return on_this_machine and not self.is_gone()


@dataclass(frozen=True)
class Holder:
    """Who holds a checkpoint, as its lease document says. Times are UTC."""

    run_id: str
    process: Process
    token: str
    acquired_at: datetime
    renewed_at: datetime
    expiry_seconds: float

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self | None:
        """Return the holder of ``checkpoint``; None when nobody holds it.

        Raises PipelineExecutionError when that can't be read.
        """
        try:
            document = checkpoint.read_document(_DOCUMENT)
            if document is None:
                return None
            return cls(
                run_id=document["run_id"],
                process=Process(document["host"], document["pid"], document["machine"], document["started"]),
                token=document["token"],
                acquired_at=datetime.fromisoformat(document["acquired_at"]),
                renewed_at=datetime.fromisoformat(document["renewed_at"]),
                expiry_seconds=document["expiry_seconds"],
            )
        except (TornFileError, ValueError, KeyError, TypeError):
            raise PipelineExecutionError(
                f"{checkpoint.path}/{OWN_FOLDER}/{_DOCUMENT}.json is no lease: "
                "delete it once no run writes to this checkpoint"
            ) from None

    def write(self, checkpoint: Checkpoint) -> None:
        """Make this the holder of ``checkpoint``."""
        document = {
            "run_id": self.run_id,
            **asdict(self.process),
            "token": self.token,
            "acquired_at": self.acquired_at.isoformat(),
            "renewed_at": self.renewed_at.isoformat(),
            "expiry_seconds": self.expiry_seconds,
        }
        checkpoint.write_document(_DOCUMENT, document)

    def state(self, now: datetime) -> Literal["alive", "gone", "expired"]:
        """Return whether it still holds: its process is gone, or it has not renewed for too long."""
        if self.process.is_gone():
            return "gone"
        return "expired" if now - self.renewed_at > timedelta(seconds=self.expiry_seconds) else "alive"

    def __str__(self) -> str:
        return (
            f"run {self.run_id} on host {self.process.host} (pid {self.process.pid}) "
            f"since {self.acquired_at:%Y-%m-%d %H:%M:%S} UTC"
        )


class CheckpointLease:
    """The right to write ``checkpoint``, for one run. As a context manager it is released in the end; acquire it first.

    ``is_finished`` says whether the run of an id has ended. Hosts that share a checkpoint have clocks that agree to
    some seconds, and ``expiry_seconds`` allows for that.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        run_id: str,
        *,
        is_finished: Callable[[str], bool],
        renew_seconds: float = 10.0,
        expiry_seconds: float = 60.0,
    ) -> None:
        self.checkpoint = checkpoint
        self.run_id = run_id
        self.lost: str | None = None
        """Why the lease is not ours any more, once that has happened: stop writing."""
        self._is_finished = is_finished
        self._renew_seconds = renew_seconds
        self._expiry_seconds = expiry_seconds
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._renewal: threading.Thread | None = None

    def acquire(self, stop: threading.Event, wait_seconds: float | None = None) -> None:
        """Take the lease and keep renewing it, until ``release``.

        It is taken at once when nobody holds it or when its holder's process is gone; when its holder's run has ended,
        once two renewals have not come; else when it has not been renewed for its expiry. For that this waits
        (``wait_seconds``: the expiry and a renewal more, when left out).
        Raises PipelineExecutionError that names the holder, as soon as that has renewed while its run goes on, or the
        wait is over; PipelineCancelledError when ``stop`` is set.
        """
        wait = self._expiry_seconds + self._renew_seconds if wait_seconds is None else wait_seconds
        deadline = time.monotonic() + wait
        first: Holder | None = None
        while True:
            if stop.is_set():
                raise PipelineCancelledError(f"stopped while waiting for the checkpoint {self.checkpoint.path}")
            holder = self._try_to_take(stop)
            if holder is None:
                break
            if first is None or first.token != holder.token:
                first = holder
            is_over = time.monotonic() >= deadline
            if is_over or holder.renewed_at > first.renewed_at:
                has_ended = self._is_finished(holder.run_id)
                if is_over or not has_ended:
                    raise self._held_by(holder, has_ended)
            stop.wait(min(1.0, self._renew_seconds / 4, max(0.01, deadline - time.monotonic())))
        self._renewal = threading.Thread(target=self._keep_renewing, name=f"lease-{self.run_id}", daemon=True)
        self._renewal.start()

    def _held_by(self, holder: Holder, has_ended: bool) -> PipelineExecutionError:
        if has_ended:
            advice = ". That run has ended, but its process still writes: end that process"
        else:
            advice = f": terminate that run first, or if it runs no more, wait {holder.expiry_seconds:g} s"
        return PipelineExecutionError(f"the checkpoint {self.checkpoint.path} is written by {holder}{advice}")

    def release(self) -> None:
        """Give the lease back, if it is still ours. Can be called twice, and without having acquired.

        That it can't be given back is a warning: how the run has ended is told by something else.
        """
        self._ended.set()
        if self._renewal is None:
            return
        # A renewal that hangs must not come after the release, and need not keep the run from ending.
        self._renewal.join(self._expiry_seconds)
        self._renewal = None
        try:
            with self._exclusive():
                holder = Holder.of(self.checkpoint)
                if holder is not None and holder.token == self._token:
                    self.checkpoint.remove_document(_DOCUMENT)
        except PipelineError as error:
            _log.warning("the lease on the checkpoint %s could not be given back: %s", self.checkpoint.path, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try_to_take(self, stop: threading.Event) -> Holder | None:
        """Take the lease and return None, or return who holds it."""
        while True:
            with self._exclusive() as locked:
                holder = Holder.of(self.checkpoint)
                if holder is not None and not self._may_take_from(holder):
                    return holder
                now = datetime.now(UTC)
                own = Holder(self.run_id, Process.this(), self._token, now, now, self._expiry_seconds)
                own.write(self.checkpoint)
            if locked:
                return None
            stop.wait(_SETTLE_SECONDS)
            after = Holder.of(self.checkpoint)
            if after is not None:
                return None if after.token == self._token else after
            # Who held it before has given it back just then, and removed ours.

    def _may_take_from(self, holder: Holder) -> bool:
        now = datetime.now(UTC)
        if holder.token == self._token or holder.state(now) != "alive":
            return True
        is_quiet = now - holder.renewed_at > timedelta(seconds=_MISSED_RENEWALS * self._renew_seconds)
        return is_quiet and self._is_finished(holder.run_id)

    def _keep_renewing(self) -> None:
        while self.lost is None and not self._ended.wait(self._renew_seconds):
            # A file system that does not answer now may do so next time: whoever writes to it notices as well.
            with suppress(PipelineExecutionError, OSError):
                self.lost = self._renew()

    def _renew(self) -> str | None:
        """Renew the lease, or return why it can't be."""
        with self._exclusive():
            holder = Holder.of(self.checkpoint)
            if holder is None:
                return f"the lease on the checkpoint {self.checkpoint.path} has been removed"
            if holder.token != self._token:
                return f"the checkpoint {self.checkpoint.path} has been taken over by {holder}"
            replace(holder, renewed_at=datetime.now(UTC)).write(self.checkpoint)
            return None

    @contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Keep others from the lease document meanwhile; yields whether that is possible on this file system.

        The lock is the kernel's, on a file of its own: it goes with the process that holds it, however that ends.
        """
        folder = self.checkpoint.folder.below(OWN_FOLDER)
        if not isinstance(folder, LocalFolder):
            yield False
            return
        try:
            Path(folder.path).mkdir(parents=True, exist_ok=True)
            file = open(f"{folder.path}/{_LOCK_FILE}", "ab")  # noqa: SIM115  (closed below)
        except OSError as error:
            raise PipelineExecutionError(
                f"the checkpoint {self.checkpoint.path} can't be written: {error.strerror}: {error.filename}"
            ) from None
        with file:
            yield _lock(file.fileno(), self.checkpoint.path)


def _lock(file: int, path: str) -> bool:
    """Lock ``file`` until it is closed; False where the file system has no locks."""
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PipelineExecutionError(f"the lease on the checkpoint {path} is locked by another run") from None
            time.sleep(0.01)
        except OSError:
            return False


def _machine() -> str | None:
    """Return what the numbers of processes count in: this boot of the kernel, this namespace; None without /proc."""
    try:
        boot = _PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process_state(pid: int) -> tuple[str, int] | None:
    """Return the state of a process (a letter) and when it started (ticks since boot); None when there is none."""
    try:
        text = _PROC.joinpath(str(pid), "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may contain both spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is another user's
    return True
