"""The demos' data: as many as their sources say, and in the shape that the demos count on."""

from __future__ import annotations

import json
from collections import Counter

from devstack.demo_data import click_stream, stream_events


def test_click_stream_has_all_events() -> None:
    clicks = click_stream()
    assert len(clicks) == 31_106
    assert (clicks["event"] == "purchase").sum() == 470


def test_stream_events_are_every_purchase_every_click_and_some_broken_records() -> None:
    events = stream_events()
    kinds = Counter(event.kind for event in events)
    assert kinds == {"purchase": 69_659 + 470, "other": 31_106 - 470, "broken": 8}
    assert len({event.key for event in events}) == len(events)
    for event in events:
        if event.kind != "broken":
            assert (json.loads(event.value or "")["event_type"] == "purchase") == (event.kind == "purchase")


def test_the_first_thousand_stream_events_have_every_column() -> None:
    events = stream_events()
    first = [json.loads(event.value or "") for event in events[:1000]]
    rest = (json.loads(event.value or "") for event in events if event.kind != "broken")
    columns = {name for event in rest for name in event}
    assert {name for event in first for name in event} == columns
    assert {name for event in first[:5] for name in event} == columns
