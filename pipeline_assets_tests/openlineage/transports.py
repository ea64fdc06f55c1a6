"""Transports of OpenLineage's client that are not there for their events, as its configuration names them."""

from __future__ import annotations

import threading
from typing import Any

from openlineage.client.transport.transport import Config, Transport


class FailingTransport(Transport):
    """Refuses every event."""

    kind = "failing"
    config_class = Config
    refused = 0

    def __init__(self, config: Config) -> None:
        pass

    def emit(self, event: Any) -> None:
        type(self).refused += 1
        raise OSError("http://ann:horse@lineage:5000 refuses the connection")


class SilentTransport(Transport):
    """Takes an event and does not come back from it, until ``released``."""

    kind = "silent"
    config_class = Config
    taken = 0
    released = threading.Event()

    def __init__(self, config: Config) -> None:
        pass

    def emit(self, event: Any) -> None:
        type(self).taken += 1
        self.released.wait()


class NoTransport(Transport):
    """Can't be made."""

    kind = "none"
    config_class = Config

    def __init__(self, config: Config) -> None:
        raise ValueError("no such place")
