"""Every example of the documentation does what it is shown for. One that nobody looks at fails."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import jsonschema
import pytest
import yaml
from prometheus_client import generate_latest
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline_assets.config import PipelineConfig, Retry, Sensor, StepEnvelope
from pipeline_assets.config_loading import load_file
from pipeline_assets.connections import ConnectionsFile, KafkaConnection, PostgresConnection, S3Connection
from pipeline_assets.connections_loading import load_connections
from pipeline_assets.metrics.prometheus import RunMetrics
from pipeline_assets.metrics.records import Kind, MetricsRecord
from pipeline_assets.partitions import Partitions
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.sql_check import sql_issues
from pipeline_assets.steps import ENTRY_POINT_GROUP, METHODS
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets_tests.config_documents import EVENT_STREAM, batch, extract_file, write_config
from pipeline_assets_tests.docs.command_lines import is_ours, problems
from pipeline_assets_tests.docs.pages import PAGES, PROJECT, Example, commands, examples, inline_code, matches
from pipeline_assets_tests.docs.shell import shell
from pipeline_assets_tests.integration.delta_tables import rows_of
from pipeline_assets_tests.integration.location import Location
from pipeline_assets_tests.openlineage.event_schema import FACETS, KEYS
from pipeline_assets_tests.openlineage.event_schema import problems as lineage_problems

ALL = [example for page in PAGES for example in examples(page)]
# test_tutorial.py saves and runs the others of the tutorial.
CHECKED = [
    example
    for example in ALL
    if (example.page != "docs/tutorial.md" or example.language in ("json", "yaml"))
    and (example.page, example.language) != ("docs/logs.md", "python")
]
# What the variables in examples are, where examples are read.
VARIABLES = {"PGHOST": "db.example.com"}
MODELS: tuple[type[BaseModel], ...] = (
    PipelineConfig, Sensor, Retry, Partitions, StepEnvelope, ConnectionsFile, PostgresConnection, S3Connection,
    KafkaConnection, *METHODS,
)  # fmt: skip


def pipeline_in(example: Example) -> dict[str, Any] | None:
    """Return the pipeline that an example is, or would be a part of: a step, or some of the first keys."""
    document = json.loads(example.text if example.text.startswith("{") else f"{{{example.text}}}")
    keys = {field.alias or name for name, field in PipelineConfig.model_fields.items()}
    if "method" in document:
        return batch(
            "example", extract_file("customers", "/customers.csv"), extract_file("rows", "/rows.csv"), document
        )
    if "steps" in document:
        return dict(document)
    if set(document) <= keys:
        start = EVENT_STREAM if "sensor" in document else batch("example", extract_file("rows", "/rows.csv"))
        return {**start, **document}
    return None


def load(document: Mapping[str, Any], folder: Path) -> Pipeline:
    return plan_pipeline(load_file(write_config(folder, document), VARIABLES)).pipeline


def check_json(example: Example, folder: Path) -> None:
    pipeline = pipeline_in(example)
    if pipeline is not None:
        load(pipeline, folder)
        schema = json.loads((PROJECT / "configs" / "pipeline.schema.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(pipeline)
        return
    document = json.loads(example.text)
    if "kind" in document:
        check_metrics_line(example, document)
        return
    if "eventType" in document:
        assert lineage_problems(with_the_rest(document)) == []
        return
    if "ts" in document:
        check_log_line(example, document)
        return
    assert set(document) <= set(ConnectionsFile.model_fields), f"{example} is no JSON that anybody checks"
    (folder / "connections.json").write_text(example.text)
    assert set(load_connections(folder, VARIABLES).file.model_fields_set) == set(document)


def check_metrics_line(example: Example, document: dict[str, Any]) -> None:
    record = MetricsRecord.parse(json.dumps(document))
    assert record is not None
    assert json.loads(record.line()) == document
    assert datetime.fromisoformat(document["time"]).tzinfo is not None
    assert record.kind in get_args(Kind)
    named = set(inline_code(PROJECT / example.page))
    assert set(record.numbers) <= named


def with_the_rest(event: dict[str, Any]) -> dict[str, Any]:
    """Return a lineage event with what each facet has beside what it tells."""
    producer = event["producer"]
    schemas = {KEYS[cls.__name__]: url for url, cls in FACETS.items() if cls.__name__ in KEYS}
    for owner in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
        for facets in (owner.get(name, {}) for name in ("facets", "inputFacets", "outputFacets")):
            for name, facet in facets.items():
                facet |= {"_producer": producer, "_schemaURL": schemas[name]}
    return {**event, "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"}


def check_log_line(example: Example, document: dict[str, Any]) -> None:
    from pyspark.logger import SPARK_LOG_SCHEMA

    assert set(document) - {"run_id", "pipeline"} <= set(re.findall(r"(?:^|, )(\w+) ", SPARK_LOG_SCHEMA))
    named = " ".join(inline_code(PROJECT / example.page))
    assert [name for name in document["context"] if f".{name}" not in named] == []


def check_log(example: Example, folder: Path) -> None:
    form = re.compile(
        r"[-\d]{10} [:\d]{8} [+]0000 - (dagster|spark\.\w+) - (INFO|WARN|ERROR) - \w+ - [-0-9a-f]{36} - .+\]$"
    )
    lines = example.text.splitlines()
    assert lines
    assert [line for line in lines if not form.match(line)] == []


def check_properties(example: Example, folder: Path) -> None:
    assert all(re.fullmatch(r"[\w.]+ \S+", line) for line in example.text.splitlines())


def check_commands(example: Example, folder: Path) -> None:
    assert list(problems(example.text)) == []


def check_session(example: Example, folder: Path) -> None:
    """Run it where a pipeline has the mistake that the README speaks of."""
    (folder / "configs").mkdir()
    mistaken = {"type": "extract", "method": "fromPostgres", "config": {"tabel": "orders"}}
    write_config(folder / "configs", json.dumps(batch("orders", mistaken), indent=2), "orders.json")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with shell(folder, {name: value for name, value in environment.items() if "PIPELINE_ASSETS" not in name}) as reader:
        for command, shown in commands(example):
            output = reader.run(command)[1]
            assert shown is not None
            assert matches(shown, output), output


def check_python(example: Example, folder: Path) -> None:
    exec(compile(example.text, str(example), "exec"), {"__name__": "example"})


def check_yaml(example: Example, folder: Path) -> None:
    assert list(yaml.safe_load_all(example.text)) != [None]


def check_toml(example: Example, folder: Path) -> None:
    assert tomllib.loads(example.text)


def check_promql(example: Example, folder: Path) -> None:
    rules = {"groups": [{"name": "example", "rules": [{"record": "example", "expr": example.text}]}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    recorded = set(re.findall(r"^# TYPE (\S+)", generate_latest(RunMetrics().registry).decode(), re.MULTILINE))
    assert set(re.findall(r"pipeline_assets_\w+", example.text)) <= recorded


def check_modules(example: Example, folder: Path) -> None:
    """Hold that the tree of CONTRIBUTING.md names what there is, all of it and nothing else."""
    package = {path.name for path in (PROJECT / "pipeline_assets").iterdir() if path.suffix == ".py" or path.is_dir()}
    indented = [line for line in example.text.splitlines() if line.startswith("  ")]
    named = {name for line in indented for name in re.findall(r"(\w+(?:\.py|/))(?:[ ,:;]|$)", line)}
    there = {name if name.endswith(".py") else f"{name}/" for name in package - {"__init__.py", "__pycache__"}}
    inside = {path.name for path in (PROJECT / "pipeline_assets").glob("*/*.py")}
    assert named - inside == there


CHECKS: dict[str, Callable[[Example, Path], None]] = {
    "json": check_json,
    "sh": check_commands,
    "console": check_session,
    "python": check_python,
    "yaml": check_yaml,
    "toml": check_toml,
    "log": check_log,
    "properties": check_properties,
    "promql": check_promql,
    "text": check_modules,
}


@pytest.mark.parametrize("example", CHECKED, ids=str)
def test_an_example(example: Example, tmp_path: Path) -> None:
    check = CHECKS.get(example.language)
    assert check is not None, f"{example}: nobody checks a block of {example.language or 'no language'}"
    check(example, tmp_path)


def test_there_are_examples_of_all_kinds() -> None:
    """A check that meets no example checks nothing."""
    assert {example.language for example in CHECKED} == set(CHECKS)


def test_the_sql_in_examples(tmp_path: Path, spark: Any) -> None:
    pipelines = [pipeline_in(example) for example in ALL if example.language == "json"]
    loaded = [load(pipeline, tmp_path) for pipeline in pipelines if pipeline is not None]
    assert len(loaded) > 5
    assert list(sql_issues(loaded, spark)) == []


def test_logs_are_read_by_spark(tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (line,) = [example for example in ALL if (example.page, example.language) == ("docs/logs.md", "json")]
    (program,) = [example for example in ALL if (example.page, example.language) == ("docs/logs.md", "python")]
    (tmp_path / "run.log").write_text(json.dumps(json.loads(line.text)))
    text = program.text.replace('"run.log"', repr(str(tmp_path / "run.log")))
    assert text != program.text
    exec(compile(text, str(program), "exec"), {"spark": spark})
    assert json.loads(line.text)["msg"][:15] in capsys.readouterr().out


def inline_commands() -> list[Any]:
    found = {(page.name, code) for page in PAGES for code in inline_code(page) if is_ours(code)}
    return sorted(found)


@pytest.mark.parametrize(("page", "command"), inline_commands())
def test_a_command_within_the_text(page: str, command: str) -> None:
    assert list(problems(command)) == []


def inline_json() -> Iterator[Any]:
    for page in PAGES:
        for code in sorted(set(inline_code(page))):
            if re.match(r'\{|"[\w$]+": ', code):
                yield pytest.param(code, id=f"{page.name}: {code}")


@pytest.mark.parametrize("code", inline_json())
def test_json_within_the_text(code: str) -> None:
    """Some model has these keys, and takes these values."""
    document = json.loads(code if code.startswith("{") else f"{{{code}}}")
    if "expect" in document:
        model = next(method for method in METHODS if method.type == "validate" and method.method == document["expect"])
        model.model_validate({key: value for key, value in document.items() if key != "expect"})
        return
    assert any(takes(model, document) for model in MODELS) or is_a_value(document), code


def takes(model: type[BaseModel], document: Mapping[str, Any]) -> bool:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    try:
        for key, value in document.items():
            field = fields[key]
            TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except (KeyError, ValidationError):
        return False
    return True


def is_a_value(document: Mapping[str, Any]) -> bool:
    """Return whether one of the keys whose values may be objects takes this one."""
    pipeline = PipelineConfig.model_fields
    for field in (pipeline["schedule"], pipeline["spark_conf"], FromKafka.model_fields["starting_offsets"]):
        try:
            TypeAdapter(field.rebuild_annotation()).validate_python(document)
        except ValidationError:
            continue
        return True
    return False


def test_a_method_as_contributing_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: Any) -> None:
    """As a package of its own: found by its entry point, and run in a pipeline."""
    shown = {example.language: example.text for example in examples(PROJECT / "CONTRIBUTING.md")}
    declared = tomllib.loads(shown["toml"])["project"]["entry-points"]
    assert list(declared) == [ENTRY_POINT_GROUP]
    ((name, target),) = declared[ENTRY_POINT_GROUP].items()
    site = tmp_path / "site"
    module = site / f"{target.split(':')[0].replace('.', '/')}.py"
    module.parent.mkdir(parents=True)
    module.write_text(shown["python"])
    information = site / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(site)
    assert target in {entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}

    numbers = tmp_path / "numbers.csv"
    numbers.write_text("number\n1\n2\n3\n")
    limit = {"type": "transform", "method": name, "name": "first", "config": {"rows": 2}}
    with dg.DagsterInstance.ephemeral(str(tmp_path / "instance")) as instance:
        location = Location(tmp_path, instance)
        for variable, value in location.environment.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.delenv("PIPELINE_ASSETS_PATH_PREFIX")
        location.write(batch("limited", extract_file("numbers", str(numbers)), limit))
        location.run("limited")
    found = rows_of(location.table("limited", "first"))["number"].tolist()
    assert len(found) == 2
    assert set(found) <= {1, 2, 3}
