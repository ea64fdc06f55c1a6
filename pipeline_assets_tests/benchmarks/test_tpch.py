"""TPC-H's 22 queries as pipelines, on a small scale: what they answer is what DuckDB answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from benchmarks.tpch import environment, make_tables, query_config, query_names, query_text
from pipeline_assets.config_loading import load_folder
from pipeline_assets.planned_folder import plan_folder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# The least at which every query has an answer with something in it.
SCALE = 0.05
Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TPC-H's tables."""
    folder = tmp_path_factory.mktemp("tpch")
    make_tables(folder, SCALE)
    return folder


@pytest.fixture(scope="module")
def database(tables: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the tables."""
    with duckdb.connect() as connection:
        for file in tables.iterdir():
            connection.execute(f"CREATE VIEW {file.stem} AS FROM '{file}'")
        yield connection


@pytest.fixture(scope="module")
def session(tables: Path, spark: SparkSession) -> SparkSession:
    """A Spark session with the tables."""
    found = spark.newSession()
    for file in tables.iterdir():
        found.read.parquet(str(file)).createTempView(file.stem)
    return found


def test_there_are_all_of_them() -> None:
    assert query_names() == [f"q{number:02}" for number in range(1, 23)]


def test_each_is_a_pipeline_of_the_tables_and_its_text(tables: Path, tmp_path: Path) -> None:
    for name in query_names():
        (tmp_path / f"{name}.json").write_text(json.dumps(query_config(name, f"{name}_plain", optimize=False)))
    folder = plan_folder(load_folder(tmp_path, environment(tables, SCALE)))
    assert not folder.broken
    assert {plan.name: plan.steps[-1].method.query for plan in folder.plans} == {
        f"{name}_plain": text_of(name) for name in query_names()
    }
    read = {source for plan in folder.plans for step in plan.steps[:-1] for source in step.method.sources()}
    assert len(read) == len(list(tables.iterdir()))


@pytest.mark.parametrize("name", query_names())
def test_the_answer_is_that_of_duckdb(name: str, session: SparkSession, database: duckdb.DuckDBPyConnection) -> None:
    answered = session.sql(text_of(name))
    expected = database.sql(text_of(name))
    assert answered.columns == expected.columns
    rows, wanted = in_order(answered.collect()), in_order(expected.fetchall())
    assert len(rows) == len(wanted) > 0
    assert wanted != [(None,)]
    for row, other in zip(rows, wanted, strict=True):
        for value, as_in_duckdb in zip(row, other, strict=True):
            if isinstance(value, float):
                assert value == pytest.approx(as_in_duckdb, rel=1e-5, abs=1e-5)
            else:
                assert value == as_in_duckdb


def text_of(name: str) -> str:
    """Return the SQL of the query for this scale."""
    return query_text(name).replace("${TPCH_FRACTION}", f"{0.0001 / SCALE:.10f}")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with numbers of one type, in an order that the last digits of averages do not change."""
    plain = [tuple(float(value) if isinstance(value, Decimal) else value for value in row) for row in rows]
    return sorted(plain, key=lambda row: [f"{value:.1f}" if isinstance(value, float) else str(value) for value in row])
