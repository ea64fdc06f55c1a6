"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket
import threading

LOOPBACK = "127.0.0.1"

# Below the range from which Linux takes ports for outgoing connections: no client can take a port away before
# the server binds it.
_LOWEST, _HIGHEST = 15_000, 22_000

_handed_out: set[int] = set()
_lock = threading.Lock()


def free_port(*, and_at: int = 0) -> int:
    """A port that nobody listens on and that this process has not handed out before.

    With ``and_at`` the port that many numbers higher is free too: some servers derive one port from another.
    """
    with _lock:
        for _ in range(1000):
            port = random.randint(_LOWEST, _HIGHEST)
            wanted = {port, port + and_at}
            if wanted & _handed_out or not all(is_free(each) for each in wanted):
                continue
            _handed_out.update(wanted)
            return port
    raise OSError("no free port found on loopback")


def is_free(port: int) -> bool:
    """Whether nobody listens on ``port``."""
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
