"""One line of a run's metrics: numbers and names, never a text from the data."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

SCHEMA_VERSION = 1

# From a view's planning to a load of hours.
DURATIONS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""The buckets of the attempts' seconds."""
LATEST = frozenset({"peak_memory_bytes", "cached_memory_bytes", "cached_disk_bytes"})
"""Numbers of an asset of which the last one counts; all others add up."""

Kind = Literal["step", "asset", "progress", "check", "secret"]
Status = Literal["succeeded", "failed", "retried", "canceled"]


@dataclass(frozen=True)
class MetricsRecord:
    """What a run told at ``time``, in seconds since 1970.

    - ``step``: an attempt of a step ended, with ``status``; ``numbers`` has its ``seconds``, and what Spark did for it
      that no asset tells of: of a validate step, and of an attempt that failed.
    - ``asset``: a step has materialized ``asset``; ``numbers`` are those of its metadata.
    - ``progress``: how a stream's load goes; ``numbers`` are those of the observation.
    - ``check``: the check ``check`` of ``asset`` was evaluated, with ``status``; ``numbers`` has
      ``failed_rows``, or the stream's ``dead_letters``, and with its ``quarantined_rows_of_run``.
    - ``secret``: ``source`` (vault, env, file) was asked for a secret, with ``status``; ``numbers`` has ``seconds``.

    ``pipeline`` and ``step`` are names as in asset keys; ``step`` is ``stream`` for a stream as a whole, and empty for
    secrets. ``attempt`` counts from 1. ``times`` is how many records this one stands for; None for itself alone.
    """

    kind: Kind
    time: float
    run_id: str
    pipeline: str
    step: str
    asset: str | None = None
    check: str | None = None
    source: str | None = None
    partition: str | None = None
    attempt: int = 1
    status: Status | None = None
    error: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    times: int | None = None

    def line(self) -> str:
        """Return it as a line of JSON, with its end; what is not known is left out."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        known["time"] = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"schema": SCHEMA_VERSION, **known}) + "\n"

    @classmethod
    def parse(cls, line: str) -> MetricsRecord | None:
        """Read a line, but for keys that are not known; None for one of a later schema, and one that was cut off."""
        try:
            says: dict[str, Any] = json.loads(line)
            if says.pop("schema") != SCHEMA_VERSION:
                return None
            known = {name: says[name] for name in _NAMES & says.keys()}
            return cls(**{**known, "time": datetime.fromisoformat(says["time"]).timestamp()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def summed(records: Iterable[MetricsRecord]) -> list[MetricsRecord]:
    """Return records from which Prometheus has the same as from ``records``: no more than there are series."""
    found: dict[tuple[object, ...], MetricsRecord] = {}
    for record in records:
        seconds = record.numbers.get("seconds", 0.0) / (record.times or 1)
        key = (
            record.kind, record.pipeline, record.step, record.check, record.source, record.status,
            bisect_left(DURATIONS, seconds) if record.kind == "step" else None,
        )  # fmt: skip
        found[key] = _plus(found[key], record) if key in found else record
    return list(found.values())


def _plus(one: MetricsRecord, other: MetricsRecord) -> MetricsRecord:
    earlier, later = (one, other) if one.time <= other.time else (other, one)
    numbers = {**earlier.numbers, **later.numbers}
    if later.kind in ("step", "asset"):
        for name in (earlier.numbers.keys() & later.numbers.keys()) - LATEST:
            numbers[name] = round(max(0, earlier.numbers[name]) + max(0, later.numbers[name]), 3)
    return replace(later, numbers=numbers, times=(earlier.times or 1) + (later.times or 1))


_NAMES = {field.name for field in fields(MetricsRecord)}
