"""Secret references: what stands in a connection in place of a secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

from pydantic import AfterValidator, Field

Source = Literal["env", "file", "vault"]
_REFERENCE = re.compile(r"(?P<source>env|file|vault):(?P<path>[^#]+)(#(?P<field>[^#]+))?")
_VARIABLE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
_START = re.compile(r"(env|file|vault):")


@dataclass(frozen=True)
class Reference:
    """A place where a secret is: ``env:NAME``, ``file:/path`` or ``vault:mount/path#field``."""

    source: Source
    path: str
    field: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference. Raises ValueError, which never shows ``text``: it may be the secret itself."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise ValueError(
                "a secret is given by reference, never as a literal: "
                "'env:NAME', 'file:/path' or 'vault:mount/path#field'"
            )
        source = cast(Source, match["source"])
        if source == "env" and not _VARIABLE.fullmatch(text):
            raise ValueError("a reference to the environment is 'env:NAME', of letters, digits and '_' alone")
        if source != "vault":
            return cls(source, text.partition(":")[2])
        if match["path"].startswith("//"):
            raise ValueError("a Vault reference is no URL: 'vault:mount/path#field', and the address is VAULT_ADDR")
        if not match["field"]:
            raise ValueError("a Vault reference names the field: 'vault:mount/path#field'")
        return cls(source, match["path"].strip("/"), match["field"])


def is_reference(text: str) -> bool:
    """Whether ``text`` is meant as a reference, where a plain value may stand as well."""
    return _START.match(text) is not None


def _check(text: str) -> str:
    Reference.parse(text)
    return text


def _check_own(text: str) -> str:
    if Reference.parse(text).source == "vault":
        raise ValueError("what Vault is logged in to with can't come from Vault: use 'env:NAME' or 'file:/path'")
    return text


# Editors look no closer; a variable may bring a reference.
_LOOKS_SO = {"pattern": r"^(env|file|vault):|\$\{"}
SecretReference = Annotated[str, AfterValidator(_check), Field(json_schema_extra=_LOOKS_SO)]
LocalReference = Annotated[str, AfterValidator(_check_own)]
"""A reference to what is at hand without Vault: the secrets that Vault itself is logged in to with."""
