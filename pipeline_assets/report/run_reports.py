"""The report that a run writes of itself at its end, and where it is found."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg
from dagster._core.events import EngineEventData
from filelock import FileLock

from pipeline_assets.plan import PipelinePlan
from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    from pipeline_assets.report.event_log import EventLog

_log = logging.getLogger(__name__)

REPORT = "report"
_FILES_KEPT = 1000
_LOCK_SECONDS = 10.0
# A stream is not to wait for its report: this many of a kind are read in tenths of a second.
_MOST_EVENTS = 400
_OWN_FILE = re.compile(r".+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.html")


def report_file(settings: Settings, pipeline: str, run_id: str) -> Path | None:
    """Return where a run writes its report of ``pipeline``; None when it is to write none."""
    return None if settings.reports is None else settings.reports.absolute() / f"{pipeline}-{run_id}.html"


def report_metadata(settings: Settings, pipeline: str, run_id: str) -> dict[str, dg.MetadataValue]:
    """Return the metadata entry that leads to the report: a link where the folder is served, else the file's path.

    Nothing when the run is to write none. (No ``file:`` URL: a browser follows none from a page that it has by HTTP.)
    """
    file = report_file(settings, pipeline, run_id)
    if file is None:
        return {}
    if settings.reports_url is None:
        return {REPORT: dg.MetadataValue.path(file)}
    return {REPORT: dg.MetadataValue.url(f"{settings.reports_url.rstrip('/')}/{quote(file.name)}")}


def write_reports(
    instance: dg.DagsterInstance, run: dg.DagsterRun, plans: Iterable[PipelinePlan], settings: Settings
) -> None:
    """Write the reports of a run that is about to end, one for each pipeline, and tell of them in its log, once.

    Several processes of a run may do this: each writes what there is by then, and the last one has it all. Whatever
    goes wrong is logged as a warning.
    """
    from pipeline_assets.report.event_log import EventLog

    # Other processes of the run may write meanwhile what this one has not seen yet.
    log = EventLog(instance, run.run_id) if settings.in_one_process else None
    for plan in plans:
        try:
            _write(instance, run, plan, settings, log)
        except Exception as error:  # noqa: BLE001  (what only tells of the run may not fail it)
            _log.warning("no report of %s in this run: %s: %s", plan.name, type(error).__name__, error)


def _write(
    instance: dg.DagsterInstance, run: dg.DagsterRun, plan: PipelinePlan, settings: Settings, log: "EventLog | None"
) -> None:
    # Not before a run ends that writes one: the template engine is loaded for it.
    from pipeline_assets.report.page import render_page
    from pipeline_assets.report.run_history import read_run

    file = report_file(settings, plan.name, run.run_id)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever comes later reads later: an older state never takes the place of a newer one.
    with FileLock(file.parent / ".reports.lock", timeout=_LOCK_SECONDS):
        is_new = not file.exists()
        save(render_page(read_run(instance, plan, run.run_id, _MOST_EVENTS, log)), file)
        if is_new:
            _remove_oldest(file.parent)
            instance.report_engine_event(
                f"The report of {plan.name} in this run.",
                run,
                EngineEventData(report_metadata(settings, plan.name, run.run_id)),
            )


def save(page: str, file: Path) -> None:
    """Write a page, in whole or not at all. Raises OSError when that can't be."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    own = [file for file in folder.iterdir() if _OWN_FILE.fullmatch(file.name)]
    for file in sorted(own, key=lambda file: file.stat().st_mtime)[: max(0, len(own) - _FILES_KEPT)]:
        file.unlink(missing_ok=True)
