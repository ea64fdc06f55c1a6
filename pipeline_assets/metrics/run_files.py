"""The folder of the runs' metrics: a file of JSON lines for each run, and no more of them than are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline_assets.metrics.records import MetricsRecord, summed

# A run of a few steps has a few kilobytes; a load of a stream up to two lines in five seconds, one such file in a day.
_FILE_BYTES = 16 * 1024 * 1024
_FILES_KEPT = 1000
# What the files that had to make room have told. Not *.jsonl, as it is no run's.
_TOTALS = ".totals"
_LOCK_SECONDS = 10.0
# A line has its time before that.
_TOLD_APART_BY = 200


class RunFile:
    """Where one run's lines go. Several processes of the run may append to it at the same time."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._path = folder / f"{run_id}.jsonl"
        self._next = 1

    def append(self, record: MetricsRecord) -> None:
        """Write a line. Raises OSError when that can't be."""
        while self._path.exists() and self._path.stat().st_size > _FILE_BYTES:
            self._path = self._folder / f"{self._run_id}.{self._next}.jsonl"
            self._next += 1
        if not self._path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            _remove_oldest(self._folder)
        # One write of less than a page at the file's end is whole, whoever else writes.
        with open(self._path, "ab", buffering=0) as file:
            file.write(record.line().encode())


def _remove_oldest(folder: Path) -> None:
    if not _too_many(folder):
        return
    with suppress(Timeout), FileLock(folder / f"{_TOTALS}.lock", timeout=_LOCK_SECONDS):  # else the next run does it
        files = _too_many(folder)
        told = summed(chain.from_iterable(_records_in(file) for file in (folder / _TOTALS, *files)))
        unfinished = folder / f"{_TOTALS}.new"
        unfinished.write_text("".join(record.line() for record in told))
        unfinished.replace(folder / _TOTALS)
        for file in files:
            file.unlink(missing_ok=True)


def _too_many(folder: Path) -> list[Path]:
    """Return the files that have to make room for another one, the oldest."""
    files = sorted(folder.glob("*.jsonl"), key=_changed)
    return files[: max(0, len(files) - _FILES_KEPT + 1)]


def _records_in(file: Path) -> Iterator[MetricsRecord]:
    with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as lines:
        yield from filter(None, map(MetricsRecord.parse, lines))


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another run has removed it
        return 0.0


class RunFilesReader:
    """Reads what runs have written to ``folder``, each line once, and first the totals of files that are gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[bytes, int]] = {}
        """How each file begins, and how far it has been read."""
        self._has_totals = False

    def new_records(self) -> Iterator[MetricsRecord]:
        """Yield the records that were written since the last call, run by run in the order of their last lines."""
        paths = sorted(self._folder.glob("*.jsonl"), key=_changed)
        self._read = {path.name: self._read.get(path.name, (b"", 0)) for path in paths}
        if not self._has_totals:  # after the files' names: one that makes room meanwhile is in the totals by then
            self._has_totals = True
            yield from _records_in(self._folder / _TOTALS)
        for path in paths:
            known, start = self._read[path.name]
            try:
                with path.open("rb") as file:
                    begin = file.readline(_TOLD_APART_BY)
                    if begin != known:
                        start = 0  # another by its name: that of a run which goes on after its file had to make room
                    file.seek(start)
                    text = file.read()
            except FileNotFoundError:  # a run has removed it
                continue
            # A line without an end is still being written.
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path.name] = begin, start + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                record = MetricsRecord.parse(line)
                if record is not None:
                    yield record
