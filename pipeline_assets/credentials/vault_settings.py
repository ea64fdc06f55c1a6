"""Where Vault is, and how it is logged in to: read from the environment, or given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline_assets.errors import ConfigurationError, did_you_mean

AuthMethod = Literal["token", "approle", "kubernetes", "jwt"]
AUTH_METHODS: tuple[AuthMethod, ...] = get_args(AuthMethod)
SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105  (a path)


@dataclass(frozen=True)
class VaultSettings:
    """How to reach Vault and log in to it. Holds no secret: ``token``, ``secret_id`` and ``jwt`` are references.

    ``auth_path`` is where the auth method is mounted, when it is not by its own name. ``timeout_seconds`` is for one
    request; ``retry_seconds`` for all tries of it together, when Vault is down, sealed, overloaded or slow.
    """

    address: str | None = None
    namespace: str | None = None
    auth_method: AuthMethod | None = None
    auth_path: str | None = None
    token: str | None = None
    role_id: str | None = None
    secret_id: str | None = None
    role: str | None = None
    jwt: str | None = None
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    verify: bool = True
    timeout_seconds: float = 10.0
    retry_seconds: float = 30.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> VaultSettings:
        """Read the VAULT_* variables, those of Vault's own command line under the names that it gives them.

        Raises ConfigurationError for a method or a number that is none.
        """
        env = {name: value for name, value in (os.environ if environment is None else environment).items() if value}
        method = env.get("VAULT_AUTH_METHOD")
        return cls(
            address=env.get("VAULT_ADDR"),
            namespace=env.get("VAULT_NAMESPACE"),
            auth_method=None if method is None else auth_method(method, "VAULT_AUTH_METHOD"),
            auth_path=env.get("VAULT_AUTH_PATH"),
            token=_reference(env, "VAULT_TOKEN", "VAULT_TOKEN_FILE") or _token_of_the_command_line(),
            role_id=env.get("VAULT_ROLE_ID"),
            secret_id=_reference(env, "VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE"),
            role=env.get("VAULT_AUTH_ROLE"),
            jwt=_reference(env, "VAULT_JWT", "VAULT_JWT_FILE"),
            ca_cert=env.get("VAULT_CACERT") or env.get("VAULT_CAPATH"),
            client_cert=env.get("VAULT_CLIENT_CERT"),
            client_key=env.get("VAULT_CLIENT_KEY"),
            verify=env.get("VAULT_SKIP_VERIFY", "").lower() not in ("1", "t", "true"),
            timeout_seconds=_seconds(env, "VAULT_CLIENT_TIMEOUT", cls.timeout_seconds),
            retry_seconds=_seconds(env, "VAULT_RETRY_SECONDS", cls.retry_seconds),
        )

    @property
    def method(self) -> AuthMethod:
        """The auth method: the one that is named, else the one that there are credentials for."""
        if self.auth_method is not None:
            return self.auth_method
        return "approle" if self.role_id and not self.token else "token"

    @property
    def mount(self) -> str:
        """Where the auth method is mounted, below ``auth/``."""
        return (self.auth_path or self.method).strip("/").removeprefix("auth/")


def auth_method(text: str, where: str) -> AuthMethod:
    """Return ``text`` as an auth method. Raises ConfigurationError, naming ``where`` it stands, when it is none."""
    for method in AUTH_METHODS:
        if text == method:
            return method
    raise ConfigurationError(
        f"{where} is {text!r}, which is no auth method{did_you_mean(text, AUTH_METHODS)}: "
        f"use one of {', '.join(AUTH_METHODS)}"
    )


def _reference(env: Mapping[str, str], name: str, file_name: str) -> str | None:
    if name in env:
        return f"env:{name}"
    return f"file:{env[file_name]}" if file_name in env else None


def _token_of_the_command_line() -> str | None:
    """Return the token that ``vault login`` has left for this user, if it has."""
    path = os.path.expanduser("~/.vault-token")
    return f"file:{path}" if os.path.isfile(path) else None


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if text is None:
        return default
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{name} is {text!r}: expected a number of seconds, such as 10")
    return seconds
