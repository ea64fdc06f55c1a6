"""Runs that are made in rounds, statistics of them, and goals held against those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

# Takes what is being measured now.
Report = Callable[[str], None]
_V = TypeVar("_V")


def rounds(what: str, variants: Sequence[_V], count: int, report: Report) -> Iterator[tuple[bool, Sequence[_V]]]:
    """Yield whether a round counts, and the order of ``variants`` in it: ``count`` rounds, an even number, that do.

    One that does not is before them, so that no one pays for what the machine has to read first. Of two rounds the
    second has the order of the first turned round, and each two begin with another variant: each variant is as often
    before any other as after it, and whoever gains by its place does not have the median on its side.
    """
    if count % 2:
        raise ValueError(f"{count} rounds: an odd number favours an order, so ask for an even one")
    for number in range(count + 1):
        report(f"{what}: " + (f"round {number} of {count}" if number else "a round that does not count"))
        begin, is_turned = divmod(max(number, 1) - 1, 2)
        first = begin % len(variants)
        order = (*variants[first:], *variants[:first])
        yield number > 0, order[::-1] if is_turned else order


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: their median, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize ``values``, of which there is at least one."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1])

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
        """Summarize the ratios of the rounds: what slows the machine down for a while slows all of a round."""
        return cls.of(above / below for above, below in zip(numerators, denominators, strict=True))

    def text(self, unit: str, digits: int = 2) -> str:
        """Return the median, with the least and the greatest in parentheses where they differ."""
        if self.least == self.greatest:
            return f"{self.median:.{digits}f}{unit}"
        return f"{self.median:.{digits}f}{unit} ({self.least:.{digits}f} to {self.greatest:.{digits}f})"


@dataclass(frozen=True)
class Goal:
    """A goal, and what was measured: a ratio or a number that is to be at most ``limit``, or ``at_least`` that."""

    what: str
    limit: float
    measured: Spread
    unit: str = "x"
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the median is within the limit."""
        return self.measured.median >= self.limit if self.at_least else self.measured.median <= self.limit
