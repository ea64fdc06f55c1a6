"""A Delta table's log, read as the JSON files that it is: no Spark job for what a commit says of itself.

Source: the Delta transaction log protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_assets.steps.file_systems import Folder

_COMMIT = re.compile(r"(\d{20})\.json")
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
    for version, name in _newest(table, after):
        actions = [json.loads(line) for line in table.below("_delta_log").read(name).splitlines() if line]
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
    return next((version for version, _ in _newest(table)), None)


def _newest(table: Folder, after: int | None = None) -> Iterator[tuple[int, str]]:
    commits = sorted(
        (int(match[1]), name) for name in table.below("_delta_log").files_in() if (match := _COMMIT.fullmatch(name))
    )
    return reversed(commits[-_NEWEST:] if after is None else [found for found in commits if found[0] > after])
