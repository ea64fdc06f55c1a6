"""TPC-H's queries with this project's optimizer beside their plain plans: what it costs where it has nothing to do.

One process runs all queries, each in a run of its own on the same Spark, again and again, the two variants in turn. In
a process each, as the claims are measured, most of the time would be Spark's start: that takes ten seconds, a query a
few, and 3% of a query could not be told from the noise of the start. In one process both variants meet the same JVM.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from benchmarks.code_location import CodeLocation
from benchmarks.measured_process import ProgramFailedError, run_measured
from benchmarks.paired_runs import Report, Spread
from benchmarks.table_contents import contents
from benchmarks.tpch import environment, query_config, query_names
from benchmarks.tpch_runs import VARIANTS
from pipeline_assets.config_loading import load_folder
from pipeline_assets.optimizer import optimize
from pipeline_assets.planned_folder import plan_folder


@dataclass
class TpchComparison:
    """``seconds``: by query and variant, those of each round. ``decided``: for how many steps of a query the optimizer
    does something; where that is 0, both variants are the same plan, and their ratio tells of noise alone.
    """

    scale: float
    seconds: dict[str, dict[str, list[float]]]
    decided: dict[str, int]

    def ratio(self, query: str) -> Spread:
        """The time of a query with the optimizer over that of the plain plan, round by round."""
        return Spread.of(self._ratios(query))

    def slowest(self) -> str:
        """The query that the optimizer does least for, or most harm."""
        return max(self.seconds, key=lambda query: self.ratio(query).median)

    def mean_ratio(self) -> Spread:
        """The geometric mean of all queries' ratios, round by round."""
        rounds = zip(*(self._ratios(query) for query in self.seconds), strict=True)
        return Spread.of(geometric_mean(ratios) for ratios in rounds)

    def _ratios(self, query: str) -> list[float]:
        plain, optimized = (self.seconds[query][name] for name in VARIANTS)
        return [above / below for above, below in zip(optimized, plain, strict=True)]


def compare_tpch(folder: Path, data: Path, scale: float, count: int, report: Report) -> TpchComparison:
    """Run all queries in both variants in ``count`` rounds on the tables in ``data``; both have to answer the same."""
    location = CodeLocation(folder, environment(data, scale))
    queries = query_names()
    for query in queries:
        for name, more in (("plain", {"optimize": False}), ("optimized", {})):
            location.write(query_config(query, f"{query}_{name}", **more))
    report(f"TPC-H, scale factor {scale:g}: {len(queries)} queries, {count} rounds and one that does not count")
    told = run_measured(
        [sys.executable, "-m", "benchmarks.tpch_runs", str(count), *queries],
        location.environment,
        folder,
    )
    for query in queries:
        plain, optimized = (contents(location.warehouse / f"{query}_{name}") for name in VARIANTS)
        if plain != optimized:
            raise ProgramFailedError(f"{query}: the optimizer changes the answer")
    return TpchComparison(scale, json.loads(told.output.splitlines()[-1]), decided_steps(data, scale))


def decided_steps(data: Path, scale: float) -> dict[str, int]:
    """Return for how many steps of each query the optimizer does something."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for query in query_names():
            (Path(name) / f"{query}.json").write_text(json.dumps(query_config(query, query)))
        for plan in plan_folder(load_folder(Path(name), environment(data, scale))).plans:
            decided = optimize(plan)
            found[plan.name] = sum(decided.told(plan, step) is not None for step in plan.steps)
    return found
