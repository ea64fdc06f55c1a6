"""What is told of a query's commits, also when the table can't be looked at. No Spark."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets.errors import CredentialUnavailableError, RetryableError
from pipeline_assets.steps.file_systems import Folder, LocalFolder
from pipeline_assets.streaming import commits
from pipeline_assets.streaming.commits import Commits


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True)
class Refused(LocalFolder):
    """The table, opened with keys that are no longer good."""

    def files_in(self) -> list[str]:
        raise RetryableError("503", kind="throttled")


@dataclass
class Opening:
    """Opens the table, but fails after half a minute as long as there are ``failures``; counts how often."""

    path: Path
    clock: Clock
    failures: list[Exception] = field(default_factory=list)
    asked: int = 0

    def __call__(self) -> Folder:
        self.asked += 1
        if self.failures:
            self.clock.now += 30
            raise self.failures.pop(0)
        return LocalFolder(str(self.path))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(commits, "time", clock)
    return clock


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "_delta_log").mkdir()
    for number in range(3):
        info = {"commitInfo": {"operationMetrics": {"numOutputRows": str(10 + number)}}}
        lines = [info, {"txn": {"appId": "query", "version": number}}]
        (tmp_path / "_delta_log" / f"{number:020}.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_the_table_is_opened_once(table: Path, clock: Clock) -> None:
    opening = Opening(table, clock)
    found = Commits(opening)
    versions = [commit.version for number in range(3) if (commit := found.find("query", number)[0])]
    assert versions == [0, 1, 2]
    assert found.find("query", 3) == (None, True)
    assert opening.asked == 1


def test_a_look_in_vain_is_one_warning_and_not_repeated_at_once(
    table: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Opening(table, clock, [CredentialUnavailableError("Vault is sealed") for _ in range(2)])
    found = Commits(opening)
    assert found.find("query", 0) == (None, False)
    assert found.find("query", 1) == (None, False)
    assert opening.asked == 1
    clock.now += 31
    assert found.find("query", 1) == (None, False)
    clock.now += 31
    assert found.find("query", 2)[1]
    assert opening.asked == 3
    assert caplog.text.count("Vault is sealed") == 1


def test_a_table_whose_credentials_were_replaced_is_opened_anew(table: Path, clock: Clock) -> None:
    opening = Opening(table, clock)
    found = Commits(opening)
    found._table = Refused(str(table))
    commit, is_known = found.find("query", 1)
    assert is_known
    assert commit is not None
    assert commit.version == 1
    assert opening.asked == 1


def test_rows_are_counted_where_the_log_does_not_tell(table: Path, clock: Clock) -> None:
    class Frame:
        def count(self) -> int:
            return 7

    frame: Any = Frame()
    assert Commits(Opening(table, clock)).rows_appended("query", 2, frame) == 12
    away = Opening(table, clock, [RetryableError("503", kind="throttled")])
    assert Commits(away).rows_appended("query", 2, frame) == 7
