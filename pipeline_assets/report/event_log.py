"""The event log of a run, read piece by piece."""

# No postponed annotations here, as in all modules that know Dagster's events.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

_Kinds = frozenset[dg.DagsterEventType]


@dataclass(frozen=True)
class _Records:
    """Events as the log has them, and whether some between the first and the last ones are left out."""

    records: Sequence[dg.EventLogRecord]
    is_cut: bool


class EventLog:
    """The event log of one run, read once for all pipelines that were in it."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self._instance = instance
        self._run_id = run_id
        self._found: dict[tuple[_Kinds, int | None], _Records] = {}
        self.last_time = 0.0

    def records(self, kinds: _Kinds, most: int | None = None) -> _Records:
        """Return all events of these kinds, or the first and the last of those that are too many."""
        if (kinds, most) not in self._found:
            found = self._read(kinds, most)
            self.last_time = max([self.last_time, *(each.event_log_entry.timestamp for each in found.records)])
            self._found[kinds, most] = found
        return self._found[kinds, most]

    def _read(self, kinds: _Kinds, most: int | None) -> _Records:
        half = None if most is None else max(1, most // 2)
        first = self._instance.get_records_for_run(self._run_id, of_type=set(kinds), limit=half).records
        found = {record.storage_id: record for record in first}
        is_cut = False
        if half is not None and len(first) == half:
            last = self._instance.get_records_for_run(
                self._run_id, of_type=set(kinds), limit=half, ascending=False
            ).records
            is_cut = not any(record.storage_id in found for record in last)
            found |= {record.storage_id: record for record in last}
        return _Records([found[storage_id] for storage_id in sorted(found)], is_cut)


def values_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as plain values."""
    return {name: value.value for name, value in metadata.items()}
