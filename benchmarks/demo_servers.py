"""PostgreSQL and S3 with CDNOW's data, for as long as the measuring takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devstack.demo_data import cdnow_purchases, load_cdnow
from devstack.errors import DevstackError
from devstack.postgres import Postgres, PostgresServer
from devstack.s3 import S3, S3Server
from devstack.stack import Stack

_ROWS_PER_FILE = 1_250_000


@dataclass(frozen=True)
class DemoServers:
    """Running servers; ``orders`` can be replaced by more of them."""

    environment: dict[str, str]
    postgres: PostgresServer
    s3: S3Server

    def load_demo(self) -> int:
        """Load CDNOW's customers and orders as `make demo` does; returns how many orders there are."""
        load_cdnow(self.postgres, self.s3)
        return len(cdnow_purchases())

    def repeat_orders(self, count: int) -> None:
        """Replace the orders by ``count`` of them: CDNOW's, in their order, again and again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        client = self.s3.client()
        for found in client.list_objects_v2(Bucket=self.s3.bucket, Prefix="orders/").get("Contents", []):
            client.delete_object(Bucket=self.s3.bucket, Key=found["Key"])
        purchases = pa.Table.from_pandas(cdnow_purchases(), preserve_index=False)
        for number, start in enumerate(range(0, count, _ROWS_PER_FILE)):
            rows = min(_ROWS_PER_FILE, count - start)
            skipped = start % purchases.num_rows
            copies = -(-(skipped + rows) // purchases.num_rows)
            sink = pa.BufferOutputStream()
            pq.write_table(pa.concat_tables([purchases] * copies).slice(skipped, rows), sink)
            body = sink.getvalue().to_pybytes()
            client.put_object(Bucket=self.s3.bucket, Key=f"orders/part-{number:05}.parquet", Body=body)


@contextmanager
def demo_servers(home: Path) -> Iterator[DemoServers]:
    """Start PostgreSQL and S3 with their state in ``home``, and stop them at the end."""
    stack = Stack(home)
    try:
        servers = stack.up([Postgres(), S3()])
        for server in servers.values():
            if isinstance(server, DevstackError):
                raise server
        postgres, s3 = servers["postgres"], servers["s3"]
        assert isinstance(postgres, PostgresServer)
        assert isinstance(s3, S3Server)
        yield DemoServers(stack.environment(), postgres, s3)
    finally:
        stack.down()
