"""What spark-submit runs for ``pipeline-assets spark-server``: Spark Connect's own server, and what it leaves undone.

Spark's cache outlives the sessions that have filled it. A run lets go of what it has cached; what a run that was killed
had cached is let go of here, when its session has gone. And what jobs have done is in the driver's status store, which
Connect has no way to: runs ask for it here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from pipeline_assets.spark.caching import READER
from pipeline_assets.spark.connect_sessions import session_id
from pipeline_assets.spark.job_metrics import work_of_jobs
from pipeline_assets.spark.job_watch import JOBS_PORT

if TYPE_CHECKING:
    from py4j.java_gateway import JavaGateway

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 5.0
# Spark's listeners hear of all runs here, and no step is to wait for what others have them do.
_LISTENERS_SECONDS = 2.0


class ServerCaches:
    """What the server's Spark keeps, and of which sessions. By Spark's own classes, some of it not public."""

    def __init__(self, gateway: JavaGateway) -> None:
        self._gateway = gateway
        self._jvm: Any = gateway.jvm

    def let_go_of_ended_runs(self) -> None:
        """Let go of what runs have cached whose session is no longer there."""
        found = self._jvm.org.apache.spark.sql.classic.SparkSession.getDefaultSession()
        if found.isEmpty():
            return  # it has not started yet
        spark = found.get()
        plans = self._cached_plans(spark.sharedState().cacheManager())
        # Asked for after the plans: a run has its session before it caches anything.
        sessions = self._sessions()
        for plan in plans:
            readers = re.findall(READER, plan.treeString())
            if readers and not sessions.intersection(session_id(*reader) for reader in readers):
                _log.warning("run %s has ended: what it had cached is let go of", readers[0][0])
                spark.sharedState().cacheManager().uncacheQuery(spark, plan, False, False)

    def _cached_plans(self, manager: Any) -> list[Any]:
        lang = self._jvm.java.lang
        getter = manager.getClass().getDeclaredMethod("cachedData", self._gateway.new_array(lang.Class, 0))
        getter.setAccessible(True)
        cached = getter.invoke(manager, self._gateway.new_array(lang.Object, 0))
        return [cached.apply(number).plan() for number in range(cached.size())]

    def _sessions(self) -> set[str]:
        service = getattr(self._jvm.org.apache.spark.sql.connect.service, "SparkConnectService$")
        active = getattr(service, "MODULE$").sessionManager().listActiveSessions()
        return {active.apply(number).sessionId() for number in range(active.size())}


class JobsEndpoint(ThreadingHTTPServer):
    """Answers ``GET /jobs?tag=TAG``, by JSON, with what the jobs that have the tag have done, and their longest stages.

    Who does not know the tag of a step, which is drawn by chance, learns nothing.
    """

    daemon_threads = True

    def __init__(self, gateway: JavaGateway, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host.strip("[]"), port), _JobsHandler)
        self._jvm: Any = gateway.jvm

    def work(self, tag: str) -> dict[str, Any]:
        """Return what is told of the jobs with ``tag``. Raises Py4JError when Spark does not tell."""
        spark = self._jvm.org.apache.spark.sql.classic.SparkSession.getDefaultSession().get()
        metrics, stages = work_of_jobs(spark.sparkContext(), tag, _LISTENERS_SECONDS)
        return {"metrics": asdict(metrics), "stages": [asdict(stage) for stage in stages]}


class _JobsHandler(BaseHTTPRequestHandler):
    server: JobsEndpoint
    timeout = 15.0

    def do_GET(self) -> None:
        from py4j.protocol import Py4JError

        asked = urlsplit(self.path)
        tags = parse_qs(asked.query).get("tag", [])
        if asked.path != "/jobs" or len(tags) != 1:
            self._answer(404, b"there is /jobs?tag=TAG alone")
            return
        try:
            told = self.server.work(tags[0])
        except (Py4JError, OSError) as error:
            self._answer(500, str(error).partition("\n")[0].encode())
        else:
            self._answer(200, json.dumps(told).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in http.server)
        """Say nothing of what was asked."""


def main() -> None:
    """Serve until Java ends, or the server in it."""
    from py4j.java_gateway import GatewayParameters, JavaGateway

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    # By itself, as PySpark's start of it loads NumPy, for 100 MB.
    port, token = int(os.environ["PYSPARK_GATEWAY_PORT"]), os.environ["PYSPARK_GATEWAY_SECRET"]
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
    try:
        _tell_of_jobs(gateway)
    except OSError as error:
        _log.warning("runs are not told what their jobs have done: %s", error)
        gateway.jvm.java.lang.System.clearProperty(JOBS_PORT)  # another program answers there
    server = threading.Thread(target=_serve, args=(gateway,), daemon=True)
    server.start()
    caches, is_failing = ServerCaches(gateway), False
    while True:
        server.join(_SECONDS_BETWEEN_LOOKS)
        if not server.is_alive():
            return
        try:
            caches.let_go_of_ended_runs()
        except Exception as error:  # noqa: BLE001  (the server ends with this process, and the runs on it)
            if not is_failing:
                _log.warning("what runs that were killed have cached can't be let go of: %s", error)
            is_failing = True
        else:
            is_failing = False


def _tell_of_jobs(gateway: JavaGateway) -> None:
    """Answer at the port that is set, or at a free one: the Spark that is about to start tells it to its runs."""
    system: Any = gateway.jvm.java.lang.System
    # Connect's server is at all addresses, where none is set.
    host = system.getProperty("spark.connect.grpc.binding.address", "")
    endpoint = JobsEndpoint(gateway, host, int(system.getProperty(JOBS_PORT, "0")))
    threading.Thread(target=endpoint.serve_forever, name="jobs-endpoint", daemon=True).start()
    system.setProperty(JOBS_PORT, str(endpoint.server_port))


def _serve(gateway: JavaGateway) -> None:
    jvm: Any = gateway.jvm
    # A Spark that it starts by itself isolates the sessions' artifacts, whatever the server's conf says of it.
    jvm.org.apache.spark.sql.classic.SparkSession.builder().getOrCreate()
    jvm.org.apache.spark.sql.connect.service.SparkConnectServer.main(gateway.new_array(jvm.java.lang.String, 0))


if __name__ == "__main__":
    main()
