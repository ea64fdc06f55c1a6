"""What a step that failed tells of it in Dagster's event."""

from __future__ import annotations

import re

from dagster._core.execution.plan.objects import StepFailureData
from dagster_shared.error import SerializableErrorInfo

from pipeline_assets.errors import first_line


def failure_text(data: StepFailureData) -> str:
    """Return what the step's ``dagster.Failure`` says to do, or else what its error says."""
    told = own_words(data)
    if told is not None:
        return told
    return error_text(data.error) if data.error is not None else "the step has failed"


def failure_kind(data: StepFailureData) -> str | None:
    """Return the class of the error, as the failure names it; of one without words, that of what it came from."""
    told = data.user_failure_data
    if told is not None and "error" in told.metadata:
        return str(told.metadata["error"].value)
    return root_of(data.error).cls_name if data.error is not None and own_words(data) is None else None


def own_words(data: StepFailureData) -> str | None:
    """Return the description of the step's ``dagster.Failure``; None where it failed by another error."""
    told = data.user_failure_data
    return (told.description or None) if told is not None else None


def error_text(error: SerializableErrorInfo) -> str:
    """Return the first line of what the root of ``error`` says."""
    root = root_of(error)
    # Dagster has put the name of the class before the text.
    return re.sub(r"^[\w.]+: ", "", first_line(root.message)) or str(root.cls_name)


def root_of(error: SerializableErrorInfo) -> SerializableErrorInfo:
    """Return the Failure in a chain of errors, which says what to do, or the error at its root."""
    while error.cause is not None and error.cls_name != "Failure":
        error = error.cause
    return error
