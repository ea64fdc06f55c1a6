"""Which load's query writes the rows that a validate step puts into quarantine: the same one at each start.

Each query has offsets of its own. What one of them has put aside another would write again, and leave out what that one
had not read yet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from pipeline_assets.execution import PipelineRun
from pipeline_assets.plan import PlannedStep

_log = logging.getLogger(__name__)


def quarantine_writer(run: PipelineRun, guard: PlannedStep, loads: Sequence[PlannedStep]) -> PlannedStep:
    """Return which of ``loads``, those after ``guard``, writes its rows for quarantine; noted in their checkpoints.

    It is the one that has done so, wherever it stands by now; else the first that has read anything; else the first.
    """
    checkpoints = {load.index: run.checkpoint(load) for load in loads}
    notes = {load.index: checkpoints[load.index].read_document(_named(guard)) or {} for load in loads}
    noted = [load for load in loads if notes[load.index].get("writes")]
    read = (load for load in loads if checkpoints[load.index].is_read)
    writer = next(chain(noted, read, loads))
    path = checkpoints[writer.index].path
    gone = next((note["writer"] for note in notes.values() if "writer" in note), None)
    if gone is not None and not noted:
        _log.warning(
            "%s: the query of the checkpoint %s, which wrote this step's rows into quarantine, is there no more: that "
            "of %s takes over. If the two had not read equally far, some bad rows are in quarantine twice, or missing; "
            "to find the missing ones, run the same step in a batch pipeline",
            run.plan.location(guard),
            gone,
            path,
        )
    # Its own first: without that note, those of the others say that it is gone.
    for load in sorted(loads, key=lambda load: load is not writer):
        note = {"writes": load is writer, "writer": path}
        if notes[load.index] != note:
            checkpoints[load.index].write_document(_named(guard), note)
    return writer


def _named(guard: PlannedStep) -> str:
    return f"quarantine_{guard.name}"
