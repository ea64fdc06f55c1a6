"""What the JVMs that are started from here are told: options, JARs on their class path, and how much heap they have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

_OPTIONS = "SPARK_SUBMIT_OPTS"
_CLASS_PATH = "SPARK_DIST_CLASSPATH"
_MEMORY = "SPARK_DRIVER_MEMORY"
# The second is PySpark's own note that the first is there.
_REMOTE = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")


def given_java_options() -> str:
    """Return the options that the environment gives to a driver."""
    return os.environ.get(_OPTIONS, "")


def given_class_path() -> str:
    """Return what the environment puts on the class path of a driver."""
    return os.environ.get(_CLASS_PATH, "")


@contextmanager
def java_options(options: str) -> Iterator[None]:
    """Add to the options of the JVMs that are started inside. Not by Spark's conf: that would replace a user's."""
    with _added_to(_OPTIONS, options, " "):
        yield


@contextmanager
def java_defaults(options: str) -> Iterator[None]:
    """The same, before what a user has given, so that Java goes by that where both say it."""
    with _added_to(_OPTIONS, options, " ", first=True):
        yield


@contextmanager
def class_path(jars: Iterable[Path]) -> Iterator[None]:
    """Have the drivers that are started inside find the classes of ``jars``, after Spark's own.

    Spark would copy each JAR of its ``spark.jars`` from a driver to itself, at every start. This is what it has for the
    JARs of a Hadoop that comes apart from it: https://spark.apache.org/docs/latest/hadoop-provided.html.
    """
    with _added_to(_CLASS_PATH, os.pathsep.join(map(str, jars)), os.pathsep):
        yield


def has_own_class_path() -> bool:
    """Whether a ``spark-env.sh`` says what is on that class path, as for Spark without Hadoop: it has the last word.

    One that reads other files may do so there.
    """
    from pyspark.find_spark_home import _find_spark_home

    folder = os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home(), "conf")
    file = Path(folder, "spark-env.sh")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return re.search(rf"{_CLASS_PATH}|^\s*(\.|source)\s", text, re.MULTILINE) is not None


@contextmanager
def default_heap(size: str) -> Iterator[None]:
    """Give the drivers that are started inside a heap of ``size``, such as ``4096m``, if nobody says how much.

    ``spark.driver.memory`` has the word before it, be it of the conf or of ``spark-defaults.conf``:
    https://spark.apache.org/docs/latest/configuration.html#application-properties
    """
    with nullcontext() if _MEMORY in os.environ else _added_to(_MEMORY, size, ""):
        yield


@contextmanager
def without_remote() -> Iterator[None]:
    """Have what is started inside be a Spark of its own, though the environment names a Connect server for runs.

    PySpark and spark-submit refuse a remote together with a master.
    """
    before = {variable: os.environ.pop(variable) for variable in _REMOTE if variable in os.environ}
    try:
        yield
    finally:
        for variable in _REMOTE:
            os.environ.pop(variable, None)
        os.environ.update(before)


@contextmanager
def _added_to(variable: str, text: str, separator: str, *, first: bool = False) -> Iterator[None]:
    before = os.environ.get(variable)
    parts = [text, before or ""] if first else [before or "", text]
    os.environ[variable] = separator.join(filter(None, parts))
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
