from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline_assets.connections import S3Connection
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import (
    ConfigurationError,
    DataFrameResolutionError,
    PipelineError,
    PipelineExecutionError,
    RetryableError,
)
from pipeline_assets.settings import Settings
from pipeline_assets.spark.failures import spark_errors, spark_failure
from pipeline_assets.spark.s3_access import apply_s3_connection
from pipeline_assets.spark.session import SparkSessions

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from devstack.postgres import PostgresServer
    from devstack.s3 import S3Server


def failure(action: Callable[[], Any]) -> PipelineError:
    with pytest.raises(PipelineError) as raised, spark_errors():
        action()
    error = raised.value
    assert "\n" not in error.message
    assert "\tat " not in str(error)
    assert "An error occurred while calling" not in str(error)
    assert error.__suppress_context__
    return error


def orders(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([], "id BIGINT, status STRING, tags ARRAY<STRING>")


def test_a_column_that_is_not_there(any_spark: SparkSession) -> None:
    from pyspark.errors import AnalysisException

    frame = orders(any_spark)
    error = failure(lambda: frame.where("statsu = 'x'").collect())
    assert type(error) is DataFrameResolutionError
    assert "there is no column 'statsu', did you mean 'status'?" in error.message
    assert "UNRESOLVED_COLUMN.WITH_SUGGESTION, SQLSTATE 42703" in error.details
    # Spark's own list of them is in an order of its own.
    with pytest.raises(AnalysisException) as raised:
        frame.select("statsu").collect()
    assert spark_failure(raised.value, columns=frame.columns).message == (
        "there is no column 'statsu', did you mean 'status'? (columns: id, status, tags)"
    )


def test_a_join_column_that_is_not_there(any_spark: SparkSession) -> None:
    frame = orders(any_spark)
    error = failure(lambda: frame.join(frame, ["stats"]).collect())
    assert type(error) is DataFrameResolutionError
    assert "'stats', did you mean 'status'?" in error.message


def test_a_column_that_two_sides_have(any_spark: SparkSession) -> None:
    left, right = orders(any_spark).alias("a"), orders(any_spark).alias("b")
    error = failure(lambda: left.crossJoin(right).where("id = 1").collect())
    assert type(error) is DataFrameResolutionError
    assert error.message == "column 'id' is ambiguous: it could be any of a.id, b.id"


def test_a_table_that_is_not_there(any_spark: SparkSession) -> None:
    error = failure(lambda: any_spark.sql("SELECT * FROM custmers").collect())
    assert type(error) is DataFrameResolutionError
    assert error.message == "there is no DataFrame or table 'custmers'"


def test_sql_that_does_not_parse(any_spark: SparkSession) -> None:
    error = failure(lambda: orders(any_spark).where("status = = 'x'").collect())
    assert type(error) is ConfigurationError
    assert error.message == "SQL: Syntax error at or near '=' (line 1, position 10)"
    assert "---------^^^" in error.details


def test_types_that_do_not_fit(any_spark: SparkSession) -> None:
    error = failure(lambda: orders(any_spark).selectExpr("status + tags").collect())
    assert type(error) is ConfigurationError
    assert error.message.startswith('Cannot resolve "(status + tags)" due to data type mismatch')


def test_a_function_that_is_not_there(any_spark: SparkSession) -> None:
    error = failure(lambda: orders(any_spark).selectExpr("uper(status)").collect())
    assert type(error) is ConfigurationError
    assert "`uper`" in error.message


def test_a_path_that_is_not_there(any_spark: SparkSession, tmp_path: Path) -> None:
    error = failure(lambda: any_spark.read.parquet(str(tmp_path / "none")).collect())
    assert type(error) is ConfigurationError
    assert error.message == f"there is nothing at file:{tmp_path}/none: the path does not exist"
    delta = failure(lambda: any_spark.read.format("delta").load(str(tmp_path / "none")).collect())
    assert type(delta) is ConfigurationError
    assert str(tmp_path / "none") in delta.message


def test_a_folder_without_files(any_spark: SparkSession, tmp_path: Path) -> None:
    error = failure(lambda: any_spark.read.parquet(str(tmp_path)).collect())
    assert type(error) is ConfigurationError
    assert error.message == "there are no Parquet files to read, so the columns are not known"


def test_a_value_that_cannot_be_cast(any_spark: SparkSession) -> None:
    error = failure(lambda: any_spark.sql("SELECT CAST(x AS INT) FROM VALUES ('a') AS t(x)").collect())
    assert type(error) is PipelineExecutionError
    assert error.message.startswith('The value \'a\' of the type "STRING" cannot be cast to "INT"')


def test_delta_tells_both_what_and_why(any_spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    any_spark.range(3).write.format("delta").save(path)
    other = any_spark.range(3).selectExpr("CAST(id AS STRING) AS id")
    error = failure(lambda: other.write.format("delta").mode("append").save(path))
    assert type(error) is ConfigurationError
    assert "Failed to merge fields 'id' and 'id'" in error.message
    assert "LongType and StringType" in error.message


def test_a_python_function_that_fails(any_spark: SparkSession) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    broken = F.udf(lambda value: 1 // (value - value), "bigint")
    error = failure(lambda: any_spark.range(1).select(broken("id")).collect())
    assert type(error) is PipelineExecutionError
    assert error.message.startswith("a Python function in the query failed: ZeroDivisionError")


def test_secrets_in_an_error_are_masked(any_spark: SparkSession) -> None:
    query = "SELECT raise_error('no jdbc:postgresql://h/db?user=me&password=hunter2 today')"
    error = failure(lambda: any_spark.sql(query).collect())
    assert "password=*********" in error.message
    assert "hunter2" not in str(error)


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(KeyError), spark_errors():
        raise KeyError("not Spark's")
    with pytest.raises(ConfigurationError, match="ours"), spark_errors():
        raise ConfigurationError("ours")


def jdbc(spark: SparkSession, host: str, port: int, **options: str) -> Any:
    reader = spark.read.format("jdbc").option("driver", "org.postgresql.Driver")
    return reader.options(url=f"jdbc:postgresql://{host}:{port}/pipeline", **options).load().collect()


def test_a_database_says_what_is_wrong(
    any_spark: SparkSession, spark_settings: Settings, postgres: PostgresServer
) -> None:
    def read(**options: str) -> PipelineError:
        given = {"user": postgres.user, "password": postgres.password, "dbtable": "pg_class", **options}
        return failure(lambda: jdbc(any_spark, postgres.host, postgres.port, **given))

    # Spark Connect does not pass on a database's SQLSTATE.
    classic = spark_settings.spark_remote is None
    refused = read(password="wrong-one")
    assert type(refused) is PipelineExecutionError
    assert "password authentication failed" in refused.message
    assert refused.message.endswith("(SQLSTATE 28P01)") == classic
    assert "wrong-one" not in str(refused)
    missing = read(dbtable="no_such_table")
    assert 'relation "no_such_table" does not exist' in missing.message
    assert missing.message.endswith("(SQLSTATE 42P01)") == classic


def test_a_database_that_does_not_answer(any_spark: SparkSession) -> None:
    from devstack.ports import free_port

    port = free_port()
    error = failure(lambda: jdbc(any_spark, "127.0.0.1", port, user="u", password="hunter2", dbtable="t"))
    assert type(error) is RetryableError
    assert f"Connection to 127.0.0.1:{port} refused" in error.message
    assert "hunter2" not in str(error)


def test_s3_says_what_is_wrong(any_spark: SparkSession, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_KEY", s3.access_key_id)
    monkeypatch.setenv("S3_SECRET", "not-the-secret")
    # Buckets of this test's own: Hadoop keeps one client per bucket.
    connection = S3Connection(
        endpoint=s3.endpoint,
        region=s3.region,
        access_key_id="env:S3_KEY",
        secret_access_key="env:S3_SECRET",
        options={"fs.s3a.attempts.maximum": "1", "fs.s3a.retry.limit": "1"},
    )
    apply_s3_connection(any_spark, "wrong-keys", connection, Secrets())
    denied = failure(lambda: any_spark.read.parquet("s3a://wrong-keys/x").collect())
    assert type(denied) is PipelineExecutionError
    assert denied.message.startswith("access denied: s3a://wrong-keys/x")
    assert "not-the-secret" not in str(denied)
    monkeypatch.setenv("S3_SECRET", s3.secret_access_key)
    apply_s3_connection(any_spark, "no-such-bucket", connection, Secrets())
    missing = failure(lambda: any_spark.range(1).write.parquet("s3a://no-such-bucket/x"))
    assert "no-such-bucket" in missing.message
    assert s3.secret_access_key not in str(missing)


def test_a_connect_server_that_does_not_answer() -> None:
    from devstack.ports import free_port

    remote = f"sc://127.0.0.1:{free_port()}"
    with (
        SparkSessions(Settings(spark_remote=remote)) as sessions,
        pytest.raises(PipelineExecutionError, match=f"{remote} does not answer: Connection refused"),
    ):
        sessions.session("run", "pipeline")
