"""Whether OpenLineage is switched on: by what its own client reads, and nothing else.

https://openlineage.io/docs/client/python/configuration
"""

from __future__ import annotations

import os
from pathlib import Path

_FILE = "openlineage.yml"


def configured_by() -> str | None:
    """Return what configures OpenLineage's client, for a message; None when nothing does, or it is disabled.

    As the client looks for it: ``OPENLINEAGE_DISABLED``, ``OPENLINEAGE_URL``, ``OPENLINEAGE__TRANSPORT...``, the file
    that ``OPENLINEAGE_CONFIG`` names, ``openlineage.yml`` here or in ``~/.openlineage``.
    """
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return None
    for name in sorted(os.environ):
        if os.environ[name] and (name == "OPENLINEAGE_URL" or name.startswith("OPENLINEAGE__TRANSPORT")):
            return name
    named = os.environ.get("OPENLINEAGE_CONFIG")
    if named:
        return f"OPENLINEAGE_CONFIG={named}"
    here = (Path.cwd() / _FILE, Path.home() / ".openlineage" / _FILE)
    return next((str(file) for file in here if file.is_file()), None)


def missing_file() -> str | None:
    """Return the file that ``OPENLINEAGE_CONFIG`` names when it can't be read: the client says nothing of that."""
    named = os.environ.get("OPENLINEAGE_CONFIG")
    return named if named and not os.access(named, os.R_OK) else None


def job_namespace() -> str:
    """Return the namespace of jobs: ``OPENLINEAGE_NAMESPACE``, as OpenLineage's other integrations have it."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or "default"
