"""A Spark Connect server that stays, for as long as the measuring takes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.measured_process import ProgramFailedError
from devstack.dagster_daemon import program
from devstack.ports import free_port


@contextmanager
def spark_server(environment: Mapping[str, str], conf: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Have a Spark server that stays, with ``conf``, each a ``name=value``; gives what tells a run of it."""
    port = str(free_port())
    command = [program("pipeline-assets"), "spark-server"]
    try:
        _start([*command, "start", "--port", port, *(part for one in conf for part in ("--conf", one))], environment)
        yield {"SPARK_REMOTE": f"sc://127.0.0.1:{port}"}
    finally:
        # Where there is none to stop, that is a success.
        subprocess.run([*command, "stop", "--port", port], env=dict(environment), check=True, capture_output=True)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the command that starts the server; an interrupt of this process is one of the command, too."""
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as starting:
        try:
            _, errors = starting.communicate()
        except BaseException:
            # Killed, as subprocess.run would have it, it leaves the server behind that it waits for.
            starting.send_signal(signal.SIGINT)
            starting.wait()
            raise
    if starting.returncode:
        raise ProgramFailedError(f"the Spark server did not start:\n{errors}")
