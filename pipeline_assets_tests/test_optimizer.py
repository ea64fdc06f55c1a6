"""What is decided beyond a config: what is kept and until when, what is read once, which writes are clustered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.config_loading import load_file
from pipeline_assets.optimizer import Optimizations, kept_by_config, optimize
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planner import plan_pipeline
from pipeline_assets_tests.config_documents import CUSTOMER_360, batch, extract_file, transform, write_config


def planned(folder: Path, *steps: dict[str, Any], **more: Any) -> PipelinePlan:
    return plan_pipeline(load_file(write_config(folder, batch("p", *steps, **more)), {}))


def names(plan: PipelinePlan, found: Optimizations) -> dict[str, set[str]]:
    """What is kept, and the steps that it is kept for."""
    return {
        plan.steps[index].name: {plan.steps[reader].name for reader in kept.readers}
        for index, kept in found.kept.items()
    }


def kept(folder: Path, *steps: dict[str, Any], **more: Any) -> dict[str, set[str]]:
    plan = planned(folder, *steps, **more)
    return names(plan, optimize(plan))


def load(name: str, source: str, **config: Any) -> dict[str, Any]:
    config = {"path": f"/{name}", "inputDataFrame": source, **config}
    return {"type": "load", "method": "toDeltaLake", "name": name, "config": config}


def check(source: str, **config: Any) -> dict[str, Any]:
    return {
        "type": "validate",
        "method": "expectations",
        "name": "check",
        "config": {"inputDataFrame": source, "expectations": {"ok": "x > 0"}, **config},
    }


POSTGRES = {"type": "extract", "method": "fromPostgres", "config": {"table": "t", "registerAs": "rows"}}
CSV = extract_file("rows", "/in.csv")
PARQUET = extract_file("rows", "/in.parquet")
JOIN = [
    extract_file("left", "/left.parquet"),
    extract_file("right", "/right.parquet"),
    transform("joinDataFrames", registerAs="rows", inputDataFrames=["left", "right"], keys=["id"]),
]
GROUPS = [
    extract_file("all", "/all.parquet"),
    transform("aggregateData", registerAs="rows", groupBy=["k"], aggregations={"x": "sum(v)"}),
]


@pytest.mark.parametrize("made", [[POSTGRES], [CSV], JOIN, GROUPS], ids=["postgres", "csv", "join", "groups"])
def test_what_costs_more_than_keeping_is_kept_for_its_readers(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    assert kept(tmp_path, *made, load("a", "rows"), load("b", "rows")) == {"rows": {"a", "b"}}
    assert kept(tmp_path, *made, check("rows"), load("a", "rows")) == {"rows": {"check", "a"}}


def test_what_chance_makes_is_made_once(tmp_path: Path) -> None:
    def made(expression: str) -> list[dict[str, Any]]:
        return [PARQUET, transform("withColumns", registerAs="keyed", columns={"key": expression})]

    loads = [load("a", "keyed"), load("b", "keyed")]
    assert kept(tmp_path, *made("concat('x', uuid())"), *loads) == {"keyed": {"a", "b"}}
    assert kept(tmp_path, *made("concat('x', uuid())"), load("a", "keyed")) == {}
    assert kept(tmp_path, *made("current_timestamp()"), *loads) == {}
    for method in ("reflect", "java_method", "try_reflect"):
        assert kept(tmp_path, *made(f"{method}('java.util.UUID', 'randomUUID')"), *loads) == {"keyed": {"a", "b"}}
    chain = [transform("filterRows", registerAs="some", condition="x > 1"), load("a", "some"), load("b", "some")]
    assert kept(tmp_path, *made("uuid()"), *chain) == {"some": {"a", "b"}}
    itself = transform("joinDataFrames", registerAs="pairs", inputDataFrames=["keyed", "some"], keys=["key"])
    assert kept(tmp_path, *made("uuid()"), chain[0], itself, load("a", "pairs")) == {"keyed": {"a"}}
    assert kept(tmp_path, *made("uuid()"), *chain, load("c", "keyed")) == {"keyed": {"a", "b", "c"}}
    plan = planned(tmp_path, *made("uuid()"), *loads)
    told = optimize(plan).told(plan, plan.steps[1])
    assert told == (
        "kept in memory and on disk until b is done: a and b take it, and uuid() would give each other values"
    )


@pytest.mark.parametrize(
    ("config", "is_kept"),
    [
        ({"query": "SELECT gen_random_uuid() AS key, x FROM t"}, True),
        ({"query": "SELECT * FROM t WHERE random() < 0.1"}, True),
        ({"table": "t", "predicate": "at < clock_timestamp()"}, True),
        ({"query": "SELECT now() AS at, 'random()' AS text, x FROM t"}, False),
        ({"table": "t", "predicate": "at < now()"}, False),
    ],
)
def test_what_chance_makes_in_postgresql_is_made_once(tmp_path: Path, config: dict[str, Any], *, is_kept: bool) -> None:
    rows = {**POSTGRES, "config": {**config, "registerAs": "rows"}}
    parts = [
        step
        for name, condition in (("a", "x > 1"), ("b", "x < 1"))
        for step in (
            transform("filterRows", registerAs=f"part_{name}", inputDataFrame="rows", condition=condition),
            load(name, f"part_{name}"),
        )
    ]
    assert kept(tmp_path, rows, *parts) == ({"rows": {"a", "b"}} if is_kept else {})
    # Who asks for chance twice is not given the same.
    again = {**rows, "config": {**config, "registerAs": "again"}}
    twice = planned(tmp_path, rows, *parts, load("c", "rows"), again, load("d", "again"))
    assert optimize(twice).same == ({} if is_kept else {6: 0})


@pytest.mark.parametrize("made", [[POSTGRES], [CSV], JOIN, GROUPS], ids=["postgres", "csv", "join", "groups"])
def test_what_is_used_once_is_not_kept(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    assert kept(tmp_path, *made, load("a", "rows")) == {}
    assert kept(tmp_path, *made, transform("filterRows", condition="x > 1")) == {}


def test_a_columnar_file_is_read_again(tmp_path: Path) -> None:
    loads = [load(f"load_{number}", "rows") for number in range(4)]
    assert kept(tmp_path, PARQUET, *loads) == {}
    assert kept(tmp_path, PARQUET, transform("withColumns", registerAs="more", columns={"y": "x + 1"}), *loads) == {}


def test_the_point_of_reuse_is_kept_and_nothing_before_it(tmp_path: Path) -> None:
    positive = transform("filterRows", registerAs="positive", condition="x > 0")
    assert kept(tmp_path, *JOIN, positive, load("a", "positive"), load("b", "positive")) == {"positive": {"a", "b"}}


def test_reuse_within_one_action(tmp_path: Path) -> None:
    found = kept(
        tmp_path,
        *GROUPS,
        transform("selectColumns", registerAs="home", inputDataFrame="rows", columns=["k AS home", "x AS home_x"]),
        transform("selectColumns", registerAs="away", inputDataFrame="rows", columns=["k AS away", "x AS away_x"]),
        extract_file("games", "/games.parquet"),
        transform("joinDataFrames", registerAs="one", inputDataFrames=["games", "home"], keys=["home"]),
        transform("joinDataFrames", registerAs="two", inputDataFrames=["one", "away"], keys=["away"]),
    )
    assert found == {"rows": {"two"}}


def test_what_is_kept_makes_what_is_made_of_it_cheap(tmp_path: Path) -> None:
    more = transform("withColumns", registerAs="more", inputDataFrame="rows", columns={"y": "x + 1"})
    found = kept(tmp_path, *JOIN, load("a", "rows"), more, load("b", "more"), load("c", "more"))
    assert found == {"rows": {"a", "b", "c"}}


def test_a_source_that_filters_for_itself_is_asked_again(tmp_path: Path) -> None:
    parts = [
        step
        for number in range(6)
        for step in (
            transform("filterRows", registerAs=f"part_{number}", inputDataFrame="rows", condition=f"x = {number}"),
            load(f"load_{number}", f"part_{number}"),
        )
    ]
    assert kept(tmp_path, POSTGRES, *parts) == {}
    # Text has to be parsed to be filtered.
    assert set(kept(tmp_path, CSV, *parts)) == {"rows"}
    # Few of them may want little of what a join would have to make.
    assert kept(tmp_path, *JOIN, *parts[:4]) == {}
    assert set(kept(tmp_path, *JOIN, *parts)) == {"rows"}


def test_queries_by_what_they_do(tmp_path: Path) -> None:
    grouped = transform("sql", registerAs="g", query="SELECT k, sum(x) AS x FROM rows GROUP BY k")
    assert kept(tmp_path, PARQUET, grouped, load("a", "g"), load("b", "g")) == {"g": {"a", "b"}}
    plain = transform("sql", registerAs="g", query="SELECT x + 1 AS x FROM rows WHERE x > 3")
    assert kept(tmp_path, PARQUET, plain, load("a", "g"), load("b", "g")) == {}
    ranked = transform("sql", registerAs="g", query="SELECT row_number() OVER (ORDER BY x) AS n FROM rows")
    assert kept(tmp_path, PARQUET, ranked, load("a", "g"), load("b", "g")) == {"g": {"a", "b"}}


@pytest.mark.parametrize(
    "kept_by_config",
    [
        [{**CSV, "config": {**CSV["config"], "cache": True}}],
        [CSV, transform("cache", dataFrames=["rows"])],
    ],
    ids=["cache", "step"],
)
def test_what_the_config_keeps_is_left_to_it(tmp_path: Path, kept_by_config: list[dict[str, Any]]) -> None:
    assert kept(tmp_path, *kept_by_config, load("a", "rows"), load("b", "rows")) == {}


def test_a_step_that_caches_and_is_no_part_of_the_run_keeps_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, CSV, transform("cache", dataFrames=["rows"]), load("a", "rows"), load("b", "rows"))
    assert names(plan, optimize(plan, {2, 3})) == {"rows": {"a", "b"}}


def test_a_step_that_says_what_stays_cached_is_not_waited_for(tmp_path: Path) -> None:
    """It moves no rows, and what is kept goes when the last of those that do is done."""
    wider = transform("withColumns", inputDataFrame="rows", columns={"y": "x"}, registerAs="wider")
    steps = (*JOIN, wider, transform("cache", dataFrames=["wider"]), load("a", "rows"), load("b", "wider"))
    assert kept(tmp_path, *steps) == {"rows": {"a", "b"}}


def test_tables_are_read(tmp_path: Path) -> None:
    table = {**CSV, "config": {**CSV["config"], "materialized": "table"}}
    assert kept(tmp_path, table, load("a", "rows"), load("b", "rows")) == {}


def test_what_is_in_quarantine_keeps_its_input_itself(tmp_path: Path) -> None:
    aside = check("rows", onFailure="quarantine")
    assert kept(tmp_path, CSV, aside, load("a", "check"), load("b", "check")) == {}


def test_only_what_the_run_is_for_counts(tmp_path: Path) -> None:
    plan = planned(tmp_path, CSV, load("a", "rows"), load("b", "rows"), load("c", "rows"))
    assert names(plan, optimize(plan, {0, 1, 3})) == {"rows": {"a", "c"}}
    assert names(plan, optimize(plan, {1, 3})) == {"rows": {"a", "c"}}
    assert names(plan, optimize(plan, {0, 1})) == {}
    assert names(plan, optimize(plan, in_one_process=False)) == {}


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    plan = planned(tmp_path, CSV, CSV | {"config": {"path": "/in.csv"}}, load("a", "rows", partitionBy=["k"]))
    assert optimize(plan).clustered
    plan = planned(tmp_path, CSV, load("a", "rows", partitionBy=["k"]), load("b", "rows"), optimize=False)
    assert optimize(plan) == Optimizations({}, {}, frozenset(), frozenset())


def test_sources_that_are_read_twice_are_read_once(tmp_path: Path) -> None:
    again = {**POSTGRES, "config": {"table": "t", "registerAs": "again"}}
    plan = planned(tmp_path, POSTGRES, again, load("a", "rows"), load("b", "again"))
    found = optimize(plan)
    assert names(plan, found) == {"rows": {"a", "b"}}
    assert found.same == {1: 0}
    assert found.told(plan, plan.steps[1]) == "not read again: it reads the same as rows"
    other = {**POSTGRES, "config": {"table": "t", "registerAs": "again", "predicate": "id > 3"}}
    assert optimize(planned(tmp_path, POSTGRES, other, load("a", "rows"), load("b", "again"))).same == {}


@pytest.mark.parametrize("by_step", [False, True], ids=["cache", "step"])
def test_what_the_config_keeps_by_storage_level_none_is_read_each_time(tmp_path: Path, *, by_step: bool) -> None:
    own = {} if by_step else {"cache": True, "cacheStorageLevel": "NONE"}
    step = [transform("cache", dataFrames=["rows"], storageLevel="NONE")] if by_step else []
    rows, again = extract_file("rows", "/in.csv", **own), extract_file("again", "/in.csv")
    plan = planned(tmp_path, rows, *step, again, load("a", "rows"), load("b", "again"))
    found = optimize(plan)
    assert (found.kept, found.same, kept_by_config(plan, range(len(plan.steps)))) == ({}, {}, frozenset())
    assert [found.told(plan, step) for step in plan.steps] == [None] * len(plan.steps)
    loads = [load(name, source) for source in ("rows", "again") for name in (f"{source}_1", f"{source}_2")]
    assert kept(tmp_path, rows, *step, again, *loads) == {"again": {"again_1", "again_2"}}


def test_a_source_that_was_written_in_between_is_read_again(tmp_path: Path) -> None:
    extract = {"type": "extract", "method": "fromDeltaLake", "config": {"path": "/t", "registerAs": "before"}}
    after = {**extract, "config": {"path": "/t", "registerAs": "after"}}
    loads = [load(f"load_{number}", name) for number, name in enumerate(["before", "after"] * 8)]
    assert optimize(planned(tmp_path, extract, after, *loads)).same == {1: 0}
    written = planned(tmp_path, extract, load("t", "before"), after, *loads)
    assert optimize(written).same == {}


def test_what_comes_of_a_source_that_the_pipeline_writes_is_not_kept(tmp_path: Path) -> None:
    more = extract_file("more", "/more.parquet")
    append = {"type": "load", "method": "toPostgres", "config": {"table": "t", "inputDataFrame": "more"}}
    other = {**append, "config": {**append["config"], "table": "u"}}
    changed = transform("withColumns", registerAs="changed", inputDataFrame="rows", columns={"y": "x + 1"})
    for name, made in (("rows", [POSTGRES]), ("changed", [POSTGRES, changed])):
        steps = [*made, more]
        assert kept(tmp_path, *steps, load("a", name), other, load("b", name)) == {name: {"a", "b"}}
        assert kept(tmp_path, *steps, load("a", name), append, load("b", name)) == {}
    # One step reads it at one time.
    pairs = transform("joinDataFrames", registerAs="pairs", inputDataFrames=["rows", "changed"], keys=["x"])
    write = {**append, "name": "write", "config": {"table": "t", "inputDataFrame": "pairs"}}
    assert kept(tmp_path, POSTGRES, changed, pairs, write) == {"rows": {"write"}}
    # What the config keeps is read once in any case.
    cached = {**POSTGRES, "config": {**POSTGRES["config"], "cache": True}}
    ordered = transform("sql", registerAs="changed", query="SELECT * FROM rows ORDER BY x")
    steps = [cached, ordered, more, load("a", "changed"), append, load("b", "changed")]
    assert kept(tmp_path, *steps) == {"changed": {"a", "b"}}


def test_what_chance_makes_is_made_once_of_a_source_that_the_pipeline_writes_too(tmp_path: Path) -> None:
    append = {"type": "load", "method": "toPostgres", "config": {"table": "t", "inputDataFrame": "keyed"}}
    keyed = transform("withColumns", registerAs="keyed", columns={"key": "uuid()"})
    found = kept(tmp_path, POSTGRES, keyed, load("a", "keyed"), {**append, "name": "t"}, load("b", "keyed"))
    assert found == {"keyed": {"a", "t", "b"}}


def test_equal_extracts_of_a_source_that_the_pipeline_writes_each_read_it(tmp_path: Path) -> None:
    cached = {**POSTGRES, "config": {**POSTGRES["config"], "cache": True}}
    again = {**POSTGRES, "config": {"table": "t", "registerAs": "again"}}
    append = {"type": "load", "method": "toPostgres", "config": {"table": "t", "inputDataFrame": "rows"}}
    loads = [load("a", "rows"), load("b", "again")]
    assert optimize(planned(tmp_path, cached, again, *loads)).same == {1: 0}
    assert optimize(planned(tmp_path, cached, again, append, *loads)).same == {}


def test_partitioned_targets_get_their_rows_together(tmp_path: Path) -> None:
    def clustered(*steps: dict[str, Any]) -> set[str]:
        plan = planned(tmp_path, *steps)
        return {plan.steps[index].name for index in optimize(plan).clustered}

    by_day = load("a", "rows", partitionBy=["day"])
    assert clustered(PARQUET, by_day) == {"a"}
    assert clustered(PARQUET, load("a", "rows")) == set()
    for method, config in (
        ("coalesce", {"numPartitions": 3}),
        ("repartition", {"numPartitions": 3}),
        ("repartitionByColumns", {"columns": ["day"]}),
    ):
        laid_out = transform(method, registerAs="rows", **config)
        source = extract_file("source", "/in.parquet")
        assert clustered(source, laid_out, by_day) == set()
        later = transform("withColumns", registerAs="later", columns={"y": "1"})
        assert clustered(source, laid_out, later, load("a", "later", partitionBy=["day"])) == set()


def test_what_is_kept_may_have_fewer_partitions_where_the_config_does_not_lay_them_out(tmp_path: Path) -> None:
    cached = {"cache": True}
    by_key = transform("repartitionByColumns", registerAs="by_key", columns=["k"], **cached)
    later = transform("withColumns", registerAs="later", columns={"y": "1"}, **cached)
    groups = transform("aggregateData", registerAs="groups", groupBy=["k"], aggregations={"n": "count(*)"}, **cached)
    plan = planned(tmp_path, CSV, by_key, later, groups)
    assert {plan.steps[index].name for index in optimize(plan).adaptive} == {"rows", "groups"}


def test_the_main_job_is_as_its_config_says(tmp_path: Path) -> None:
    plan = plan_pipeline(load_file(write_config(tmp_path, CUSTOMER_360), {}))
    found = optimize(plan)
    assert (found.kept, found.same, found.clustered) == ({}, {}, frozenset())


def test_a_hundred_steps_that_each_double_what_is_read(tmp_path: Path) -> None:
    steps = [extract_file("s0", "/in.parquet")]
    for number in range(1, 60):
        twice = [f"s{number - 1}", f"t{number}"]
        steps += [
            transform("selectColumns", registerAs=f"t{number}", inputDataFrame=twice[0], columns=["*"]),
            transform("union", registerAs=f"s{number}", inputDataFrames=twice),
        ]
    # Each is there twice in the next: without an end it would be read 2^59 times.
    assert len(kept(tmp_path, *steps)) > 10


def test_it_says_why(tmp_path: Path) -> None:
    plan = planned(tmp_path, *JOIN, load("a", "rows"), load("b", "rows", partitionBy=["day"]))
    found = optimize(plan)
    assert [found.told(plan, step) for step in plan.steps] == [
        None,
        None,
        "kept in memory and on disk until b is done: a and b take it, and each time it would cost as much as 6 reads "
        "of its rows from Parquet",
        None,
        "rows are brought together by day before they are written: few files a partition, not many",
    ]
