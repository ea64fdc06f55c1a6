"""What the demo does with Dagster's command line, for which a program stands in, when it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_assets_tests.integration.run_processes import wait_until

REPOSITORY = Path(__file__).parents[2]

# Takes note of what happens to it, and ends only when `may_end` is there.
DAGSTER = """#!/bin/sh
trap 'touch asked; while [ ! -e may_end ]; do sleep 0.05; done; touch ended; exit 1' INT
touch started
while :; do sleep 0.05; done
"""
DEMO = """
import sys
from pathlib import Path
from devstack import demo
from devstack.interrupts import run_command

demo.PROJECT = demo.DAGSTER_HOME = Path(sys.argv[1])
demo.program = lambda name: f"{sys.argv[1]}/{name}"
demo._END_LIMIT = float(sys.argv[2])
run_command(lambda: demo._execute("job", {"PATH": "/usr/bin:/bin"}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    program = tmp_path / "dagster"
    program.write_text(DAGSTER)
    program.chmod(0o755)
    yield tmp_path
    (tmp_path / "may_end").touch()


def running_demo(folder: Path, limit: float) -> subprocess.Popen[str]:
    """Return the process of a demo whose job has started."""
    command = [sys.executable, "-c", DEMO, str(folder), str(limit)]
    demo = subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until((folder / "started").exists)
    return demo


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_demo_waits_for_its_run_to_end(folder: Path, number: signal.Signals) -> None:
    demo = running_demo(folder, limit=60)
    demo.send_signal(number)
    wait_until((folder / "asked").exists)
    with pytest.raises(subprocess.TimeoutExpired):
        demo.wait(1)
    (folder / "may_end").touch()
    said, _ = demo.communicate(timeout=60)
    assert (folder / "ended").exists()
    assert demo.returncode == 128 + number, said
    assert said.endswith(f"interrupted by {number.name}\n")


def test_a_run_that_does_not_end_is_killed(folder: Path) -> None:
    demo = running_demo(folder, limit=0.5)
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    assert not (folder / "ended").exists()
    assert "was killed: Dagster may show its run as started" in " ".join(said.split())
    assert demo.returncode == 128 + signal.SIGINT
