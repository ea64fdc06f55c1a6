"""What a process writes while a run is on: its log records, and its standard output and error, redacted.

Dagster points the file descriptors 1 and 2 of the process that runs steps at files, the compute logs, and Spark's JVM
inherits them. So does every other child. What they write can only be redacted on its way there: here the descriptors
become pipes, and a thread of this process carries what comes out of them to where it was to go.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import re
import select
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pipeline_assets.compute_log_tail import wait_until_shown
from pipeline_assets.redaction import MASK, redact

_log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_CHUNKS_IN_PIPE = 16
# How long the beginning of a line may wait for its end: a prompt, a progress bar.
_PARTIAL_SECONDS = 0.5
_LINE_LIMIT = 1 << 18
# What a line that is cut may have of a secret at the cut, at most.
_OVERLAP = 1 << 12
# How long to wait at the end for children that still write: Spark's JVM has ended by then.
_DRAIN_SECONDS = 5.0
# Flushes a stream before it ends the program that shows what was written to it.
_ENDS_LOG = "dagster._core.execution.compute_logs"


class RedactedOutput:
    """Redacts what this process and its children write to standard output and error, from ``begin`` to ``end``.

    Line by line, in the order of each descriptor. ``begin`` belongs after the redirection to a compute log and before
    the start of a child that inherits it; what has been redirected anew meanwhile is left alone by ``end``. Of both, a
    second call does nothing.
    """

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        self._thread: threading.Thread | None = None
        self._stop: tuple[int, int] | None = None
        self._flushes: list[tuple[TextIO, Callable[[], None]]] = []

    def begin(self) -> None:
        """Put pipes in the place of the descriptors that are open."""
        if self._thread is not None:
            return
        _flush()
        self._stop = os.pipe()
        self._streams = [_Stream(number) for number in (1, 2) if _is_open(number)]
        # A daemon: it must not keep an interpreter alive that is told to exit without an end().
        self._thread = threading.Thread(target=self._carry, name="redact-output", daemon=True)
        self._thread.start()
        files = {1: sys.stdout, 2: sys.stderr}
        for stream in self._streams:
            if (file := files[stream.number]) is not None:
                self._have_flush_wait(file, stream)

    def _have_flush_wait(self, file: TextIO, stream: _Stream) -> None:
        """Have ``file.flush()`` return when the target has it, as it was before there was a pipe.

        Dagster flushes before it ends a compute log, and with it the program that shows the log in the terminal.
        """
        flush = file.flush

        def flush_and_wait() -> None:
            flush()
            self._wait_until_carried()
            if sys._getframe(1).f_globals.get("__name__") == _ENDS_LOG:
                wait_until_shown(stream.target)

        file.flush = flush_and_wait  # type: ignore[method-assign]
        self._flushes.append((file, flush_and_wait))

    def _wait_until_carried(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        thread = self._thread
        while thread is not None and thread.is_alive() and any(stream.is_behind() for stream in self._streams):
            if time.monotonic() > deadline:
                return
            time.sleep(0.0005)

    def end(self) -> None:
        """Restore the descriptors, and return when all that was written has reached its target.

        Children that still have a pipe then, for 5 seconds more, are cut off.
        """
        if self._thread is None or self._stop is None:
            return
        _flush()
        for wrapped, flush in self._flushes:
            if wrapped.flush is flush:
                del wrapped.flush
        self._flushes = []
        for stream in self._streams:
            stream.restore()
        try:
            self._thread.join(_DRAIN_SECONDS)
        finally:
            os.close(self._stop[1])  # what it waits for, if anything
            self._thread.join(_DRAIN_SECONDS)
            for problem in filter(None, (stream.problem for stream in self._streams)):
                _log.warning("standard output or error of the run is incomplete: %s", problem)
            self._thread, self._stop, self._streams = None, None, []

    def _carry(self) -> None:
        # Nothing here may log, print, or wait for a lock that a writer may hold: it would wait for itself.
        assert self._stop is not None  # noqa: S101  (begin has made it)
        stop = self._stop[0]
        waiting = {stream.source: stream for stream in self._streams}
        poll = select.poll()
        for descriptor in (stop, *waiting):
            poll.register(descriptor, select.POLLIN)
        stopped = False
        while waiting and not stopped:
            timeout = min(
                (wait for stream in waiting.values() if (wait := stream.patience()) is not None), default=None
            )
            ready = [descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)]
            stopped = stop in ready
            for descriptor, stream in list(waiting.items()):
                if descriptor in ready and not stream.read():
                    poll.unregister(descriptor)
                    del waiting[descriptor]
                elif stream.patience() == 0:
                    stream.flush()
        for stream in self._streams:
            stream.close()
        os.close(stop)


class _Stream:
    """One descriptor: the pipe in its place, and its target."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.problem: OSError | None = None
        self.target = os.dup(number)
        self.source, entrance = os.pipe()
        os.set_blocking(self.source, False)
        os.dup2(entrance, number)
        os.close(entrance)
        self._pipe = _identity(number)
        self._lines = LineRedactor(self._write)
        self._begun_at: float | None = None
        self._busy = False

    def restore(self) -> None:
        """Give the descriptor back its target, unless somebody else has redirected it meanwhile."""
        if _is_open(self.number) and _identity(self.number) == self._pipe:
            os.dup2(self.target, self.number)

    def read(self) -> bool:
        """Carry on a piece of what there is to read; False at its end."""
        self._busy = True
        try:
            data = os.read(self.source, _CHUNK)
            self._lines.feed(data)
        except BlockingIOError:
            return True
        finally:
            self._busy = False
        if not self._lines.has_begun:
            self._begun_at = None
        elif self._begun_at is None or b"\n" in data:
            self._begun_at = time.monotonic()
        return bool(data)

    def is_behind(self) -> bool:
        """Whether something that was written has not been read, or read and not carried on."""
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(self.source, termios.FIONREAD, waiting)
        except OSError:
            return False  # it has been closed
        return waiting[0] > 0 or self._busy

    def patience(self) -> float | None:
        """Return for how long the rest of a line may be waited for; None when none has begun."""
        return None if self._begun_at is None else max(0.0, self._begun_at + _PARTIAL_SECONDS - time.monotonic())

    def flush(self) -> None:
        """Carry on the line that has begun."""
        self._lines.flush()
        self._begun_at = None

    def close(self) -> None:
        """Carry on what is in the pipe, and close it: who still writes is told that nobody reads any more."""
        for _ in range(_CHUNKS_IN_PIPE):
            self.read()
        self._lines.flush()
        os.close(self.source)
        os.close(self.target)

    def _write(self, data: bytes) -> None:
        # A target that is full or gone must not keep the writers waiting: they are read on, and `end` tells.
        view = memoryview(data)
        while view and self.problem is None:
            try:
                view = view[os.write(self.target, view) :]
            except OSError as error:
                self.problem = error


class LineRedactor:
    """Takes bytes in pieces of any length and passes them on redacted, in whole lines."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._begun = b""
        self._in_private_key = False

    @property
    def has_begun(self) -> bool:
        """Whether the beginning of a line is here."""
        return bool(self._begun)

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        whole, newline, begun = data.rpartition(b"\n")
        if newline:
            self._pass_on(self._begun + whole + newline)
            self._begun = begun
        else:
            self._begun += data
        if len(self._begun) > _LINE_LIMIT:
            cut = max(self._begun.rfind(b" "), len(self._begun) - _OVERLAP)
            self._pass_on(self._begun[:cut])
            self._begun = self._begun[cut:]

    def flush(self) -> None:
        """Pass on the beginning of a line."""
        begun, self._begun = self._begun, b""
        self._pass_on(begun)

    def _pass_on(self, data: bytes) -> None:
        # What is no UTF-8 comes out as it went in.
        text = data.decode("utf-8", "surrogateescape")
        if self._in_private_key or "PRIVATE KEY-----" in text:
            text = "".join(map(self._line, text.splitlines(keepends=True)))
        self._write(redact(text).encode("utf-8", "surrogateescape"))

    def _line(self, line: str) -> str:
        """Return ``line``, masked when it is inside of a private key that began in another."""
        if "PRIVATE KEY-----" in line:
            self._in_private_key = "-----BEGIN" in line and "-----END" not in line
        elif self._in_private_key:
            self._in_private_key = _KEY_LINE.fullmatch(line) is not None
            return line.replace(line.strip(), MASK) if self._in_private_key and line.strip() else line
        return line


_KEY_LINE = re.compile(r"\s*(?:[A-Za-z0-9+/=]*|[\w-]+: [\w,-]+)\s*")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


_factory_lock = threading.Lock()
_factory_users = 0
_factory_before: Callable[..., logging.LogRecord] = logging.LogRecord


def _redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _factory_before(*args, **kwargs)
    try:
        record.msg = redact(record.getMessage())
    except (TypeError, ValueError, KeyError):
        # Arguments that do not fit: whoever handles the record says so, with the place that logs it.
        return record
    record.args = None
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters use the text that is there; those of PySpark, which write JSON, ask the exception itself.
        if isinstance(record.exc_info[1], _LoggedError):  # Dagster makes a second record of a first
            record.exc_text = str(record.exc_info[1])
        else:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = _LoggedError.of(record.exc_info[0], record.exc_text)
    return record


class _LoggedError(Exception):
    """What a log record tells of an exception, with secrets masked, in the exception's place."""

    @classmethod
    def of(cls, kind: type[BaseException], text: str) -> tuple[type[BaseException], BaseException, None]:
        """Return ``text`` in the place of what is logged of an exception: one of a class that is called as ``kind``."""
        named = type(kind.__name__, (cls,), {"__module__": kind.__module__})
        return named, named(text), None


@contextmanager
def redacted_logs() -> Iterator[None]:
    """Redact what is logged inside, by any logger of the process, before any handler or filter sees it."""
    global _factory_users, _factory_before
    with _factory_lock:
        _factory_users += 1
        if _factory_users == 1:
            _factory_before = logging.getLogRecordFactory()
            logging.setLogRecordFactory(_redacted_record)
    try:
        yield
    finally:
        with _factory_lock:
            _factory_users -= 1
            if _factory_users == 0 and logging.getLogRecordFactory() is _redacted_record:
                logging.setLogRecordFactory(_factory_before)
