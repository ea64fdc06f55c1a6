"""Settings of a Spark session that hold for a while."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def temporary_conf(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Have the session say ``values`` inside the block, and afterwards what it has said before."""
    with _held_conf(spark):
        before = {key: spark.conf.get(key, None) for key in values}
        try:
            for key, value in values.items():
                spark.conf.set(key, value)
            yield
        finally:
            for key, earlier in before.items():
                if earlier is None:
                    spark.conf.unset(key)
                else:
                    spark.conf.set(key, earlier)


@contextmanager
def _held_conf(session: Any) -> Iterator[None]:
    """Let one process of a run at a time inside, where ``session`` is one that they share on a Connect server.

    Otherwise what one sets would hold for what the others do, and be put back while they do it. In a clone of the
    session, a stop would not reach what is done there, and nobody would tell what its jobs did.
    """
    if not type(session).__module__.startswith("pyspark.sql.connect"):
        yield
        return
    # They are on this machine. When one is killed, its lock goes; a lock of a file that is gone keeps nobody out.
    path = Path(tempfile.gettempdir(), f"pipeline-assets-{session.client._session_id}.lock")
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink()
