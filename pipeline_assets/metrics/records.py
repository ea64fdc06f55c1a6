"""One line of a run's metrics: numbers and names, never a text from the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

SCHEMA_VERSION = 1

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
    secrets. ``attempt`` counts from 1.
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


_NAMES = {field.name for field in fields(MetricsRecord)}
