"""Delta tables, read from their files without Spark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    import pyarrow as pa


def delta_files(table: Path) -> dict[Path, int]:
    """Return the data files of the table's newest version with their numbers of rows; none where there is no table.

    The log is read from its first commit on: tables that are so old that it has been cleaned up are not for this.
    """
    files: dict[Path, int] = {}
    for commit in sorted((table / "_delta_log").glob("*.json")):
        for line in commit.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                files[table / unquote(action["add"]["path"])] = json.loads(action["add"]["stats"])["numRecords"]
            elif "remove" in action:
                files.pop(table / unquote(action["remove"]["path"]), None)
    return files


def first_rows_after(table: Path, after: float) -> float | None:
    """Return when rows were first added to the table after a time, in seconds since the epoch; None if not yet."""
    for commit in sorted((table / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
        written = next((action["commitInfo"]["timestamp"] / 1000 for action in actions if "commitInfo" in action), 0.0)
        if written > after and any(
            "add" in action and json.loads(action["add"]["stats"])["numRecords"] for action in actions
        ):
            return float(written)
    return None


def row_count(table: Path) -> int:
    """Return how many rows the table has, as its log says."""
    return sum(delta_files(table).values())


def read_columns(table: Path, columns: list[str]) -> pa.Table | None:
    """Return some columns of all rows; None where there is no table, or none with rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [pq.ParquetFile(file).read(columns=columns) for file, rows in delta_files(table).items() if rows]
    return pa.concat_tables(parts) if parts else None
