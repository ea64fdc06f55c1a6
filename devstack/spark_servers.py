"""Spark servers from PySpark's own files: a Connect server, and a standalone cluster."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from devstack import java
from devstack.loopback_http import open_without_proxy
from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, server_environment
from pipeline_assets.spark.properties_file import write_properties

# What an HTTP/2 client says first, an empty SETTINGS frame last; the server answers with SETTINGS of its own.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_HTTP2_SETTINGS = 4


@dataclass(frozen=True)
class SparkConnectServer:
    """A running Spark Connect server."""

    host: str
    port: int

    @property
    def remote(self) -> str:
        return f"sc://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SPARK_REMOTE": self.remote}

    @property
    def address(self) -> str:
        return self.remote

    def problem(self) -> str | None:
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(_HTTP2_HELLO)
                frame = connection.recv(9, socket.MSG_WAITALL)
        except OSError as error:
            return str(error)
        return None if frame[3:4] == bytes([_HTTP2_SETTINGS]) else "it does not speak HTTP/2"


@dataclass(frozen=True)
class SparkConnect:
    """Starts a Spark Connect server with ``conf``; it gets ``environment`` and little of the caller's own."""

    conf: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = "spark-connect"

    def missing(self) -> str | None:
        return java.missing()

    def start(self, run: PartRun) -> SparkConnectServer:
        server = SparkConnectServer(LOOPBACK, free_port())
        conf = {
            "spark.app.name": "devstack",
            "spark.master": "local[*]",
            "spark.driver.host": LOOPBACK,
            "spark.driver.bindAddress": LOOPBACK,
            "spark.ui.enabled": "false",
            "spark.sql.warehouse.dir": str(run.data / "spark-warehouse"),
            **self.conf,
            "spark.connect.grpc.binding.address": server.host,
            "spark.connect.grpc.binding.port": str(server.port),
        }
        properties = run.data / "spark.properties"
        write_properties(properties, conf)
        run.say("starting")
        run.spawn(
            "spark-connect",
            [
                _spark_home() / "bin" / "spark-submit", "--properties-file", properties,
                "--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal",
            ],
            environment=_spark_environment(run.data, self.environment),
        )  # fmt: skip
        run.wait_until_ready(server.problem, limit=300)  # its packages may have to be downloaded first
        return server


@dataclass(frozen=True)
class SparkCluster:
    """A running standalone cluster."""

    host: str
    port: int
    web_port: int
    workers: int

    @property
    def master(self) -> str:
        return f"spark://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SPARK_MASTER": self.master}

    @property
    def address(self) -> str:
        return self.master

    def problem(self) -> str | None:
        try:
            with open_without_proxy(f"http://{self.host}:{self.web_port}/json/") as answer:
                state = json.load(answer)
        except (OSError, ValueError) as error:
            return str(error)
        if state["status"] != "ALIVE" or state["aliveworkers"] != self.workers:
            return f"master is {state['status']}, {state['aliveworkers']} of {self.workers} workers are alive"
        return None


@dataclass(frozen=True)
class OwnSparkCluster:
    """A cluster that can be made to lose what works for it. ``PartRun.stop`` of ``run`` ends it for good."""

    cluster: SparkCluster
    run: PartRun

    def executor(self, executor_id: str) -> psutil.Process:
        """Return the process of an executor of the one application that runs."""
        (found,) = (process for process in self._executors() if _option(process, "--executor-id") == executor_id)
        return found

    def worker_of(self, executor: psutil.Process) -> psutil.Process:
        """Return the process of the worker that has started ``executor``."""
        pids = {record.pid for record in self.run.records if record.name.startswith("worker-")}
        (found,) = (parent for parent in executor.parents() if parent.pid in pids)
        return found

    def _executors(self) -> list[psutil.Process]:
        processes = [process for record in self.run.records for process in record.session()]
        return [process for process in processes if _option(process, "--executor-id")]


def _option(process: psutil.Process, name: str) -> str | None:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return None
    return words[words.index(name) + 1] if name in words else None


@dataclass(frozen=True)
class SparkStandalone:
    """Starts a standalone master and its workers, each with one core and 1 GB."""

    workers: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = "spark-cluster"

    def missing(self) -> str | None:
        return java.missing()

    def start(self, run: PartRun) -> SparkCluster:
        """Start them; the workers are the processes ``worker-1``, ``worker-2`` ... of ``run``."""
        cluster = SparkCluster(LOOPBACK, free_port(), free_port(), self.workers)
        program = _spark_home() / "bin" / "spark-class"
        environment = _spark_environment(
            run.data,
            {
                "SPARK_DAEMON_MEMORY": "256m",
                "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData",
                # It would listen on a fixed port and let anyone submit jobs.
                "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
                **self.environment,
            },
        )
        run.say("starting")
        run.spawn(
            "master",
            [
                program, "org.apache.spark.deploy.master.Master", "--host", cluster.host,
                "--port", str(cluster.port), "--webui-port", str(cluster.web_port),
            ],
            environment=environment,
        )  # fmt: skip
        for number in range(1, self.workers + 1):
            run.spawn(
                f"worker-{number}",
                [
                    program, "org.apache.spark.deploy.worker.Worker", "--host", cluster.host,
                    "--port", str(free_port()), "--webui-port", str(free_port()),
                    "--cores", "1", "--memory", "1g",
                    "--work-dir", run.data / f"worker-{number}", cluster.master,
                ],
                environment=environment,
            )  # fmt: skip
        run.wait_until_ready(cluster.problem, limit=120)
        return cluster


def _spark_home() -> Path:
    pyspark = java.package_folder("pyspark")
    assert pyspark is not None, "missing() has looked"
    return pyspark


def _spark_environment(data: Path, extra: Mapping[str, str]) -> dict[str, str]:
    return server_environment(
        {
            "SPARK_HOME": str(_spark_home()),
            "SPARK_CONF_DIR": str(data),  # what is in the caller's own has no say here
            "SPARK_LOCAL_IP": LOOPBACK,
            "SPARK_LOCAL_DIRS": str(data),
            "PYSPARK_PYTHON": sys.executable,
            **extra,
        }
    )
