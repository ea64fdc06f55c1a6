"""The results as JSON, as tables in the terminal, and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.customer_360 import EMPTY_COMMAND, JOB_COMMAND, SCRIPT_COMMAND, Comparison, Runs
from benchmarks.location_loading import Load, LoadingComparison, cost_of_one_more
from benchmarks.overhead import Overhead
from benchmarks.paired_runs import Goal, Spread
from benchmarks.scaling import Scaling
from benchmarks.sections import Rows, Section
from benchmarks.spark_event_log import SparkWork
from benchmarks.stream_recovery import Recovery, Ticks
from benchmarks.streaming import STREAM_COMMAND, STREAM_SCRIPT_COMMAND, StreamingComparison
from benchmarks.tpch_comparison import TpchComparison
from benchmarks.tuning import TUNING_COMMAND, ClaimComparison
from benchmarks.tuning_report import tuning_goals, tuning_tables
from benchmarks.warm_runs import WarmRuns

# What stands between these lines is one run's, and replaced by the next; what people write around them stays.
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PAGE_NAMES = ("benchmarks.md", "tuning.md", "scaling.md")
_ROUNDS = (
    "Numbers are medians, with the least and the greatest of all rounds in parentheses; a ratio is that of two runs of",
    "one round. In a round each of what is compared runs once; of two rounds the second has the order of the first",
    "turned round. A round before them is not counted.",
)
_COST_FACTS = (
    f"- Job: `{' '.join(JOB_COMMAND)}`",
    f"- Bare script: `{' '.join(SCRIPT_COMMAND)}`",
    f"- Empty job: `{' '.join(EMPTY_COMMAND)}`",
    "- Location: `python -m benchmarks.load_once MODULE`",
    f"- Stream: `{' '.join(STREAM_COMMAND)}`, and bare: `{' '.join(STREAM_SCRIPT_COMMAND)}`",
    "",
    *_ROUNDS,
)
_TUNING_FACTS = (
    f"- Claim: `{' '.join(TUNING_COMMAND)}`",
    "",
    *_ROUNDS,
)
_GOAL_HEADER = ("", "goal", "measured", "met")
_MEGABYTE = 1_000_000


@dataclass
class Results:
    """All that was measured. ``load``: the machine's load average, over one minute, before and after."""

    machine: dict[str, str]
    versions: dict[str, str]
    command: str
    started: datetime
    load: list[float] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    warm: list[WarmRuns] = field(default_factory=list)
    loading: list[LoadingComparison] = field(default_factory=list)
    streaming: list[StreamingComparison] = field(default_factory=list)
    overheads: list[Overhead] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    ticks: Ticks | None = None
    claims: list[ClaimComparison] = field(default_factory=list)
    tpch: TpchComparison | None = None
    scaling: Scaling = field(default_factory=Scaling)

    def goals(self) -> list[Goal]:
        """Hold what was measured against the goals."""
        return [*self._cost_goals(), *tuning_goals(self.claims, self.tpch)]

    def _cost_goals(self) -> list[Goal]:
        found: list[Goal] = []
        for each in self.comparisons:
            size = f"{each.orders:,} orders"
            if each.empty.costs:
                what = f"{size}: wall time over the sum of bare script and empty Dagster job"
                found.append(Goal(what, 1.05, each.over_sum()))
            else:
                found.append(Goal(f"{size}: wall time over the bare script's", 1.10, each.over_script()))
            found += _work_goals(size, each)
            what = f"{size}: peak memory of the Python process over the bare script's"
            found.append(Goal(what, 1.20, each.memory_over_script()))
        for warm in self.warm:
            what = f"{warm.orders:,} orders: wall time on a Spark server that stays over that with a JVM of its own"
            found.append(Goal(what, 1 / 3, warm.ratio()))
            what = f"{warm.orders:,} orders: of that on a server, the time of this project's own code"
            found.append(Goal(what, 1.0, Spread.of([warm.own_seconds]), " s"))
        for loads in self.loading:
            what = f"{loads.count:,} configs: loading the location over assets written by hand"
            limit = 1.30 if loads.count >= 1000 else 1.50
            found.append(Goal(what, limit, loads.process_ratio()))
            what = f"{loads.count:,} configs: the same without Python's start and `import dagster`"
            found.append(Goal(what, limit, loads.location_ratio()))
            what = f"{loads.count:,} configs: peak memory over that of assets written by hand"
            found.append(Goal(what, 1.30, loads.memory_ratio()))
        if len(self.loading) > 2:
            few, some, many = self.loading[-3:]
            before, last = cost_of_one_more(few, some)[0], cost_of_one_more(some, many)[0]
            where = f"from {some.count:,} to {many.count:,} over that from {few.count:,} to {some.count:,}"
            what = f"linear growth: time of one more config, location alone, {where}"
            found.append(Goal(what, 1.20, Spread.of([last.seconds / before.seconds])))
            what = f"linear growth: memory of one more config, {where}"
            found.append(Goal(what, 1.20, Spread.of([last.memory / before.memory])))
        if self.loading:
            count = sum(loads.pyspark_imported for loads in self.loading)
            found.append(Goal("locations that import PySpark when they are loaded", 0, Spread.of([count]), ""))
        for streams in self.streaming:
            what = f"{streams.records:,} records: throughput of the stream over the bare script's"
            found.append(Goal(what, 0.97, streams.rate_over_script(), at_least=True))
        for overhead in self.overheads:
            what = f"{overhead.what}: wall time with JSON logs, {', '.join(overhead.told)} over that without"
            found.append(Goal(what, 1.03, overhead.ratio()))
        if self.ticks is not None:
            what = f"{self.ticks.pipelines} streaming pipelines, dead brokers: longest look of a sensor"
            found.append(Goal(what, 1.0, Spread.of([self.ticks.longest]), " s"))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything, single runs included."""
        return {
            "started": self.started.isoformat(),
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
            "load": self.load,
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals()],
            "customer_360": [asdict(each) for each in self.comparisons],
            "warm": [asdict(each) for each in self.warm],
            "loading": [asdict(each) for each in self.loading],
            "streaming": [asdict(each) for each in self.streaming],
            "overheads": [asdict(each) for each in self.overheads],
            "recoveries": [asdict(each) for each in self.recoveries],
            "ticks": None if self.ticks is None else asdict(self.ticks),
            "claims": [asdict(each) for each in self.claims],
            "tpch": None if self.tpch is None else asdict(self.tpch),
            "scaling": asdict(self.scaling),
        }

    def print(self, console: Console) -> None:
        """Show the goals and what was measured."""
        goals = _goals_section(self.goals())
        tuning = tuning_tables(self.claims, self.tpch)
        for title, header, rows in (*goals, *self._cost_tables(), *tuning, *self.scaling.sections()):
            table = Table(*header, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)

    def write_pages(self, folder: Path) -> list[Path]:
        """Put what was measured in its place in the pages of ``folder`` that are about it, and return those.

        A page that is not there is begun.
        """
        tuning = tuning_tables(self.claims, self.tpch)
        parts: tuple[tuple[Sequence[str], Sequence[Goal], Iterable[Section]], ...] = (
            (_COST_FACTS, self._cost_goals(), self._cost_tables()),
            (_TUNING_FACTS, list(tuning_goals(self.claims, self.tpch)), tuning),
            ((), (), self.scaling.sections()),
        )
        written = []
        for name, (facts, goals, tables) in zip(PAGE_NAMES, parts, strict=True):
            measured = [*_goals_section(goals), *tables]
            if measured:
                lines = [*self._facts(), *facts]
                for title, header, rows in measured:
                    lines += ["", f"## {title}", "", *_markdown_table(header, rows)]
                _write_between(folder / name, "\n".join(lines))
                written.append(folder / name)
        return written

    def _facts(self) -> list[str]:
        facts = [f"{name}: {value}" for name, value in self.machine.items()]
        return [
            f"Measured on {datetime.date(self.started)} by `{self.command}`.",
            "",
            f"- Machine: {', '.join(facts)}; load average {', then '.join(f'{load:.1f}' for load in self.load)}",
            f"- Versions: {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
        ]

    def _cost_tables(self) -> Iterable[Section]:
        for each in self.comparisons:
            runs = {"`customer_360` in Dagster": each.job, "bare script": each.script, "empty Dagster job": each.empty}
            yield (
                f"{each.orders:,} orders: {len(each.job.costs)} runs of each",
                ("", "wall time", "peak memory of Python", "peak memory of the JVM"),
                [_runs_row(name, measured) for name, measured in runs.items() if measured.costs],
            )
            yield (
                f"{each.orders:,} orders: where the time goes",
                ("until", "`customer_360` in Dagster", "until", "bare script"),
                _phase_rows(each),
            )
            yield (
                f"{each.orders:,} orders: what Spark did",
                ("", "`customer_360` in Dagster", "bare script"),
                _work_rows(each),
            )
        for warm in self.warm:
            runs = {"a JVM of its own": warm.cold, "on a server that stays": warm.warm}
            yield _pairs_section(f"{warm.orders:,} orders, cold and warm", runs, warm.ratio())
            yield (
                f"{warm.orders:,} orders, warm: where the time goes",
                ("until", "on a server that stays"),
                [[name, spread.text(" s")] for name, spread in warm.warm.phase_spreads().items()],
            )
            yield (
                "A new server: its first runs",
                ("run", "wall time"),
                [[str(number), f"{seconds:.2f} s"] for number, seconds in enumerate(warm.warm_ups.seconds, 1)],
            )
        if self.loading:
            yield (
                "Loading the location",
                (
                    "5 steps each",
                    "loads of each",
                    "configs",
                    "written by hand",
                    "configs, location alone",
                    "by hand, location alone",
                    "configs, memory",
                    "by hand, memory",
                ),
                [_loading_row(loads) for loads in self.loading],
            )
        if len(self.loading) > 1:
            yield (
                "One more config",
                ("between", "configs", "written by hand"),
                [_growth_row(fewer, more) for fewer, more in pairwise(self.loading)],
            )
        for streams in self.streaming:
            yield (
                f"{streams.records:,} records from Kafka to Delta: {len(streams.job.costs)} runs of each",
                ("", "wall time", "throughput of the query", "peak memory of Python", "peak memory of the JVM"),
                _stream_rows(streams),
            )
        for overhead in self.overheads:
            runs = {"all of it on": overhead.on, "none of it": overhead.off}
            yield _pairs_section(f"{overhead.what}, telling of itself", runs, overhead.ratio())
            yield (
                f"{overhead.what}, telling of itself: time of processors",
                ("", "seconds"),
                [
                    *([name, Spread.of(measured.cpu_seconds).text(" s")] for name, measured in runs.items()),
                    ["ratio of the rounds", overhead.cpu_ratio().text("x", 3)],
                ],
            )
        if self.recoveries:
            yield (
                f"A stream's run worker is killed: {len(self.recoveries)} times",
                ("until", "seconds"),
                _recovery_rows(self.recoveries),
            )
        if self.ticks is not None:
            yield (
                f"Sensors of {self.ticks.pipelines} streaming pipelines, dead brokers",
                ("looks", "median", "longest"),
                [[str(len(self.ticks.seconds)), f"{self.ticks.median:.2f} s", f"{self.ticks.longest:.2f} s"]],
            )


def around_measured(page: Path) -> tuple[str, str]:
    """Return what stands before what is measured in a page, and after; ClickException when it has no place for that."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(
            f"{page} has no place for what is measured: put a line {BEGIN} and below it a line {END} where it is to be"
        )
    return before, after


def _write_between(page: Path, measured: str) -> None:
    before, after = around_measured(page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")


def _work_goals(size: str, each: Comparison) -> list[Goal]:
    if each.job_work is None or each.script_work is None:
        return []
    return [
        Goal(f"{size}: Spark {name}, beside the bare script's", limit, Spread.of([measured]), "")
        for name, measured, limit in (
            ("jobs", each.job_work.jobs, each.script_work.jobs),
            ("scans", each.job_work.scans, each.script_work.scans),
            ("shuffles", each.job_work.shuffles, each.script_work.shuffles),
        )
    ]


def _goals_section(goals: Sequence[Goal]) -> list[Section]:
    return [("Goals", _GOAL_HEADER, [_goal_row(goal) for goal in goals])] if goals else []


def _goal_row(goal: Goal) -> list[str]:
    if goal.unit:
        limit, measured = f"{goal.limit:.2f}{goal.unit}", goal.measured.text(goal.unit)
    else:
        limit, measured = f"{goal.limit:.0f}", f"{goal.measured.median:.0f}"
    return [goal.what, f"at {'least' if goal.at_least else 'most'} {limit}", measured, "yes" if goal.met else "no"]


def _pairs_section(what: str, runs: Mapping[str, Runs], ratio: Spread) -> Section:
    """Return the table of ``runs`` that were made in pairs, and of what one took of the other's time."""
    count = len(next(iter(runs.values())).costs)
    rows = [_runs_row(name, measured) for name, measured in runs.items()]
    return (
        f"{what}: {count} runs of each",
        ("", "wall time", "peak memory of Python", "peak memory of the JVM"),
        [*rows, ["ratio of the rounds", ratio.text("x"), "", ""]],
    )


def _runs_row(name: str, runs: Runs) -> list[str]:
    memory = [Spread.of(each / _MEGABYTE for each in runs.memory).text(" MB", 0)]
    java = [Spread.of(each / _MEGABYTE for each in runs.java_memory).text(" MB", 0) if any(runs.java_memory) else ""]
    return [name, Spread.of(runs.seconds).text(" s"), *memory, *java]


def _stream_rows(streams: StreamingComparison) -> Rows:
    rows = []
    for name, runs, rates in (
        (f"`{STREAM_COMMAND[-1]}` in Dagster", streams.job, streams.job_rates),
        ("bare script", streams.script, streams.script_rates),
    ):
        what, seconds, *memory = _runs_row(name, runs)
        rows.append([what, seconds, Spread.of(rates).text(" records/s", 0), *memory])
    time, rate = streams.over_script(), streams.rate_over_script()
    return [*rows, ["ratio of the rounds", time.text("x"), rate.text("x"), "", ""]]


def _recovery_rows(recoveries: Sequence[Recovery]) -> Rows:
    def row(name: str, seconds: Iterable[float]) -> list[str]:
        return [name, Spread.of(seconds).text(" s", 1)]

    return [
        row("the sensor has noticed", (each.noticed for each in recoveries)),
        row("a new run is launched", (each.launched for each in recoveries)),
        row("its worker has started", (each.started for each in recoveries)),
        row("Spark is up, the checkpoint is held", (each.spark for each in recoveries)),
        row("the first rows are in the table", (each.first_batch for each in recoveries)),
        row("in all", (each.seconds for each in recoveries)),
    ]


def _phase_rows(each: Comparison) -> Rows:
    job, script = (list(runs.phase_spreads().items()) for runs in (each.job, each.script))
    rows = []
    for number in range(max(len(job), len(script))):
        row = []
        for phases in (job, script):
            name, spread = phases[number] if number < len(phases) else ("", None)
            row += [name, spread.text(" s") if spread else ""]
        rows.append(row)
    return rows


def _work_rows(each: Comparison) -> Rows:
    if each.job_work is None or each.script_work is None:
        return []
    return [
        [name, f"{getattr(each.job_work, attribute):,}", f"{getattr(each.script_work, attribute):,}"]
        for name, attribute in (
            ("jobs", "jobs"),
            ("stages", "stages"),
            ("tasks", "tasks"),
            ("scans", "scans"),
            ("shuffles", "shuffles"),
            ("broadcasts", "broadcasts"),
            ("rows read", "rows_read"),
        )
    ] + [
        [
            "the heap's part for data",
            *(f"{work.memory / _MEGABYTE:.0f} MB" for work in (each.job_work, each.script_work)),
        ],
        ["scanned", _scanned(each.job_work), _scanned(each.script_work)],
    ]


def _scanned(work: SparkWork) -> str:
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(work.scanned.items()))


def _loading_row(loads: LoadingComparison) -> list[str]:
    def process(measured: list[Load]) -> str:
        return Spread.of(load.process for load in measured).text(" s")

    def location(measured: list[Load]) -> str:
        return Spread.of(load.location for load in measured).text(" s")

    def memory(measured: list[Load]) -> str:
        return Spread.of(load.memory / _MEGABYTE for load in measured).text(" MB", 0)

    return [
        f"{loads.count:,} pipelines",
        str(len(loads.configs)),
        process(loads.configs),
        process(loads.by_hand),
        location(loads.configs),
        location(loads.by_hand),
        memory(loads.configs),
        memory(loads.by_hand),
    ]


def _growth_row(fewer: LoadingComparison, more: LoadingComparison) -> list[str]:
    configs, by_hand = cost_of_one_more(fewer, more)
    costs = [f"{cost.seconds * 1000:.1f} ms, {cost.memory / 1000:.0f} kB" for cost in (configs, by_hand)]
    return [f"{fewer.count:,} and {more.count:,}", *costs]


def _markdown_table(header: Sequence[str], rows: Rows) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def started_now() -> datetime:
    """Return the time at which measuring starts."""
    return datetime.now(UTC).replace(microsecond=0)
