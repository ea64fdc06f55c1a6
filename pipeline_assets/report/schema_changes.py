"""How the columns of an asset differ from those that it had before. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_assets.report.model import Column, ColumnChange


def schema_changes(before: Sequence[Column], after: Sequence[Column]) -> tuple[ColumnChange, ...]:
    """Return what was added, removed or made another; in the order of the columns now, those that are gone last.

    A column whose type and nullability both differ gives two changes. The order of columns is no change.
    """
    old = {column.name: column for column in before}
    new = {column.name: column for column in after}
    found: list[ColumnChange] = []
    for column in new.values():
        earlier = old.get(column.name)
        if earlier is None:
            found.append(ColumnChange(column.name, "added", None, _told(column)))
            continue
        if earlier.type != column.type:
            found.append(ColumnChange(column.name, "type", earlier.type, column.type))
        if earlier.nullable != column.nullable:
            found.append(ColumnChange(column.name, "nullability", _nulls(earlier), _nulls(column)))
    found += [ColumnChange(name, "removed", _told(column), None) for name, column in old.items() if name not in new]
    return tuple(found)


def _told(column: Column) -> str:
    return column.type if column.nullable else f"{column.type} not null"


def _nulls(column: Column) -> str:
    return "may be null" if column.nullable else "not null"
