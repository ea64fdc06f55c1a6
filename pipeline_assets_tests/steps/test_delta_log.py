"""What is read of a table beside Spark, without Spark."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_assets.errors import RetryableError
from pipeline_assets.steps import delta_table
from pipeline_assets.steps.delta_log import AddedFile, Commit, first_rows
from pipeline_assets.steps.delta_table import DeltaWrite
from pipeline_assets.steps.file_systems import Folder


class CountingFile(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> Any:
        found = super().read(-1 if size is None else size)
        CountingFile.count += len(found or b"")
        return found


def test_a_preview_reads_a_few_pages_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    numbers = range(2_000_000)
    table = pa.table({"id": numbers, "twice": [2 * number for number in numbers]})
    pq.write_table(table, file, row_group_size=len(numbers), use_dictionary=False)
    folder = cast(Folder, SimpleNamespace(open=lambda name: CountingFile(tmp_path / name)))
    commit = Commit(0, {}, (AddedFile("rows.parquet", {"day": "mon"}),))
    found = first_rows(folder, commit, 3)
    assert found is not None
    assert (found.columns, found.rows) == (["id", "twice", "day"], [[0, 0, "mon"], [1, 2, "mon"], [2, 4, "mon"]])
    assert 0 < CountingFile.count < file.stat().st_size / 3


@pytest.mark.parametrize(
    "error",
    [
        RetryableError("AWS Error SLOW_DOWN", kind="throttled"),
        OSError("AWS Error ACCESS_DENIED"),
        pa.ArrowInvalid("Empty path component"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_a_commit_spark_is_asked_for_a_log_that_cannot_be_read(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[str]:
        raise error

    folder = cast(Folder, SimpleNamespace(below=lambda name: SimpleNamespace(files_in=refuse)))
    told = DeltaWrite(rows=2, version=7, files=1)
    monkeypatch.setattr(delta_table, "_find_write_by_spark", lambda spark, path, mark: told)
    assert delta_table._written(cast(Any, None), "/data/table", "mark", folder) is told
