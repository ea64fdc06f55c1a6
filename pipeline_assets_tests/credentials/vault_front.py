"""What may stand between a run and Vault: a proxy that speaks TLS, refuses requests for a while, and counts them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class VaultFront:
    """``refusals`` are answered first, one a request: a status and headers, and ``page`` as their content.
    ``seen`` has each request's headers.
    """

    url: str
    refusals: deque[tuple[int, Mapping[str, str]]] = field(default_factory=deque)
    seen: list[Mapping[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    page: bytes = b'{"errors": []}'


@contextmanager
def front_of(vault_url: str, certificate: Path | None = None) -> Iterator[VaultFront]:
    """Stand before the Vault at ``vault_url``; with ``certificate`` (key and certificate in one PEM file) by TLS."""

    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            front.seen.append(dict(self.headers))
            front.times.append(time.monotonic())
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if front.refusals:
                status, headers = front.refusals.popleft()
                self._answer(status, {"Content-Type": "application/json", **headers}, front.page)
                return
            request = urllib.request.Request(
                vault_url + self.path, body or None, dict(self.headers), method=self.command
            )
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                    self._answer(answer.status, dict(answer.headers), answer.read())
            except HTTPError as error:
                with error:
                    self._answer(error.code, dict(error.headers), error.read())

        do_GET = do_POST = do_PUT = _forward  # noqa: N815  (the names that http.server calls)

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name in ("Content-Type", "Retry-After"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    front = VaultFront(f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(folder: Path) -> Path:
    """Return a file with a new key, and a certificate for 127.0.0.1 that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "vault.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file
