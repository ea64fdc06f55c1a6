"""What the pages and the terminal show of the results: tables with a title."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
# Title, header and rows.
Section = tuple[str, Sequence[str], Rows]
