"""What paths and addresses look like in a URI.

Paths with a scheme are cut as Hadoop cuts them: to it ``%20``, ``#`` and ``?`` are characters like any other.
"""

from __future__ import annotations

import re

_ROOT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=/)(?://[^/]*)?")

# Not any: a colon may be in a name, as of an hourly partition.
_NO_URI = re.compile(r"(?:s3[an]?:(?!//)|(?:file|dbfs|hdfs|viewfs|gs|abfss?|wasbs?|oss):(?!/))", re.IGNORECASE)

# Hadoop takes hdfs://user@host and abfss://container@account; what has a colon before its @ is a login. A bucket has no
# colon, and a key of AWS may hold slashes.
_LOGIN = re.compile(r"s3[an]?://[^/{]*:|[a-z][a-z0-9+.-]*://[^/@:]*:[^/]*@", re.IGNORECASE)


def root_of(path: str) -> str:
    """Return the scheme of ``path`` with its authority, such as ``hdfs://host:8020``, ``file://`` or ``dbfs:``.

    Empty for a path without scheme.
    """
    found = _ROOT.match(path)
    return found[0] if found is not None else ""


def path_in(path: str) -> str:
    """Return what follows the scheme and the authority of ``path``: all of it when it has none."""
    return path[len(root_of(path)) :]


def is_local(path: str) -> bool:
    """Whether ``path`` is on a file system that is mounted: one without scheme, or with ``file:``."""
    return root_of(path) == "" or path.startswith("file:")


def normalize_uri(path: str) -> str:
    """Return ``path`` with ``file:/x`` written as ``file:///x``."""
    return f"file://{path_in(path)}" if root_of(path) == "file:" else path


def without_login(path: str) -> str:
    """Return ``path``. Raises ValueError, which does not show it, when it holds credentials."""
    if _LOGIN.match(path):
        raise ValueError(
            "a path holds no credentials, as it is shown: leave them out, and refer to them in connections.json"
        )
    return path


def unmistakable(path: str) -> str:
    """Return ``path``. Raises ValueError for a text that would be a relative path, and hardly is meant as one."""
    if path != path.strip():
        raise ValueError(f"{path!r} begins or ends with white space: leave it out")
    if path.startswith("~"):
        raise ValueError(f"{path!r}: '~' stands for no home directory here, write ${{HOME}}")
    if _NO_URI.match(path):
        raise ValueError(f"{path!r} is no URI: expected two slashes after the colon, as in s3a://bucket/key")
    return path


def authority(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
