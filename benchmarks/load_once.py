"""Load one code location in a fresh process, and say in JSON how long it took and what was in it.

``python -m benchmarks.load_once MODULE [describe]``: the module's ``defs`` are resolved as Dagster does it
when it loads a location. ``describe`` adds what they are, for a comparison.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from typing import Any


def main(module: str, describe: str = "") -> None:
    """Load ``module`` and print what it took."""
    import dagster as dg

    dagster_imported = time.perf_counter()
    defs: dg.Definitions = importlib.import_module(module).defs
    defined = time.perf_counter()
    repository: Any = defs.get_repository_def()
    repository.load_all_definitions()
    resolved = time.perf_counter()
    told: dict[str, Any] = {
        "define": defined - dagster_imported,
        "resolve": resolved - defined,
        "pyspark_imported": "pyspark" in sys.modules,
    }
    if describe:
        graph = repository.asset_graph
        told |= {
            "assets": len(graph.get_all_asset_keys()),
            "jobs": len(repository.get_all_jobs()),
            "graph": _digest(graph),
        }
    print(json.dumps(told))


def _digest(graph: Any) -> str:
    """Return the same text for locations whose assets have the same keys, dependencies, groups and kinds."""
    facts = sorted(
        [
            node.key.to_user_string(),
            sorted(key.to_user_string() for key in node.parent_keys),
            node.group_name,
            sorted(tag for tag in node.tags if tag.startswith("dagster/kind/")),
        ]
        for node in (graph.get(key) for key in graph.get_all_asset_keys())
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(*sys.argv[1:])
