"""The page, from a report as plain data; what is on it is found by a parser of HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline_assets.redaction import MASK, register_secret
from pipeline_assets.report.model import (
    Attempt,
    CheckReport,
    ColumnChange,
    Failure,
    OpReport,
    Place,
    Progress,
    ProgressPoint,
    RunReport,
    SchemaComparison,
    StepReport,
)
from pipeline_assets.report.page import amount, byte_count, duration, render_page, span, thinned
from pipeline_assets.spark.job_metrics import STAGES_KEPT, StageTime

HOSTILE = """<script>alert('x')</script>"><img src=x onerror=alert(1)>{{ 7 * 7 }}"""
VOID = {"meta", "link", "br", "img", "input", "rect", "path", "polyline"}


class Page(HTMLParser):
    """What a browser would see: elements that are all closed, their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += f" {' '.join(data.split())}"


def op(name: str = "rows", *attempts: Attempt) -> OpReport:
    tries = attempts or (Attempt(100.0, 104.0, "succeeded"),)
    return OpReport(f"counted__{name}", name, tries[-1].status, tries)


def report(*steps: StepReport, **more: object) -> RunReport:
    base = RunReport(
        pipeline="counted", run_id="0f1e2d3c-0000-0000-0000-000000000000", job="counted", mode="batch",
        status="succeeded", is_finished=True, start=100.0, end=110.0, made=120.0, launched_by="hand",
        ops=tuple({step.op.key: step.op for step in steps}.values()), steps=steps,
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def stage(number: int, seconds: float = 1.0) -> StageTime:
    return StageTime(number, f"what {number} does", 101.0, seconds, 4)


def test_the_sums_are_those_of_the_steps() -> None:
    rows = StepReport("rows", op(), rows=None, numbers={"rows_read": 1000, "bytes_read": 4096, "spark_seconds": 1.5})
    kinds = StepReport("kinds", op("kinds"), rows=12345, numbers={"rows_read": 234, "spark_seconds": 2.0})
    text = Page(render_page(report(rows, kinds))).text
    for shown in (
        "1,234 rows read",
        "12,345 rows written",
        "4.1 kB read",
        "3.5 s in Spark's jobs, of 10.0 s",
        "0 retries",
    ):
        assert shown in text


def test_nothing_that_is_told_becomes_markup() -> None:
    attempts = (Attempt(100.0, 101.0, "retried", HOSTILE), Attempt(102.0, 103.0, "failed", HOSTILE))
    step = StepReport(
        HOSTILE, op(HOSTILE, *attempts), HOSTILE, HOSTILE, HOSTILE, sources=(Place(HOSTILE, HOSTILE),),
        sinks=(Place(HOSTILE, HOSTILE),), set_aside=3, set_aside_as=HOSTILE, physical_plan=HOSTILE, uri=HOSTILE,
        stages=(StageTime(1, HOSTILE, 101.0, 1.0, 1),), rows=1, is_todays=False,
    )  # fmt: skip
    failure = Failure(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    check = CheckReport(HOSTILE, HOSTILE, False, "warn", 1, 2, 50.0, {HOSTILE: HOSTILE}, ((HOSTILE,), (HOSTILE,)))
    schema = SchemaComparison(HOSTILE, HOSTILE, 1.0, (ColumnChange(HOSTILE, "added", HOSTILE, HOSTILE),))
    progress = Progress(HOSTILE, (ProgressPoint(1.0, 1.0, 1.0, 1.0), ProgressPoint(2.0, 1.0, 1.0, 1.0)))
    page = Page(
        render_page(
            report(
                step, pipeline=HOSTILE, run_id=HOSTILE, job=HOSTILE, launched_by=HOSTILE, description=HOSTILE,
                partition=HOSTILE, tags={HOSTILE: HOSTILE}, run_config=HOSTILE, failures=(failure,), checks=(check,),
                schemas=(schema, SchemaComparison(HOSTILE)), progress=(progress,), status="failed",
            )
        )
    )  # fmt: skip
    assert {"script", "img"} & set(page.tags) == set()
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert "{{ 7 * 7 }}" in page.text


def test_nothing_is_asked_for_from_elsewhere() -> None:
    page = Page(render_page(report(StepReport("rows", op(), sources=(Place("s3", "s3a://data/orders"),)))))
    assert [value for name, value in page.attributes if name in ("src", "href")] == ["data:,"]
    (policy,) = [value for name, value in page.attributes if name == "content" and value and "default-src" in value]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_secrets_are_masked_those_that_are_known_and_those_that_look_like_one() -> None:
    register_secret("canary-1234567890")
    failure = Failure("refused: password=hunter2hunter2", more={"trace": "of canary-1234567890"})
    step = StepReport("rows", op(), physical_plan="Scan jdbc://me:s3cr3ts3cr3t@host")
    page = render_page(report(step, failures=(failure,), tags={"a": "canary-1234567890"}))
    assert MASK in page
    for secret in ("hunter2", "canary-1234567890", "s3cr3ts3cr3t"):
        assert secret not in page


def test_the_error_stands_before_everything_else() -> None:
    text = Page(render_page(report(status="failed", failures=(Failure("make room at /data", "rows"),)))).text
    assert text.index("make room at /data") < text.index("rows written")


def test_tries_and_how_they_ended() -> None:
    tries = (Attempt(100.0, 101.0, "retried", "nobody answers"), Attempt(103.0, 104.0, "succeeded"))
    page = Page(render_page(report(StepReport("rows", op("rows", *tries)))))
    assert "1 retry" in page.text
    assert "try 1: nobody answers" in page.text
    bars = [value for name, value in page.attributes if name == "style" and value and value.startswith("left")]
    assert bars == ["left: 0.0%; width: 10.0%", "left: 30.0%; width: 10.0%"]


def test_the_longest_stages_are_shown_and_the_others_counted() -> None:
    first = StepReport(
        "first", op("first"), stages=tuple(stage(number, number) for number in range(1, STAGES_KEPT + 1))
    )
    second = StepReport("second", op("second"), stages=(stage(99, 50.0),), numbers={"spark_stages": 4})
    page = Page(render_page(report(first, second)))
    shown = [line for line in range(100) if f"what {line} does" in page.text]
    assert shown == [*range(2, STAGES_KEPT + 1), 99]
    assert "4 shorter ones are left out" in page.text


def test_a_run_without_stages_says_why() -> None:
    assert "Spark Connect" in Page(render_page(report(StepReport("rows", op())))).text


def test_changes_of_a_schema() -> None:
    changed = SchemaComparison("kinds", "12345678-x", 50.0, (ColumnChange("n", "type", "int", "bigint"),))
    schemas = (changed, SchemaComparison("rows", "12345678-x", 50.0), SchemaComparison("new"))
    text = Page(render_page(report(schemas=schemas))).text
    assert "kinds n type int bigint run 12345678" in text
    assert "1 of 3 have the columns of the run before." in text
    assert "Never made by another run before: new." in text


def test_a_stream_is_drawn_over_time() -> None:
    points = tuple(ProgressPoint(100.0 + at, 50.0 - at, 10.0, 20.0) for at in range(11))
    page = Page(render_page(report(mode="streaming", progress=(Progress("out", points),))))
    assert "No query of the stream has told what it spent its time on." in page.text
    spent = {"walCommit": 2.0, "addBatch": 7.0, "new in Spark": 0.5, "triggerExecution": 10.0}
    page = Page(render_page(report(mode="streaming", progress=(Progress("out", points, spent),))))
    assert re.findall(r"(addBatch|walCommit|new in Spark|triggerExecution)\s+([\d.]+ s)\s+([\d.]+)\s", page.text) == [
        ("addBatch", "7.0 s", "70"), ("walCommit", "2.0 s", "20"), ("new in Spark", "0.50 s", "5"),
    ]  # fmt: skip
    lines = [value for name, value in page.attributes if name == "points" and value]
    assert len(lines) == 3
    assert (lines[0].split()[0], lines[0].split()[-1]) == ("0.0,0.0", "1000.0,40.0")
    assert "lag: at most 50, at last 40" in page.text


def test_many_points_are_thinned_and_no_peak_is_lost() -> None:
    points = [ProgressPoint(float(at), 1000.0 if at == 777 else 0.0, float(at), 0.0) for at in range(2000)]
    found = thinned(points, 100)
    assert len(found) == 100
    assert max(point.lag or 0.0 for point in found) == 1000.0
    assert found[-1].time == 1999.0
    assert sum(point.input_rows_per_second for point in found) / 100 == pytest.approx(999.5)
    assert thinned(points[:7], 100) == points[:7]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (amount(69659), "69,659"),
        (amount(0.25), "0.25"),
        (amount(2.01), "2.01"),
        (duration(0.421), "0.42 s"),
        (duration(59.96), "1 min 0 s"),
        (duration(3725), "1 h 2 min"),
        (duration(90000), "1 d 1 h"),
        (byte_count(999), "999 B"),
        (byte_count(1500), "1.5 kB"),
        (byte_count(12_345_678), "12.3 MB"),
        (byte_count(5e13), "50 TB"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def test_times_have_a_date_where_it_is_another_one() -> None:
    assert span(0.0, 60.0) == ("00:00:00", "00:01:00")
    assert span(86390.0, 86400.0) == ("1970-01-01 23:59:50", "1970-01-02 00:00:00")
