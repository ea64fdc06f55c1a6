"""Spark sessions: embedded, on a cluster, or over Spark Connect."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.spark.driver_start import DriverStart, bounded
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.spark.jvm_log import log_options, name_values_in_log
from pipeline_assets.spark.session_conf import EVERYWHERE, driver_jars, session_conf, set_own_conf, set_runtime_conf
from pipeline_assets.transience import execution_error, transience_of
from pipeline_assets.uris import authority

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_assets.connections import S3Connection
    from pipeline_assets.credentials import Secrets
    from pipeline_assets.settings import Settings

_log = logging.getLogger(__name__)

_START_LOCK = threading.Lock()
_CONNECT_PORT = 15002
_ASK_SECONDS = 10.0
_ASKED = "spark.sql.session.timeZone"


class SparkSessions:
    """The Spark sessions of one process: one per (run, pipeline), so that their temp views never mix.

    Nothing starts before the first ``session``. A SparkSession that is active already is borrowed: sessions
    are opened on its Spark, and it is never stopped from here. Close it on every way out, or use it as a
    context manager.
    """

    def __init__(self, settings: Settings, spark_conf: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._spark_conf = dict(spark_conf or {})
        self._lock = threading.RLock()
        self._opened: dict[tuple[str, str], SparkSession] = {}
        self._start: DriverStart | None = None
        self._connect_mode_before: tuple[str | None] | None = None
        self._signs_of_life: list[_SignsOfLife] = []

    def session(
        self, run_id: str, pipeline: str, conf: Mapping[str, str] | None = None, *, is_stream: bool = False
    ) -> SparkSession:
        """Return the session of ``pipeline`` in run ``run_id``, opening it on first use, with what ``conf`` sets in it.

        A Spark that is started for it takes a share of the machine's memory, but for a stream, one of many that go on.

        Over Spark Connect it is the same session on the server in every process of the run. Raises ConfigurationError
        for a setting that there is not, or that is none of a session.
        """
        with self._lock, spark_errors():
            opened = self._opened.get((run_id, pipeline))
            if opened is None:
                if self._settings.spark_remote:
                    opened = self._open_remote(self._settings.spark_remote, run_id, pipeline)
                else:
                    opened = self._open_classic(run_id, pipeline, is_stream=is_stream)
                self._opened[run_id, pipeline] = opened
                _log.info("%s", self._described(opened))
                _quieten()
            if not self._settings.spark_remote:
                _activate(opened)
            set_own_conf(opened, conf or {})
            return opened

    def _described(self, session: SparkSession) -> str:
        if self._settings.spark_remote:
            return f"Spark {session.version} over Connect, session {session.client._session_id} of the server"
        context = session.sparkContext
        return f"Spark {session.version}, application {context.applicationId} on {context.master}"

    def has_died(self) -> bool:
        """Whether the Spark that was started here has ended by itself, or did not start, or a Connect server has been
        started anew and knows the sessions no longer. What was opened is of no more use then.
        """
        with self._lock:
            if self._settings.spark_remote:
                # The client closes itself when the server says so; nothing else closes one that is kept here.
                clients = [session.client for session in self._opened.values()]
                return any(client.is_closed for client in clients)
            return self._start is not None and self._start.has_died()

    def _open_classic(self, run_id: str, pipeline: str, *, is_stream: bool) -> SparkSession:
        if self._start is not None:
            return self._start.root().newSession()
        with _START_LOCK:
            borrowed = _active_session()
            if borrowed is None:
                options = log_options(self._settings, run_id, pipeline)
                jars = driver_jars(self._spark_conf)
                is_alone = self._settings.in_one_process and not is_stream
                conf = session_conf(self._settings, self._spark_conf)
                self._start = DriverStart(conf, jars, options, is_alone=is_alone)
                self._start.begin()
                root = self._start.root()
                if self._settings.log_format == "json":
                    name_values_in_log(root)
                return root.newSession()
        session = borrowed.newSession()
        set_runtime_conf(session, {**EVERYWHERE, **self._spark_conf})
        return session

    def _open_remote(self, remote: str, run_id: str, pipeline: str) -> SparkSession:
        from pyspark.sql import SparkSession

        if problem := _connect_problem(remote):
            raise problem
        if self._connect_mode_before is None:
            self._connect_mode_before = (os.environ.get("SPARK_CONNECT_MODE_ENABLED"),)
        session = SparkSession.builder.remote(connect_url(remote, run_id, pipeline)).create()
        try:
            set_runtime_conf(session, session_conf(self._settings, self._spark_conf))
        except BaseException:
            _close_remote(session, release=False)
            raise
        self._signs_of_life.append(_SignsOfLife(partial(session.conf.get, _ASKED)))
        return session

    def close(self, release: bool = True) -> None:
        """Stop what was started here, and leave no process behind. Never raises for what is gone already.

        Safe to call twice, and after a start that was interrupted. Over Spark Connect the session on the
        server is released, with its temp views, and cannot be opened again; ``release=False`` keeps it for
        other processes of the run.
        """
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
            start, self._start = self._start, None
            signs, self._signs_of_life = self._signs_of_life, []
            for each in signs:
                each.end()
            try:
                if self._settings.spark_remote:
                    reached = release and bool(opened) and not _connect_problem(self._settings.spark_remote)
                    for session in opened:
                        _close_remote(session, release=reached)
            finally:
                if start is not None:
                    start.undo()
                if self._connect_mode_before is not None:
                    # PySpark leaves the process in Connect mode, and then refuses to start a classic session.
                    _restore_environment("SPARK_CONNECT_MODE_ENABLED", self._connect_mode_before[0])
                    self._connect_mode_before = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
    signs = _SignsOfLife(partial(clone.conf.get, _ASKED))
    try:
        yield clone
    finally:
        signs.end()
        _close_remote(clone, release=True)


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
        _close_remote(apart, release=True)


def apply_s3_connection(spark: SparkSession, bucket: str, connection: S3Connection, secrets: Secrets) -> None:
    """Have ``spark`` reach ``s3a://<bucket>/...`` by ``connection``, from now on and in this session only.

    Hadoop keeps one client per bucket and JVM: other credentials for a bucket that has been read already take
    effect in the next JVM. Without keys in ``connection``, Hadoop's default credential chain applies.
    """
    # Spark copies a session's conf into the Hadoop conf of what it reads and writes.
    given = secrets.resolve_secret_options(connection.options)
    options = {key.removeprefix("fs.s3a."): value for key, value in given.items()}
    options["path.style.access"] = str(connection.path_style_access).lower()
    if connection.endpoint:
        options["endpoint"] = connection.endpoint
        options["connection.ssl.enabled"] = str(not connection.endpoint.startswith("http://")).lower()
    if connection.region:
        options["endpoint.region"] = connection.region
    if connection.access_key_id and connection.secret_access_key:
        keys = {"access.key": connection.access_key_id, "secret.key": connection.secret_access_key}
        provider = "SimpleAWSCredentialsProvider"
        if connection.session_token:
            keys["session.token"] = connection.session_token
            provider = "TemporaryAWSCredentialsProvider"
        options |= secrets.fetch_all(keys)
        options["aws.credentials.provider"] = f"org.apache.hadoop.fs.s3a.{provider}"
    for key, value in options.items():
        spark.conf.set(f"fs.s3a.bucket.{bucket}.{key}", value)


class KeptSessions:
    """Keeps the sessions that the processes of a run share on a Connect server, for as long as the run lasts.

    Each process asks for those that it works in. Between two of them nobody would, and a session that nothing has asked
    for is ended by the server, for good.
    """

    def __init__(self, remote: str, run_id: str) -> None:
        self._remote = remote
        self._run_id = run_id
        self._signs: dict[str, _SignsOfLife] = {}
        self._clients: dict[str, Any] = {}

    @property
    def pipelines(self) -> list[str]:
        """Those whose sessions are, or were, kept."""
        return sorted(self._signs)

    def keep(self, pipeline: str) -> None:
        """Keep the session of ``pipeline``, which a process of the run has opened."""
        if pipeline not in self._signs:
            self._signs[pipeline] = _SignsOfLife(partial(self._ask, pipeline))

    def _ask(self, pipeline: str) -> None:
        from pyspark.sql.connect.client import SparkConnectClient

        client = self._clients.get(pipeline)
        if client is None or client.is_closed:  # it closes itself when the server has been started anew
            self._clients[pipeline] = SparkConnectClient(connect_url(self._remote, self._run_id, pipeline))
        self._clients[pipeline].get_configs(_ASKED)

    def end(self) -> None:
        """Keep none any more."""
        for signs in self._signs.values():
            signs.end()
        for client in list(self._clients.values()):
            _close_client(client)


class _SignsOfLife:
    """Asks a Connect server for a session again and again: one that is not asked for is that of a run that is gone.

    The server of ``pipeline-assets spark-server`` ends those within a minute.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="signs-of-life", daemon=True).start()

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_ASK_SECONDS):
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001  (what the run itself asks for tells it, if it is of weight)
                _log.debug("no answer for the session: %s", type(error).__name__)


def _activate(session: SparkSession) -> None:
    """Make ``session`` the one whose conf the JVM goes by for the calling thread, in ``explain`` for instance."""
    from pyspark.sql import SparkSession

    SparkSession._get_j_spark_session_class(session._jvm).setActiveSession(session._jsparkSession)


def _quieten() -> None:
    """Keep PySpark from printing each exception with its JVM trace: ``spark_failure`` tells it, masked."""
    from pyspark.logger import PySparkLogger

    for name in ("DataFrameQueryContextLogger", "SQLQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)


def _connect_problem(remote: str) -> PipelineExecutionError | None:
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


def _close_remote(session: Any, *, release: bool) -> None:
    """Close ``session``, on the server too where it is to be released, and its channel in any case."""
    session.release_session_on_close = release
    bounded(session.stop, "closing the Spark Connect session")
    _close_client(session.client)


def _close_client(client: Any) -> None:
    """Close the channel of ``client``. Left open, it talks to its server when Python exits, or tries to for minutes."""
    if not client.is_closed:
        bounded(client.close, "closing the channel to Spark Connect")


def _active_session() -> SparkSession | None:
    from pyspark.core.context import SparkContext
    from pyspark.sql import SparkSession

    # getActiveSession() alone knows the session of this thread only.
    if SparkContext._active_spark_context is None:
        return None
    return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()


def _restore_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
