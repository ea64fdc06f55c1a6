"""The folder for what is downloaded or built once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from devstack.errors import UnwritableCacheError


def cache_folder() -> Path:
    """The per-user cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pipeline-assets"


def made_once(path: Path, make: Callable[[], None]) -> Path:
    """Return ``path``, after ``make`` has made it where it is missing: one process does, and others wait for it."""
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(f"{path}.lock").acquire()
        except OSError as error:
            raise UnwritableCacheError(path.parent, error) from error
        with held:
            if not path.exists():
                make()
    return path
