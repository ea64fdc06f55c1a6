"""What a streaming query has committed to a Delta table, by the table's log: for what is told of it alone.

The rows are in, whether the log can be looked at just then or not: that it can't fails nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline_assets.errors import PipelineError
from pipeline_assets.steps.delta_log import Commit, find_transaction, rows_written
from pipeline_assets.steps.file_systems import Folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_log = logging.getLogger(__name__)


class Commits:
    """The commits to one table, which ``open_table`` opens; it returns None for one that can't be seen from here.

    The table is opened once, as Vault may have to be asked for that, and anew when it can't be read any more: its
    credentials may have been replaced.
    """

    def __init__(self, open_table: Callable[[], Folder | None]) -> None:
        self._open_table = open_table
        self._table: Folder | None = None
        self._next_look = 0.0
        self._is_failing = False

    def find(self, app_id: str, number: int) -> tuple[Commit | None, bool]:
        """Return the commit by which ``app_id`` made its transaction ``number``, if there is one, and whether that is
        known: after a look that was in vain, which is a warning, there is none for as long as that took.
        """
        started = time.monotonic()
        if started < self._next_look:
            return None, False
        try:
            found = self._find(app_id, number)
        except PipelineError as error:
            self._table = None
            # With Vault away a look takes half a minute, in which nobody sees to leases and stops.
            now = time.monotonic()
            self._next_look = now + (now - started)
            if not self._is_failing:
                _log.warning("what micro-batches have committed can't be told for now: %s", error)
            self._is_failing = True
            return None, False
        self._is_failing = False
        return found, True

    def _find(self, app_id: str, number: int) -> Commit | None:
        if self._table is not None:
            with suppress(PipelineError):
                return find_transaction(self._table, app_id, number)
        self._table = self._open_table()
        return find_transaction(self._table, app_id, number) if self._table is not None else None

    def rows_appended(self, app_id: str, number: int, frame: DataFrame) -> int:
        """Return how many rows ``append_once`` has appended of ``frame``, which is computed again where nothing else
        tells.
        """
        commit, _ = self.find(app_id, number)
        return rows_written(commit.metrics) if commit is not None else frame.count()
