"""What is read of a table beside Spark, without Spark."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from pipeline_assets.errors import RetryableError
from pipeline_assets.steps import delta_table
from pipeline_assets.steps.delta_table import DeltaWrite
from pipeline_assets.steps.file_systems import S3Folder


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
    def refuse(_: Any) -> list[Any]:
        raise error

    folder = S3Folder("bucket/table", SimpleNamespace(get_file_info=refuse))
    told = DeltaWrite(rows=2, version=7, files=1)
    monkeypatch.setattr(delta_table, "_find_write_by_spark", lambda spark, path, mark: told)
    assert delta_table._written(cast(Any, None), "/data/table", "mark", folder) is told
