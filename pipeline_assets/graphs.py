"""Walks along directed graphs; Python's graphlib sorts them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def reach(start: T, following: Callable[[T], Iterable[T]]) -> set[T]:
    """Return what ``following`` leads to from ``start``: that itself in a circle only."""
    found: set[T] = set()
    pending = list(following(start))
    while pending:
        step = pending.pop()
        if step not in found:
            found.add(step)
            pending.extend(following(step))
    return found
