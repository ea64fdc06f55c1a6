"""What a process and its children write, as it reaches a file: each case in a process of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.redacted_output import LineRedactor, redacted_logs
from pipeline_assets.redaction import MASK, redact, register_secret

VALUE = "canary-0123456789"


def run(script: str, tmp_path: Path) -> tuple[str, str]:
    """Run ``script`` after a prelude, and return what it left in the files of its output and its errors."""
    prelude = f"""
        import os, subprocess, sys, threading, time
        from pipeline_assets.redacted_output import RedactedOutput
        from pipeline_assets.redaction import register_secret

        register_secret({VALUE!r})
        VALUE = {VALUE!r}
        output = RedactedOutput()
    """
    out, errors = tmp_path / "out", tmp_path / "errors"
    with out.open("ab") as to, errors.open("ab") as errors_to:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                textwrap.dedent(prelude) + textwrap.dedent(script),
                tmp_path / "captured",
            ],
            stdout=to,
            stderr=errors_to,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, errors.read_text()
    return out.read_text(errors="surrogateescape"), errors.read_text(errors="surrogateescape")


def test_python_and_its_children_are_redacted_and_nothing_is_left(tmp_path: Path) -> None:
    script = """
        def left():
            return sorted(os.listdir("/proc/self/fd")), threading.active_count(), os.stat(1), os.stat(2)

        print("before", VALUE)
        before = left()
        output.begin()
        print("python", VALUE)
        print("errors", VALUE, file=sys.stderr)
        os.write(1, b"raw \\xff " + VALUE.encode() + b"\\n")
        subprocess.run(f"echo child {VALUE}; echo child errors {VALUE} >&2", shell=True, check=True)
        print("a line without an end", VALUE, end="")
        output.end()
        output.end()
        assert left()[:2] == before[:2]
        assert [os.path.samestat(*pair) for pair in zip(left()[2:], before[2:])] == [True, True]
        print("\\nafter", VALUE)
    """
    out, errors = run(script, tmp_path)
    assert out.splitlines() == [
        f"before {VALUE}",
        f"python {MASK}",
        f"raw \udcff {MASK}",
        f"child {MASK}",
        f"a line without an end {MASK}",
        f"after {VALUE}",
    ]
    assert errors.splitlines() == [f"errors {MASK}", f"child errors {MASK}"]


def test_what_is_flushed_is_there(tmp_path: Path) -> None:
    """Dagster ends what shows a compute log when it has flushed."""
    script = """
        flush = sys.stdout.flush
        output.begin()
        for number in range(200):
            print(number, VALUE)
            sys.stdout.flush()
            shown = open(f"/proc/self/fd/{output._streams[0].target}").read()
            assert shown.endswith(f"{number} *********\\n"), (number, shown)
        output.end()
        assert sys.stdout.flush == flush
    """
    assert len(run(script, tmp_path)[0].splitlines()) == 200


def test_the_terminal_has_the_last_line_on_a_busy_machine(tmp_path: Path) -> None:
    """Dagster ends what shows a compute log as soon as it has flushed."""
    script = """
        import signal
        from dagster._core.execution.compute_logs import mirror_stream_to_file

        with mirror_stream_to_file(sys.stdout, sys.argv[1]) as (tail, _):
            output.begin()
            print("first", VALUE, flush=True)
            os.kill(tail, signal.SIGSTOP)
            print("last", VALUE)
            threading.Timer(0.5, os.kill, [tail, signal.SIGCONT]).start()
        output.end()
    """
    assert run(script, tmp_path)[0] == f"first {MASK}\nlast {MASK}\n"


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_run(tmp_path: Path) -> None:
    script = """
        import signal
        from dagster._core.execution.compute_logs import mirror_stream_to_file

        with mirror_stream_to_file(sys.stdout, sys.argv[1]) as (tail, _):
            output.begin()
            os.kill(tail, signal.SIGSTOP)
            for number in range(1000):
                print(number, VALUE, flush=True)
            threading.Timer(3, os.kill, [tail, signal.SIGCONT]).start()
        output.end()
    """
    run(script, tmp_path)
    assert (tmp_path / "captured").read_text().splitlines() == [f"{number} {MASK}" for number in range(1000)]


def test_no_line_is_lost_when_many_write_much(tmp_path: Path) -> None:
    script = """
        output.begin()
        child = "import sys; [print(sys.argv[1], n, sys.argv[2], flush=n % 7 == 0) for n in range(20000)]"
        children = [subprocess.Popen([sys.executable, "-c", child, str(i), VALUE]) for i in range(3)]
        for number in range(20000):
            print("parent", number, VALUE, file=sys.stderr)
        assert [child.wait() for child in children] == [0, 0, 0]
        output.end()
    """
    out, errors = run(script, tmp_path)
    assert errors.splitlines() == [f"parent {number} {MASK}" for number in range(20000)]
    assert VALUE not in out
    # Writers to one pipe may tear each other's lines apart; no byte is lost.
    assert out.count(MASK) + out.count("canary") >= 59990
    assert len(out.splitlines()) == 60000


def test_the_beginning_of_a_line_is_not_held_back(tmp_path: Path) -> None:
    script = """
        output.begin()
        def shown():
            return open(f"/proc/self/fd/{target}").read()
        target = output._streams[0].target
        for text in ("a prompt ", "and more"):
            os.write(1, text.encode())
            deadline = time.monotonic() + 60
            while text not in shown():
                assert time.monotonic() < deadline, shown()
                time.sleep(0.05)
        output.end()
    """
    assert run(script, tmp_path)[0] == "a prompt and more"


def test_a_child_that_stays_is_cut_off_and_does_not_hold_up_the_end(tmp_path: Path) -> None:
    script = """
        import signal
        import pipeline_assets.redacted_output as module

        module._DRAIN_SECONDS = 0.5
        output.begin()
        flood = "import os, sys\\nos.write(1, b'started\\\\n')\\nwhile True: os.write(1, b'x' * 1000 + b'\\\\n')"
        child = subprocess.Popen([sys.executable, "-c", flood], stderr=subprocess.DEVNULL)
        silent = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        output.end()
        print("ended", threading.active_count())
        # Nobody reads any more, and it is told.
        assert child.wait(60) != 0
        silent.kill()
        silent.wait()
    """
    assert "ended 1\n" in run(script, tmp_path)[0]


def test_a_redirection_in_between_stays_as_it_is(tmp_path: Path) -> None:
    """Dagster restores the descriptors at the end of a compute log, before the run's resources are released."""
    script = """
        before = os.dup(1)
        log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        output.begin()
        child = subprocess.Popen(["sh", "-c", "read _; echo late " + VALUE], stdin=subprocess.PIPE)
        sys.stdout.flush()
        os.dup2(before, 1)
        print("to the terminal", flush=True)
        child.communicate(b"go\\n")
        output.end()
        print("still to the terminal", flush=True)
        assert open(sys.argv[1]).read() == "late *********\\n"
    """
    assert run(script, tmp_path)[0] == "to the terminal\nstill to the terminal\n"


def test_a_target_that_is_full_is_told(tmp_path: Path) -> None:
    script = """
        import logging
        logging.basicConfig(stream=sys.stderr)
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        output.begin()
        for number in range(100000):
            os.write(1, b"much\\n")
        output.end()
    """
    assert "the run is incomplete: [Errno 28]" in run(script, tmp_path)[1]


def test_a_closed_descriptor_is_left_closed(tmp_path: Path) -> None:
    script = """
        sys.stdout = None
        os.close(1)
        output.begin()
        print("errors", VALUE, file=sys.stderr)
        output.end()
        try:
            os.fstat(1)
        except OSError:
            print("closed", file=sys.stderr)
    """
    assert run(script, tmp_path)[1] == f"errors {MASK}\nclosed\n"


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30))
def test_pieces_of_any_length_come_out_as_the_whole_would(cuts: list[int]) -> None:
    text = (
        f"one {VALUE}\n\n-----BEGIN PRIVATE KEY-----\nQUJD\nREVG\n-----END PRIVATE KEY-----\ntwo {VALUE} é \x00\nthree"
    )
    register_secret(VALUE)
    data, pieces = text.encode(), []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    found: list[bytes] = []
    lines = LineRedactor(found.append)
    for piece in [*pieces, data]:
        lines.feed(piece)
    lines.flush()
    shown = b"".join(found).decode()
    assert VALUE not in shown
    assert "QUJD" not in shown
    assert "REVG" not in shown
    assert [line for line in shown.splitlines() if line.startswith(("one", "two", "three"))] == [
        f"one {MASK}",
        f"two {MASK} é \x00",
        "three",
    ]


def test_a_private_key_that_does_not_end_masks_no_other_line() -> None:
    found: list[bytes] = []
    lines = LineRedactor(found.append)
    for line in ("expected -----BEGIN PRIVATE KEY----- in file", "the next line", "and another"):
        lines.feed(f"{line}\n".encode())
    assert b"".join(found).decode().splitlines()[1:] == ["the next line", "and another"]


def test_a_very_long_line_is_redacted_across_its_cuts() -> None:
    register_secret(VALUE)
    found: list[bytes] = []
    lines = LineRedactor(found.append)
    data = (f"{'x' * 1013}{VALUE}" * 1000).encode()
    for start in range(0, len(data), 1 << 16):
        lines.feed(data[start : start + (1 << 16)])
    assert len(found) > 2
    lines.flush()
    assert b"".join(found) == redact(data.decode()).encode()


def test_log_records_are_redacted_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    register_secret(VALUE)
    before = logging.getLogRecordFactory()
    py4j = logging.getLogger("py4j.clientserver")
    with caplog.at_level(logging.DEBUG), redacted_logs(), redacted_logs():
        py4j.debug("Command to send: %s", f"c\no1\nset\ns{VALUE}")
        logging.getLogger("any.other").warning("token=%(token)s", {"token": "abc"})
        try:
            raise KeyError(VALUE)
        except KeyError:
            logging.getLogger().exception("failed with %r", VALUE)
    assert logging.getLogRecordFactory() is before
    assert VALUE not in caplog.text
    assert f"failed with '{MASK}'" in caplog.text
    assert f"KeyError: '{MASK}'" in caplog.text
    assert f"token={MASK}" in caplog.text
    assert not [record for record in caplog.records if VALUE in str(record.__dict__.get("args"))]


def test_arguments_that_do_not_fit_are_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("misfit")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler())
    with redacted_logs():
        logger.warning("%d is no number", "x")
    assert "--- Logging error ---" in capsys.readouterr().err
