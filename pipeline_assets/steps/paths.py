"""Paths of files and tables: schemes, formats by extension, and the datasets that they stand for."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Literal, get_args

from pipeline_assets.errors import did_you_mean
from pipeline_assets.redaction import is_secret_name, secret_shapes
from pipeline_assets.steps.base import Dataset, StepContext, StepMethod
from pipeline_assets.steps.path_checks import GLOB
from pipeline_assets.steps.s3_paths import bucket_of, is_s3, key_of, normalize
from pipeline_assets.uris import is_local, normalize_uri, path_in, root_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FileFormat = Literal["parquet", "json", "csv", "orc", "text", "avro"]
OptionValue = str | int | float | bool

_FORMATS: dict[str, FileFormat] = {
    "parquet": "parquet",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "csv": "csv",
    "orc": "orc",
    "txt": "text",
    "text": "text",
    "avro": "avro",
}
_COMPRESSIONS = ("gz", "bz2", "zst", "zstd", "snappy", "lz4", "deflate", "xz")


def place_of(path: str) -> str:
    """Return ``path`` written as every other text for the same place is: no doubled slashes, none at the end."""
    if not is_local(path):
        return "/".join((*_root(path), *_components(path)))
    return posixpath.normpath(re.sub("/+", "/", path_in(path)))


def lies_in(place: str, folder: str) -> bool:
    """Whether ``place`` is ``folder`` or below it, both as ``place_of`` writes them."""
    return f"{place}/".startswith(f"{folder}/")


def paths_aside(method: StepMethod) -> Iterator[tuple[str, str]]:
    """Yield where ``method`` says that its rows are put aside: the key of its config, and the path."""
    for key, path in (
        ("quarantinePath", getattr(method, "quarantine_path", None)),
        ("deadLetterPath", getattr(method, "dead_letter_path", None)),
    ):
        if path:
            yield key, path


def format_of(path: str) -> FileFormat | None:
    """Return the format that the extension of ``path`` stands for, whatever the compression's extension after it."""
    extensions = path.rstrip("/").rpartition("/")[2].lower().split(".")[1:]
    while extensions and extensions[-1] in _COMPRESSIONS:
        extensions.pop()
    return _FORMATS.get(extensions[-1]) if extensions else None


def known_formats() -> str:
    """Return the formats there are, for a message."""
    return ", ".join(get_args(FileFormat))


def fixed_components(path: str) -> tuple[str, ...]:
    """Return the components of ``path`` before the first that contains a glob, without scheme and bucket."""
    found: list[str] = []
    for component in _components(path):
        if GLOB.search(component):
            break
        found.append(component)
    return tuple(found)


def _components(path: str) -> tuple[str, ...]:
    inside = key_of(path) if is_s3(path) else path_in(path)
    return tuple(component for component in inside.split("/") if component not in ("", "."))


def _root(path: str) -> tuple[str, ...]:
    """Return what tells the file system of ``path`` from others, such as ``hdfs://host``; nothing for a mounted one."""
    return () if is_local(path) else (root_of(normalize(path)).rstrip("/"),)


def files_dataset(path: str) -> Dataset:
    """Return the dataset of files at ``path``: an S3 one, or else one of kind ``file``."""
    components = fixed_components(path)
    if is_s3(path):
        bucket = bucket_of(path)
        return Dataset("s3", (bucket, *components), "/".join((f"s3a://{bucket}", *components)))
    return Dataset("file", (*_root(path), *components), _without_glob(path, components))


def delta_dataset(path: str) -> Dataset:
    """Return the dataset of the Delta table at ``path``: the same for every step that names the same path."""
    components = _components(path)
    if is_s3(path):
        bucket = bucket_of(path)
        return Dataset("deltalake", ("s3a", bucket, *components), "/".join((f"s3a://{bucket}", *components)))
    return Dataset("deltalake", (*_root(path), *components), _without_glob(path, components))


def warehouse_dataset(pipeline: str, asset: str) -> Dataset:
    """Return the dataset of the table that the warehouse keeps for an asset."""
    return Dataset("deltalake", ("warehouse", pipeline, asset), f"warehouse table {pipeline}.{asset}")


def _without_glob(path: str, components: tuple[str, ...]) -> str:
    root = root_of(normalize_uri(path))
    return root + ("/" if root or path.startswith("/") else "") + "/".join(components)


def open_for_spark(paths: Iterable[str], connection: str, context: StepContext) -> tuple[str, ...]:
    """Return ``paths`` as Spark is to see them, after telling Spark how to reach the buckets in them."""
    from pipeline_assets.spark.s3_access import apply_s3_connection

    resolved = tuple(context.settings.resolve(normalize(path)) for path in paths)
    for bucket in sorted({bucket_of(path) for path in resolved if is_s3(path)}):
        found = context.connections.s3(connection)
        apply_s3_connection(context.spark, bucket, found, context.connections.secrets)
    return resolved


def check_options(options: dict[str, OptionValue]) -> dict[str, OptionValue]:
    """Return ``options``. Raises ValueError for one that would hold a secret."""
    for name, value in options.items():
        if is_secret_name(name) or secret_shapes(str(value)):
            raise ValueError(f"option {name!r} looks like a secret: secrets stand in connections.json, by reference")
    return options


def option_texts(options: dict[str, OptionValue]) -> dict[str, str]:
    """Return ``options`` as Spark takes them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}


def option_texts_with(defaults: dict[str, OptionValue], options: dict[str, OptionValue]) -> dict[str, str]:
    """Return ``options`` as Spark takes them, and those of ``defaults`` that they leave open."""
    # Spark knows options in any case.
    given = {name.casefold() for name in options}
    left = {name: value for name, value in defaults.items() if name.casefold() not in given}
    return option_texts({**left, **options})


def unknown_format(path: str) -> str:
    """Return the message for a path whose format can't be told."""
    extension = path.rstrip("/").rpartition("/")[2].rpartition(".")[2] if "." in path.rpartition("/")[2] else ""
    hint = did_you_mean(extension, _FORMATS) if extension else ""
    return f"the format of {path!r} can't be told from its extension{hint}: give 'format', one of {known_formats()}"
