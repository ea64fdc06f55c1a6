"""The columns of what a run has materialized, compared with those that an earlier run told."""

# No postponed annotations here, as in all modules that know Dagster's events.
from collections.abc import Iterator
from typing import Any

import dagster as dg

from pipeline_assets.asset_keys import pipeline_key
from pipeline_assets.report.asset_events import AssetEvents
from pipeline_assets.report.model import Column, SchemaComparison
from pipeline_assets.report.schema_changes import schema_changes

# How far to look back for another run's materialization that tells columns: not each one does.
_LOOK_BACK = 25


def schema_comparisons(instance: dg.DagsterInstance, run_id: str, told: AssetEvents) -> Iterator[SchemaComparison]:
    """Yield how the columns of each asset of ``told`` differ from those that it had before the run."""
    for name, made in told.made.items():
        schema = made.metadata.get("dagster/column_schema")
        if schema is None:
            continue
        key = pipeline_key(told.pipeline, name)
        for record, before in _earlier_schemas(instance, key, made.first_time):
            if record.run_id != run_id:
                changes = schema_changes(_columns(before), _columns(schema))
                yield SchemaComparison(name, record.run_id, record.timestamp, changes)
                break
        else:
            yield SchemaComparison(name)


def _earlier_schemas(
    instance: dg.DagsterInstance, key: dg.AssetKey, before: float
) -> Iterator[tuple[dg.EventLogRecord, Any]]:
    """Yield the materializations before ``before`` that tell columns, and what they tell, the last one first."""
    # Not by their ids: in SQLite, a run's events have others in its own log.
    filtered = dg.AssetRecordsFilter(key, before_timestamp=before)
    # Mostly the last one will do, and each has a plan that is long.
    for skipped, limit in ((0, 1), (1, _LOOK_BACK)):
        for record in instance.fetch_materializations(filtered, limit=limit).records[skipped:]:
            found = record.asset_materialization
            schema = found.metadata.get("dagster/column_schema") if found is not None else None
            if schema is not None:
                yield record, schema.value


def _columns(schema: Any) -> list[Column]:
    return [Column(column.name, column.type, column.constraints.nullable) for column in schema.columns]
