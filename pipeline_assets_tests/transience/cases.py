"""What the tables of failures share: a case, how it is provoked, and servers that answer wrongly on purpose."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, TypeVar

import pytest

from pipeline_assets.errors import PipelineError, RetryableError, TransientKind
from pipeline_assets.spark.failures import spark_errors

PlaceT = TypeVar("PlaceT")


@dataclass(frozen=True)
class Case(Generic[PlaceT]):
    """A failure: what makes it, given the place where it is made, and the kind that it is of; None for permanent."""

    name: str
    kind: TransientKind | None
    provoke: Callable[[PlaceT], Any]

    def __str__(self) -> str:
        return self.name


def table(*cases: Case[Any]) -> Any:
    """Parametrize a test by ``cases``."""
    return pytest.mark.parametrize("case", cases, ids=str)


def failure(action: Callable[[], Any]) -> PipelineError:
    """Return what ``action`` raises, as a pipeline's run would tell it."""
    with pytest.raises(PipelineError) as raised, spark_errors():
        action()
    error = raised.value
    if isinstance(error, RetryableError):
        assert error.transient_kind
    return error


@contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up is no news."""


@contextmanager
def answering_server(answer: bytes) -> Iterator[int]:
    """A port where whoever says something gets ``answer``, and is then hung up on."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    with _serving(_QuietServer(("127.0.0.1", 0), Handler)) as port:
        yield port


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up is no news."""


@contextmanager
def http_server(body: Callable[[int], bytes], headers: dict[str, str]) -> Iterator[int]:
    """A port where every request gets the status that its path names, as in ``/status-503/...``.

    ``/hang-up/...`` is answered by closing the connection.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            if "hang-up" in self.path:
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status = int(self.path.partition("status-")[2][:3])
            content = body(status)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """The test says what it asked."""

    with _serving(_HttpServer(("127.0.0.1", 0), Handler)) as port:
        yield port
