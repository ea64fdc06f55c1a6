"""What an asset's page shows: Dagster metadata made from what Spark says about a DataFrame or a write."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.checked_rows import checked_and_references
from pipeline_assets.errors import PipelineError, error_line
from pipeline_assets.execution import PipelineRun
from pipeline_assets.metrics.dagster_events import QUARANTINE_OF, ROW_COUNTS
from pipeline_assets.plan import PlannedStep
from pipeline_assets.redaction import redact, redact_data
from pipeline_assets.spark.connect_sessions import session_apart
from pipeline_assets.spark.description import columns_of, describe, markdown_table
from pipeline_assets.spark.failures import is_spark_error
from pipeline_assets.spark.job_metrics import StageTime
from pipeline_assets.spark.lineage import column_lineage
from pipeline_assets.steps.base import (
    ColumnSources,
    Dataset,
    ExtractMethod,
    LoadMethod,
    LoadResult,
    StepContext,
    TransformMethod,
    ValidateMethod,
)
from pipeline_assets.steps.delta_log import files_written
from pipeline_assets.steps.delta_table import DeltaWrite
from pipeline_assets.steps.transform import Sql

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_log = logging.getLogger(__name__)
Metadata = dict[str, Any]
STAGE_TIMES = "spark_stage_times"
OPERATION_TIMES = "spark_operation_ms"
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
SourceAssets = Mapping[Dataset, Sequence[dg.AssetKey]]


def dataframe_metadata(frame: "DataFrame", origins: ColumnOrigins | None = None) -> Metadata:
    """Return schema, lineage, partition count and physical plan of a DataFrame. No data moves."""
    description = describe(frame)
    metadata = columns_metadata(frame, origins)
    if description.partitions is not None:
        metadata["partition_count"] = description.partitions
    # Last, since it is long.
    metadata["physical_plan"] = dg.MetadataValue.md(f"```\n{description.plan.strip()}\n```")
    return metadata


def columns_metadata(frame: "DataFrame", origins: ColumnOrigins | None = None) -> Metadata:
    """Return schema and lineage of a DataFrame. No data moves."""
    deps = origins or {}
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            # The open-source UI has no view of column lineage; the schema's table shows it as well.
            description=redact(column.comment) if column.comment else _told(deps.get(column.name, ())),
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in columns_of(frame)
    ]
    metadata: Metadata = {"dagster/column_schema": dg.TableSchema(columns)}
    if deps:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(deps)
    return metadata


def _told(origins: Sequence[dg.TableColumnDep]) -> str | None:
    names = [f"{origin.asset_key.path[-1]}.{origin.column_name}" for origin in origins]
    return f"from {', '.join(names)}" if names else None


def source_origins(found: ColumnSources, assets: SourceAssets) -> ColumnOrigins:
    """Return the columns of ``assets`` that stand for those of the datasets; one of a dataset without is left out."""
    return {
        column: [dg.TableColumnDep(key, source) for dataset, source in origins for key in assets[dataset]]
        for column, origins in found.items()
        if all(dataset in assets for dataset, _ in origins)
    }


def letters_metadata(found: ColumnSources, assets: SourceAssets) -> Metadata:
    """Return the lineage of a dead-letter table."""
    return {"dagster/column_lineage": dg.TableColumnLineage(source_origins(found, assets))}


def column_origins(
    run: PipelineRun,
    step: PlannedStep,
    frame: "DataFrame",
    inputs: Mapping[int, "DataFrame"],
    upstream: Mapping[int, dg.AssetKey],
    sources: SourceAssets | None = None,
) -> ColumnOrigins:
    """Return the columns that each column of ``frame`` comes from; one that is not understood is left out.

    ``frame`` is that of ``step``, or of what a load writes. ``upstream``: the asset of each input, by step index;
    ``sources``: the assets that stand for what an extract reads.
    """
    method = step.method
    if isinstance(method, ExtractMethod):
        return source_origins(method.column_sources(frame.columns), sources or {})
    if isinstance(method, LoadMethod):
        (index,) = step.inputs
        if frame is inputs[index]:
            return {column: [dg.TableColumnDep(upstream[index], column)] for column in frame.columns}

    with _context_of_stubs(run, step) as context:

        def apply(stubs: Mapping[str, "DataFrame"]) -> "DataFrame":
            if isinstance(method, LoadMethod):
                return method.written(stubs[step.input_names[0]], context)
            if isinstance(method, ValidateMethod):
                return method.good_rows(_compared(step, stubs), context)
            assert isinstance(method, TransformMethod)  # noqa: S101  (a step with a DataFrame is one of these)
            return method.transform(stubs, context)

        try:
            return _origins(context.spark, step, apply, inputs, upstream)
        except Exception as error:
            # What a method of somebody else's has registered by name is not known apart.
            if context is run.context or not is_spark_error(error):
                raise
            _log.info("%s: no column lineage: %s", run.plan.location(step), error_line(error))
            return {}


@contextmanager
def _context_of_stubs(run: PipelineRun, step: PlannedStep) -> Iterator[StepContext]:
    """Give the context in which ``step`` is applied to empty stand-ins, which a query registers as its inputs."""
    if not isinstance(step.method, Sql):
        yield run.context
        return
    with session_apart(run.context.spark, run.context.settings.spark_remote) as spark:
        yield replace(run.context, spark=spark)


def quarantine_origins(
    run: PipelineRun, step: PlannedStep, inputs: Mapping[int, "DataFrame"], upstream: Mapping[int, dg.AssetKey]
) -> ColumnOrigins:
    """Return the same as ``column_origins`` for the rows that ``step`` puts into quarantine."""
    method = step.method
    assert isinstance(method, ValidateMethod)  # noqa: S101  (the callers look)
    context = run.context
    return _origins(
        context.spark, step, lambda stubs: method.bad_rows(_compared(step, stubs), context), inputs, upstream
    )


def _compared(step: PlannedStep, stubs: Mapping[str, "DataFrame"]) -> "DataFrame":
    return step.validate_method.compared(*checked_and_references(step, stubs))


def _origins(
    spark: "SparkSession",
    step: PlannedStep,
    apply: Callable[[Mapping[str, "DataFrame"]], "DataFrame"],
    inputs: Mapping[int, "DataFrame"],
    upstream: Mapping[int, dg.AssetKey],
) -> ColumnOrigins:
    frames, assets = step.named_inputs(inputs), step.named_inputs(upstream)
    schemas = {name: frame.schema for name, frame in frames.items()}
    streams = [name for name, frame in frames.items() if frame.isStreaming]
    found = column_lineage(apply, schemas, spark, streams)
    return {
        column: [dg.TableColumnDep(assets[name], source) for name, source in origins]
        for column, origins in (found or {}).items()
    }


def cache_metadata(run: PipelineRun, step: PlannedStep) -> Metadata:
    """Return the storage level of a DataFrame that the run keeps, and nothing for any other."""
    levels = {cached.name: cached.level for cached in run.context.cache.cached()}
    return {"storage_level": levels[step.dataframe]} if step.dataframe in levels else {}


def optimization_metadata(run: PipelineRun, step: PlannedStep) -> Metadata:
    """Return what was decided for ``step`` beyond its config, and why; nothing when nothing was."""
    told = run.optimizations.told(run.plan, step)
    return {} if told is None else {"optimization": told}


def work_metadata(run: PipelineRun, step: PlannedStep, told: Mapping[str, int | str] | None = None) -> Metadata:
    """Return what Spark's jobs have done for ``step``: numbers that Dagster plots, and a table of the longest stages.

    See ``JobMetrics`` and ``StageTime``. Each is returned once. ``told``: what the target itself says of the write, in
    Delta's names; it knows better what it got.
    """
    written = (told or {}).get("numOutputBytes")
    target: Metadata = {} if written is None else {"bytes_written": int(written)}
    work, stages = run.scope.take_work(step)
    if work is None or work.spark_jobs == 0:
        return target
    return {**asdict(work), **target, STAGE_TIMES: _stage_table(stages)}


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
        metadata["preview"] = dg.MetadataValue.md(markdown_table(preview.columns, preview.rows))
    metadata |= {
        **table_location(run.table_path(step), run.plan.name, step.name),
        _row_count_key(run): written.rows,
        "table_version": written.version,
        "files_written": written.files,
        **work_metadata(run, step, written.metrics),
    }
    return metadata


def table_columns_metadata(run: PipelineRun, step: PlannedStep, frame: "DataFrame", origins: ColumnOrigins) -> Metadata:
    """Return the same as ``dataframe_metadata`` for the table that ``frame`` becomes."""
    table = run.written(step, frame)
    # The key of the run's partition, where it is added, comes from no other column.
    added: ColumnOrigins = {column: [] for column in table.columns if column not in frame.columns}
    return dataframe_metadata(table, {**origins, **added})


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
    files = files_written(result.metrics)
    if files is not None:
        metadata["files_written"] = files
    return {**metadata, **work_metadata(run, step, result.metrics)}


def loaded_metadata(
    run: PipelineRun, step: PlannedStep, frame: "DataFrame", upstream: Mapping[int, dg.AssetKey]
) -> Metadata:
    """Return the same as ``dataframe_metadata`` for what a load has made of ``frame``; nothing where Spark is gone.

    The rows are in: what only shows them may not fail the step, which would be tried again and write them twice.
    """
    try:
        with run.scope.errors_of(step, [frame]):
            written = run.written(step, frame)
            origins = column_origins(run, step, written, {step.inputs[0]: frame}, upstream)
            return dataframe_metadata(written, origins)
    except PipelineError as error:
        _log.warning("no columns and no plan are shown: %s", error)
        return {}


def quarantine_metadata(run: PipelineRun, step: PlannedStep, path: str, written: DeltaWrite) -> Metadata:
    """Return where the rows are that ``step`` puts into quarantine, and how many this run has put there."""
    rows = {_row_count_key(run): written.rows, "table_version": written.version}
    return {"dagster/uri": path, QUARANTINE_OF: step.name, **rows}


def _row_count_key(run: PipelineRun) -> str:
    whole, of_partition = ROW_COUNTS
    return whole if run.context.partition is None else of_partition
