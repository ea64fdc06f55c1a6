from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from pipeline_assets.connections import S3Connection
from pipeline_assets.credentials import Secrets
from pipeline_assets.spark.description import describe
from pipeline_assets.spark.s3_access import apply_s3_connection

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from devstack.s3 import S3Server


@pytest.fixture
def connection(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Connection:
    monkeypatch.setenv("S3_KEY", s3.access_key_id)
    monkeypatch.setenv("S3_SECRET", s3.secret_access_key)
    return S3Connection(
        endpoint=s3.endpoint,
        region=s3.region,
        access_key_id="env:S3_KEY",
        secret_access_key="env:S3_SECRET",
        options={"fs.s3a.connection.maximum": "20"},
    )


@pytest.mark.parametrize("file_format", ["parquet", "delta"])
def test_a_bucket_is_written_and_read(
    any_spark: SparkSession, s3: S3Server, connection: S3Connection, file_format: str
) -> None:
    apply_s3_connection(any_spark, s3.bucket, connection, Secrets())
    folder = f"{file_format}-{uuid.uuid4()}"
    path = f"s3a://{s3.bucket}/{folder}"
    any_spark.range(0, 50, 1, 2).write.format(file_format).save(path)
    frame = any_spark.read.format(file_format).load(path).where("id >= 10")
    assert frame.count() == 40
    keys = [item["Key"] for item in s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=folder)["Contents"]]
    assert len([key for key in keys if key.endswith(".parquet")]) == 2
    assert any("_delta_log" in key for key in keys) == (file_format == "delta")
    assert s3.secret_access_key not in describe(frame).plan


def test_set_shows_no_secret(any_spark: SparkSession, s3: S3Server, connection: S3Connection) -> None:
    apply_s3_connection(any_spark, "some-bucket", connection, Secrets())
    shown = {row.key: row.value for row in any_spark.sql("SET").collect() if "some-bucket" in row.key}
    assert shown["fs.s3a.bucket.some-bucket.endpoint"] == s3.endpoint
    assert shown["fs.s3a.bucket.some-bucket.path.style.access"] == "true"
    assert shown["fs.s3a.bucket.some-bucket.connection.ssl.enabled"] == "false"
    assert shown["fs.s3a.bucket.some-bucket.connection.maximum"] == "20"
    assert not {s3.access_key_id, s3.secret_access_key} & set(shown.values())


def test_a_session_token_needs_its_own_provider(
    any_spark: SparkSession, connection: S3Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_TOKEN", "temporary")
    with_token = connection.model_copy(update={"session_token": "env:S3_TOKEN"})
    apply_s3_connection(any_spark, "b", with_token, Secrets())
    assert any_spark.conf.get("fs.s3a.bucket.b.aws.credentials.provider").endswith(".TemporaryAWSCredentialsProvider")
    assert any_spark.conf.get("fs.s3a.bucket.b.session.token") == "temporary"


def test_without_keys_the_default_chain_applies(any_spark: SparkSession) -> None:
    apply_s3_connection(any_spark, "public", S3Connection(path_style_access=False), Secrets())
    assert any_spark.conf.get("fs.s3a.bucket.public.path.style.access") == "false"
    for key in ("aws.credentials.provider", "access.key", "endpoint", "connection.ssl.enabled"):
        assert any_spark.conf.get(f"fs.s3a.bucket.public.{key}", None) is None
