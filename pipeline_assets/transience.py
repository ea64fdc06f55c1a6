"""Which failures pass by themselves. Read from types and codes; from words only where their maker gives no code.

A failure is transient when the same step, run again a little later, can succeed without anybody having changed
anything: nobody answered, an answer took too long, the other side was busy or restarting, another writer was faster,
an executor was lost. All else is permanent, and so is what is not known here: wrong SQL, a missing table or topic, a
refused password, a full disk. Pure: no library is imported, their exceptions are told by the names of their classes.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

from pipeline_assets.errors import PipelineError, PipelineExecutionError, RetryableError, TransientKind

_ErrorT = TypeVar("_ErrorT", bound=PipelineError)


@dataclass(frozen=True)
class Transience:
    """Why a failure may be gone on the next try, and the seconds that the other side asked to wait before it."""

    kind: TransientKind
    retry_after: float | None = None


class JavaException(Protocol):
    """One exception of a chain, as ``spark.failures.Cause`` has it."""

    @property
    def java_class(self) -> str:
        """Its class, with the package."""

    @property
    def kinds(self) -> Sequence[str]:
        """The simple names of its class and of those that it derives from."""

    @property
    def message(self) -> str:
        """What it says."""

    @property
    def condition(self) -> str | None:
        """Spark's error condition."""

    @property
    def sql_state(self) -> str | None:
        """SQLSTATE."""

    @property
    def status(self) -> int | None:
        """HTTP status."""

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, as the answer's header had them."""


def of_sql_state(state: str) -> TransientKind | None:
    """Return what a SQLSTATE (of PostgreSQL's Appendix A, and of Delta's commit conflicts) stands for.

    57014 is a query that ran into the server's statement_timeout, or was cancelled by somebody: it would again, so it
    is permanent. 57P04 is a database that has been dropped, 53100 a full disk, 53200 too little memory.
    """
    if state.startswith("08"):
        return "connection"
    return _SQL_STATES.get(state)


_SQL_STATES: dict[str, TransientKind] = {
    "40001": "conflict",  # serialization_failure
    "40P01": "conflict",  # deadlock_detected
    "55P03": "conflict",  # lock_not_available: NOWAIT, or lock_timeout
    "53300": "unavailable",  # too_many_connections
    "57P01": "unavailable",  # admin_shutdown
    "57P02": "unavailable",  # crash_shutdown
    "57P03": "unavailable",  # cannot_connect_now: it is starting
    "57P05": "connection",  # idle_session_timeout
    "2D521": "conflict",  # Delta: concurrent append, delete, write, transaction; metadata or protocol changed
}

# PostgreSQL's words, where its SQLSTATE is lost: libpq has none for a refused connection, and Spark Connect sends the
# text of a cause alone. A server that speaks another language than English (lc_messages) is then not understood.
_POSTGRES_WORDS = {
    r"terminating connection due to administrator command": "57P01",
    r"terminating connection because of crash of another server process": "57P02",
    r"the database system is (?:starting up|shutting down|in recovery mode|not yet accepting connections)": "57P03",
    r"sorry, too many clients already|remaining connection slots are reserved|too many connections for": "53300",
    r"could not serialize access": "40001",
    r"deadlock detected": "40P01",
    r"canceling statement due to lock timeout|could not obtain lock on": "55P03",
    r"server closed the connection unexpectedly|An I/O error occurred while sending to the backend": "08006",
    r"SSL (?:connection has been closed unexpectedly|SYSCALL error: EOF detected|error: unexpected eof)": "08006",
    r"Connection attempt timed out": "08001",  # pgjdbc's loginTimeout
    r"Temporary failure in name resolution": "08001",
}


def of_postgres_words(text: str) -> TransientKind | None:
    """Return what PostgreSQL's words stand for, where there is no SQLSTATE."""
    for words, state in _POSTGRES_WORDS.items():
        if re.search(words, text):
            return of_sql_state(state)
    # libpq prints the system's words for an errno, and its own for connect_timeout.
    for code, kind in _ERRNO.items():
        if os.strerror(code) in text:
            return kind
    return "timeout" if "timeout expired" in text else None


_ERRNO: dict[int, TransientKind] = {
    errno.ECONNREFUSED: "connection",
    errno.ECONNRESET: "connection",
    errno.ECONNABORTED: "connection",
    errno.EPIPE: "connection",
    errno.ENETDOWN: "connection",
    errno.ENETUNREACH: "connection",
    errno.ENETRESET: "connection",
    errno.EHOSTUNREACH: "connection",
    errno.EHOSTDOWN: "connection",
    errno.ETIMEDOUT: "timeout",
}


def of_status(status: int, retry_after: float | None = None) -> Transience | None:
    """Return what an HTTP status stands for: 429, 408 and the 5xx pass, but not those that say "never" (501, 505)."""
    if status == 429:
        return Transience("throttled", retry_after)
    if status == 408:
        return Transience("timeout", retry_after)
    if 500 <= status < 600 and status not in (501, 505):
        return Transience("unavailable", retry_after)
    return None


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header (RFC 9110: seconds, or a date) says; None when it says none.

    ``now``: seconds since the epoch, for dates.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


# Kafka's RetriableException and what derives from it; a test holds this list to the client's JAR.
KAFKA_RETRIABLE = frozenset(
    """
    RetriableException AuthorizerNotReadyException ConcurrentTransactionsException CoordinatorLoadInProgressException
    CoordinatorNotAvailableException CorruptRecordException DisconnectException ElectionNotNeededException
    EligibleLeadersNotAvailableException FencedLeaderEpochException FetchSessionIdNotFoundException
    FetchSessionTopicIdException InconsistentTopicIdException InvalidFetchSessionEpochException
    InvalidMetadataException InvalidShareSessionEpochException KafkaStorageException LeaderNotAvailableException
    ListenerNotFoundException NetworkException NotControllerException NotCoordinatorException
    NotEnoughReplicasAfterAppendException NotEnoughReplicasException NotLeaderForPartitionException
    NotLeaderOrFollowerException OffsetNotAvailableException PreferredLeaderNotAvailableException
    ReplicaNotAvailableException RetriableCommitFailedException ShareSessionNotFoundException
    ThrottlingQuotaExceededException TimeoutException UnknownLeaderEpochException UnknownTopicIdException
    UnknownTopicOrPartitionException UnstableOffsetCommitException
    """.split()  # noqa: SIM905
)
# Kafka calls it retriable since a new topic takes a moment to be known. The client has waited for that when it raises.
_KAFKA_MISSING = frozenset(["UnknownTopicOrPartitionException", "UnknownTopicIdException"])
# The same by the number that the protocol gives them, and what librdkafka calls by numbers of its own (negative).
_KAFKA_CODES: dict[int, TransientKind] = {
    **dict.fromkeys(
        (2, 5, 6, 9, 14, 15, 16, 19, 20, 41, 51, 56, 70, 71, 72, 74, 75, 78, 80, 83, 88, 103, 106), "unavailable"
    ),
    7: "timeout",
    13: "connection",
    89: "throttled",
    -195: "connection",  # _TRANSPORT
    -187: "connection",  # _ALL_BROKERS_DOWN
    -192: "timeout",  # _MSG_TIMED_OUT
    -185: "timeout",  # _TIMED_OUT
    -166: "timeout",  # _TIMED_OUT_QUEUE
    -183: "unavailable",  # _ISR_INSUFF
    -180: "unavailable",  # _WAIT_COORD
    -153: "unavailable",  # _RETRY
}


def of_kafka_code(code: int) -> TransientKind | None:
    """Return what an error of Kafka's protocol, or of librdkafka (negative), stands for."""
    return _KAFKA_CODES.get(code)


# Simple names of Java classes that no code goes with, the most telling first.
_JAVA: dict[str, TransientKind | None] = {
    "BindException": None,  # a SocketException, but of this side
    "UnknownHostException": None,
    "SSLHandshakeException": None,
    "SSLPeerUnverifiedException": None,
    "DeltaConcurrentModificationException": "conflict",
    "AWSServiceThrottledException": "throttled",
    "AWSStatus500Exception": "unavailable",
    "FetchFailedException": "lostExecutor",
    "MetadataFetchFailedException": "lostExecutor",
    "ExecutorLostFailure": "lostExecutor",
    "Py4JNetworkError": "lostExecutor",
    "SocketTimeoutException": "timeout",
    "ConnectTimeoutException": "timeout",
    "ConnectionPoolTimeoutException": "timeout",
    "HttpTimeoutException": "timeout",
    "ApiCallTimeoutException": "timeout",
    "ApiCallAttemptTimeoutException": "timeout",
    "AWSApiCallTimeoutException": "timeout",
    "TimeoutException": "timeout",
    "SocketException": "connection",
    "ConnectException": "connection",
    "HttpHostConnectException": "connection",
    "NoRouteToHostException": "connection",
    "ClosedChannelException": "connection",
    "NoHttpResponseException": "connection",
    "ConnectionClosedException": "connection",
    "AWSNoResponseException": "connection",
    "HttpChannelEOFException": "connection",
}
# What a lost executor leaves in a stage's failure: the names of Spark's reasons, for which there is no class or code;
# and what a Spark that stops says of the work that it was at.
_LOST = re.compile(
    r"ExecutorLostFailure \(executor|\bFetchFailed\(|Master removed our application|Lost executor \d+"
    r"|SparkContext was shut down|Cannot call methods on a stopped SparkContext"
    r"|No active or default Spark session found"
)
# What a Connect server that has been started anew says of a session of the one before, and then Spark's client by
# itself. One that the server has closed (SESSION_CLOSED) is none of them: it takes the session's id no more.
LOST_SESSION = frozenset(["INVALID_HANDLE.SESSION_CHANGED", "NO_ACTIVE_SESSION"])


def of_java(chain: Sequence[JavaException]) -> Transience | None:
    """Return whether a chain of Java exceptions, outermost first, passes; the innermost that says so decides."""
    for exception in reversed(chain):
        known, found = _of_java_exception(exception)
        if known:
            return found
    if len(chain) == 1 and chain[0].condition == "FAILED_JDBC.CONNECTION":
        # Spark Connect loses the causes when one of them has no text. That is the end of the stream: hung up on.
        return Transience("connection")
    return None


def _of_java_exception(exception: JavaException) -> tuple[bool, Transience | None]:
    """Return whether anything is known of ``exception``, and what it is then."""
    kinds = exception.kinds
    if exception.condition in LOST_SESSION:
        return True, Transience("lostExecutor")
    if exception.status is not None and exception.status >= 400:
        return True, of_status(exception.status, exception.retry_after)
    if exception.sql_state is not None and of_sql_state(exception.sql_state) is not None:
        return True, _if_any(of_sql_state(exception.sql_state))
    if "SQLException" in kinds:
        if exception.sql_state is not None:
            return True, None
        kind = of_postgres_words(exception.message)
        return kind is not None, _if_any(kind)
    if "KafkaException" in kinds:
        return _of_kafka_exception(kinds)
    for name, kind in _JAVA.items():
        if name in kinds:
            return True, _if_any(kind)
    if _LOST.search(exception.message):
        return True, Transience("lostExecutor")
    return False, None


def _of_kafka_exception(kinds: Sequence[str]) -> tuple[bool, Transience | None]:
    if kinds[0] == "KafkaException":  # only wraps another
        return False, None
    if not KAFKA_RETRIABLE.intersection(kinds) or _KAFKA_MISSING.intersection(kinds):
        return True, None
    if "TimeoutException" in kinds:
        return True, Transience("timeout")
    if "ThrottlingQuotaExceededException" in kinds:
        return True, Transience("throttled")
    is_network = {"NetworkException", "DisconnectException"}.intersection(kinds)
    return True, Transience("connection" if is_network else "unavailable")


def _if_any(kind: TransientKind | None) -> Transience | None:
    return None if kind is None else Transience(kind)


def of_grpc_status(name: str) -> TransientKind | None:
    """Return what the name of a gRPC status stands for: Spark Connect's own failures."""
    return {"UNAVAILABLE": "unavailable", "DEADLINE_EXCEEDED": "timeout"}.get(name)  # type: ignore[return-value]


# pyarrow tells an S3 error in an OSError's text, by the AWS SDK's name for it or by its status.
_ARROW_NAME = re.compile(r"AWS Error ([A-Z_]+)")
_ARROW_STATUS = re.compile(r"\(HTTP status (\d{3})\)|HTTP response code:? (\d{3})")
_ARROW: dict[str, TransientKind] = {
    "NETWORK_CONNECTION": "connection",
    "REQUEST_TIMEOUT": "timeout",
    "SLOW_DOWN": "throttled",
    "THROTTLING": "throttled",
    "INTERNAL_FAILURE": "unavailable",
    "SERVICE_UNAVAILABLE": "unavailable",
}


def _of_os_error(error: OSError) -> Transience | None:
    if isinstance(error, socket.gaierror):
        return Transience("connection") if error.errno == socket.EAI_AGAIN else None
    if isinstance(error, TimeoutError):
        return Transience("timeout")
    if error.errno is not None:
        return _if_any(_ERRNO.get(error.errno))
    if isinstance(error, ConnectionError):
        return Transience("connection")
    text = str(error)
    status = _ARROW_STATUS.search(text)
    if status is not None:
        return of_status(int(status[1] or status[2]))
    name = _ARROW_NAME.search(text)
    return _if_any(_ARROW.get(name[1])) if name is not None else None


# By the name of the library and of the class; looked up along an exception's bases, the nearest first.
_PYTHON: dict[str, TransientKind | None] = {
    "requests.SSLError": None,
    "requests.Timeout": "timeout",
    "requests.ConnectionError": "connection",
    "requests.ChunkedEncodingError": "connection",
    "urllib3.SSLError": None,
    "urllib3.TimeoutError": "timeout",
    "urllib3.ProtocolError": "connection",
    "urllib3.NewConnectionError": "connection",
    "psycopg.ConnectionTimeout": "timeout",
    "py4j.Py4JNetworkError": "lostExecutor",
}
_VAULT_STATUS = {
    "RateLimitExceeded": 429,
    "InternalServerError": 500,
    "BadGateway": 502,
    "VaultDown": 503,
}


def transience_of(error: BaseException, now: float = 0.0) -> Transience | None:
    """Return whether ``error``, as a library or the system raised it, passes; None for what is permanent.

    For Spark's exceptions see ``spark.failures.spark_failure``, which reads the JVM's. ``now``: seconds since the
    epoch, for a ``Retry-After`` that is a date.
    """
    if isinstance(error, PipelineError):
        return None if error.transient_kind is None else Transience(error.transient_kind, error.retry_after)
    library = type(error).__module__.partition(".")[0]
    if library == "psycopg":
        return _of_psycopg(error)
    if library in ("confluent_kafka", "cimpl"):
        return _if_any(of_kafka_code(_code_of(error)))
    if library == "hvac":
        status = next((_VAULT_STATUS[name] for name in _class_names(error) if name in _VAULT_STATUS), None)
        return None if status is None else of_status(status, seconds_of(_header(error), now))
    response = getattr(error, "response", None)
    if library == "requests" and response is not None:
        return of_status(int(response.status_code), seconds_of(_header(error), now))
    for base in type(error).__mro__:
        name = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        if name in _PYTHON:
            return _if_any(_PYTHON[name])
    return _of_os_error(error) if isinstance(error, OSError) else None


def _of_psycopg(error: Any) -> Transience | None:
    names = _class_names(error)
    if "ConnectionTimeout" in names:
        return Transience("timeout")
    if error.sqlstate is not None:
        return _if_any(of_sql_state(error.sqlstate))
    return _if_any(of_postgres_words(str(error))) if "OperationalError" in names else None


def _code_of(error: BaseException) -> int:
    """Return the code of confluent-kafka's KafkaError, or of the one in its KafkaException."""
    inner: Any = error.args[0] if error.args and hasattr(error.args[0], "code") else error
    return int(inner.code()) if hasattr(inner, "code") else 0


def _header(error: Any) -> str | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    found = headers.get("Retry-After") if headers is not None else None
    return str(found) if found is not None else None


def _class_names(error: BaseException) -> list[str]:
    return [base.__name__ for base in type(error).__mro__]


def execution_error(message: str, transience: Transience | None, *, details: str = "") -> PipelineExecutionError:
    """Return the error of a step that failed while it ran: a RetryableError when ``transience`` is given."""
    if transience is None:
        return PipelineExecutionError(message, details=details)
    return RetryableError(message, kind=transience.kind, retry_after=transience.retry_after, details=details)


def marked(error: _ErrorT, transience: Transience | None) -> _ErrorT:
    """Return ``error``, whose class says something else already, with ``transience`` in its attributes."""
    if transience is not None:
        error.transient_kind, error.retry_after = transience.kind, transience.retry_after
    return error
