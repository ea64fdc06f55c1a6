"""What an asset's page shows: Dagster metadata made from what Spark says about a DataFrame or a write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep
from pipeline_assets.redaction import redact, redact_data
from pipeline_assets.spark.description import describe, markdown_table
from pipeline_assets.spark.job_metrics import StageTime
from pipeline_assets.spark.lineage import column_lineage
from pipeline_assets.steps.base import (
    ExtractMethod,
    LoadResult,
    TransformMethod,
    ValidateMethod,
)
from pipeline_assets.steps.delta_table import DeltaWrite
from pipeline_assets.steps.transform import Sql

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Metadata = dict[str, Any]
STAGE_TIMES = "spark_stage_times"
_STAGE_COLUMNS = {
    "stage": "int",
    "what": "string",
    "start": "string",
    "seconds": "float",
    "tasks": "int",
    "rows_read": "int",
    "bytes_read": "int",
    "shuffle_read_bytes": "int",
    "shuffle_write_bytes": "int",
    "spilled_bytes": "int",
}
ColumnOrigins = dict[str, list[dg.TableColumnDep]]


def dataframe_metadata(frame: "DataFrame", origins: ColumnOrigins | None = None) -> Metadata:
    """Return schema, lineage, partition count and physical plan of a DataFrame. No data moves."""
    description = describe(frame)
    deps = origins or {}
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            # The open-source UI has no view of column lineage; the schema's table shows it as well.
            description=redact(column.comment) if column.comment else _told(deps.get(column.name, ())),
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in description.columns
    ]
    metadata: Metadata = {"dagster/column_schema": dg.TableSchema(columns)}
    if deps:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(deps)
    if description.partitions is not None:
        metadata["partition_count"] = description.partitions
    # Last, since it is long.
    metadata["physical_plan"] = dg.MetadataValue.md(f"```\n{description.plan.strip()}\n```")
    return metadata


def _told(origins: Sequence[dg.TableColumnDep]) -> str | None:
    names = [f"{origin.asset_key.path[-1]}.{origin.column_name}" for origin in origins]
    return f"from {', '.join(names)}" if names else None


def column_origins(
    run: PipelineRun,
    step: PlannedStep,
    frame: "DataFrame",
    inputs: Mapping[int, "DataFrame"],
    upstream: Mapping[int, dg.AssetKey],
    sources: tuple[dg.AssetKey, ...],
) -> ColumnOrigins:
    """Return the columns that each column of ``frame`` comes from; one that is not understood is left out.

    ``upstream``: the asset of each input, by step index; ``sources``: the external assets that an extract reads.
    """
    method = step.method
    if isinstance(method, ExtractMethod):
        only = sources[0] if len(sources) == 1 else None
        return {column: [dg.TableColumnDep(only, column)] for column in frame.columns} if only else {}
    names = dict(zip(step.input_names, step.inputs, strict=True))
    schemas = {name: inputs[index].schema for name, index in names.items()}

    def apply(stubs: Mapping[str, "DataFrame"]) -> "DataFrame":
        if isinstance(method, ValidateMethod):
            return method.good_rows(stubs[step.input_names[0]], run.context)
        assert isinstance(method, TransformMethod)  # noqa: S101  (a step with a DataFrame is one of these)
        return method.transform(stubs, run.context)

    try:
        found = column_lineage(apply, schemas, run.context.spark)
    finally:
        if isinstance(method, Sql):
            # It has registered the empty stand-ins under its inputs' names.
            for name, index in names.items():
                inputs[index].createOrReplaceTempView(name)
    return {
        column: [dg.TableColumnDep(upstream[names[name]], source) for name, source in origins]
        for column, origins in (found or {}).items()
    }


def cache_metadata(run: PipelineRun, step: PlannedStep) -> Metadata:
    """Return the storage level of a DataFrame that the run keeps, and nothing for any other."""
    levels = {cached.name: cached.level for cached in run.context.cache.cached()}
    return {"storage_level": levels[step.dataframe]} if step.dataframe in levels else {}


def work_metadata(run: PipelineRun, step: PlannedStep, told: Mapping[str, int | str] | None = None) -> Metadata:
    """Return what Spark's jobs have done for ``step``: numbers that Dagster plots, and a table of the longest stages.

    See ``JobMetrics`` and ``StageTime``. ``told``: what the target itself says of the write, in Delta's names; it knows
    better what it got.
    """
    written = (told or {}).get("numOutputBytes")
    target: Metadata = {} if written is None else {"bytes_written": int(written)}
    work = run.work(step)
    if work is None or work.spark_jobs == 0:
        return target
    return {**asdict(work), **target, STAGE_TIMES: _stage_table(run.stages(step))}


def _stage_table(stages: Sequence[StageTime]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, kind) for name, kind in _STAGE_COLUMNS.items()]
    records = [
        dg.TableRecord(
            {**asdict(stage), "start": datetime.fromtimestamp(stage.start, UTC).isoformat(timespec="milliseconds")}
        )
        for stage in stages
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def table_metadata(run: PipelineRun, step: PlannedStep, written: DeltaWrite) -> Metadata:
    """Return where a table is, what was written to it, and a preview of what it holds now."""
    metadata: Metadata = {}
    preview = run.preview(step, written)
    if preview is not None:
        metadata["preview"] = dg.MetadataValue.md(redact(markdown_table(preview.columns, preview.rows)))
    metadata |= {
        **table_location(run.table_path(step), run.plan.name, step.name),
        _row_count_key(run): written.rows,
        "table_version": written.version,
        "files_written": written.files,
        **work_metadata(run, step, written.metrics),
    }
    return metadata


def table_location(path: str, pipeline: str, asset: str) -> Metadata:
    """Return Dagster's standard keys for where a warehouse table is."""
    return {"dagster/uri": path, "dagster/table_name": f"{pipeline}.{asset}"}


def load_metadata(run: PipelineRun, step: PlannedStep, result: LoadResult) -> Metadata:
    """Return where a load wrote, and how much."""
    metadata: Metadata = {"dagster/uri": redact(result.uri), **redact_data(dict(result.metrics))}
    if result.table_name is not None:
        metadata["dagster/table_name"] = result.table_name
    if result.version is not None:
        metadata["table_version"] = result.version
    if result.rows is not None:
        metadata[_row_count_key(run)] = result.rows
    return {**metadata, **work_metadata(run, step, result.metrics)}


def quarantine_metadata(run: PipelineRun, path: str, written: DeltaWrite) -> Metadata:
    """Return where rows in quarantine are, and how many this run has put there."""
    return {"dagster/uri": path, _row_count_key(run): written.rows, "table_version": written.version}


def _row_count_key(run: PipelineRun) -> str:
    return "dagster/row_count" if run.context.partition is None else "dagster/partition_row_count"
