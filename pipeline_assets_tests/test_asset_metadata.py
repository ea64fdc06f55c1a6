"""What the pages of assets say of a load, with a run that stands in for one on Spark."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline_assets.asset_metadata import load_metadata
from pipeline_assets.steps.base import LoadResult


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"numFiles": 3, "numOutputBytes": 70}, {"files_written": 3, "bytes_written": 70}),
        ({"numTargetFilesAdded": "2", "numTargetFilesRemoved": "5", "numSourceRows": "9"}, {"files_written": 2}),
        ({"numFiles": 0}, {"files_written": 0}),
        ({}, {}),
    ],
)
def test_files_that_a_load_has_written(metrics: dict[str, int | str], told: dict[str, int]) -> None:
    run: Any = SimpleNamespace(
        context=SimpleNamespace(partition=None), scope=SimpleNamespace(take_work=lambda _: (None, ()))
    )
    step: Any = None
    found = load_metadata(run, step, LoadResult("s3a://lake/totals", rows=9, metrics=metrics))
    assert found == {"dagster/uri": "s3a://lake/totals", "dagster/row_count": 9, **metrics, **told}
