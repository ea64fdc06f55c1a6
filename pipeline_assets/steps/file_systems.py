"""File systems beside Spark's: the same folders, on this machine by Python itself, on S3 by pyarrow."""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from pipeline_assets.steps.s3_paths import bucket_of, is_s3, key_of
from pipeline_assets.transience import execution_error, transience_of
from pipeline_assets.uris import is_local, path_in

if TYPE_CHECKING:
    from pipeline_assets.connections import Connections, S3Connection
    from pipeline_assets.credentials import Secrets

_AT_ONCE = 8
# What S3 copies by one request, and with it pyarrow.
_MOST_COPIED = 5 * 1024**3
# Two of the parts that pyarrow uploads.
_CHUNK = 20 * 1024**2


@dataclass(frozen=True)
class Folder(ABC):
    """A folder on a file system. Names are relative to it, with slashes.

    Every method raises PipelineExecutionError, or RetryableError, for what the file system refuses.
    """

    path: str

    def below(self, name: str) -> Self:
        """Return the folder called ``name`` in this one."""
        return replace(self, path=f"{self.path}/{name}" if name else self.path)

    @abstractmethod
    def names(self) -> dict[str, int]:
        """Return the files below, at any depth, with their sizes: none when there is no such folder."""

    @abstractmethod
    def files_in(self) -> list[str]:
        """Return the names of the files right in this folder: none when there is no such folder."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Put ``content`` into the file called ``name``. Readers see the old file or the new one."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a folder, or for an object store anything in it."""

    @abstractmethod
    def remove_all(self) -> None:
        """Delete this folder and what is in it, if there is any."""

    @abstractmethod
    def _open(self, name: str) -> Any: ...

    @abstractmethod
    def _make(self) -> None: ...

    @abstractmethod
    def _move(self, source: str, target: str, size: int) -> None: ...

    @abstractmethod
    def _delete(self, path: str) -> None: ...

    def open(self, name: str) -> Any:
        """Open the file called ``name`` for random access; close it, or use it as a context manager."""
        with _file_errors(self.path):
            return self._open(name)

    def read(self, name: str) -> bytes:
        """Return what the file called ``name`` holds."""
        with _file_errors(self.path), self._open(name) as source:
            return bytes(source.read())

    def read_if_there(self, name: str) -> bytes | None:
        """Return what the file called ``name`` holds; None when there is no such file."""
        with _file_errors(self.path), suppress(FileNotFoundError), self._open(name) as source:
            return bytes(source.read())
        return None

    def has(self, name: str) -> bool:
        """Whether there is a file called ``name``: one request to an object store, however many files it has."""
        with _file_errors(self.path), suppress(FileNotFoundError), self._open(name):
            return True
        return False

    def take(self, source: Folder, names: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        """Move files from ``source`` here; ``names``: what is to be called how. Of that name, one is replaced.

        ``sizes``: those of the files in ``source``. When a file can't be moved, all are taken away again.
        """
        for folder in sorted({name.rpartition("/")[0] for name in names.values()}):
            with _file_errors(self.path):
                self.below(folder)._make()
        done = False
        try:
            self._each(
                lambda name: self._move(f"{source.path}/{name}", f"{self.path}/{names[name]}", sizes[name]),
                list(names),
            )
            done = True
        finally:
            if not done:
                there = self.names()
                self.remove([name for name in names.values() if name in there])

    def remove(self, names: list[str]) -> None:
        """Delete the files called ``names``."""
        self._each(lambda name: self._delete(f"{self.path}/{name}"), names)

    def _each(self, action: Callable[[str], None], names: list[str]) -> None:
        with _file_errors(self.path), ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(action, names))


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder on a file system that is mounted on this machine."""

    def names(self) -> dict[str, int]:
        found = {}
        with _file_errors(self.path):
            for parent, _, names in os.walk(self.path, onerror=_raise):
                for name in names:
                    file = f"{parent}/{name}"
                    with suppress(FileNotFoundError):  # what another is staging here goes meanwhile
                        found[file[len(self.path) + 1 :]] = os.path.getsize(file)
        return found

    def files_in(self) -> list[str]:
        with _file_errors(self.path):
            try:
                return [entry.name for entry in os.scandir(self.path) if entry.is_file()]
            except FileNotFoundError:
                return []

    def _open(self, name: str) -> Any:
        return open(f"{self.path}/{name}", "rb")

    def write(self, name: str, content: bytes) -> None:
        with _file_errors(self.path):
            self._make()
            staged = f"{self.path}/.{name}.{uuid.uuid4().hex}"
            with open(staged, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else the new name may outlive a power failure, and what is in the file not
            os.replace(staged, f"{self.path}/{name}")

    def exists(self) -> bool:
        with _file_errors(self.path):
            return os.path.exists(self.path)

    def remove_all(self) -> None:
        with _file_errors(self.path), suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def _make(self) -> None:
        os.makedirs(self.path, exist_ok=True)

    def _move(self, source: str, target: str, size: int) -> None:
        os.replace(source, target)

    def _delete(self, path: str) -> None:
        os.remove(path)


@dataclass(frozen=True)
class S3Folder(Folder):
    """A folder in a bucket, by pyarrow's file system ``files``. ``path`` begins with the bucket."""

    files: Any

    def names(self) -> dict[str, int]:
        start = len(self.path) + 1
        return {info.path[start:]: info.size or 0 for info in self._found(recursive=True)}

    def files_in(self) -> list[str]:
        return [info.base_name for info in self._found(recursive=False)]

    def _found(self, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        with _file_errors(self.path):
            found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=recursive))
        return [info for info in found if info.type == fs.FileType.File]

    def _open(self, name: str) -> Any:
        return self.files.open_input_file(f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        with _file_errors(self.path), self.files.open_output_stream(f"{self.path}/{name}") as target:
            target.write(content)

    def exists(self) -> bool:
        from pyarrow import fs

        with _file_errors(self.path):
            return bool(self.files.get_file_info(self.path).type != fs.FileType.NotFound)

    def remove_all(self) -> None:
        with _file_errors(self.path), suppress(FileNotFoundError):
            self.files.delete_dir(self.path)

    def _make(self) -> None:
        self.files.create_dir(self.path, recursive=True)

    def _move(self, source: str, target: str, size: int) -> None:
        if size <= _MOST_COPIED:
            self.files.move(source, target)
            return
        # By the name alone, pyarrow would compress what is compressed already.
        with (
            self.files.open_input_file(source) as content,
            self.files.open_output_stream(target, compression=None) as copy,
        ):
            while chunk := content.read(_CHUNK):
                copy.write(chunk)
                copy.flush()  # else all that is not yet uploaded is kept in memory
        self.files.delete_file(source)

    def _delete(self, path: str) -> None:
        self.files.delete_file(path)


def folder_seen_from_here(path: str, connection: str, connections: Connections) -> Folder | None:
    """Open ``path`` like ``open_folder``; None for a scheme that only Spark has a file system for."""
    return open_folder(path, connection, connections) if is_s3(path) or is_local(path) else None


def open_folder(path: str, connection: str, connections: Connections) -> Folder:
    """Open ``path`` (as Spark is to see it): on S3 by the connection of that name, else on this machine."""
    if is_s3(path):
        found = connections.s3(connection)
        return S3Folder(f"{bucket_of(path)}/{key_of(path)}".rstrip("/"), _s3(found, connections.secrets))
    return LocalFolder(path_in(path).rstrip("/"))


def _raise(error: OSError) -> None:
    # os.walk passes over what it can't list; that there is no such folder is no error.
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Turn the errors of a file system into this package's."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid, of a path that S3 can't have, is a ValueError
        raise execution_error(f"{path}: {error}", transience_of(error)) from None


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
