"""When a failed step is tried again: from the failure and what has been tried to a wait. Pure: no clock, no Dagster."""

from __future__ import annotations

from collections.abc import Callable

from pipeline_assets.config import Retry
from pipeline_assets.transience import transience_of


def seconds_before_retry(
    retry: Retry | None, retries: int, elapsed: float, failure: BaseException, random: Callable[[], float]
) -> float | None:
    """Return for how long to wait before a failed step is tried again; None when it has failed for good.

    ``retry``: the step's settings (``Pipeline.retry_of``); without any, nothing is tried again. ``retries``: how many
    retries there have been. ``elapsed``: seconds since the first try began, waits
    included. ``failure``: what ended the last try. ``random`` returns numbers from 0 to 1.

    The wait is drawn from 0 to a ceiling that doubles with each retry (full jitter), so that what failed together does
    not come back together; it is never shorter than the other side asked for. A wait that would end after the time
    budget is none: the step fails now and not later.
    """
    transience = transience_of(failure)
    if retry is None or transience is None or transience.kind not in retry.on or retries >= retry.max_retries:
        return None
    ceiling = min(retry.max_delay, retry.delay * 2.0 ** min(retries, 60))
    wait = max(random() * ceiling, transience.retry_after or 0.0)
    if retry.time_budget is not None and elapsed + wait > retry.time_budget:
        return None
    return wait
