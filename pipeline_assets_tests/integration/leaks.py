"""Where a secret may have got to: everything that runs leave behind, searched for it in every form."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, quote_plus


def forms(value: str) -> dict[str, bytes]:
    """Return ``value`` as it may be written, by the name of the form; made apart from the code that masks."""
    encoded = base64.b64encode(value.encode())
    return {
        "plain": value.encode(),
        "url": quote(value, safe="").encode(),
        "form": quote_plus(value).encode(),
        "base64": encoded.rstrip(b"="),
        "base64url": encoded.translate(bytes.maketrans(b"+/", b"-_")).rstrip(b"="),
        "json": json.dumps(value)[1:-1].encode(),
        "json in json": json.dumps(json.dumps(value)[1:-1])[1:-1].encode(),
    }


def found_in(folder: Path, canaries: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Search every file below ``folder``; return where each form of each canary is, by (canary, form)."""
    needles = {(name, form): text for name, value in canaries.items() for form, text in forms(value).items()}
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for where, data in _contents(path):
                for key, needle in needles.items():
                    if needle in data:
                        found.setdefault(key, []).append(f"{path.relative_to(folder)}{where}")
    return found


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the file's bytes and, of a database, each value in it, unpacked where it is packed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return  # a journal of SQLite's goes when its transaction has ended
    yield "", data
    if not data.startswith(b"SQLite format 3\0"):
        return
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield f" ({table})", _unpacked(value)
                    elif isinstance(value, str):
                        yield f" ({table})", value.encode()


def _unpacked(value: bytes) -> bytes:
    # Dagster packs its snapshots of jobs.
    try:
        return zlib.decompress(value)
    except zlib.error:
        return value
