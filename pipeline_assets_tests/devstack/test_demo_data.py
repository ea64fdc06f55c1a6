"""The demos' data: as many as their sources say, and in the shape that the demos count on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from devstack.demo_data import click_stream, is_loaded, load_cdnow, stream_events
from devstack.postgres import PostgresServer
from devstack.s3 import S3Server


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


def test_data_that_one_of_the_servers_has_lost_are_loaded_again(postgres: PostgresServer, s3: S3Server) -> None:
    # A database and a bucket of its own: other tests may have loaded the same data.
    with postgres.connect() as connection:
        connection.autocommit = True
        connection.execute("CREATE DATABASE demo_data")
    postgres, s3 = replace(postgres, database="demo_data"), replace(s3, bucket="demo-data")
    s3.client().create_bucket(Bucket=s3.bucket)
    assert not is_loaded(postgres, s3)
    load_cdnow(postgres, s3)
    assert is_loaded(postgres, s3)

    (last,) = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="orders/part-00003")["Contents"]
    s3.client().delete_object(Bucket=s3.bucket, Key=last["Key"])
    assert not is_loaded(postgres, s3)
    load_cdnow(postgres, s3)
    assert is_loaded(postgres, s3)

    with postgres.connect() as connection:
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == (23_570,)
        connection.execute("DROP TABLE customers")
    assert not is_loaded(postgres, s3)
