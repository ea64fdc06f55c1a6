"""Secrets in Vault: KV of both versions, and credentials that an engine makes for the run and takes back after it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline_assets.credentials.leases import Lease, TokenUpkeep
from pipeline_assets.credentials.renewal import Renewer
from pipeline_assets.credentials.vault_client import VaultClient
from pipeline_assets.credentials.vault_settings import VaultSettings
from pipeline_assets.errors import CredentialError, CredentialUnavailableError, did_you_mean
from pipeline_assets.redaction import retire_secret

if TYPE_CHECKING:
    import hvac

_log = logging.getLogger(__name__)
# The run is over: what Vault does not take back in this time ends by itself.
_CLOSING_SECONDS = 5.0


@dataclass(frozen=True)
class _Mount:
    path: str
    kind: str
    version: str


class Vault:
    """Reads secrets of one Vault, for one run. What it leased is kept alive until ``close``, which gives it back.

    ``upkeep``: whether to keep token and leases alive; what is closed within seconds needs none.
    """

    def __init__(self, settings: VaultSettings, *, upkeep: bool = True) -> None:
        self._client = VaultClient(settings, self._tell_what_ends)
        self._upkeep = upkeep
        self._renewer = Renewer()
        self._lock = threading.Lock()
        self._mounts: dict[str, _Mount] = {}
        self._leases: list[Lease] = []
        self._watching_token = False
        self._told = 0
        self._closed = False

    def read(self, path: str, fields: Sequence[str]) -> dict[str, str]:
        """Return the ``fields`` of the secret at ``path`` (as Vault's API has it), all from one answer.

        Raises CredentialUnavailableError when Vault can't answer for now, CredentialError for anything else.
        """
        what = f"Vault secret {path}#{','.join(fields)}"
        mount = self._mount(path, what)
        found = self._from_kv(path, mount, what) if mount.kind == "kv" else self._leased(path, what)
        self._watch_token()
        missing = [name for name in fields if name not in found]
        if missing:
            near = did_you_mean(missing[0], found)
            raise CredentialError(
                f"{what}: there is no field {missing[0]!r}{near} (fields there: {', '.join(sorted(found)) or 'none'})"
            )
        return {name: _text(found[name]) for name in fields}

    def close(self, *, revoke: bool = True) -> None:
        """End the renewing, revoke what was leased, and the token if the login here has made it.

        Never raises for what Vault does not do: that is logged, and ends with its time.
        """
        self._client.hurry(_CLOSING_SECONDS)
        self._renewer.stop()
        with self._lock:  # what is being leased just now is among the leases then
            leases, self._leases, self._closed = self._leases, [], True
        if not revoke:
            return
        ended: list[Lease] = []
        try:
            for lease in leases:
                if self._revoked(lease):
                    ended.append(lease)
            if self._client.give_back():
                ended = leases
        except CredentialError as error:
            _log.warning("%s: what is not revoked ends with its time", error)
        for lease in ended:
            for value in lease.fields.values():
                retire_secret(_text(value))

    def _revoked(self, lease: Lease) -> bool:
        try:
            self._client.call(
                f"revoking the lease of Vault secret {lease.path}",
                lambda client: client.sys.revoke_lease(lease.lease_id),
            )
        except CredentialUnavailableError:
            raise
        except CredentialError as error:
            if not self._client.token(lease.path).revocable:
                _log.warning("%s: 'update' on sys/leases/revoke; the lease ends with its time", error)
            # Else it ends with the token, right after this.
            return False
        return True

    def _mount(self, path: str, what: str) -> _Mount:
        """Return the engine that ``path`` belongs to. Vault tells whoever may read something there."""
        for mount in self._mounts.values():
            if path.startswith(mount.path):
                return mount
        answer = self._client.call(
            what, lambda client: client.adapter.get(f"/v1/sys/internal/ui/mounts/{quote(path)}"), _no_mount(what)
        )
        data = answer["data"]
        mount = _Mount(data["path"], data["type"], str((data.get("options") or {}).get("version", "1")))
        self._mounts[mount.path] = mount
        return mount

    def _from_kv(self, path: str, mount: _Mount, what: str) -> Mapping[str, Any]:
        if mount.version == "1":
            return self._answer(path, what)["data"] or {}
        name = path.removeprefix(mount.path)
        if not name.startswith("data/"):
            raise CredentialError(
                f"{what}: {mount.path} is KV version 2, whose secrets are below data/: write {mount.path}data/{name}"
            )
        return self._answer(path, what)["data"]["data"] or {}

    def _leased(self, path: str, what: str) -> Mapping[str, Any]:
        """Return credentials that an engine has made for this run: the same ones as long as they live."""
        with self._lock:
            if self._closed:
                raise CredentialError(f"{what}: the run that it was asked for has ended")
            for lease in self._leases:
                if lease.path == path and lease.usable:
                    return lease.fields
            answer = self._answer(path, what)
            if answer.get("lease_id"):
                lease = Lease(
                    self._client,
                    path,
                    answer["lease_id"],
                    answer["data"],
                    float(answer["lease_duration"]),
                    bool(answer["renewable"]),
                    self._client.logins,
                )
                self._leases.append(lease)
                if self._upkeep:
                    self._renewer.watch(lease)
            return answer["data"] or {}

    def _answer(self, path: str, what: str) -> Any:
        def absent(error: hvac.exceptions.InvalidPath) -> CredentialError:
            data = (error.json or {}).get("data") if isinstance(error.json, dict) else None
            if data and data.get("metadata"):
                return CredentialError(f"{what}: its newest version has been deleted: write a new one (vault kv put)")
            return CredentialError(f"{what}: nothing is stored there: write it, or correct the path")

        return self._client.call(what, lambda client: client.adapter.get(f"/v1/{quote(path)}"), absent)

    def _tell_what_ends(self) -> None:
        """Warn of the leases that end with an earlier login than the one that has just been made."""
        # Without the lock: the thread that holds it may wait for this login.
        newest, leases = self._client.logins, list(self._leases)
        ending = sorted({lease.path for lease in leases if self._told < lease.login < newest and lease.lives})
        self._told = newest - 1
        if ending:
            advice = "its auth role a token_max_ttl that is longer than a run takes"
            if self._client.settings.method == "token":
                advice = "the run a token that lives longer than it takes"
            _log.warning(
                "logged in to Vault anew: what was leased before (%s) ends with the earlier login, also where Spark "
                "reads with it still; give %s",
                ", ".join(ending),
                advice,
            )

    def _watch_token(self) -> None:
        with self._lock:
            first, self._watching_token = not self._watching_token, True
        if first and self._upkeep:
            self._renewer.watch(TokenUpkeep(self._client))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _no_mount(what: str) -> Any:
    return lambda _: CredentialError(f"{what}: no secrets engine is mounted there: correct the path")
