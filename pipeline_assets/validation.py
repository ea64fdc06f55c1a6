"""What follows when data do not meet what a validate step expects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline_assets.errors import DataValidationError
from pipeline_assets.plan import PlannedStep
from pipeline_assets.steps.base import ExpectationResult


def raise_for_failures(step: PlannedStep, results: Iterable[ExpectationResult]) -> None:
    """Raise DataValidationError when an expectation of severity ``error`` is not met, with samples of the rows."""
    failed = [result for result in results if not result.passed and result.severity == "error"]
    if failed:
        raise _failed_validation(step, failed)


def _failed_validation(step: PlannedStep, failed: list[ExpectationResult]) -> DataValidationError:
    """Return the error that says which expectations are not met."""
    says = step.validate_method.expectation_names()
    told = "; ".join(
        f"{result.name + ': ' if result.name else ''}{says[result.name]} "
        f"({result.found or f'{result.failed} of {result.total} do not, {result.percent:.3g} %'})"
        for result in failed
    )
    details = "\n".join(line for result in failed for line in _sample_lines(result))
    return DataValidationError(f"the data do not meet what is expected: {told}", details=details)


def _sample_lines(result: ExpectationResult) -> Iterator[str]:
    if result.samples is not None:
        yield f"a sample of what does not meet {result.name or 'it'}:"
        for row in result.samples.rows:
            cells = zip(result.samples.columns, row, strict=True)
            yield "  " + ", ".join(f"{name}={'NULL' if text is None else text[:100]}" for name, text in cells)
