"""What Vault gives for a time: credentials made for one run, and the token that they hang on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline_assets.credentials.vault_client import Token, VaultClient
from pipeline_assets.credentials.vault_failures import message_of
from pipeline_assets.errors import CredentialError, CredentialUnavailableError

if TYPE_CHECKING:
    import hvac

_log = logging.getLogger(__name__)
# A lease that is granted less than this part of its time again has come to the end of what its role allows.
_WORTH_RENEWING = 0.1
_SOONEST = 0.5
_WHAT = "the token of Vault"
# In Vault's words, as it has no code for it.
_GONE = ("lease not found", "lease expired", "lease is expired")


def _margin(ttl: float) -> float:
    """Return how long before its end something is no longer handed out: it has to last for a connection."""
    return min(30.0, ttl * _WORTH_RENEWING)


@dataclass
class Lease:
    """Credentials that Vault has made, and revokes when their time is over. ``fields`` are them."""

    client: VaultClient = field(repr=False)
    path: str
    lease_id: str
    fields: Mapping[str, Any] = field(repr=False)
    ttl: float
    renewable: bool
    login: int
    """The login that it hangs on: with that token it ends."""
    ends_at: float = 0.0
    due: float | None = None

    def __post_init__(self) -> None:
        """Start its time."""
        self._granted(self.ttl)

    @property
    def usable(self) -> bool:
        """Whether a connection may still be opened with it."""
        now = time.monotonic()
        return (
            self.login == self.client.logins
            and now < self.ends_at - _margin(self.ttl)
            and now < self.client.token_ends_at
        )

    @property
    def lives(self) -> bool:
        """Whether its time is not over."""
        return time.monotonic() < self.ends_at

    def renew(self) -> None:
        """Ask for its whole time again. Its role sets the end of that; after it, the next fetch gets a new lease.

        So it does when Vault has the lease no more: somebody has revoked it.
        """
        what = f"the lease of Vault secret {self.path}"
        try:
            answer = self.client.call(what, self._asked_for_more)
        except CredentialUnavailableError as error:
            left = self.ends_at - time.monotonic()
            self.due = time.monotonic() + max(_SOONEST, left / 4) if left > 0 else None
            _log.warning("%s; the lease goes on for %.0f s", error, max(0.0, left))
        except CredentialError as error:
            self.due = None
            _log.warning("%s; it ends in %.0f s", error, max(0.0, self.ends_at - time.monotonic()))
        else:
            if answer is None:
                self.ends_at, self.due = time.monotonic(), None
                _log.warning("%s: Vault has it no more: it was revoked; a new one is made when it is needed", what)
                return
            self.renewable = bool(answer["renewable"])
            self._granted(float(answer["lease_duration"]))

    def _asked_for_more(self, client: hvac.Client) -> Any:
        """Return what Vault answers; None when it does not have the lease."""
        import hvac

        try:
            return client.sys.renew_lease(self.lease_id, increment=int(self.ttl) or 1)
        except hvac.exceptions.InvalidRequest as error:
            # Vault's status is the same for a lease that it has and does not renew.
            if message_of(error).startswith(_GONE):
                return None
            raise

    def _granted(self, seconds: float) -> None:
        now = time.monotonic()
        self.ends_at = now + seconds
        worth_it = self.renewable and seconds > self.ttl * _WORTH_RENEWING
        self.due = now + max(_SOONEST, seconds / 2) if worth_it else None


class TokenUpkeep:
    """Keeps the client's token alive: by renewing it, and when that is over, by logging in again."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client
        self.due: float | None = None
        self._login, self._ttl, self._renewable = 0, 0.0, False
        self._refused: int | None = None
        self._seen(client.token(_WHAT))

    def renew(self) -> None:
        """Renew the token, or log in anew where it is renewed no longer.

        A given token that nobody has replaced then just ends. Whether somebody has is looked at again and again.
        """
        logins = self._client.logins
        if logins == self._refused:
            # Whoever needs a secret logs in anew. Tries beside those may have Vault lock the role out, for others too.
            self._look_again()
            return
        try:
            token = self._client.token(_WHAT)
            granted = self._renewed() if self._renewable and logins == self._login else 0.0
            if granted > token.ttl * _WORTH_RENEWING:
                self._login = self._client.logins
                self.due = time.monotonic() + max(_SOONEST, granted / 2)
            elif logins != self._login or self._client.log_in_again(_WHAT, logins):
                self._seen(self._client.token(_WHAT))
            else:
                self._renewable = False
                self._look_again()
        except CredentialUnavailableError as error:
            self.due = time.monotonic() + max(_SOONEST, self._ttl / 10)
            _log.warning("%s", error)
        except CredentialError as error:
            # The next fetch meets the same, and tells whoever needs the secret.
            if self._client.settings.method != "token":
                self._refused = self._client.logins
            self._look_again()
            _log.warning("%s", error)

    def _renewed(self) -> float:
        try:
            answer = self._client.call(_WHAT, lambda client: client.auth.token.renew_self())
        except CredentialUnavailableError:
            raise
        except CredentialError as error:
            _log.warning("%s", error)
            return 0.0
        granted = float(answer["auth"]["lease_duration"])
        self._client.token(_WHAT).ends_at = time.monotonic() + granted
        return granted

    def _seen(self, token: Token) -> None:
        self._login, self._ttl, self._renewable = self._client.logins, token.ttl, token.renewable
        now = time.monotonic()
        if not token.ttl:
            self.due = None
        elif token.renewable:
            self.due = now + max(_SOONEST, token.ttl / 2)
        else:
            self.due = now + max(_SOONEST, token.ttl - _margin(token.ttl))

    def _look_again(self) -> None:
        self.due = time.monotonic() + max(_SOONEST, _margin(self._ttl))
