"""The tree that ``explain`` prints, read back: it is the one form of a plan that Spark Connect gives too."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PREFIX = re.compile(r"(?:[ :] {2})*(?:[+:]- )?")
_VERSIONS = re.compile(r"([ :]*)\+- == (?:Final|Current|Initial) Plan ==")
_STDOUT_LOCK = threading.Lock()


@dataclass
class PlanNode:
    """One operator: its line, its children, and the plans of the subqueries in its expressions."""

    text: str
    children: list[PlanNode] = field(default_factory=list)
    subqueries: list[PlanNode] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The operator's name: ``Project``, ``HashAggregate``."""
        # Before it, a star marks generated code, a tilde an operator of a stream.
        found = re.match(r"(?:~|\* |\*\(\d+\) )?(\w+)", self.text)
        return found[1] if found else self.text

    @property
    def arguments(self) -> str:
        """What follows the name."""
        return self.text.partition(self.name)[2].strip()


def explain_text(frame: DataFrame, mode: Literal["simple", "extended", "formatted"]) -> str:
    """Return what ``frame.explain`` prints, unmasked. Runs no Spark job."""
    # One at a time: standard output belongs to the process.
    with _STDOUT_LOCK, redirect_stdout(io.StringIO()) as printed:
        frame.explain(mode=mode)
    return printed.getvalue()


def parse_tree(lines: Iterable[str]) -> PlanNode | None:
    """Return the root of the tree that ``lines`` draw; None for no lines."""
    path: list[tuple[int, PlanNode]] = []
    root: PlanNode | None = None
    for depth, text in _entries(_versions_indented(lines)):
        if root is None:
            root = PlanNode(text)
            path = [(0, root)]
            continue
        if depth == 0:
            # A literal with a line break in it.
            path[-1][1].text += f"\n{text}"
            continue
        while path[-1][0] >= depth:
            path.pop()
        parent_depth, parent = path[-1]
        node = PlanNode(text)
        # Spark indents the plans inside an operator's expressions twice.
        (parent.children if depth == parent_depth + 1 else parent.subqueries).append(node)
        path.append((depth, node))
    return root


def _entries(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        prefix = _PREFIX.match(line)
        indent = prefix[0] if prefix else ""
        depth = len(indent) // 3 if indent.endswith("- ") else 0
        yield depth, line[len(indent) :] if depth else line


def _versions_indented(lines: Iterable[str]) -> list[str]:
    """Make the plans under ``== Final Plan ==`` children of that line, as the rest of the tree is drawn."""
    drawn = list(lines)
    for index, line in enumerate(drawn):
        found = _VERSIONS.fullmatch(line)
        if found is None:
            continue
        margin = len(found[1]) + 3
        shift = "   " if _is_beside_its_plan(drawn, index, found[1]) else ""
        drawn[index] = shift + line
        arrow = "+- "
        for below in range(index + 1, len(drawn)):
            if drawn[below][:margin].strip(" :"):
                break
            drawn[below] = drawn[below][:margin] + shift + arrow + drawn[below][margin:]
            arrow = "   "
    return drawn


def _is_beside_its_plan(drawn: Sequence[str], index: int, indent: str) -> bool:
    """Whether the versions of a plan, one of which is at ``index``, are drawn beside it: those of a cached one are."""
    margin = len(indent) + 3
    above = (line for line in reversed(drawn[:index]) if line[:margin].strip(" :"))
    return next(above, "")[len(indent) :].startswith(("+- AdaptiveSparkPlan", ":- AdaptiveSparkPlan"))
