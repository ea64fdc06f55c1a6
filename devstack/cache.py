"""The folder for what is downloaded or built once."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """The per-user cache folder, made when it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "pipeline-assets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def being_made(path: Path) -> FileLock:
    """What one process holds while it makes ``path``; others wait, and find it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")
