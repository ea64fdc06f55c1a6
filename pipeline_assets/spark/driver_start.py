"""The start of a Spark driver from here, and how it is undone wherever it got to."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.redaction import is_secret_name
from pipeline_assets.spark.class_archive import archived_classes
from pipeline_assets.spark.driver_memory import default_driver_memory
from pipeline_assets.spark.java_options import java_defaults, java_options
from pipeline_assets.spark.numpy_converters import defer_numpy

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

# Java compiles a method a second time, thoroughly, when it has been called 5,000 times (tier 4 of HotSpot). In a driver
# that starts, and reads and writes a small table, that takes half of the processor time, away from what the run waits
# for. After 30 times as many calls it is left to what a long run repeats: code that each row goes through gets there
# within a second.
_COMPILE_LATER = " ".join(
    f"-XX:Tier4{what}Threshold={30 * default}"
    for what, default in {"Invocation": 5000, "MinInvocation": 600, "Compile": 15000, "BackEdge": 40000}.items()
)

_STOP_SECONDS = 20.0


class DriverStart:
    """The start of an embedded or cluster session, and how it is undone wherever it got to. ``is_alone``: whether it
    may take a share of the machine's memory, as no others run beside it.

    It runs in a thread of its own: an interrupt of the main thread then leaves it whole, so that ``undo``
    finds the process it has launched; and PySpark does not replace Dagster's SIGINT handler there.
    """

    def __init__(self, conf: Mapping[str, str], jars: Sequence[Path], options: str, *, is_alone: bool) -> None:
        from dagster_pyspark import LazyPySparkResource

        self._memory = default_driver_memory(conf["spark.master"]) if is_alone else nullcontext()
        self._jars = jars
        self._options = options
        self._conf = conf
        self._resource = LazyPySparkResource(spark_config=dict(conf))
        self._root: SparkSession | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="start-spark", daemon=True)
        # Not join() and is_alive(): Python 3.11 takes a thread for ended when an interrupt ends its join().
        self._done = threading.Event()

    def begin(self) -> None:
        """Start Spark; ``root`` waits for it."""
        self._thread.start()

    def _run(self) -> None:
        try:
            defer_numpy()
            with (
                self._memory,
                java_defaults(_COMPILE_LATER),
                archived_classes(self._jars),
                java_options(self._options),
            ):
                self._launch_java()
                root: SparkSession = self._resource.spark_session
            if (python := own_python(str(root.sparkContext.master))) is not None:
                root.sparkContext.pythonExec = python
            self._root = root
        except Exception as error:  # noqa: BLE001  (raised again in the thread that waits for the session)
            self._error = error
        finally:
            self._done.set()

    def _launch_java(self) -> None:
        """Start the JVM. Its command line, which every user of the machine can read, holds nothing of the conf that is
        secret by its name: Spark is given all of the conf in the JVM.
        """
        from pyspark.conf import SparkConf
        from pyspark.core.context import SparkContext

        shown = [(key, value) for key, value in self._conf.items() if not is_secret_name(key)]
        SparkContext._ensure_initialized(conf=SparkConf().setAll(shown))

    def root(self) -> SparkSession:
        """Wait for the root session and return it; raise what its start raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        if self._root is None:
            raise PipelineExecutionError("Spark did not start: its start was interrupted")
        return self._root

    def has_died(self) -> bool:
        """Whether the process of the JVM, once it ran, is gone, Spark did not start in it, or has ended there, as when
        a cluster takes the application off: another may.
        """
        if self._error is not None:
            return True
        if self._root is None:
            return False
        from pyspark.core.context import SparkContext

        context: Any = SparkContext
        java = context._gateway.proc if context._gateway is not None else None
        if java is not None and java.poll() is not None:
            return True
        return bool(self._root.sparkContext._jsc.sc().isStopped())

    def undo(self) -> None:
        """Stop the session, its Spark and its JVM. When this returns, the process is gone."""
        from pyspark.core.context import SparkContext
        from pyspark.sql import SparkSession
        from pyspark.sql.context import SQLContext

        gateway: Any = SparkContext._gateway
        try:
            if self._thread.ident is not None and not self._done.is_set():
                self._abandon()
                gateway = SparkContext._gateway
            elif self._root is not None:
                bounded(self._root.stop, "stopping Spark")
        finally:
            # None: spark-submit runs this process, and the JVM is its parent.
            if gateway is not None and gateway.proc is not None:
                _end_java(gateway)
                with suppress(Exception):
                    gateway.shutdown()
                # PySpark takes these for a JVM that lives; the next session has to start another.
                SparkContext._gateway = None
                SparkContext._jvm = None
            SparkContext._active_spark_context = None
            SparkSession._instantiatedSession = None
            SparkSession._activeSession = None
            SQLContext._instantiatedContext = None

    def _abandon(self) -> None:
        """End a start that is under way: without its process it fails by itself."""
        from pyspark.core.context import SparkContext

        deadline = time.monotonic() + _STOP_SECONDS
        number = signal.SIGTERM
        while not self._done.is_set() and time.monotonic() < deadline + 1:
            gateway: Any = SparkContext._gateway
            if gateway is not None and gateway.proc is not None:
                _end_java(gateway)
            else:
                # It may not have been launched yet, so this is done again until the start has failed.
                _signal_children_of(self._thread, number)
            self._done.wait(0.1)
            if time.monotonic() > deadline:
                number = signal.SIGKILL


def own_python(master: str) -> str | None:
    """Return this Python, so that functions in queries find the packages of its environment.

    None where the environment names one, and on a cluster, where executors take the same, on machines of their own.
    """
    return sys.executable if master.startswith("local") and "PYSPARK_PYTHON" not in os.environ else None


def bounded(action: Callable[[], object], what: str) -> None:
    """Run ``action`` for its effect, in a thread of its own, for a limited time.

    The thread is not only for the limit: when the main thread was interrupted in a call to the JVM, the
    answer to that call is still on its way, and would be read as the answer to the next.
    """

    def run() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  (closing must go on)
            _log.debug("%s: %s", what, type(error).__name__)

    thread = threading.Thread(target=run, name="stop-spark", daemon=True)
    thread.start()
    thread.join(_STOP_SECONDS)
    if thread.is_alive():
        _log.warning("%s takes longer than %.0f s and is not waited for", what, _STOP_SECONDS)


def _end_java(gateway: Any) -> None:
    # What Python lets go of is let go of in the JVM, too, by a thread of Py4J: no more, or it would log an error for
    # each object of a JVM that is gone.
    gateway._gateway_client.is_connected = False
    _end(gateway.proc)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the JVM: it exits when its standard input closes; when it does not, by SIGTERM, then SIGKILL."""
    try:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        for ask in (None, process.terminate):
            if ask is not None:
                ask()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS / 2)
                return
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _signal_children_of(thread: threading.Thread, number: signal.Signals) -> None:
    """Signal what ``thread`` has launched. Linux tells; elsewhere the JVM ends when this process does."""
    children = Path(f"/proc/self/task/{thread.native_id}/children")
    with suppress(OSError):
        for pid in children.read_text(encoding="ascii").split():
            os.kill(int(pid), number)
