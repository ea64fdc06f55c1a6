"""HTTP to this machine's own servers."""

from __future__ import annotations

import urllib.request
from http.client import HTTPResponse


def open_without_proxy(request: str | urllib.request.Request, timeout: float = 5.0) -> HTTPResponse:
    """Return the answer, to be closed: a proxy that is set for the world outside does not know loopback.

    Raises OSError when there is none within ``timeout`` seconds, or none of status 2xx.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: HTTPResponse = opener.open(request, timeout=timeout)
    return answer
