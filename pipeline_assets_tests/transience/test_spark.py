"""Failures of Spark itself, of Delta's commits and of Kafka through Spark: embedded and over Connect."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.errors.exceptions.connect import SparkConnectGrpcException

from devstack.kafka import KafkaServer
from devstack.ports import free_port
from pipeline_assets.connections import KafkaConnection
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import TransientKind
from pipeline_assets.spark.failures import Cause, _java_chain, spark_failure
from pipeline_assets.steps.kafka_offsets import read_offsets
from pipeline_assets.transience import KAFKA_RETRIABLE, Transience, of_java, transience_of
from pipeline_assets_tests.transience.cases import Case, failure, silent_server, table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def query(sql: str) -> Callable[[SparkSession], Any]:
    return lambda spark: spark.sql(sql).collect()


def in_python(spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    # Without types: Spark takes types for those of an Arrow function.
    def refuse(value):  # type: ignore[no-untyped-def]
        raise ConnectionRefusedError("said by the user's own function, not by Spark")

    spark.range(1).select(F.udf(refuse, "bigint")("id")).collect()


BY_SPARK: tuple[Case[SparkSession], ...] = (
    Case("SQL that does not parse", None, query("SELEC 1")),
    Case("no such column", None, query("SELECT x FROM range(1)")),
    Case("no such table", None, query("SELECT * FROM none")),
    Case("no such function", None, query("SELECT uper('x')")),
    Case("types that do not fit", None, query("SELECT array(1) + 1")),
    Case("no cast", None, query("SELECT CAST(x AS INT) FROM VALUES ('a') AS t(x)")),
    Case("division by zero", None, query("SELECT 1 / id FROM range(1)")),
    Case("overflow", None, query("SELECT CAST(id + 300 AS TINYINT) FROM range(1)")),
    Case("raised in SQL, in words of a lost connection", None, query("SELECT raise_error('Connection refused')")),
    Case("raised in Python", None, in_python),
    Case("no such path", None, lambda spark: spark.read.parquet("/nowhere/at/all").collect()),
    Case("no such Delta table", None, lambda spark: spark.read.format("delta").load("/nowhere/at/all").collect()),
)


@table(*BY_SPARK)
def test_by_spark(case: Case[SparkSession], session: SparkSession) -> None:
    assert failure(lambda: case.provoke(session)).transient_kind == case.kind


DELTA: tuple[tuple[str, str], ...] = (
    ("DELTA_CONCURRENT_APPEND", "INSERT INTO delta.`{path}` VALUES (7)"),
    ("DELTA_CONCURRENT_DELETE_READ", "DELETE FROM delta.`{path}` WHERE id >= 0"),
    ("DELTA_METADATA_CHANGED", "ALTER TABLE delta.`{path}` ADD COLUMN more STRING"),
)


@pytest.mark.parametrize(("condition", "other"), DELTA)
def test_commits_of_delta_that_conflict(condition: str, other: str, spark: SparkSession, tmp_path: Path) -> None:
    """A transaction that has read the table commits after another writer."""
    from pyspark.core.context import SparkContext

    path = str(tmp_path / "table")
    spark.sql(
        f"CREATE TABLE delta.`{path}` (id BIGINT) USING delta TBLPROPERTIES ('delta.isolationLevel' = 'Serializable')"
    )
    spark.range(2).write.format("delta").mode("append").save(path)
    jvm: Any = SparkContext._jvm
    delta = jvm.org.apache.spark.sql.delta
    nothing = jvm.scala.Option.empty()
    transaction = delta.DeltaLog.forTable(spark._jsparkSession, path).startTransaction(nothing, nothing)
    read = transaction.filterFiles()
    spark.sql(other.format(path=path))
    operation = getattr(getattr(jvm, "org.apache.spark.sql.delta.DeltaOperations$ManualUpdate$"), "MODULE$")
    removed = jvm.scala.jdk.javaapi.CollectionConverters.asScala(jvm.java.util.List.of(read.head().remove()))
    error = failure(lambda: transaction.commit(removed.toList(), operation))
    assert error.transient_kind == "conflict"
    assert condition in error.details


@dataclass(frozen=True)
class Kafka:
    """Spark and the Kafka client at a real broker."""

    spark: SparkSession
    server: KafkaServer

    def read(self, topic: str, servers: str | None = None, **options: str) -> DataFrame:
        given = {
            "kafka.bootstrap.servers": servers or self.server.bootstrap_servers,
            "kafka.allow.auto.create.topics": "false",
            "fetchOffset.numRetries": "1",
            "subscribe": topic,
        }
        return self.spark.read.format("kafka").options(**{**given, **options}).load()

    def write(self, topic: str, text: str) -> None:
        frame = self.spark.createDataFrame([(text,)], "value STRING")
        options = {"kafka.bootstrap.servers": self.server.bootstrap_servers, "topic": topic}
        frame.write.format("kafka").options(**options).save()

    def no_broker(self) -> None:
        once = {"kafka.request.timeout.ms": "500", "kafka.default.api.timeout.ms": "1000"}
        self.read("any", f"127.0.0.1:{free_port()}", **once).collect()

    def no_topic(self) -> None:
        self.read(f"faults-{uuid.uuid4().hex}").collect()

    def too_large(self) -> None:
        self.write("faults-large", "x" * 2_000_000)

    def out_of_range(self) -> None:
        self.write("faults-range", "x")
        self.read("faults-range", startingOffsets='{"faults-range":{"0":1000}}', failOnDataLoss="true").collect()


BY_KAFKA: tuple[Case[Kafka], ...] = (
    Case("Kafka broker down", "timeout", Kafka.no_broker),
    Case("Kafka no topic", None, Kafka.no_topic),
    Case("Kafka record too large", None, Kafka.too_large),
    Case("Kafka offset out of range", None, Kafka.out_of_range),
)


@table(*BY_KAFKA)
def test_by_kafka(case: Case[Kafka], session: SparkSession, kafka: KafkaServer) -> None:
    assert failure(lambda: case.provoke(Kafka(session, kafka))).transient_kind == case.kind


def offsets_at(servers: str, timeout: float = 1.0) -> Any:
    connection = KafkaConnection(bootstrap_servers=servers)
    return read_offsets(connection, Secrets(), topics=["none"], which="latest", timeout=timeout)


def test_by_the_kafka_client(kafka: KafkaServer) -> None:
    def silent() -> None:
        with silent_server() as port:
            offsets_at(f"127.0.0.1:{port}")

    assert failure(lambda: offsets_at(f"127.0.0.1:{free_port()}")).transient_kind
    assert failure(silent).transient_kind
    assert failure(lambda: offsets_at(kafka.bootstrap_servers, timeout=30)).transient_kind is None
    assert failure(lambda: offsets_at("no-such-host.invalid:9092")).transient_kind is None


def test_the_codes_of_the_kafka_client() -> None:
    from confluent_kafka import KafkaError, KafkaException

    expected: dict[int, TransientKind | None] = {
        KafkaError._TRANSPORT: "connection",
        KafkaError._ALL_BROKERS_DOWN: "connection",
        KafkaError._TIMED_OUT: "timeout",
        KafkaError.REQUEST_TIMED_OUT: "timeout",
        KafkaError.NOT_LEADER_FOR_PARTITION: "unavailable",
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS: "unavailable",
        KafkaError.NOT_ENOUGH_REPLICAS: "unavailable",
        KafkaError.THROTTLING_QUOTA_EXCEEDED: "throttled",
        KafkaError.UNKNOWN_TOPIC_OR_PART: None,
        KafkaError.TOPIC_AUTHORIZATION_FAILED: None,
        KafkaError.SASL_AUTHENTICATION_FAILED: None,
        KafkaError.MSG_SIZE_TOO_LARGE: None,
        KafkaError.OFFSET_OUT_OF_RANGE: None,
        KafkaError._AUTHENTICATION: None,
    }
    for code, kind in expected.items():
        found = transience_of(KafkaException(KafkaError(code)))
        assert (found.kind if found else None) == kind, KafkaError(code).name()


ERRORS = "org.apache.kafka.common.errors"
# What can't be provoked here is made by the JVM's own constructors: class, its arguments, kind.
MADE: tuple[tuple[str, tuple[Any, ...], TransientKind | None], ...] = (
    ("java.net.NoRouteToHostException", ("x",), "connection"),
    ("java.net.SocketException", ("Connection reset",), "connection"),
    ("java.net.BindException", ("Address already in use",), None),
    ("java.net.UnknownHostException", ("nowhere",), None),
    ("java.nio.channels.ClosedChannelException", (), "connection"),
    ("java.util.concurrent.TimeoutException", ("Futures timed out",), "timeout"),
    ("javax.net.ssl.SSLHandshakeException", ("x",), None),
    ("java.lang.OutOfMemoryError", ("Java heap space",), None),
    ("java.lang.NullPointerException", (), None),
    ("java.io.EOFException", ("Connection refused",), None),
    ("java.sql.SQLException", ("x", "08006"), "connection"),
    ("java.sql.SQLException", ("x", "57P02"), "unavailable"),
    ("java.sql.SQLException", ("x", "40P01"), "conflict"),
    ("java.sql.SQLException", ("x", "57P04"), None),
    ("java.sql.SQLException", ("deadlock detected", "42601"), None),
    (f"{ERRORS}.NotLeaderOrFollowerException", ("x",), "unavailable"),
    (f"{ERRORS}.NotEnoughReplicasException", ("x",), "unavailable"),
    (f"{ERRORS}.NetworkException", ("x",), "connection"),
    (f"{ERRORS}.DisconnectException", ("x",), "connection"),
    (f"{ERRORS}.ThrottlingQuotaExceededException", ("x",), "throttled"),
    (f"{ERRORS}.UnknownTopicOrPartitionException", ("x",), None),
    (f"{ERRORS}.TopicAuthorizationException", ("x",), None),
    (f"{ERRORS}.SaslAuthenticationException", ("x",), None),
    (f"{ERRORS}.RecordTooLargeException", ("x",), None),
    ("org.apache.hadoop.net.ConnectTimeoutException", ("x",), "timeout"),
    ("io.delta.exceptions.ConcurrentTransactionException", ("x",), "conflict"),
    ("io.delta.exceptions.MetadataChangedException", ("x",), "conflict"),
    ("io.delta.exceptions.ProtocolChangedException", ("x",), "conflict"),
)


@pytest.mark.parametrize(("java_class", "arguments", "kind"), MADE)
def test_made_by_the_jvm(
    java_class: str, arguments: tuple[Any, ...], kind: TransientKind | None, spark: SparkSession
) -> None:
    from pyspark.core.context import SparkContext

    jvm: Any = SparkContext._jvm
    made: Any = jvm
    for part in java_class.split("."):
        made = getattr(made, part)
    wrapped = jvm.java.lang.RuntimeException("around it", made(*arguments))
    found = of_java(_java_chain(wrapped))
    assert (found.kind if found else None) == kind
    # Over Connect there is no more than the name and the text, except for databases.
    if not java_class.startswith("java.sql."):
        text = Cause(java_class, arguments[0] if arguments else "", _kinds(java_class))
        assert of_java([text]) == (Transience(kind) if kind else None)


def test_a_commit_that_conflicts_over_connect() -> None:
    """The server's trace names the class; its condition and SQLSTATE are in the text."""
    name = "io.delta.exceptions.ConcurrentAppendException"
    assert of_java([Cause(name, "Files were added to the table.", _kinds(name))]) == Transience("conflict")
    state = Cause(name, "[DELTA_CONCURRENT_APPEND] Files were added. SQLSTATE: 2D521", (), sql_state="2D521")
    assert of_java([Cause("org.apache.spark.SparkException", "Job failed"), state]) == Transience("conflict")


def _kinds(java_class: str) -> tuple[str, ...]:
    from pipeline_assets.spark.failures import _kinds_by_name

    return _kinds_by_name(java_class)


def test_kafkas_retriable_exceptions_are_those_of_its_client(spark: SparkSession) -> None:
    from pyspark.core.context import SparkContext

    jvm: Any = SparkContext._jvm
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    base = loader.loadClass(f"{ERRORS}.RetriableException")
    jar = jvm.java.util.jar.JarFile(base.getProtectionDomain().getCodeSource().getLocation().getPath())
    prefix = ERRORS.replace(".", "/") + "/"
    names = [entry.getName() for entry in jar.stream().toArray()]
    classes = [name.removesuffix(".class").replace("/", ".") for name in names if name.startswith(prefix)]
    classes = [name for name in classes if name.endswith("Exception")]
    found = {name.rpartition(".")[2] for name in classes if base.isAssignableFrom(loader.loadClass(name))}
    assert found == KAFKA_RETRIABLE - {"RetriableCommitFailedException"}


def grpc_error(port: int, timeout: float = 30) -> BaseException:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/spark.connect.SparkConnectService/Config")(b"", timeout=timeout)
    return raised.value


def test_a_connect_server_that_is_gone(spark: SparkSession) -> None:
    import grpc
    from pyspark.errors.exceptions.connect import SparkConnectGrpcException

    with silent_server() as port:
        assert spark_failure(grpc_error(port, timeout=0.5)).transient_kind == "timeout"
    assert spark_failure(grpc_error(free_port())).transient_kind == "unavailable"
    told = SparkConnectGrpcException("x", grpc_status_code=grpc.StatusCode.UNAVAILABLE)
    assert spark_failure(told).transient_kind == "unavailable"
    refused = SparkConnectGrpcException("x", grpc_status_code=grpc.StatusCode.PERMISSION_DENIED)
    assert spark_failure(refused).transient_kind is None


def test_a_jvm_that_is_gone() -> None:
    from py4j.java_gateway import GatewayParameters, JavaGateway
    from py4j.protocol import Py4JError

    with pytest.raises((Py4JError, ConnectionError)) as raised:
        JavaGateway(gateway_parameters=GatewayParameters(port=free_port())).jvm.java.lang.System.nanoTime()
    assert spark_failure(raised.value).transient_kind


@pytest.mark.parametrize(
    ("condition", "kind"),
    [
        ("INVALID_HANDLE.SESSION_CHANGED", "lostExecutor"),
        ("NO_ACTIVE_SESSION", "lostExecutor"),
        # The server would close one of the same id at once.
        ("INVALID_HANDLE.SESSION_CLOSED", None),
    ],
)
def test_sessions_of_a_connect_server(condition: str, kind: TransientKind | None) -> None:
    error = SparkConnectGrpcException(message="The handle 7 is invalid.", errorClass=condition, sql_state="HY000")
    found = spark_failure(error)
    assert found.transient_kind == kind
    assert ("started anew" in found.message) == (kind is not None)


@pytest.mark.parametrize(
    "said",
    [
        # As a Connect server sent them that was stopped by SIGTERM while it computed.
        "Cannot call methods on a stopped SparkContext.\nThis stopped SparkContext was created at:\n\norg.apache",
        "[INTERNAL_ERROR] No active or default Spark session found SQLSTATE: XX000",
        "Job 3 cancelled because SparkContext was shut down",
    ],
)
def test_a_spark_that_stops_ends_the_work_that_it_is_at(said: str) -> None:
    assert of_java([Cause("org.apache.spark.SparkException", said, ("SparkException",))]) == Transience("lostExecutor")
