"""Spark sessions: embedded, on a cluster, or over Spark Connect."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline_assets.spark.connect_sessions import SignsOfLife, close_remote, connect_problem, connect_url
from pipeline_assets.spark.driver_start import DriverStart
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.spark.jvm_log import log_options, name_values_in_log
from pipeline_assets.spark.session_conf import EVERYWHERE, driver_jars, session_conf, set_own_conf, set_runtime_conf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_assets.settings import Settings

_log = logging.getLogger(__name__)

_START_LOCK = threading.Lock()


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
        self._signs_of_life: list[SignsOfLife] = []

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

        if problem := connect_problem(remote):
            raise problem
        if self._connect_mode_before is None:
            self._connect_mode_before = (os.environ.get("SPARK_CONNECT_MODE_ENABLED"),)
        session = SparkSession.builder.remote(connect_url(remote, run_id, pipeline)).create()
        try:
            set_runtime_conf(session, session_conf(self._settings, self._spark_conf))
        except BaseException:
            close_remote(session, release=False)
            raise
        self._signs_of_life.append(SignsOfLife.of(session))
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
                    reached = release and bool(opened) and not connect_problem(self._settings.spark_remote)
                    for session in opened:
                        close_remote(session, release=reached)
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


def _activate(session: SparkSession) -> None:
    """Make ``session`` the one whose conf the JVM goes by for the calling thread, in ``explain`` for instance."""
    from pyspark.sql import SparkSession

    SparkSession._get_j_spark_session_class(session._jvm).setActiveSession(session._jsparkSession)


def _quieten() -> None:
    """Keep PySpark from printing each exception with its JVM trace: ``spark_failure`` tells it, masked."""
    from pyspark.logger import PySparkLogger

    for name in ("DataFrameQueryContextLogger", "SQLQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)


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
