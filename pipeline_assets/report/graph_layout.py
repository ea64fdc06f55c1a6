"""Where the nodes of a graph without circles go: layers from top to bottom, with few crossings. Pure.

The Python libraries for this are no longer kept (grandalf), or need a program or compiled code (graphviz, igraph); a
pipeline's graph is small enough for the simplest of the known ways.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

Node = TypeVar("Node", bound=Hashable)
_SWEEPS = 8


@dataclass(frozen=True)
class Layout(Generic[Node]):
    """``layers``: the nodes from top to bottom, and each layer from left to right.

    ``positions``: where each node is, as (x, layer): x in widths of a node, from 0 on. ``width`` is how many nodes
    the drawing is wide. ``bends``: for an edge over several layers, the x of where it passes the layers between.
    """

    layers: tuple[tuple[Node, ...], ...]
    positions: Mapping[Node, tuple[float, int]]
    width: int
    bends: Mapping[tuple[Node, Node], tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bend(Generic[Node]):
    """Where an edge passes a layer."""

    edge: tuple[Node, Node]
    layer: int


def lay_out(nodes: Sequence[Node], edges: Iterable[tuple[Node, Node]]) -> Layout[Node]:
    """Place ``nodes`` so that every edge, given as (from, to), goes down.

    A node stands one layer below the lowest that it depends on; a node that nothing leads to stands just above the
    first that it leads to. Within a layer nodes are ordered by where their neighbours are (barycenters), starting from
    the order given. Raises ValueError for a circle.
    """
    wanted = [edge for edge in dict.fromkeys(edges) if edge[0] != edge[1]]
    layer_of = _layers(nodes, wanted)
    chains: dict[tuple[Node, Node], list[_Bend[Node]]] = {
        edge: [_Bend(edge, layer) for layer in range(layer_of[edge[0]] + 1, layer_of[edge[1]])] for edge in wanted
    }
    rows: list[list[Hashable]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for node in nodes:
        rows[layer_of[node]].append(node)
    above: dict[Hashable, list[Hashable]] = {}
    below: dict[Hashable, list[Hashable]] = {}
    for (start, end), bends in chains.items():
        for bend in bends:
            rows[bend.layer].append(bend)
        path: list[Hashable] = [start, *bends, end]
        for upper, lower in pairwise(path):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)
    _order(rows, above, below)
    width = max(map(len, rows), default=0)
    # Each layer is centred; half a place is the finest step.
    x_of = {item: (width - len(row)) / 2 + at for row in rows for at, item in enumerate(row)}
    return Layout(
        layers=tuple(tuple(item for item in row if not isinstance(item, _Bend)) for row in rows),  # type: ignore[misc]
        positions={node: (x_of[node], layer_of[node]) for node in nodes},
        width=width,
        bends={edge: tuple(x_of[bend] for bend in bends) for edge, bends in chains.items() if bends},
    )


def _layers(nodes: Sequence[Node], edges: Sequence[tuple[Node, Node]]) -> dict[Node, int]:
    before: dict[Node, list[Node]] = {node: [] for node in nodes}
    after: dict[Node, list[Node]] = {node: [] for node in nodes}
    for start, end in edges:
        before[end].append(start)
        after[start].append(end)
    found: dict[Node, int] = {}
    pending = list(nodes)
    while pending:
        ready = [node for node in pending if all(other in found for other in before[node])]
        if not ready:
            raise ValueError("the graph has a circle")
        for node in ready:
            found[node] = max((found[other] + 1 for other in before[node]), default=0)
        pending = [node for node in pending if node not in found]
    for node in nodes:
        if not before[node] and after[node]:
            found[node] = min(found[other] for other in after[node]) - 1
    return found


def _order(
    rows: list[list[Hashable]], above: Mapping[Hashable, list[Hashable]], below: Mapping[Hashable, list[Hashable]]
) -> None:
    """Order each of ``rows`` by its neighbours, down and up in turn; the order with the fewest crossings stays."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for index in range(len(rows)) if down else reversed(range(len(rows))):
            beside = index - 1 if down else index + 1
            if 0 <= beside < len(rows):
                rows[index] = _by_neighbours(rows[index], rows[beside], above if down else below)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    rows[:] = best


def _by_neighbours(
    row: list[Hashable], beside: list[Hashable], neighbours: Mapping[Hashable, list[Hashable]]
) -> list[Hashable]:
    place = {item: at for at, item in enumerate(beside)}
    means: dict[Hashable, float] = {}
    for at, item in enumerate(row):
        places = [place[other] for other in neighbours.get(item, ())]
        means[item] = sum(places) / len(places) if places else at
    return sorted(row, key=means.__getitem__)


def _crossings(rows: list[list[Hashable]], below: Mapping[Hashable, list[Hashable]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {item: at for at, item in enumerate(lower)}
        ends = [at for item in upper for at in sorted(place[n] for n in below.get(item, ()))]
        total += sum(later < earlier for index, earlier in enumerate(ends) for later in ends[index + 1 :])
    return total
