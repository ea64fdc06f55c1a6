"""File systems beside Spark's: the same folders, by pyarrow."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from pipeline_assets.steps.s3_paths import bucket_of, is_s3, key_of
from pipeline_assets.transience import execution_error, transience_of
from pipeline_assets.uris import is_local, path_in

if TYPE_CHECKING:
    from pipeline_assets.connections import Connections, S3Connection
    from pipeline_assets.credentials import Secrets

_AT_ONCE = 8


@dataclass(frozen=True)
class Folder:
    """A folder, by pyarrow's file system and the path in it. Names are relative to it, with slashes."""

    files: Any
    path: str

    @classmethod
    def seen_from_here(cls, path: str, connection: str, connections: Connections) -> Self | None:
        """Open ``path`` like ``of``; None for a scheme that only Spark has a file system for."""
        return cls.of(path, connection, connections) if is_s3(path) or is_local(path) else None

    @classmethod
    def of(cls, path: str, connection: str, connections: Connections) -> Self:
        """Open ``path`` (as Spark is to see it): on S3 by the connection of that name, else on this machine."""
        from pyarrow import fs

        if is_s3(path):
            found = connections.s3(connection)
            return cls(_s3(found, connections.secrets), f"{bucket_of(path)}/{key_of(path)}".rstrip("/"))
        return cls(fs.LocalFileSystem(), path_in(path).rstrip("/"))

    def below(self, name: str) -> Folder:
        """Return the folder called ``name`` in this one."""
        return Folder(self.files, f"{self.path}/{name}" if name else self.path)

    def names(self) -> dict[str, int]:
        """Return the files below, at any depth, with their sizes: none when there is no such folder."""
        from pyarrow import fs

        with _file_errors(self.path):
            found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        start = len(self.path) + 1
        return {info.path[start:]: info.size or 0 for info in found if info.type == fs.FileType.File}

    def files_in(self) -> list[str]:
        """Return the names of the files right in this folder: none when there is no such folder."""
        from pyarrow import fs

        with _file_errors(self.path):
            found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [info.base_name for info in found if info.type == fs.FileType.File]

    def read(self, name: str) -> bytes:
        """Return what the file called ``name`` holds."""
        with self.open(name) as source:
            return bytes(source.read())

    def write(self, name: str, content: bytes) -> None:
        """Put ``content`` into the file called ``name``. Readers see the old file or the new one."""
        from pyarrow import fs

        with _file_errors(self.path):
            if not isinstance(self.files, fs.LocalFileSystem):
                with self.files.open_output_stream(f"{self.path}/{name}") as target:
                    target.write(content)
                return
            self.files.create_dir(self.path, recursive=True)
            staged = f"{self.path}/.{name}.{uuid.uuid4().hex}"
            with self.files.open_output_stream(staged) as target:
                target.write(content)
            self.files.move(staged, f"{self.path}/{name}")

    def open(self, name: str) -> Any:
        """Open the file called ``name`` for random access; close it, or use it as a context manager."""
        with _file_errors(self.path):
            return self.files.open_input_file(f"{self.path}/{name}")

    def exists(self) -> bool:
        """Whether there is such a folder, or for an object store anything in it."""
        from pyarrow import fs

        with _file_errors(self.path):
            return bool(self.files.get_file_info(self.path).type != fs.FileType.NotFound)

    def take(self, source: Folder, names: list[str]) -> None:
        """Move the files called ``names`` from ``source`` here; when one can't be moved, take all back."""
        for folder in sorted({name.rpartition("/")[0] for name in names}):
            with _file_errors(self.path):
                self.files.create_dir(self.below(folder).path, recursive=True)
        done = False
        try:
            self._each(lambda name: self.files.move(f"{source.path}/{name}", f"{self.path}/{name}"), names)
            done = True
        finally:
            if not done:
                there = self.names()
                self.remove([name for name in names if name in there])

    def remove(self, names: list[str]) -> None:
        """Delete the files called ``names``."""
        self._each(lambda name: self.files.delete_file(f"{self.path}/{name}"), names)

    def remove_all(self) -> None:
        """Delete this folder and what is in it, if there is any."""
        with _file_errors(self.path), suppress(FileNotFoundError):
            self.files.delete_dir(self.path)

    def _each(self, action: Any, names: list[str]) -> None:
        with _file_errors(self.path), ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(action, names))


class _file_errors:  # noqa: N801  (used as a function)
    """Turn the errors of a file system into this package's."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise execution_error(f"{self.path}: {error}", transience_of(error)) from None


def _s3(connection: S3Connection, secrets: Secrets) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {"force_virtual_addressing": not connection.path_style_access}
    if connection.endpoint:
        endpoint = urlsplit(connection.endpoint if "://" in connection.endpoint else f"https://{connection.endpoint}")
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    if connection.region:
        options["region"] = connection.region
    if connection.access_key_id and connection.secret_access_key:
        keys = {"access_key": connection.access_key_id, "secret_key": connection.secret_access_key}
        if connection.session_token:
            keys["session_token"] = connection.session_token
        options |= secrets.fetch_all(keys)
    elif connection.anonymous:
        options["anonymous"] = True
    with _file_errors("S3"):
        return fs.S3FileSystem(**options)
