"""Requests to Vault: by hvac, with tries that are bounded in time, under a token that is got, kept and given back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline_assets.credentials.local_sources import read_local
from pipeline_assets.credentials.references import Reference
from pipeline_assets.credentials.vault_failures import (
    is_transient,
    message_of,
    retry_after,
    vault_failure,
)
from pipeline_assets.credentials.vault_settings import SERVICE_ACCOUNT_TOKEN, VaultSettings
from pipeline_assets.errors import CredentialError, CredentialUnavailableError
from pipeline_assets.redaction import register_secret, retire_secret

if TYPE_CHECKING:
    import hvac
    import tenacity

T = TypeVar("T")
_MAX_PAUSE = 5.0
_CHECK_LOGIN = "check the role, and that what proves it is right and has not expired"


@dataclass
class Token:
    """What is known of the token in use. ``ttl`` of 0: it does not expire. ``own``: the login here has made it.

    ``seen``: Vault has told of it. A given one that it does not tell of is wrong, or may not look at itself. ``batch``:
    it is of the kind that Vault can't revoke.
    """

    ttl: float
    renewable: bool
    own: bool
    seen: bool = True
    batch: bool = False
    ends_at: float = field(init=False)
    """When it ends, by the monotonic clock, unless it is renewed until then; infinite when that is not known."""

    def __post_init__(self) -> None:
        """Start its time. One that is given may be renewed by whoever has made it."""
        is_known = self.ttl and (self.own or not self.renewable)
        self.ends_at = time.monotonic() + self.ttl if is_known else math.inf

    @property
    def revocable(self) -> bool:
        """Whether it is revoked at the end, and with it all that was leased under it."""
        return self.own and not self.batch


class VaultClient:
    """A client of one Vault. It logs in when it is first used, and again when its login has expired.

    ``on_login`` is called after each login, by the thread that has logged in, which holds the client's lock.
    """

    def __init__(self, settings: VaultSettings, on_login: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._on_login = on_login
        self._lock = threading.RLock()
        self._client: hvac.Client | None = None
        self._token: Token | None = None
        self._retry_seconds = settings.retry_seconds
        self.logins = 0
        """Counts the logins: what was leased under an earlier one ends with it."""

    @property
    def address(self) -> str:
        """Vault's address."""
        return (self.settings.address or "").rstrip("/")

    @property
    def token_ends_at(self) -> float:
        """When the token in use ends, by the monotonic clock."""
        token = self._token
        return math.inf if token is None else token.ends_at

    def token(self, what: str) -> Token:
        """Log in if that has not been done, and return what is known of the token; ``what`` it is for is in errors."""
        with self._lock:
            if self._token is None:
                self._token = self._log_in(what)
                self._on_login()
            return self._token

    def log_in_again(self, what: str, logins: int) -> bool:
        """Log in anew, unless that was done since ``logins`` was read.

        False for a given token that is still the same: it can't be had anew. Others may replace the file of one.
        """
        with self._lock:
            if self.logins == logins:
                if self.settings.method == "token" and self._given(what) == self._connected().token:
                    return False
                self._token = None  # should this login fail, whoever needs a secret next makes another
                self.token(what)
            return True

    def call(
        self,
        what: str,
        request: Callable[[hvac.Client], T],
        absent: Callable[[hvac.exceptions.InvalidPath], CredentialError] | None = None,
    ) -> T:
        """Return what ``request`` gets; ``what`` names in errors what it is for, ``absent`` makes that of a 404.

        Raises CredentialUnavailableError when Vault stays away for ``retry_seconds``, CredentialError for what no
        later try would change.
        """
        import hvac

        with self._lock:  # not while another thread logs in
            self.token(what)
            logins = self.logins
        try:
            return self._tried(what, request, absent)
        except hvac.exceptions.Forbidden:
            refused = self._token_is_refused(what)
            # After a login meanwhile, the token that was looked at is not the one that the request was sent with.
            if not refused and self.logins == logins:
                raise _denied(what) from None
            if not self.log_in_again(what, logins):
                reasons = "it is wrong, has expired or was revoked"
                if not self.token(what).seen:
                    reasons += ", or a policy of it must allow this"
                raise CredentialError(
                    f"{what}: Vault at {self.address} refuses the token: {reasons}; "
                    f"give a valid one ({self.settings.token}), or have runs log in themselves (VAULT_AUTH_METHOD)"
                ) from None
        try:
            return self._tried(what, request, absent)
        except hvac.exceptions.Forbidden:
            raise _denied(what) from None

    def hurry(self, seconds: float) -> None:
        """Try no longer than ``seconds`` from now on, also what is being tried just now."""
        self._retry_seconds = min(self._retry_seconds, seconds)

    def give_back(self) -> bool:
        """Revoke the token, and with it all that was leased under it, if the login here has made it: return whether.

        Raises CredentialError when Vault does not do that: it then ends by itself, with its time.
        """
        import hvac

        with self._lock:
            token, client = self._token, self._client
            self._token = None
        if token is None or client is None:
            return False
        try:
            if token.revocable:
                self._tried("Vault's token", lambda client: client.auth.token.revoke_self())
            return token.revocable
        except hvac.exceptions.Forbidden:
            raise _denied("revoking Vault's token") from None
        finally:
            if token.own:
                retire_secret(client.token)
            client.adapter.close()

    def _token_is_refused(self, what: str) -> bool:
        import hvac

        try:
            self._tried(what, lambda client: client.auth.token.lookup_self())
        except hvac.exceptions.Forbidden:
            return True
        return False

    def _tried(
        self,
        what: str,
        request: Callable[[hvac.Client], T],
        absent: Callable[[hvac.exceptions.InvalidPath], CredentialError] | None = None,
    ) -> T:
        """Return what ``request`` gets, tried anew while Vault can't answer and there is time.

        Raises hvac's Forbidden, which the caller looks into, and else what ``call`` does.
        """
        import hvac
        import tenacity

        start = time.monotonic()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=lambda state: tenacity.stop_before_delay(self._retry_seconds)(state),
            wait=_pause,
            reraise=True,
        )
        try:
            return retrying(request, self._connected())
        except hvac.exceptions.Forbidden:
            raise
        except (hvac.exceptions.VaultError, OSError, ValueError) as error:
            # OSError is what requests raises, and what it lets through when a TLS file is not there.
            # Not chained: what requests and hvac say may hold what was sent.
            if absent is not None and isinstance(error, hvac.exceptions.InvalidPath):
                raise absent(error) from None
            raise vault_failure(error, what, self.address, time.monotonic() - start) from None

    def _connected(self) -> hvac.Client:
        import hvac

        if self._client is None:
            settings = self.settings
            certificate = (settings.client_cert, settings.client_key) if settings.client_cert else None
            self._client = hvac.Client(
                url=self.address,
                token="",  # not the one in the environment, before it has been looked at here
                cert=certificate,
                verify=(settings.ca_cert or True) if settings.verify else False,
                timeout=min(settings.timeout_seconds, max(settings.retry_seconds, 0.05)),
                namespace=settings.namespace,
                adapter=_adapter(),
            )
        return self._client

    def _log_in(self, what: str) -> Token:
        if not self.address:
            raise CredentialError(f"{what}: set VAULT_ADDR (and how to log in) in the environment of the run")
        method = self.settings.method
        client = self._connected()
        self.logins += 1
        retire_secret(client.token)
        if method == "token":
            client.token = self._given(what)
            return self._given_token(what)
        client.token = ""
        what = f"{what}: login by {method} at auth/{self.settings.mount}"
        answer = self._answer_to_login(what, self._login_request(what))
        auth = answer["auth"]
        register_secret(auth["client_token"])
        client.token = auth["client_token"]
        is_batch = auth.get("token_type") == "batch"
        return Token(float(auth["lease_duration"]), bool(auth["renewable"]), own=True, batch=is_batch)

    def _answer_to_login(self, what: str, login: Callable[[hvac.Client], Any]) -> Any:
        import hvac

        def absent(_: object) -> CredentialError:
            return CredentialError(f"{what}: no auth method is mounted there (or set VAULT_AUTH_PATH to where it is)")

        try:
            return self._tried(what, login, absent)
        except hvac.exceptions.Forbidden as error:
            raise CredentialError(f"{what}: refused ({message_of(error)}): {_CHECK_LOGIN}") from None
        except CredentialUnavailableError:
            raise
        except CredentialError as error:
            raise CredentialError(f"{error.message}: {_CHECK_LOGIN}") from None

    def _login_request(self, what: str) -> Callable[[hvac.Client], Any]:
        settings = self.settings
        mount = settings.mount
        if settings.method == "approle":
            if not settings.role_id:
                raise CredentialError(f"{what}: the role is not named: set VAULT_ROLE_ID")
            # A role may be set up to need no secret id.
            secret_id = self._local(what, "secret_id", "VAULT_SECRET_ID") if settings.secret_id else None
            return lambda client: client.auth.approle.login(settings.role_id, secret_id, mount_point=mount)
        if not settings.role:
            raise CredentialError(f"{what}: the role is not named: set VAULT_AUTH_ROLE")
        proof = self._local(what, "jwt", "VAULT_JWT_FILE")
        if settings.method == "kubernetes":
            return lambda client: client.auth.kubernetes.login(settings.role, proof, mount_point=mount)
        return lambda client: client.auth.jwt.jwt_login(settings.role, proof, path=mount)

    def _given(self, what: str) -> str:
        return self._local(what, "token", "VAULT_TOKEN")

    def _local(self, what: str, name: str, variable: str) -> str:
        """Return the secret that Vault is logged in to with. It is looked up at each login: files are replaced."""
        reference = getattr(self.settings, name)
        if reference is None and name == "jwt" and self.settings.method == "kubernetes":
            reference = f"file:{SERVICE_ACCOUNT_TOKEN}"
        if reference is None:
            raise CredentialError(
                f"{what}: Vault at {self.address} is to be logged in to by {self.settings.method}: "
                f"set {variable} in the environment of the run, or another VAULT_AUTH_METHOD"
            )
        # Kubernetes gives a secret as it was encoded: with the line break of an `echo`, say.
        value = read_local(Reference.parse(reference)).rstrip("\r\n")
        register_secret(value)
        return value

    def _given_token(self, what: str) -> Token:
        """Look up how long a token lives that was not made here. One that may not look at itself is not renewed."""
        import hvac

        try:
            data = self._tried(what, lambda client: client.auth.token.lookup_self())["data"]
        except hvac.exceptions.Forbidden:
            return Token(0, renewable=False, own=False, seen=False)
        return Token(float(data.get("ttl") or 0), bool(data.get("renewable")), own=False)


def _denied(what: str) -> CredentialError:
    return CredentialError(f"{what}: permission denied: a policy of the token must allow it")


def _pause(state: tenacity.RetryCallState) -> float:
    """Wait as long as Vault asks for, else ever longer, by chance: many runs may have met the same failure."""
    import tenacity

    error = state.outcome.exception() if state.outcome else None
    drawn = tenacity.wait_random_exponential(multiplier=0.2, max=_MAX_PAUSE)(state)
    return max(retry_after(error), drawn)


@cache
def _adapter() -> Any:
    """Return hvac's adapter, made to keep of a refusal what hvac drops, its status and its ``Retry-After``, and to
    refuse what only looks like an answer of Vault.
    """
    from hvac import adapters, exceptions

    class Adapter(adapters.JSONAdapter):  # type: ignore[misc]
        def request(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().request(*args, **kwargs)
            # A page of a load balancer, say: hvac gives it as it came. 204 has no content to look at.
            has_content = getattr(answer, "status_code", 200) == 200
            if has_content and not (isinstance(answer, dict) and answer.keys() >= {"auth", "data"}):
                error = exceptions.UnexpectedError()
                error.status_code = 200
                raise error
            return answer

        def _raise_for_error(self, method: str, url: str, response: Any) -> None:
            try:
                super()._raise_for_error(method, url, response)
            except exceptions.VaultError as error:
                error.status_code = response.status_code
                error.retry_after = response.headers.get("Retry-After")
                raise

    return Adapter
