"""The pages of the documentation, as GitHub reads them: their fenced blocks, inline code, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

PROJECT = Path(__file__).parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
_MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


@dataclass(frozen=True)
class Example:
    """A fenced block. ``title`` is the file that it is to be saved as, where it says so."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def html(page: Path) -> str:
    """Return the page as GitHub shows it."""
    return str(_MARKDOWN.render(page.read_text(encoding="utf-8")))


def examples(page: Path) -> list[Example]:
    """Return the fenced blocks of a page, those in lists as well, in their order."""
    return [_example(page, token) for token in _tokens(page) if token.type == "fence"]


def inline_code(page: Path) -> Iterator[str]:
    """Yield what stands between backticks, as one line."""
    for child in _inline(page):
        if child.type == "code_inline":
            yield " ".join(child.content.split())


def links(page: Path) -> Iterator[str]:
    """Yield where the links and images of a page lead."""
    for child in _inline(page):
        target = child.attrGet("href" if child.type == "link_open" else "src")
        if target is not None:
            yield str(target)


def anchors(page: Path) -> set[str]:
    """Return the names by which GitHub lets links lead to the page's headings."""
    tokens = _tokens(page)
    headings = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(child.content for child in heading.children or ()) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def commands(example: Example) -> Iterator[tuple[str, str | None]]:
    """Yield the commands of a shell block; of a console session with the output that follows each."""
    if example.language != "console":
        yield from ((line, None) for line in example.text.splitlines() if line.strip())
        return
    for part in re.split(r"^\$ ", example.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def matches(shown: str, output: str) -> bool:
    """Return whether a page shows this output; ``...`` in it stands for anything."""
    wanted, found = ("\n".join(line.rstrip() for line in text.strip("\n").splitlines()) for text in (shown, output))
    return bool(re.fullmatch(".*?".join(re.escape(part) for part in wanted.split("...")), found, re.DOTALL))


def _example(page: Path, token: Token) -> Example:
    language, _, rest = token.info.partition(" ")
    options = dict(option.split("=", 1) for option in shlex.split(rest))
    line = token.map[0] + 1 if token.map else 0
    return Example(str(page.relative_to(PROJECT)), line, language, options.pop("title", None), token.content)


def _tokens(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()
