"""The lease on a checkpoint, held and fought for by real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

import pipeline_assets
from devstack.s3 import S3Server
from pipeline_assets.connections import Connections, parse_connections
from pipeline_assets.errors import PipelineCancelledError, PipelineExecutionError
from pipeline_assets.steps.checkpoint import OWN_FOLDER, Checkpoint
from pipeline_assets.streaming import checkpoint_lease
from pipeline_assets.streaming.checkpoint_lease import CheckpointLease, Holder, Process

# Takes the lease on each checkpoint that it is told on stdin, and says whether it has it; holds all until it ends.
CONTENDER = """
import sys, threading
from pipeline_assets.streaming.checkpoint_lease import CheckpointLease
from pipeline_assets.connections import Connections
from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.steps.checkpoint import Checkpoint

renew, expiry = float(sys.argv[2]), float(sys.argv[3])
Checkpoint.at("/", "default", Connections())  # imports what takes long
held = []
print("ready", flush=True)
for line in sys.stdin:
    lease = CheckpointLease(
        Checkpoint.at(line.strip(), "default", Connections()), sys.argv[1],
        is_finished=lambda run_id: False, renew_seconds=renew, expiry_seconds=expiry,
    )
    try:
        lease.acquire(threading.Event(), wait_seconds=0)
    except PipelineExecutionError as error:
        print(f"no {error}", flush=True)
    else:
        held.append(lease)
        print("yes", flush=True)
"""


def never(run_id: str) -> bool:
    return False


def holder_state(checkpoint: Checkpoint, now: datetime) -> str:
    holder = Holder.of(checkpoint)
    return "none" if holder is None else holder.state(now)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint.at(str(tmp_path / "checkpoint"), "default", Connections())


@contextmanager
def contender(run_id: str, renew: float = 10, expiry: float = 60) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTENDER, run_id, str(renew), str(expiry)],
        cwd=Path(pipeline_assets.__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert answer(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], path: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{path}\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def acquired(checkpoint: Checkpoint, run_id: str, wait: float = 0, **more: object) -> CheckpointLease:
    lease = CheckpointLease(checkpoint, run_id, **{"is_finished": never, **more})  # type: ignore[arg-type]
    lease.acquire(threading.Event(), wait_seconds=wait)
    return lease


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "not within 120 s"
        threading.Event().wait(0.01)


def test_a_lease_is_taken_and_given_back(checkpoint: Checkpoint) -> None:
    assert holder_state(checkpoint, datetime.now(UTC)) == "none"
    with acquired(checkpoint, "first"):
        assert holder_state(checkpoint, datetime.now(UTC)) == "alive"
        holder = Holder.of(checkpoint)
        assert holder is not None
        assert (holder.run_id, holder.process.host, holder.process.pid) == ("first", socket.gethostname(), os.getpid())
    assert holder_state(checkpoint, datetime.now(UTC)) == "none"
    acquired(checkpoint, "second").release()


def test_a_holder_that_lives_is_named(checkpoint: Checkpoint) -> None:
    with contender("the-holder") as process:
        ask(process, checkpoint.path)
        assert answer(process) == "yes"
        with pytest.raises(PipelineExecutionError) as raised:
            acquired(checkpoint, "second")
    said = str(raised.value)
    assert f"is written by run the-holder on host {socket.gethostname()} (pid {process.pid}) since 2" in said
    assert "terminate that run first" in said
    assert "\n" not in said


def test_a_killed_holder_is_followed_at_once(checkpoint: Checkpoint) -> None:
    with contender("first") as process:
        ask(process, checkpoint.path)
        assert answer(process) == "yes"
        os.kill(process.pid, signal.SIGKILL)
        # Nobody has waited for it: the process is a zombie, as under a worker's parent that does not reap.
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert holder_state(checkpoint, datetime.now(UTC)) == "gone"
        with acquired(checkpoint, "second", wait=0):
            process.wait()
            assert holder_state(checkpoint, datetime.now(UTC)) == "alive"


def test_of_two_contenders_exactly_one_wins(tmp_path: Path) -> None:
    won = {"a": 0, "b": 0}
    with contender("a") as a, contender("b") as b, contender("dead") as dead:
        paths = [str(tmp_path / str(number)) for number in range(60)]
        for path in paths[::2]:  # every other one has a holder that is gone
            ask(dead, path)
            assert answer(dead) == "yes"
        dead.kill()
        dead.wait()
        for path in paths:
            for process in (a, b):
                ask(process, path)
            answers = {"a": answer(a), "b": answer(b)}
            (winner,) = (name for name, said in answers.items() if said == "yes")
            (loser,) = (said for said in answers.values() if said != "yes")
            assert f"is written by run {winner} " in loser
            won[winner] += 1
    assert won["a"] + won["b"] == 60


def test_many_threads_and_one_winner(checkpoint: Checkpoint) -> None:
    barrier = threading.Barrier(8)
    held: list[CheckpointLease] = []

    def contend(number: int) -> None:
        barrier.wait()
        try:
            held.append(acquired(checkpoint, f"run-{number}"))
        except PipelineExecutionError:
            return

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = held
    lease.release()


def test_a_finished_run_is_followed_once_it_renews_no_more(checkpoint: Checkpoint) -> None:
    """As one that was filed as ended by force, or by mistake, and whose process writes on."""
    asked: list[str] = []

    def finished(run_id: str) -> bool:
        asked.append(run_id)
        return True

    with contender("finished", renew=0.1) as process:
        ask(process, checkpoint.path)
        assert answer(process) == "yes"
        begun = time.monotonic()
        with pytest.raises(PipelineExecutionError) as raised:
            acquired(checkpoint, "second", wait=2, is_finished=finished)
        assert time.monotonic() - begun >= 2
        assert f"is written by run finished on host {socket.gethostname()} (pid {process.pid})" in str(raised.value)
        assert "That run has ended, but its process still writes: end that process" in str(raised.value)
        with CheckpointLease(checkpoint, "", is_finished=never)._exclusive():  # not while it has the lock
            os.kill(process.pid, signal.SIGSTOP)
        last = Holder.of(checkpoint)
        assert last is not None
        with acquired(checkpoint, "second", wait=50, renew_seconds=1.0, is_finished=finished):
            assert datetime.now(UTC) - last.renewed_at > timedelta(seconds=2)
        assert {*asked} == {"finished"}


def test_an_expired_lease_of_another_host_is_waited_for(checkpoint: Checkpoint) -> None:
    now = datetime.now(UTC)
    elsewhere = Process("elsewhere.example", 1)
    Holder("far", elsewhere, "token", now, now, 600.0).write(checkpoint)
    assert holder_state(checkpoint, now) == "alive"
    assert holder_state(checkpoint, now + timedelta(seconds=601)) == "expired"
    with pytest.raises(PipelineExecutionError, match="run far on host elsewhere.example"):
        acquired(checkpoint, "second")
    now = datetime.now(UTC)
    Holder("far", elsewhere, "token", now, now, 1.0).write(checkpoint)
    with acquired(checkpoint, "second", wait=120, renew_seconds=0.1):
        assert datetime.now(UTC) - now > timedelta(seconds=1)


def test_a_holder_that_renews_is_not_waited_for(checkpoint: Checkpoint) -> None:
    with contender("first", renew=0.1) as process:
        ask(process, checkpoint.path)
        assert answer(process) == "yes"
        # Longer than a test may take.
        with pytest.raises(PipelineExecutionError, match="is written by run first"):
            acquired(checkpoint, "second", wait=3600, renew_seconds=0.1)


def test_a_lease_that_is_renewed_does_not_expire(checkpoint: Checkpoint) -> None:
    with acquired(checkpoint, "first", renew_seconds=0.05, expiry_seconds=1.0) as lease:
        before = Holder.of(checkpoint)
        assert before is not None
        eventually(lambda: (Holder.of(checkpoint) or before).renewed_at > before.renewed_at + timedelta(seconds=1.5))
        after = Holder.of(checkpoint)
        assert after is not None
        assert replace(after, renewed_at=before.renewed_at) == before
        assert lease.lost is None


def test_a_lease_that_another_has_taken_is_lost_and_not_given_back(checkpoint: Checkpoint) -> None:
    first = acquired(checkpoint, "first", renew_seconds=0.05)
    now = datetime.now(UTC)
    with first._exclusive():  # as when its renewals had not come for a minute
        Holder("second", Process.this(), "token", now, now, 60).write(checkpoint)
    eventually(lambda: first.lost)
    assert first.lost is not None
    assert "has been taken over by run second on host" in first.lost
    first.release()
    holder = Holder.of(checkpoint)
    assert holder is not None
    assert holder.run_id == "second"


def test_a_lease_that_was_removed_is_lost(checkpoint: Checkpoint) -> None:
    with acquired(checkpoint, "first", renew_seconds=0.05) as lease:
        checkpoint.remove_document("lease")
        eventually(lambda: lease.lost)
        assert holder_state(checkpoint, datetime.now(UTC)) == "none"


def test_a_lease_that_can_not_be_given_back_fails_nothing(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped() -> None:
        with acquired(checkpoint, "first"):
            own = Path(checkpoint.path, OWN_FOLDER)
            shutil.rmtree(own)
            own.write_text("not a folder any more")
            raise PipelineCancelledError("stopped")

    with pytest.raises(PipelineCancelledError, match="stopped"):
        stopped()
    assert "could not be given back: " in caplog.text


def test_waiting_ends_when_the_run_is_stopped(checkpoint: Checkpoint) -> None:
    now = datetime.now(UTC)
    Holder("far", Process("elsewhere.example", 1), "token", now, now, 600).write(checkpoint)
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with pytest.raises(PipelineCancelledError):
        CheckpointLease(checkpoint, "second", is_finished=never).acquire(stop)
    timer.join()


def test_a_process_number_that_was_given_again_is_another_process() -> None:
    own = Process.this()
    assert own.is_here()
    assert not own.is_gone()
    other_start = replace(own, started=1)
    assert other_start.is_gone()
    assert not other_start.is_here()
    for elsewhere in (replace(own, host="elsewhere.example"), replace(own, machine="another boot")):
        assert not elsewhere.is_gone()
        assert not elsewhere.is_here()


def test_processes_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint_lease, "_PROC", tmp_path / "none")
    own = Process.this()
    assert (own.machine, own.started) == (None, None)
    assert own.is_here()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert Process(own.host, process.pid).is_gone()


@pytest.mark.parametrize("content", ['{"run_id": "a"}', ""])
def test_a_document_that_is_no_lease(checkpoint: Checkpoint, content: str) -> None:
    checkpoint.write_document("lease", {})
    checkpoint.folder.below("pipeline_assets").write("lease.json", content.encode())
    with pytest.raises(PipelineExecutionError, match="lease.json is no lease: delete it"):
        acquired(checkpoint, "first")


def test_spark_does_not_see_the_lease(checkpoint: Checkpoint) -> None:
    with acquired(checkpoint, "first"):
        assert set(os.listdir(checkpoint.path)) == {OWN_FOLDER}
        document = json.loads(Path(checkpoint.path, OWN_FOLDER, "lease.json").read_text())
    assert document["acquired_at"].endswith("+00:00")


def test_a_lease_that_is_removed_while_it_is_taken_is_taken_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the release of who held it before, where there are no locks."""

    class Removing(threading.Event):
        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waits += 1
            if self.waits == 1:
                checkpoint.remove_document("lease")
            return False

    monkeypatch.setattr(checkpoint_lease, "_lock", lambda *_: False)
    stop = Removing()
    lease = CheckpointLease(checkpoint, "second", is_finished=never)
    with lease:
        lease.acquire(stop, wait_seconds=0)
        holder = Holder.of(checkpoint)
        assert holder is not None
        assert holder.run_id == "second"
    assert stop.waits == 2


def test_on_an_object_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both have it where one is kept that long from writing what it is about to write, as on a busy machine.
    monkeypatch.setattr(checkpoint_lease, "_SETTLE_SECONDS", 6.0)
    monkeypatch.setenv("TEST_S3_KEY", s3.access_key_id)
    monkeypatch.setenv("TEST_S3_SECRET", s3.secret_access_key)
    entry = {
        "endpoint": s3.endpoint,
        "region": s3.region,
        "accessKeyId": "env:TEST_S3_KEY",
        "secretAccessKey": "env:TEST_S3_SECRET",
    }
    connections = Connections(parse_connections({"s3": {"default": entry}}))
    checkpoint = Checkpoint.at("s3a://data/checkpoints/lease", "default", connections)
    for _ in range(3):
        barrier = threading.Barrier(2)
        held: list[CheckpointLease] = []

        def contend(run_id: str, barrier: threading.Barrier, held: list[CheckpointLease]) -> None:
            barrier.wait()
            try:
                held.append(acquired(checkpoint, run_id))
            except PipelineExecutionError:
                return

        threads = [threading.Thread(target=contend, args=(name, barrier, held)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (lease,) = held
        holder = Holder.of(checkpoint)
        assert holder is not None
        assert holder.run_id == lease.run_id
        lease.release()
        assert Holder.of(checkpoint) is None
