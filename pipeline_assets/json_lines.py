"""On which line of a file of JSON a value stands."""

from __future__ import annotations

import json
from json import scanner
from typing import Any


class JsonLines:
    """The lines of one file, counted from 1."""

    def __init__(self, content: bytes) -> None:
        """Take what is in the file, which may be no JSON."""
        self._text = content.decode("utf-8-sig", errors="replace")
        self._root: tuple[int, Any] = 0, None
        try:
            self._root = _Placed().decode(self._text)
        except json.JSONDecodeError as error:
            self._root = error.pos, None
        except RecursionError:
            pass  # so deep is no config: what is wrong is told of the file as a whole

    def line_of(self, at: str) -> int:
        """Return the line on which the value at JSON Pointer ``at`` begins; of one that is not there, that of what it
        is missing in; in what is no JSON, the line on which it stops to be.
        """
        begin, value = self._root
        for part in at.split("/")[1:]:
            inner = _inside(value, part.replace("~1", "/").replace("~0", "~"))
            if inner is None:
                break
            begin, value = inner
        return self._text.count("\n", 0, begin) + 1


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    is_there = isinstance(value, list) and part.isdigit() and int(part) < len(value)
    return value[int(part)] if is_there else None


class _Placed(json.JSONDecoder):
    """Decodes each value to a pair: at which character it begins, and what it is. Numbers stay texts."""

    def __init__(self) -> None:
        super().__init__(parse_int=str, parse_float=str, parse_constant=str)
        unplaced: Any = self
        parse_object, parse_array = unplaced.parse_object, unplaced.parse_array

        def scan(text: str, begin: int) -> tuple[Any, int]:
            value, end = unplaced_scan(text, begin)
            return (begin, value), end

        # What is in an object or an array is asked of the scanner that is handed in.
        unplaced.parse_object = lambda begin, strict, _, *hooks: parse_object(begin, strict, scan, *hooks)
        unplaced.parse_array = lambda begin, _: parse_array(begin, scan)
        unplaced_scan: Any = scanner.py_make_scanner(unplaced)  # type: ignore[attr-defined]  # no stub names it
        unplaced.scan_once = scan
