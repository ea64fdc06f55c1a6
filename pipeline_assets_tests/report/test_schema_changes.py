"""How columns differ from those before."""

from __future__ import annotations

from pipeline_assets.report.model import Column, ColumnChange
from pipeline_assets.report.schema_changes import schema_changes

ID = Column("id", "bigint", False)
NAME = Column("name", "string", True)


def test_nothing_has_changed_when_only_the_order_has() -> None:
    assert schema_changes([ID, NAME], [NAME, ID]) == ()


def test_added_and_removed() -> None:
    assert schema_changes([ID], [NAME]) == (
        ColumnChange("name", "added", None, "string"),
        ColumnChange("id", "removed", "bigint not null", None),
    )


def test_type_and_nullability() -> None:
    assert schema_changes([ID, NAME], [Column("id", "int", True), NAME]) == (
        ColumnChange("id", "type", "bigint", "int"),
        ColumnChange("id", "nullability", "not null", "may be null"),
    )


def test_names_that_differ_in_case_are_two_columns() -> None:
    kinds = [change.kind for change in schema_changes([NAME], [Column("Name", "string", True)])]
    assert kinds == ["added", "removed"]
