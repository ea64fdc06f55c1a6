"""The secrets of one run: fetched when a step needs them, audited, and given back at the run's end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from pipeline_assets.credentials.audit import Access, AuditEntry, AuditFile
from pipeline_assets.credentials.local_sources import read_local
from pipeline_assets.credentials.policy import SecretsPolicy, refusal_of
from pipeline_assets.credentials.references import Reference, is_reference
from pipeline_assets.credentials.vault import Vault
from pipeline_assets.credentials.vault_settings import VaultSettings
from pipeline_assets.errors import CredentialError, StepLocation
from pipeline_assets.redaction import is_secret_name, register_secret

_step: ContextVar[StepLocation | None] = ContextVar("step_that_needs_secrets", default=None)


@contextmanager
def secrets_needed_by(step: StepLocation) -> Iterator[None]:
    """Have what is fetched inside be noted as fetched by ``step``."""
    before = _step.set(step)
    try:
        yield
    finally:
        _step.reset(before)


@dataclass(frozen=True)
class Consumer:
    """Who needs secrets, for the audit: a run of a job, or the sensor of a pipeline."""

    run: str | None = None
    pipeline: str | None = None


Observer = Callable[[Access, AuditEntry | None], None]


class Secrets:
    """Fetches the values that references stand for: ``env:NAME``, ``file:/path``, ``vault:mount/path#field``.

    ``vault``: where Vault is (default: what the environment says when Vault is first needed). ``audit``: the file that
    each access is noted in. ``observe`` is told of each access as well. ``upkeep``: whether to keep what Vault leases
    alive; what is closed within seconds needs none.
    """

    def __init__(
        self,
        policy: SecretsPolicy = SecretsPolicy.ANY,
        *,
        vault: VaultSettings | None = None,
        audit: AuditFile | None = None,
        consumer: Consumer = Consumer(),
        observe: Observer | None = None,
        upkeep: bool = True,
    ) -> None:
        self.policy = policy
        self._settings = vault
        self._audit = audit
        self._consumer = consumer
        self._observe = observe
        self._upkeep = upkeep
        self._lock = threading.Lock()
        self._vault: Vault | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, reference: str) -> str:
        """Return the value behind ``reference``.

        Raises CredentialError that names the place looked at and what to do there; CredentialUnavailableError when it
        may succeed later.
        """
        return self.fetch_all({"": reference})[""]

    def fetch_all(self, references: Mapping[str, str]) -> dict[str, str]:
        """Return the values behind ``references``, by the same names. Raises what ``fetch`` does.

        Those at one path of Vault come from one answer, so that they fit each other.
        """
        parsed = {name: _parsed(text) for name, text in references.items()}
        values: dict[Reference, str] = {}
        for source, path in dict.fromkeys((reference.source, reference.path) for reference in parsed.values()):
            together = [it for it in parsed.values() if (it.source, it.path) == (source, path)]
            values |= self._access(list(dict.fromkeys(together)))
        return {name: values[reference] for name, reference in parsed.items()}

    def resolve(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return ``texts`` with the value in place of each that is a reference. Raises what ``fetch`` does."""
        return {**texts, **self.fetch_all({name: text for name, text in texts.items() if is_reference(text)})}

    def resolve_secret_options(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return ``options`` with the values of those that are secret by their names.

        The text of another one stays, also where it begins as a reference does: pgjdbc's ``sslfactoryarg`` is
        ``file:...`` or ``env:...`` itself. Raises what ``fetch`` does.
        """
        return {**options, **self.resolve({name: text for name, text in options.items() if is_secret_name(name)})}

    def close(self, *, revoke: bool = True) -> None:
        """End the upkeep of what was leased, and give it back; without ``revoke`` it ends with its time.

        Vault is asked for nothing after that.
        """
        with self._lock:
            vault, self._closed = self._vault, True
        if vault is not None:
            vault.close(revoke=revoke)

    def _access(self, references: list[Reference]) -> dict[Reference, str]:
        """Return the values of ``references``, which are at one place, and note that they were asked for."""
        started, clock = datetime.now(UTC), time.monotonic()
        refused = refusal_of(references[0], self.policy)
        error: CredentialError | None = None if refused is None else CredentialError(refused)
        values: dict[Reference, str] = {}
        if error is None:
            try:
                values = self._read(references)
            except CredentialError as failure:
                error = failure
        for value in values.values():
            register_secret(value)
        step = _step.get()
        access = Access(
            time=started.isoformat(timespec="milliseconds"),
            run=self._consumer.run,
            pipeline=step.pipeline if step else self._consumer.pipeline,
            step=f"{step.index} ({step.type} {step.method})" if step else None,
            source=references[0].source,
            path=references[0].path,
            fields=tuple(it.field for it in references if it.field),
            policy="allowed" if refused is None else "refused",
            result="ok" if error is None else type(error).__name__,
            reason=None if error is None else error.message,
            duration_ms=round((time.monotonic() - clock) * 1000, 1),
        )
        entry = self._audit.append(access) if self._audit else None
        if self._observe is not None:
            self._observe(access, entry)
        if error is not None:
            raise error
        return values

    def _read(self, references: list[Reference]) -> dict[Reference, str]:
        if references[0].source != "vault":
            return {reference: read_local(reference) for reference in references}
        fields = [reference.field for reference in references if reference.field]
        values = self._opened_vault(references[0]).read(references[0].path, fields)
        return {reference: values[reference.field] for reference in references if reference.field}

    def _opened_vault(self, reference: Reference) -> Vault:
        with self._lock:
            if self._closed:
                raise CredentialError(f"Vault secret {reference.path}: the run that it was asked for has ended")
            if self._vault is None:
                self._vault = Vault(self._settings or VaultSettings.from_environment(), upkeep=self._upkeep)
            return self._vault


def _parsed(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise CredentialError(str(error)) from None
