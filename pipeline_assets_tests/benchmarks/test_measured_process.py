"""What a program cost is all that it cost, and not its start alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.measured_process import run_measured

_WORK = "import time\nwhile time.process_time() < 0.5: pass"
_LATE_WORK = f"import os, sys, time\nwhile os.getppid() == int(sys.argv[1]): time.sleep(0.05)\n{_WORK}"
_START = f"import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', {_WORK!r}]); "


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(_WORK, id="its own"),
        pytest.param(_START + "child.wait()", id="of a process that it waited for"),
        # There for long enough to be seen, and gone before the other has begun.
        pytest.param(
            "import os, subprocess, sys, time; "
            f"subprocess.Popen([sys.executable, '-c', {_LATE_WORK!r}, str(os.getpid())]); time.sleep(3)",
            id="of a process that outlives it, as a JVM does",
            marks=pytest.mark.skipif(not psutil.LINUX, reason="others do not hand orphans on"),
        ),
    ],
)
def test_the_time_of_processors_is_that_of_all_that_was_started(program: str, tmp_path: Path) -> None:
    cost = run_measured([sys.executable, "-c", program], os.environ, tmp_path)
    assert 0.5 <= cost.cpu_seconds < 10
