"""Sessions on a Spark Connect server: how they are found, kept and closed; and sessions apart, on any Spark."""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.spark.driver_start import bounded
from pipeline_assets.transience import execution_error, transience_of
from pipeline_assets.uris import authority

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

_CONNECT_PORT = 15002
_ASK_SECONDS = 10.0
_ASKED = "spark.sql.session.timeZone"


def connect_url(remote: str, run_id: str, pipeline: str) -> str:
    """Return ``remote`` (``sc://host:port/;key=value``) with the session id of ``pipeline`` in a run."""
    base = remote.rstrip(";")
    if not urlsplit(base).path:
        base += "/"
    return f"{base};session_id={session_id(run_id, pipeline)}"


def session_id(run_id: str, pipeline: str) -> str:
    """Return the id of the session that ``pipeline`` has on a Spark Connect server in a run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pipeline-assets:{run_id}/{pipeline}"))


@contextmanager
def cloned_session(session: SparkSession) -> Iterator[SparkSession]:
    """Give a session of its own on the Connect server, with the state that ``session`` has now; it ends with the block.

    Raises ConfigurationError for a server that is older than that.

    Source: https://github.com/apache/spark/pull/52200 (Spark 4.1 and later)
    """
    import grpc

    remote: Any = session
    try:
        clone = remote.cloneSession()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        raise ConfigurationError(
            "this Spark Connect server can't clone a session: it has to be of Spark 4.1 or later"
        ) from None
    signs = SignsOfLife.of(clone)
    try:
        yield clone
    finally:
        signs.end()
        close_remote(clone, release=True)


@contextmanager
def session_apart(session: SparkSession, remote: str | None) -> Iterator[SparkSession]:
    """Give a session on the Spark of ``session``, with its settings and none of its views; it ends with the block.

    ``remote``: the address of the Connect server, where it is one. A view that takes the place of another of its name
    has Spark let go of all that is kept of views of that name, in whatever session; one that is new does not.
    """
    from pyspark.sql import SparkSession

    if remote is None:
        # As a stream gets a session for each micro-batch. PySpark has no way to, and to copy all settings takes longer.
        clone = session._jsparkSession.cloneSession()
        clone.sessionState().catalog().clearTempTables()
        yield SparkSession(session.sparkContext, clone)
        return
    apart = SparkSession.builder.remote(connect_url(remote, uuid.uuid4().hex, "apart")).create()
    try:
        has = apart.conf.getAll
        for key, value in session.conf.getAll.items():
            if has.get(key) != value:
                apart.conf.set(key, value)
        yield apart
    finally:
        close_remote(apart, release=True)


class KeptSessions:
    """Keeps the sessions that the processes of a run share on a Connect server, for as long as the run lasts.

    Each process asks for those that it works in. Between two of them nobody would, and a session that nothing has asked
    for is ended by the server, for good.
    """

    def __init__(self, remote: str, run_id: str) -> None:
        self._remote = remote
        self._run_id = run_id
        self._signs: dict[str, SignsOfLife] = {}
        self._clients: dict[str, Any] = {}

    @property
    def pipelines(self) -> list[str]:
        """Those whose sessions are, or were, kept."""
        return sorted(self._signs)

    def keep(self, pipeline: str) -> None:
        """Keep the session of ``pipeline``, which a process of the run has opened."""
        if pipeline not in self._signs:
            self._signs[pipeline] = SignsOfLife(partial(self._ask, pipeline))

    def _ask(self, pipeline: str) -> None:
        self._client(pipeline).get_configs(_ASKED)

    def _client(self, pipeline: str) -> Any:
        from pyspark.sql.connect.client import SparkConnectClient

        client = self._clients.get(pipeline)
        if client is None or client.is_closed:  # it closes itself when the server has been started anew
            client = self._clients[pipeline] = SparkConnectClient(connect_url(self._remote, self._run_id, pipeline))
        return client

    def end(self) -> None:
        """Keep none any more: they end on the server, with their temp views and settings."""
        for signs in self._signs.values():
            signs.end()
        if self._signs and not connect_problem(self._remote):
            bounded(partial(_release_all, [self._client(each) for each in self._signs]), "closing the run's sessions")
        for client in list(self._clients.values()):
            _close_client(client)


class SignsOfLife:
    """Asks a Connect server for a session again and again: one that is not asked for is that of a run that is gone.

    The server of ``pipeline-assets spark-server`` ends those within a minute.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="signs-of-life", daemon=True).start()

    @classmethod
    def of(cls, session: SparkSession) -> Self:
        """Ask for ``session``, from now on."""
        return cls(partial(session.conf.get, _ASKED))

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_ASK_SECONDS):
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001  (what the run itself asks for tells it, if it is of weight)
                _log.debug("no answer for the session: %s", type(error).__name__)


def connect_problem(remote: str) -> PipelineExecutionError | None:
    """Return why the server cannot be reached, or None: PySpark's client would try for minutes to find out."""
    host, port = urlsplit(remote).hostname or "", urlsplit(remote).port or _CONNECT_PORT
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        return execution_error(
            f"the Spark Connect server sc://{authority(host, port)} does not answer: {error.strerror or error} "
            "(SPARK_REMOTE says where it is)",
            transience_of(error),
        )
    return None


def close_remote(session: Any, *, release: bool) -> None:
    """Close ``session``, on the server too where it is to be released, and its channel in any case."""
    session.release_session_on_close = release
    bounded(session.stop, "closing the Spark Connect session")
    _close_client(session.client)


def _release_all(clients: Iterable[Any]) -> None:
    """End the sessions of ``clients`` on the server."""
    for client in clients:
        try:
            client.release_session()
        except Exception as error:  # noqa: BLE001  (the others are to end, too)
            _log.debug("a session was not closed: %s", type(error).__name__)


def _close_client(client: Any) -> None:
    """Close the channel of ``client``. Left open, it talks to its server when Python exits, or tries to for minutes."""
    if not client.is_closed:
        bounded(client.close, "closing the channel to Spark Connect")
