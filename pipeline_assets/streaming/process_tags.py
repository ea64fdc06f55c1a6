"""The tags of a run that say which process it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_assets.streaming.checkpoint_lease import Process

if TYPE_CHECKING:
    import dagster as dg

HOST_TAG = "pipeline_assets/host"
PID_TAG = "pipeline_assets/pid"
MACHINE_TAG = "pipeline_assets/machine"
STARTED_TAG = "pipeline_assets/process_started"
PROCESS_OF_TAG = "pipeline_assets/process_of"


def process_tags(process: Process, run_id: str) -> dict[str, str]:
    """Return the tags that say of the run ``run_id`` which process it is in."""
    told = {
        HOST_TAG: process.host,
        PID_TAG: process.pid,
        MACHINE_TAG: process.machine,
        STARTED_TAG: process.started,
        PROCESS_OF_TAG: run_id,
    }
    return {tag: str(value) for tag, value in told.items() if value is not None}


def tagged_process(run: dg.DagsterRun) -> Process | None:
    """Return the process that ``process_tags`` tells of ``run``; None when its tags do not say.

    Those of another run do not count: Dagster gives a run that is executed again all tags of the first one.
    """
    tags = run.tags
    host, pid, started = tags.get(HOST_TAG), tags.get(PID_TAG, ""), tags.get(STARTED_TAG, "")
    if tags.get(PROCESS_OF_TAG) != run.run_id or not host or not pid.isdigit():
        return None
    return Process(host, int(pid), tags.get(MACHINE_TAG), int(started) if started.isdigit() else None)
