"""Secret references and where their values come from. A value is fetched when a step needs it, never before."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipeline_assets.errors import CredentialError
from pipeline_assets.redaction import register_secret
from pipeline_assets.transience import marked, transience_of

_REFERENCE = re.compile(r"(?P<source>env|file|vault):(?P<path>[^#]+)(#(?P<field>.+))?")


def _check_reference(text: str) -> str:
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ValueError(
            "a secret is given by reference, never as a literal: 'env:NAME', 'file:/path' or 'vault:mount/path#field'"
        )
    if match["source"] == "vault" and not match["field"]:
        raise ValueError("a Vault reference names the field: 'vault:mount/path#field'")
    return text


SecretReference = Annotated[str, AfterValidator(_check_reference)]


@dataclass(frozen=True)
class Secrets:
    """Fetches the values that references stand for: ``env:NAME``, ``file:/path``, ``vault:mount/path#field``."""

    timeout_seconds: float = 10.0

    def fetch(self, reference: str) -> str:
        """Return the value behind ``reference``.

        Raises CredentialError that names the place looked at and what to do there.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise CredentialError("a secret reference is none of env:, file: or vault:")
        path, field = match["path"], match["field"]
        if match["source"] == "env":
            value = _from_environment(path)
        elif match["source"] == "file":
            value = _from_file(path)
        else:
            value = self._from_vault(path, field)
        register_secret(value)
        return value

    def _from_vault(self, path: str, field: str) -> str:
        import hvac
        import requests

        where = f"Vault secret {path}#{field}"
        if not os.environ.get("VAULT_ADDR"):
            raise CredentialError(f"{where}: set VAULT_ADDR (and VAULT_TOKEN) in the environment of the run")
        client = hvac.Client(timeout=self.timeout_seconds)
        try:
            answer = client.read(path)
        except hvac.exceptions.Forbidden:
            raise CredentialError(f"{where}: permission denied: the token's policy must allow reading it") from None
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            failure = CredentialError(f"{where}: Vault at {client.url} did not answer: {type(error).__name__}")
            raise marked(failure, transience_of(error)) from None
        if answer is None:
            raise CredentialError(f"{where}: nothing is stored there (KV v2 paths read mount/data/path)")
        data = answer["data"]
        # KV v2 wraps the fields once more, beside their metadata.
        fields = data["data"] if isinstance(data.get("data"), dict) and "metadata" in data else data
        if field not in fields:
            raise CredentialError(f"{where}: no such field (fields there: {', '.join(sorted(fields))})")
        return str(fields[field])


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise CredentialError(f"environment variable {name} is not set: export it where the run is started")
    return value


def _from_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise CredentialError(f"secret file {path} cannot be read: {error.strerror}") from None
