"""What is tried again, and when."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.config import Retry
from pipeline_assets.errors import (
    ConfigurationError,
    CredentialError,
    DataValidationError,
    PipelineCancelledError,
    PipelineError,
    RetryableError,
    TransientKind,
)
from pipeline_assets.retries import seconds_before_retry
from pipeline_assets.transience import Transience, marked

KINDS: tuple[TransientKind, ...] = get_args(TransientKind)


def busy(kind: TransientKind = "unavailable", retry_after: float | None = None) -> RetryableError:
    return RetryableError("busy", kind=kind, retry_after=retry_after)


def test_the_ceiling_doubles_up_to_the_longest_delay() -> None:
    retry = Retry(max_retries=6, delay=10, max_delay=100)
    waits = [seconds_before_retry(retry, number, 0.0, busy(), lambda: 1.0) for number in range(7)]
    assert waits == [10, 20, 40, 80, 100, 100, None]
    assert seconds_before_retry(retry, 3, 0.0, busy(), lambda: 0.25) == 20
    assert seconds_before_retry(Retry(max_retries=100), 99, 0.0, busy(), lambda: 1.0) == 300


def test_the_other_sides_wish_is_honoured() -> None:
    retry = Retry(max_retries=3, delay=10, max_delay=20)
    assert seconds_before_retry(retry, 0, 0.0, busy(retry_after=60), lambda: 1.0) == 60
    assert seconds_before_retry(retry, 0, 0.0, busy(retry_after=2), lambda: 1.0) == 10


def test_no_try_begins_after_the_budget() -> None:
    retry = Retry(max_retries=3, delay=10, time_budget=30)
    assert seconds_before_retry(retry, 0, 20.0, busy(), lambda: 1.0) == 10
    assert seconds_before_retry(retry, 0, 20.5, busy(), lambda: 1.0) is None
    assert seconds_before_retry(retry, 0, 0.0, busy(retry_after=31), lambda: 0.0) is None


def test_only_the_kinds_that_are_meant() -> None:
    retry = Retry(max_retries=1, on=("throttled", "timeout"))
    tried = [kind for kind in KINDS if seconds_before_retry(retry, 0, 0.0, busy(kind), lambda: 0.0) is not None]
    assert tried == ["timeout", "throttled"]
    everything = Retry(max_retries=1)
    assert all(seconds_before_retry(everything, 0, 0.0, busy(kind), lambda: 0.0) == 0.0 for kind in KINDS)


@pytest.mark.parametrize(
    "failure",
    [
        ConfigurationError("x"),
        CredentialError("x"),
        DataValidationError("x"),
        PipelineCancelledError("x"),
        KeyError("x"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_permanent_is_never_tried_again(failure: BaseException) -> None:
    assert seconds_before_retry(Retry(max_retries=100), 0, 0.0, failure, lambda: 0.0) is None


def test_nothing_is_tried_again_without_settings() -> None:
    assert seconds_before_retry(None, 0, 0.0, busy(), lambda: 0.0) is None
    assert seconds_before_retry(Retry(), 0, 0.0, busy(), lambda: 0.0) is None


def test_an_error_of_another_class_can_be_transient_too() -> None:
    error = marked(CredentialError("Vault is sealed"), Transience("unavailable", 3.0))
    assert error.transient_kind
    assert seconds_before_retry(Retry(max_retries=1), 0, 0.0, error, lambda: 0.0) == 3.0


def test_what_an_error_says_survives_the_way_to_another_process() -> None:
    error: PipelineError = pickle.loads(pickle.dumps(busy("conflict", 4.0)))
    assert (type(error), error.transient_kind, error.retry_after) == (RetryableError, "conflict", 4.0)


@settings(deadline=None)
@given(
    retries=st.integers(0, 120),
    elapsed=st.floats(0, 1e6),
    delay=st.floats(0, 1e6),
    max_delay=st.floats(0, 1e6),
    budget=st.none() | st.floats(0.1, 1e6),
    drawn=st.floats(0, 1),
    retry_after=st.none() | st.floats(0, 1e6),
)
def test_a_wait_stays_within_its_bounds(
    retries: int,
    elapsed: float,
    delay: float,
    max_delay: float,
    budget: float | None,
    drawn: float,
    retry_after: float | None,
) -> None:
    retry = Retry(max_retries=100, delay=delay, max_delay=max_delay, time_budget=budget)
    wait = seconds_before_retry(retry, retries, elapsed, busy(retry_after=retry_after), lambda: drawn)
    if wait is None:
        assert retries >= 100 or budget is not None
    else:
        assert (retry_after or 0.0) <= wait <= max(max_delay, retry_after or 0.0)
        assert budget is None or elapsed + wait <= budget
