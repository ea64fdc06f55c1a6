"""A Spark Connect server that stays, for as long as the measuring takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from devstack.dagster_daemon import program
from devstack.ports import free_port


@contextmanager
def spark_server(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Have a Spark server that stays; gives what tells a run of it."""
    port = str(free_port())
    command = [program("pipeline-assets"), "spark-server"]
    subprocess.run([*command, "start", "--port", port], env=dict(environment), check=True, capture_output=True)
    try:
        yield {"SPARK_REMOTE": f"sc://127.0.0.1:{port}"}
    finally:
        subprocess.run([*command, "stop", "--port", port], env=dict(environment), check=True, capture_output=True)
