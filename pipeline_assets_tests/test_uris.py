"""Where a path leads, held to Hadoop's own reading of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from pipeline_assets.config_loading import load_file
from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.openlineage.datasets import DatasetName, name_of_path
from pipeline_assets.settings import Settings
from pipeline_assets.steps.file_systems import folder_seen_from_here
from pipeline_assets.steps.paths import delta_dataset
from pipeline_assets.steps.s3_paths import bucket_of, is_s3, key_of
from pipeline_assets.uris import authority, normalize_uri, path_in, root_of, without_login
from pipeline_assets_tests.config_documents import batch, extract_file, write_config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.parametrize(
    "path",
    [
        "/data/a b",
        "/data/a:b",
        "file:/data/x",
        "file:///data/a%20b",
        "file:///data/run#1",
        "file:///data/what?",
        "dbfs:/mnt/x",
        "hdfs://host:8020/data/x",
        "abfss://box@account.dfs.core.windows.net/data/x#1",
        "s3a://bucket/a%20b/run#1",
        "s3a://bucket/a//b/./c/",
        "s3a://bucket",
    ],
)
def test_a_path_is_cut_as_hadoop_cuts_it(path: str, spark: SparkSession) -> None:
    jvm: Any = spark._jvm
    uri = jvm.org.apache.hadoop.fs.Path(path).toUri()
    if is_s3(path):
        assert (bucket_of(path), f"/{key_of(path)}") == (uri.getAuthority(), uri.getPath() or "/")
        return
    scheme, _, authority = root_of(path).partition(":")
    assert (scheme, authority.removeprefix("//")) == (uri.getScheme() or "", uri.getAuthority() or "")
    assert path_in(path) == uri.getPath()
    assert jvm.org.apache.hadoop.fs.Path(normalize_uri(path)).toUri() == uri


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/data/x", "/sandbox/data/x"),
        ("x/y", f"{Path.cwd()}/x/y"),
        ("a:b", f"{Path.cwd()}/a:b"),
        ("file:/data/x", "file:///data/x"),
        ("file:///data/x", "file:///data/x"),
        ("dbfs:/mnt/x", "dbfs:/mnt/x"),
        ("s3a://bucket/x", "s3a://bucket/x"),
    ],
)
def test_only_paths_without_scheme_are_resolved(path: str, resolved: str) -> None:
    assert Settings(path_prefix="/sandbox/").resolve(path) == resolved


@pytest.mark.parametrize(
    ("warehouse", "table"),
    [
        ("/tables", "/tables/p/t"),
        ("tables", f"{Path.cwd()}/tables/p/t"),
        ("file:/tables/", "file:///tables/p/t"),
        ("dbfs:/tables", "dbfs:/tables/p/t"),
    ],
)
def test_where_the_warehouse_is(warehouse: str, table: str) -> None:
    assert Settings(warehouse=warehouse).table_path("p", "t") == table


@pytest.mark.parametrize(
    ("path", "local"),
    [("/data/x", "/data/x"), ("file:/data/x", "/data/x"), ("file:///data/run#1/", "/data/run#1"), ("dbfs:/x", None)],
)
def test_what_is_seen_beside_spark(path: str, local: str | None) -> None:
    folder = folder_seen_from_here(path, "default", Connections())
    assert (folder.path if folder is not None else None) == local


@pytest.mark.parametrize(
    ("path", "uri", "name"),
    [
        ("file:/data/run#1", "file:///data/run#1", DatasetName("file", "/data/run#1")),
        ("file:///data/a%20b", "file:///data/a%20b", DatasetName("file", "/data/a%20b")),
        ("dbfs:/mnt/x", "dbfs:/mnt/x", DatasetName("dbfs://", "/mnt/x")),
        ("hdfs://me@host:8020/x#1", "hdfs://me@host:8020/x#1", DatasetName("hdfs://host:8020", "/x#1")),
        ("abfss://box@account/x", "abfss://box@account/x", DatasetName("abfss://box@account", "/x")),
    ],
)
def test_what_a_path_is_called(path: str, uri: str, name: DatasetName) -> None:
    assert delta_dataset(path).uri == uri
    assert name_of_path(path) == name


@pytest.mark.parametrize(("host", "told"), [("localhost", "localhost:1"), ("::1", "[::1]:1"), ("[::1]", "[::1]:1")])
def test_an_address_of_ipv6_is_in_brackets(host: str, told: str) -> None:
    assert authority(host, 1) == told
    assert urlsplit(f"sc://{told}").hostname == host.strip("[]")


@pytest.mark.parametrize(
    "path",
    [
        "s3a://AKIAEXAMPLE:wJalrXUtnFEMI@bucket/x.csv",
        "S3N://AKIAEXAMPLE:wJalr/XUtn+FEMI@bucket/x.csv",
        "hdfs://etl:wJalrXUtnFEMI@host:8020/x.csv",
    ],
)
def test_a_path_holds_no_login(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no credentials") as caught:
        without_login(path)
    assert "wJalr" not in str(caught.value)
    failing = {"columns": ["id"], "onFailure": "quarantine", "quarantinePath": path}
    document = batch(
        "p",
        extract_file("rows", path),
        {"type": "extract", "method": "fromS3", "config": {"paths": [path], "registerAs": "more"}},
        {"type": "validate", "method": "notNull", "config": failing},
        {"type": "load", "method": "toDeltaLake", "config": {"path": path, "checkpointLocation": path}},
    )
    with pytest.raises(ConfigurationError) as refused:
        load_file(write_config(tmp_path, document), {})
    told = {issue.pointer for issue in refused.value.issues if "holds no credentials" in issue.message}
    keys = ("0/config/path", "2/config/quarantinePath", "3/config/path", "3/config/checkpointLocation")
    assert told >= {f"/steps/{key}" for key in keys}
    assert "wJalr" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        "abfss://box@account.dfs.core.windows.net/x:y@z",
        "hdfs://etl@host:8020/x",
        "hdfs://[::1]:8020/a@b",
        "/data/a:b@c",
        "s3a://bucket/a:b@c",
        "s3a://${partition:-all}/x",
        "file:///a:b@c",
    ],
)
def test_what_is_no_login_in_a_path(path: str) -> None:
    assert without_login(path) == path
