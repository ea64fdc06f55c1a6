"""The checkpoint folder of a streaming query: what Spark keeps in it, and what this package keeps beside that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline_assets.errors import ConfigurationError, PipelineExecutionError
from pipeline_assets.steps.file_systems import Folder, folder_seen_from_here

if TYPE_CHECKING:
    from pipeline_assets.connections import Connections

OWN_FOLDER = "pipeline_assets"
# Spark writes a line for each source; this one for a source that the batch took nothing from so far.
NO_OFFSET = "-"


class TornFileError(PipelineExecutionError):
    """A file in a checkpoint is not what its writer has put there."""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint at ``path`` (as Spark sees it). Read and written without Spark."""

    path: str
    folder: Folder

    @classmethod
    def at(cls, path: str, connection: str, connections: Connections) -> Self:
        """Open the checkpoint at ``path`` (resolved): on S3 by the connection of that name, else on this machine."""
        folder = folder_seen_from_here(path, connection, connections)
        if folder is None:
            raise ConfigurationError(f"checkpointLocation {path}: a checkpoint is on S3 or on a mounted file system")
        return cls(path, folder)

    def read_document(self, name: str) -> dict[str, Any] | None:
        """Return what ``write_document`` wrote under ``name``, or None; TornFileError when it is something else."""
        own = self.folder.below(OWN_FOLDER)
        return self._object(own, f"{name}.json", f"{OWN_FOLDER}/") if f"{name}.json" in own.files_in() else None

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Keep ``document`` (JSON) under ``name``: readers see the old one or the new one."""
        self.folder.below(OWN_FOLDER).write(f"{name}.json", json.dumps(document, indent=2).encode())

    def remove_document(self, name: str) -> None:
        """Delete what ``write_document`` wrote under ``name``, if it is there."""
        own = self.folder.below(OWN_FOLDER)
        if f"{name}.json" in own.files_in():
            own.remove([f"{name}.json"])

    def query_id(self) -> str | None:
        """Return the id of the streaming query, which stays the same over its restarts; None before its first start.

        Raises TornFileError when Spark's note of it is no such note.
        """
        if "metadata" not in self.folder.files_in():
            return None
        noted = self._object(self.folder, "metadata")
        if "id" not in noted:
            raise self._torn("metadata")
        return str(noted["id"])

    @property
    def is_read(self) -> bool:
        """Whether the query has planned a micro-batch: before the first, nothing depends on what is in here."""
        return bool(self._batches("offsets"))

    def forget_beginnings(self) -> None:
        """Delete Spark's notes of where the sources begin, by which it goes as long as there is no micro-batch."""
        noted = self.folder.below("sources")
        noted.remove(list(noted.names()))

    def planned_batches(self) -> list[int]:
        """Return the micro-batches whose offsets Spark keeps a note of, in order: the newest ones."""
        return sorted(self._batches("offsets"))

    def committed_offsets(self) -> tuple[int, list[str]] | None:
        """Return the newest batch that is complete and the ``offsets_of`` it: all that has been processed.

        None before the first.
        """
        committed = self._batches("offsets") & self._batches("commits")
        return (max(committed), self.offsets_of(max(committed))) if committed else None

    def _object(self, folder: Folder, name: str, below: str = "") -> dict[str, Any]:
        """Return the JSON object in the file ``name`` of ``folder``, which is ``below`` the checkpoint's own."""
        try:
            found = json.loads(folder.read(name))
        except ValueError:
            raise self._torn(below + name) from None
        if not isinstance(found, dict):
            raise self._torn(below + name)
        return found

    def _torn(self, name: str) -> TornFileError:
        return TornFileError(
            f"{self.path}/{name} is not as it was written. Restore the checkpoint and what the stream loads from the "
            "same backup, or give the stream a new checkpointLocation: it then begins at its startingOffsets"
        )

    def _batches(self, folder: str) -> set[int]:
        return {int(name) for name in self.folder.below(folder).files_in() if name.isdigit()}

    def offsets_of(self, batch: int) -> list[str]:
        """Return, for each source, where one of the ``planned_batches`` ends.

        What a source's text says is the source's own: JSON mostly, or ``NO_OFFSET``.
        Raises PipelineExecutionError for a file that is not as Spark writes it.
        """
        version, *lines = self.folder.below("offsets").read(str(batch)).decode().split("\n")
        if version != "v1" or not lines:
            raise PipelineExecutionError(
                f"{self.path}/offsets/{batch} is in no format that is known here (it begins with {version[:20]!r})"
            )
        return lines[1:]
