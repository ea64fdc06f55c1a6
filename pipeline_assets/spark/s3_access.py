"""How a session reaches S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_assets.connections import S3Connection
    from pipeline_assets.credentials import Secrets


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
