"""A pipeline's job, which Dagster resolves without a look at all other pipelines."""

# No postponed annotations here, as in all modules that define what Dagster runs.
from collections.abc import Mapping

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.external_asset import create_unexecutable_external_asset_from_assets_def
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


class PipelineJob(UnresolvedAssetJobDefinition):
    """What ``dagster.define_asset_job`` returns, for a selection that its assets, checks and their inputs suffice for.

    Dagster resolves a job against every asset of the location: the time that a location takes to load then grows with
    the square of its pipelines, and is over a minute for 1,000.
    """

    def resolve(
        self,
        asset_graph: AssetGraph,
        default_executor_def: dg.ExecutorDefinition | None = None,
        resource_defs: Mapping[str, dg.ResourceDefinition] | None = None,
    ) -> dg.JobDefinition:
        """Return the job; ``asset_graph`` is that of the whole location."""
        return super().resolve(_part_of(asset_graph, self.selection), default_executor_def, resource_defs)


def _part_of(asset_graph: AssetGraph, selection: dg.AssetSelection) -> AssetGraph:
    """Return the assets of ``selection`` with their checks, and what they depend on as external assets."""
    selected = selection.resolve(asset_graph)
    checks = asset_graph.get_check_keys_for_assets(selected)
    parents = {parent for key in selected for parent in asset_graph.get(key).parent_keys} - selected
    definitions = {asset_graph.get(key).assets_def for key in selected}
    definitions |= {asset_graph._assets_defs_by_check_key[key] for key in checks}
    external = {asset_graph.get(key).assets_def for key in parents} - definitions
    return AssetGraph.from_assets(
        [*definitions, *(create_unexecutable_external_asset_from_assets_def(found) for found in external)]
    )
