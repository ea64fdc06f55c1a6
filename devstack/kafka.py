"""Kafka: the real broker, one node in KRaft mode, from Maven Central."""

from __future__ import annotations

import base64
import socket
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from devstack import java
from devstack.jar_cache import jars_folder
from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, ProcessRecord, server_environment

_JARS = (
    "org.apache.kafka:kafka_2.13:4.1.1",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",  # without it the broker's log lines go nowhere
)

USER = "etl"
"""Who may log in by PLAIN."""
_JAAS = "org.apache.kafka.common.security"
_METADATA = 3  # the number of this request in Kafka's protocol


@dataclass(frozen=True)
class KafkaServer:
    """A running Kafka broker; plain text, as it listens on loopback alone.

    On ``port`` everybody may do everything. On ``guarded_port`` clients log in by SASL, as USER with ``password``
    (PLAIN) or as whoever has been given SCRAM credentials, and may do what they have been allowed to.
    """

    host: str
    port: int
    guarded_port: int
    password: str = field(repr=False)

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def guarded_servers(self) -> str:
        return f"{self.host}:{self.guarded_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers}

    @property
    def address(self) -> str:
        return self.bootstrap_servers

    def problem(self) -> str | None:
        """Asks for the cluster's metadata: a broker is in there from when it takes records."""
        try:
            brokers = self._broker_count()
        except (OSError, struct.error) as error:
            return str(error)
        return None if brokers else "the broker is not registered yet"

    def _broker_count(self) -> int:
        with socket.create_connection((self.host, self.port), timeout=5) as connection:
            # Header: request, version 1, correlation id 1, no client id. Body: no topics.
            request = struct.pack(">hhihi", _METADATA, 1, 1, -1, 0)
            connection.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
            answer = connection.recv(length, socket.MSG_WAITALL)
        _correlation, brokers = struct.unpack_from(">ii", answer)
        return int(brokers)


@dataclass(frozen=True)
class Kafka:
    """Starts one broker that is its own controller; topics are made on first use, with one partition."""

    name: str = "kafka"

    def missing(self) -> str | None:
        return java.missing()

    def start(self, run: PartRun) -> KafkaServer:
        broker = KafkaBroker.prepare(run)
        broker.start()
        return broker.server


@dataclass
class KafkaBroker:
    """A broker that can be stopped and started again: the port stays the same, and so do its records.

    ``PartRun.stop`` of ``run`` ends it for good.
    """

    server: KafkaServer
    run: PartRun
    _program: list[str]
    _properties: Path
    _record: ProcessRecord | None = None

    @classmethod
    def prepare(cls, run: PartRun) -> KafkaBroker:
        """Make the data folder of a broker that does not run yet."""
        jars = jars_folder(run, _JARS)
        server = KafkaServer(LOOPBACK, free_port(), free_port(), run.secret())
        properties = run.data / "server.properties"
        properties.write_text(_server_properties(server, free_port(), run.data))
        program = [
            java.java_program() or "java",
            "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",  # starts fast and stays small
            "-XX:-UsePerfData",  # no files outside the data folder
            f"-Djava.io.tmpdir={run.data}",
            f"-Dlog4j2.configurationFile={Path(__file__).with_name('kafka_log4j2.xml')}",
            "-cp", f"{jars}/*",
        ]  # fmt: skip
        run.say("making its data folder")
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        run.run_to_end(
            "format",
            # The = keeps an id that starts with a dash from being taken for an option.
            [
                *program, "kafka.tools.StorageTool", "format",
                f"--cluster-id={cluster_id}", "--config", properties,
            ],
            environment=server_environment(),
            limit=60,
        )  # fmt: skip
        return cls(server, run, program, properties)

    def start(self) -> None:
        """Start it and wait until it takes records."""
        self.run.say("starting")
        command: list[str | Path] = [*self._program, "kafka.Kafka", self._properties]
        self._record = self.run.spawn("kafka", command, environment=server_environment())
        self.run.wait_until_ready(self.server.problem, limit=90)

    def stop(self) -> None:
        """Stop it in an orderly way; what it has stays on disk."""
        if self._record is not None:
            self.run.stop_process(self._record)
            self._record = None


def _server_properties(server: KafkaServer, controller_port: int, data: Path) -> str:
    controller = f"{server.host}:{controller_port}"
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{server.bootstrap_servers},GUARDED://{server.guarded_servers},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{server.bootstrap_servers},GUARDED://{server.guarded_servers}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
listener.name.guarded.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.guarded.plain.sasl.jaas.config={_JAAS}.plain.PlainLoginModule required user_{USER}="{server.password}";
listener.name.guarded.scram-sha-512.sasl.jaas.config={_JAAS}.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
# Whoever does not log in.
super.users=User:ANONYMOUS
log.dirs={data}/log
num.partitions=1
# One broker holds every copy there is.
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# The usual 50 partitions each would only take time to make.
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
# A consumer group with one member need not wait for others.
group.initial.rebalance.delay.ms=0
"""
