"""What ``dagster dev``, the daemon and run workers load. Imported by nothing of ours."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline_assets.code_location import build_definitions
from pipeline_assets.settings import Settings


@contextmanager
def _made_to_stay() -> Iterator[None]:
    """Keep the garbage collector off what is made here and stays as long as the process: the code location.

    It would look through all of it again and again, while it is made and later: a quarter of the time that 1,000
    configs take to load, and more than that for more of them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


with _made_to_stay():
    defs = build_definitions(Settings.from_environment())
