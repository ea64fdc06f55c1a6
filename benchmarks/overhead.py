"""What it costs that a run tells of itself: with all of that switched on, beside the same run with none of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.customer_360 import Runs, Workplace
from benchmarks.measured_process import ProcessCost
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.streaming import StreamPrograms
from devstack.kafka import KafkaServer
from devstack.ports import free_port

Run = Callable[[Mapping[str, str]], ProcessCost]


@dataclass
class Overhead:
    """``on``: the runs that told of themselves in every way there is; ``off``: those that did not."""

    what: str
    on: Runs = field(default_factory=Runs)
    off: Runs = field(default_factory=Runs)

    def ratio(self) -> Spread:
        """The wall time with it over that without, round by round."""
        return Spread.of_ratios(self.on.seconds, self.off.seconds)


def batch_overhead(workplace: Workplace, orders: int, pairs: int, report: Report) -> Overhead:
    """Run `customer_360` with and without."""

    def run(more: Mapping[str, str]) -> ProcessCost:
        cost = workplace.run_job(more=more)
        workplace.check_table(orders)
        return cost

    return _measure(f"{orders:,} orders, `customer_360`", workplace.folder / "told", run, pairs, report)


def stream_overhead(folder: Path, kafka: KafkaServer, records: int, pairs: int, report: Report) -> Overhead:
    """Run the stream of the comparison with and without, on a topic that is filled already."""
    programs = StreamPrograms(folder, kafka)

    def run(more: Mapping[str, str]) -> ProcessCost:
        cost, _ = programs.run_job(more)
        programs.check_table(records)
        return cost

    return _measure(f"{records:,} records, `event_stream`", folder / "told", run, pairs, report)


def everything_on(folder: Path) -> dict[str, str]:
    """Return the environment by which a run tells all that it can of itself, into ``folder``."""
    return {
        "PIPELINE_ASSETS_METRICS": str(folder / "metrics"),
        "PIPELINE_ASSETS_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "PIPELINE_ASSETS_AUDIT_FILE": str(folder / "audit.jsonl"),
        "PIPELINE_ASSETS_LOG_FORMAT": "json",
        "PIPELINE_ASSETS_REPORTS": str(folder / "reports"),
        "OPENLINEAGE__TRANSPORT__TYPE": "file",
        "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(folder / "lineage.jsonl"),
        "OPENLINEAGE__TRANSPORT__APPEND": "true",
    }


def _measure(what: str, folder: Path, run: Run, pairs: int, report: Report) -> Overhead:
    folder.mkdir(parents=True, exist_ok=True)
    found = Overhead(what)
    for counts, order in rounds(f"{what}, told and not told", (found.on, found.off), pairs, report):
        for runs in order:
            cost = run(everything_on(folder) if runs is found.on else {})
            if counts:
                runs.add(cost, {})
    return found
