"""The partitions of a pipeline, and the rows that belong to one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Self, cast
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.json_models import JsonModel

PARTITION_KEY_COLUMN = "partition_key"

# Types whose values are moments, wherever their clock is: Spark's, and PostgreSQL's.
_MOMENTS = ("timestamp", "timestamp with time zone")

# The partition key formats of Dagster's time-based partitions definitions.
_KEY_FORMATS = {"hourly": "%Y-%m-%d-%H:%M", "daily": "%Y-%m-%d", "weekly": "%Y-%m-%d", "monthly": "%Y-%m-%d"}

# What Dagster refuses in a partition's key.
_NOT_IN_KEYS = ("...", "\a", "\b", "\f", "\n", "\r", "\t", "\v", "\0")


def _check_timezone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # OSError: a folder of the database, such as 'Europe'
        raise ValueError(f"{text!r} is not a time zone of the IANA database (such as 'Europe/Berlin')") from None
    return text


def _check_key(text: str) -> str:
    for refused in _NOT_IN_KEYS:
        if refused in text:
            raise ValueError(f"{text!r} is no key of a partition: Dagster does not take {refused!r} in it")
    return text


TimeZone = Annotated[str, AfterValidator(_check_timezone)]
PartitionKey = Annotated[str, Field(min_length=1), AfterValidator(_check_key)]


@dataclass(frozen=True)
class PartitionSlice:
    """One partition: its key and the SQL predicate that its rows meet.

    ``column`` is the table's own column that tells a row's partition, or None: then tables get the string column
    ``partition_key``, which holds the key. ``predicate`` goes by the date and the time that clocks show there;
    ``moments``, where that is something else, by moments. ``repeated``: the hour is one that clocks show twice.
    """

    key: str
    column: str | None
    predicate: str
    moments: str | None = None
    repeated: bool = False

    def of(self, types: Mapping[str, str]) -> PartitionSlice:
        """Return the slice of data whose columns are of ``types``, by Spark's names or PostgreSQL's.

        Raises ConfigurationError when they can't tell the rows of an hour from those of the one before, as the clocks
        were set back between them.
        """
        if self.moments is None:
            return self
        column = self.partition_column.casefold()
        if any(name.casefold() == column and type_ in _MOMENTS for name, type_ in types.items()):
            return replace(self, predicate=self.moments, moments=None)
        if self.repeated:
            raise ConfigurationError(
                f"partition {self.key!r} is an hour that clocks show twice, and column {self.column!r} does not say "
                "which of the two a row is of: make it a TIMESTAMP"
            )
        return self

    @property
    def partition_column(self) -> str:
        """The column that the predicate is about."""
        return self.column or PARTITION_KEY_COLUMN


class Partitions(JsonModel):
    """How a pipeline is partitioned; ``${partition}`` in any string of its config is the key of the run's partition.

    ``type``: hourly, daily, weekly, monthly (from ``start``, an ISO date or datetime) or static (``values``). Weeks
    begin on the weekday of ``start``.
    ``column``: a column of the written tables that tells a row's partition. Without it, tables get a string column
    ``partition_key``. Time-based partitions with a column take the rows from the window's start to before its end:
    dates, texts and local times (TIMESTAMP_NTZ) by what clocks in ``timezone`` show, a TIMESTAMP by its moment.
    """

    type: Literal["hourly", "daily", "weekly", "monthly", "static"]
    start: date | datetime | None = None
    end: date | datetime | None = None
    timezone: TimeZone | None = None
    values: tuple[PartitionKey, ...] = ()
    column: str | None = Field(default=None, min_length=1)

    @field_validator("start", "end", mode="before")
    @classmethod
    def _is_iso(cls, edge: Any) -> Any:
        # A number, also as a text, would be seconds since 1970: 20240101 is in the August of that year.
        if isinstance(edge, int | float) or (isinstance(edge, str) and not re.match(r"\d{4}-", edge)):
            raise ValueError(f"{edge!r} is no date such as 2024-01-31")
        # Of a midnight a date is made, which has none.
        if isinstance(edge, str) and re.search(r"[+\-Zz]", edge[len("2024-01-31") :]):
            raise ValueError(f"{edge!r} is to be a local time of 'timezone': leave its offset from UTC out")
        return edge

    @model_validator(mode="after")
    def _start_or_values(self) -> Self:
        if self.type == "static":
            if not self.values:
                raise ValueError("static partitions need 'values', a list of at least one key")
            if self.start or self.end or self.timezone:
                raise ValueError("static partitions take 'values', not 'start', 'end' or 'timezone'")
            if len(set(self.values)) < len(self.values):
                raise ValueError("the 'values' of static partitions must differ from one another")
        elif self.start is None:
            raise ValueError(f"{self.type} partitions need 'start', an ISO date")
        elif self.values:
            raise ValueError(f"{self.type} partitions take 'start', not 'values'")
        elif self.end is not None and _moment(self.end) <= _moment(self.start):
            raise ValueError(f"'end' ({self.end}) must be after 'start' ({self.start}): there is no partition")
        else:
            self._check_edges(self.start)
        return self

    def _check_edges(self, start: date | datetime) -> None:
        """Raise ValueError for an edge in the middle of a partition: rows on one side of it would be in none."""
        for key, edge in (("start", start), ("end", self.end)):
            if edge is None:
                continue
            at = _moment(edge)
            if at.year < 1000:
                raise ValueError(f"{key!r} is in the year {at.year}: the keys of Dagster have years of four digits")
            if self.type == "hourly":
                whole, expected = at.replace(minute=0, second=0, microsecond=0), "a full hour"
            elif self.type == "monthly":
                whole, expected = datetime(at.year, at.month, 1), "the first of a month, without a time"
            else:
                whole, expected = datetime(at.year, at.month, at.day), "a date, without a time"
            if at != whole:
                raise ValueError(f"{key!r} of {self.type} partitions is {expected}, not {edge}")
            if self.type == "weekly" and at.weekday() != _moment(start).weekday():
                raise ValueError(f"weeks begin on the weekday of 'start', {start:%A}, and 'end' is a {at:%A}")

    def window(self) -> dict[str, str | int]:
        """Return ``start_date``, ``end_date``, ``timezone`` and the weeks' ``day_offset``, of those that there are."""
        shown = "%Y-%m-%d-%H:%M" if self.type == "hourly" else "%Y-%m-%d"
        given = {
            "start_date": self.start.strftime(shown) if self.start else None,
            "end_date": self.end.strftime(shown) if self.end else None,
            "timezone": self.timezone,
            # Dagster's weeks begin on Sunday, its 0.
            "day_offset": _moment(self.start).isoweekday() % 7 if self.start and self.type == "weekly" else None,
        }
        return {key: value for key, value in given.items() if value is not None}

    def compares_with(self, other: Partitions) -> bool:
        """Whether it can be told which partitions of ``other`` a partition of these is about."""
        if "static" in (self.type, other.type):
            return self.values == other.values
        return (self.timezone or "UTC") == (other.timezone or "UTC")

    def window_of(self, key: str) -> tuple[datetime, datetime] | None:
        """Return when time-based partition ``key`` starts, and before when it ends; None for a static one."""
        if self.type == "static":
            return None
        return self._window_from(self._start_of(key))

    def _window_from(self, start: datetime) -> tuple[datetime, datetime]:
        if self.type == "hourly":
            return start, (start.astimezone(UTC) + timedelta(hours=1)).astimezone(start.tzinfo)
        return start, self._end_of(start)

    def check_key(self, key: str) -> None:
        """Raise ConfigurationError when ``key`` is that of no partition: Dagster takes any from the tag of a run."""
        if key in self.values if self.type == "static" else self._is_key(key):
            return
        there = ", ".join(self.values) or f"{self.first_key()!r} and the like, to start where one does"
        raise ConfigurationError(f"there is no partition {key!r} (the {self.type} partitions are {there})")

    def _is_key(self, key: str) -> bool:
        try:
            start = self._start_of(key)
        except ValueError:
            return False
        at, first = start.replace(tzinfo=None), _moment(cast(date, self.start))
        # Python reads 2024-1-5, too. Of the second of two hours that have one name, the offset is part of it.
        if key != start.strftime(_KEY_FORMATS[self.type] + ("%z" if start.fold else "")):
            return False
        if at < first or (self.end is not None and at >= _moment(self.end)):
            return False
        match self.type:
            case "hourly":
                # One that clocks leave out would be the next one by its moment.
                is_there = start.astimezone(UTC).astimezone(start.tzinfo).replace(tzinfo=None) == at
                return at.minute == 0 and is_there
            case "weekly":
                return at.weekday() == first.weekday()
            case "monthly":
                return at.day == 1
            case _:
                return True

    def first_key(self) -> str:
        """Return the key of a partition that is sure to have the format of them all."""
        return self.start.strftime(_KEY_FORMATS[self.type]) if self.start else self.values[0]

    def slice(self, key: str) -> PartitionSlice:
        """Return the slice of partition ``key``. Raises ValueError when the key does not have the type's format."""
        if self.column is None:
            return PartitionSlice(key, None, f"{PARTITION_KEY_COLUMN} = {sql_string(key)}")
        if self.type == "static":
            return PartitionSlice(key, self.column, f"`{self.column}` = {sql_string(key)}")
        start = self._start_of(key)
        shown = "%Y-%m-%d %H:%M:%S" if self.type == "hourly" else "%Y-%m-%d"
        local = _between(self.column, start.strftime(shown), self._end_of(start).strftime(shown))
        if self.timezone is None:
            return PartitionSlice(key, self.column, local)
        moments = _between(self.column, *(edge.isoformat(" ") for edge in self._window_from(start)))
        return PartitionSlice(key, self.column, local, moments, repeated=start.fold == 1)

    def _start_of(self, key: str) -> datetime:
        zone, shape = ZoneInfo(self.timezone or "UTC"), _KEY_FORMATS[self.type]
        try:
            return datetime.strptime(key, shape).replace(tzinfo=zone)
        except ValueError:
            # The second of two hours that have one name, as Dagster calls it.
            return datetime.strptime(key, f"{shape}%z").astimezone(zone)

    def _end_of(self, start: datetime) -> datetime:
        if self.type == "monthly":
            return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        return start + {"hourly": timedelta(hours=1), "daily": timedelta(days=1)}.get(self.type, timedelta(weeks=1))


def _between(column: str, lower: str, upper: str) -> str:
    return f"`{column}` >= '{lower}' AND `{column}` < '{upper}'"


def _moment(edge: date | datetime) -> datetime:
    return edge if isinstance(edge, datetime) else datetime(edge.year, edge.month, edge.day)


def sql_string(text: str) -> str:
    """Return ``text`` as a SQL string literal (Spark's, with backslashes and quotes escaped)."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
