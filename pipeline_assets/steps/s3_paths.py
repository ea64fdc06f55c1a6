"""Paths on S3, as text."""

from __future__ import annotations

import re

_S3_SCHEME = re.compile(r"^s3[an]?://", re.IGNORECASE)


def is_s3(path: str) -> bool:
    """Whether ``path`` is on S3: s3://, s3n:// or s3a://."""
    return _S3_SCHEME.match(path) is not None


def normalize(path: str) -> str:
    """Return ``path`` with s3:// and s3n:// turned into s3a://, the scheme that Spark has a file system for."""
    return _S3_SCHEME.sub("s3a://", path)


def bucket_of(path: str) -> str:
    """Return the bucket of a path on S3."""
    return _S3_SCHEME.sub("", path).partition("/")[0]


def key_of(path: str) -> str:
    """Return the part of a path on S3 after the bucket, without slashes at its ends, as Hadoop normalizes it."""
    parts = _S3_SCHEME.sub("", path).split("/")[1:]
    return "/".join(part for part in parts if part not in ("", "."))
