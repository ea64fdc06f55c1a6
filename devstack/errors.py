"""What can go wrong while servers start and stop."""

from __future__ import annotations

from pathlib import Path


class DevstackError(Exception):
    """Base of all errors of this package."""


class CancelledStartError(DevstackError):
    """The start was given up because the caller asked for it."""


class UnsafeHomeError(DevstackError):
    """The state folder belongs to somebody else or can be read by others."""

    def __init__(self, home: Path, reason: str) -> None:
        self.home = home
        super().__init__(f"{home} is not safe for passwords: {reason}; remove it or set DEVSTACK_HOME")


class UnwritableCacheError(DevstackError):
    """What is downloaded or built once can't be kept."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(f"{folder} can't be written to ({error}): set XDG_CACHE_HOME to a folder that can")


class MissingProgramError(DevstackError):
    """A part's program is not installed; the message says in one line what to install."""

    def __init__(self, part: str, advice: str) -> None:
        self.part = part
        self.advice = advice
        super().__init__(f"{part}: {advice}")


class PartFailedError(DevstackError):
    """A part did not start; names its log file and ends with the log's last lines."""

    def __init__(self, part: str, reason: str, log: Path | None = None, tail: str = "") -> None:
        self.part = part
        self.reason = reason
        self.log = log
        self.tail = tail
        lines = [f"{part}: {reason}"]
        if log is not None:
            lines.append(f"log: {log}")
            lines += [f"  | {line}" for line in tail.splitlines()] or ["  | (empty)"]
        super().__init__("\n".join(lines))
