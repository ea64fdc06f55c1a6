"""A connection to public buckets sends no keys, whatever the machine has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline_assets.connections import Connections, ConnectionsFile, S3Connection
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.policy import SecretsPolicy
from pipeline_assets.steps.file_systems import open_folder

ANONYMOUS = {"fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"}


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str | None]]]:
    """The address of an S3 that has nothing, and the Authorization header of each request to it."""
    seen: list[str | None] = []

    class Nothing(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = _answer  # noqa: N815  (the names that http.server calls)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("options", "signed"), [(ANONYMOUS, False), ({}, True)])
def test_keys_of_the_machine(
    asked: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, options: dict[str, str], signed: bool
) -> None:
    address, seen = asked
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-machine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-5f2c")
    public = S3Connection(endpoint=address, region="us-east-1", options=options)
    connections = Connections(ConnectionsFile(s3={"default": public}), Secrets(SecretsPolicy.VAULT_ONLY))
    assert not open_folder("s3a://public/folder", "default", connections).exists()
    assert seen
    assert {header is not None and "of-the-machine" in header for header in seen} == {signed}
