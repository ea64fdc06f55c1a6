"""The command line, as its users call it."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from devstack.postgres import PostgresServer
from devstack.spark_servers import SparkConnectServer
from pipeline_assets.cli import main
from pipeline_assets.code_location import build_definitions
from pipeline_assets.credentials.audit import AuditFile
from pipeline_assets.credentials.local_sources import read_local
from pipeline_assets.credentials.references import Reference
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.report.run_reports import report_file
from pipeline_assets.settings import Settings
from pipeline_assets_tests.config_documents import (
    CUSTOMER_360,
    EVENT_STREAM,
    batch,
    extract_file,
    transform,
    write_config,
)
from pipeline_assets_tests.spark.fresh_process import in_fresh_process


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setenv("PIPELINE_ASSETS_CONFIGS", str(folder))
    monkeypatch.setenv("PIPELINE_ASSETS_WAREHOUSE", str(tmp_path / "warehouse"))
    write_config(folder, CUSTOMER_360)
    write_config(folder, EVENT_STREAM)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_validate(configs: Path) -> None:
    result = run("validate")
    assert result.exit_code == 0
    assert result.stdout == "2 configs are valid\n"


def test_validate_prints_every_error(configs: Path) -> None:
    broken = copy.deepcopy(CUSTOMER_360)
    broken["name"] = "broken"
    broken["steps"][0]["config"] = {"tabel": "customers"}
    write_config(configs, broken)
    write_config(configs, batch("no-source", transform("filterRows", condition="a")))
    write_config(configs, {"postgres": {"default": {"host": "h"}}}, "connections.json")
    result = run("validate")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert any(
        line.startswith("broken.json:1: /steps/0/config/tabel: unknown key, did you mean 'table'") for line in lines
    )
    assert any(line.startswith("no-source.json:1: /steps/0: ") for line in lines)
    assert any(line.startswith("connections.json:1: /postgres/default/database: ") for line in lines)


WITHOUT_MODE = """{
\t"name": "lines",
\t"steps": [
\t\t{
\t\t\t"type": "extract", "method": "fromFile",
\t\t\t"config": {
\t\t\t\t"path": "/x", "registerAs": "rows",
\t\t\t\t"headers": true
\t\t\t}
\t\t},
\t\t{ "type": "load",
\t\t  "method": "toFiel" }
\t]
}
"""


def test_validate_names_the_line(configs: Path) -> None:
    write_config(configs, WITHOUT_MODE, "lines.json")
    places = [line.split(": ")[:2] for line in run("validate").stderr.splitlines()]
    assert places == [
        ["lines.json:1", "/mode"],
        ["lines.json:8", "/steps/0/config/headers"],
        ["lines.json:12", "/steps/1/method"],
    ]


def test_validate_names_the_line_on_which_json_ends(configs: Path) -> None:
    write_config(configs, '{\n  "name": "open",\n}\n', "open.json")
    assert run("validate").stderr.startswith("open.json:3: /: is not JSON: line 3, column 1: remove the comma")


def test_validate_knows_the_names_of_connections(configs: Path) -> None:
    there = {"host": "h", "database": "d", "user": "u"}
    write_config(configs, {"postgres": {"default": there, "shop": there}, "kafka": {}}, "connections.json")
    source = {"type": "extract", "method": "fromPostgres", "config": {"table": "t", "connection": "shpo"}}
    write_config(
        configs,
        batch(
            "p",
            source,
            {"type": "extract", "method": "fromS3", "config": {"path": "s3a://a/b.csv", "connection": "lake"}},
        ),
    )
    result = run("validate")
    assert result.exit_code == 1
    assert [line.partition(": there is no ")[::2] for line in result.stderr.splitlines()] == [
        (
            "customer-360.json:1: /steps/1/config/connection",
            f"s3 connection 'default': add it to {configs}/connections.json under 's3' (there: none)",
        ),
        (
            "event-stream.json:1: /steps/0/config/connection",
            f"kafka connection 'default': add it to {configs}/connections.json under 'kafka' (there: none)",
        ),
        (
            "p.json:1: /steps/0/config/connection",
            f"postgres connection 'shpo', did you mean 'shop'?: add it to {configs}/connections.json under 'postgres' "
            "(there: default, shop)",
        ),
        (
            "p.json:1: /steps/1/config/connection",
            f"s3 connection 'lake': add it to {configs}/connections.json under 's3' (there: none)",
        ),
    ]


def test_validate_knows_the_connections_of_partitions(configs: Path) -> None:
    for file in configs.iterdir():
        file.unlink()
    table = {"table": "${partition}", "connection": "${partition}"}
    aside = {"columns": ["id"], "onFailure": "quarantine", "quarantinePath": "s3a://${partition}/aside"}
    steps = (
        {"type": "extract", "method": "fromPostgres", "config": table},
        {"type": "validate", "method": "notNull", "name": "good", "config": aside},
    )
    write_config(configs, batch("by-place", *steps, partitions={"type": "static", "values": ["eu", "us"]}))
    write_config(configs, batch("by-day", steps[0], partitions={"type": "daily", "start": "2024-01-01"}))
    there = {"host": "h", "database": "d", "user": "u"}
    connections = {"postgres": {"eu": there, "us": there}, "s3": {"default": {}}}
    write_config(configs, connections, "connections.json")
    result = run("validate")
    assert (result.exit_code, result.stdout) == (0, "2 configs are valid\n"), result.stderr
    write_config(configs, {"postgres": {"eu": there}}, "connections.json")
    assert [
        line.partition(", did you mean")[0].partition(": add")[0] for line in run("validate").stderr.splitlines()
    ] == [
        "by-place.json:1: /steps/0/config/connection: there is no postgres connection 'us'",
        "by-place.json:1: /steps/1/config/quarantinePath: there is no s3 connection 'default'",
    ]


def test_validate_knows_what_is_on_s3(configs: Path) -> None:
    (configs / "customer-360.json").unlink()
    stream = copy.deepcopy(EVENT_STREAM)
    source, _, load = (step["config"] for step in stream["steps"])
    source["deadLetterPath"] = "s3n://a/dead"
    load["checkpointLocation"] = "s3://a/checkpoint"
    write_config(configs, stream)
    aside = {"columns": ["id"], "onFailure": "quarantine", "quarantinePath": "s3a://a/aside"}
    good = {"type": "validate", "method": "notNull", "name": "good", "config": aside}
    on_s3 = {"type": "load", "method": "toDeltaLake", "config": {"path": "s3a://a/t"}}
    here = {"type": "load", "method": "toDeltaLake", "config": {"path": "/t"}}
    write_config(configs, batch("p", extract_file("rows", "/a.csv"), good, on_s3, here))
    connections = {"kafka": {"default": {"bootstrapServers": "k:9092"}}}
    write_config(configs, connections, "connections.json")
    assert [
        line.partition(": there is no s3 connection 'default'")[0] for line in run("validate").stderr.splitlines()
    ] == [
        "event-stream.json:1: /steps/0/config/deadLetterPath",
        "event-stream.json:1: /steps/2/config/checkpointConnection",
        "p.json:1: /steps/1/config/quarantinePath",
        "p.json:1: /steps/2/config/connection",
    ]
    write_config(configs, {**connections, "s3": {"default": {}}}, "connections.json")
    assert run("validate").stdout == "2 configs are valid\n"


def test_validate_knows_the_names_of_pipelines(configs: Path) -> None:
    def from_table(table: str) -> dict[str, object]:
        return {"type": "extract", "method": "fromDeltaLake", "config": {"table": table}}

    tables = ("custmer-360.any", "customer-360.join_data_frames", "half-done.rows", "half_done.rows")
    write_config(configs, batch("reader", *map(from_table, tables)))
    write_config(configs, batch("half-done"))
    result = run("validate")
    _, *told = result.stderr.splitlines()
    assert told == [
        "reader.json:1: /steps/0/config/table: there is no pipeline 'custmer-360', did you mean 'customer-360'? "
        "(pipelines: customer-360, event-stream, half-done, reader): a table of another location is read by its 'path'"
    ]
    # Of single files nobody knows what is beside them.
    assert run("validate", str(configs / "reader.json")).exit_code == 0


LOGIN = "https://etl:hunter2hunter2@" + "h" * 50


@pytest.mark.parametrize(
    ("change", "secret"),
    [
        ({"schedule": LOGIN}, "hunter2"),
        ({"mode": LOGIN}, "hunter2"),
        ({"owners": ["hvs.CAESIJ1234567890abcdefghijklmnop"]}, "CAESIJ"),
        ({"tags": {"ghp_0123456789abcdefghijklmnopqrstuvwxyzAB": {}}}, "ghp_0123"),
        ({"steps": [extract_file("rows", "/x", format=f"{LOGIN}/x")]}, "hunter2"),
        ({"steps": [extract_file("rows", "/x", format="password=hunter2")]}, "hunter2"),
        ({"schedule": "${FROM_OUTSIDE}"}, "hunter2"),
    ],
)
def test_no_command_shows_a_secret_of_a_config(
    configs: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], secret: str
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", f"{LOGIN}/x")
    path = write_config(configs, {**batch("shy", extract_file("rows", "/in.csv")), **change}, "shy.json")
    (broken,) = (
        spec
        for spec in build_definitions(Settings(configs=configs)).resolve_all_asset_specs()
        if spec.key.path[0] == "broken_configs"
    )
    results = [run(*arguments) for arguments in (["validate"], ["validate", str(path)], ["plan", "shy"])]
    assert [result.exit_code for result in results] == [1, 1, 1]
    for text in (*(result.output for result in results), broken.description or ""):
        assert "*********" in text or "'${FROM_OUTSIDE}' is not a cron expression" in text
        assert secret not in text


def test_what_is_read_and_written_is_shown_without_secrets(configs: Path) -> None:
    place = {"table": "https://etl:hunter2hunter2@host/orders"}
    source = {"type": "extract", "method": "fromPostgres", "config": place}
    write_config(configs, batch("odd", source, {"type": "load", "method": "toPostgres", "config": place}))
    shown = run("plan", "odd").stdout
    specs = list(build_definitions(Settings(configs=configs)).resolve_all_asset_specs())
    told = [str(spec.metadata.get("dagster/uri", "")) for spec in specs] + [spec.description or "" for spec in specs]
    assert shown.count("https://etl:*********@host/orders") == 2
    assert sum("https://etl:*********@host/orders" in text for text in told) == 3
    assert "hunter2" not in shown + "".join(told)


def test_validate_takes_files(configs: Path) -> None:
    good = write_config(configs, batch("good", extract_file("a", "/a.csv")))
    bad = write_config(configs, "{", "bad.json")
    schema = write_config(configs, run("schema").stdout, "pipeline.schema.json")
    assert run("validate", str(good), str(schema)).exit_code == 0
    result = run("validate", str(good), str(bad))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{bad}:1: /: is not JSON: line 1, column 2")


def test_validate_tells_files_of_one_name_apart(configs: Path) -> None:
    below = [configs / name for name in ("a", "b")]
    for folder in below:
        folder.mkdir()
        write_config(folder, {"kafka": {"default": {}}}, "connections.json")
    files = [
        write_config(below[0], batch("same", extract_file("rows", "/a.csv")), name) for name in ("x.json", "y.json")
    ]
    broken = [write_config(folder, batch("same", extract_file("rows", "/", pth="x")), "z.json") for folder in below]
    connections = below[1] / "connections.json"
    result = run("validate", *map(str, (*files, files[0], *broken, connections)))
    assert result.exit_code == 1
    assert sorted(line.partition(": ")[0] for line in result.stderr.splitlines()) == sorted(
        f"{path}:1" for path in (*files, *broken, connections)
    )
    assert f"the same name to Dagster as 'same' of {files[1]}: rename" in result.stderr
    assert run("validate", str(files[0]), str(files[0])).exit_code == 0


def test_validate_holds_no_files_of_two_folders_against_each_other(configs: Path) -> None:
    stream = copy.deepcopy(EVENT_STREAM)
    for place in ("stg", "prod"):
        (configs / place).mkdir()
        write_config(configs / place, stream, "stream.json")
    result = run("validate", *(str(configs / place / "stream.json") for place in ("stg", "prod")))
    assert result.stdout == "2 configs are valid\n", result.stderr
    # Of one folder they are one location's.
    write_config(configs / "prod", {**stream, "name": "second"}, "second.json")
    result = run("validate", *(str(configs / "prod" / name) for name in ("stream.json", "second.json")))
    assert "it is the checkpoint of step 2 of" in result.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("PIPELINE_ASSETS_EXECUTOR", "threads"), ("SPARK_REMOTE", "sc//host/;token=hunter2hunter2")]
)
def test_what_keeps_the_location_from_loading_is_told(
    configs: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    good = write_config(configs, batch("good", extract_file("a", "/a.csv")))
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as told:
        build_definitions(Settings.from_environment())
    for command in (["validate"], ["list"], ["plan", "good"]):
        result = run(*command)
        assert result.exit_code == 1
        assert result.stderr.removeprefix("Error: ") == f"{told.value}\n"
        assert "hunter2" not in result.stderr
    assert run("validate", str(good)).exit_code == 0  # files alone are none of a location


def test_validate_takes_no_folder(configs: Path) -> None:
    result = run("validate", str(configs))
    assert result.exit_code == 2
    assert "set PIPELINE_ASSETS_CONFIGS to it" in result.stderr


def test_a_broken_config_is_called_as_its_pipeline(configs: Path) -> None:
    write_config(configs, batch("orders", extract_file("rows", "/a.csv", pth="x")), "orders-v2.json")
    write_config(configs, batch("no-source", transform("filterRows", condition="a")), "second.json")
    for name in ("orders", "no-source", "no_source"):
        assert "there is no pipeline" not in run("plan", name).stderr
    assert "/steps/0/config/pth: unknown key" in run("plan", "orders").stderr
    rows = [line.split()[:2] for line in run("list").stdout.splitlines()]
    assert ["orders", "broken"] in rows
    assert ["no-source", "broken"] in rows


def test_schema_is_json(configs: Path) -> None:
    assert json.loads(run("schema").stdout)["title"] == "Pipeline"
    assert json.loads(run("schema", "--connections").stdout)["title"] == "Connections"
    assert run("schema", "--connections", "--reference").exit_code == 2
    # In the folder they are no pipelines.
    write_config(configs, run("schema", "--connections").stdout, "connections.schema.json")
    assert run("validate").stdout == "2 configs are valid\n"


def test_list(configs: Path) -> None:
    write_config(configs, "{", "bad.json")
    result = run("list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["customer-360"][:2] == ["batch", "3"]
    assert rows["event-stream"][:2] == ["streaming", "3"]
    assert rows["bad"][0] == "broken"


def test_plan(configs: Path) -> None:
    shown = run("plan", "customer-360").stdout
    for part in (
        "customer_360/join_data_frames  transform joinDataFrames  (table)",
        "from    customer_360/customers, customer_360/orders",
        "source  s3a://data/orders",
        "warehouse/customer_360/join_data_frames",
    ):
        assert part in shown
    assert "sink    /data/purchases" in run("plan", "event_stream").stdout


def test_paths_and_names_of_files_are_shown_as_they_are(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_WAREHOUSE", "/kept/[b]/:key:")
    config = {"columns": ["id"], "onFailure": "quarantine", "quarantinePath": "/aside/:key:"}
    document = batch(
        "marked",
        extract_file("rows", "/in/[/raw]/:key:/rows.csv", format="csv"),
        {"type": "validate", "method": "notNull", "name": "good", "config": config},
        {"type": "load", "method": "toDeltaLake", "config": {"path": "/data/:raw:]/t\\"}},
        extract_file("kept", "/a.csv"),
    )
    write_config(configs, document, "marked[b].json")
    write_config(configs, "{", "bad[b]:key:.json")
    shown = run("plan", "marked")
    assert shown.exit_code == 0, shown.output
    for part in ("marked[b].json", "/aside/:key:", "sink    /data/:raw:]/t\\", "/kept/[b]/:key:/marked/kept"):
        assert part in shown.stdout
    listed = run("list")
    assert listed.exit_code == 0, listed.output
    assert "marked[b].json" in listed.stdout
    assert listed.stdout.count("bad[b]:key:") == 2
    document["steps"][0]["config"]["options"] = {"[x]password": "hunter2"}
    write_config(configs, document, "marked[b].json")
    audited = run("audit-config")
    assert "marked[b].json" in audited.stdout
    assert "options/[x]password" in audited.stdout


def test_plan_tells_what_was_decided(configs: Path) -> None:
    table = {"type": "extract", "method": "fromPostgres", "config": {"table": "t", "registerAs": "rows"}}
    loads = [{"type": "load", "method": "toDeltaLake", "config": {"path": f"/{name}"}} for name in "ab"]
    write_config(configs, batch("decided", table, *loads))
    assert "├── decided kept in memory and on disk until to_delta_lake_2 is done" in run("plan", "decided").stdout


def test_plan_of_an_unknown_pipeline(configs: Path) -> None:
    result = run("plan", "customer-36")
    assert result.exit_code == 1
    assert "did you mean 'customer-360'" in result.stderr


def test_explain_runs_nothing(configs: Path, tmp_path: Path, spark: object) -> None:
    source = tmp_path / "rows.json"
    source.write_text('{"id": 1}\n')
    write_config(
        configs,
        batch("explained", extract_file("rows", f"file://{source}"), transform("filterRows", condition="id > 0")),
    )
    result = run("plan", "explained", "--explain")
    assert result.exit_code == 0, result.output
    assert "explained/filter_rows\n== Physical Plan ==" in result.stdout
    assert not (tmp_path / "warehouse").exists()


def test_explain_can_be_asked_for_again_on_a_server_that_stays(
    configs: Path, tmp_path: Path, spark_connect_server: SparkConnectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "rows.json"
    source.write_text('{"id": 1}\n')
    write_config(configs, batch("explained", extract_file("rows", f"file://{source}")))
    monkeypatch.setenv("SPARK_REMOTE", spark_connect_server.remote)
    for _ in range(2):
        result = run("plan", "explained", "--explain")
        assert result.exit_code == 0, result.output
        assert "explained/rows\n== Physical Plan ==" in result.stdout


@pytest.fixture
def audit(
    configs: Path, tmp_path: Path, postgres: PostgresServer, spark: object, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The audit file, with a pipeline ``with-secrets`` that reads PostgreSQL."""
    table = {"type": "extract", "method": "fromPostgres", "config": {"query": "SELECT 1 AS one"}}
    write_config(configs, batch("with-secrets", table))
    entry = {
        "host": postgres.host,
        "port": postgres.port,
        "database": postgres.database,
        "user": postgres.user,
        "password": "env:EXPLAINED_PASSWORD",
    }
    write_config(configs, {"postgres": {"default": entry}}, "connections.json")
    file = tmp_path / "audit" / "secrets.jsonl"
    monkeypatch.setenv("EXPLAINED_PASSWORD", postgres.password)
    monkeypatch.setenv("PIPELINE_ASSETS_AUDIT_FILE", str(file))
    return file


def test_explain_notes_each_access_to_a_secret(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(reference: Reference) -> str:
        read.append(reference.path)
        return read_local(reference)

    monkeypatch.setattr("pipeline_assets.credentials.secrets.read_local", noted)
    result = run("plan", "with-secrets", "--explain")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {"EXPLAINED_PASSWORD"} == set(read)
    assert [line["path"] for line in lines] == read
    assert {(line["pipeline"], line["step"]) for line in lines} == {("with-secrets", "0 (extract fromPostgres)")}
    assert AuditFile(audit).verify() == (len(read), [])


def test_explain_has_no_secret_that_can_not_be_noted(audit: Path) -> None:
    audit.parent.write_text("a file where the folder is to be")
    result = run("plan", "with-secrets", "--explain")
    assert result.exit_code == 1
    assert "secrets are not given out without it" in result.stderr


def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_ASSETS_CONFIGS", str(tmp_path / "nowhere"))
    for command in (["validate"], ["list"], ["plan", "x"]):
        result = run(*command)
        assert result.exit_code == 1
        assert "PIPELINE_ASSETS_CONFIGS" in result.stderr


def test_a_folder_without_pipelines_is_not_valid(configs: Path) -> None:
    for file in configs.iterdir():
        file.unlink()
    for command in ("validate", "audit-config"):
        result = run(command)
        assert result.exit_code == 1
        assert f"no pipeline in the folder {str(configs)!r}" in result.stderr
    assert run("list").exit_code == 0  # and the location loads: the first pipeline comes later


def test_validate_tells_what_it_passes_over(configs: Path) -> None:
    hidden = (".hidden/x.json", "._event-stream.json", ".#event-stream.json", ".x.JSON", "team/._sub.json")
    for place in ("UPPER.JSON", "team/sub.json", "team/deeper/sub.json", "notes.md", "team/x.txt", *hidden):
        (configs / place).parent.mkdir(parents=True, exist_ok=True)
        (configs / place).write_text("{")
    result = run("validate")
    assert result.exit_code == 0
    assert result.stdout == "2 configs are valid\n"
    told = [line.split(" is not read")[0] for line in result.stderr.splitlines()]
    assert told == [f"warning: {configs}/UPPER.JSON", f"warning: {configs}/team/sub.json"]


def test_validate_tells_what_is_not_waited_for(configs: Path) -> None:
    for name, source, target in (("first", "/a", "/b"), ("second", "/b", "/a")):
        read = {"type": "extract", "method": "fromDeltaLake", "config": {"path": source}}
        write_config(configs, batch(name, read, {"type": "load", "method": "toDeltaLake", "config": {"path": target}}))
    result = run("validate")
    assert result.exit_code == 0
    [line] = result.stderr.splitlines()
    assert re.match(
        r"warning: (first|second)\.json: step 0 reads what (?!\1)\w+ writes, which in turn comes after \1: ", line
    )


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Have permissions bind: to root they do not."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("mode", [0o111, 0o444, 0o000], ids=["not listed", "not entered", "neither"])
def test_a_folder_that_cannot_be_read(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    # From here it is reached without its parents, which are the user's own.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_ASSETS_CONFIGS", "configs")
    commands = (["validate"], ["list"], ["plan", "customer-360"], ["audit-config"])
    for command in commands:
        run(*command)  # whatever they import, while that can be read
    tmp_path.chmod(0o711)
    configs.chmod(mode)
    with as_somebody_else():
        results = [run(*command) for command in commands]
    configs.chmod(0o700)
    for result in results:
        assert result.exit_code == 1, result.output
        assert result.stderr.removeprefix("Error: ") == "the folder 'configs' can't be read: Permission denied\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Planning a stream writes where it starts into its checkpoint.
        (["event-stream", "--explain"], "event-stream is a stream"),
        (["customer-360", "--partition", "a"], "customer-360 has no partitions"),
        (["by-day", "--explain"], "give --partition"),
        (["by-day", "--partition", "monday"], "'monday' is no key of the daily partitions of by_day"),
        (["by-day", "--partition", "2023-12-31"], "by now there are '2024-01-01' to '20"),
        (["by-day", "--partition", "2999-01-01"], "by now there are '2024-01-01' to '20"),
        (["by-week", "--partition", "2024-01-07"], "by now there are '2024-01-01' to '20"),
        (["one-day", "--partition", "2999-01-01"], "there is none, as they start at 2999-01-01"),
        (["by-place", "--partition", "berln"], "there is no partition 'berln', did you mean 'berlin'?"),
        (["broken"], "/steps"),
    ],
)
def test_plan_says_what_it_cannot_plan(configs: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    rows = extract_file("rows", "/in/${partition}.csv")
    write_config(configs, batch("by-day", rows, partitions={"type": "daily", "start": "2024-01-01"}))
    write_config(configs, batch("by-week", rows, partitions={"type": "weekly", "start": "2024-01-01"}))
    write_config(configs, batch("one-day", rows, partitions={"type": "daily", "start": "2999-01-01"}))
    write_config(configs, batch("by-place", rows, partitions={"type": "static", "values": ["berlin", "rome"]}))
    write_config(configs, batch("broken"))
    before = sorted(tmp_path.rglob("*"))
    result = run("plan", *arguments)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_shows_where_rows_are_put_aside(configs: Path) -> None:
    config = {"columns": ["id"], "onFailure": "quarantine"}
    step = {"type": "validate", "method": "notNull", "name": "good", "config": config}
    write_config(configs, batch("sorted", extract_file("a", "/a.csv"), step))
    result = run("plan", "sorted")
    assert result.exit_code == 0
    assert "sorted/good  validate notNull  (table)" in result.stdout
    assert "sorted/good_quarantine: rows in quarantine, " in result.stdout


@pytest.mark.parametrize("command", ["start", "status", "stop"])
@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_spark_server_has_a_port_that_there_is(command: str, port: str) -> None:
    refused = run("spark-server", command, "--port", port)
    assert refused.exit_code == 2
    assert "not in the range 1<=x<=65535" in refused.stderr


def test_metrics_are_served_at_a_port_that_there_is() -> None:
    refused = run("metrics", "serve", "--port", "65536")
    assert refused.exit_code == 2
    assert "not in the range 0<=x<=65535" in refused.stderr


_POSTGRES = """
storage:
  postgres:
    postgres_db: {username: me, password: hunter2, hostname: 127.0.0.1, port: 1, db_name: dagster}
"""


@pytest.mark.parametrize(
    ("dagster_yaml", "told"),
    [
        pytest.param(_POSTGRES, 'connection to server at "127.0.0.1", port 1 failed', id="no database"),
        pytest.param("storage: [a\n", 'dagster.yaml", line 1, column 10', id="no YAML"),
        pytest.param("[1, 2]\n", "to parse to dictionary", id="a list"),
        pytest.param("storrage: {}\n", 'unexpected config entry "storrage"', id="another key"),
        pytest.param(
            "run_storage: {module: of_nobody, class: Runs, config: {}}\n", "import module of_nobody", id="no package"
        ),
        pytest.param(None, "Is a directory", id="a folder"),
        pytest.param("", "file is not a database", id="broken files"),
    ],
)
def test_a_report_without_an_instance(
    dagster_yaml: str | None, told: str, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which waits between its tries.
    monkeypatch.setattr("dagster_postgres.utils.time", SimpleNamespace(sleep=lambda _: None))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    if dagster_yaml is None:
        (home / "dagster.yaml").mkdir()
    else:
        (home / "dagster.yaml").write_text(dagster_yaml)
    if dagster_yaml == "":
        (home / "history").mkdir()
        (home / "history" / "runs.db").write_text("rows " * 1000)
    result = run("report", "customer-360")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Error: Dagster's instance can't be read: ")
    assert told in said
    assert "hunter2" not in result.output


def test_a_report_has_the_name_that_those_of_runs_have(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    @dg.job
    def customer_360() -> None:
        dg.op(name="customer_360__customers")(lambda: None)()

    with dg.DagsterInstance.get() as instance:
        run_id = customer_360.execute_in_process(instance=instance).run_id
    of_run = report_file(Settings(reports=tmp_path), "customer_360", run_id)
    result = run("report", "customer-360")
    assert result.stdout.strip() == f"customer_360-{run_id[:8]}.html", result.output
    assert of_run is not None
    assert of_run.name.startswith(result.stdout.strip().removesuffix(".html"))
    assert "customer-360" in (tmp_path / result.stdout.strip()).read_text()


def test_sql_is_checked_where_runs_have_a_remote(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1:1")
    output = in_fresh_process("""
        from click.testing import CliRunner
        from pipeline_assets.cli import main

        print(CliRunner().invoke(main, ["validate", "--with-spark"]).output)
    """)
    assert output.strip() == "2 configs are valid"
