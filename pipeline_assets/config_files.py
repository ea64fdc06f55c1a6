"""Which files there are in a folder of configs, and their JSON with variables put in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_assets.errors import ConfigIssue, ConfigurationError
from pipeline_assets.json_documents import parse_json
from pipeline_assets.parsed_files import NotedVariables
from pipeline_assets.variables import substitute

CONNECTIONS_FILE = "connections.json"
SCHEMA_FILE = "pipeline.schema.json"
CONNECTIONS_SCHEMA_FILE = "connections.schema.json"
OTHER_FILES = (CONNECTIONS_FILE, SCHEMA_FILE, CONNECTIONS_SCHEMA_FILE)
"""The files in a folder of configs that hold something else, by name."""


def pipeline_files(folder: Path) -> list[Path]:
    """Return the files in ``folder`` that hold pipelines, by name.

    Raises ConfigurationError without a folder, and for one that can't be read.
    """
    try:
        # Not by Path.glob, to which a folder that it may not list is an empty one.
        names = os.listdir(folder)
        # Fails where its files can be listed and not opened. A Path leaves the dot out.
        os.stat(os.path.join(folder, "."))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(
            f"there is no folder {str(folder)!r} with pipeline configs: make it, or set PIPELINE_ASSETS_CONFIGS"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the folder {str(folder)!r} can't be read: {error.strerror}") from error
    # Hidden ones are those of others: macOS and Emacs make them beside the files that are edited.
    shown = (name for name in names if name.endswith(".json") and not name.startswith("."))
    return sorted(folder / name for name in shown if name not in OTHER_FILES)


def no_pipelines_error(folder: Path) -> ConfigurationError:
    """Return the error of a check that finds nothing to look at in ``folder``: another one is meant, most likely."""
    return ConfigurationError(
        f"there is no pipeline in the folder {str(folder)!r}: each is a *.json (in lower case) directly in it"
    )


def is_there(path: Path) -> bool:
    """Whether there is such a file. One that can't be looked at counts as there: who reads it is told why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def document_of(path: Path) -> dict[str, Any]:
    """Return the JSON in ``path``, as it is written. Raises ConfigurationError for what can't be read."""
    return parse_json(path.name, content_of(path, path.name))


def content_of(path: Path, file: str) -> bytes:
    """Return what is in ``path``, which errors call ``file``. Raises ConfigurationError for what can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError.from_issues([ConfigIssue(file, "", f"cannot be read: {error.strerror}")]) from error


def variables_of(environment: Mapping[str, str] | None, hidden: tuple[str, ...] = ()) -> NotedVariables:
    """Return the variables of ``environment``, of this process when left out, but those that are ``hidden``."""
    return NotedVariables(os.environ if environment is None else environment, hidden)


def with_variables(
    file: str, written: dict[str, Any], variables: Mapping[str, str], keep: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[ConfigIssue]]:
    """Return what is ``written`` with the variables put in but those to ``keep``, and an issue for each not set."""
    issues: list[ConfigIssue] = []

    def missing(name: str, at: str) -> None:
        if name not in keep:
            message = f"environment variable {name} is not set (set it, or write ${{{name}:-default}})"
            issues.append(ConfigIssue(file, at, message))

    def malformed(message: str, at: str) -> None:
        issues.append(ConfigIssue(file, at, message))

    return substitute(written, variables, missing, keep, malformed), issues
