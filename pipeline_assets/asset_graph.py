"""What the assets of a pipeline depend on: one another, those of other pipelines, and data from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg

from pipeline_assets.asset_keys import asset_key, dataset_key, pipeline_key
from pipeline_assets.links import Link, Links
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.redaction import redact
from pipeline_assets.steps.base import Dataset


@dataclass(frozen=True)
class AssetGraph:
    """Which assets those of ``plan`` depend on.

    ``plans``: those of the location, by name; ``links``: what these read of one another.
    """

    plan: PipelinePlan
    plans: Mapping[str, PipelinePlan]
    links: Links

    def key(self, index: int) -> dg.AssetKey:
        """Return the key of the asset of the step of that index."""
        return asset_key(self.plan, self.plan.steps[index])

    def external_assets(self) -> Iterator[dg.AssetSpec]:
        """Yield a spec for each source that no pipeline of the location writes."""
        for step in self.plan.steps:
            yield from self.external_sources(step)

    def external_sources(self, step: PlannedStep) -> Iterator[dg.AssetSpec]:
        """Yield a spec for each source of ``step`` that no pipeline of the location writes."""
        linked = self._linked(step)
        for source in step.method.sources():
            if source not in linked:
                yield dg.AssetSpec(
                    dataset_key(source),
                    group_name="sources",
                    kinds={source.kind},
                    description=f"{redact(source.uri)}, read by pipelines",
                    metadata={"dagster/uri": redact(source.uri)},
                )

    def source_assets(self, step: PlannedStep) -> dict[Dataset, tuple[dg.AssetKey, ...]]:
        """Return, for each source of ``step``, the assets that write it, or else its external asset."""
        linked = self._linked(step)
        return {
            source: tuple(map(self._producer_key, linked[source])) if source in linked else (dataset_key(source),)
            for source in step.method.sources()
        }

    def source_deps(self, step: PlannedStep) -> Iterator[dg.AssetDep]:
        """Yield the assets that ``step`` reads from outside."""
        yield from self._linked_deps(step)
        for key in dict.fromkeys(spec.key for spec in self.external_sources(step)):
            yield dg.AssetDep(key)

    def deps(self, step: PlannedStep) -> list[dg.AssetDep]:
        """Return all assets that ``step`` comes after, but for those whose DataFrames it takes."""
        waits = (dg.AssetDep(self.key(other.index)) for other in self.plan.waits_for(step))
        taken = {self.key(index) for index in step.inputs}
        found = (*waits, *self._deps_of_views(step), *self.source_deps(step))
        return [dep for key, dep in {dep.asset_key: dep for dep in found}.items() if key not in taken]

    def _deps_of_views(self, step: PlannedStep) -> Iterator[dg.AssetDep]:
        """Yield what is written, by pipelines, of what the views are made of whose rows ``step`` moves.

        Dagster knows it by way of the views; in a run that leaves them out nothing would wait for it.
        """
        for view in self.plan.views_under(step) if step.moves_rows else ():
            yield from self._linked_deps(view)
            for index in (*view.inputs, view.index):
                if self.plan.steps[index].moves_rows:
                    yield dg.AssetDep(self.key(index))

    def _linked_deps(self, step: PlannedStep) -> Iterator[dg.AssetDep]:
        """Yield those assets that pipelines make, of what ``step`` reads from outside."""
        linked = self._linked(step)
        plans = {self._producer_key(link): self.plans[link.upstream] for links in linked.values() for link in links}
        for key, plan in plans.items():
            yield dg.AssetDep(key, partition_mapping=self._partition_mapping(plan))

    def _partition_mapping(self, upstream: PipelinePlan) -> dg.PartitionMapping | None:
        """Return which partitions of ``upstream`` a partition here depends on: all, where Dagster can't tell."""
        theirs = upstream.pipeline.config.partitions
        ours = self.plan.pipeline.config.partitions
        if theirs is None or ours is None or theirs.compares_with(ours):
            return None
        return dg.AllPartitionMapping()

    def put_aside_by_streams(self) -> Iterator[dg.AssetKey]:
        """Yield what the pipeline reads of records that streams put aside: nobody waits for there to be some."""
        for step in self.plan.steps:
            linked = self._linked(step)
            for link in (link for links in linked.values() for link in links):
                producer = self.plans[link.upstream].steps[link.producer]
                if link.asset == producer.dead_letters or (producer.is_stream and link.asset == producer.quarantine):
                    yield self._producer_key(link)

    def _linked(self, step: PlannedStep) -> Mapping[Dataset, tuple[Link, ...]]:
        """Return those sources of ``step`` that pipelines write, and what writes each."""
        return self.links.get((self.plan.name, step.index), {})

    def _producer_key(self, link: Link) -> dg.AssetKey:
        return pipeline_key(link.upstream, link.asset)
