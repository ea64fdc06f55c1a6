"""Thousands of broken configs: each is a pipeline, or a ConfigurationError that says where. Nothing else comes out."""

from __future__ import annotations

import copy
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from pipeline_assets.code_location import build_definitions
from pipeline_assets.config_loading import load_file
from pipeline_assets.errors import ConfigurationError
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.planner import plan_pipeline, with_graph_issues
from pipeline_assets.settings import Settings
from pipeline_assets.steps import METHODS, method_registry
from pipeline_assets_tests.fuzz_seeds import SEEDS

STRUCTURAL_CASES, BYTE_CASES = 4200, 1000
ENVIRONMENT = {"EMPTY": "", "NESTED": "${NESTED}", "QUOTES": '"}],{"', "LONG": "x" * 10_000, "DAY": "1"}


def _deep(levels: int) -> Any:
    found: Any = "deep"
    for level in range(levels):
        found = [found] if level % 2 else {"config": found}
    return found


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "\x00", "\ud800", "\u202e\u0000", "é", "é", "名前", "😀" * 50, "a" * 100_000, "a/b", "a~1b", "..", "../..",
    "${", "${}", "${NAME", "${MISSING}", "${MISSING:-}", "${MISSING:-${MISSING}}", "$${MISSING}", "$$${MISSING}",
    "${EMPTY}", "${NESTED}", "${QUOTES}", "${LONG}", "${partition}", "${partition:-x}", "$${partition}",
    "s3a://", "s3a:///", "s3a://[", "s3a://b/../x", "file://[::1", "http://[", "://", "/*", "[", "{a,", "*", "\\",
    "SELECT", "SELECT 1; SELECT 2", "DROP TABLE x", "((((((((((", "'", "`", "--", "SELECT '" + "(" * 500, "1" * 5000,
    "* * * * *", "61 * * * *", "@daily", "0 0 31 2 *", "* * * * * *", "R", "0 0 l * *", "1-0 * * * *", "*/0 * * * *",
    "Europe/Nowhere", "../../etc/passwd", "/etc/passwd", "UTC", "2024-02-30", "9999-12-31", "0001-01-01", "1",
    "availableNow", "0 seconds", "continuous", "9" * 30 + " seconds", "customers", "filter_rows", "steps", "type",
    [], {}, [None], [[]], {"": {}}, {"$ref": "#"}, _deep(30), _deep(400), list(range(1000)), {"a" * 5000: 1},
)  # fmt: skip
KEYS = (
    "",
    "$schema",
    "name",
    "config",
    "type",
    "steps",
    "registerAs",
    "self",
    "__class__",
    "model_config",
    "a/b",
    "~",
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in ``node`` with each of its keys."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def replace(holder: Any, key: Any, value: Any, name: str) -> None:
    holder[key] = copy.deepcopy(value)


def drop(holder: Any, key: Any, value: Any, name: str) -> None:
    del holder[key]


def rename(holder: Any, key: Any, value: Any, name: str) -> None:
    if isinstance(holder, dict):
        holder[name] = holder.pop(key)


def misspell(holder: Any, key: Any, value: Any, name: str) -> None:
    if isinstance(holder, dict):
        holder[key[:-1] + "x"] = holder.pop(key)


def nest(holder: Any, key: Any, value: Any, name: str) -> None:
    holder[key] = {name: holder[key]} if len(name) % 2 else [holder[key]]


def unnest(holder: Any, key: Any, value: Any, name: str) -> None:
    inner = holder[key]
    if isinstance(inner, dict | list) and inner:
        holder[key] = next(iter(inner.values())) if isinstance(inner, dict) else inner[0]


def duplicate(holder: Any, key: Any, value: Any, name: str) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[name] = copy.deepcopy(holder[key])


def retype(holder: Any, key: Any, value: Any, name: str) -> None:
    inner = holder[key]
    holder[key] = json.dumps(inner) if not isinstance(inner, str) else list(inner[:20])


def append(holder: Any, key: Any, value: Any, name: str) -> None:
    inner = holder[key]
    if isinstance(inner, str):
        holder[key] = inner + (value if isinstance(value, str) else name)
    elif isinstance(inner, list):
        inner.append(copy.deepcopy(value))
    elif isinstance(inner, dict):
        inner[name] = copy.deepcopy(value)


MUTATIONS: tuple[Callable[[Any, Any, Any, str], None], ...] = (
    replace, replace, drop, rename, misspell, nest, unnest, duplicate, retype, append,
)  # fmt: skip
# Text that hypothesis makes up beside the values that are known to be strange.
VALUES = st.sampled_from(STRANGE) | st.text(max_size=20) | st.integers() | st.floats()
CHANGES = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(MUTATIONS), VALUES, st.sampled_from(KEYS)), min_size=1, max_size=3
)


# The dearest cases, with a thousand errors, take a third of it at most; a pattern that is tried anew at each of the
# 100,000 characters of a text takes seconds.
LIMIT = 0.5
TRIES = 5


class Judge:
    """Loads and plans cases, holds that what comes out is one of two things, and keeps the CPU time of each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "case.json"
        self.settings = Settings(configs=folder, warehouse=str(folder / "warehouse"))
        self.registry = method_registry()
        self.seconds: list[float] = []
        self.slow: list[bytes] = []
        self.valid = 0

    def judge(self, content: bytes) -> PipelinePlan | None:
        found, seconds = self._timed(self.path, content)
        self.seconds.append(seconds)
        if seconds >= LIMIT:
            self.slow.append(content)
        if isinstance(found, ConfigurationError):
            self._check(found)
            return None
        self.valid += 1
        if self.valid % 20 == 0:
            self._define(found)
        return found

    def _timed(self, path: Path, content: bytes) -> tuple[PipelinePlan | ConfigurationError, float]:
        path.write_bytes(content)
        start = time.process_time()
        found: PipelinePlan | ConfigurationError
        try:
            found = plan_pipeline(load_file(path, ENVIRONMENT, self.registry))
        except ConfigurationError as error:
            found = with_graph_issues(error)
        return found, time.process_time() - start

    def _check(self, error: ConfigurationError) -> None:
        assert error.issues, error
        for issue in error.issues:
            assert issue.file == "case.json"
            assert issue.pointer == "" or issue.pointer.startswith("/"), issue
            assert issue.message
            assert len(issue.message) < 3000, issue.pointer
        str(error).encode()  # to a terminal, a log, a database

    def _define(self, plan: PipelinePlan) -> None:
        """Make Dagster's definitions of it, as the code location does."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            definitions = build_definitions(self.settings)
        if plan.pipeline.config.mode == "batch":
            definitions.resolve_job_def(plan.name)

    def check_times(self) -> None:
        """Hold that each case takes less than LIMIT of the processor, which is noisy: the slow ones get more tries."""
        assert statistics.median(self.seconds) < LIMIT / 2
        assert len(self.slow) < len(self.seconds) / 100
        for number, content in enumerate(self.slow):
            # In files of their own: of one that has been parsed the result is kept.
            files = [self.path.with_name(f"slow-{number}-{attempt}.json") for attempt in range(TRIES)]
            assert min(self._timed(file, content)[1] for file in files) < LIMIT, content


def run(judge: Judge, cases: Any, max_examples: int) -> None:
    """Judge ``max_examples`` of ``cases``, the same ones each time: what is red here is red on any machine."""

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def each(content: bytes) -> None:
        judge.judge(content)

    # Hypothesis draws from the constants of all our modules that are loaded, too: by a new one, or by the tests that
    # ran before, the cases would be others.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", lambda: providers.Constants())
        providers.CONSTANTS_CACHE.cache.clear()
        try:
            each()
        finally:
            providers.CONSTANTS_CACHE.cache.clear()


@st.composite
def mutated(draw: Any) -> bytes:
    document = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for where, mutation, value, name in draw(CHANGES):
        places = list(_places(document))
        if places:
            holder, key = places[where % len(places)]
            mutation(holder, key, value, name)
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def mangled(draw: Any) -> bytes:
    content = bytearray(json.dumps(draw(st.sampled_from(SEEDS))).encode())
    for _ in range(draw(st.integers(1, 3))):
        tokens = [match.span() for match in re.finditer(rb'"[^"]*"|[\d.]+|\w+', content)]
        if draw(st.booleans()) and tokens:
            at, end = draw(st.sampled_from(tokens))
        else:
            at = draw(st.integers(0, len(content)))
            end = at + draw(st.integers(0, 20))
        content[at:end] = draw(st.binary(max_size=4) | st.sampled_from(FRAGMENTS))
    return bytes(content)


FRAGMENTS = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b'"name": "twice",',
    b"{",     b"}", b"[" * 2000, b'{"a":' * 2000, b",", b"//", b"'", b"\\ud800", b'\\u0000"', b"\n\n", b"1" * 6000,
)  # fmt: skip


def test_the_seeds_are_valid_and_use_every_method(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    plans = [judge.judge(json.dumps(seed).encode()) for seed in SEEDS]
    used = {type(method) for plan in plans if plan is not None for method in plan.pipeline.methods}
    assert None not in plans
    assert used == set(METHODS)


def test_mutated_configs(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    run(judge, mutated(), STRUCTURAL_CASES)
    assert len(judge.seconds) >= STRUCTURAL_CASES
    assert judge.valid > STRUCTURAL_CASES / 20  # some pass, or planning would go untested
    judge.check_times()


def test_configs_with_mangled_bytes(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    run(judge, mangled(), BYTE_CASES)
    assert len(judge.seconds) >= BYTE_CASES
    judge.check_times()
