"""Vault's failures as hvac raises them: from a real Vault, and from servers that answer like one in trouble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from devstack.ports import free_port
from devstack.vault import VaultServer
from pipeline_assets.transience import transience_of
from pipeline_assets_tests.transience.cases import Case, http_server, silent_server, table


@dataclass(frozen=True)
class Reader:
    """Reads a secret at the real Vault, or at another address."""

    server: VaultServer

    def read(self, url: str | None = None, token: str | None = None, timeout: float = 30) -> None:
        import hvac

        client = hvac.Client(url or self.server.url, token=token or self.server.token, timeout=timeout)
        client.secrets.kv.v2.read_secret_version("faults", raise_on_deleted_version=False)

    def sealed(self) -> None:
        import hvac

        client = hvac.Client(self.server.url, token=self.server.token)
        client.sys.seal()
        try:
            self.read()
        finally:
            client.sys.submit_unseal_key(self.server.unseal_key)

    def silent(self) -> None:
        with silent_server() as port:
            self.read(f"http://127.0.0.1:{port}", timeout=0.5)


def answering(status: int) -> Callable[[Reader], None]:
    def provoke(reader: Reader) -> None:
        with http_server(lambda status: b'{"errors": ["told so"]}', {}) as port:
            reader.read(f"http://127.0.0.1:{port}/status-{status}")

    return provoke


def hung_up(reader: Reader) -> None:
    with http_server(lambda status: b"", {}) as port:
        reader.read(f"http://127.0.0.1:{port}/hang-up")


CASES: tuple[Case[Reader], ...] = (
    Case("Vault sealed, 503", "unavailable", Reader.sealed),
    Case("Vault 429", "throttled", answering(429)),
    Case("Vault 500", "unavailable", answering(500)),
    Case("Vault 502", "unavailable", answering(502)),
    Case("Vault refused", "connection", lambda reader: reader.read(f"http://127.0.0.1:{free_port()}")),
    Case("Vault hangs up", "connection", hung_up),
    Case("Vault silent", "timeout", Reader.silent),
    Case("Vault wrong token, 403", None, lambda reader: reader.read(token="wrong")),
    Case("Vault missing path, 404", None, lambda reader: reader.read()),
    Case("Vault not initialized, 501", None, answering(501)),
    Case("Vault 400", None, answering(400)),
)


@table(*CASES)
def test_vault(case: Case[Reader], vault: VaultServer) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011  (which it is, is what the table says)
        case.provoke(Reader(vault))
    assert type(raised.value).__module__.partition(".")[0] in ("hvac", "requests")
    found = transience_of(raised.value)
    assert (found.kind if found else None) == case.kind


def test_an_answer_says_when_to_come_back() -> None:
    import requests

    def asked(retry_after: str) -> Any:
        with http_server(lambda status: b"", {"Retry-After": retry_after}) as port:
            answer = requests.get(f"http://127.0.0.1:{port}/status-503", timeout=10)
        with pytest.raises(requests.HTTPError) as raised:
            answer.raise_for_status()
        found = transience_of(raised.value, now=1_700_000_000.0)
        assert found is not None
        return found.retry_after

    assert asked("7") == 7.0
    assert asked("Tue, 14 Nov 2023 22:15:20 GMT") == 120.0  # 1,700,000,000 is 22:13:20
    assert asked("soon") is None
