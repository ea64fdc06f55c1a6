"""Delta tables read from their files, without Spark, and compared with what pandas computes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq


def delta_files(table: Path) -> list[str]:
    """Return the data files of a Delta table's current version, read from its log."""
    files: dict[str, None] = {}
    for commit in sorted((table / "_delta_log").glob("*.json")):
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                files[action["add"]["path"]] = None
            elif "remove" in action:
                files.pop(action["remove"]["path"], None)
    return [str(table / path) for path in files]


def rows_of(table: Path) -> pd.DataFrame:
    """Return the rows of a Delta table."""
    return pd.concat([pd.read_parquet(file) for file in delta_files(table)], ignore_index=True)


def count_rows(table: Path) -> int:
    """Return the number of rows of a Delta table, from the footers of its files.

    For threads beside the test's own: pandas changes the process's filters of warnings while it reads, and so does
    Dagster; one of the two then puts back a list that lacks what pytest has set.
    """
    return sum(pq.read_metadata(file).num_rows for file in delta_files(table))


def same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Hold that both have the same columns and rows, the rows in any order."""
    columns = list(expected.columns)
    assert list(found.columns) == columns
    ordered = [frame.sort_values(columns).reset_index(drop=True) for frame in (found, expected)]
    pd.testing.assert_frame_equal(*ordered, check_dtype=False)
