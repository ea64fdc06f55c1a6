"""Spark settings as a file: not on the command line, which every user of the machine can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_properties(file: Path, conf: Mapping[str, str]) -> None:
    """Write ``conf`` for ``spark-submit --properties-file``, for the user alone to read."""
    file.touch(mode=0o600)
    file.write_text("".join(f"{_escaped(key)}={_escaped(value)}\n" for key, value in conf.items()), encoding="utf-8")


def _escaped(text: str) -> str:
    """As Java's property files want it."""
    for character, escape in {"\\": "\\\\", "\n": "\\n", "=": "\\=", ":": "\\:", " ": "\\ "}.items():
        text = text.replace(character, escape)
    return text
