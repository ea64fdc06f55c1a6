"""Loading a code location of JSON configs beside loading the same assets written by hand."""

from __future__ import annotations

import compileall
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.code_location import inherited
from benchmarks.measured_process import ProgramFailedError, run_measured
from benchmarks.paired_runs import Report, Spread, rounds
from devstack.dagster_daemon import PROJECT

_MODULE = '''"""Pipeline {name}, written by hand."""

import dagster as dg

POSTGRES = dg.AssetSpec(
    ["postgres", "default", "public", "customers_{number}"], group_name="sources", kinds={{"postgres"}}
)
S3 = dg.AssetSpec({s3_key!r}, group_name="sources", kinds={{"s3"}})


@dg.asset(
    key=["{name}", "customers"],
    deps=[POSTGRES],
    group_name="{name}",
    kinds={{"postgres", "spark"}},
    required_resource_keys={{"spark"}},
    io_manager_key="dataframes",
)
def customers(context):
    """Customers of PostgreSQL."""
    return context.resources.spark.table("customers_{number}")


@dg.asset(
    key=["{name}", "orders"],
    deps=[S3],
    group_name="{name}",
    kinds={{"s3", "spark"}},
    required_resource_keys={{"spark"}},
    io_manager_key="dataframes",
)
def orders(context):
    """Orders of S3."""
    return context.resources.spark.parquet("orders_{number}")


@dg.asset(
    key=["{name}", "join_data_frames"],
    ins={{
        "customers": dg.AssetIn(["{name}", "customers"], input_manager_key="dataframes"),
        "orders": dg.AssetIn(["{name}", "orders"], input_manager_key="dataframes"),
    }},
    group_name="{name}",
    kinds={{"spark"}},
    required_resource_keys={{"spark"}},
    io_manager_key="dataframes",
)
def join_data_frames(context, customers, orders):
    """Orders beside their customers."""
    return customers.join(orders, customers.id == orders.customer_id)


@dg.asset(
    key=["{name}", "filter_rows"],
    ins={{"joined": dg.AssetIn(["{name}", "join_data_frames"], input_manager_key="dataframes")}},
    group_name="{name}",
    kinds={{"spark"}},
    required_resource_keys={{"spark"}},
    io_manager_key="dataframes",
)
def filter_rows(context, joined):
    """Orders of more than ten dollars."""
    return joined.where("amount > 10")


@dg.asset(
    key=["{name}", "aggregate_data"],
    ins={{"filtered": dg.AssetIn(["{name}", "filter_rows"], input_manager_key="dataframes")}},
    group_name="{name}",
    kinds={{"deltalake", "spark"}},
    required_resource_keys={{"spark"}},
    io_manager_key="dataframes",
)
def aggregate_data(context, filtered):
    """What each customer spent."""
    return filtered.groupBy("customer_id").sum("amount")


ASSETS = [POSTGRES, S3, customers, orders, join_data_frames, filter_rows, aggregate_data]
JOB = dg.define_asset_job(
    "{name}",
    selection=dg.AssetSelection.assets(customers, orders, join_data_frames, filter_rows, aggregate_data),
)
'''

_DEFINITIONS = '''"""A code location of {count} pipelines, written by hand."""

import dagster as dg

{imports}

PIPELINES = [{modules}]

defs = dg.Definitions(
    assets=[asset for pipeline in PIPELINES for asset in pipeline.ASSETS],
    jobs=[pipeline.JOB for pipeline in PIPELINES],
    resources={{
        "spark": dg.ResourceDefinition.none_resource(),
        "dataframes": dg.IOManagerDefinition.hardcoded_io_manager(dg.InMemoryIOManager()),
    }},
    executor=dg.in_process_executor,
)
'''


@dataclass(frozen=True)
class Load:
    """A measured load: seconds of the whole process, and what the process told of itself."""

    process: float
    memory: int
    told: dict[str, Any]

    @property
    def location(self) -> float:
        """Seconds without the start of Python and `import dagster`."""
        return float(self.told["define"] + self.told["resolve"])


@dataclass
class LoadingComparison:
    """Loading ``count`` pipelines: from configs, and written by hand."""

    count: int
    configs: list[Load] = field(default_factory=list)
    by_hand: list[Load] = field(default_factory=list)

    def process_ratio(self) -> Spread:
        """Whole processes, configs over hand-written."""
        return Spread.of_ratios([load.process for load in self.configs], [load.process for load in self.by_hand])

    def location_ratio(self) -> Spread:
        """The same without what Python and `import dagster` take."""
        return Spread.of_ratios([load.location for load in self.configs], [load.location for load in self.by_hand])

    def memory_ratio(self) -> Spread:
        """The processes' memory at its peak, configs over hand-written."""
        return Spread.of_ratios([load.memory for load in self.configs], [load.memory for load in self.by_hand])

    @property
    def pyspark_imported(self) -> bool:
        """Whether a load from configs has imported PySpark."""
        return any(load.told["pyspark_imported"] for load in self.configs)


def load_configs(folder: Path, count: int, times: int) -> list[Load]:
    """Load ``count`` pipelines from configs ``times`` times, after a first load that does not count."""
    configs = folder / f"configs_{count}"
    _write_configs(configs, count)
    loads = [
        _load(folder, {"PIPELINE_ASSETS_CONFIGS": str(configs)}, "pipeline_assets.definitions")
        for _ in range(times + 1)
    ]
    return loads[1:]


def compare_loading(folder: Path, count: int, pairs: int, report: Report) -> LoadingComparison:
    """Load ``count`` pipelines both ways in ``pairs`` rounds, and hold that they are the same assets."""
    configs, by_hand = folder / f"configs_{count}", folder / f"by_hand_{count}"
    _write_configs(configs, count)
    _write_modules(by_hand, count)
    found = LoadingComparison(count)
    ours = (found.configs, "pipeline_assets.definitions", {"PIPELINE_ASSETS_CONFIGS": str(configs)})
    plain = (found.by_hand, "plain_location.definitions", {"PYTHONPATH": f"{PROJECT}{os.pathsep}{by_hand}"})
    for counts, order in rounds(f"loading {count:,} configs", (ours, plain), pairs, report):
        described: list[Load] = []
        for loads, module, environment in order:
            load = _load(folder, environment, module, *(() if counts else ("describe",)))
            (loads if counts else described).append(load)
        for key in ("assets", "jobs", "graph") if described else ():
            one, other = (load.told[key] for load in described)
            if one != other:
                raise ProgramFailedError(f"the locations differ in {key}: {one}, {other}")
    return found


@dataclass(frozen=True)
class CostOfOneMore:
    """What each further pipeline takes between two sizes: seconds, and bytes at the peak."""

    seconds: float
    memory: float


def cost_of_one_more(fewer: LoadingComparison, more: LoadingComparison) -> tuple[CostOfOneMore, CostOfOneMore]:
    """Return what each further pipeline takes between two sizes: from configs, and written by hand."""
    count = more.count - fewer.count
    configs, by_hand = (
        CostOfOneMore(
            (median(load.location for load in many) - median(load.location for load in few)) / count,
            (median(load.memory for load in many) - median(load.memory for load in few)) / count,
        )
        for few, many in ((fewer.configs, more.configs), (fewer.by_hand, more.by_hand))
    )
    return configs, by_hand


def _load(folder: Path, environment: dict[str, str], *arguments: str) -> Load:
    command = [sys.executable, "-m", "benchmarks.load_once", *arguments]
    cost = run_measured(command, {**inherited(), **environment}, folder)
    return Load(cost.seconds, cost.memory, json.loads(cost.output.splitlines()[-1]))


def _write_configs(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        steps = [
            {
                "type": "extract",
                "method": "fromPostgres",
                "config": {"table": f"customers_{number:04}", "registerAs": "customers", "cache": True},
            },
            {
                "type": "extract",
                "method": "fromS3",
                "config": {"path": f"s3a://data/orders_{number:04}/*.parquet", "registerAs": "orders"},
            },
            {
                "type": "transform",
                "method": "joinDataFrames",
                "config": {
                    "inputDataFrames": ["customers", "orders"],
                    "joinType": "inner",
                    "leftKeys": ["id"],
                    "rightKeys": ["customer_id"],
                },
            },
            {"type": "transform", "method": "filterRows", "config": {"condition": "amount > 10"}},
            {
                "type": "transform",
                "method": "aggregateData",
                "config": {"groupBy": ["customer_id"], "aggregations": {"spent": "sum(amount)"}},
            },
        ]
        document = {"name": f"pipeline-{number:04}", "mode": "batch", "steps": steps}
        (folder / f"pipeline-{number:04}.json").write_text(json.dumps(document, indent=2))


def _write_modules(folder: Path, count: int) -> None:
    """Write a module per pipeline, compiled as Python leaves it after a first import."""
    package = folder / "plain_location"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    names = [f"pipeline_{number:04}" for number in range(count)]
    for number, name in enumerate(names):
        s3_key = _s3_key(f"s3a://data/orders_{number:04}/*.parquet")
        text = _MODULE.format(name=name, number=f"{number:04}", s3_key=s3_key)
        (package / f"{name}.py").write_text(text)
    imports = "\n".join(f"from plain_location import {name}" for name in names)
    text = _DEFINITIONS.format(count=count, imports=imports, modules=", ".join(names))
    (package / "definitions.py").write_text(text)
    compileall.compile_dir(package, quiet=2)


def _s3_key(path: str) -> list[str]:
    """Return the key under which the location knows the files of ``path``."""
    from pipeline_assets.asset_keys import dataset_key
    from pipeline_assets.steps.paths import files_dataset

    return list(dataset_key(files_dataset(path)).path)
