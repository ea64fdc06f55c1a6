"""What a path in a config may be. It needs no method, so that the bases of methods can ask for it."""

from __future__ import annotations

import re

from pipeline_assets.steps.s3_paths import bucket_of, is_s3, normalize
from pipeline_assets.uris import is_local, unmistakable, without_login

GLOB = re.compile(r"[*?\[{]")


def check_s3(path: str) -> str:
    """Return ``path`` normalized. Raises ValueError when it is not ``s3a://bucket/key``."""
    without_login(path)
    if not is_s3(path):
        raise ValueError(f"{path!r} is not a path on S3: expected s3a://bucket/key (s3:// and s3n:// are taken too)")
    if not bucket_of(path):
        raise ValueError(f"{path!r} names no bucket: expected s3a://bucket/key")
    return normalize(path)


def check_any(path: str) -> str:
    """Return ``path`` normalized.

    Raises ValueError when it is empty, holds a login, climbs out by ``..``, or would be another place than it looks.
    """
    if not path.strip():
        raise ValueError("the path is empty")
    unmistakable(without_login(path))
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} contains '..': give the path without it")
    return check_s3(path) if is_s3(path) else path


def check_folder(path: str) -> str:
    """Return ``path`` as ``check_any`` does. Raises ValueError for a glob, too."""
    checked = check_any(path)
    if GLOB.search(checked.replace("${partition}", "")):
        raise ValueError(f"{path!r} contains a glob: expected one folder")
    return checked


def check_s3_or_local(path: str) -> str:
    """Return ``path`` as ``check_folder`` does. Raises ValueError for one that Spark alone has a file system for."""
    checked = check_any(path)
    if not is_s3(checked) and not is_local(checked):
        raise ValueError(f"{path!r} is neither on S3 nor local: expected s3a://bucket/key, file:// or a local path")
    return check_folder(path)
