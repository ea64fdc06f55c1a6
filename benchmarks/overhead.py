"""What it costs that a run tells of itself: with all of that switched on, beside the same run with none of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.customer_360 import Runs, Workplace
from benchmarks.measured_process import ProcessCost, ProgramFailedError
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.streaming import StreamPrograms
from devstack.kafka import KafkaServer
from devstack.ports import free_port

Run = Callable[[Mapping[str, str]], ProcessCost]


# What a run leaves in the folder of ``everything_on``; its lines of the log are in its output, and no files.
_FILES = {"metrics": "metrics/*.jsonl", "lineage": "lineage.jsonl", "report": "reports/*.html", "audit": "audit.jsonl"}
# Secrets are what is audited: the demo's connections have some, a broker that anybody may ask has none.
BATCH_TELLS = ("metrics", "lineage", "report", "audit")
STREAM_TELLS = ("metrics", "lineage", "report")


@dataclass
class Overhead:
    """``on``: the runs that told of themselves in every way there is; ``off``: those that did not. ``told``: what they
    were seen to tell, beside logs as JSON.
    """

    what: str
    told: Sequence[str]
    on: Runs = field(default_factory=Runs)
    off: Runs = field(default_factory=Runs)

    def ratio(self) -> Spread:
        """The wall time with it over that without, round by round."""
        return Spread.of_ratios(self.on.seconds, self.off.seconds)

    def cpu_ratio(self) -> Spread:
        """The same of the time that processors spent."""
        return Spread.of_ratios(self.on.cpu_seconds, self.off.cpu_seconds)


def batch_overhead(workplace: Workplace, orders: int, pairs: int, report: Report) -> Overhead:
    """Run `customer_360` with and without."""

    def run(more: Mapping[str, str]) -> ProcessCost:
        cost = workplace.run_job(more=more)
        workplace.check_table(orders)
        return cost

    found = Overhead(f"{orders:,} orders, `customer_360`", BATCH_TELLS)
    return _measure(found, workplace.folder / "told", run, pairs, report)


def stream_overhead(folder: Path, kafka: KafkaServer, records: int, pairs: int, report: Report) -> Overhead:
    """Run the stream of the comparison with and without, on a topic that is filled already."""
    programs = StreamPrograms(folder, kafka)

    def run(more: Mapping[str, str]) -> ProcessCost:
        cost, _ = programs.run_job(more)
        programs.check_table(records)
        return cost

    found = Overhead(f"{records:,} records, `event_stream`", STREAM_TELLS)
    return _measure(found, folder / "told", run, pairs, report)


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


def check_told(folder: Path, told: Sequence[str]) -> None:
    """Hold that a run with the environment of ``everything_on`` told of itself: what is misspelt costs nothing."""
    missing = [each for each in told if not any(file.stat().st_size for file in folder.glob(_FILES[each]))]
    if missing:
        raise ProgramFailedError(
            f"the run was to tell of itself in {folder}, and there is no {' and no '.join(missing)}"
        )


def _measure(found: Overhead, folder: Path, run: Run, pairs: int, report: Report) -> Overhead:
    for counts, order in rounds(f"{found.what}, told and not told", (found.on, found.off), pairs, report):
        for runs in order:
            if runs is found.on:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                cost = run(everything_on(folder))
                check_told(folder, found.told)
            else:
                cost = run({})
            if counts:
                runs.add(cost, {})
    return found
