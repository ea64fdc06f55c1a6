"""Loading configs from files: no broken one keeps the others from loading."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline_assets.config_files import content_of, pipeline_files, variables_of, with_variables
from pipeline_assets.connections_loading import secrets_policy
from pipeline_assets.credentials.policy import SecretsPolicy, pipeline_issues
from pipeline_assets.errors import ConfigIssue, ConfigurationError, error_line
from pipeline_assets.json_documents import parse_json
from pipeline_assets.parsed_files import NotedVariables, ParsedFiles
from pipeline_assets.pipeline_documents import (
    RUN_VARIABLES,
    InvalidPipelineError,
    MethodRegistry,
    Pipeline,
    read_pipeline,
    without_issues,
)
from pipeline_assets.spark.failures import original_error
from pipeline_assets.steps import method_registry

_log = logging.getLogger(__name__)
_PARSED = ParsedFiles[Pipeline]()


@dataclass(frozen=True)
class BrokenConfig:
    """A config that could not be loaded, and why. ``name`` is the pipeline's, or else the file's without extension."""

    file: str
    name: str
    error: ConfigurationError


@dataclass(frozen=True)
class ConfigFolder:
    """What a folder of configs holds; one that is broken never keeps the others from loading."""

    pipelines: tuple[Pipeline, ...]
    broken: tuple[BrokenConfig, ...]


def load_folder(folder: Path, environment: Mapping[str, str] | None = None) -> ConfigFolder:
    """Load every ``*.json`` in ``folder`` (not below it) but the connections and the schemas."""
    files = pipeline_files(folder)
    policy = secrets_policy(folder, environment)
    return _loaded([(path, path.name) for path in files], environment, policy)


def load_files(paths: Iterable[Path], environment: Mapping[str, str] | None = None) -> list[ConfigFolder]:
    """Load ``paths`` as if those of a folder were all of it; what is wrong is told by path, not by file name."""
    by_folder: dict[Path, list[Path]] = {}
    for path in {path.resolve(): path for path in paths}.values():
        by_folder.setdefault(path.parent.resolve(), []).append(path)
    return [_loaded([(path, str(path)) for path in files], environment) for files in by_folder.values()]


def _loaded(
    files: Iterable[tuple[Path, str]], environment: Mapping[str, str] | None, policy: SecretsPolicy | None = None
) -> ConfigFolder:
    pipelines: list[Pipeline] = []
    broken: list[BrokenConfig] = []
    registry = method_registry()
    for path, file in files:
        try:
            pipelines.append(load_file(path, environment, registry, policy, file))
        except ConfigurationError as error:
            name = error.name if isinstance(error, InvalidPipelineError) else None
            broken.append(BrokenConfig(file, name or path.stem, error))
        except Exception as error:  # noqa: BLE001  (a config that does not load never takes the others with it)
            broken.append(BrokenConfig(file, path.stem, unforeseen_error(file, error)))
    unique, colliding = _without_collisions(pipelines)
    return ConfigFolder(tuple(unique), (*broken, *colliding))


def load_file(
    path: Path,
    environment: Mapping[str, str] | None = None,
    registry: MethodRegistry | None = None,
    policy: SecretsPolicy | None = None,
    file: str | None = None,
) -> Pipeline:
    """Load one pipeline, under the policy of its folder unless another is given. ``file`` is what it is called in
    errors, its name without the folder when left out.

    In one process a file is parsed again only when it, or a variable in it, has changed. Raises ConfigurationError
    with all its issues but those of its graph.
    """
    methods = registry or method_registry()
    rules = policy or secrets_policy(path.parent, environment)
    shown = file or path.name
    content = content_of(path, shown)

    def parse(variables: NotedVariables) -> Pipeline:
        written = parse_json(shown, content)
        document, issues = with_variables(shown, written, variables, keep=RUN_VARIABLES)
        unknown = {at for issue in issues for at in _around(issue.pointer)}
        if rules is SecretsPolicy.VAULT_ONLY:
            issues += pipeline_issues(shown, document)
        found, more = read_pipeline(shown, document, methods, written)
        # What would stand there is not known, and so neither is what is wrong with it, or with what it is a part of.
        issues += (issue for issue in more if issue.pointer not in unknown)
        return without_issues(found, issues, document)

    variables = variables_of(environment, hidden=RUN_VARIABLES)
    return _PARSED.get(path, content, variables, parse, shown, rules, frozenset(methods.items()))


def unforeseen_error(file: str, error: Exception) -> ConfigurationError:
    """Return what to tell of a file that the program itself fails on: the other files load all the same."""
    if isinstance(error, RecursionError):
        message = "is nested too deeply: break its longest texts up"
    else:
        message = f"can't be looked at, by a mistake in pipeline-assets and not in the file: {error_line(error)}"
    found = ConfigurationError.from_issues([ConfigIssue(file, "", message)])
    found.__cause__ = original_error(error)
    _log.debug("%s: %s", file, found.__cause__)
    return found


def _around(inner: str) -> Iterator[str]:
    """Yield the pointer ``inner``, and those of what it is a part of, but for the whole file."""
    yield inner
    parts = inner.split("/")
    yield from ("/".join(parts[:count]) for count in range(2, len(parts)))


def _without_collisions(pipelines: list[Pipeline]) -> tuple[list[Pipeline], list[BrokenConfig]]:
    """Take out pipelines whose names are the same to Dagster: running either would be a guess."""
    by_prefix: dict[str, list[Pipeline]] = {}
    for pipeline in pipelines:
        by_prefix.setdefault(pipeline.config.asset_prefix, []).append(pipeline)
    unique = [group[0] for group in by_prefix.values() if len(group) == 1]
    broken = []
    for group in by_prefix.values():
        for pipeline in group if len(group) > 1 else ():
            others = ", ".join(f"{other.config.name!r} of {other.file}" for other in group if other is not pipeline)
            message = f"{pipeline.config.name!r} is the same name to Dagster as {others}: rename one of them"
            error = ConfigurationError.from_issues([ConfigIssue(pipeline.file, "/name", message)])
            broken.append(BrokenConfig(pipeline.file, pipeline.config.name, error))
    return unique, broken
