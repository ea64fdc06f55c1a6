"""What becomes of a run when the Spark server does not tell what jobs have done as it should."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from devstack.ports import free_port
from pipeline_assets.redaction import MASK, register_secret
from pipeline_assets.spark.job_metrics import JobMetrics, StageTime
from pipeline_assets.spark.job_watch import JobWatch

Told = list[tuple[JobMetrics, tuple[StageTime, ...]]]
METRICS = JobMetrics(rows_read=7, spark_jobs=1)


def stage(what: str) -> StageTime:
    return StageTime(stage=1, what=what, start=0.0, seconds=1.0, tasks=1)


class ConnectSession:
    """What a watch needs of a session on a server that tells at ``port``; ``secure``: behind TLS or a token."""

    def __init__(self, port: int | None, *, secure: bool = False) -> None:
        self.conf = SimpleNamespace(get=lambda _, default: default if port is None else str(port))
        self.client = SimpleNamespace(
            host="127.0.0.1", token=None, _user_id=None, _session_id="some-session",
            _builder=SimpleNamespace(secure=secure),
        )  # fmt: skip
        self.tags: set[str] = set()

    def addTag(self, tag: str) -> None:  # noqa: N802  (Spark's name)
        self.tags.add(tag)

    def removeTag(self, tag: str) -> None:  # noqa: N802
        self.tags.remove(tag)


@contextmanager
def answering(status: int, body: str) -> Iterator[int]:
    """Answer all requests so, at the port returned."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def work(watch: JobWatch) -> Told:
    found: Told = []
    with watch.watched(lambda *told: found.append(told)):
        pass
    return found


def test_what_the_server_tells_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    """The server knows no run's secrets."""
    register_secret("s3cr3t-of-the-run")
    stages_told = [asdict(stage("Scan JDBC s3cr3t-of-the-run")), asdict(stage("x" * 500))]
    with answering(200, json.dumps({"metrics": asdict(METRICS), "stages": stages_told})) as port:
        session: Any = ConnectSession(port)
        ((metrics, stages),) = work(JobWatch(session))
    assert metrics == METRICS
    assert [len(each.what) for each in stages] == [len(f"Scan JDBC {MASK}"), 120]
    assert stages[0].what == f"Scan JDBC {MASK}"
    assert not session.tags
    assert not caplog.records


def test_another_server_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    session: Any = ConnectSession(None)
    assert work(JobWatch(session)) == []
    assert not caplog.records


def test_a_guarded_server_is_not_asked_beside_its_guard(caplog: pytest.LogCaptureFixture) -> None:
    with answering(500, "asked") as port:
        session: Any = ConnectSession(port, secure=True)
        assert work(JobWatch(session)) == []
    assert not caplog.records


def test_a_port_that_is_out_of_reach_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    session: Any = ConnectSession(free_port())
    watch = JobWatch(session)
    assert work(watch) == work(watch) == []
    (record,) = caplog.records
    assert "no metrics of Spark's jobs" in record.getMessage()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, "Spark does not answer", "Spark does not answer"),
        (200, '{"metrics": {"of_later": 1}, "stages": []}', "start it anew"),
        (200, "{}", "start it anew"),
        (200, "<html>", "no metrics of Spark's jobs"),
        (
            200,
            json.dumps({"metrics": {}, "stages": [asdict(stage("")) | {"what": None}]}),
            "no metrics of Spark's jobs",
        ),
    ],
)
def test_an_answer_that_is_none_fails_no_run(
    status: int, body: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(status, body) as port:
        session: Any = ConnectSession(port)
        assert work(JobWatch(session)) == []
    (record,) = caplog.records
    assert said in record.getMessage()


def test_the_step_fails_with_its_own_error(caplog: pytest.LogCaptureFixture) -> None:
    session: Any = ConnectSession(free_port())
    with pytest.raises(KeyError, match="of the step"), JobWatch(session).watched(lambda *_: None):
        raise KeyError("of the step")
    assert not session.tags
    assert not caplog.records
