"""The checks of a stream's micro-batches as Dagster is told them: the sums of the run, now and then and at its end."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from pipeline_assets.asset_keys import quarantine_key
from pipeline_assets.asset_metadata import Metadata
from pipeline_assets.metrics.dagster_events import QUARANTINE_OF
from pipeline_assets.plan import PipelinePlan, PlannedStep, Role, check_name
from pipeline_assets.steps.base import ExpectationResult, ValidateMethod
from pipeline_assets.validation_assets import check_results, check_specs

if TYPE_CHECKING:
    from pipeline_assets.streaming.micro_batches import BatchChecks

REPORT_SECONDS = 5.0


def validate_steps(plan: PipelinePlan) -> list[PlannedStep]:
    """Return the steps of ``plan`` that check micro-batches."""
    return [step for step in plan.steps if isinstance(step.method, ValidateMethod)]


def checked_key(step: PlannedStep, keys: Mapping[int, dg.AssetKey]) -> dg.AssetKey:
    """Return the asset that the checks of a validate step are shown at."""
    return keys[step.inputs[0] if step.role is Role.CHECK else step.index]


def stream_check_specs(plan: PipelinePlan, keys: Mapping[int, dg.AssetKey]) -> list[dg.AssetCheckSpec]:
    """Return the asset checks of the validate steps of a streaming pipeline."""
    return [
        spec
        for step in validate_steps(plan)
        for spec in check_specs(step, checked_key(step, keys), [keys[index] for index in step.inputs[1:]])
    ]


class StreamChecks:
    """Sums up what is checked in a run. ``columns``: what is told of the columns of a quarantine table."""

    def __init__(
        self, plan: PipelinePlan, keys: Mapping[int, dg.AssetKey], columns: Mapping[dg.AssetKey, Metadata]
    ) -> None:
        self._plan = plan
        self._keys = keys
        self._columns = columns
        self._sums: dict[int, dict[str, ExpectationResult]] = {}
        self._quarantined: dict[int, int] = {}
        self._new_in_quarantine: dict[int, int] = {}
        self._untold: set[int] = set()
        self._told_at: dict[int, float] = {}
        self._failed_since: dict[int, dict[str, int]] = {}

    def take(self, news: "BatchChecks") -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
        """Add the checks of a micro-batch; tell of them when some time has passed, or at once before the run fails."""
        index = news.step.index
        sums = self._sums.setdefault(index, {})
        since = self._failed_since.setdefault(news.load.index, {})
        for result in news.results:
            sums[result.name] = sums[result.name].plus(result) if result.name in sums else result
            name = check_name(news.step.name, result.name)
            since[name] = result.failed if result.of_columns else since.get(name, 0) + result.failed
        self._quarantined[index] = self._quarantined.get(index, 0) + news.quarantined
        self._new_in_quarantine[index] = self._new_in_quarantine.get(index, 0) + news.quarantined
        self._untold.add(index)
        method = news.step.method
        stops = isinstance(method, ValidateMethod) and method.reaction == "fail" and _any_failed(news.results)
        if stops or time.monotonic() - self._told_at.get(index, 0.0) >= REPORT_SECONDS:
            yield from self._tell(news.step)

    def failed_since(self, load: PlannedStep) -> dict[str, int]:
        """Return how many rows of ``load`` failed each check since the last call."""
        return self._failed_since.pop(load.index, {})

    def rest(self) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
        """Tell what has not been told yet."""
        for step in validate_steps(self._plan):
            if step.index in self._untold:
                yield from self._tell(step)

    def results(self) -> Iterator[dg.AssetCheckResult]:
        """Yield the result of every check for the whole run."""
        for step in validate_steps(self._plan):
            yield from self._check_results(step)

    def _check_results(self, step: PlannedStep) -> Iterator[dg.AssetCheckResult]:
        # Also of none: the quarantine table is told of only once it has rows.
        aside = {} if step.quarantine is None else {"quarantined_rows_of_run": self._quarantined.get(step.index, 0)}
        return check_results(step, checked_key(step, self._keys), self._results_of(step), aside)

    def _results_of(self, step: PlannedStep) -> Sequence[ExpectationResult]:
        sums = self._sums.get(step.index, {})
        method = step.method
        assert isinstance(method, ValidateMethod)  # noqa: S101  (the callers look)
        return [sums.get(name, ExpectationResult(name, True, 0, 0)) for name in method.expectation_names()]

    def _tell(self, step: PlannedStep) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
        self._untold.discard(step.index)
        self._told_at[step.index] = time.monotonic()
        rows = self._new_in_quarantine.pop(step.index, 0)
        if rows:
            total = self._quarantined[step.index]
            aside = quarantine_key(self._keys[step.index])
            told = {
                QUARANTINE_OF: step.name,
                "quarantined_rows": rows,
                "quarantined_rows_of_run": total,
                **self._columns.get(aside, {}),
            }
            yield dg.AssetMaterialization(aside, metadata=told)
        for result in self._check_results(step):
            yield dg.AssetCheckEvaluation(
                asset_key=checked_key(step, self._keys),
                check_name=str(result.check_name),
                passed=result.passed,
                severity=result.severity,
                # Dagster has made values of its own of them by now.
                metadata=cast(Mapping[str, dg.MetadataValue[Any]], result.metadata),
            )


def _any_failed(results: Sequence[ExpectationResult]) -> bool:
    return any(not result.passed and result.severity == "error" for result in results)
