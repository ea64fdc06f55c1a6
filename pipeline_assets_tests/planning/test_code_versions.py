"""When a step is out of date."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pipeline_assets_tests.config_documents import CUSTOMER_360, batch, extract_file, transform
from pipeline_assets_tests.planning.bench import planned, quarantine


def test_code_versions_follow_what_is_computed(tmp_path: Path) -> None:
    def versions(document: dict[str, Any]) -> list[str]:
        return [step.code_version for step in planned(tmp_path, document).steps]

    before = versions(CUSTOMER_360)
    document = copy.deepcopy(CUSTOMER_360)
    assert versions({**document, "description": "new words", "owners": ["team:data"]}) == before
    assert not set(before) & set(versions({**document, "sparkConf": {"spark.sql.ansi.enabled": False}}))
    document["steps"][1]["config"]["path"] = "s3a://data/new/*.parquet"
    after = versions(document)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] != before[2], "a step is out of date when what it depends on is"


def test_code_versions_follow_the_order_of_columns_and_nothing_that_leaves_the_data_alone(tmp_path: Path) -> None:
    def version(partitions: dict[str, Any], **config: Any) -> str:
        made = transform("aggregateData", groupBy=["id"], **config)
        document = batch("p", extract_file("rows", "/in.csv"), made, partitions=partitions)
        return planned(tmp_path, document).steps[-1].code_version

    sums = {"least": "min(x)", "most": "max(x)"}
    days = {"type": "daily", "start": "2024-01-01"}
    before = version(days, aggregations=sums)
    assert version(days, aggregations=dict(reversed(sums.items()))) != before
    assert version({**days, "column": "day"}, aggregations=sums) != before
    assert version(days, aggregations=sums, cache=True) == before
    assert version({**days, "start": "2023-01-01", "end": "2025-01-01"}, aggregations=sums) == before


def test_code_versions_follow_what_a_quarantine_leaves(tmp_path: Path) -> None:
    def version(**config: Any) -> str:
        steps = (extract_file("rows", "/a.csv"), quarantine(**config), transform("filterRows", condition="id > 1"))
        return planned(tmp_path, batch("p", *steps)).steps[2].code_version

    assert version(columns=["id", "name"]) != version()
    assert version(onFailure="warn") != version()
    assert version(sampleSize=3, maskColumns=["id"]) == version(), "it is only shown differently"
