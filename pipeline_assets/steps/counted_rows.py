"""Counting rows while they are written, by an observation that rides on the write."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ROWS = "rows"


class CountedRows:
    """The number of rows that one action saw. No job of its own is run for it."""

    def __init__(self) -> None:
        self._observation: Any = None
        self.is_always_told = True
        """Whether the count comes, however late. A Connect server waits a tenth of a second for it, and goes on."""

    def on(self, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with the count riding on it; run exactly one action on what is returned."""
        from pyspark.sql import functions as F  # noqa: N812

        over_connect = type(frame).__module__.startswith("pyspark.sql.connect")
        self.is_always_told = not over_connect
        module = import_module("pyspark.sql.connect.observation" if over_connect else "pyspark.sql.observation")
        self._observation = module.Observation()
        # Not by F.lit, which imports pandas.
        return frame.observe(self._observation, F.expr("count(1)").alias(_ROWS))

    def get(self, timeout_seconds: float = 10.0) -> int | None:
        """Return the count after the action, or None when Spark does not report it in time.

        It comes by an event after the action has returned, and Spark's own getter waits for it without limit.
        """
        found: list[int | None] = []
        # A Connect server that did not wait for it leaves it out.
        waiting = threading.Thread(target=lambda: found.append(self._observation.get.get(_ROWS)), daemon=True)
        waiting.start()
        waiting.join(timeout_seconds)
        return found[0] if found else None
