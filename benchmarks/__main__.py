"""``python -m benchmarks``: measure, and write down what was found."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from benchmarks.customer_360 import Workplace, compare
from benchmarks.demo_servers import demo_servers
from benchmarks.location_loading import compare_loading
from benchmarks.machine import machine, versions
from benchmarks.overhead import batch_overhead, stream_overhead
from benchmarks.report import PAGE_NAMES, Results, around_measured, started_now
from benchmarks.scaling import Sizes, measure_scaling
from benchmarks.stream_recovery import measure_recovery, measure_ticks
from benchmarks.streaming import compare_streaming, fill_topic, kafka_server
from benchmarks.tpch import make_tables
from benchmarks.tpch_comparison import compare_tpch
from benchmarks.tuning import FIVE_CLAIMS, ClaimPlace, compare_claim
from benchmarks.warm_runs import compare_warm
from devstack.dagster_daemon import PROJECT

RESULTS = PROJECT / "benchmarks" / "results"
PARTS = ("demo", "warm", "many", "loading", "streaming", "overhead", "recovery", "tuning", "tpch")
# This takes an hour.
SCALING = "scaling"
CLAIM_NAMES = tuple(claim.name for claim in FIVE_CLAIMS)

console = Console()


def _made_even(_context: click.Context, _parameter: click.Parameter, count: int) -> int:
    # Each order of what is compared is to be measured as often as the other.
    return count + count % 2


def _with_places(_context: click.Context, _parameter: click.Parameter, folder: Path | None) -> Path | None:
    # Found out now, not after hours of measuring.
    if folder is not None:
        for name in PAGE_NAMES:
            around_measured(folder / name)
    return folder


@click.command()
@click.option(
    "--part", "parts", type=click.Choice([*PARTS, SCALING]), multiple=True, help="Measure this alone; repeatable."
)
@click.option(
    "--pairs",
    default=6,
    show_default=True,
    callback=_made_even,
    help="Rounds of runs at the demo's size, of loads, streams, claims and queries; an odd number is raised by one.",
)
@click.option("--orders", default=10_000_000, show_default=True, help="Orders of the big comparison; 0 for none.")
@click.option(
    "--many-pairs",
    default=4,
    show_default=True,
    callback=_made_even,
    help="Rounds of those, of loads of 1,000 configs (of more, two: by hand a load takes minutes), of what telling "
    "costs and of claims without adaptive execution; an odd number is raised by one.",
)
@click.option("--records", default=5_000_000, show_default=True, help="Records in the topic of the streams.")
@click.option("--kills", default=3, show_default=True, help="How often a stream's run worker is killed.")
@click.option(
    "--configs", multiple=True, default=(10, 100, 1000, 2000), show_default=True, help="Sizes of locations to load."
)
@click.option(
    "--rows",
    multiple=True,
    default=(100_000, 1_000_000, 10_000_000, 100_000_000),
    show_default=True,
    help="Scaling: orders of customer_360; 0 for none, as in the next two.",
)
@click.option(
    "--partitions", multiple=True, default=(10, 50), show_default=True, help="Scaling: partitions of a backfill."
)
@click.option("--topics", multiple=True, default=(1, 10, 50), show_default=True, help="Scaling: Kafka topics.")
@click.option("--scale", default=2.0, show_default=True, help="TPC-H's scale factor of the five claims.")
@click.option("--query-scale", default=1.0, show_default=True, help="That of TPC-H's own queries.")
@click.option(
    "--claim",
    "claims",
    type=click.Choice(CLAIM_NAMES),
    multiple=True,
    help="Of the claims, measure this alone; repeatable.",
)
@click.option(
    "--pages",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_with_places,
    help="Folder of benchmarks.md, tuning.md and scaling.md, such as docs: all that is measured in a page is replaced "
    "by what this run has measured of it, if anything. New pages in benchmarks/results when left out.",
)
def main(
    parts: tuple[str, ...],
    pairs: int,
    orders: int,
    many_pairs: int,
    records: int,
    kills: int,
    configs: tuple[int, ...],
    scale: float,
    query_scale: float,
    claims: tuple[str, ...],
    rows: tuple[int, ...],
    partitions: tuple[int, ...],
    topics: tuple[int, ...],
    pages: Path | None,
) -> None:
    """Measure batch and streaming pipelines beside bare PySpark scripts, loading beside assets written by hand, and
    how long a stream that was killed takes to be back; pipelines tuned by hand beside the same without, and what the
    optimizer makes of those.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = parts or PARTS
    command = shlex.join(["python", "-m", "benchmarks", *(argument for argument in sys.argv[1:])])
    results = Results(machine(), versions(), command, started_now(), [os.getloadavg()[0]])
    with tempfile.TemporaryDirectory(prefix="pipeline-assets-bench-") as name, console.status("") as status:
        folder = Path(name)

        def report(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text)

        if {"demo", "warm", "many", "overhead"} & set(chosen):
            report("starting PostgreSQL and S3")
            with demo_servers(folder / "servers") as servers:
                report("loading CDNOW's customers and orders")
                demo_orders = servers.load_demo()
                workplace = Workplace(folder, servers)
                if "demo" in chosen:
                    found = compare(workplace, demo_orders, pairs, with_empty=True, report=report)
                    results.comparisons.append(found)
                    _keep(results)
                if "warm" in chosen:
                    results.warm.append(compare_warm(workplace, demo_orders, pairs, report))
                    _keep(results)
                if orders and {"many", "overhead"} & set(chosen):
                    report(f"writing {orders:,} orders")
                    servers.repeat_orders(orders)
                if orders and "many" in chosen:
                    found = compare(workplace, orders, many_pairs, with_empty=False, report=report)
                    results.comparisons.append(found)
                    _keep(results)
                if orders and "overhead" in chosen:
                    results.overheads.append(batch_overhead(workplace, orders, many_pairs, report))
                    _keep(results)
        if "loading" in chosen:
            for count in sorted(set(configs)):
                how_often = pairs if count < 1000 else many_pairs if count == 1000 else 2
                results.loading.append(compare_loading(folder, count, how_often, report))
                _keep(results)
        if {"streaming", "overhead", "recovery"} & set(chosen):
            report("starting Kafka")
            with kafka_server(folder / "kafka") as kafka:
                if {"streaming", "overhead"} & set(chosen):
                    report(f"producing {records:,} records")
                    fill_topic(kafka, records)
                if "streaming" in chosen:
                    place = folder / "streaming"
                    results.streaming.append(compare_streaming(place, kafka, records, pairs, report))
                    _keep(results)
                if "overhead" in chosen:
                    place = folder / "overhead"
                    results.overheads.append(stream_overhead(place, kafka, records, many_pairs, report))
                    _keep(results)
                if "recovery" in chosen:
                    results.recoveries += measure_recovery(folder / "recovery", kafka, kills, report)
                    _keep(results)
        if "recovery" in chosen:
            results.ticks = measure_ticks(folder / "ticks", report)
            _keep(results)
        if "tuning" in chosen:
            report(f"making TPC-H's tables, scale factor {scale:g}")
            make_tables(folder / "tpch", scale)
            workbench = ClaimPlace(folder / "tuning", folder / "tpch", scale)
            wanted = [claim for claim in FIVE_CLAIMS if claim.name in (claims or CLAIM_NAMES)]
            for adaptive, count in ((True, pairs), (False, many_pairs)):
                for claim in wanted if count else ():
                    results.claims.append(compare_claim(workbench, claim, scale, count, report, adaptive=adaptive))
                    _keep(results)
        if "tpch" in chosen:
            report(f"making TPC-H's tables, scale factor {query_scale:g}")
            make_tables(folder / "tpch_queries", query_scale)
            results.tpch = compare_tpch(folder / "queries", folder / "tpch_queries", query_scale, pairs, report)
            _keep(results)
        if SCALING in chosen:
            sizes = Sizes(
                rows=_without_none(rows),
                pipelines=_without_none(configs),
                partitions=_without_none(partitions),
                topics=_without_none(topics),
                records=records,
                runs=many_pairs,
                loads=pairs,
            )
            measure_scaling(folder / "scaling", sizes, results.scaling, report, lambda: _keep(results))
    results.load.append(os.getloadavg()[0])
    results.print(console)
    kept = _keep(results)
    for written in (kept, *results.write_pages(pages or kept.with_suffix(""))):
        console.print(f"[green]✓[/] {written.relative_to(PROJECT) if written.is_relative_to(PROJECT) else written}")


def _keep(results: Results) -> Path:
    """Write down what has been measured so far: an interrupt costs no more than what is being measured."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{results.started:%Y%m%dT%H%M%SZ}.json"
    file.write_text(json.dumps(results.to_json(), indent=2) + "\n", encoding="utf-8")
    return file


def _without_none(counts: tuple[int, ...]) -> list[int]:
    return sorted({count for count in counts if count})


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # As Ctrl+C does it: the servers are stopped and the folder is removed on the way out.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
