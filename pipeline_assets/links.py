"""Which data outside a pipeline another one writes, so that lineage crosses pipelines. Pure: no Spark, no Dagster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline_assets.graphs import reach
from pipeline_assets.plan import PipelinePlan, PlannedStep
from pipeline_assets.steps.base import Dataset


@dataclass(frozen=True)
class Link:
    """A dataset that one pipeline writes and another reads: ``asset`` of step ``producer`` of ``upstream``."""

    upstream: str
    producer: int
    asset: str


Links = Mapping[tuple[str, int], Mapping[Dataset, tuple[Link, ...]]]


def link_pipelines(plans: Sequence[PipelinePlan]) -> Links:
    """Find, for each extract step of each pipeline, which of its sources other pipelines write.

    Returns, by (pipeline, step index), the sources that have producers. A link that would close a circle between
    pipelines is left out: such a source stays an external asset, since Dagster refuses circles. Steps of the pipeline
    itself are producers, too, of the sources of those after them, or of a part of these.
    """
    producers = _producers(plans)
    upstream_of: dict[str, set[str]] = {}
    links: dict[tuple[str, int], dict[Dataset, tuple[Link, ...]]] = {}
    for plan in plans:
        for step in plan.steps:
            for source in step.method.sources():
                writers = producers.get((source.kind, source.parts), ())
                own = [
                    link
                    for writer in plan.writers_before(step)
                    for written, link in _written_by(plan, writer)
                    if written.overlaps(source)
                ]
                others = [link for link in writers if not _comes_from(link.upstream, plan.name, upstream_of)]
                upstream_of.setdefault(plan.name, set()).update(link.upstream for link in others)
                found = [*own, *others]
                if found:
                    links.setdefault((plan.name, step.index), {})[source] = tuple(found)
    return links


def left_out(plans: Sequence[PipelinePlan], links: Links) -> Iterator[tuple[PipelinePlan, PlannedStep, Link]]:
    """Yield each link that is not among ``links``, which ``link_pipelines`` has found, with the step that reads."""
    producers = _producers(plans)
    for plan in plans:
        for step in plan.steps:
            for source in step.method.sources():
                linked = links.get((plan.name, step.index), {}).get(source, ())
                for link in producers.get((source.kind, source.parts), ()):
                    if link.upstream != plan.name and link not in linked:
                        yield plan, step, link


def _producers(plans: Sequence[PipelinePlan]) -> Mapping[tuple[str, tuple[str, ...]], list[Link]]:
    """Return who writes what, by its kind and parts."""
    found: dict[tuple[str, tuple[str, ...]], list[Link]] = {}
    for plan in plans:
        for step in plan.steps:
            for written, link in _written_by(plan, step):
                found.setdefault((written.kind, written.parts), []).append(link)
    return found


def _written_by(plan: PipelinePlan, step: PlannedStep) -> Iterator[tuple[Dataset, Link]]:
    for asset, written in plan.written_by(step):
        yield written, Link(plan.name, step.index, asset)


def _comes_from(pipeline: str, other: str, upstream_of: Mapping[str, set[str]]) -> bool:
    """Whether ``pipeline`` is ``other`` or downstream of it."""
    return pipeline == other or other in reach(pipeline, lambda name: upstream_of.get(name, ()))
