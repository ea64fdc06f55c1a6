"""What is read of a table beside Spark, without Spark."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from pyarrow import fs

from devstack.s3 import S3Server
from pipeline_assets.connections import Connections, parse_connections
from pipeline_assets.errors import RetryableError
from pipeline_assets.steps import delta_table
from pipeline_assets.steps.delta_log import find_transaction, newest_version
from pipeline_assets.steps.delta_table import DeltaWrite
from pipeline_assets.steps.file_systems import Folder, LocalFolder, S3Folder, open_folder


class Requests:
    """A store of objects, in a folder here, that counts what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.listed, self.opened = 0, 0

    def get_file_info(self, wanted: Any) -> Any:
        self.listed += 1
        return self._files.get_file_info(wanted)

    def open_input_file(self, path: str) -> Any:
        self.opened += 1
        return self._files.open_input_file(path)


class Log:
    """The log of a table: commit ``n`` is transaction ``n`` of the stream."""

    def __init__(self, folder: Path) -> None:
        self.requests = Requests(folder)
        self.folders: list[Folder] = [LocalFolder(str(folder / "table")), S3Folder("table", self.requests)]
        self._log = folder / "table" / "_delta_log"
        self._log.mkdir(parents=True)

    def commit(self, *versions: int) -> None:
        for version in versions:
            action = {"txn": {"appId": "stream", "version": version}}
            self.add(f"{version:020}.json", json.dumps(action))

    def add(self, name: str, content: str = "") -> None:
        (self._log / name).write_text(content)

    def version(self) -> int | None:
        (found,) = {newest_version(folder) for folder in self.folders}
        return found

    def found(self, number: int, after: int | None = None) -> int | None:
        """Return the version of the commit of transaction ``number``."""
        commits = [find_transaction(folder, "stream", number, after) for folder in self.folders]
        (found,) = {commit.version if commit is not None else None for commit in commits}
        return found


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.mark.parametrize("since", [*range(12), 99, 1000])
def test_a_log_is_not_listed_from_a_checkpoint_on(log: Log, since: int) -> None:
    log.commit(*range(100, 200 + since + 1))
    log.add("_last_checkpoint", '{"version": 200, "size": 7}')
    assert log.version() == 200 + since
    assert log.requests.listed == 0
    assert log.requests.opened <= (10 if since <= 11 else 25)
    asked = log.requests.opened
    assert log.found(200 + since) == 200 + since
    assert log.requests.listed == 0
    assert log.requests.opened == 2 * asked + 1


def test_the_newest_are_looked_at_also_before_the_checkpoint(log: Log) -> None:
    log.commit(*range(100, 204))
    log.add("_last_checkpoint", '{"version": 200}')
    assert [log.found(number) for number in (203, 200, 154, 153)] == [203, 200, 154, None]
    assert [log.found(110, after=after) for after in (109, 110, 203)] == [110, None, None]


def test_what_has_been_cleaned_up_is_not_there(log: Log) -> None:
    log.commit(200, 201)
    log.add("_last_checkpoint", '{"version": 200}')
    assert (log.version(), log.found(200), log.found(199), log.found(199, after=100)) == (201, 200, None, None)


@pytest.mark.parametrize(
    "content",
    [None, "", '{"vers', "[]", "7", '{"version": "2"}', '{"version": -1}', '{"version": 1}', '{"version": 9}'],
)
def test_a_log_that_its_last_checkpoint_says_nothing_of(log: Log, content: str | None) -> None:
    log.commit(2, 3)
    if content is not None:
        log.add("_last_checkpoint", content)
    assert (log.version(), log.found(3), log.found(3, after=3), log.found(1)) == (3, 3, None, None)


@pytest.mark.parametrize(
    "name",
    [
        "00000000000000000007.checkpoint.parquet",
        "00000000000000000007.checkpoint.0000000001.0000000002.parquet",
        "00000000000000000007.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json",
    ],
)
def test_a_checkpoint_counts_whose_commit_has_been_cleaned_up(log: Log, name: str) -> None:
    log.add("_last_checkpoint", '{"version": 7}')
    log.add(name)
    log.add("00000000000000000001.00000000000000000009.compacted.json")
    log.add("00000000000000000009.crc")
    assert (log.version(), log.found(7)) == (7, None)


def test_a_log_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_S3_KEY", s3.access_key_id)
    monkeypatch.setenv("TEST_S3_SECRET", s3.secret_access_key)
    keys = {"accessKeyId": "env:TEST_S3_KEY", "secretAccessKey": "env:TEST_S3_SECRET"}
    entry = {"endpoint": s3.endpoint, "region": s3.region, **keys}
    connections = Connections(parse_connections({"s3": {"default": entry}}))
    table = open_folder("s3a://data/delta-log/table", "default", connections)
    assert newest_version(table) is None
    log = table.below("_delta_log")
    for version in range(2, 6):
        action = {"txn": {"appId": "stream", "version": version}}
        log.write(f"{version:020}.json", json.dumps(action).encode())
    for content in ("", '{"version": 3}', '{"version": 9}'):
        log.write("_last_checkpoint", content.encode())
        assert newest_version(table) == 5
        commit = find_transaction(table, "stream", 2)
        assert commit is not None
        assert commit.version == 2
        assert find_transaction(table, "stream", 1) is None


def test_a_folder_that_is_no_table(tmp_path: Path) -> None:
    folders = LocalFolder(str(tmp_path)), S3Folder("missing", Requests(tmp_path))
    assert [newest_version(folder) for folder in folders] == [None, None]


@pytest.mark.parametrize(
    "error",
    [
        RetryableError("AWS Error SLOW_DOWN", kind="throttled"),
        OSError("AWS Error ACCESS_DENIED"),
        pa.ArrowInvalid("Empty path component"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_a_commit_spark_is_asked_for_a_log_that_cannot_be_read(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> list[Any]:
        raise error

    folder = S3Folder("bucket/table", SimpleNamespace(open_input_file=refuse, get_file_info=refuse))
    told = DeltaWrite(rows=2, version=7, files=1)
    monkeypatch.setattr(delta_table, "_find_write_by_spark", lambda spark, path, mark: told)
    assert delta_table._written(cast(Any, None), "/data/table", "mark", folder) is told


def test_a_log_of_which_only_what_is_there_may_be_looked_at_is_listed(tmp_path: Path) -> None:
    """S3 refuses to say of a file that it is not there to who may list parts of the bucket only."""

    class Scoped(LocalFolder):
        def _open(self, name: str) -> Any:
            try:
                return super()._open(name)
            except FileNotFoundError:
                raise OSError("AWS Error ACCESS_DENIED") from None

        def below(self, name: str) -> Scoped:
            return Scoped(f"{self.path}/{name}")

    log = tmp_path / "_delta_log"
    log.mkdir()
    for version in range(3):
        (log / f"{version:020}.json").write_text("{}")
    (log / "_last_checkpoint").write_text('{"version": 1}')
    assert newest_version(Scoped(str(tmp_path))) == 2
