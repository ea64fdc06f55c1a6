"""No variant gains by its place: the orders of the rounds are balanced."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from benchmarks.__main__ import main
from benchmarks.paired_runs import rounds


def unheard(_text: str) -> None:
    """Take what is being measured for nobody."""


@pytest.mark.parametrize("variants", ["ab", "abc", "abcd"])
@pytest.mark.parametrize("count", [2, 4, 6, 10])
def test_each_variant_is_as_often_before_any_other_as_after_it(variants: str, count: int) -> None:
    orders = [order for counts, order in rounds("p", variants, count, unheard) if counts]
    assert len(orders) == count
    assert all(sorted(order) == list(variants) for order in orders)
    before = Counter(pair for order in orders for pair in permutations(variants, 2) if is_before(order, *pair))
    assert set(before.values()) == {count // 2}


def is_before(order: tuple[str, ...], one: str, other: str) -> bool:
    """Return whether one variant runs before the other."""
    return order.index(one) < order.index(other)


def test_six_rounds_of_three_have_all_orders() -> None:
    found = [order for counts, order in rounds("p", "abc", 6, unheard) if counts]
    assert sorted(found) == sorted(permutations("abc"))


def test_a_first_round_does_not_count() -> None:
    told: list[str] = []
    assert [counts for counts, _ in rounds("p", "ab", 2, told.append)] == [False, True, True]
    assert told == ["p: a round that does not count", "p: round 1 of 2", "p: round 2 of 2"]


def test_an_odd_number_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        next(rounds("p", "ab", 3, unheard))


def test_the_command_asks_for_even_numbers() -> None:
    given = main.make_context("benchmarks", ["--pairs", "7", "--many-pairs", "0"]).params
    assert (given["pairs"], given["many_pairs"]) == (8, 0)
    usual = main.make_context("benchmarks", []).params
    assert (usual["pairs"], usual["many_pairs"]) == (6, 4)
