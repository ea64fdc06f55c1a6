"""Secrets that are at hand on the machine: in the environment, and in files."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline_assets.credentials.references import Reference
from pipeline_assets.errors import CredentialError


def read_local(reference: Reference) -> str:
    """Return what ``env:NAME`` or ``file:/path`` stands for. Raises CredentialError that says where it looked."""
    return _from_environment(reference.path) if reference.source == "env" else _from_file(reference.path)


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
    except UnicodeDecodeError:
        raise CredentialError(f"secret file {path} is not UTF-8 text") from None
