"""The site: it builds without a warning, shows what GitHub shows, and has a browser fetch nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline_assets_tests.docs.pages import PAGES, PROJECT, anchors, html, links

# What Python's Markdown, which the site is made with, may read otherwise: lists and what is in them.
COUNTED = ("li", "pre", "table", "tr", "td", "h1", "h2", "h3", "blockquote", "em", "img")


class Elements(HTMLParser):
    """Counts elements, and notes what a browser fetches by itself. ``article``: only those of the page's own text."""

    def __init__(self, text: str, *, article: bool = False) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.fetched: list[str] = []
        if article:
            text = text[text.index("<article") : text.index("</article>")]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        self.fetched += [given[name] or "" for name in ("src", "srcset", "href") if name in given and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def of_site(site: Path, page: Path) -> Path:
    name = "index" if page.name == "README.md" else page.stem
    folder = page.parent.relative_to(PROJECT / "docs" if page.is_relative_to(PROJECT / "docs") else PROJECT)
    return site / folder / f"{name}.html"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_on_the_site_as_on_github(site: Path, page: Path) -> None:
    built = Elements(of_site(site, page).read_text(), article=True).counts
    wanted = Elements(html(page)).counts
    assert {tag: built[tag] for tag in COUNTED} == {tag: wanted[tag] for tag in COUNTED}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    built = sorted(site.rglob("*.html"))
    assert len(built) > len(PAGES)
    fetched = {target for page in built for target in Elements(page.read_text()).fetched}
    assert any("bundle" in target for target in fetched)
    assert [target for target in fetched if urlsplit(target).netloc or target.startswith("//")] == []
    styles = " ".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )\W*https?:", styles) == []


def test_what_is_not_for_readers_is_not_there(site: Path) -> None:
    assert list(site.rglob("*.py")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_on_github(page: Path) -> None:
    for link in links(page):
        target = urlsplit(link)
        if target.scheme:
            continue
        path = (page.parent / target.path).resolve() if target.path else page
        assert path.is_relative_to(PROJECT), link
        assert path.exists(), link
        if target.fragment:
            assert target.fragment in anchors(path), link
