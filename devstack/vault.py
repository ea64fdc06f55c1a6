"""Vault: ``vault server -dev`` when installed, else Vault's own core, built by Go from vault_server/."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack.cache import cache_folder, made_once
from devstack.loopback_http import open_without_proxy
from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, server_environment

_SOURCES = Path(__file__).with_name("vault_server")
_BUILD_LIMIT = 1200.0
# Our own program's line of JSON, and the line that `vault server -dev` prints.
_UNSEAL_KEY = re.compile(r'"unseal_key":"(\w+)"|^Unseal Key: (\S+)', re.MULTILINE)
# What our own program mounts, and `vault server -dev` does not.
_ENGINES: dict[str, dict[str, Any]] = {
    "sys/mounts/kv": {"type": "kv", "options": {"version": "1"}},
    "sys/mounts/database": {"type": "database"},
    "sys/auth/approle": {"type": "approle"},
    "sys/auth/jwt": {"type": "jwt"},
    "sys/auth/kubernetes": {"type": "kubernetes"},
}


@dataclass(frozen=True)
class VaultServer:
    """A running, unsealed Vault: KV version 2 at secret/, version 1 at kv/, the database engine at database/, and the
    auth methods AppRole, JWT and Kubernetes, each at its usual path. Whatever they are to do is still to be configured.
    """

    url: str
    token: str = field(repr=False)
    unseal_key: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        return {"VAULT_ADDR": self.url, "VAULT_TOKEN": self.token}

    @property
    def address(self) -> str:
        return self.url

    def problem(self) -> str | None:
        try:
            self.request("GET", "sys/health")
            self.request("GET", "auth/token/lookup-self")
        except OSError as error:
            return str(error)
        return None

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """One request with the root token; raises OSError when it fails."""
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.token},
        )
        open_without_proxy(request).close()


@dataclass(frozen=True)
class Vault:
    """Starts a Vault that keeps everything in memory."""

    name: str = "vault"

    def missing(self) -> str | None:
        if shutil.which("vault") or shutil.which("go") or _built_program().exists():
            return None
        return "install Vault, or Go (1.20 or later) to build it from source"

    def start(self, run: PartRun) -> VaultServer:
        installed = shutil.which("vault")
        port = free_port()
        token = run.secret()
        run.masks(_UNSEAL_KEY)
        if installed:
            listen = f"-dev-listen-address={LOOPBACK}:{port}"
            command = [installed, "server", "-dev", "-dev-no-store-token", listen]
        else:
            program = _built_program()
            made_once(program, lambda: _build(run, program))
            command = [str(program), f"-addr={LOOPBACK}:{port}"]
        run.say("starting")
        environment = server_environment({"VAULT_DEV_ROOT_TOKEN_ID": token})
        record = run.spawn("vault", command, environment=environment)
        server = VaultServer(f"http://{LOOPBACK}:{port}", token, "")
        run.wait_until_ready(server.problem, limit=30)
        if installed:
            for path, body in _ENGINES.items():
                server.request("POST", path, body)
        match = _UNSEAL_KEY.search(Path(record.log).read_text())
        if match is None:
            raise run.failure(record, "no unseal key in its log")
        return VaultServer(server.url, token, match[1] or match[2])


@dataclass(frozen=True)
class OwnVault:
    """A Vault that can be made to fail as real ones do. ``PartRun.stop`` of ``run`` ends it for good."""

    server: VaultServer
    run: PartRun

    def pause(self) -> None:
        """Have it take connections and answer none."""
        os.kill(self.run.records[0].pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again."""
        os.kill(self.run.records[0].pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop it; all that it had is gone."""
        self.run.stop_process(self.run.records[0])


def _built_program() -> Path:
    """Where the program built from the sources as they are now is, or will be."""
    digest = hashlib.sha256()
    for source in sorted(path for path in _SOURCES.rglob("*") if path.is_file()):
        digest.update(f"{source.relative_to(_SOURCES)}\0{source.stat().st_size}\0".encode())
        digest.update(source.read_bytes())
    return cache_folder() / f"vault-server-{digest.hexdigest()[:12]}" / "vault-server"


def _build(run: PartRun, program: Path) -> None:
    run.say("building it from source, once; takes a minute or two")
    work = Path(tempfile.mkdtemp(prefix="building-", dir=program.parent))
    try:
        run.run_to_end(
            "go-build",
            ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", work / "vault-server", "."],
            environment={**os.environ, "CGO_ENABLED": "0"},  # it fetches: proxies and the like are set there
            limit=_BUILD_LIMIT,
            cwd=_SOURCES,
        )
        (work / "vault-server").replace(program)
    finally:
        shutil.rmtree(work)
