"""Where the nodes of a graph go."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from pipeline_assets.report.graph_layout import Layout, lay_out

Edge = tuple[str, str]


def crossings(layout: Layout[str], edges: list[Edge]) -> int:
    """Count the crossings of straight lines between the places where edges pass each layer."""
    pieces = []
    for start, end in edges:
        (x0, y0), (x1, y1) = layout.positions[start], layout.positions[end]
        xs = [x0, *layout.bends.get((start, end), ()), x1]
        assert len(xs) == y1 - y0 + 1
        pieces += [(y0 + at, left, right) for at, (left, right) in enumerate(pairwise(xs))]
    return sum(a[0] == b[0] and (a[1] - b[1]) * (a[2] - b[2]) < 0 for a, b in combinations(pieces, 2))


def test_a_chain_goes_straight_down() -> None:
    layout = lay_out("abc", [("a", "b"), ("b", "c")])
    assert layout.positions == {"a": (0, 0), "b": (0, 1), "c": (0, 2)}
    assert layout.width == 1


def test_a_source_stands_just_above_what_it_feeds() -> None:
    layout = lay_out("abcz", [("a", "b"), ("b", "c"), ("z", "c")])
    assert layout.positions["z"][1] == layout.positions["c"][1] - 1


def test_crossings_that_need_not_be_are_not_there() -> None:
    edges = [("a", "z"), ("b", "y"), ("c", "x")]
    layout = lay_out("abcxyz", edges)
    assert crossings(layout, edges) == 0


def test_an_edge_over_several_layers_passes_beside_the_nodes_between() -> None:
    edges = [("a", "b"), ("b", "c"), ("a", "c")]
    layout = lay_out("abc", edges)
    (x,) = layout.bends["a", "c"]
    assert abs(x - layout.positions["b"][0]) >= 1


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        lay_out("ab", [("a", "b"), ("b", "a")])


def test_nothing_and_one_node() -> None:
    assert lay_out([], []).width == 0
    assert lay_out(["a"], [("a", "a")]).positions == {"a": (0, 0)}


@pytest.mark.parametrize("seed", range(5))
def test_any_graph_of_fifty_nodes(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [f"n{number}" for number in range(50)]
    edges = [(nodes[chance.randrange(end)], nodes[end]) for end in range(1, 50) for _ in range(chance.randint(1, 2))]
    layout = lay_out(nodes, edges)
    assert all(layout.positions[start][1] < layout.positions[end][1] for start, end in edges)
    assert len(set(layout.positions.values())) == 50
    assert all(0 <= x <= layout.width - 1 for x, _ in layout.positions.values())
