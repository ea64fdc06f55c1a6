"""The Spark server of a benchmark is gone with it, however that ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks import spark_server
from benchmarks.measured_process import ProgramFailedError

INTERRUPTS = """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.kill(os.getppid(), signal.SIGINT)
    signal.sigwait({signal.SIGINT})
    print("start was interrupted", file=told)
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, start: str) -> Path:
    """Put a program in the place of `pipeline-assets`; returns the file in which it tells what it did."""
    file, told = folder / "program", folder / "told"
    file.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\ntold = open({str(told)!r}, 'a')\n"
        f"if sys.argv[2] == 'start':\n{start}\nprint(sys.argv[2], file=told)\n"
    )
    file.chmod(0o700)
    monkeypatch.setattr(spark_server, "program", lambda _name: str(file))
    return told


def test_it_is_there_for_the_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = install(monkeypatch, tmp_path, "    pass")
    with spark_server.spark_server(os.environ) as more:
        assert told.read_text().split() == ["start"]
        assert more["SPARK_REMOTE"].startswith("sc://127.0.0.1:")
    assert told.read_text().split() == ["start", "stop"]


def test_an_interrupted_start_is_ended_and_undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = install(monkeypatch, tmp_path, INTERRUPTS)
    with pytest.raises(KeyboardInterrupt), spark_server.spark_server(os.environ):
        pass
    assert told.read_text().splitlines() == ["start was interrupted", "start", "stop"]


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "    sys.exit('no Java here')")
    with pytest.raises(ProgramFailedError, match="no Java here"), spark_server.spark_server(os.environ):
        pass
