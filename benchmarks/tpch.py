"""TPC-H: its tables as `tpchgen-cli` makes them, and its 22 queries as pipelines."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from devstack.dagster_daemon import PROJECT, program
from pipeline_assets.steps.sql_names import spark_table_names

QUERIES = PROJECT / "benchmarks" / "tpch_queries"
ANSWER = "answer"


def make_tables(folder: Path, scale: float) -> None:
    """Write TPC-H's tables of that scale factor into ``folder``, each as one Parquet file."""
    command = [program("tpchgen-cli"), "parquet", "--scale-factor", f"{scale:g}", "--output-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def environment(folder: Path, scale: float) -> dict[str, str]:
    """Return what stands for the variables in the configs of claims and queries, whose paths are what they say."""
    # The fraction of query 11 is the only parameter of the validation run that depends on the scale factor.
    fraction = f"{0.0001 / scale:.10f}"
    return {"TPCH": str(folder), "TPCH_FRACTION": fraction, "PIPELINE_ASSETS_PATH_PREFIX": ""}


def query_names() -> list[str]:
    """Return the names of the queries, in order."""
    return sorted(file.stem for file in QUERIES.glob("*.sql"))


def query_text(name: str) -> str:
    """Return the SQL of a query, with the parameters of TPC-H's validation run."""
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8").strip()


def query_config(name: str, job: str, **more: Any) -> dict[str, Any]:
    """Return the pipeline, called ``job``, that reads the query's tables and writes its answer."""
    query = query_text(name)
    tables = [
        {
            "type": "extract",
            "method": "fromFile",
            "config": {"path": f"${{TPCH}}/{table}.parquet", "registerAs": table},
        }
        for table in spark_table_names(query)
    ]
    answer = {"type": "transform", "method": "sql", "name": ANSWER, "config": {"query": query}}
    return {"name": job, "mode": "batch", **more, "steps": [*tables, answer]}
