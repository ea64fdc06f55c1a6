"""What files were parsed to, kept by their content and by the variables that stand in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class NotedVariables(Mapping[str, str]):
    """Variables by name, but those that are ``hidden``, and a note of each that was asked for."""

    def __init__(self, values: Mapping[str, str], hidden: tuple[str, ...] = ()) -> None:
        self._values = values
        self._hidden = hidden
        self.asked: dict[str, str | None] = {}
        """The value of each variable that was asked for; None for one that is not set."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._noted(name) is not None

    def __getitem__(self, name: str) -> str:
        found = self._noted(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._values if name not in self._hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _noted(self, name: str) -> str | None:
        found = None if name in self._hidden else self._values.get(name)
        self.asked[name] = found
        return found


@dataclass(frozen=True)
class _Parsed(Generic[T]):
    facts: Hashable
    asked: Mapping[str, str | None]
    result: T


class ParsedFiles(Generic[T]):
    """What files were last parsed to. It lives as long as its process, and in memory alone.

    A file on disk would save a new process 2 % of its load: nearly all of that is Dagster's. It would also hold the
    values of environment variables, which may be secrets.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._parsed: dict[Hashable, _Parsed[T]] = {}

    def get(
        self,
        name: Hashable,
        content: bytes,
        variables: NotedVariables,
        parse: Callable[[NotedVariables], T],
        *facts: Hashable,
    ) -> T:
        """Return what ``parse`` made of file ``name`` when it had the same content, variables and ``facts``.

        When it had not, or ``parse`` raised an error then, ``parse`` is called, and what it returns is kept.
        """
        known = (hashlib.sha256(content).digest(), facts)
        found = self._parsed.pop(name, None)
        if found is None or found.facts != known or any(variables.get(k) != v for k, v in found.asked.items()):
            variables.asked.clear()
            result = parse(variables)
            found = _Parsed(known, dict(variables.asked), result)
        self._parsed[name] = found  # last: the one that was used the longest ago is the first
        while len(self._parsed) > self._limit:
            self._parsed.pop(next(iter(self._parsed)), None)
        return found.result
