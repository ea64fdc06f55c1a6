"""The main job on a Spark server that stays, beside the same with a JVM of its own."""

from __future__ import annotations

import marshal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.customer_360 import JOB, Runs, Workplace, job_phases
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.spark_server import spark_server
from devstack.dagster_daemon import PROJECT

OWN_CODE = PROJECT / "pipeline_assets"
# By then the server's JVM has compiled what a run needs.
WARM_UPS = 10


@dataclass
class WarmRuns:
    """``cold``: runs with a JVM each; ``warm``: runs on one server, after the ``warm_ups``, which do not count.

    ``own_seconds``: what this project's own functions took of one more warm run, by cProfile: without what they
    call in other packages, with what the profiler adds to each call.
    """

    orders: int
    cold: Runs = field(default_factory=Runs)
    warm: Runs = field(default_factory=Runs)
    warm_ups: Runs = field(default_factory=Runs)
    own_seconds: float = 0.0

    def ratio(self) -> Spread:
        """The time of a warm run over that of the cold one of its round."""
        return Spread.of_ratios(self.warm.seconds, self.cold.seconds)


def compare_warm(workplace: Workplace, orders: int, pairs: int, report: Report) -> WarmRuns:
    """Run `customer_360` on a server until that is warm, then in rounds with a JVM of its own and on the server."""
    found = WarmRuns(orders)

    def run(runs: Runs | None, more: Mapping[str, str]) -> None:
        cost = workplace.run_job(more=more)
        workplace.check_table(orders)
        if runs is not None:
            runs.add(cost, job_phases(cost, workplace.dagster_home, JOB))

    with spark_server(workplace.environment) as remote:
        for number in range(WARM_UPS):
            report(f"a Spark server: run {number + 1} of {WARM_UPS} that do not count")
            run(found.warm_ups, remote)
        for counts, order in rounds("a Spark server", (found.cold, found.warm), pairs, report):
            for runs in order:
                run(runs if counts else None, remote if runs is found.warm else {})
        report("a Spark server: profiling a run")
        found.own_seconds = _own_seconds(workplace, remote)
    return found


def _own_seconds(workplace: Workplace, remote: dict[str, str]) -> float:
    file = workplace.folder / "profile"
    workplace.run_job(more=remote, run_by=(sys.executable, "-m", "cProfile", "-o", str(file)))
    # By (file, line, function): calls, calls that are not recursive, seconds without and with what it calls, callers.
    functions: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = marshal.loads(file.read_bytes())
    return sum(own for (name, *_), (_, _, own, *_) in functions.items() if Path(name).is_relative_to(OWN_CODE))
