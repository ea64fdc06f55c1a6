"""What mkdocs is told that its settings have no words for: pages lie in docs/ and above it."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).parent.parent
# Beside docs/: the pages of the top level, and what pages refer to.
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "dagster.yaml", "configs/*.json")
NOT_SHOWN = (".py",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files by their paths in the repository: a link then leads to the same file there and on the site."""
    own = [file for file in files if file.src_dir != config.docs_dir]
    paths = [path for path in Path(config.docs_dir).rglob("*") if path.is_file() and path.suffix not in NOT_SHOWN]
    paths += [path for pattern in BESIDE for path in PROJECT.glob(pattern)]
    return Files([*own, *(_file(path.relative_to(PROJECT).as_posix(), config) for path in sorted(paths))])


def _file(path: str, config: MkDocsConfig) -> File:
    file = File(path, str(PROJECT), config.site_dir, config.use_directory_urls)
    file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file
