"""A RunReport as one page of HTML that needs nothing beside it: no script, no font, no request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2

from pipeline_assets.redaction import redact
from pipeline_assets.report.graph_layout import lay_out
from pipeline_assets.report.model import OpReport, Progress, ProgressPoint, RunReport, Status, StepReport
from pipeline_assets.spark.job_metrics import longest

_NODE = (228, 70)
_GAP = (22, 38)
_CHARS_IN_NODE = 26
_POINTS_SHOWN = 400
_NONE = "\N{EN DASH}"
# What Spark's operations of a streaming query do: https://spark.apache.org/docs/latest/web-ui.html#structured-streaming-tab
_ALL_OPERATIONS = "triggerExecution"
_OPERATIONS: Mapping[str, str] = {
    "latestOffset": "asks the sources how far their data go",
    "getOffset": "asks the sources how far their data go",
    "walCommit": "notes in the checkpoint what the micro-batch is to read",
    "getBatch": "plans how it is read",
    "queryPlanning": "plans the query",
    "addBatch": "reads, computes, checks and writes",
    "commitOffsets": "notes in the checkpoint that it is done",
}
_MARKS: Mapping[Status, str] = {
    "succeeded": "✓",
    "failed": "✗",
    "retried": "↻",
    "canceled": "■",
    "running": "…",
    "skipped": _NONE,
    "not started": _NONE,
    "not selected": _NONE,
}


def render_page(report: RunReport) -> str:
    """Return the page. Every text in it is escaped, and secrets in it are masked."""
    stages = [(step, stage) for step in report.steps for stage in step.stages]
    shown = {id(stage) for stage in longest(stage for _, stage in stages)}
    return _template().render(
        report=report,
        between=span(report.start, report.end),
        graph=_graph(report),
        timeline=[_TimelineRow.of(op, report) for op in _by_start(report.ops)],
        stages=sorted(
            ((step, stage) for step, stage in stages if id(stage) in shown), key=lambda pair: -pair[1].seconds
        ),
        longest_stage=max((stage.seconds for _, stage in stages), default=0.0),
        stages_left_out=len(stages) - len(shown) + sum(step.stages_left_out for step in report.steps),
        charts=[chart for progress in report.progress for chart in _charts(progress)],
        operations=[row for progress in report.progress for row in _operations(progress)],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline_assets.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": amount,
        "duration": duration,
        "bytes": byte_count,
        "moment": moment,
        "mark": _MARKS.__getitem__,
    }
    return environment.get_template("page.html.j2")


def _finalized(value: Any) -> Any:
    # What macros return is markup by now.
    return redact(value) if type(value) is str else value


def amount(number: float | None) -> str:
    """Return a number as people read it: ``69,659``, ``0.25``; a dash for none."""
    if number is None:
        return _NONE
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def duration(seconds: float | None) -> str:
    """Return a duration in the two units that tell most: ``0.42 s``, ``12.3 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return _NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def byte_count(number: float | None) -> str:
    """Return a size: ``512 B``, ``1.5 kB``, ``12 MB``."""
    if number is None:
        return _NONE
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:,.3g} TB"


def moment(at: float | None) -> str:
    """Return a point in time, in UTC."""
    return _NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(start: float, end: float) -> tuple[str, str]:
    """Return both ends of a stretch of time, in UTC: as times of day, or with the date where that is another one."""
    ends = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
    form = "%H:%M:%S" if ends[0].date() == ends[1].date() else "%Y-%m-%d %H:%M:%S"
    return ends[0].strftime(form), ends[1].strftime(form)


def _by_start(ops: Iterable[OpReport]) -> list[OpReport]:
    return sorted(ops, key=lambda op: op.attempts[0].start if op.attempts else float("inf"))


@dataclass(frozen=True)
class _Bar:
    """A stretch of time, in per cent of the run."""

    left: float
    width: float
    status: Status = "succeeded"
    told: str = ""


@dataclass(frozen=True)
class _TimelineRow:
    op: OpReport
    spark_seconds: float | None
    attempts: tuple[_Bar, ...]
    spark: tuple[_Bar, ...]

    @classmethod
    def of(cls, op: OpReport, report: RunReport) -> _TimelineRow:
        own = [step for step in report.steps if step.op == op and "spark_seconds" in step.numbers]
        attempts = []
        for number, attempt in enumerate(op.attempts, start=1):
            end = report.end if attempt.end is None else attempt.end
            told = f"try {number}: {attempt.status}, {duration(end - attempt.start)}"
            attempts.append(_bar(report, attempt.start, end, attempt.status, told))
        stages = [stage for step in own for stage in step.stages]
        return cls(
            op=op,
            spark_seconds=sum(step.numbers["spark_seconds"] for step in own) if own else None,
            attempts=tuple(attempts),
            spark=tuple(_bar(report, stage.start, stage.start + stage.seconds) for stage in stages),
        )


def _bar(report: RunReport, start: float, end: float, status: Status = "succeeded", told: str = "") -> _Bar:
    whole = report.seconds or 1.0
    left = min(100.0, max(0.0, (start - report.start) / whole * 100))
    return _Bar(round(left, 3), round(min(100.0 - left, max(0.0, (end - start) / whole * 100)), 3), status, told)


@dataclass(frozen=True)
class _Box:
    """A node of the graph; ``lines`` are what stands in it, ``told`` all of it in one sentence."""

    x: float
    y: float
    lines: tuple[str, ...]
    kind: str
    status: str
    told: str


@dataclass(frozen=True)
class _Graph:
    width: float
    height: float
    node: tuple[int, int]
    boxes: tuple[_Box, ...]
    edges: tuple[str, ...]


def _graph(report: RunReport) -> _Graph:
    steps: dict[tuple[str, ...], StepReport] = {("step", step.name): step for step in report.steps}
    places: dict[tuple[str, ...], Any] = {}
    edges: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for key, step in steps.items():
        edges += [(("step", name), key) for name in step.inputs if ("step", name) in steps]
        # What is read and what is written are drawn apart, even where they are the same: the graph has no circles.
        for place in step.sources:
            places["from", place.kind, place.uri] = place
            edges.append((("from", place.kind, place.uri), key))
        for place in step.sinks:
            places["to", place.kind, place.uri] = place
            edges.append((key, ("to", place.kind, place.uri)))
    layout = lay_out([*steps, *places], edges)
    across, down = _NODE[0] + _GAP[0], _NODE[1] + _GAP[1]

    def corner(at: tuple[float, int]) -> tuple[float, float]:
        return at[0] * across + _GAP[0] / 2, at[1] * down + _GAP[1] / 4

    boxes = []
    for node, at in layout.positions.items():
        lines, kind, status, told = _step_box(steps[node], report) if node in steps else _place_box(node, places[node])
        boxes.append(_Box(*corner(at), lines, kind, status, told))
    paths = []
    for start, end in dict.fromkeys(edges):
        (x0, y0), (x1, y1) = corner(layout.positions[start]), corner(layout.positions[end])
        points = [(x0 + _NODE[0] / 2, y0 + _NODE[1])]
        for number, bend in enumerate(layout.bends.get((start, end), ()), start=layout.positions[start][1] + 1):
            x, y = corner((bend, number))
            points += [(x + _NODE[0] / 2, y), (x + _NODE[0] / 2, y + _NODE[1])]
        points.append((x1 + _NODE[0] / 2, y1))
        paths.append(_path(points))
    return _Graph(
        width=max(1, layout.width) * across,
        height=max(1, len(layout.layers)) * down - _GAP[1] / 4,
        node=_NODE,
        boxes=tuple(boxes),
        edges=tuple(paths),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return a curve that goes straight down through each point."""
    (x, y), *rest = points
    drawn = [f"M{x:g} {y:g}"]
    for to_x, to_y in rest:
        half = (y + to_y) / 2
        drawn.append(f"C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}")
        x, y = to_x, to_y
    return "".join(drawn)


def _step_box(step: StepReport, report: RunReport) -> tuple[tuple[str, ...], str, str, str]:
    facts = [] if step.rows is None else [f"{amount(step.rows)} rows"]
    # The op of a stream is that of all its steps.
    if step.op.seconds is not None and report.mode == "batch":
        facts.insert(0, duration(step.op.seconds))
    aside = [amount(step.set_aside)] if step.set_aside else []
    what = [step.method or "not in the config any more", *([step.role] if step.role else [])]
    shown = [*facts, *(f"{count} aside" for count in aside)] or [step.op.status]
    lines = (step.name, " · ".join(what), f"{_MARKS[step.op.status]} {' · '.join(shown)}")
    in_full = [*what, step.op.status, *facts, *(f"{count} {step.set_aside_as}" for count in aside)]
    told = f"{step.name}: {', '.join(in_full)}"
    return tuple(_fit(line) for line in lines), "step", step.op.status, told


def _place_box(node: tuple[str, ...], place: Any) -> tuple[tuple[str, ...], str, str, str]:
    direction = "read from" if node[0] == "from" else "written to"
    shown = place.uri.removeprefix("file://").removeprefix("warehouse table ")
    # The end of a path says most.
    fitted = shown if len(shown) <= _CHARS_IN_NODE else f"…{shown[1 - _CHARS_IN_NODE :]}"
    return (fitted, f"{direction} {place.kind}"), "place", "", f"{direction} {place.kind}: {place.uri}"


def _fit(text: str) -> str:
    return text if len(text) <= _CHARS_IN_NODE + 3 else f"{text[: _CHARS_IN_NODE + 2]}…"


@dataclass(frozen=True)
class _Operation:
    """One of Spark's operations of a load's query; ``share`` is in per cent of all of them."""

    load: str
    name: str
    seconds: float
    share: float
    told: str


def _operations(progress: Progress) -> list[_Operation]:
    """Return the operations of one query, the longest first."""
    own = {name: seconds for name, seconds in progress.operation_seconds.items() if name != _ALL_OPERATIONS}
    whole = progress.operation_seconds.get(_ALL_OPERATIONS, 0.0) or sum(own.values()) or 1.0
    return [
        _Operation(progress.load, name, seconds, min(100.0, seconds / whole * 100), _OPERATIONS.get(name, ""))
        for name, seconds in sorted(own.items(), key=lambda entry: -entry[1])
    ]


@dataclass(frozen=True)
class _Line:
    name: str
    points: str


@dataclass(frozen=True)
class _Chart:
    """Lines over time, in a box of 1000 by 200."""

    title: str
    told: str
    between: tuple[str, str]
    top: float
    lines: tuple[_Line, ...]


def _charts(progress: Progress) -> Iterator[_Chart]:
    points = thinned(progress.points, _POINTS_SHOWN)
    lags = [(point.time, point.lag) for point in points if point.lag is not None]
    if lags:
        yield _chart(f"{progress.load}: lag, in records", {"lag": lags})
    rates = {
        "rows read per second": [(point.time, point.input_rows_per_second) for point in points],
        "rows processed per second": [(point.time, point.processed_rows_per_second) for point in points],
    }
    yield _chart(f"{progress.load}: rows per second", rates)


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> _Chart:
    times = [at for points in lines.values() for at, _ in points]
    start, end = min(times), max(times)
    top = max((value for points in lines.values() for _, value in points), default=0.0)
    whole, height = (end - start) or 1.0, top or 1.0
    told = [
        f"{name}: at most {amount(max(value for _, value in points))}, at last {amount(points[-1][1])}"
        for name, points in lines.items()
    ]
    drawn = []
    for name, points in lines.items():
        places = (((at - start) / whole * 1000, 200 - value / height * 200) for at, value in _drawable(points, end))
        drawn.append(_Line(name, " ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
    return _Chart(title, "; ".join(told), span(start, end), top, tuple(drawn))


def _drawable(points: Sequence[tuple[float, float]], end: float) -> Sequence[tuple[float, float]]:
    # One point alone is no line.
    return points if len(points) > 1 else [points[0], (end + 1.0, points[0][1])]


def thinned(points: Sequence[ProgressPoint], most: int) -> list[ProgressPoint]:
    """Return at most ``most`` points: of neighbours, the largest lag and the mean rates, at the time of the last."""
    size = -(-len(points) // most) or 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        ProgressPoint(
            group[-1].time,
            max((point.lag for point in group if point.lag is not None), default=None),
            sum(point.input_rows_per_second for point in group) / len(group),
            sum(point.processed_rows_per_second for point in group) / len(group),
        )
        for group in groups
    ]
