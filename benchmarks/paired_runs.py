"""Statistics of runs that were made in pairs, and goals held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

# Takes what is being measured now.
Report = Callable[[str], None]


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
        """Summarize the ratios of the pairs: what slows the machine down for a while slows both of a pair."""
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
