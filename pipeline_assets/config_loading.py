"""Loading configs from files, with every error named at once."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from pipeline_assets.config import PIPELINE_NAME, PipelineConfig, Retry, StepEnvelope
from pipeline_assets.connections import ConnectionKind, Connections, ConnectionsFile, parse_connections
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.policy import (
    SecretsPolicy,
    connection_issues,
    pipeline_issues,
    policy_from_environment,
)
from pipeline_assets.errors import ConfigIssue, ConfigurationError, did_you_mean, error_line
from pipeline_assets.json_documents import as_written, issues_of, parse_json, pointer, substitute, unescape
from pipeline_assets.parsed_files import NotedVariables, ParsedFiles
from pipeline_assets.redaction import redact
from pipeline_assets.spark.failures import original_error
from pipeline_assets.steps import method_registry
from pipeline_assets.steps.base import StepMethod
from pipeline_assets.steps.s3_paths import is_s3

_log = logging.getLogger(__name__)

CONNECTIONS_FILE = "connections.json"
SCHEMA_FILE = "pipeline.schema.json"
CONNECTIONS_SCHEMA_FILE = "connections.schema.json"
NO_PIPELINES = (CONNECTIONS_FILE, SCHEMA_FILE, CONNECTIONS_SCHEMA_FILE)
"""The files in a folder of configs that hold something else, by name."""
MethodRegistry = Mapping[tuple[str, str], type[StepMethod]]


@dataclass(frozen=True)
class Pipeline:
    """A config that has been checked: ``methods`` are its steps' methods, in order.

    ``document`` is the parsed JSON with the environment substituted and ``${partition}`` still in it. The methods of
    ``unreadable`` steps are stand-ins: there are some in the pipeline of an InvalidPipelineError alone.
    """

    file: str
    config: PipelineConfig
    methods: tuple[StepMethod, ...]
    document: Mapping[str, Any]
    unreadable: frozenset[int] = frozenset()

    def retry_of(self, index: int) -> Retry | None:
        """Return when step ``index`` is tried again: its own settings, or else the pipeline's; None for never."""
        return self.config.steps[index].retry or self.config.retry

    def for_partition(self, key: str) -> Pipeline:
        """Return the pipeline with ``key`` in place of ``${partition}``."""
        document = substitute(dict(self.document), {"partition": key}, lambda name, at: None)
        found = _collect(self.file, document, method_registry(), document)
        return replace(_without_issues(*found, document), document=self.document)

    def keys_with_partition(self, index: int) -> frozenset[str]:
        """Return the keys in the config of step ``index`` that name ``${partition}``."""
        found: set[str] = set()

        def note(name: str, at: str) -> None:
            if name == "partition":
                found.add(at.split("/")[1])

        substitute(self.document["steps"][index].get("config", {}), {}, note, _PARTITION)
        return frozenset(found)

    def text_for_partition(self, index: int, key: str, partition: str) -> str:
        """Return the text at ``key`` in the config of step ``index``, as a run for ``partition`` has it."""
        text = self.document["steps"][index]["config"][key]
        return str(unescape(substitute(text, {"partition": partition}, lambda name, at: None)))


# What is the run's own to say, and never the environment's, nor a default's.
_PARTITION = ("partition",)
_PARSED = ParsedFiles[Pipeline]()


class InvalidPipelineError(ConfigurationError):
    """What is wrong with a file. ``readable`` is the pipeline as far as it could be read; None for too little.
    ``name`` is what it says that it is called, where that is a name.
    """

    readable: Pipeline | None = None
    name: str | None = None


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
            broken.append(BrokenConfig(file, path.stem, unforeseen(file, error)))
    unique, colliding = _without_collisions(pipelines)
    return ConfigFolder(tuple(unique), (*broken, *colliding))


def unforeseen(file: str, error: Exception) -> ConfigurationError:
    """Return what to tell of a file that the program itself fails on: the other files load all the same."""
    if isinstance(error, RecursionError):
        message = "is nested too deeply: break its longest texts up"
    else:
        message = f"can't be looked at, by a mistake in pipeline-assets and not in the file: {error_line(error)}"
    found = ConfigurationError.from_issues([ConfigIssue(file, "", message)])
    found.__cause__ = original_error(error)
    _log.debug("%s: %s", file, found.__cause__)
    return found


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
    return sorted(folder / name for name in shown if name not in NO_PIPELINES)


def no_pipelines(folder: Path) -> ConfigurationError:
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
    content = _content(path, shown)

    def parse(variables: NotedVariables) -> Pipeline:
        written = parse_json(shown, content)
        document, issues = _substituted(shown, written, variables, keep=_PARTITION)
        unknown = {at for issue in issues for at in _around(issue.pointer)}
        if rules is SecretsPolicy.VAULT_ONLY:
            issues += pipeline_issues(shown, document)
        found, more = _collect(shown, document, methods, written)
        # What would stand there is not known, and so neither is what is wrong with it, or with what it is a part of.
        issues += (issue for issue in more if issue.pointer not in unknown)
        return _without_issues(found, issues, document)

    variables = _variables(environment, hidden=_PARTITION)
    return _PARSED.get(path, content, variables, parse, shown, rules, frozenset(methods.items()))


def load_connections(folder: Path, environment: Mapping[str, str] | None = None) -> Connections:
    """Load ``connections.json`` of ``folder``; without one there are no connections."""
    path = folder / CONNECTIONS_FILE
    policy = secrets_policy(folder, environment)
    secrets = Secrets(policy)
    if not is_there(path):
        return Connections(secrets=secrets, path=str(path))
    written = _read(path)
    document, issues = _substituted(path.name, written, _variables(environment))
    if policy is SecretsPolicy.VAULT_ONLY:
        issues += connection_issues(path.name, document)
    if issues:
        raise ConfigurationError.from_issues(issues)
    try:
        return Connections(parse_connections(unescape(document)), secrets, str(path))
    except ValidationError as error:
        # Not chained: pydantic's text shows the values, and a secret may have been written where a reference belongs.
        found = issues_of(path.name, error, ConnectionsFile, document, written=written)
        raise ConfigurationError.from_issues(found) from None


def unknown_connections(pipeline: Pipeline, connections: Connections) -> Iterator[ConfigIssue]:
    """Yield an issue for each connection that a step of ``pipeline`` needs, and that ``connections`` does not have."""
    for index, method in enumerate(pipeline.methods):
        for key, kind, given in _connections_of(method):
            for name in _of_each_partition(pipeline, index, to_camel(key), given):
                try:
                    connections.of(kind, name)
                except ConfigurationError as error:
                    yield ConfigIssue(pipeline.file, pointer("steps", index, "config", to_camel(key)), error.message)


def _of_each_partition(pipeline: Pipeline, index: int, key: str, name: str) -> Sequence[str]:
    """Return what the connection called ``name`` at ``key`` of step ``index`` is called in the runs that are known.

    Of partitions by time there are more each day: it is left to their runs.
    """
    partitions = pipeline.config.partitions
    if partitions is None or "${" not in name or key not in pipeline.keys_with_partition(index):
        return [name]
    return [pipeline.text_for_partition(index, key, value) for value in partitions.values]


def _connections_of(method: StepMethod) -> Iterator[tuple[str, ConnectionKind, str]]:
    """Yield the field, kind and name of each connection that a step opens, and of each that its config names."""
    on_s3 = any(is_s3(data.uri) for data in (*method.sources(), *method.sinks()))
    checkpoint_on_s3 = is_s3(getattr(method, "checkpoint_location", None) or "")
    fields: tuple[tuple[str, ConnectionKind, bool], ...] = (
        ("connection", method.connection_kind, on_s3),
        ("checkpoint_connection", "s3", checkpoint_on_s3),
    )
    for key, kind, is_opened in fields:
        name = getattr(method, key, None)
        # What is not on S3 needs no connection, and has the default.
        if name is not None and (is_opened or (kind, name) != ("s3", "default")):
            yield key, kind, name
    for key in ("quarantine_path", "dead_letter_path"):
        if is_s3(getattr(method, key, None) or ""):
            yield key, "s3", "default"


def secrets_policy(folder: Path, environment: Mapping[str, str] | None = None) -> SecretsPolicy:
    """Return the policy that the environment and ``connections.json`` of ``folder`` state: the stricter of the two.

    Raises ConfigurationError when the environment names one that there is not.
    """
    given = policy_from_environment(environment)
    path = folder / CONNECTIONS_FILE
    if given is SecretsPolicy.VAULT_ONLY or not is_there(path):
        return given
    try:
        document, _ = _substituted(path.name, _read(path), _variables(environment))
        stated = document.get("secretsPolicy", SecretsPolicy.ANY)
    except ConfigurationError:
        return given  # Nothing runs with such a file: load_connections says why.
    return given if stated == SecretsPolicy.ANY else SecretsPolicy.VAULT_ONLY


def _read(path: Path) -> dict[str, Any]:
    return parse_json(path.name, _content(path, path.name))


def _content(path: Path, file: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError.from_issues([ConfigIssue(file, "", f"cannot be read: {error.strerror}")]) from error


def _variables(environment: Mapping[str, str] | None, hidden: tuple[str, ...] = ()) -> NotedVariables:
    return NotedVariables(os.environ if environment is None else environment, hidden)


def _substituted(
    file: str, written: dict[str, Any], variables: Mapping[str, str], keep: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[ConfigIssue]]:
    """Return what is ``written`` with the variables put in, and an issue for each that is not set."""
    issues: list[ConfigIssue] = []

    def missing(name: str, at: str) -> None:
        if name not in keep:
            message = f"environment variable {name} is not set (set it, or write ${{{name}:-default}})"
            issues.append(ConfigIssue(file, at, message))

    def malformed(message: str, at: str) -> None:
        issues.append(ConfigIssue(file, at, message))

    return substitute(written, variables, missing, keep, malformed), issues


def _without_issues(found: Pipeline | None, issues: list[ConfigIssue], document: Mapping[str, Any]) -> Pipeline:
    if found is not None and not issues:
        return found
    error = InvalidPipelineError.from_issues(issues)
    error.readable = found
    name = document.get("name")
    if isinstance(name, str) and re.fullmatch(PIPELINE_NAME, name) and redact(name) == name:
        error.name = name
    raise error


def _collect(
    file: str, document: Mapping[str, Any], registry: MethodRegistry, written: Mapping[str, Any]
) -> tuple[Pipeline | None, list[ConfigIssue]]:
    """Return what can be read of the pipeline, and every issue that keeps it from being one.

    ``written`` is the document before the variables were put in.
    """
    issues: list[ConfigIssue] = []
    config: PipelineConfig | None = None
    try:
        config = PipelineConfig.of_json(unescape(document))
    except ValidationError as error:
        issues += issues_of(file, error, PipelineConfig, document, written=written)
    methods: list[StepMethod] = []
    unreadable: set[int] = set()
    for index, step in _steps(document):
        method, found = _method(file, index, step, registry, written["steps"][index])
        if method is not None:
            methods.append(method)
        if found:
            unreadable.add(index)
            issues += found
    if config is not None:
        issues += _pipeline_issues(file, config, document)
    read = config or _stand_in_config(document)
    if len(methods) < len(read.steps):
        return None, sorted_issues(issues)
    return Pipeline(file, read, tuple(methods), document, frozenset(unreadable)), sorted_issues(issues)


def sorted_issues(issues: Iterable[ConfigIssue]) -> list[ConfigIssue]:
    """Return ``issues``, each once, in the order of the places in the file."""
    return sorted(set(issues), key=lambda issue: [_natural(part) for part in issue.pointer.split("/")])


def _around(inner: str) -> Iterator[str]:
    """Yield the pointer ``inner``, and those of what it is a part of, but for the whole file."""
    yield inner
    parts = inner.split("/")
    yield from ("/".join(parts[:count]) for count in range(2, len(parts)))


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)


def _steps(document: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    steps = document.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict):
            yield index, step


def _method(
    file: str, index: int, step: dict[str, Any], registry: MethodRegistry, written: dict[str, Any]
) -> tuple[StepMethod | None, list[ConfigIssue]]:
    """Return the step's method with its config, or with issues a stand-in; None for a method that there is not.

    What the envelope's model says already is not said again.
    """
    step_type, name, config = step.get("type"), step.get("method"), step.get("config", {})
    if not (isinstance(step_type, str) and isinstance(name, str) and isinstance(config, dict)):
        return None, []
    cls = registry.get((step_type, name))
    if cls is None:
        found = _unknown_method(step_type, name, registry)
        if found is None:
            return None, []
        return None, [ConfigIssue(file, pointer("steps", index, "method"), as_written(found, name, written["method"]))]
    try:
        return cls.of_json(unescape(config)), []
    except ValidationError as error:
        place = ("steps", index, "config")
        return _stand_in(cls, config), list(issues_of(file, error, cls, config, place, written.get("config")))


def _stand_in(cls: type[StepMethod], config: Mapping[str, Any]) -> StepMethod:
    """Return the method of a step that can't be read, with nothing of its config but the name of its DataFrame."""
    name = config.get("registerAs")
    known: dict[str, Any] = {"register_as": name} if isinstance(name, str) else {}
    return cls.model_construct(**known)


def _stand_in_config(document: Mapping[str, Any]) -> PipelineConfig:
    """Return what stands around the steps, when it can't be read, with nothing but the names of the steps."""
    steps = document.get("steps")
    names = [step.get("name") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    # By Any: a type checker asks for the other keys, too.
    envelope: Any = StepEnvelope.model_construct
    config: Any = PipelineConfig.model_construct
    envelopes = tuple(envelope(name=name if isinstance(name, str) else None) for name in names)
    return cast(PipelineConfig, config(mode="batch", steps=envelopes))


def _unknown_method(step_type: str, name: str, registry: MethodRegistry) -> str | None:
    """Return what is wrong with the ``name`` of a method; None where it is the type alone."""
    of_type = sorted(method for kind, method in registry if kind == step_type)
    if not of_type:
        return None
    elsewhere = [kind for kind, method in registry if method == name]
    if elsewhere:
        return f"{name!r} is a method of type {elsewhere[0]!r}, not of {step_type!r}"
    near = did_you_mean(name, of_type)
    return f"there is no {step_type} method {name!r}{near} (expected one of: {', '.join(of_type)})"


def _pipeline_issues(file: str, config: PipelineConfig, document: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    if config.automation == "on_cron" and config.schedule is None:
        yield ConfigIssue(file, "/automation", "'on_cron' needs a 'schedule' that says when")
    if config.sensor is not None and config.mode == "batch":
        yield ConfigIssue(file, "/sensor", "a sensor belongs to a streaming pipeline; use 'schedule' or 'automation'")
    if config.mode == "streaming":
        advice = {
            "partitions": "a streaming pipeline has no partitions",
            "automation": "a streaming pipeline is started by its sensor, or by a 'schedule': leave it out",
            "retry": "a stream that failed is started again by its sensor: use 'sensor' and its 'maxRestarts'",
        }
        for key, message in advice.items():
            if getattr(config, key) is not None:
                yield ConfigIssue(file, f"/{key}", message)
        for index, step in enumerate(config.steps):
            if step.retry is not None:
                yield ConfigIssue(file, pointer("steps", index, "retry"), advice["retry"])
        if not config.optimize:
            yield ConfigIssue(file, "/optimize", "of a streaming pipeline nothing is decided for speed: leave it out")
    if config.partitions is None:
        used: list[ConfigIssue] = []

        def unpartitioned(name: str, at: str) -> None:
            if name == "partition":
                used.append(ConfigIssue(file, at, "uses ${partition}, but the pipeline has no 'partitions'"))

        substitute(dict(document), {}, unpartitioned, _PARTITION)
        yield from used


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
