"""A Delta table's log, read as the JSON files that it is: no Spark job for what a commit says of itself.

Source: the Delta transaction log protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_assets.errors import PipelineError
from pipeline_assets.steps.file_systems import Folder

_LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
# Of one file, of many, or with a UUID.
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..+")
# Other writers may have committed since; more of them than this in so short a time are not to be expected.
_NEWEST = 50


@dataclass(frozen=True)
class AddedFile:
    """A data file that a commit added: its path in the table, its bytes, and its values of the partition columns."""

    path: str
    size: int
    partition_values: Mapping[str, str | None]


@dataclass(frozen=True)
class Commit:
    """One commit: the version it made, Delta's metrics of the operation, and the files that it added."""

    version: int
    metrics: Mapping[str, str]
    added: tuple[AddedFile, ...]


def rows_written(metrics: Mapping[str, int | str]) -> int:
    """Return how many rows a commit with these ``metrics`` has added or updated."""
    counts = ("numTargetRowsInserted", "numTargetRowsUpdated") if "numSourceRows" in metrics else ("numOutputRows",)
    rows = sum(int(metrics.get(name, 0)) for name in counts)
    if "numSourceRows" not in metrics:
        # replaceWhere leaves rows in place that are in one file with others: Delta writes those again, and counts them.
        rows -= int(metrics.get("numCopiedRows", 0))
    return rows


def files_written(metrics: Mapping[str, int | str]) -> int | None:
    """Return how many files a write with these ``metrics`` has added; None when they do not tell."""
    # A merge tells of what it has replaced too.
    files = metrics.get("numTargetFilesAdded", metrics.get("numFiles"))
    return None if files is None else int(files)


def find_commit(table: Folder, mark: str) -> Commit | None:
    """Return the commit whose user metadata is ``mark``, looking from the newest back; None when it is not there."""
    return _find(table, lambda actions: _info(actions).get("userMetadata") == mark)


def find_transaction(table: Folder, app_id: str, number: int, after: int | None = None) -> Commit | None:
    """Return the commit by which ``app_id`` made its transaction ``number``; None when it is not there.

    ``after``: the version that the commit comes after, however many there are; when left out, the newest are looked at.
    """

    def made(actions: Sequence[dict[str, Any]]) -> bool:
        found = (action["txn"] for action in actions if "txn" in action)
        return any(txn["appId"] == app_id and txn["version"] == number for txn in found)

    return _find(table, made, after)


def _find(table: Folder, wanted: Callable[[Sequence[dict[str, Any]]], bool], after: int | None = None) -> Commit | None:
    log = table.below(_LOG)
    for version in _newest(log, after):
        content = log.read_if_there(_commit_name(version))
        if content is None:  # Delta has cleaned up, and so the older ones are gone as well
            return None
        actions = [json.loads(line) for line in content.splitlines() if line]
        if wanted(actions):
            added = tuple(_added_file(action["add"]) for action in actions if "add" in action)
            return Commit(version, _info(actions).get("operationMetrics", {}), added)
    return None


def _added_file(add: Mapping[str, Any]) -> AddedFile:
    return AddedFile(unquote(add["path"]), add["size"], add.get("partitionValues", {}))


def _info(actions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})


def newest_version(table: Folder) -> int | None:
    """Return the table's version, or None when its log can't be seen from here."""
    log = table.below(_LOG)
    newest = _last_commit(log)
    return newest if newest is not None else max(_listed(log, _COMMIT, _CHECKPOINT), default=None)


def _newest(log: Folder, after: int | None) -> Iterable[int]:
    """Return the newest commits, from the last one back; the oldest of them may be gone."""
    newest = _last_commit(log)
    if newest is not None:
        return range(newest, newest - _NEWEST if after is None else after, -1)
    commits = sorted(_listed(log, _COMMIT), reverse=True)
    return commits[:_NEWEST] if after is None else [version for version in commits if version > after]


def _last_commit(log: Folder) -> int | None:
    """Return the last commit by a few looks from the last checkpoint on; None where all of ``log`` is to be listed.

    A month's commits stay in the log, and it is looked at for each micro-batch. From a checkpoint on there are no gaps.
    """
    try:
        return _probed(log)
    except PipelineError:
        # S3 refuses to say that a file is not there to who may list parts of the bucket only.
        return None


def _probed(log: Folder) -> int | None:
    try:
        last = json.loads(log.read_if_there("_last_checkpoint") or "{}")["version"]
    except (ValueError, LookupError, TypeError):
        return None
    if not isinstance(last, int) or not log.has(_commit_name(last)):
        return None
    step = 1
    while log.has(_commit_name(last + step)):
        last, step = last + step, step * 2
    # ``last`` is there, and ``last + step`` is not.
    while step > 1:
        step //= 2
        if log.has(_commit_name(last + step)):
            last += step
    return last


def _listed(log: Folder, *kinds: re.Pattern[str]) -> set[int]:
    """Return the versions of the files of these ``kinds``."""
    return {int(match[1]) for name in log.files_in() for kind in kinds if (match := kind.fullmatch(name))}


def _commit_name(version: int) -> str:
    return f"{version:020}.json"
