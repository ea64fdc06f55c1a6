"""What can go wrong, as one hierarchy. Imports nothing of this package but how secrets are masked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pipeline_assets.redaction import redact

TransientKind = Literal["connection", "timeout", "throttled", "unavailable", "conflict", "lostExecutor"]
"""Why a failure may be gone on the next try; see transience.py."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``, did you mean 'x'?`` for the nearest of ``choices``, or an empty string."""
    known = list(choices)
    same = [choice for choice in known if choice.casefold() == word.casefold()]
    near = same or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class StepLocation:
    """Where in a pipeline something happened; ``index`` counts from 0, as in the config's JSON pointers."""

    pipeline: str
    index: int
    type: str
    method: str

    def __str__(self) -> str:
        return f"{self.pipeline}: step {self.index} ({self.type} {self.method})"


class PipelineError(Exception):
    """Root of all errors of this package.

    ``message`` is one line that a person can act on; ``details`` is what may follow it (a list of columns, the
    text of a cause). ``location`` names pipeline, step index, type and method once they are known, ``config`` is the
    step's, as JSON, and ``run_id`` Dagster's. ``__cause__`` is an OriginalError, where a library raised something.
    Secrets are masked in every text, also those that have become known since it was written.
    """

    config: Mapping[str, Any] | None = None
    run_id: str | None = None
    transient_kind: TransientKind | None = None
    """Why the failure may be gone on the next try; None when it is permanent. Retries go by this, not by the class: see
    RetryableError."""
    retry_after: float | None = None
    """Seconds that the other side asked to wait before the next try."""

    def __init__(self, message: str, *, details: str = "", location: StepLocation | None = None) -> None:
        self.message = redact(message)
        self.details = redact(details)
        super().__init__(self.message)
        self.location = location

    def located(
        self, location: StepLocation, config: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> Self:
        """Name the step, unless a step nearer to the cause has been named already."""
        if self.location is None:
            self.location, self.config, self.run_id = location, config, run_id
        return self

    def __str__(self) -> str:
        head = f"{self.location}: {self.message}" if self.location else self.message
        return redact(f"{head}\n{self.details}" if self.details else head)

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[PipelineError], args: tuple[Any, ...], state: dict[str, Any]) -> PipelineError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class OriginalError(Exception):
    """What a library raised, as text: its class, its message and its trace, with secrets masked.

    It stands for the exception itself, whose text may show a secret, as the cause of a PipelineError.
    """


def first_line(text: str) -> str:
    """Return the first line of ``text`` with something on it, or an empty text."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def error_line(error: BaseException) -> str:
    """Return what ``error`` is and the first line of what it says, redacted."""
    text = first_line(str(error))
    return redact(f"{type(error).__name__}: {text}" if text else type(error).__name__)


_LONG_WORD = re.compile(r"(\S{100})\S{200,}(\S{20})")


@dataclass(frozen=True)
class ConfigIssue:
    """One thing that is wrong in a config: ``pointer`` is a JSON Pointer (RFC 6901) into the file.

    Secrets are masked in both of its texts, as it is printed by itself, too.
    """

    file: str
    pointer: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "pointer", redact(self.pointer))
        # A message quotes what is wrong, and that may be a whole file in one word. Half a secret looks like none.
        message = _LONG_WORD.sub(lambda word: f"{word[1]}...{word[2]}", redact(self.message))
        object.__setattr__(self, "message", message)

    def __str__(self) -> str:
        return f"{self.file}: {self.pointer or '/'}: {self.message}"


class ConfigurationError(PipelineError):
    """A config, or what it says about the data it meets, is wrong. Nothing has run or been written."""

    @classmethod
    def from_issues(cls, issues: Iterable[ConfigIssue]) -> Self:
        """Build one error that shows every issue of a config at once."""
        found = tuple(issues)
        if len(found) == 1:
            error = cls(str(found[0]))
        else:
            files = ", ".join(sorted({issue.file for issue in found}))
            error = cls(f"{len(found)} errors in {files}", details="\n".join(f"  {issue}" for issue in found))
        error.issues = found
        return error

    issues: tuple[ConfigIssue, ...] = ()


class DataFrameResolutionError(ConfigurationError):
    """A step names a DataFrame or a column that does not exist."""

    @classmethod
    def unknown_dataframe(cls, name: str, known: Iterable[str]) -> DataFrameResolutionError:
        """``known``: the names that exist where the step stands."""
        names = sorted(known)
        listed = ", ".join(names) if names else "none yet: the first step must be an extract"
        return cls(f"there is no DataFrame {name!r}{did_you_mean(name, names)} (DataFrames here: {listed})")

    @classmethod
    def unknown_columns(
        cls, missing: Iterable[str], dataframe: str, columns: Iterable[str]
    ) -> DataFrameResolutionError:
        """``columns``: those that ``dataframe`` has."""
        there = list(columns)
        wanted = list(missing)
        near = ", ".join(f"{name!r}{did_you_mean(name, there)}" for name in wanted)
        plural = "columns" if len(wanted) > 1 else "column"
        return cls(f"DataFrame {dataframe!r} has no {plural} {near} (its columns: {', '.join(there) or 'none'})")


class PipelineExecutionError(PipelineError):
    """A step failed while it ran: a source could not be read, a query failed, a target could not be written."""


class RetryableError(PipelineExecutionError):
    """A step failed for a reason that may be gone when it is tried again: ``transient_kind`` says which.

    An error whose class says something else already (a CredentialError for a Vault that is down, a
    StreamingQueryError) keeps its class and has the attribute too: ask any error for ``transient_kind``.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: TransientKind,
        retry_after: float | None = None,
        details: str = "",
        location: StepLocation | None = None,
    ) -> None:
        super().__init__(message, details=details, location=location)
        self.transient_kind = kind
        self.retry_after = retry_after


class StreamingQueryError(PipelineExecutionError):
    """A streaming query ended with an error. The details hold its id, its name and its last progress."""


class PipelineCancelledError(PipelineError):
    """The run was asked to stop, and did."""


class CredentialError(PipelineError):
    """A secret could not be had. The text names every place that was looked at and never a value."""


class CredentialUnavailableError(CredentialError):
    """A secret could not be had just now: its source is down, sealed or slow. It may be there later."""

    transient_kind: TransientKind | None = "unavailable"


class DataValidationError(PipelineError):
    """Data does not meet an expectation that the pipeline states."""


class RunNotFoundError(PipelineError):
    """There is no such run, or none of the pipeline."""
