"""Who read which secret when, and how it ended: an append-only file in which each line vouches for those before it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline_assets.errors import ConfigurationError, CredentialError

_LOCK_SECONDS = 30.0
_TAIL = 64 * 1024
_REFUSED = "secrets are not given out without it; make room or access for it, or correct PIPELINE_ASSETS_AUDIT_FILE"


@dataclass(frozen=True)
class Access:
    """One access to a secret: never its value. ``policy`` is ``allowed`` or ``refused``; ``result`` is ``ok`` or the
    name of the error, and ``reason`` its text."""

    time: str
    run: str | None
    pipeline: str | None
    step: str | None
    source: str
    path: str
    fields: tuple[str, ...]
    policy: str
    result: str
    reason: str | None
    duration_ms: float


@dataclass(frozen=True)
class AuditProblem:
    """A line of an audit file that is not what was written."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True)
class AuditEntry:
    """A line of an audit file: its number, the hash of the line before it, its own hash, and what it says."""

    number: int
    previous: str
    hash: str
    says: Mapping[str, Any]

    @classmethod
    def after(cls, last: AuditEntry, access: Access) -> AuditEntry:
        """Return the line for ``access`` that follows ``last``."""
        says = {**asdict(access), "fields": list(access.fields)}
        return cls(last.number + 1, last.hash, _hash(last.number + 1, last.hash, says), says)

    @classmethod
    def parse(cls, line: bytes) -> AuditEntry | None:
        """Read a line; None when it is none."""
        try:
            says = json.loads(line)
            return cls(int(says.pop("number")), str(says.pop("previous")), str(says.pop("hash")), says)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    @property
    def is_whole(self) -> bool:
        """Whether it says what it said when it was written."""
        return self.hash == _hash(self.number, self.previous, self.says)

    @property
    def text(self) -> str:
        """The line, with its end."""
        in_order = (*(field.name for field in fields(Access)), *self.says)
        says = {name: self.says[name] for name in in_order if name in self.says}
        line = {"number": self.number, **says, "previous": self.previous, "hash": self.hash}
        return json.dumps(line, ensure_ascii=False) + "\n"


def _hash(number: int, previous: str, says: Mapping[str, Any]) -> str:
    text = json.dumps([number, previous, says], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


_BEGINNING = AuditEntry(0, "0" * 64, "0" * 64, {})


class AuditFile:
    """A file of accesses, one JSON object a line. Several processes may append to it at the same time.

    Each line holds its number, the hash of the line before it, and its own hash. How far the file goes stands in
    ``<file>.head``, so that lines taken from its end are missed too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head = path.with_name(f"{path.name}.head")
        self._lock = FileLock(f"{path}.lock", timeout=_LOCK_SECONDS, mode=0o600)

    def append(self, access: Access) -> AuditEntry:
        """Write ``access``, and have it on disk. Raises CredentialError when that can't be: no access goes unnoted."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                last = self._last()
                entry = AuditEntry.after(last, access)
                size = self._write(entry.text)
                try:
                    self._write_head(entry)
                except OSError:
                    # The head would not tell of it: a second one after it would have its number, and look forged.
                    os.truncate(self.path, size)
                    raise
                self._sync_head()
                return entry
        except Timeout:
            raise CredentialError(f"the audit file {self.path} is locked by another process: {_REFUSED}") from None
        except OSError as error:
            raise CredentialError(
                f"the audit file {self.path} can't be written ({error.strerror}): {_REFUSED}"
            ) from None

    def verify(self) -> tuple[int, list[AuditProblem]]:
        """Return how many lines there are, and what is wrong with which.

        It takes no lock: whoever verifies may be one who can only read, and is not to keep runs waiting. Raises
        ConfigurationError when there is no such file.
        """
        try:
            with self.path.open("rb") as file:
                content, head = file.read(), self._read_head()
                # The head may tell of lines that were written in between.
                while more := file.read():
                    content, head = content + more, self._read_head()
        except OSError as error:
            raise ConfigurationError(f"the audit file {self.path} can't be read: {error.strerror}") from None
        lines = content.split(b"\n")
        return len(lines) - (lines[-1] == b""), list(_problems(lines, head))

    def _last(self) -> AuditEntry:
        head = self._read_head()
        last = self._last_line()
        if last is None or (head is not None and last.number != head.number + 1):
            return head or _BEGINNING
        # Without a head, or when a process was killed after its line and before the head.
        return last

    def _last_line(self) -> AuditEntry | None:
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return AuditEntry.parse(file.read().rstrip(b"\n").rpartition(b"\n")[2])

    def _write(self, text: str) -> int:
        """Write the line ``text``, and return how long the file was before."""
        # Unbuffered: what a failed write has left in a buffer would go into the file after all, when it is closed.
        with open(self.path, "a+b", buffering=0, opener=_private) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                # A line that was cut off stays as it is, for verify to find: the next begins below it.
                text = text if file.read(1) == b"\n" else f"\n{text}"
            try:
                left = text.encode()
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
            return size

    def _read_head(self) -> AuditEntry | None:
        return AuditEntry.parse(self._head.read_bytes()) if self._head.exists() else None

    def _write_head(self, entry: AuditEntry) -> None:
        new = self._head.with_name(f"{self._head.name}.new")
        with open(new, "w", encoding="utf-8", opener=_private) as file:
            file.write(entry.text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._head)

    def _sync_head(self) -> None:
        # When the power fails, the head may lack the last line, and no more: else the next line would look forged.
        folder = os.open(self._head.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a file system that does so by itself, or not at all
                raise
        finally:
            os.close(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _problems(lines: list[bytes], head: AuditEntry | None) -> Iterator[AuditProblem]:
    if lines[-1] == b"":
        lines = lines[:-1]
    entries = [AuditEntry.parse(line) for line in lines]
    there = sorted({entry.number for entry in entries if entry is not None})
    last, broken = _BEGINNING, False
    for line, (entry, written) in enumerate(zip(entries, lines, strict=True), start=1):
        if entry is None:
            yield AuditProblem(line, "is no line of an audit file: it was changed or cut off")
            broken = True
            continue
        if not entry.is_whole:
            yield AuditProblem(line, "was changed: its hash does not fit what it says")
        elif written + b"\n" != entry.text.encode(errors="surrogatepass"):
            # JSON has more than one way to say the same: a key twice, 1.9 for a whole number, another order.
            yield AuditProblem(line, "was changed: it says the same, but not as it was written")
        if entry.number <= last.number:
            yield AuditProblem(line, f"is not where it was: number {entry.number} comes after number {last.number}")
            continue
        # Counted by what is there: the numbers between are as many as whoever forged a line likes.
        between = bisect_left(there, entry.number) - bisect_right(there, last.number)
        missing = entry.number - last.number - 1 - between
        if missing and not broken:
            yield AuditProblem(line, f"{_lines(missing)} before it: number {entry.number} comes after {last.number}")
        elif entry.number == last.number + 1 and entry.previous != last.hash:
            yield AuditProblem(line, "does not follow from the line before it: one of the two was changed")
        last, broken = entry, False
    yield from _problems_at_the_end(len(entries), last, head)


def _problems_at_the_end(count: int, last: AuditEntry, head: AuditEntry | None) -> Iterator[AuditProblem]:
    if head is None:
        # A file is never without both: it gets its head with its first line.
        what = "the file's .head is missing" if count else "the file is empty, and its .head is missing"
        yield AuditProblem(count, f"{what}: whether lines are missing after it can't be told")
    elif head.number > last.number:
        yield AuditProblem(count, f"{_lines(head.number - last.number)} after it: the last has number {head.number}")
    elif head.number == last.number and head.hash != last.hash:
        yield AuditProblem(count, "was changed: it is not the line that was written last")
    elif head.number < last.number - 1:
        yield AuditProblem(count, f"was not written by pipeline-assets: its last line had number {head.number}")


def _lines(count: int) -> str:
    return "1 line is missing" if count == 1 else f"{count} lines are missing"
