"""The thread that keeps alive what expires: it lives as long as there is something to renew."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from pipeline_assets.credentials import renewal
from pipeline_assets.credentials.renewal import Renewer


@dataclass
class Brittle:
    """Something to renew, in vain the first time, and then for the last time."""

    due: float | None = field(default_factory=time.monotonic)
    tries: int = 0
    renewed: threading.Event = field(default_factory=threading.Event)

    def renew(self) -> None:
        self.tries += 1
        if self.tries == 1:
            raise TypeError("Response is not subscriptable")
        self.due = None
        self.renewed.set()


def test_what_could_not_be_renewed_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewal, "_RETRY_SECONDS", 0.0)
    renewer, brittle, other = Renewer(), Brittle(), Brittle(tries=1)
    renewer.watch(brittle)
    renewer.watch(other)
    assert brittle.renewed.wait(60)
    assert other.renewed.wait(60)
    renewer.stop()
    assert brittle.tries == 2
    assert "could not be renewed" in caplog.text
    assert "Response is not subscriptable" in caplog.text
