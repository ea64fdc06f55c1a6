"""Secrets that may turn up in what Spark, a JDBC driver or a client says: masked before anyone reads it."""

from __future__ import annotations

import re

MASK = "*********"

# A key that names a secret, then its value: password=x, "secret.key": "x", fs.s3a.access.key -> x, token: x.
_ASSIGNED = re.compile(
    r"""(?ix)
    ( [\w.$-]* (?: password | passwd | pwd | secret | token | (?: access | api | private )[._-]?key )
      (?: [._-]? (?: key | id | value ) )?
      ["']? \s* (?: = | : (?!/) | -> ) \s* )
    ( "[^"\n]*" | '[^'\n]*' | [^\s"'&;,(){}\[\]|]+ )
    """
)
# user:password@host in a URL.
_USER_INFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@]*:)([^\s/@]+)(?=@)")


def mask_secrets(text: str) -> str:
    """Return ``text`` with the values of passwords, tokens and keys replaced by asterisks."""
    return _ASSIGNED.sub(_masked, _USER_INFO.sub(rf"\1{MASK}", text))


def _masked(match: re.Match[str]) -> str:
    value = match[2]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match[1]}{quote}{MASK}{quote}"
