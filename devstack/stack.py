"""A set of running parts: their state on disk, and how they come up and go down."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from devstack.errors import (
    CancelledStartError,
    DevstackError,
    MissingProgramError,
    PartFailedError,
    UnsafeHomeError,
)
from devstack.interrupts import signals_ignored
from devstack.kafka import Kafka, KafkaServer
from devstack.parts import Part, Server
from devstack.postgres import Postgres, PostgresServer
from devstack.processes import PartRun, ProcessRecord, remove_paths, stop_processes, unrecorded_processes
from devstack.prometheus import Prometheus, PrometheusServer, Pushgateway, PushgatewayServer
from devstack.s3 import S3, S3Server
from devstack.spark_servers import SparkCluster, SparkConnect, SparkConnectServer, SparkStandalone
from devstack.vault import Vault, VaultServer

# Every part, in the order in which tables show them, and the first four are what `up` starts.
PARTS: Mapping[str, Callable[[], Part]] = {
    "postgres": Postgres,
    "s3": S3,
    "kafka": Kafka,
    "vault": Vault,
    "spark-connect": SparkConnect,
    "spark-cluster": SparkStandalone,
    "prometheus": Prometheus,
    "pushgateway": Pushgateway,
}
DEFAULT_PARTS = ("postgres", "s3", "kafka", "vault")

_SERVERS: Mapping[str, Callable[..., Server]] = {
    "postgres": PostgresServer,
    "s3": S3Server,
    "kafka": KafkaServer,
    "vault": VaultServer,
    "spark-connect": SparkConnectServer,
    "spark-cluster": SparkCluster,
    "prometheus": PrometheusServer,
    "pushgateway": PushgatewayServer,
}

# How long a part that runs may leave a question unanswered before it is replaced: as long as most take to start.
_ANSWER_LIMIT = 60.0
_LOOK_SECONDS = 0.2

ServerT = TypeVar("ServerT", bound=Server)

Report = Callable[[str, str], None]
"""Takes a part's name and what it does now."""


def _silence(_part: str, _text: str) -> None:
    """The report that nobody reads."""


def default_home() -> Path:
    """Where the command line keeps its state: DEVSTACK_HOME, else a temporary folder per user."""
    chosen = os.environ.get("DEVSTACK_HOME")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"pipeline-assets-devstack-{os.getuid()}"


@dataclass(frozen=True)
class PartState:
    """What is known about a part that was started: how to stop it, and how to reach it when it is ready."""

    processes: tuple[ProcessRecord, ...] = ()
    leftovers: tuple[Path, ...] = ()
    marker: str = ""
    server: Server | None = None
    failure: str | None = None

    def problem(self) -> str | None:
        """Why the part cannot be used right now; None when it can."""
        if self.server is None:
            return self.failure or "not ready"
        for record in self.processes:
            if not record.alive():
                return f"{record.name} (process {record.pid}) has ended, see {record.log}"
        return self.server.problem()

    def runs(self) -> bool:
        """Whether it was ready once and all its processes are alive; it need not answer right now."""
        return self.server is not None and all(record.alive() for record in self.processes)


@dataclass
class Stack:
    """The parts whose state is kept in ``home``; they run until ``down``, longer than who started them."""

    home: Path
    _states: dict[str, PartState] = field(default_factory=dict)
    _runs: dict[str, PartRun] = field(default_factory=dict)  # of the parts that this process started
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def up(self, parts: Sequence[Part], report: Report = _silence) -> dict[str, Server | DevstackError]:
        """Start the parts at the same time, or find them running; one that fails does not stop the others.

        What runs is replaced, and its data are lost, when it does not answer for a while.

        When this is interrupted, everything that this call started is stopped again.
        """
        with self._locked(report):
            self._states = self._read()
            results: dict[str, Server | DevstackError] = {}
            to_start = []
            for part in parts:
                server = self._answering(part.name, report)
                if server is None:
                    to_start.append(part)
                else:
                    report(part.name, "already running")
                    results[part.name] = server
            cancel = threading.Event()
            pool = ThreadPoolExecutor(max_workers=max(1, len(to_start)))
            futures: dict[str, Future[Server]] = {}
            try:
                for part in to_start:
                    futures[part.name] = pool.submit(self._start, part, cancel, report)
                wait(futures.values())
            except BaseException:
                with signals_ignored():
                    cancel.set()
                    pool.shutdown(cancel_futures=True)
                    self._stop([part.name for part in to_start], report)
                    self._forget([part.name for part in to_start])
                raise
            pool.shutdown()
            for name, future in futures.items():
                error = future.exception()
                if error is None:
                    results[name] = future.result()
                elif isinstance(error, DevstackError):
                    results[name] = error
                else:
                    raise error
            return {part.name: results[part.name] for part in parts}

    def server(self, part: Part, server_type: type[ServerT]) -> ServerT:
        """Start one part, or find it running, and return its server; raises what kept it from starting."""
        server = self.up([part])[part.name]
        if isinstance(server, DevstackError):
            raise server
        assert isinstance(server, server_type)
        return server

    def down(self, report: Report = _silence) -> list[str]:
        """Stop all parts and remove their data and logs; returns the names of those there were."""
        if not self.home.exists():
            return []
        with self._locked(report), signals_ignored():
            self._states = self._read()
            names = list(self._states)
            self.stop_companions()
            self._stop(names, report)
            remove_paths([self.home])
            self._states = {}
            return names

    def stop(self, name: str) -> None:
        """Stop one part and remove its data."""
        with self._locked(), signals_ignored():
            self._states = self._read()
            self._stop([name])
            self._forget([name])

    @property
    def companion_marker(self) -> str:
        """The marker of processes that use the parts and end with them, whoever has started them."""
        return f"companion of {self.home.absolute()}"

    def stop_companions(self) -> None:
        """Stop what was started with ``companion_marker`` and left by who started it."""
        stop_processes(unrecorded_processes(self.companion_marker))

    def states(self) -> dict[str, PartState]:
        """What was started, in the order of PARTS, as the state file says; nothing is checked."""
        return self._read() if self.home.exists() else {}

    def environment(self) -> dict[str, str]:
        """The environment variables of all parts that came up."""
        result: dict[str, str] = {}
        for state in self.states().values():
            if state.server is not None:
                result |= state.server.environment
        return result

    def _answering(self, name: str, report: Report) -> Server | None:
        """Return the part's server, when it runs and answers: on a busy machine one question may be too few."""
        state = self._states.get(name, PartState())
        problem = state.problem()
        if problem is not None and state.runs():
            report(name, f"runs, but does not answer yet: {problem}")
        deadline = time.monotonic() + _ANSWER_LIMIT
        while problem is not None and state.runs() and time.monotonic() < deadline:
            threading.Event().wait(_LOOK_SECONDS)
            problem = state.problem()
        return state.server if problem is None else None

    def _start(self, part: Part, cancel: threading.Event, report: Report) -> Server:
        self._stop([part.name])  # what is left of an earlier start
        advice = part.missing()
        if advice is not None:
            self._remember(part.name, PartState(failure=advice))
            raise MissingProgramError(part.name, advice)
        run = PartRun(
            part=part.name,
            data=self.home / "data" / part.name,
            logs=self.home / "logs" / part.name,
            cancel=cancel,
            say=lambda text: report(part.name, text),
            changed=lambda: self._remember(part.name, _state_of(run)),
        )
        run.data.mkdir(parents=True)
        run.logs.mkdir(parents=True, exist_ok=True)
        run.changed()
        try:
            server = part.start(run)
        except BaseException as error:
            run.stop()
            reason = error.reason if isinstance(error, PartFailedError) else str(error)
            self._remember(part.name, PartState(failure=reason))
            if not isinstance(error, CancelledStartError):
                report(part.name, f"failed: {reason}")
            raise
        self._runs[part.name] = run
        self._remember(part.name, _state_of(run, server))
        report(part.name, "ready")
        return server

    def _stop(self, names: Sequence[str], report: Report = _silence) -> None:
        """Stop the parts at the same time; they stay in the state file until they have stopped."""

        def stop(name: str) -> None:
            state = self._states.get(name, PartState())
            if state.processes:
                report(name, "stopping")
            stop_processes(state.processes)
            if state.marker:
                stop_processes(unrecorded_processes(state.marker))
            if name in self._runs:
                self._runs.pop(name).reap()
            remove_paths([self.home / "data" / name, *state.leftovers])
            if name in self._states:
                self._remember(name, PartState(failure="stopped"))
                report(name, "stopped")

        with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
            list(pool.map(stop, names))

    def _remember(self, name: str, state: PartState) -> None:
        with self._mutex:
            self._states[name] = state
            self._write()

    def _forget(self, names: Sequence[str]) -> None:
        with self._mutex:
            for name in names:
                self._states.pop(name, None)
            self._write()

    def _write(self) -> None:
        document = {name: _state_to_json(self._states[name]) for name in PARTS if name in self._states}
        # Never half a file: who reads it does not take the lock.
        handle, temporary = tempfile.mkstemp(dir=self.home, prefix="state-")
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent=2)
        Path(temporary).replace(self.home / "state.json")

    def _read(self) -> dict[str, PartState]:
        _check_safe(self.home)
        try:
            document = json.loads((self.home / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return {name: _state_from_json(name, entry) for name, entry in document.items()}

    @contextmanager
    def _locked(self, report: Report = _silence) -> Iterator[None]:
        """Hold the home folder; only one process at a time changes what runs."""
        while True:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_safe(self.home)
            handle = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    report("devstack", f"waits for another devstack command that works in {self.home}")
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if self.home.exists() and os.path.samestat(os.fstat(handle), self.home.stat()):
                    yield
                    return
                # The other command was `down`, which removed the folder that was waited for.
            finally:
                os.close(handle)


def _check_safe(home: Path) -> None:
    """Passwords and process numbers are in there: nobody else may read it or have put it there."""
    status = home.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeHomeError(home, "it is not a folder")
    if status.st_uid != os.getuid():
        raise UnsafeHomeError(home, "it belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise UnsafeHomeError(home, "other users may look into it")


def _state_of(run: PartRun, server: Server | None = None) -> PartState:
    return PartState(tuple(run.records), tuple(run.leftovers), run.marker, server)


def _state_to_json(state: PartState) -> dict[str, Any]:
    return {
        "processes": [asdict(record) for record in state.processes],
        "leftovers": [str(path) for path in state.leftovers],
        "marker": state.marker,
        "server": None if state.server is None else asdict(state.server),  # type: ignore[call-overload]
        "failure": state.failure,
    }


def _state_from_json(name: str, entry: dict[str, Any]) -> PartState:
    return PartState(
        processes=tuple(ProcessRecord(**record) for record in entry["processes"]),
        leftovers=tuple(Path(path) for path in entry["leftovers"]),
        marker=entry["marker"],
        server=None if entry["server"] is None else _SERVERS[name](**entry["server"]),
        failure=entry["failure"],
    )
