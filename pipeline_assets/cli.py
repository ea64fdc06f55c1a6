"""The command line ``pipeline-assets``; what there is, its ``--help`` says."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pipeline_assets.audit_commands import audit, audit_config
from pipeline_assets.command_line import clear_errors, console
from pipeline_assets.config_files import CONNECTIONS_FILE, OTHER_FILES, is_there, no_pipelines_error
from pipeline_assets.config_loading import load_files, load_folder
from pipeline_assets.config_schema import connections_schema, pipeline_schema, step_reference
from pipeline_assets.connections_loading import load_connections, unknown_connections
from pipeline_assets.errors import ConfigurationError, did_you_mean
from pipeline_assets.json_lines import JsonLines
from pipeline_assets.links import left_out, link_pipelines
from pipeline_assets.metrics_commands import metrics
from pipeline_assets.optimizer import optimize
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.planned_folder import PlannedFolder, plan_folder, select, unknown_pipelines
from pipeline_assets.planner import plan_pipeline
from pipeline_assets.redaction import redact
from pipeline_assets.report_commands import report
from pipeline_assets.settings import Settings
from pipeline_assets.spark_server_commands import spark_server


@click.group()
@click.version_option(package_name="pipeline-assets")
def main() -> None:
    """Spark pipelines from JSON configs, as Dagster assets."""


main.add_command(audit_config)
main.add_command(audit)
main.add_command(metrics)
main.add_command(spark_server)
main.add_command(report)


@main.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--with-spark", is_flag=True, help="Also have Spark's parser check all SQL (starts Java, opens nothing).")
def validate(files: tuple[Path, ...], with_spark: bool) -> None:
    """Check configs without running anything: FILES, or all of the configs folder with its connections.

    Of FILES it is not looked at whether there are the connections that they name, nor at what other files hold.

    Prints every error as `file:line: JSON pointer: what is wrong`. Exit code 0 when there is none, 1 otherwise.
    """
    for folder in (path for path in files if path.is_dir()):
        raise click.UsageError(f"{folder} is a folder: give its files, or set PIPELINE_ASSETS_CONFIGS to it")
    valid: list[Pipeline] = []
    errors = list(_file_errors(files, valid)) if files else list(_folder_errors(valid))
    if with_spark and valid:
        with clear_errors():
            errors += _sql_errors(valid)
    for line in _told(errors, Path() if files else Settings.from_environment().configs):
        click.echo(line, err=True)
    if errors:
        sys.exit(1)
    count = len(files) or len(valid)
    click.echo("1 config is valid" if count == 1 else f"{count} configs are valid")


@main.command()
@click.option("--connections", is_flag=True, help="Print the JSON Schema of connections.json instead.")
@click.option("--reference", is_flag=True, help="Print the reference of the step methods as Markdown instead.")
def schema(connections: bool, reference: bool) -> None:
    """Print the JSON Schema of pipeline configs."""
    if connections and reference:
        raise click.UsageError("--connections and --reference are two texts: give one of them")
    found = connections_schema if connections else pipeline_schema
    click.echo(step_reference().rstrip() if reference else json.dumps(found(), indent=2))


@main.command("archive-classes")
def archive_classes() -> None:
    """Prepare Spark's classes for this Java, once, so that runs start in less time (takes some 20 seconds)."""
    from pipeline_assets.spark.class_archive import make_archive
    from pipeline_assets.spark.session_conf import driver_jars, session_conf

    with clear_errors():
        made = make_archive(session_conf(Settings(spark_master="local[2]")), driver_jars())
    click.echo(f"{made} ({made.stat().st_size // 2**20} MB)")


@main.command("list")
def list_() -> None:
    """List the pipelines of the configs folder."""
    with clear_errors():
        folder = _planned()
    table = Table(box=None, pad_edge=False)
    for column in ("pipeline", "mode", "steps", "schedule", "job", "file"):
        table.add_column(column, overflow="fold")
    for plan in folder.plans:
        config = plan.pipeline.config
        cron = config.cron_schedule.cron if config.cron_schedule else "-"
        cells = (config.name, config.mode, str(len(plan.steps)), cron, plan.name, plan.pipeline.file)
        table.add_row(*map(Text, cells))
    for broken in folder.broken:
        table.add_row(Text(broken.name), Text("broken", "red"), "-", "-", "-", Text(broken.file))
    console().print(table)
    if folder.broken:
        click.echo("run `pipeline-assets validate` to see what is wrong with the broken ones", err=True)


@main.command()
@click.argument("name")
@click.option(
    "--explain", is_flag=True, help="Also show Spark's plan of each DataFrame (opens the sources, runs nothing)."
)
@click.option("--partition", help="The partition to plan, for a partitioned pipeline.")
def plan(name: str, explain: bool, partition: str | None) -> None:
    """Show the asset graph of the pipeline NAME, with its sources and sinks."""
    with clear_errors():
        found = select(_planned(), name)
        if explain and found.is_streaming:
            raise ConfigurationError(f"{name} is a stream: --explain is for batches, as planning it is a first start")
        if partition is not None:
            found = _in_partition(found, partition)
        elif explain and found.pipeline.config.partitions is not None:
            raise ConfigurationError(f"{name} is partitioned: give --partition, the key of the one to explain")
        console().print(_tree(found))
        if explain:
            _explain(found, partition)


def _in_partition(plan: PipelinePlan, key: str) -> PipelinePlan:
    from pipeline_assets.dagster_partitions import partitions_definition

    partitions = plan.pipeline.config.partitions
    if partitions is None:
        raise ConfigurationError(f"{plan.pipeline.config.name} has no partitions: leave --partition out")
    if partitions.type == "static" and key not in partitions.values:
        near = did_you_mean(key, partitions.values)
        raise ConfigurationError(f"there is no partition {key!r}{near} (partitions: {', '.join(partitions.values)})")
    definition = partitions_definition(partitions)
    if definition is not None and not definition.has_partition_key(key):
        first, last = definition.get_first_partition_key(), definition.get_last_partition_key()
        there = (
            f"by now there are {first!r} to {last!r}"
            if first
            else f"by now there is none, as they start at {partitions.start}"
        )
        raise ConfigurationError(f"{key!r} is no key of the {partitions.type} partitions of {plan.name}: {there}")
    partitions.check_key(key)
    return plan_pipeline(plan.pipeline.for_partition(key))


def _tree(plan: PipelinePlan) -> Tree:
    config = plan.pipeline.config
    decided = optimize(plan)
    # Of Text, as Rich reads markup and emoji in a str: a path has brackets and colons of its own.
    tree = Tree(Text.assemble((config.name, "bold"), f" ({config.mode}, job {plan.name}, {plan.pipeline.file})"))
    for step in plan.steps:
        takes = ", ".join(f"{plan.name}/{plan.steps[index].name}" for index in step.inputs)
        shown = f"  {step.method.type} {step.method.method}  ({step.role.value})"
        branch = tree.add(Text.assemble((f"{plan.name}/{step.name}", "bold"), shown))
        if takes:
            branch.add(Text(f"from    {takes}"))
        told = decided.told(plan, step)
        if told is not None:
            branch.add(Text(f"decided {told}"))
        for source in step.method.sources():
            branch.add(Text(f"source  {redact(source.uri)}"))
        for sink in step.method.sinks():
            branch.add(Text(f"sink    {redact(sink.uri)}"))
        if step.quarantine is not None:
            aside = f"{plan.name}/{step.quarantine}: rows in quarantine, {_quarantine_path(plan, step)}"
            branch.add(Text(f"aside   {aside}"))
        if step.role is Role.TABLE:
            branch.add(Text(f"table   {Settings.from_environment().table_path(plan.name, step.name)}"))
    return tree


def _quarantine_path(plan: PipelinePlan, step: PlannedStep) -> str:
    own = step.validate_method.quarantine_path
    return own or Settings.from_environment().table_path(plan.name, step.quarantine or "")


def _explain(plan: PipelinePlan, partition: str | None) -> None:
    from pipeline_assets.credentials.secrets import Consumer, Secrets
    from pipeline_assets.execution import PipelineRun
    from pipeline_assets.spark.caching import DataFrameCache
    from pipeline_assets.spark.description import describe
    from pipeline_assets.spark.session import SparkSessions
    from pipeline_assets.steps.base import StepContext
    from pipeline_assets.steps.paths import option_texts
    from pipeline_assets.vault_resource import audit_file

    settings = Settings.from_environment()
    partitions = plan.pipeline.config.partitions
    connections = load_connections(settings.configs)
    consumer = Consumer(pipeline=plan.pipeline.config.name)
    # A Spark Connect server opens no session again under an id that has been closed.
    run_id = f"explain-{uuid.uuid4()}"
    secrets = Secrets(connections.secrets.policy, audit=audit_file(settings), consumer=consumer)
    with SparkSessions(settings) as sessions, secrets:
        run = PipelineRun(
            plan,
            StepContext(
                pipeline=plan.name,
                run_id=run_id,
                spark=sessions.session(run_id, plan.name, option_texts(plan.pipeline.config.spark_conf)),
                settings=settings,
                connections=dataclasses.replace(connections, secrets=secrets),
                cache=DataFrameCache(),
                partition=partitions.slice(partition) if partitions and partition else None,
            ),
        )
        for step in plan.steps:
            if step.has_dataframe:
                click.echo(f"\n{plan.name}/{step.name}\n{describe(run.build(step)).plan}")
        run.context.cache.release()


def _planned() -> PlannedFolder:
    return plan_folder(load_folder(_checked_settings().configs))


def _checked_settings() -> Settings:
    """Return what the environment says. Raises ConfigurationError for what keeps the code location from loading."""
    settings = Settings.from_environment()
    settings.check()
    return settings


def _sql_errors(pipelines: list[Pipeline]) -> list[ConfigurationError]:
    from pipeline_assets.spark.java_options import without_remote
    from pipeline_assets.spark.session import SparkSessions
    from pipeline_assets.sql_check import sql_issues

    # Spark's parser is in the JVM: a Spark Connect server has no call for it.
    settings = dataclasses.replace(Settings.from_environment(), spark_remote=None, spark_master="local[1]")
    with without_remote(), SparkSessions(settings) as sessions:
        issues = sql_issues(pipelines, sessions.session("validate", "validate"))
        return [ConfigurationError.from_issues([issue]) for issue in issues]


def _file_errors(files: tuple[Path, ...], valid: list[Pipeline]) -> Iterator[ConfigurationError]:
    """Yield what is wrong with ``files``, and add the pipelines that are not to ``valid``."""
    for folder in load_files(file for file in files if file.name not in OTHER_FILES):
        planned = plan_folder(folder)
        valid += [plan.pipeline for plan in planned.plans]
        yield from (broken.error for broken in planned.broken)
    for file in files:
        if file.name == CONNECTIONS_FILE:
            try:
                load_connections(file.parent)
            except ConfigurationError as error:
                named = [dataclasses.replace(issue, file=str(file)) for issue in error.issues]
                yield ConfigurationError.from_issues(named) if named else error


def _folder_errors(valid: list[Pipeline]) -> Iterator[ConfigurationError]:
    """Yield what is wrong in the configs folder, and add the pipelines that are not to ``valid``."""
    try:
        folder = _checked_settings().configs
        planned = plan_folder(load_folder(folder))
        valid += [plan.pipeline for plan in planned.plans]
        yield from (broken.error for broken in planned.broken)
        yield from (ConfigurationError.from_issues([issue]) for issue in unknown_pipelines(planned))
        for warning in (*_passed_over(folder), *_not_waited_for(planned)):
            click.echo(f"warning: {warning}", err=True)
        if not planned.plans and not planned.broken:
            yield no_pipelines_error(folder)
        connections = load_connections(folder)
    except ConfigurationError as error:
        yield error
        return
    # Without the file, it is somewhere else that the connections are.
    if is_there(folder / CONNECTIONS_FILE):
        issues = [issue for pipeline in valid for issue in unknown_connections(pipeline, connections)]
        yield from (ConfigurationError.from_issues([issue]) for issue in issues)


def _told(errors: list[ConfigurationError], folder: Path) -> Iterator[str]:
    """Yield what is printed of ``errors``, whose files are named as seen from ``folder``."""
    files = {issue.file for error in errors for issue in error.issues}
    lines = {file: _lines(folder / file) for file in files}
    for error in errors:
        if not error.issues:
            yield str(error)
        for issue in error.issues:
            found = lines[issue.file]
            place = issue.file if found is None else f"{issue.file}:{found.line_of(issue.pointer)}"
            yield str(dataclasses.replace(issue, file=place))


def _lines(path: Path) -> JsonLines | None:
    try:
        return JsonLines(path.read_bytes())
    except OSError:  # an issue says so
        return None


def _passed_over(folder: Path) -> Iterator[str]:
    """Yield what looks like a pipeline in or below ``folder``, and is not read as one."""
    misspelled = (path for path in folder.glob("[!.]*") if path.suffix != ".json" and path.suffix.lower() == ".json")
    for path in sorted(path for path in (*misspelled, *folder.glob("[!.]*/[!.]*.json")) if path.is_file()):
        yield f"{path} is not read: a pipeline is a *.json (in lower case) in {folder} itself"


def _not_waited_for(planned: PlannedFolder) -> Iterator[str]:
    """Yield what a pipeline reads of another that comes after it."""
    for plan, step, link in left_out(planned.plans, link_pipelines(planned.plans)):
        yield (
            f"{plan.pipeline.file}: step {step.index} reads what {link.upstream} writes, which in turn comes after "
            f"{plan.name}: Dagster takes no circles, so {plan.name} does not wait for it"
        )
