"""Failures of S3, by Spark's S3A and by pyarrow: a real server's, and a server's that is told what to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devstack.ports import free_port
from devstack.s3 import S3Server
from pipeline_assets.connections import S3Connection
from pipeline_assets.credentials import Secrets
from pipeline_assets.spark.s3_access import apply_s3_connection
from pipeline_assets.steps.file_systems import LocalFolder, S3Folder
from pipeline_assets_tests.transience.cases import Case, failure, http_server, silent_server, table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

RETRY_AFTER = 7
_CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchBucket",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    502: "BadGateway",
    503: "SlowDown",
    504: "GatewayTimeout",
}
# One try each, so that no answer takes minutes.
_ONCE = {
    "fs.s3a.attempts.maximum": "0",
    "fs.s3a.retry.limit": "0",
    "fs.s3a.retry.throttle.limit": "0",
    "fs.s3a.retry.http.5xx.errors": "false",
    "fs.s3a.connection.timeout": "30s",
    "fs.s3a.connection.establish.timeout": "30s",
}


def xml(status: int) -> bytes:
    return f"<Error><Code>{_CODES[status]}</Code><Message>told so</Message><RequestId>1</RequestId></Error>".encode()


@pytest.fixture(scope="module")
def troubled_s3() -> Iterator[int]:
    with http_server(xml, {"Content-Type": "application/xml", "Retry-After": str(RETRY_AFTER)}) as port:
        yield port


@dataclass(frozen=True)
class Stores:
    """The real server, and the port of the one that is told what to answer."""

    real: S3Server
    troubled: int


@pytest.fixture(scope="module")
def stores(s3: S3Server, troubled_s3: int) -> Iterator[Stores]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS_KEY", s3.access_key_id)
        patch.setenv("FAULTS_SECRET", s3.secret_access_key)
        patch.setenv("FAULTS_WRONG", "wrong")
        yield Stores(s3, troubled_s3)


@dataclass(frozen=True)
class S3A:
    """Spark, reading from S3."""

    spark: SparkSession
    stores: Stores

    def read(self, bucket: str, endpoint: str, secret: str = "FAULTS_SECRET") -> None:
        # Hadoop keeps one client per bucket: each case has a bucket of its own.
        connection = S3Connection(
            endpoint=endpoint,
            region=self.stores.real.region,
            access_key_id="env:FAULTS_KEY",
            secret_access_key=f"env:{secret}",
            options=_ONCE,
        )
        apply_s3_connection(self.spark, bucket, connection, Secrets())
        self.spark.read.parquet(f"s3a://{bucket}/x").collect()

    def told(self, what: str) -> None:
        self.read(what, f"http://127.0.0.1:{self.stores.troubled}")


def s3a(what: str) -> Callable[[S3A], None]:
    return lambda place: place.told(what)


BY_S3A: tuple[Case[S3A], ...] = (
    Case("S3A 429", "throttled", s3a("status-429")),
    Case("S3A 503", "unavailable", s3a("status-503")),
    Case("S3A 500", "unavailable", s3a("status-500")),
    Case("S3A 502", "unavailable", s3a("status-502")),
    Case("S3A 504", "unavailable", s3a("status-504")),
    Case("S3A hung up", "connection", s3a("hang-up")),
    Case("S3A refused", "connection", lambda place: place.read("refused", f"http://127.0.0.1:{free_port()}")),
    Case("S3A 400", None, s3a("status-400")),
    Case("S3A 403", None, s3a("status-403")),
    Case("S3A 404", None, s3a("status-404")),
    Case("S3A wrong keys", None, lambda place: place.read("faults-keys", place.stores.real.endpoint, "FAULTS_WRONG")),
    Case("S3A no bucket", None, lambda place: place.read("faults-none", place.stores.real.endpoint)),
)


@table(*BY_S3A)
def test_by_s3a(case: Case[S3A], session: SparkSession, stores: Stores) -> None:
    assert failure(lambda: case.provoke(S3A(session, stores))).transient_kind == case.kind


def test_s3a_tells_when_to_come_back(spark: SparkSession, stores: Stores) -> None:
    error = failure(lambda: S3A(spark, stores).told("again-status-503"))
    assert error.retry_after == RETRY_AFTER


@dataclass(frozen=True)
class Arrow:
    """Folders, read from S3 by pyarrow and from the disk."""

    stores: Stores

    def read(self, bucket: str, endpoint: str, secret: str | None = None, timeout: float = 30) -> None:
        from pyarrow import fs

        scheme, _, address = endpoint.partition("://")
        files = fs.S3FileSystem(
            endpoint_override=address,
            scheme=scheme,
            region=self.stores.real.region,
            access_key=self.stores.real.access_key_id,
            secret_key=secret or self.stores.real.secret_access_key,
            connect_timeout=timeout,
            request_timeout=timeout,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
        S3Folder(bucket, files).read("x")

    def told(self, what: str) -> None:
        self.read(what, f"http://127.0.0.1:{self.stores.troubled}")

    def silent(self) -> None:
        with silent_server() as port:
            self.read("silent", f"http://127.0.0.1:{port}", timeout=1)

    def disk(self, path: Path) -> None:
        LocalFolder(str(path.parent)).read(path.name)


def arrow(what: str) -> Callable[[Arrow], None]:
    return lambda place: place.told(what)


BY_ARROW: tuple[Case[Arrow], ...] = (
    Case("pyarrow 429", "throttled", arrow("status-429")),
    Case("pyarrow 503", "unavailable", arrow("status-503")),
    Case("pyarrow 500", "unavailable", arrow("status-500")),
    Case("pyarrow hung up", "connection", arrow("hang-up")),
    Case("pyarrow refused", "connection", lambda place: place.read("refused", f"http://127.0.0.1:{free_port()}")),
    Case("pyarrow silent", "connection", Arrow.silent),  # so the AWS SDK calls it
    Case("pyarrow 403", None, arrow("status-403")),
    Case("pyarrow wrong keys", None, lambda place: place.read("data", place.stores.real.endpoint, "wrong")),
    Case("pyarrow no object", None, lambda place: place.read("data", place.stores.real.endpoint)),
    Case("no file", None, lambda place: place.disk(Path("/nowhere/at/all"))),
    Case("a folder for a file", None, lambda place: place.disk(Path("/usr/bin"))),
)


@table(*BY_ARROW)
def test_by_pyarrow(case: Case[Arrow], stores: Stores) -> None:
    assert failure(lambda: case.provoke(Arrow(stores))).transient_kind == case.kind
