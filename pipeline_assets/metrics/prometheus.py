"""The runs' metrics as Prometheus has them.

Names and units: https://prometheus.io/docs/practices/naming/. Labels are names from the configs alone: there are as
many series as there are steps and checks, and no more with each run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.registry import Collector

from pipeline_assets.metrics.records import DURATIONS, MetricsRecord, Status
from pipeline_assets.metrics.run_files import RunFilesReader

# They would double the series, for a text format that no one asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_STEP = ("pipeline", "step")
_OF_ONE = (*_STEP, "check", "source")
STREAM = "stream"
"""What a stream as a whole is called, in place of a step."""
_PREFIX = "pipeline_assets"
_SET_ASIDE = {
    "quarantined_rows_of_run": ("quarantined_rows", ""),
    "dead_letters": ("dead_letters", "_dead_letters"),
}
"""What a stream's checks tell all of: what it is summed up as, and what its step there is called more than theirs."""

_SUMS = {
    "rows_read": ("step_read_rows", "Rows that Spark has read from sources."),
    "rows_written": ("step_written_rows", "Rows that were written to the target."),
    "bytes_read": ("step_read_bytes", "Bytes that Spark has read from sources and caches."),
    "bytes_written": ("step_written_bytes", "Bytes that were written to the target."),
    "files_written": ("step_written_files", "Files that were written to the target."),
    "shuffle_read_bytes": ("step_shuffle_read_bytes", "Bytes read from shuffles."),
    "shuffle_write_bytes": ("step_shuffle_write_bytes", "Bytes written to shuffles."),
    "memory_spilled_bytes": ("step_memory_spilled_bytes", "Bytes in memory of what was spilled to disk."),
    "disk_spilled_bytes": ("step_disk_spilled_bytes", "Bytes on disk of what was spilled."),
    "spark_seconds": ("step_spark_seconds", "Time in which at least one of the step's Spark jobs ran."),
    "spark_task_seconds": ("step_spark_task_seconds", "Time that Spark's executors spent in the step's tasks."),
    "spark_tasks": ("step_spark_tasks", "Tasks of the step that Spark has completed."),
    "quarantined_rows": ("step_quarantined_rows", "Rows that were put into quarantine."),
    "dead_letters": ("step_dead_letter_records", "Records that could not be parsed."),
}
_LATEST = {
    "peak_memory_bytes": ("step_peak_memory_bytes", "Largest execution memory of a stage's tasks, last time."),
    "cached_memory_bytes": ("step_cached_memory_bytes", "Memory that cached DataFrames take, last time."),
    "cached_disk_bytes": ("step_cached_disk_bytes", "Disk that cached DataFrames take, last time."),
}
_PROGRESS = {
    "lag": ("stream_lag_records", "Records that the topic has and the stream has not read."),
    "input_rows_per_second": ("stream_input_rows_per_second", "Rows that arrive, of the last micro-batch."),
    "processed_rows_per_second": ("stream_processed_rows_per_second", "Rows processed, of the last micro-batch."),
    "batch_duration_ms": ("stream_batch_duration_seconds", "How long the last micro-batch took."),
    "continuous": ("stream_continuous", "1 where the stream goes on, 0 where it ends when it has read what there is."),
}


class RunMetrics:
    """Prometheus' metrics, made up from records in any order."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._told_at: dict[tuple[Gauge, tuple[str, ...]], float] = {}
        self._sums = {name: self._counter(*told) for name, told in _SUMS.items()}
        self._latest = {name: self._gauge(*told) for name, told in (_LATEST | _PROGRESS).items()}
        self._attempts = self._counter("step_attempts", "Attempts of steps that have ended.", (*_STEP, "status"))
        self._duration = Histogram(
            f"{_PREFIX}_step_duration_seconds", "How long attempts took.", _STEP, buckets=DURATIONS,
            registry=self.registry,
        )  # fmt: skip
        self._succeeded = self._gauge("step_last_success_timestamp_seconds", "When the step last succeeded.")
        self._failed = self._gauge("step_last_failure_timestamp_seconds", "When the step last failed.")
        self._progressed = self._gauge("stream_last_progress_timestamp_seconds", "When the stream last told of itself.")
        checked = (*_STEP, "check")
        self._checked = self._counter("check_evaluations", "Evaluations of checks.", (*checked, "status"))
        self._met = self._gauge("check_passed", "1 when the check passed last time, 0 when not.", checked)
        self._bad = self._gauge("check_failed_rows", "Rows that did not meet the check, last time.", checked)
        asked = ("pipeline", "source")
        self._secrets = self._counter("secret_requests", "Requests for secrets.", (*asked, "status"))
        self._denied = self._gauge(
            "secret_last_failure_timestamp_seconds", "When a secret was last asked for in vain.", asked
        )

    def _counter(self, name: str, told: str, labels: Iterable[str] = _STEP) -> Counter:
        return Counter(f"{_PREFIX}_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, labels: Iterable[str] = _STEP) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", told, labels, registry=self.registry)

    def take(self, record: MetricsRecord) -> None:
        """Add what ``record`` says."""
        labels = (record.pipeline, record.step)
        match record.kind:
            case "step":
                self._count(self._attempts, labels, get_args(Status), record)
                times = record.times or 1
                for _ in range(times):
                    self._duration.labels(*labels).observe(record.numbers.get("seconds", 0.0) / times)
                if record.status == "succeeded":
                    self._set(self._succeeded, labels, record, record.time)
                elif record.status == "failed":
                    self._set(self._failed, labels, record, record.time)
                if record.step == STREAM:
                    self._end_stream(record, labels)
                self._take_numbers(record, labels)
            case "check":
                checked = (*labels, record.check or "")
                self._count(self._checked, checked, ("succeeded", "failed"), record)
                self._set(self._met, checked, record, record.status == "succeeded")
                for rows in ("failed_rows", "dead_letters"):
                    if rows in record.numbers:
                        self._set(self._bad, checked, record, record.numbers[rows])
                for told in _SET_ASIDE.keys() & record.numbers.keys():
                    # At 0, as in _count: the asset that it is counted at tells of it only once there is something.
                    rows, suffix = _SET_ASIDE[told]
                    self._sums[rows].labels(record.pipeline, record.step + suffix)
            case "secret":
                asked = (record.pipeline, record.source or "")
                self._count(self._secrets, asked, ("succeeded", "failed"), record)
                if record.status == "failed":
                    self._set(self._denied, asked, record, record.time)
            case "asset" | "progress":
                self._take_numbers(record, labels)
                if record.kind == "progress":
                    self._set(self._progressed, labels, record, record.time)

    def _count(self, counter: Counter, labels: tuple[str, ...], statuses: Iterable[str], record: MetricsRecord) -> None:
        # The others are there as well, at 0: Prometheus sees no increase in a series that begins with 1.
        for status in statuses:
            counter.labels(*labels, status).inc(record.times or 1 if status == record.status else 0)

    def _end_stream(self, record: MetricsRecord, labels: tuple[str, str]) -> None:
        """Have no series about the stream's progress any more; of one that was stopped, none about an earlier failure.

        That it went well after the failure is known from its progress alone: a stream that is stopped never succeeds.
        """
        gauges = {self._progressed, *(self._latest[name] for name in _PROGRESS)}
        for gauge, told in list(self._told_at):
            if gauge in gauges and told[0] == record.pipeline:
                self._drop(gauge, told, record)
        if record.status == "canceled":
            self._drop(self._failed, labels, record)

    def forget_progress(self) -> None:
        """Have no series about streams in progress any more: what they said last is wrong once they have ended."""
        for name in _PROGRESS:
            self._latest[name].clear()
        self._progressed.clear()

    def of_steps(self) -> Iterator[tuple[dict[str, str], Collector]]:
        """Yield the metrics of each step, check and source of secrets by themselves, after the labels they all have.

        What one process of a run tells of, no other does.
        """
        found: dict[tuple[tuple[str, str], ...], list[Metric]] = {}
        for metric in self.registry.collect():
            for sample in metric.samples:
                labels = tuple((name, sample.labels[name]) for name in _OF_ONE if name in sample.labels)
                metrics = found.setdefault(labels, [])
                if not metrics or metrics[-1].name != metric.name:
                    metrics.append(Metric(metric.name, metric.documentation, metric.type))
                metrics[-1].samples.append(sample)
        for group, metrics in found.items():
            yield dict(group), _Collected(metrics)

    def _take_numbers(self, record: MetricsRecord, labels: tuple[str, str]) -> None:
        for name, number in record.numbers.items():
            if name in self._sums and record.kind != "progress":
                self._sums[name].labels(*labels).inc(max(0, number))
            elif name in self._latest:
                self._set(self._latest[name], labels, record, number / 1000 if name.endswith("_ms") else number)

    def _set(self, gauge: Gauge, labels: tuple[str, ...], record: MetricsRecord, value: float) -> None:
        # The files of runs that overlap are read one after the other, not by time.
        if record.time >= self._told_at.get((gauge, labels), 0.0):
            self._told_at[gauge, labels] = record.time
            gauge.labels(*labels).set(value)

    def _drop(self, gauge: Gauge, labels: tuple[str, ...], record: MetricsRecord) -> None:
        if record.time >= self._told_at.get((gauge, labels), 0.0):
            self._told_at[gauge, labels] = record.time
            with suppress(KeyError):  # some versions raise it where there is no such series
                gauge.remove(*labels)


class _Collected(Collector):
    """Metrics as they were."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


class RecordedMetrics(Collector):
    """What all runs have recorded in a folder, brought up to date whenever Prometheus asks.

    ``known`` is then asked for what tells by a series' labels whether it is of something that there still is: gauges of
    what there is no more are left out.
    """

    def __init__(
        self, reader: RunFilesReader, known: Callable[[], Callable[[Mapping[str, str]], bool]] | None = None
    ) -> None:
        self._reader = reader
        self._known = known
        self._metrics = RunMetrics()
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        with self._lock:  # two may ask at a time, and each record counts once
            for record in self._reader.new_records():
                self._metrics.take(record)
        is_known = None if self._known is None else self._known()
        for metric in self._metrics.registry.collect():
            if is_known is not None and metric.type == "gauge":
                metric.samples = [sample for sample in metric.samples if is_known(sample.labels)]
            yield metric
