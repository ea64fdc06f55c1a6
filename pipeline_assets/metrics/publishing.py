"""Where one run's metrics go while it runs: to its file, to an endpoint for Prometheus, to a Pushgateway."""

# No postponed annotations here, as in all modules that define what Dagster runs.
import logging
import time
from http.client import HTTPException
from typing import Any

import dagster as dg

from pipeline_assets.credentials.audit import Access, AuditEntry
from pipeline_assets.metrics.dagster_events import RunRecords
from pipeline_assets.metrics.records import MetricsRecord
from pipeline_assets.metrics.run_files import RunFile
from pipeline_assets.settings import Settings

_log = logging.getLogger(__name__)

_PUSH_SECONDS = 5.0
_JOB = "pipeline_assets"


class RunPublisher:
    """Publishes what a run's events tell. Nothing that goes wrong here fails the run: it is logged once."""

    def __init__(self, settings: Settings, run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
        self._settings = settings
        self._run_id = run.run_id
        self._events = RunRecords(run, instance)
        self._file = RunFile(settings.metrics, run.run_id) if settings.metrics else None
        # Not imported before it is asked for: a run without Prometheus has nothing to pay for it.
        self._metrics: Any = _run_metrics() if settings.metrics_listen or settings.pushgateway else None
        self._server: Any = None

    def take(self, entry: dg.EventLogEntry) -> None:
        """Publish what the event holds."""
        for record in self._events.records_of(entry):
            self._publish(record)

    def accessed(self, access: Access, _entry: AuditEntry | None) -> None:
        """Publish that a secret was asked for."""
        failed = access.result != "ok"
        pipeline = (access.pipeline or "").replace("-", "_")  # as in the keys of assets
        self._publish(
            MetricsRecord(
                "secret", time.time(), self._run_id, pipeline, "", source=access.source,
                status="failed" if failed else "succeeded", error=access.result if failed else None,
                numbers={"seconds": access.duration_ms / 1000},
            )
        )  # fmt: skip

    def _publish(self, record: MetricsRecord) -> None:
        if self._metrics is not None:
            self._metrics.take(record)
        if self._file is not None:
            try:
                self._file.append(record)
            except OSError as error:
                _log.warning("the metrics of this run can't be recorded: %s", error)
                self._file = None

    def listen(self) -> None:
        """Answer Prometheus until the run ends, where the settings say so."""
        if self._settings.metrics_listen is None or self._server is not None:
            return
        from prometheus_client import start_http_server

        host, _, port = self._settings.metrics_listen.rpartition(":")
        try:
            self._server, _ = start_http_server(int(port), host or "127.0.0.1", self._metrics.registry)
        except (OSError, ValueError, OverflowError) as error:  # the last for a port above 65535
            _log.warning("no metrics at PIPELINE_ASSETS_METRICS_LISTEN=%s: %s", self._settings.metrics_listen, error)

    def end(self) -> None:
        """Push what there is, and stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._settings.pushgateway is not None:
            self._push(self._settings.pushgateway)

    def _push(self, gateway: str) -> None:
        from prometheus_client import push_to_gateway, pushadd_to_gateway

        from pipeline_assets.metrics.prometheus import STREAM

        self._metrics.forget_progress()
        try:
            for group, metrics in self._metrics.of_steps():
                # When a step last succeeded stays true when it fails. That a stream has failed does not when it was
                # stopped since, which is no success.
                push = push_to_gateway if group.get("step") == STREAM else pushadd_to_gateway
                push(gateway, _JOB, metrics, grouping_key=group, timeout=_PUSH_SECONDS)
        except (OSError, ValueError, HTTPException) as error:  # the last two for what is no URL
            _log.warning("the metrics of this run could not be pushed to %s: %s", gateway, error)


def _run_metrics() -> Any:
    from pipeline_assets.metrics.prometheus import RunMetrics

    return RunMetrics()
