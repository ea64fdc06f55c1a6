"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import ExitStack, suppress

LOOPBACK = "127.0.0.1"

# Below the range from which Linux takes ports for outgoing connections: no client can take a port away before
# the server binds it.
_LOWEST, _HIGHEST = 15_000, 22_000

# UDP sockets of the ports that were handed out, open until this process ends. No server here minds them, and who looks
# for a port in another process, or again in this one, finds that it is taken before the server binds it.
_claims: list[ExitStack] = []
_lock = threading.Lock()


def free_port(*, and_at: int = 0) -> int:
    """A port that nobody listens on and that no process that still runs has handed out before.

    With ``and_at`` the port that many numbers higher is free too: some servers derive one port from another.
    """
    with _lock:
        for _ in range(1000):
            port = random.randint(_LOWEST, _HIGHEST)
            wanted = {port, port + and_at}
            with ExitStack() as claims, suppress(OSError):
                for each in wanted:
                    claims.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind((LOOPBACK, each))
                if all(is_free(each) for each in wanted):
                    _claims.append(claims.pop_all())
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
