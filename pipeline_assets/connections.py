"""Named connections (``connections.json``): hosts and options, with secrets by reference only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from pipeline_assets.credentials import SecretReference, Secrets
from pipeline_assets.credentials.policy import S3_ANONYMOUS, S3_PROVIDER, SecretsPolicy, is_secret
from pipeline_assets.credentials.references import Reference, is_reference
from pipeline_assets.errors import ConfigurationError, did_you_mean
from pipeline_assets.json_models import JsonModel
from pipeline_assets.redaction import secret_shapes
from pipeline_assets.uris import authority

ConnectionKind = Literal["postgres", "s3", "kafka"]


def _check_options(options: dict[str, str]) -> dict[str, str]:
    for name, text in options.items():
        if is_secret(name, text):
            _check_reference(name, text)
        elif shapes := secret_shapes(text):
            raise ValueError(
                f"option {name!r} looks like it holds a secret ({', '.join(shapes)}): what is secret stands under the "
                "name of a secret, as a reference"
            )
    return options


def _check_kafka_options(options: dict[str, str]) -> dict[str, str]:
    for name, text in options.items():
        if is_reference(text):
            _check_reference(name, text)
    return _check_options(options)


def _check_reference(option: str, text: str) -> None:
    try:
        Reference.parse(text)
    except ValueError as error:
        raise ValueError(f"option {option!r}: {error}") from None


# No message below shows the text: what stands in the wrong place may be a secret.
def _check_text(text: str) -> str:
    if shapes := secret_shapes(text):
        raise ValueError(f"looks like it holds a secret ({', '.join(shapes)}): this key is for what anybody may see")
    return text


def _check_user(text: str) -> str:
    if is_reference(text):
        Reference.parse(text)
    return _check_text(text)


def _check_name(text: str) -> str:
    if re.search(r"[/?@\s]", text):
        raise ValueError(
            "a name alone was expected, without '/', '?', '@' and spaces: for all else there are other keys"
        )
    return _check_text(text)


def _check_host(text: str) -> str:
    if ":" in _check_name(text):
        try:
            ipaddress.IPv6Address(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
        except ValueError:
            raise ValueError("a host alone was expected: its port is given as 'port'") from None
    return text


def _check_endpoint(text: str) -> str:
    if re.search(r"[?@\s]", text) or not re.match(r"https?://|(?!.*://)", text, re.IGNORECASE):
        raise ValueError("expected the URL of the service alone, as 'https://host:port': keys have keys of their own")
    return _check_text(text)


def _check_servers(text: str) -> str:
    servers = [server.strip() for server in text.split(",") if server.strip()]
    if not servers or not all(_SERVER.fullmatch(server) for server in servers):
        raise ValueError("expected 'host:port,host:port': of a login the options tell")
    return text


_SERVER = re.compile(r"(?:\w+://)?[^\s/?@]+:\d{1,5}")
# Those that are secret by their names are references.
Options = Annotated[dict[str, str], AfterValidator(_check_options)]


class Connection(JsonModel):
    """Base of the connection models: camelCase keys, no unknown ones."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


class PostgresConnection(Connection):
    """A PostgreSQL database."""

    host: Annotated[str, Field(min_length=1), AfterValidator(_check_host)]
    """The server's name or address."""
    port: int = Field(default=5432, ge=1, le=65535)
    database: Annotated[str, Field(min_length=1), AfterValidator(_check_name)]
    user: Annotated[str, Field(min_length=1), AfterValidator(_check_user)]
    """Who logs in; a secret, where it is a reference: Vault's database engine makes both user and password."""
    password: SecretReference | None = None
    """A reference."""
    options: Options = {}
    """Parameters of its JDBC driver (pgjdbc); those that are secret by their names are references."""

    @property
    def jdbc_url(self) -> str:
        """JDBC URL without any credential."""
        # The driver decodes it: in a name as it is, it would take a + for a space.
        return f"jdbc:postgresql://{authority(self.host, self.port)}/{quote(self.database, safe='')}"


class S3Connection(Connection):
    """An S3 service. Without keys, Hadoop's default credential chain applies."""

    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    """URL of the service; Amazon's own when left out."""
    region: Annotated[str, AfterValidator(_check_text)] | None = None
    access_key_id: SecretReference | None = None
    """A reference."""
    secret_access_key: SecretReference | None = None
    """A reference."""
    session_token: SecretReference | None = None
    """A reference; of keys that are temporary."""
    path_style_access: bool = True
    """Whether the bucket is in the path of a request; `false` has it in the host's name."""
    options: Annotated[dict[Annotated[str, Field(pattern=r"^fs\.s3a\.")], str], AfterValidator(_check_options)] = {}
    """`fs.s3a.*` of Hadoop; those that are secret by their names are references."""

    @model_validator(mode="after")
    def _whole_keys(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("'accessKeyId' and 'secretAccessKey' belong together: give both, or none")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("'sessionToken' is of keys: give 'accessKeyId' and 'secretAccessKey' too")
        return self

    @property
    def anonymous(self) -> bool:
        """Whether its buckets are public: no keys are looked for."""
        return self.options.get(S3_PROVIDER) == S3_ANONYMOUS


class KafkaConnection(Connection):
    """A Kafka cluster."""

    bootstrap_servers: Annotated[str, AfterValidator(_check_servers)]
    """Brokers to begin with, as `host:port,host:port`."""
    options: Annotated[dict[str, str], AfterValidator(_check_kafka_options)] = {}
    """Settings of Kafka's client; any may be a reference, and those that are secret by their names are."""


class ConnectionsFile(Connection):
    """``connections.json``: by kind, then by name; a step that names none takes ``default``."""

    schema_: str | None = Field(default=None, alias="$schema")
    """Path or URL of the JSON Schema, for editors."""
    secrets_policy: SecretsPolicy = SecretsPolicy.ANY
    """Where secrets may come from."""
    postgres: dict[str, PostgresConnection] = {}
    s3: dict[str, S3Connection] = {}
    kafka: dict[str, KafkaConnection] = {}


_Connection = TypeVar("_Connection", bound=Connection)


@dataclass(frozen=True)
class Connections:
    """The connections of a location and the secrets that they refer to."""

    file: ConnectionsFile = field(default_factory=ConnectionsFile)
    secrets: Secrets = field(default_factory=Secrets)
    path: str = "connections.json"

    def of(self, kind: ConnectionKind, name: str) -> Connection:
        """Return the connection of that kind called ``name``; ConfigurationError when there is none."""
        known: Mapping[str, Connection] = getattr(self.file, kind)
        return self._named(kind, known, name)

    def postgres(self, name: str) -> PostgresConnection:
        """Return the PostgreSQL connection called ``name``; ConfigurationError when there is none."""
        return self._named("postgres", self.file.postgres, name)

    def s3(self, name: str) -> S3Connection:
        """Return the S3 connection called ``name``; ConfigurationError when there is none."""
        return self._named("s3", self.file.s3, name)

    def kafka(self, name: str) -> KafkaConnection:
        """Return the Kafka connection called ``name``; ConfigurationError when there is none."""
        return self._named("kafka", self.file.kafka, name)

    def _named(self, kind: ConnectionKind, known: Mapping[str, _Connection], name: str) -> _Connection:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(
                f"there is no {kind} connection {name!r}{did_you_mean(name, known)}: "
                f"add it to {self.path} under {kind!r} (there: {listed})"
            )
        return known[name]


def parse_connections(data: Any) -> ConnectionsFile:
    """Validate the parsed JSON of a connections file. Raises pydantic.ValidationError."""
    return ConnectionsFile.of_json(data)
