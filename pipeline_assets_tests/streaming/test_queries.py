"""What is told of streaming queries, and how they are stopped, with queries that stand in for Spark's."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from pipeline_assets.connections import Connections
from pipeline_assets.errors import CredentialUnavailableError, PipelineExecutionError
from pipeline_assets.plan import PipelinePlan
from pipeline_assets.settings import Settings
from pipeline_assets.steps.base import ExpectationResult
from pipeline_assets.steps.checkpoint import Checkpoint
from pipeline_assets.steps.delta_log import Commit
from pipeline_assets.stream_report import StreamReport
from pipeline_assets.stream_rules import Guarded
from pipeline_assets.streaming import micro_batches, queries
from pipeline_assets.streaming.micro_batches import BatchChecks, MicroBatches
from pipeline_assets.streaming.queries import BatchProgress, StreamingPipeline, _Watched
from pipeline_assets_tests.config_documents import EVENT_STREAM
from pipeline_assets_tests.planning.bench import planned


def progress(batch: int, *, second: int | None = None, was_run: bool = True) -> Any:
    told = {
        "id": "query",
        "batchId": batch,
        "timestamp": f"2026-01-01T00:00:{batch if second is None else second:02}.000Z",
        "durationMs": {"addBatch": 5, "triggerExecution": 7} if was_run else {"triggerExecution": 1},
        "sources": [{"numInputRows": 3 * was_run, "startOffset": None, "endOffset": {"events": {"0": 3}}}],
    }
    return SimpleNamespace(batchId=batch, timestamp=told["timestamp"], json=json.dumps(told))


@dataclass
class Query:
    """A query in the middle of a batch that does not end."""

    id: str = "query"
    isActive: bool = True  # noqa: N815  (the names that Spark has)
    status: dict[str, bool] = field(default_factory=lambda: {"isTriggerActive": True})
    recentProgress: list[Any] = field(default_factory=list)  # noqa: N815

    @property
    def lastProgress(self) -> Any:  # noqa: N802
        return self.recentProgress[-1] if self.recentProgress else None

    def stop(self) -> None:
        self.isActive = False


@pytest.fixture
def plan(tmp_path: Path) -> PipelinePlan:
    return planned(tmp_path, EVENT_STREAM)


@pytest.fixture
def run(plan: PipelinePlan, settings: Settings) -> Any:
    checkpoint = Checkpoint.at(settings.resolve("/checkpoints/purchases"), "default", Connections())
    context = SimpleNamespace(settings=settings, connections=Connections(), cancellation=SimpleNamespace())
    return SimpleNamespace(plan=plan, context=context, checkpoint=lambda _: checkpoint)


def watched(run: Any, query: Query) -> _Watched:
    (load,) = run.plan.stream_loads()
    found: Any = query
    return _Watched(run, load, found, [])


def test_a_commit_that_can_not_be_looked_up_fails_no_stream(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise CredentialUnavailableError("Vault is sealed")

    monkeypatch.setattr(queries, "folder_seen_from_here", refuse)
    (told,) = watched(run, Query(recentProgress=[progress(0)])).news()
    assert isinstance(told, BatchProgress)
    assert (told.batch_id, told.input_rows, told.written, told.is_written_known) == (0, 3, None, False)


def test_rows_that_were_put_aside_are_counted_where_their_commit_can_not_be_looked_up(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CredentialUnavailableError("Vault is sealed")

    monkeypatch.setattr(micro_batches, "append_once", lambda *_: None)
    monkeypatch.setattr(micro_batches, "folder_seen_from_here", refuse)
    config = {"column": "amount", "max": 20, "onFailure": "quarantine"}
    check = {"type": "validate", "method": "inRange", "name": "good", "config": config}
    first, *others = EVENT_STREAM["steps"]
    run.plan = planned(tmp_path, {**EVENT_STREAM, "steps": [first, check, *others]})
    (load,) = run.plan.stream_loads()
    rows = SimpleNamespace(quarantine_path=lambda _: str(tmp_path), bad=lambda *_: SimpleNamespace(count=lambda: 4))
    scope = SimpleNamespace(errors_of=lambda _: nullcontext())
    batch: Any = SimpleNamespace(scope=scope, checked_rows=rows, inputs=lambda _: {})
    results = (ExpectationResult("amount is <= 20", passed=False, failed=4, total=10),)
    done = MicroBatches(run, load, Guarded(0, (1,)), frozenset({1}))._put_aside(
        batch, BatchChecks(load, run.plan.steps[1], 0, results)
    )
    assert done.quarantined == 4


def test_queries_end_at_once_when_a_lease_is_lost(run: Any) -> None:
    class Hurry(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise AssertionError(f"waited {timeout} s for a batch beside the new holder's")

    run.context.cancellation = SimpleNamespace(hurry=Hurry(), stop=threading.Event())
    pipeline = StreamingPipeline(run, lambda _: False, grace_seconds=3600)
    lost: Any = SimpleNamespace(lost="taken over by run b")
    kept: Any = SimpleNamespace(lost=None)
    pipeline._leases = [kept, lost]
    others = [Query(), Query()]
    pipeline._queries = [watched(run, query) for query in others]
    pipeline._stop_all()
    assert not any(query.isActive for query in others)


def test_a_query_that_can_not_be_watched_is_stopped(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the checkpoint's storage goes away just after the query has started."""

    def refuse(_: Any) -> None:
        raise PipelineExecutionError("S3 is away")

    monkeypatch.setattr(queries, "log_as", lambda *_: None)
    query = Query()
    run.start_stream, run.checkpoint = lambda *_: query, refuse
    run.context.spark, run.context.run_id = None, "run"
    pipeline = StreamingPipeline(run, lambda _: False, grace_seconds=0)
    pipeline._dead_letters = {}
    with ExitStack() as held, pytest.raises(PipelineExecutionError, match="S3 is away"):
        pipeline._start(held)
    assert not query.isActive


def test_nothing_wrong_is_said_of_what_is_not_known(
    run: Any, plan: PipelinePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_assets.stream_report.REPORT_SECONDS", 3600)
    (load,) = plan.stream_loads()
    keys = {step.index: dg.AssetKey([plan.name, step.name]) for step in plan.steps}
    report = StreamReport(run, keys, {}, {}, {}, {})
    report._views_told = True

    def batch(number: int, written: Commit | None, *, is_known: bool = True) -> BatchProgress:
        more: dict[str, Any] = {"written": written, "is_written_known": is_known}
        return BatchProgress(load, "query", number, "", 3, 0.0, 0.0, 1, {}, {}, {}, **more)

    def told(*batches: BatchProgress) -> dict[str, Any]:
        list(report.take(batches[0]))  # the first is told at once
        events = [event for each in batches[1:] for event in report.take(each)]
        (found,) = [event for event in (*events, *report.rest()) if isinstance(event, dg.AssetMaterialization)]
        return {name: value.value for name, value in found.metadata.items() if name in _TOLD}

    five, seven = Commit(5, {"numOutputRows": "3"}, ()), Commit(7, {"numOutputRows": "2"}, ())
    first = batch(4, None)
    assert told(first, batch(5, five)) == {"rows_written": 3, "table_version": 5, "batch_id": 5}
    assert told(first, batch(6, five), batch(7, None, is_known=False)) == {"batch_id": 7}
    assert told(first, batch(8, None, is_known=False), batch(9, seven)) == {"table_version": 7, "batch_id": 9}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("toKafka", [{"batch_id": 1}, {"batch_id": 2}]),
        ("toDeltaLake", []),  # each batch is looked up, and has written nothing
    ],
)
def test_a_load_whose_target_has_no_commits_is_materialized_when_a_batch_has_run(
    load: str, expected: list[dict[str, int]], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_assets.stream_report.REPORT_SECONDS", 0)
    monkeypatch.setattr("pipeline_assets.streaming.queries.Commits.find", lambda *_: (None, True))
    place = {"topic": "totals"} if load == "toKafka" else {"path": "/data/totals"}
    target = {"type": "load", "method": load, "config": {**place, "checkpointLocation": "/checkpoints/totals"}}
    run.plan = planned(tmp_path, {**EVENT_STREAM, "steps": [*EVENT_STREAM["steps"][:-1], target]})
    columns = {"dagster/column_lineage": dg.MetadataValue.column_lineage(dg.TableColumnLineage({"value": []}))}
    keys = {step.index: dg.AssetKey(["stream", step.name]) for step in run.plan.steps}
    report = StreamReport(run, keys, {}, {}, {}, {})
    report._views_told = True
    (key,) = [keys[step.index] for step in run.plan.stream_loads()]
    report._columns[key] = columns
    idle = [progress(1, second=second, was_run=False) for second in (2, 3)]
    query = watched(run, Query(recentProgress=[progress(1), *idle, progress(2, second=4)]))
    events = [event for told in query.news() for event in report.take(told)]
    assert len([event for event in events if isinstance(event, dg.AssetObservation)]) == 4
    made = [event for event in (*events, *report.rest()) if isinstance(event, dg.AssetMaterialization)]
    assert {event.asset_key for event in made} == ({key} if expected else set())
    assert [
        {name: value.value for name, value in event.metadata.items() if name in _TOLD} for event in made
    ] == expected
    assert all(columns.items() <= event.metadata.items() for event in made)


@pytest.mark.parametrize("later", [0, 3])
def test_letters_that_a_start_has_made_up_for_are_told(run: Any, plan: PipelinePlan, later: int) -> None:
    (load,) = plan.stream_loads()
    extract, letters = dg.AssetKey(["stream", "events"]), dg.AssetKey(["stream", "letters"])
    made_up: dict[str, int] = {}
    report = StreamReport(
        run, {load.index: dg.AssetKey("out")}, {}, {"from_kafka": letters}, {"from_kafka": extract}, made_up
    )
    report._views_told = True
    made_up["from_kafka"] = 2  # as the start of the queries does, when there is a report already
    events: list[Any] = []
    for number in range(later):
        batch = BatchProgress(load, "query", number, "", 3, 0.0, 0.0, 1, {}, {}, {}, None, {"from_kafka": 1})
        events += report.take(batch)
    events += report.rest()
    made = [event.metadata for event in events if isinstance(event, dg.AssetMaterialization)]
    checks = [event for event in events if isinstance(event, dg.AssetCheckEvaluation)]
    assert sum(metadata["dead_letters"].value for metadata in made) == 2 + later
    assert made[0]["dead_letters"].value == 2
    assert {check.passed for check in checks} == {False}
    assert checks[-1].metadata["dead_letters"].value == made[-1]["dead_letters_of_run"].value == 2 + later
    assert report.dead_letters == {"from_kafka": 2 + later}


_TOLD = ("rows_written", "table_version", "batch_id")
