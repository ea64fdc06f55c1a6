"""Where one run's OpenLineage events are made and sent: beside the run, in a thread of their own."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import dagster as dg

from pipeline_assets.connections import Connections
from pipeline_assets.openlineage.configuration import configured_by, job_namespace, missing_file
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.redaction import redact
from pipeline_assets.settings import Settings

_log = logging.getLogger(__name__)

# How long the end of a run waits for what has not been sent yet.
_END_SECONDS = 5.0
# What takes longer to send, with all that the client tries, is not waited for.
_STUCK_SECONDS = 2.0
# For how long nothing is sent after a failure, which the client has tried again by itself.
_PAUSE_SECONDS = 60.0
_WAITING = 10_000

_RUN_ENDS = (dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED)


def lineage_publisher(
    settings: Settings, run: dg.DagsterRun, instance: dg.DagsterInstance, *, warns: bool = True
) -> "LineagePublisher | None":
    """Return what publishes the lineage of ``run``; None when OpenLineage is not configured, or can't be used.

    ``warns``: whether it is for this one to warn when something goes wrong.
    """
    try:
        why_not = _obstacle()
        if why_not is None:
            return LineagePublisher(settings, run, instance, warns=warns)
    except (OSError, RuntimeError) as error:  # no folder to look in, no thread to be had
        why_not = _first_line(error)
    if why_not:
        _warn(run.run_id, f"no lineage events: {why_not}", due=warns)
    return None


def _obstacle() -> str | None:
    """Return why lineage can't be published: an empty text when it is not asked for, None when it can be."""
    configured = configured_by()
    if configured is None:
        return ""
    missing = missing_file()
    if missing is not None:
        return f"OPENLINEAGE_CONFIG names {missing}, which can't be read"
    if not _is_installed():
        return (
            f"OpenLineage is configured ({configured}), and its client is not installed: install pipeline-assets with "
            "its extra 'openlineage' (docs/lineage.md), or set OPENLINEAGE_DISABLED=true"
        )
    return None


_warned_of: deque[str] = deque(maxlen=100)


def _warn(run_id: str, message: str, *, due: bool) -> None:
    """Log ``message`` as a warning, if it is the first of a run in this process; as an information otherwise."""
    is_first = due and run_id not in _warned_of
    if is_first:
        _warned_of.append(run_id)
    _log.log(logging.WARNING if is_first else logging.INFO, "%s", redact(message))


def _is_installed() -> bool:
    from importlib.util import find_spec

    # The name alone may be a folder's.
    return find_spec("openlineage") is not None and find_spec("openlineage.client") is not None


class LineagePublisher:
    """Publishes what a run's events tell of its data.

    The run is told of nothing, and waits for nothing but the last events, for a few seconds. What goes wrong is logged
    once.
    """

    def __init__(self, settings: Settings, run: dg.DagsterRun, instance: dg.DagsterInstance, *, warns: bool) -> None:
        self._settings = settings
        self._run = run
        self._instance = instance
        self._work: queue.Queue[Callable[[], Iterable[Any]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._publish, name="openlineage", daemon=True)
        self._events: Any = None
        self._client: Any = None
        self._warns = warns
        self._sending_since: float | None = None
        self._quiet_until = 0.0
        self._ended = False
        self._thread.start()

    def take(self, entry: dg.EventLogEntry) -> None:
        """Publish what the event tells; wait for what has not been sent when the run has ended with it."""
        if entry.dagster_event is None or self._ended:
            return
        self._do(lambda: self._events.events_of(entry))
        if entry.dagster_event.event_type in _RUN_ENDS:
            self.end()

    def planned(self, plan: PipelinePlan, connections: Connections) -> None:
        """Take what the run is about to do in this process."""
        self._do(lambda: self._events.planned(plan, self._settings, connections))

    def of_job(self, plan: PipelinePlan | None, *, tells_steps: bool) -> None:
        """Take the run to tell of as a whole; see ``LineageEvents.of_job``."""
        self._do(lambda: self._events.of_job(plan, tells_steps=tells_steps) or ())

    def end(self) -> None:
        """Send what is left, for some seconds at most."""
        if self._ended:
            return
        self._ended = True
        self._do(None)
        deadline = time.monotonic() + _END_SECONDS
        while self._thread.is_alive() and not self._is_stuck() and time.monotonic() < deadline:
            self._thread.join(0.05)
        if self._thread.is_alive():
            self._warn("lineage events were left unsent: their receiver does not answer in time")

    def _is_stuck(self) -> bool:
        since = self._sending_since
        return since is not None and time.monotonic() - since > _STUCK_SECONDS

    def _do(self, work: Callable[[], Iterable[Any]] | None) -> None:
        try:
            self._work.put_nowait(work)
        except queue.Full:
            self._warn("lineage events were left out: they come faster than they are received")

    def _publish(self) -> None:
        """Do the work, in its order, until there is a None."""
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  (whatever is wrong with the client, the run goes on)
            self._warn(f"no lineage events: OpenLineage's client could not be started: {_first_line(error)}")
        while (work := self._work.get()) is not None:
            if self._client is None:
                continue
            try:
                for event in work():
                    self._send(event)
            except Exception as error:  # noqa: BLE001  (the same)
                self._warn(f"lineage events are missing: {_first_line(error)}")
        if self._client is not None:
            self._client.close(_END_SECONDS)

    def _open(self) -> None:
        # Here, beside the run: the import takes some tenths of a second.
        from openlineage.client import OpenLineageClient

        from pipeline_assets.openlineage.run_events import LineageEvents

        self._events = LineageEvents(self._run, job_namespace(), self._last_metadata, self._retries)
        client = OpenLineageClient()
        _hide_user_of_repository(client)
        self._client = client

    def _send(self, event: Any) -> None:
        if time.monotonic() < self._quiet_until:
            return
        self._sending_since = time.monotonic()
        try:
            self._client.emit(event)
        except Exception as error:  # noqa: BLE001  (each transport has its own)
            self._quiet_until = time.monotonic() + _PAUSE_SECONDS
            self._warn(f"lineage events could not be sent: {_first_line(error)}")
        finally:
            self._sending_since = None

    def _warn(self, message: str) -> None:
        _warn(self._run.run_id, message, due=self._warns)

    def _last_metadata(self, key: dg.AssetKey) -> dict[str, Any]:
        event = self._instance.get_latest_materialization_event(key)
        found = event.asset_materialization if event is not None else None
        return dict(found.metadata) if found is not None else {}

    def _retries(self, step_key: str, before: float) -> int:
        entries = self._instance.all_logs(self._run.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
        return sum(entry.step_key == step_key and entry.timestamp <= before for entry in entries)


def _hide_user_of_repository(client: Any) -> None:
    """Have the client tell the repository of the code without the user and token that its URL may have."""
    from urllib.parse import urlsplit, urlunsplit

    from openlineage.client.git import get_git_repo_url

    where = client.config.facets.source_code_location
    url = where.repo_url or get_git_repo_url()
    if url and "://" in url:
        split = urlsplit(url)
        where.repo_url = urlunsplit(split._replace(netloc=split.netloc.rpartition("@")[2], query="", fragment=""))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
