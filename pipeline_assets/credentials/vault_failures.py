"""What Vault's refusals mean: which of them pass by themselves, and what a person is to do about the others."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime

from pipeline_assets.errors import CredentialError, CredentialUnavailableError
from pipeline_assets.transience import marked, transience_of

# 412: a replica has not caught up; 429, 472 and 473: too many requests, or a standby. 501 does not pass: Vault has
# never been initialized.
_PASSING = {408, 412, 425, 429, 472, 473, 500, 502, 503, 504}
_MESSAGE_LIMIT = 300


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of what Vault answered; None where it did not answer."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import requests

    status = status_of(error)
    if status is not None:
        return status in _PASSING
    # A certificate that is not trusted stays so; requests calls it a ConnectionError all the same.
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(
        error,
        requests.exceptions.ConnectionError | requests.exceptions.Timeout | requests.exceptions.ChunkedEncodingError,
    )


def retry_after(error: BaseException | None) -> float:
    """Return how many seconds Vault asks to wait by ``Retry-After`` (a number, or a date); 0 when it does not."""
    text = str(getattr(error, "retry_after", None) or "").strip()
    if text.isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())


def vault_failure(error: BaseException, what: str, address: str, waited: float) -> CredentialError:
    """Return the error for a request that Vault refused for good, or that was tried for ``waited`` seconds in vain.

    ``what`` names the secret or the login. What Vault itself says is told where that holds no secret.
    """
    if is_transient(error):
        failure = CredentialUnavailableError(f"{what}: {_unavailable(error, address)} (tried for {waited:.0f} s)")
        marked(failure, transience_of(error))
        failure.retry_after = retry_after(error) or None  # for the retries of the step
        return failure
    return CredentialError(f"{what}: {_refused(error, address)}")


def _unavailable(error: BaseException, address: str) -> str:
    import requests

    said = message_of(error)
    match status_of(error):
        case 503 if "sealed" in said.lower():
            return f"Vault at {address} is sealed: unseal it (vault operator unseal)"
        case 503:
            return f"Vault at {address} is not available (HTTP 503): see that it is up and unsealed"
        case 429:
            return f"Vault at {address} refuses more requests for now (HTTP 429): raise its quota, or ask less often"
        case int(status):
            told = f": {said}" if said else ""
            return f"Vault at {address} failed (HTTP {status}{told}): see Vault's own log"
    if isinstance(error, requests.exceptions.Timeout):
        return f"Vault at {address} did not answer in time: see what keeps it, or raise VAULT_CLIENT_TIMEOUT"
    return f"Vault is not reachable at {address}: start it, or correct VAULT_ADDR"


def _refused(error: BaseException, address: str) -> str:
    import requests

    said = message_of(error)
    match status_of(error):
        case 501:
            return f"Vault at {address} has not been initialized: run vault operator init"
        case 200:
            return f"what is at {address} does not answer as Vault does: correct VAULT_ADDR (without /ui)"
        case int(status):
            return f"Vault at {address} refused the request (HTTP {status}): {said or 'it gave no reason'}"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of Vault at {address} is not trusted: give the CA that signed it as VAULT_CACERT"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return f"{error}: correct VAULT_CACERT, VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
    if isinstance(error, requests.exceptions.InvalidHeader | UnicodeEncodeError):
        return "the token or VAULT_NAMESPACE can't be sent: take spaces, line breaks and what is not ASCII out of them"
    return f"{address!r} can't be used as Vault's address ({type(error).__name__}): correct VAULT_ADDR"


def message_of(error: BaseException) -> str:
    """Return what Vault itself said, on one line and cut to a readable length."""
    errors = getattr(error, "errors", None)
    texts = [str(text) for text in errors] if isinstance(errors, list) else []
    text = " ".join("; ".join(texts).split()).removeprefix("1 error occurred: * ")
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + "..."
