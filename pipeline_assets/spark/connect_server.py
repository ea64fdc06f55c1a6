"""A Spark Connect server that stays up between runs: those that use it (``SPARK_REMOTE``) start no JVM."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.settings import Settings, cache_folder
from pipeline_assets.spark.class_archive import archived_classes
from pipeline_assets.spark.driver_memory import default_driver_memory
from pipeline_assets.spark.driver_start import own_python
from pipeline_assets.spark.java_options import java_options, without_remote
from pipeline_assets.spark.jvm_log import log_options
from pipeline_assets.spark.properties_file import write_properties
from pipeline_assets.spark.session_conf import driver_jars, session_conf
from pipeline_assets.uris import authority

_DRIVER = Path(__file__).with_name("connect_server_driver.py")
_PROPERTIES = "spark.properties"
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_SHOWN_LINES = 15
# Of a run that was killed the session goes, with its temp views, when nothing has asked for it for that long: runs ask
# every few seconds. (Spark's own default is an hour.)
_SESSIONS = {
    "spark.connect.session.manager.defaultSessionTimeout": "45s",
    "spark.connect.session.manager.maintenanceInterval": "5s",
}
# What is told of jobs is kept for all runs, streams among them, and a long step asks for its first jobs in the end.
_KEPT_JOBS = {"spark.ui.retainedJobs": "10000", "spark.ui.retainedStages": "10000"}
# Jobs of one pool, and all are in one, take turns: a long run does not keep the others waiting.
_POOLS = """<?xml version="1.0"?>
<allocations><pool name="default"><schedulingMode>FAIR</schedulingMode></pool></allocations>
"""


@dataclass(frozen=True)
class ServerRecord:
    """A server that was started: where it answers, its process, and its log. ``started`` is in seconds since 1970."""

    host: str
    port: int
    pid: int
    started: float
    log: str

    @property
    def remote(self) -> str:
        """What ``SPARK_REMOTE`` has to be."""
        return f"sc://{authority(self.host, self.port)}"

    def process(self) -> psutil.Process | None:
        """Return the server's process; None when it is gone, and its number perhaps another's."""
        try:
            process = psutil.Process(self.pid)
            # When the clock is set, so is the time at which a process seems to have started; Java's command line stays.
            is_same = abs(process.create_time() - self.started) < 1.0 or self._properties in process.cmdline()
            is_same = is_same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # the second is for a process of another user
            return None
        return process if is_same else None

    @property
    def _properties(self) -> str:
        return str(Path(self.log).with_name(_PROPERTIES))


class ConnectServer:
    """The server at ``port`` of ``host``, one for each user of the machine."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._folder = cache_folder() / "spark-server" / str(port)

    def running(self) -> ServerRecord | None:
        """Return the server, if it was started and has not ended since."""
        try:
            record = ServerRecord(**json.loads((self._folder / "server.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # the last two for what is no record
            return None
        return record if record.process() is not None else None

    def start(self, settings: Settings, spark_conf: Mapping[str, str]) -> ServerRecord:
        """Start the server on the Spark that ``settings`` name, and return when it answers.

        Raises ConfigurationError when one runs already or the port is another program's, PipelineExecutionError when
        it ends or does not answer in time.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self._folder / "lock"):
            if (found := self.running()) is not None:
                raise ConfigurationError(f"a Spark server runs at {found.remote} already (process {found.pid})")
            _check_free(self._host, self._port)
            log = self._folder / "server.log"
            jars, options = driver_jars(spark_conf), log_options(settings, "", "spark-server")
            conf, properties = self.conf(settings, spark_conf), self._folder / _PROPERTIES
            write_properties(properties, conf)
            python = own_python(conf["spark.master"])
            workers = {"PYSPARK_PYTHON": python} if python else {}
            with (
                log.open("wb") as output,
                default_driver_memory(conf["spark.master"]),
                archived_classes(jars),
                java_options(options),
                without_remote(),
            ):
                process = psutil.Popen(
                    [_spark_submit(), "--properties-file", str(properties), str(_DRIVER)],
                    env={**os.environ, **workers},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            record = ServerRecord(self._host, self._port, process.pid, process.create_time(), str(log))
            try:
                # Before it answers: should this process be killed meanwhile, `stop` finds the server.
                self._write(record)
                self._wait_until_it_answers(record)
            except BaseException:
                _end(process)
                raise
            return record

    def _write(self, record: ServerRecord) -> None:
        # In one go: the other commands read it at any time.
        written = self._folder / f"server.{os.getpid()}"
        written.write_text(json.dumps(asdict(record)), encoding="utf-8")
        written.replace(self._folder / "server.json")

    def stop(self) -> ServerRecord | None:
        """End the server, and return it; None when there is none."""
        record = self.running()
        process = record.process() if record is not None else None
        if process is not None:
            _end(process)
        return record

    def conf(self, settings: Settings, spark_conf: Mapping[str, str]) -> dict[str, str]:
        """Return what the server is started with; the file of its pools is written for it."""
        pools = self._folder / "pools.xml"
        pools.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pools.write_text(_POOLS, encoding="utf-8")
        return {
            **session_conf(replace(settings, spark_remote=None), spark_conf),
            "spark.app.name": "pipeline-assets spark-server",
            "spark.scheduler.mode": "FAIR",
            "spark.scheduler.allocation.file": pools.as_uri(),
            **_SESSIONS,
            **_KEPT_JOBS,
            **spark_conf,
            # Of the driver beside the server, which needs this package; the others are of the workers.
            "spark.pyspark.driver.python": sys.executable,
            "spark.connect.grpc.binding.address": self._host,
            "spark.connect.grpc.binding.port": str(self._port),
        }

    def _wait_until_it_answers(self, record: ServerRecord) -> None:
        import grpc

        deadline = time.monotonic() + _START_SECONDS
        with grpc.insecure_channel(authority(self._host, self._port)) as channel:
            ready = grpc.channel_ready_future(channel)
            while record.process() is not None and time.monotonic() < deadline:
                try:
                    ready.result(timeout=0.25)
                except grpc.FutureTimeoutError:
                    continue
                return
        state = "has ended" if record.process() is None else f"did not answer within {_START_SECONDS:.0f} s"
        lines = Path(record.log).read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        raise PipelineExecutionError(f"the Spark server {state}: {record.log} says why", details="\n".join(lines))


def _check_free(host: str, port: int) -> None:
    """Raise ConfigurationError when nothing can listen at ``port`` of ``host``.

    Another program that answers there would pass for the server, and have the secrets of runs sent to it.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} of {host} is taken by another program: give another one with --port"
            ) from None
        raise ConfigurationError(f"cannot listen at port {port} of {host}: {error.strerror}") from None


def _spark_submit() -> str:
    from pyspark.find_spark_home import _find_spark_home

    return str(Path(_find_spark_home()) / "bin" / "spark-submit")


def _end(process: psutil.Process) -> None:
    children: list[psutil.Process] = []
    try:
        # The workers of streams outlive it: PySpark goes on for many minutes to tell the server that they end.
        children = process.children(recursive=True)
        process.terminate()
        process.wait(_STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)
    except psutil.NoSuchProcess:
        return
    finally:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
