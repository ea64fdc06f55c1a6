"""Validate steps as Dagster asset checks, and what is put into quarantine as an asset."""

# No postponed annotations here: Dagster inspects those of the functions that it turns into assets.
from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg

from pipeline_assets.asset_metadata import Metadata, table_location
from pipeline_assets.plan import PipelinePlan, PlannedStep, check_name
from pipeline_assets.settings import Settings
from pipeline_assets.spark.description import markdown_table
from pipeline_assets.steps.base import ExpectationResult, ValidateMethod


def check_specs(
    step: PlannedStep, asset: dg.AssetKey, references: Iterable[dg.AssetKey] = ()
) -> list[dg.AssetCheckSpec]:
    """Return the asset checks of a validate step: one for each expectation, on ``asset``, compared with others."""
    method = step.method
    assert isinstance(method, ValidateMethod)  # noqa: S101  (the plan's role says so)
    return [
        dg.AssetCheckSpec(
            check_name(step.name, name),
            asset=asset,
            blocking=method.reaction == "fail" and not step.is_stream,
            description=says,
            additional_deps=[key for key in dict.fromkeys(references) if key != asset],
        )
        for name, says in method.expectation_names().items()
    ]


def check_results(
    step: PlannedStep, asset: dg.AssetKey, results: Iterable[ExpectationResult], about_work: Metadata | None = None
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of a validate step as Dagster takes them.

    ``about_work``: what Spark did for all of them at once; it stands with the first, so that nobody adds it up.
    """
    for number, result in enumerate(results):
        yield dg.AssetCheckResult(
            check_name=check_name(step.name, result.name),
            asset_key=asset,
            passed=result.passed,
            severity=dg.AssetCheckSeverity.WARN if result.severity == "warn" else dg.AssetCheckSeverity.ERROR,
            metadata={**expectation_metadata(result), **((about_work or {}) if number == 0 else {})},
        )


def expectation_metadata(result: ExpectationResult) -> Metadata:
    """Return how many rows did not meet an expectation, what else was measured, and some of these rows."""
    metadata: Metadata = {
        "failed_rows": result.failed,
        "total_rows": result.total,
        "failed_percent": result.percent,
        **result.facts,
    }
    if result.samples is not None:
        metadata["failed_sample"] = dg.MetadataValue.md(markdown_table(result.samples.columns, result.samples.rows))
    return metadata


def quarantine_properties(plan: PipelinePlan, step: PlannedStep, settings: Settings) -> dict[str, Any]:
    """Return what Dagster is told about the asset of the rows that ``step`` puts into quarantine."""
    description = f"Rows that do not meet what {step.name} expects, with the reasons, the run and the time."
    return set_aside_properties(
        plan, step.quarantine or "", step.validate_method.quarantine_path, description, settings
    )


def set_aside_properties(
    plan: PipelinePlan, name: str, path: str | None, description: str, settings: Settings
) -> dict[str, Any]:
    """Return what Dagster is told about a table of what is put aside: at ``path``, else ``name`` in the warehouse."""
    place = {"dagster/uri": path} if path else table_location(settings.table_path(plan.name, name), plan.name, name)
    return {
        "group_name": plan.name,
        "description": description,
        "kinds": {"spark", "deltalake"},
        "owners": list(plan.pipeline.config.owners),
        "tags": dict(plan.pipeline.config.tags),
        "metadata": place,
    }
