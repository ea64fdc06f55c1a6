"""``connections.json`` and the policy of a folder, and which connections pipelines need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from pipeline_assets.config_files import CONNECTIONS_FILE, document_of, is_there, variables_of, with_variables
from pipeline_assets.connections import ConnectionKind, Connections, ConnectionsFile, parse_connections
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.policy import SecretsPolicy, connection_issues, policy_from_environment
from pipeline_assets.errors import ConfigIssue, ConfigurationError
from pipeline_assets.json_documents import pointer
from pipeline_assets.model_issues import issues_of
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.steps.base import StepMethod
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.variables import unescape


def load_connections(folder: Path, environment: Mapping[str, str] | None = None) -> Connections:
    """Load ``connections.json`` of ``folder``; without one there are no connections."""
    path = folder / CONNECTIONS_FILE
    policy = secrets_policy(folder, environment)
    secrets = Secrets(policy)
    if not is_there(path):
        return Connections(secrets=secrets, path=str(path))
    written = document_of(path)
    document, issues = with_variables(path.name, written, variables_of(environment))
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


def secrets_policy(folder: Path, environment: Mapping[str, str] | None = None) -> SecretsPolicy:
    """Return the policy that the environment and ``connections.json`` of ``folder`` state: the stricter of the two.

    Raises ConfigurationError when the environment names one that there is not.
    """
    given = policy_from_environment(environment)
    path = folder / CONNECTIONS_FILE
    if given is SecretsPolicy.VAULT_ONLY or not is_there(path):
        return given
    try:
        document, _ = with_variables(path.name, document_of(path), variables_of(environment))
        stated = document.get("secretsPolicy", SecretsPolicy.ANY)
    except ConfigurationError:
        return given  # Nothing runs with such a file: load_connections says why.
    return given if stated == SecretsPolicy.ANY else SecretsPolicy.VAULT_ONLY


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
