"""The five claims and TPC-H's queries as goals and tables of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.paired_runs import Goal, Spread
from benchmarks.sections import Rows, Section
from benchmarks.tpch_comparison import TpchComparison
from benchmarks.tuning import VARIANTS, ClaimComparison


def tuning_goals(claims: Sequence[ClaimComparison], tpch: TpchComparison | None) -> Iterator[Goal]:
    """Yield the goals of the optimizer, and what was measured."""
    for each in claims:
        if each.adaptive:
            what = f"{each.claim.name}: untuned and optimized over tuned by hand"
            yield Goal(what, 1.00, each.ratio("optimized", "tuned"))
    if tpch is not None:
        worst = tpch.slowest()
        yield Goal(f"TPC-H: optimized over the plain plan, {worst}, the slowest so", 1.03, tpch.ratio(worst))


def tuning_tables(claims: Sequence[ClaimComparison], tpch: TpchComparison | None) -> Iterator[Section]:
    """Yield title, header and rows of each table."""
    for adaptive, how in ((True, ""), (False, ", without adaptive execution")):
        found = [each for each in claims if each.adaptive is adaptive]
        if found:
            size = f"TPC-H at scale factor {found[0].scale:g}, {len(found[0].runs['plain'].costs)} rounds"
            yield f"Tuning by hand{how}: {size}", _CLAIM_HEADER, [_claim_row(each) for each in found]
            yield f"Tuning by hand{how}: wall times, and without start-up", _TIME_HEADER, list(_time_rows(found))
    if tpch is not None:
        rounds = len(next(iter(tpch.seconds.values()))["plain"])
        title = f"TPC-H's queries: scale factor {tpch.scale:g}, {rounds} rounds"
        yield title, ("query", "plain", "optimized", "ratio", "steps decided on"), _tpch_rows(tpch)


_CLAIM_HEADER = (
    "claim",
    "it says",
    "plain over tuned",
    "without start-up",
    "optimized over tuned",
    "without start-up",
    "files written",
)
_TIME_HEADER = ("claim", *(name for variant in VARIANTS for name in (variant, "without start-up")))


def _claim_row(each: ClaimComparison) -> list[str]:
    return [
        f"{each.claim.name}: {each.claim.what}",
        f"{each.claim.times:g}x",
        *(
            ratio.text("x")
            for name in ("plain", "optimized")
            for ratio in (each.ratio(name, "tuned"), each.work_ratio(name, "tuned"))
        ),
        ", ".join(f"{name} {count:,}" for name, count in each.files.items()),
    ]


def _time_rows(claims: Sequence[ClaimComparison]) -> Iterator[list[str]]:
    for each in claims:
        times = [seconds for name in VARIANTS for seconds in (each.runs[name].seconds, each.work(name))]
        yield [each.claim.name, *(Spread.of(seconds).text(" s", 1) for seconds in times)]


def _tpch_rows(tpch: TpchComparison) -> Rows:
    rows = [
        [
            query,
            *(Spread.of(found[name]).text(" s") for name in ("plain", "optimized")),
            tpch.ratio(query).text("x"),
            str(tpch.decided[query]),
        ]
        for query, found in tpch.seconds.items()
    ]
    return [*rows, ["geometric mean", "", "", tpch.mean_ratio().text("x"), str(sum(tpch.decided.values()))]]
