"""The end of a Spark server that stays between runs; its life is in integration/test_spark_server.py."""

from __future__ import annotations

import subprocess
import sys

import psutil

from pipeline_assets.spark.connect_server import _end

SERVER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(worker.pid, flush=True)
worker.wait()
"""


def test_what_it_has_started_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = psutil.Process(int(server.stdout.readline()))
        try:
            _end(psutil.Process(server.pid))
            worker.wait(60)
        finally:
            if worker.is_running():
                worker.kill()
