"""Configs that could not be loaded, as assets that say why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count

import dagster as dg

from pipeline_assets.asset_keys import key_part
from pipeline_assets.config_loading import BrokenConfig


def broken_assets(broken: Iterable[BrokenConfig]) -> Iterator[dg.AssetSpec]:
    """Yield an asset for each config that could not be loaded; it shows why, and can't be materialized."""
    taken: set[str] = set()
    for config in broken:
        base = key_part(config.name.replace("-", "_"))
        numbered = (f"{base}_{number}" for number in count(2))
        name = next(name for name in chain([base], numbered) if name not in taken)
        taken.add(name)
        yield _broken_asset(name, config)


def _broken_asset(name: str, broken: BrokenConfig) -> dg.AssetSpec:
    reasons = [f"`{issue.pointer or '/'}`: {issue.message}" for issue in broken.error.issues] or [str(broken.error)]
    lines = "\n".join(f"- {reason}" for reason in reasons)
    return dg.AssetSpec(
        dg.AssetKey(["broken_configs", name]),
        group_name="broken_configs",
        description=f"**{broken.file} could not be loaded.**\n\n{lines}",
        kinds={"error"},
        metadata={"file": broken.file},
    )
