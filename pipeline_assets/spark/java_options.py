"""Options of the JVMs that are started from here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_OPTIONS = "SPARK_SUBMIT_OPTS"


def given_java_options() -> str:
    """Return the options that the environment gives to a driver."""
    return os.environ.get(_OPTIONS, "")


@contextmanager
def java_options(options: str) -> Iterator[None]:
    """Add to the options of the JVMs that are started inside. Not by Spark's conf: that would replace a user's."""
    before = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = f"{before} {options}" if before else options
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OPTIONS]
        else:
            os.environ[_OPTIONS] = before
