"""What is in Delta tables, as something that can be compared."""

from __future__ import annotations

from pathlib import Path

from devstack.delta_tables import delta_files


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return of each Delta table below ``folder`` how many rows it has, and a sum that is another for other rows."""
    import duckdb

    found = {}
    with duckdb.connect() as connection:
        for table in _tables_below(folder):
            files = [str(file) for file in delta_files(table)]
            rows = connection.read_parquet(files)
            row = ", ".join(f'"{column}"' for column in sorted(rows.columns))
            (counted,) = rows.aggregate(f"count(*), sum(hash(struct_pack({row})))").fetchall()
            found[str(table.relative_to(folder))] = counted
    return found


def file_count(folder: Path) -> int:
    """Return how many data files the Delta tables below ``folder`` have."""
    return sum(len(delta_files(table)) for table in _tables_below(folder))


def _tables_below(folder: Path) -> list[Path]:
    return sorted(log.parent for log in folder.rglob("_delta_log"))
