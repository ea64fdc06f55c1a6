"""What every part has in common."""

from __future__ import annotations

from typing import Protocol

from devstack.processes import PartRun


class Server(Protocol):
    """A running server: a frozen dataclass of plain values, so that it can be written to the state file."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which clients find the server."""
        ...

    @property
    def address(self) -> str:
        """Where it listens, for people to read."""
        ...

    def problem(self) -> str | None:
        """Why the server does not do its work right now; None when it does."""
        ...


class Part(Protocol):
    """A server that can be started."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def missing(self) -> str | None:
        """What must be installed before it can start, in one line; None when all is there."""
        ...

    def start(self, run: PartRun) -> Server:
        """Start it and wait until it is ready."""
        ...
