"""Run TPC-H's queries in this process, each with and without the optimizer, and say in JSON how long each run took.

``python -m benchmarks.tpch_runs ROUNDS QUERY...``, in the environment of a code location that has the jobs
``<query>_plain`` and ``<query>_optimized`` of each query.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

from benchmarks.paired_runs import rounds

VARIANTS = ("plain", "optimized")


def main(count: str, *queries: str) -> None:
    """Run both variants of each query in ``count`` rounds."""
    import dagster as dg

    from pipeline_assets.definitions import defs
    from pipeline_assets.settings import Settings
    from pipeline_assets.spark.session import SparkSessions

    seconds: dict[str, dict[str, list[float]]] = {query: {name: [] for name in VARIANTS} for query in queries}
    with (
        SparkSessions(Settings.from_environment()) as sessions,
        tempfile.TemporaryDirectory() as home,
        dg.DagsterInstance.ephemeral(home) as instance,
    ):
        # The runs open their sessions on this one's Spark, and do not stop it.
        sessions.session("benchmark", "benchmark")
        for counts, order in rounds("queries", VARIANTS, int(count), _to_standard_error):
            for query in queries:
                for name in order:
                    job = defs.resolve_job_def(f"{query}_{name}")
                    begun = time.perf_counter()
                    job.execute_in_process(instance=instance)
                    if counts:
                        seconds[query][name].append(time.perf_counter() - begun)
    print(json.dumps(seconds))


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
