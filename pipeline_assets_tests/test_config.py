"""Configs are checked whole: every error at once, each with its pointer, and nothing else ever comes out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_snake

from pipeline_assets.config import PipelineConfig, Retry, Sensor
from pipeline_assets.config_files import pipeline_files
from pipeline_assets.config_loading import load_file, load_folder
from pipeline_assets.connections import Connection, ConnectionKind, PostgresConnection, S3Connection
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.credentials import Secrets
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.partitions import Partitions
from pipeline_assets.spark.s3_access import apply_s3_connection
from pipeline_assets.steps import METHODS
from pipeline_assets.steps.expectations import Expectation
from pipeline_assets.steps.extract_files import FromS3
from pipeline_assets.steps.postgres import jdbc_options
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    OPTIMIZED_AGGREGATION,
    batch,
    extract_file,
    transform,
    write_config,
)


def issues_of(folder: Path, document: Any, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return the messages of loading ``document``, by pointer."""
    path = write_config(folder, document, "case.json")
    with pytest.raises(ConfigurationError) as caught:
        load_file(path, environment or {})
    assert all(issue.file == "case.json" for issue in caught.value.issues)
    return {issue.pointer: issue.message for issue in caught.value.issues}


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """Return customer-360 with the value at ``path`` replaced."""
    document = copy.deepcopy(CUSTOMER_360)
    node: Any = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return document


@pytest.mark.parametrize("document", [CUSTOMER_360, EVENT_STREAM, OPTIMIZED_AGGREGATION], ids=lambda d: d["name"])
def test_the_reference_configs_load_as_written(tmp_path: Path, document: dict[str, Any]) -> None:
    pipeline = load_file(write_config(tmp_path, document), {})
    assert pipeline.config.name == document["name"]
    assert [(m.type, m.method) for m in pipeline.methods] == [(s["type"], s["method"]) for s in document["steps"]]


def test_every_error_is_reported_at_once(tmp_path: Path) -> None:
    document = changed("mode", value="bacth")
    document["onwers"] = ["a@b.example"]
    document["steps"][0]["config"]["tabel"] = document["steps"][0]["config"].pop("table")
    document["steps"][1]["method"] = "fromS33"
    document["steps"][2]["config"]["joinType"] = "inne"
    issues = issues_of(tmp_path, document)
    assert {"/mode", "/onwers", "/steps/0/config/tabel", "/steps/1/method", "/steps/2/config/joinType"} <= set(issues)
    assert "did you mean 'batch'" in issues["/mode"]
    assert "did you mean 'owners'" in issues["/onwers"]
    assert "did you mean 'table'" in issues["/steps/0/config/tabel"]
    assert "did you mean 'fromS3'" in issues["/steps/1/method"]
    assert "did you mean 'inner'" in issues["/steps/2/config/joinType"]


@pytest.mark.parametrize(
    ("document", "pointer", "expected"),
    [
        ("{ not json", "", "is not JSON: line 1, column 3"),
        ("", "", "the file is empty"),
        (" \n\n", "", "the file is empty"),
        ('{\n  // about\n  "name": "a"}', "", "line 2, column 3: JSON has no comments"),
        ('{"name": "a"} # about', "", "line 1, column 15: JSON has no comments"),
        ('{"steps": [{"a": 1,\n}]}', "", "remove the comma before the closing"),
        ('{"steps": [1, ]}', "", "remove the comma before the closing"),
        ("{'name': 1}", "", "line 1, column 2: JSON has texts in double quotes"),
        ('{"name": ,}', "", "line 1, column 10: Expecting value"),
        ('{"name": 1, "name": 2}', "/name", "'name' occurs twice"),
        ('{"steps": [{"config": {"path": "a", "p": {}, "path": "b"}}]}', "/steps/0/config/path", "occurs twice"),
        ('{"steps": [1, {"a": {}, "a": {"b": 1, "b": 1}}]}', "/steps/1/a", "'a' occurs twice"),
        ("[1, 2]", "", "a JSON object was expected"),
        ("[" * 100_000, "", "nested too deeply"),
        ('{"description": ' + "[" * 700 + "]" * 700 + "}", "", "nested too deeply"),
        ('{"name": ' + "1" * 6000 + "}", "", "a number of 6000 digits"),
        ('{"name": NaN}', "", "NaN, which is no JSON"),
        ('{"name": -1e999}', "", "too large"),
        (r'{"name": "\ud800"}', "", "half of a surrogate pair"),
        ({**CUSTOMER_360, "retry": {"delay": "inf"}}, "/retry/delay", "finite"),
        (changed("name", value="../../etc/passwd"), "/name", "does not match"),
        (changed("name", value=""), "/name", "does not match"),
        (changed("steps", value=[]), "/steps", "is empty"),
        (
            changed("steps", 2, "config", "inputDataFrames", value=["a"]),
            "/steps/2/config/inputDataFrames",
            "has 1 of at",
        ),
        (changed("name", value="x" * 101), "/name", "has 101 characters: at most 100 are allowed"),
        (changed("steps", 0, "config", "fetchSize", value=-1), "/steps/0/config/fetchSize", "-1 is below 0"),
        (
            changed("steps", 0, "config", "numPartitions", value="0"),
            "/steps/0/config/numPartitions",
            "'0' is not above 0",
        ),
        (changed("steps", 0, "config", "numPartitions", value=1.5), "/steps/0/config/numPartitions", "(got 1.5)"),
        (changed("steps", 0, "config", "cache", value="yes"), "/steps/0/config/cache", "true or false (got 'yes')"),
        ({**CUSTOMER_360, "schedule": 5}, "/schedule", "expected a string or an object (got number)"),
        (changed("steps", 0, "type", value="extrakt"), "/steps/0/type", "did you mean 'extract'"),
        (changed("steps", 0, "method", value="toDeltaLake"), "/steps/0/method", "is a method of type 'load'"),
        (
            changed("steps", 0, "config", "cacheStorageLevel", value="MEMORY"),
            "/steps/0/config/cacheStorageLevel",
            "one of",
        ),
        (changed("steps", 2, "config", "leftKeys", value="id"), "/steps/2/config/leftKeys", "array"),
        ({**CUSTOMER_360, "schedule": "61 * * * *"}, "/schedule", "not a cron expression"),
        ({**CUSTOMER_360, "schedule": "61 * * * *"}, "/schedule", "as in '0 2 * * *')"),
        ({**CUSTOMER_360, "schedule": "0 0 2 * * *"}, "/schedule", "expected five fields"),
        ({**CUSTOMER_360, "schedule": "0 0 31 2 *"}, "/schedule", "never comes"),
        ({**CUSTOMER_360, "schedule": {"cron": "0 0 31 4,6 *"}}, "/schedule/cron", "never comes"),
        ({**CUSTOMER_360, "schedule": {"cron": "0 2 * * *", "timezone": "Europe"}}, "/schedule/timezone", "IANA"),
        ({**CUSTOMER_360, "schedule": {"cron": "0 2 * * *", "timezone": "x" * 5_000}}, "/schedule/timezone", "IANA"),
        ({**CUSTOMER_360, "name": "config"}, "/name", "reserved"),
        ({**CUSTOMER_360, "name": "sales__eu"}, "/name", "<pipeline>__<step>"),
        ({**CUSTOMER_360, "name": "sales-_eu"}, "/name", "<pipeline>__<step>"),
        ({**CUSTOMER_360, "name": "sales-"}, "/name", "<pipeline>__<step>"),
        ({**CUSTOMER_360, "name": "s3"}, "/name", "reserved"),
        ({**CUSTOMER_360, "tags": {"": "x"}}, "/tags/", "does not match"),
        ({**CUSTOMER_360, "owners": ["é@b.example"]}, "/owners/0", "no owner"),
        (
            {**CUSTOMER_360, "partitions": {"type": "static", "values": ["a...b"]}},
            "/partitions/values/0",
            "does not take '...'",
        ),
        (
            {**CUSTOMER_360, "partitions": {"type": "daily", "start": "2024-01-01", "timezone": "Mars/X"}},
            "/partitions/timezone",
            "IANA",
        ),
        ({**CUSTOMER_360, "sparkConf": {"spark.executor.memory": "4g"}}, "/sparkConf", "where Spark is started"),
        ({**CUSTOMER_360, "sparkConf": {"spark.sql.session.timeZone": "CET"}}, "/sparkConf", "from_utc_timestamp"),
        ({**CUSTOMER_360, "sparkConf": {"spark.sql.redaction.string.regex": "x"}}, "/sparkConf", "keeps secrets out"),
        ({**CUSTOMER_360, "sparkConf": {"spark.sql.my.password": "x"}}, "/sparkConf", "looks like a secret"),
        ({**CUSTOMER_360, "version": 2}, "/version", "2 is not allowed (expected 1)"),
        ({**CUSTOMER_360, "mode": None}, "/mode", "null is not allowed (expected one of: batch, streaming)"),
        ({**CUSTOMER_360, "automation": "on_cron"}, "/automation", "needs a 'schedule'"),
        ({**CUSTOMER_360, "owners": ["nobody"]}, "/owners/0", "team:NAME"),
        *(
            (
                {**CUSTOMER_360, "partitions": {"type": "daily", "start": start}},
                "/partitions/start",
                "such as 2024-01-31",
            )
            for start in ("01/02/2024", "2024-02-30", "20240101", 20240101, True, [])
        ),
        ({**CUSTOMER_360, "partitions": {"type": "daily"}}, "/partitions", "need 'start'"),
        ({**CUSTOMER_360, "partitions": {"type": "static"}}, "/partitions", "need 'values'"),
        (
            changed("steps", 1, "config", "path", value="s3a://data/${partition}/*.parquet"),
            "/steps/1/config/path",
            "has no 'partitions'",
        ),
        (
            changed("steps", 1, "config", "path", value="s3a://data/${partition:-all}/*.parquet"),
            "/steps/1/config/path",
            "has no 'partitions'",
        ),
        ({**EVENT_STREAM, "optimize": False}, "/optimize", "leave it out"),
        (
            {**EVENT_STREAM, "steps": [*EVENT_STREAM["steps"][:2], {**EVENT_STREAM["steps"][2], "retry": {}}]},
            "/steps/2/retry",
            "started again by its sensor",
        ),
        (
            batch("p", extract_file("rows", "/in.csv", cacheStorageLevel="DISK_ONLY")),
            "/steps/0/config",
            "give 'cache': true, or leave it out",
        ),
        (changed("version", value=True), "/version", "expected an integer (got boolean)"),
        (changed("steps", 1, "config", "path", value="s3a://${BUCKET}/o"), "/steps/1/config/path", "BUCKET is not set"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, document: Any, pointer: str, expected: str) -> None:
    issues = issues_of(tmp_path, document)
    assert pointer in issues, issues
    assert expected in issues[pointer]


def with_subclasses(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model}.union(*(with_subclasses(each) for each in model.__subclasses__()))


MODELS = sorted(
    (*METHODS, *with_subclasses(Expectation), *with_subclasses(Connection), PipelineConfig, Partitions, Retry, Sensor),
    key=lambda model: model.__qualname__,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__)
def test_numbers_are_no_booleans_and_the_reverse(model: type[BaseModel]) -> None:
    wrong = {"boolean": ("yes", 1, "1", ""), "integer": (True, False), "number": (True, False)}
    right = {"boolean": (True, "true", "False"), "integer": (7, "7"), "number": (7.5, "7.5")}
    for key, schema in model.model_json_schema().get("properties", {}).items():
        types = {each.get("type") for each in schema.get("anyOf", [schema])}
        for kind in wrong if "string" not in types else ():
            if kind in types and "const" not in schema:
                assert [value for value in wrong[kind] if not refused(model, key, value)] == [], key
                assert [value for value in right[kind] if refused(model, key, value)] == [], key


def refused(model: type[BaseModel], key: str, value: object) -> bool:
    """Whether ``value`` is not of the type that ``key`` has, whatever else is wrong."""
    needed = {"path": "s3a://bucket/x.csv" if model is FromS3 else "/x.csv"} if "paths" in model.model_fields else {}
    try:
        model.model_validate({**needed, key: value})
    except ValidationError as error:
        found = [each["type"] for each in error.errors() if each["loc"][:1] == (key,)]
        return any(each.endswith(("_type", "_parsing")) for each in found)
    return False


def test_of_alternatives_only_what_is_wrong_inside_is_told(tmp_path: Path) -> None:
    document = {**CUSTOMER_360, "schedule": {"cron": "61 * * * *"}}
    assert set(issues_of(tmp_path, document)) == {"/schedule/cron"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variables", [0, 25_000])
def test_many_errors_take_no_longer_than_their_number(tmp_path: Path, variables: int) -> None:
    """Each compared with each would be minutes: the test's time limit is what fails."""
    partitions = {"type": "static", "values": [1] * 40_000}
    unset = {f"spark.x{number}": "${UNSET}" for number in range(variables)}
    document = batch("p", extract_file("rows", "/in.csv"), partitions=partitions, sparkConf=unset)
    assert len(issues_of(tmp_path, document)) == 40_000 + variables


def test_a_config_of_ten_megabytes_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    document = changed("description", value="x" * 10_000_000)
    issues = issues_of(tmp_path, document)
    assert "a config has at most 1,048,576" in issues[""]


def test_variables_come_from_the_environment(tmp_path: Path) -> None:
    document = batch(
        "from-${PLACE:-nowhere}",
        extract_file("rows", "/in/${DAY}.csv"),
        transform("filterRows", condition="note = '$${NOT_A_VARIABLE}'"),
    )
    pipeline = load_file(write_config(tmp_path, document, "case.json"), {"DAY": "monday"})
    assert pipeline.config.name == "from-nowhere"
    assert pipeline.methods[0].model_dump()["path"] == "/in/monday.csv"
    assert pipeline.methods[1].model_dump()["condition"] == "note = '${NOT_A_VARIABLE}'"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a ${lower-case} b", "'${lower-case}' is no variable"),
        ("${NOPE?}", "'${NOPE?}' is no variable"),
        ("${1ST}", "'${1ST}' is no variable"),
        ("${}", "'${}' is no variable"),
        ("x ${NOPE", "'${NOPE' is no variable"),
        ("$$${lower-case}", None),
        ("$${lower-case} $${SET:-${SET}} $${open", None),
        ("$SET $ {SET} $1 {$", None),
        ("${SET:-${SET}}", "a default can't hold another ${...}"),
    ],
)
def test_what_begins_like_a_variable_is_one(tmp_path: Path, text: str, told: str | None) -> None:
    document = batch("p", extract_file("rows", "/in.csv", options={"comment": text}))
    if told is None:
        loaded = load_file(write_config(tmp_path, document, "case.json"), {"SET": "x"})
        assert loaded.methods[0].model_dump()["options"]["comment"] == text.replace("$${", "${")
    else:
        assert told in issues_of(tmp_path, document, {"SET": "x"})["/steps/0/config/options/comment"]


@pytest.mark.parametrize("text", ["${UNSET}", "${un-set}", "${A:-${B}}"])
def test_nothing_follows_from_a_variable_that_is_not_set(tmp_path: Path, text: str) -> None:
    document = batch("p", extract_file("rows", text, cacheStorageLevel="x"), schedule=text, partitions={"type": text})
    document["steps"].append(transform("filterRows", conditoin="a"))
    assert set(issues_of(tmp_path, document)) == {
        *("/schedule", "/partitions/type", "/steps/0/config/path"),
        *("/steps/0/config/cacheStorageLevel", "/steps/1/config/condition", "/steps/1/config/conditoin"),
    }


@pytest.mark.parametrize(
    ("document", "pointer", "told"),
    [
        (changed("version", value="${HELD}"), "/version", "'${HELD}' is not allowed (expected 1)"),
        (changed("mode", value="${HELD}"), "/mode", "'${HELD}' is not allowed (expected one of: batch, streaming)"),
        ({**CUSTOMER_360, "schedule": "${HELD}"}, "/schedule", "'${HELD}' is not a cron expression"),
        (changed("steps", 0, "method", value="${HELD}"), "/steps/0/method", "no extract method '${HELD}' (expected"),
        (
            changed("steps", 0, "config", "table", value="a.${HELD}.c"),
            "/steps/0/config",
            "'a.${HELD}.c' is not a table",
        ),
        (
            changed("steps", 0, "config", "numPartitions", value="${HELD}"),
            "/steps/0/config/numPartitions",
            "expected an integer (got '${HELD}')",
        ),
    ],
)
@pytest.mark.parametrize("value", ["hunter2", "hunter2 " * 40, "hunter2" * 100, "\\hunter2'\n"])
def test_what_a_variable_holds_is_not_shown(
    tmp_path: Path, document: dict[str, Any], pointer: str, told: str, value: str
) -> None:
    message = issues_of(tmp_path, document, {"HELD": value})[pointer]
    assert told in message
    assert "hunter2" not in message


def test_what_variables_hold_is_not_shown_where_it_is_compared(tmp_path: Path) -> None:
    config = {"table": "t", "partitionColumn": "n", "numPartitions": 2, "lowerBound": "${LOW}", "upperBound": "${HIGH}"}
    message = issues_of(tmp_path, changed("steps", 0, "config", value=config), {"LOW": "20240131", "HIGH": "20240101"})
    assert message == {"/steps/0/config": "lowerBound (${LOW}) is above upperBound (${HIGH})"}


def test_a_variable_in_a_connection_is_not_shown(tmp_path: Path) -> None:
    connection = {"host": "h", "database": "d", "user": "u", "port": "${PGPASSWORD}"}
    write_config(tmp_path, {"postgres": {"default": connection}}, "connections.json")
    with pytest.raises(ConfigurationError) as caught:
        load_connections(tmp_path, {"PGPASSWORD": "hunter2"})
    (issue,) = caught.value.issues
    assert (issue.pointer, issue.message) == (
        "/postgres/default/port",
        "expected an integer (got '${PGPASSWORD}')",
    )


def test_what_a_variable_holds_is_no_variable(tmp_path: Path) -> None:
    document = batch("p", extract_file("rows", "/in.csv", options={"comment": "${HELD}"}))
    loaded = load_file(write_config(tmp_path, document, "case.json"), {"HELD": "${lower-case}"})
    assert loaded.methods[0].model_dump()["options"]["comment"] == "${lower-case}"


def test_a_partition_is_put_into_any_string(tmp_path: Path) -> None:
    document = batch(
        "by-day",
        extract_file("rows", "/in/${partition:-never a default}/*.csv"),
        transform("filterRows", condition="day = '${partition}'"),
        partitions={"type": "daily", "start": "2024-01-01"},
    )
    pipeline = load_file(write_config(tmp_path, document), {"partition": "never from the environment"})
    methods = pipeline.for_partition("2024-02-29").methods
    assert methods[0].model_dump()["path"] == "/in/2024-02-29/*.csv"
    assert methods[1].model_dump()["condition"] == "day = '2024-02-29'"


def test_a_broken_config_leaves_the_others(tmp_path: Path) -> None:
    write_config(tmp_path, CUSTOMER_360)
    write_config(tmp_path, "{", "broken.json")
    write_config(tmp_path, {}, "connections.json")
    folder = load_folder(tmp_path, {})
    assert [pipeline.config.name for pipeline in folder.pipelines] == ["customer-360"]
    assert [broken.file for broken in folder.broken] == ["broken.json"]


def test_names_that_dagster_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    for name in ("a-b", "a_b", "other"):
        write_config(tmp_path, batch(name, extract_file("rows", "/in.csv")))
    folder = load_folder(tmp_path, {})
    assert [pipeline.config.name for pipeline in folder.pipelines] == ["other"]
    assert {broken.file for broken in folder.broken} == {"a-b.json", "a_b.json"}
    assert all("same name to Dagster" in str(broken.error) for broken in folder.broken)


def test_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="PIPELINE_ASSETS_CONFIGS"):
        load_folder(tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("connection", "pointer", "expected"),
    [
        ({"host": "h", "database": "d", "user": "u", "password": "hunter2"}, "/password", "never as a literal"),
        (
            {"host": "h", "database": "d", "user": "u", "password": "vault:secret/data/pg"},
            "/password",
            "names the field",
        ),
        ({"host": "h", "database": "d", "user": "u", "password": "env:P-W"}, "/password", "letters, digits and '_'"),
        (
            {"host": "h", "database": "d", "user": "u", "password": "vault:a#hunter2#x"},
            "/password",
            "never as a literal",
        ),
        ({"host": "h", "database": "d", "user": "u", "password": "vault://a/hunter2#x"}, "/password", "is no URL"),
        ({"hots": "h", "database": "d", "user": "u"}, "/hots", "did you mean 'host'"),
        ({"host": "h", "database": "d", "user": "u", "port": "x"}, "/port", "integer"),
    ],
)
def test_connections_hold_references_only(
    tmp_path: Path, connection: dict[str, str], pointer: str, expected: str
) -> None:
    write_config(tmp_path, {"postgres": {"default": connection}}, "connections.json")
    with pytest.raises(ConfigurationError) as caught:
        load_connections(tmp_path, {})
    issues = {issue.pointer: issue.message for issue in caught.value.issues}
    assert expected in issues[f"/postgres/default{pointer}"]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "text", "expected"),
    [
        ("postgres", "host", "", "is empty"),
        ("postgres", "host", "etl:hunter2@db", "a name alone was expected"),
        ("postgres", "host", "jdbc:postgresql://db/shop", "a name alone was expected"),
        ("postgres", "host", "db ", "a name alone was expected"),
        ("postgres", "host", "db:5433", "its port is given as 'port'"),
        ("postgres", "host", "[::1]:5433", "its port is given as 'port'"),
        ("postgres", "host", "AKIAQ7Q7Q7Q7Q7Q7Q7Q7", "looks like it holds a secret (AWS access key)"),
        ("postgres", "database", "", "is empty"),
        ("postgres", "database", "shop?password=hunter2", "a name alone was expected"),
        ("postgres", "database", "password=hunter2", "looks like it holds a secret"),
        ("postgres", "port", "0", "below 1"),
        ("postgres", "port", "65536", "above 65535"),
        ("postgres", "user", "", "is empty"),
        ("postgres", "user", "password=hunter2", "looks like it holds a secret"),
        ("postgres", "user", "vault:hunter2", "names the field"),
        ("postgres", "user", "env:hunter2 ", "letters, digits and '_'"),
        ("s3", "endpoint", "https://key:hunter2@s3.example.com", "the URL of the service alone"),
        ("s3", "endpoint", "https://s3.example.com?secret=hunter2", "the URL of the service alone"),
        ("s3", "endpoint", "s3://data", "the URL of the service alone"),
        ("s3", "region", "AKIAQ7Q7Q7Q7Q7Q7Q7Q7", "looks like it holds a secret (AWS access key)"),
        ("kafka", "bootstrapServers", "", "expected 'host:port,host:port'"),
        ("kafka", "bootstrapServers", "k:9092,other", "expected 'host:port,host:port'"),
        ("kafka", "bootstrapServers", "SASL_SSL://etl:hunter2@k:9092", "expected 'host:port,host:port'"),
        ("kafka", "options", {"client.id": "vault:hunter2"}, "option 'client.id': a Vault reference names the field"),
    ],
)
def test_what_connections_say_can_work_and_may_be_seen(
    tmp_path: Path, kind: str, key: str, text: object, expected: str
) -> None:
    write_config(tmp_path, {kind: {"default": {**NEEDED[kind], key: text}}}, "connections.json")
    with pytest.raises(ConfigurationError) as caught:
        load_connections(tmp_path, {})
    (issue,) = caught.value.issues
    assert issue.pointer == f"/{kind}/default/{key}"
    assert expected in issue.message
    for secret in ("hunter2", "AKIA"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [
        *(
            ("postgres", "host", host)
            for host in ("db", "db-1.example.com", "10.0.0.1", "::1", "[::1]", "fe80::1%eth0")
        ),
        *(("postgres", "host", host) for host in ("primary,standby", "${HOST:-localhost}")),
        ("postgres", "database", "Shop-1_a.b"),
        *(("postgres", "user", user) for user in ("etl@example.com", "vault:database/creds/etl#username", "env:USER")),
        *(("postgres", "port", port) for port in ("1", "65535")),
        *(
            ("s3", "endpoint", end)
            for end in ("", "s3.example.com:9000", "http://127.0.0.1:1", "https://a.b/c", "http://[::1]:1")
        ),
        *(
            ("kafka", "bootstrapServers", servers)
            for servers in ("a:1, b:2,", "[::1]:9092", "PLAINTEXT://k:9092", "token:1")
        ),
        ("kafka", "options", {"client.id": "env:NAME", "client.rack": "a"}),
    ],
)
def test_what_connections_may_say(tmp_path: Path, kind: str, key: str, text: object) -> None:
    write_config(tmp_path, {kind: {"default": {**NEEDED[kind], key: text}}}, "connections.json")
    load_connections(tmp_path, {}).of(cast(ConnectionKind, kind), "default")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"accessKeyId": "env:A"}, "give both, or none"),
        ({"secretAccessKey": "env:B"}, "give both, or none"),
        ({"secretAccessKey": "env:B", "sessionToken": "env:C"}, "give both, or none"),
        ({"sessionToken": "env:C"}, "'sessionToken' is of keys"),
        ({}, None),
        ({"accessKeyId": "env:A", "secretAccessKey": "env:B"}, None),
        ({"accessKeyId": "env:A", "secretAccessKey": "env:B", "sessionToken": "env:C"}, None),
    ],
)
def test_keys_of_s3_are_whole(tmp_path: Path, keys: dict[str, str], expected: str | None) -> None:
    write_config(tmp_path, {"s3": {"default": keys}}, "connections.json")
    if expected is None:
        assert load_connections(tmp_path, {}).s3("default").model_fields_set == {to_snake(key) for key in keys}
    else:
        with pytest.raises(ConfigurationError, match=expected) as caught:
            load_connections(tmp_path, {})
        assert [issue.pointer for issue in caught.value.issues] == ["/s3/default"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("postgres", {"password": "hunter2"}),
        ("postgres", {"sslpassword": "hunter2"}),
        ("postgres", {"ApplicationName": "https://etl:hunter2@host/"}),
        ("s3", {"fs.s3a.secret.key": "hunter2"}),
        ("s3", {"fs.s3a.encryption.key": "valt:hunter2"}),
        ("kafka", {"sasl.jaas.config": 'org.x.LoginModule required username="a" password="hunter2";'}),
        ("kafka", {"ssl.truststore.password": "vault:hunter2"}),
    ],
)
def test_secret_options_are_references(tmp_path: Path, kind: str, options: dict[str, str]) -> None:
    write_config(tmp_path, {kind: {"default": {**NEEDED[kind], "options": options}}}, "connections.json")
    with pytest.raises(ConfigurationError) as caught:
        load_connections(tmp_path, {})
    (issue,) = caught.value.issues
    assert issue.pointer == f"/{kind}/default/options"
    assert f"option {next(iter(options))!r}" in issue.message
    assert "hunter2" not in str(caught.value)


NEEDED: dict[str, dict[str, str]] = {
    "postgres": {"host": "h", "database": "d", "user": "u"},
    "s3": {},
    "kafka": {"bootstrapServers": "k:9092"},
}


def test_options_that_are_no_secret_are_given_as_they_are(tmp_path: Path) -> None:
    options = {
        "postgres": {"sslpassword": "env:SSL", "sslfactoryarg": "file:/etc/ca.pem", "connectTimeout": "5"},
        "s3": {"fs.s3a.encryption.key": "arn:aws:kms:eu-central-1:1:key/a", "fs.s3a.session.token": "file:/token"},
        "kafka": {"sasl.jaas.config": "vault:secret/data/kafka#jaas", "security.protocol": "SASL_SSL"},
    }
    document = {kind: {"default": {**NEEDED[kind], "options": given}} for kind, given in options.items()}
    write_config(tmp_path, document, "connections.json")
    loaded = load_connections(tmp_path, {})
    for kind, given in options.items():
        assert loaded.of(cast(ConnectionKind, kind), "default").model_dump()["options"] == given


def test_secret_options_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTION", "fetched-once")
    given = {"sslpassword": "env:OPTION", "sslfactoryarg": "env:OPTION"}
    postgres = PostgresConnection.model_validate({**NEEDED["postgres"], "options": given})
    options = jdbc_options(postgres, Secrets())
    assert (options["sslpassword"], options["sslfactoryarg"]) == ("fetched-once", "env:OPTION")
    s3 = S3Connection.model_validate({"options": {"fs.s3a.encryption.key": "env:OPTION"}})
    conf: dict[str, str] = {}
    session = cast(Any, SimpleNamespace(conf=SimpleNamespace(set=conf.__setitem__)))
    apply_s3_connection(session, "b", s3, Secrets())
    assert conf["fs.s3a.bucket.b.encryption.key"] == "fetched-once"


def test_the_configs_of_this_repository_are_valid_by_their_json_schema() -> None:
    import jsonschema

    configs = Path(__file__).parent.parent / "configs"
    schema = json.loads((configs / "pipeline.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    files = pipeline_files(configs)
    assert len(files) >= 3
    for file in files:
        document = json.loads(file.read_text())
        assert document["$schema"] == "pipeline.schema.json"
        assert [error.message for error in validator.iter_errors(document)] == []
    broken = changed("steps", 0, "config", value={"tabel": "customers"})
    assert any("tabel" in error.message for error in validator.iter_errors(broken))


def test_the_connections_of_this_repository_are_valid_by_their_json_schema() -> None:
    import jsonschema

    configs = Path(__file__).parent.parent / "configs"
    schema = json.loads((configs / "connections.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads((configs / "connections.json").read_text())
    assert document["$schema"] == "connections.schema.json"
    assert [error.message for error in validator.iter_errors(document)] == []
    document["postgres"]["default"] |= {"password": "hunter2", "hots": "h"}
    assert sorted(error.json_path for error in validator.iter_errors(document)) == [
        "$.postgres.default",
        "$.postgres.default.password",
    ]


def test_what_is_made_from_the_models_is_current() -> None:
    from pipeline_assets.config_schema import connections_schema, pipeline_schema, step_reference

    root = Path(__file__).parent.parent
    schema = json.loads((root / "configs" / "pipeline.schema.json").read_text())
    assert schema == pipeline_schema(), "run: pipeline-assets schema > configs/pipeline.schema.json"
    connections = json.loads((root / "configs" / "connections.schema.json").read_text())
    assert connections == connections_schema(), (
        "run: pipeline-assets schema --connections > configs/connections.schema.json"
    )
    reference = (root / "docs" / "steps.md").read_text()
    assert reference == step_reference(), "run: pipeline-assets schema --reference > docs/steps.md"
