"""What OpenLineage calls the data that a pipeline reads and writes.

The names are those of https://openlineage.io/docs/spec/naming, so that they meet those that other tools give the same
data. No user and no secret is part of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline_assets.connections import Connections
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role
from pipeline_assets.redaction import redact
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import ColumnSources, Dataset, ExtractMethod
from pipeline_assets.steps.paths import warehouse_dataset
from pipeline_assets.steps.s3_paths import bucket_of, is_s3, key_of
from pipeline_assets.uris import authority, is_local, path_in, root_of

# Where what stands before the host names a container, and no user.
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")


@dataclass(frozen=True, order=True)
class DatasetName:
    """A dataset: ``namespace`` is where it is, ``name`` which one there."""

    namespace: str
    name: str
    is_delta: bool = False


Origins = frozenset[tuple[DatasetName, str]]


def name_of_path(path: str, *, is_delta: bool = False) -> DatasetName:
    """Return the name of the file, folder or table at ``path``, a URI or an absolute path."""
    if is_s3(path):
        bucket = bucket_of(path).rpartition("@")[2]
        return DatasetName(f"s3://{bucket}", redact(key_of(path)) or "/", is_delta)
    name = redact("/" + path_in(path).strip("/"))
    if is_local(path):
        return DatasetName("file", name, is_delta)
    scheme, _, authority = root_of(path).partition(":")
    host = authority.removeprefix("//")
    if scheme not in _CONTAINERS:
        host = host.rpartition("@")[2]
    return DatasetName(f"{scheme}://{host}", name, is_delta)


class PipelineDatasets:
    """The datasets of one pipeline. Views are none: they are passed through to what they read."""

    def __init__(self, plan: PipelinePlan, settings: Settings, connections: Connections) -> None:
        self.plan = plan
        self._settings = settings
        self._connections = connections
        self._written = dict(self._outputs())

    def written_as(self, asset: str) -> DatasetName | None:
        """Return the dataset that the asset of that name stands for; None for a view."""
        return self._written.get(asset)

    def read_by(self, step: PlannedStep) -> tuple[DatasetName, ...]:
        """Return the datasets that ``step`` reads, itself or through the views that it takes."""
        if isinstance(step.method, ExtractMethod):
            found = [self._name(source) for source in step.method.sources()]
            return tuple(dict.fromkeys(name for name in found if name is not None))
        upstream = (self.plan.steps[index] for index in step.inputs)
        return tuple(dict.fromkeys(name for other in upstream for name in self._taken_from(other)))

    def assets_of(self, step: PlannedStep) -> tuple[str, ...]:
        """Return the assets that ``step`` materializes: its own, quarantine, dead letters."""
        return tuple(asset for asset in (step.name, step.quarantine, step.dead_letters) if asset is not None)

    def extract_of(self, asset: str) -> PlannedStep | None:
        """Return the extract whose table, or whose dead letters, the asset is; None for any other asset."""
        extracts = (step for step in self.plan.steps if isinstance(step.method, ExtractMethod))
        return next((step for step in extracts if asset in (step.name, step.dead_letters)), None)

    def checked_by(self, step: PlannedStep) -> DatasetName | None:
        """Return the dataset that a validate step checks: a table, or a view that is one source's rows as they are."""
        (checked, *_) = (self.plan.steps[index] for index in step.inputs)
        if checked.role is Role.TABLE:
            return self._written.get(checked.name)
        names = self.read_by(checked) if isinstance(checked.method, ExtractMethod) else ()
        return names[0] if len(names) == 1 else None

    def sources_of(self, found: ColumnSources) -> dict[str, Origins]:
        """Return the same by the names of the datasets."""
        named = {dataset: self._name(dataset) for origins in found.values() for dataset, _ in origins}
        return {
            column: frozenset((name, source) for dataset, source in origins if (name := named[dataset]) is not None)
            for column, origins in found.items()
        }

    def _taken_from(self, step: PlannedStep) -> tuple[DatasetName, ...]:
        table = self._written.get(step.name) if step.role is Role.TABLE else None
        return (table,) if table is not None else self.read_by(step)

    def _outputs(self) -> Iterator[tuple[str, DatasetName]]:
        for step in self.plan.steps:
            for asset, dataset in self.plan.written_by(step):
                name = self._name(dataset)
                if name is not None:
                    yield asset, name

    def _name(self, dataset: Dataset) -> DatasetName | None:
        """Return the name of ``dataset``; None where the connection that it is reached by is not there."""
        try:
            match dataset.kind:
                case "postgres":
                    connection, schema, table = dataset.parts
                    database = self._connections.postgres(connection)
                    server = f"postgres://{authority(database.host, database.port)}"
                    return DatasetName(server, redact(f"{database.database}.{schema}.{table}"))
                case "kafka":
                    connection, topic = dataset.parts
                    first = self._connections.kafka(connection).bootstrap_servers.split(",")[0].strip()
                    return DatasetName(f"kafka://{first.rpartition('@')[2].rpartition('//')[2]}", redact(topic))
                case kind:
                    return name_of_path(self._path(dataset), is_delta=kind == "deltalake")
        except ConfigurationError:
            return None

    def _path(self, dataset: Dataset) -> str:
        if len(dataset.parts) == 3 and dataset == warehouse_dataset(*dataset.parts[1:]):
            return self._settings.table_path(*dataset.parts[1:])
        return self._settings.resolve(dataset.uri)
