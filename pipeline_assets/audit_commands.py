"""The commands of ``pipeline-assets`` for whoever answers for secrets: ``audit-config`` and ``audit verify``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from pipeline_assets.command_line import clear_errors, console
from pipeline_assets.config_files import CONNECTIONS_FILE, is_there, no_pipelines_error, pipeline_files
from pipeline_assets.credentials.audit import AuditFile
from pipeline_assets.credentials.policy import SecretsPolicy, connection_issues, pipeline_issues
from pipeline_assets.errors import ConfigIssue, ConfigurationError
from pipeline_assets.json_documents import parse_json
from pipeline_assets.settings import Settings
from pipeline_assets.variables import substitute


@click.command("audit-config")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def audit_config(folder: Path | None, as_json: bool) -> None:
    """Check the configs of FOLDER (default: the configs folder) against the policy vault-only.

    It need not be in force. Exit code 0 when nothing breaks it, 1 otherwise. Nothing is run, and no secret is looked
    up; a file that can't be read breaks the policy, too.
    """
    where = folder or Settings.from_environment().configs
    with clear_errors():
        files = [*pipeline_files(where), *(path for path in [where / CONNECTIONS_FILE] if is_there(path))]
        if not files:
            raise no_pipelines_error(where)
    issues = [issue for path in files for issue in _issues(path)]
    if as_json:
        found = [{"file": it.file, "pointer": it.pointer, "reason": it.message} for it in issues]
        names = [path.name for path in files]
        result = {"policy": str(SecretsPolicy.VAULT_ONLY), "ok": not issues, "files": names, "violations": found}
        click.echo(json.dumps(result, indent=2))
    elif issues:
        _print_table(issues)
    else:
        click.echo(f"{len(files)} files keep to the policy {SecretsPolicy.VAULT_ONLY}")
    sys.exit(1 if issues else 0)


@click.group()
def audit() -> None:
    """The audit file, in which each access to a secret is noted (PIPELINE_ASSETS_AUDIT_FILE)."""


@audit.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(file: Path | None, as_json: bool) -> None:
    """Find lines of the audit file FILE that were changed, removed or moved.

    Exit code 0 when there are none, 1 otherwise.
    """
    path = file or Settings.from_environment().audit_file
    if path is None:
        raise click.UsageError("name the audit FILE, or set PIPELINE_ASSETS_AUDIT_FILE")
    with clear_errors():
        count, problems = AuditFile(path).verify()
    if as_json:
        found = [{"line": problem.line, "problem": problem.message} for problem in problems]
        click.echo(json.dumps({"file": str(path), "ok": not problems, "lines": count, "problems": found}, indent=2))
    elif problems:
        for problem in problems:
            click.echo(f"{path}: {problem}", err=True)
    else:
        click.echo(f"{path}: {count} lines, none changed, removed or moved")
    sys.exit(1 if problems else 0)


def _issues(path: Path) -> Iterator[ConfigIssue]:
    try:
        # Variables that are not set stay as they are: CI has not what a run has.
        document = substitute(parse_json(path.name, path.read_bytes()), os.environ, lambda name, at: None)
    except ConfigurationError as error:
        yield from error.issues
    except OSError as error:
        yield ConfigIssue(path.name, "", f"cannot be read: {error.strerror}")
    else:
        yield from (connection_issues if path.name == CONNECTIONS_FILE else pipeline_issues)(path.name, document)


def _print_table(issues: list[ConfigIssue]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("file", "pointer", "reason"):
        table.add_column(column, overflow="fold")
    for issue in issues:
        table.add_row(*map(Text, (issue.file, issue.pointer or "/", issue.message)))  # a str is read as markup
    console().print(table)
