"""Which run first tried what a run from the failure of another is to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import dagster as dg

# "From failure" and "from asset failure" in the UI; `run_retries` makes the first of them. Other runs of some steps of
# another run have no tag.
_RESUMES = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")


@dataclass(frozen=True)
class ResumedRuns:
    """The runs that ``run`` goes on from, one after the other. They are looked up when first asked for."""

    instance: dg.DagsterInstance
    run: dg.DagsterRun

    def first_try(self, step_key: str) -> str:
        """Return the id of the first of these runs from which on no run has finished the step, ``run`` among them.

        A step that a run has finished, and a later one runs again, is wanted once more.
        """
        first = self.run.run_id
        for run_id, finished in self._earlier:
            if step_key in finished:
                break
            first = run_id
        return first

    @cached_property
    def _earlier(self) -> tuple[tuple[str, frozenset[str]], ...]:
        """The ids of the runs before, the newest first, each with the keys of the steps that it has finished."""
        found: list[tuple[str, frozenset[str]]] = []
        run_id = _resumed_by(self.run)
        while run_id is not None:
            events = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
            keys = (entry.dagster_event.step_key for entry in events if entry.dagster_event is not None)
            found.append((run_id, frozenset(key for key in keys if key is not None)))
            run = self.instance.get_run_by_id(run_id)
            run_id = _resumed_by(run) if run is not None else None
        return tuple(found)


def _resumed_by(run: dg.DagsterRun) -> str | None:
    """Return the id of the run that ``run`` goes on from; not of one that it runs again from the start."""
    is_part = run.step_keys_to_execute is not None or any(run.tags.get(tag) == "true" for tag in _RESUMES)
    return run.parent_run_id if is_part else None
