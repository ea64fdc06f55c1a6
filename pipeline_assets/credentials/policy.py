"""Where secrets may come from, and what in a config breaks that rule."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pipeline_assets.credentials.references import Reference, is_reference
from pipeline_assets.errors import ConfigIssue, ConfigurationError, did_you_mean
from pipeline_assets.json_documents import pointer
from pipeline_assets.redaction import is_secret_name, secret_shapes

POLICY_VARIABLE = "PIPELINE_ASSETS_SECRETS_POLICY"
_WANTED = "vault-only takes secrets from Vault alone, by 'vault:mount/path#field' in connections.json"
# A parameter in a URL: jdbc:postgresql://host/db?password=x, jdbc:sqlserver://host;password=x, sc://host/;token=x.
_PARAMETER = re.compile(r"[?&;]\s*([\w.$-]+)=([^&;#\s]+)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)")
# The keys in these objects are names of columns, and the values expressions on them.
_NAMED_BY_COLUMNS = ("columns", "aggregations", "rename", "expectations")
S3_PROVIDER = "fs.s3a.aws.credentials.provider"
S3_ANONYMOUS = "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"
"""What that option is for a public bucket, which no keys are looked for."""


class SecretsPolicy(StrEnum):
    """Where secrets may come from."""

    ANY = "any"
    VAULT_ONLY = "vault-only"


def policy_from_environment(environment: Mapping[str, str] | None = None) -> SecretsPolicy:
    """Return what PIPELINE_ASSETS_SECRETS_POLICY says. Raises ConfigurationError for a policy that there is not."""
    text = (os.environ if environment is None else environment).get(POLICY_VARIABLE) or SecretsPolicy.ANY
    known = [str(policy) for policy in SecretsPolicy]
    if text not in known:
        near = did_you_mean(text, known)
        raise ConfigurationError(
            f"{POLICY_VARIABLE} is {text!r}, which is no policy{near}: use one of {', '.join(known)}"
        )
    return SecretsPolicy(text)


def is_secret(name: str, text: str) -> bool:
    """Whether ``text`` is a secret by its ``name``, or refers to one. A switch is none, nor is an ARN."""
    return is_secret_name(name) and text.lower() not in ("", "true", "false", "none") and not text.startswith("arn:")


def refusal_of(reference: Reference, policy: SecretsPolicy) -> str | None:
    """Return why ``policy`` refuses ``reference``; None when it allows it."""
    if policy is SecretsPolicy.ANY or reference.source == "vault":
        return None
    return f"{reference.source}:{reference.path} is refused: the policy {_WANTED}"


def connection_issues(file: str, document: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """Yield what in the parsed ``connections.json`` the policy vault-only refuses. No message shows a value."""
    for kind in ("postgres", "s3", "kafka"):
        named = document.get(kind)
        for name, connection in named.items() if isinstance(named, dict) else ():
            at = pointer(kind, name)
            for place, key, value in _leaves(connection, at, kind):
                reason = _connection_reason(key, value)
                if reason:
                    yield ConfigIssue(file, place, reason)
            if kind == "postgres" and isinstance(connection, dict) and not connection.get("password"):
                yield ConfigIssue(
                    file,
                    at,
                    "has no password, so that its drivers look for one on the machine (PGPASSFILE, ~/.pgpass): "
                    f"{_WANTED}",
                )
            if kind == "s3" and isinstance(connection, dict) and not _has_keys(connection):
                yield ConfigIssue(
                    file,
                    at,
                    "has no accessKeyId and secretAccessKey, so that Hadoop looks for them on the machine: "
                    f"{_WANTED} (a public bucket: the option {S3_PROVIDER}, {S3_ANONYMOUS} alone)",
                )


def pipeline_issues(file: str, document: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """Yield what in the parsed config of a pipeline looks like a secret. No message shows a value."""
    for place, key, value in _leaves(document, "", ""):
        reason = _literal_reason(key, value) if isinstance(value, str) or "/options/" in place else None
        if reason:
            yield ConfigIssue(file, place, reason)


def option_issues(where: str, options: Mapping[str, str]) -> Iterator[ConfigIssue]:
    """Yield what in ``options``, which stand ``where`` the text says, looks like a secret. No message shows a value."""
    for name, value in options.items():
        reason = _literal_reason(name, value)
        if reason:
            yield ConfigIssue(where, pointer(name), reason)


def _connection_reason(key: str, value: Any) -> str | None:
    if not isinstance(value, str) or not is_reference(value):
        return _literal_reason(key, value)
    if value.startswith("vault:"):
        return None
    return f"refers to {'the environment' if value.startswith('env:') else 'a file'}: {_WANTED}"


def _literal_reason(key: str, value: Any) -> str | None:
    text = str(value)
    if is_secret(key, text) and not text.startswith("vault:"):
        variable = _VARIABLE.search(text)
        if variable:
            return f"takes a secret from the environment variable {variable[1]}: {_WANTED}"
        return f"{key!r} names a secret, and a literal stands there: {_WANTED}"
    for name, given in _PARAMETER.findall(text) if "://" in text or text.startswith("jdbc:") else ():
        if is_secret_name(name) and not given.startswith("vault:"):
            return f"the parameter {name!r} of the URL names a secret, and a literal stands there: {_WANTED}"
    shapes = secret_shapes(text)
    return f"looks like it holds a secret ({', '.join(shapes)}): {_WANTED}" if shapes else None


def _has_keys(connection: Mapping[str, Any]) -> bool:
    options = connection.get("options")
    # The option is a list: what stands beside the anonymous provider may look for keys.
    anonymous = isinstance(options, dict) and options.get(S3_PROVIDER) == S3_ANONYMOUS
    return bool(connection.get("accessKeyId") and connection.get("secretAccessKey")) or anonymous


def _leaves(node: Any, at: str, key: str) -> Iterator[tuple[str, str, Any]]:
    """Yield pointer, key and value of each text and number below ``node``; those of a list under the list's key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{at}{pointer(name)}", key if key in _NAMED_BY_COLUMNS else name)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{at}/{index}", key)
    elif isinstance(node, str | int | float) and not isinstance(node, bool):
        yield at, "" if key in _NAMED_BY_COLUMNS else key, node
