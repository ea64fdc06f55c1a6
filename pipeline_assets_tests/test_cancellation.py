"""A stop that is asked for by a signal, without Spark: what it interrupts, and how what does not end is left."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pipeline_assets.cancellation import Cancellation
from pipeline_assets.errors import PipelineCancelledError


def kill_self(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_interrupts_what_can_be(number: signal.Signals) -> None:
    interrupted = threading.Event()
    cleaned_up = []
    with Cancellation() as cancellation:
        with pytest.raises(PipelineCancelledError) as raised, cancellation.guard():  # noqa: PT012
            with cancellation.interrupting(interrupted.set):
                kill_self(number)
                assert interrupted.wait(60)
            try:
                raise ValueError("the job was cancelled")
            finally:
                cleaned_up.append(True)
        assert isinstance(raised.value.__cause__, ValueError)
        assert cleaned_up
        with pytest.raises(PipelineCancelledError), cancellation.guard():
            raise AssertionError("nothing is begun any more")


def test_what_does_not_end_is_left_after_the_grace_period() -> None:
    def refuse() -> None:
        raise RuntimeError("can't be interrupted")

    with (  # noqa: PT012
        Cancellation(grace_seconds=0.1) as cancellation,
        pytest.raises(PipelineCancelledError) as raised,
        cancellation.guard(),
        cancellation.interrupting(refuse),
    ):
        kill_self()
        threading.Event().wait(300)
    assert isinstance(raised.value.__cause__, KeyboardInterrupt)


@pytest.mark.parametrize(("grace_seconds", "signals"), [(0.5, 1), (300.0, 2)], ids=["late", "twice"])
def test_what_does_not_end_is_left_while_an_interrupt_does_not_return(
    grace_seconds: float, signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a Spark that answers nobody: it is called once, and not waited for."""
    monkeypatch.setattr("pipeline_assets.cancellation._SAME_REQUEST_SECONDS", 0.0)
    left = threading.Event()
    begun = threading.Semaphore(0)
    returned: list[bool] = []

    def interrupt() -> None:
        begun.release()
        returned.append(left.wait(60))

    with (  # noqa: PT012
        Cancellation(grace_seconds) as cancellation,
        pytest.raises(PipelineCancelledError) as raised,
        cancellation.guard(),
        cancellation.interrupting(interrupt),
    ):
        kill_self()
        assert begun.acquire(timeout=60)
        for _ in range(1, signals):
            kill_self()
        threading.Event().wait(300)
    assert isinstance(raised.value.__cause__, KeyboardInterrupt)
    assert not returned
    assert not begun.acquire(blocking=False)
    left.set()


def test_what_ends_all_the_same_counts() -> None:
    with Cancellation() as cancellation, cancellation.guard():
        kill_self()
        done = True
    assert done
    assert cancellation.stop.is_set()


def test_an_error_without_a_stop_stays_what_it_is() -> None:
    with Cancellation() as cancellation, pytest.raises(ValueError, match="wrong"), cancellation.guard():
        raise ValueError("wrong")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Cancellation() as cancellation, cancellation.guard():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with Cancellation() as cancellation, cancellation.guard():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
