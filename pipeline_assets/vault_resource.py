"""Vault as a Dagster resource, and what Dagster is told of the secrets that a run reads."""

# No postponed annotations here: Dagster reads those of resources when it loads them.
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData
from pydantic import ConfigDict, Field

from pipeline_assets.credentials.audit import Access, AuditEntry, AuditFile
from pipeline_assets.credentials.policy import SecretsPolicy
from pipeline_assets.credentials.references import LocalReference
from pipeline_assets.credentials.secrets import Consumer, Observer, Secrets
from pipeline_assets.credentials.vault_settings import VaultSettings, auth_method
from pipeline_assets.settings import Settings

_SECRET: dict[str, Any] = {"dagster__is_secret": True}


class VaultResource(dg.ConfigurableResource[Any]):
    """Where Vault is and how runs log in to it. What is left out here is taken from the VAULT_* variables.

    Its secrets are given by reference, ``env:NAME`` or ``file:/path``, and never as such: Dagster would keep them in
    the code location's snapshots. They are looked up again at every login, so that a file may be replaced.
    """

    # What is refused may be a secret.
    model_config = ConfigDict(hide_input_in_errors=True)

    address: str | None = None
    """URL of Vault (VAULT_ADDR)."""
    namespace: str | None = None
    """Namespace of Vault Enterprise or HCP (VAULT_NAMESPACE)."""
    auth_method: str | None = None
    """`token`, `approle`, `kubernetes` or `jwt` (VAULT_AUTH_METHOD)."""
    auth_path: str | None = None
    """Where the auth method is mounted, when not by its own name (VAULT_AUTH_PATH)."""
    token: LocalReference | None = Field(default=None, json_schema_extra=_SECRET)
    """Reference to the token (VAULT_TOKEN)."""
    role_id: str | None = None
    """Role id of AppRole (VAULT_ROLE_ID)."""
    secret_id: LocalReference | None = Field(default=None, json_schema_extra=_SECRET)
    """Reference to the secret id of AppRole (VAULT_SECRET_ID)."""
    role: str | None = None
    """Role of kubernetes and jwt (VAULT_AUTH_ROLE)."""
    jwt: LocalReference | None = Field(default=None, json_schema_extra=_SECRET)
    """Reference to the token that kubernetes and jwt are shown (VAULT_JWT_FILE)."""
    ca_cert: str | None = None
    """File or folder of the CA that signed Vault's certificate (VAULT_CACERT)."""
    client_cert: str | None = None
    """File of the certificate to show to Vault (VAULT_CLIENT_CERT)."""
    client_key: str | None = None
    """File of that certificate's key (VAULT_CLIENT_KEY)."""
    timeout_seconds: float | None = None
    """How long one request may take (VAULT_CLIENT_TIMEOUT)."""
    retry_seconds: float | None = None
    """How long Vault is tried again when it is down, sealed, overloaded or slow (VAULT_RETRY_SECONDS)."""

    def settings(self) -> VaultSettings:
        """Return the settings: what is given here, and for the rest what the environment says now.

        Raises ConfigurationError for an auth method that there is not.
        """
        given = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        if "auth_method" in given:
            given["auth_method"] = auth_method(given["auth_method"], "the Vault resource's auth_method")
        elif "token" in given or "role_id" in given:
            given["auth_method"] = "token" if "token" in given else "approle"
        return replace(VaultSettings.from_environment(), **given)

    def resolved(self) -> VaultSettings:
        """Return the settings outside of a run, where nobody has looked up the EnvVars in them yet."""
        initialized: VaultResource = self.process_config_and_initialize()
        return initialized.settings()


def audit_file(settings: Settings) -> AuditFile | None:
    """Return the file in which accesses to secrets are noted, if one is named."""
    return AuditFile(settings.audit_file) if settings.audit_file else None


@dataclass
class AccessEvents:
    """Tells Dagster of each access to a secret, as an event of the run.

    The same access, by the same step and with the same result, is told once: a stream does it with every micro-batch.
    The audit file has all of them.
    """

    instance: dg.DagsterInstance
    run: dg.DagsterRun
    _told: set[tuple[Any, ...]] = field(default_factory=set)

    def __call__(self, access: Access, entry: AuditEntry | None) -> None:
        """Report ``access``; ``entry`` is its line in the audit file."""
        key = (access.step, access.source, access.path, access.fields, access.result)
        if key in self._told:
            return
        self._told.add(key)
        metadata: dict[str, Any] = {
            "pipeline": access.pipeline or "",
            "step": access.step or "",
            "source": access.source,
            "path": access.path,
            "fields": ", ".join(access.fields),
            "policy": access.policy,
            "result": access.result,
            "duration_ms": access.duration_ms,
        }
        if entry is not None:
            # Whoever rewrites the file does not rewrite this.
            metadata |= {"audit_line": entry.number, "audit_hash": entry.hash}
        fields = f"#{','.join(access.fields)}" if access.fields else ""
        self.instance.report_engine_event(
            f"Secret {access.source}:{access.path}{fields}: {access.result}",
            self.run,
            EngineEventData({name: dg.MetadataValue.text(str(value)) for name, value in metadata.items()}),
        )


def run_secrets(
    policy: SecretsPolicy,
    vault: VaultSettings,
    settings: Settings,
    context: dg.InitResourceContext,
    *observers: Observer,
) -> Secrets:
    """Return the secrets of the run that ``context`` is of; ``observers`` are told of each access, as Dagster is.

    The caller closes them at its end.
    """
    run, instance = context.run, context.instance
    told: tuple[Observer, ...] = (AccessEvents(instance, run), *observers) if run and instance else observers

    def observe(access: Access, entry: AuditEntry | None) -> None:
        for observer in told:
            observer(access, entry)

    return Secrets(
        policy,
        vault=vault,
        audit=audit_file(settings),
        consumer=Consumer(run=run.run_id, pipeline=run.job_name) if run else Consumer(),
        observe=observe,
    )
