"""OpenLineage's facets, made from plans and from the metadata of Dagster's events.

Imported once OpenLineage is configured, and then beside the run: its client takes some tenths of a second to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import dagster as dg
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    JobFacet,
    OutputDatasetFacet,
    RunFacet,
    column_lineage_dataset,
    data_quality_assertions_dataset,
    dataset_version_dataset,
    datasource_dataset,
    documentation_job,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    ownership_job,
    parent_run,
    processing_engine_run,
    schema_dataset,
    sql_job,
    storage_dataset,
    tags_job,
    tags_run,
    test_run,
)

from pipeline_assets.metrics.dagster_events import ROW_COUNTS
from pipeline_assets.openlineage.datasets import DatasetName, Origins
from pipeline_assets.partitions import Partitions
from pipeline_assets.plan import PipelinePlan, PlannedStep, check_name
from pipeline_assets.redaction import redact
from pipeline_assets.steps.extract_postgres import FromPostgres
from pipeline_assets.steps.transform import Sql
from pipeline_assets.steps.validate import ExpectationStep

# A package URL: https://github.com/package-url/purl-spec
PRODUCER = f"pkg:pypi/pipeline-assets@{version('pipeline-assets')}"
_SOURCE = "PIPELINE_ASSETS"
Metadata = Mapping[str, Any]


def time_text(seconds: float) -> str:
    """Return a time since 1970 as events have it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def job_facets(plan: PipelinePlan | None, step: PlannedStep | None, kind: str) -> dict[str, JobFacet]:
    """Return what is known of a job: a run's (``kind`` JOB) or a step's (STEP)."""
    streaming = plan is not None and plan.is_streaming
    facets: dict[str, JobFacet] = {
        "jobType": job_type_job.JobTypeJobFacet(
            processingType="STREAMING" if streaming else "BATCH", integration="DAGSTER", jobType=kind, producer=PRODUCER
        )
    }
    if plan is None:
        return facets
    config = plan.pipeline.config
    told = config.description if step is None else step.description
    if told:
        facets["documentation"] = documentation_job.DocumentationJobFacet(
            description=redact(told), contentType="text/markdown", producer=PRODUCER
        )
    if config.owners:
        owners = [ownership_job.Owner(name=owner) for owner in config.owners]
        facets["ownership"] = ownership_job.OwnershipJobFacet(owners=owners, producer=PRODUCER)
    if config.tags:
        tags = [tags_job.TagsJobFacetFields(key, redact(value), _SOURCE) for key, value in config.tags.items()]
        facets["tags"] = tags_job.TagsJobFacet(tags=tags, producer=PRODUCER)
    query, dialect = _query(step)
    if query:
        facets["sql"] = sql_job.SQLJobFacet(query=redact(query), dialect=dialect, producer=PRODUCER)
    return facets


def _query(step: PlannedStep | None) -> tuple[str | None, str]:
    if step is not None and isinstance(step.method, Sql):
        return step.method.query, "spark"
    if step is not None and isinstance(step.method, FromPostgres):
        return step.method.query, "postgres"
    return None, ""


def run_facets(partitions: Partitions | None, partition: str | None, scheduled: str | None) -> dict[str, RunFacet]:
    """Return what is known of a run before it has begun: its engine, and the time or the partition that it is for."""
    facets: dict[str, RunFacet] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version=version("pyspark"),
            name="spark",
            openlineageAdapterVersion=version("pipeline-assets"),
            producer=PRODUCER,
        )
    }
    window = partitions.window_of(partition) if partitions is not None and partition is not None else None
    if window is not None:
        start, end = (edge.isoformat() for edge in window)
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(start, end, producer=PRODUCER)
    elif scheduled is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(scheduled, producer=PRODUCER)
    if partition is not None:
        tags = [tags_run.TagsRunFacetFields("partition", partition, _SOURCE)]
        facets["tags"] = tags_run.TagsRunFacet(tags=tags, producer=PRODUCER)
    return facets


def parent_facet(run_id: str, namespace: str, job: str) -> RunFacet:
    """Return what names the run that a step belongs to."""
    # By itself it is the root as well.
    root = parent_run.Root(parent_run.RootRun(run_id), parent_run.RootJob(namespace, job))
    return parent_run.ParentRunFacet(
        parent_run.Run(run_id), parent_run.Job(namespace, job), root=root, producer=PRODUCER
    )


def error_facet(message: str) -> RunFacet:
    """Return what a failure says."""
    return error_message_run.ErrorMessageRunFacet(redact(message), "PYTHON", producer=PRODUCER)


@dataclass(frozen=True)
class _Stated:
    """What a check states: its kind, in words, and the one column that it is about."""

    kind: str
    says: str
    column: str | None


def _stated(steps: Iterable[PlannedStep]) -> dict[str, _Stated]:
    """Return what the checks of ``steps`` state, by their names."""
    found = {}
    for step in steps:
        method = step.method
        for item in method.stated() if isinstance(method, ExpectationStep) else ():
            about = item.expectation
            columns = getattr(about, "columns", None) or (getattr(about, "column", None),)
            column = columns[0] if isinstance(columns, tuple) and len(columns) == 1 else None
            kind = str(getattr(about, "expect", None) or getattr(about, "method", "expression"))
            found[check_name(step.name, item.name)] = _Stated(kind, redact(about.says()), column)
    return found


_UNKNOWN = _Stated("custom", "", None)


def test_facet(steps: Iterable[PlannedStep], checks: Iterable[dg.AssetCheckEvaluation]) -> RunFacet:
    """Return how checks came out; ``steps`` are those that state them."""
    stated = _stated(steps)
    found = [
        test_run.TestExecution(
            name=check.check_name,
            status="pass" if check.passed else "fail",
            severity=_severity(check),
            type=stated.get(check.check_name, _UNKNOWN).kind,
            description=stated.get(check.check_name, _UNKNOWN).says or None,
        )
        for check in checks
    ]
    return test_run.TestRunFacet(tests=found, producer=PRODUCER)


def assertions_facet(step: PlannedStep, checks: Iterable[dg.AssetCheckEvaluation]) -> InputDatasetFacet:
    """Return how the checks of a validate step came out, for the dataset that it checks."""
    stated = _stated([step])
    found = [
        data_quality_assertions_dataset.Assertion(
            assertion=stated.get(check.check_name, _UNKNOWN).kind,
            success=bool(check.passed),
            column=stated.get(check.check_name, _UNKNOWN).column,
            severity=_severity(check),
            name=check.check_name,
            description=stated.get(check.check_name, _UNKNOWN).says or None,
            actual=_number(check.metadata, "failed_rows"),
        )
        for check in checks
    ]
    return data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(assertions=found, producer=PRODUCER)


def _severity(check: dg.AssetCheckEvaluation) -> str:
    return "warn" if check.severity is dg.AssetCheckSeverity.WARN else "error"


def _number(metadata: Metadata, name: str) -> str | None:
    return str(metadata[name].value) if name in metadata else None


def input_dataset(
    name: DatasetName,
    *,
    metadata: Metadata | None = None,
    checks: InputDatasetFacet | None = None,
    statistics: Mapping[str, int] | None = None,
) -> InputDataset:
    """Return an input. ``metadata``: of the asset that has its columns; ``statistics``: what was read of it."""
    facets = _dataset_facets(name)
    facets |= _schema(metadata or {})
    of_run: dict[str, InputDatasetFacet] = {}
    if checks is not None:
        of_run["dataQualityAssertions"] = checks
    if statistics:
        of_run["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=statistics.get("rows"), size=statistics.get("bytes"), producer=PRODUCER
        )
    return InputDataset(name.namespace, name.name, facets=facets, inputFacets=of_run)


def output_dataset(
    name: DatasetName, metadata: Metadata | None = None, origins: Mapping[str, Origins] | None = None
) -> OutputDataset:
    """Return an output. ``metadata``: of its asset; ``origins``: by column, what it comes from."""
    told = metadata or {}
    facets = {**_dataset_facets(name), **_schema(told)}
    if "table_version" in told:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            str(told["table_version"].value), producer=PRODUCER
        )
    fields = {
        column: column_lineage_dataset.Fields(
            [
                column_lineage_dataset.InputField(source.namespace, source.name, field)
                for source, field in sorted(sources)
            ]
        )
        for column, sources in (origins or {}).items()
        if sources
    }
    if fields:
        facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(fields, producer=PRODUCER)
    statistics = {name: found for name, keys in _STATISTICS.items() if (found := _first(told, keys)) is not None}
    of_run: dict[str, OutputDatasetFacet] = {}
    if statistics:
        of_run["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            **statistics, producer=PRODUCER
        )
    return OutputDataset(name.namespace, name.name, facets=facets, outputFacets=of_run)


_STATISTICS = {
    "rowCount": (
        *ROW_COUNTS,
        "rows_written",
        "dead_letters_of_run",
        "quarantined_rows_of_run",
    ),
    "size": ("bytes_written", "numOutputBytes"),
    "fileCount": ("files_written",),
}


def _first(metadata: Metadata, keys: Iterable[str]) -> int | None:
    return next((int(metadata[key].value) for key in keys if key in metadata), None)


def _dataset_facets(name: DatasetName) -> dict[str, DatasetFacet]:
    uri = name.namespace if "://" in name.namespace else f"{name.namespace}:///"
    facets: dict[str, DatasetFacet] = {
        "dataSource": datasource_dataset.DatasourceDatasetFacet(name.namespace, uri, producer=PRODUCER)
    }
    if name.is_delta:
        facets["storage"] = storage_dataset.StorageDatasetFacet("delta", "parquet", producer=PRODUCER)
    return facets


def _schema(metadata: Metadata) -> dict[str, DatasetFacet]:
    if "dagster/column_schema" not in metadata:
        return {}
    columns = metadata["dagster/column_schema"].value.columns
    # What Dagster shows as a column's description may be its lineage, which has a facet of its own.
    fields = [schema_dataset.SchemaDatasetFacetFields(column.name, column.type) for column in columns]
    return {"schema": schema_dataset.SchemaDatasetFacet(fields=fields, producer=PRODUCER)}
