"""Five claims of what tuning by hand brings, each the same pipeline with its tuning and without.

A config in ``claims/`` is the tuned pipeline; ``without_tuning`` takes out what tunes it, and nothing else. It is run
in three variants: ``plain`` (without tuning, and not optimized), ``tuned`` (as it is, and not optimized) and
``optimized`` (without tuning, as this project runs it when nothing is said), each by Dagster's command line in a
process of its own. All of that is done once more without Spark's adaptive execution, for which such tuning was made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.code_location import CodeLocation, job_command
from benchmarks.customer_360 import Phases, Runs, job_phases
from benchmarks.measured_process import ProcessCost, ProgramFailedError
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.table_contents import contents, file_count
from benchmarks.tpch import environment
from devstack.dagster_daemon import PROJECT
from pipeline_assets.steps import ENTRY_POINT_GROUP

CLAIMS = PROJECT / "benchmarks" / "claims"
VARIANTS = ("plain", "tuned", "optimized")
TUNING_METHODS = ("cache", "uncache", "uncacheAll", "repartition", "repartitionByColumns", "coalesce")
TUNING_KEYS = ("cache", "cacheStorageLevel")
TUNING_COMMAND = job_command("CLAIM")
Config = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """The pipeline in ``claims/<name>.json`` is ``times`` as fast as without its tuning, it is said.

    ``conf``: of Spark, for all variants.
    """

    name: str
    what: str
    times: float
    conf: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> Config:
        """Return the tuned pipeline."""
        config: Config = json.loads((CLAIMS / f"{self.name}.json").read_text(encoding="utf-8"))
        return config


FIVE_CLAIMS = (
    Claim("cached_dimension", "a dimension that several joins take is cached", 3.8),
    Claim("iterative_training", "the input of an iterative training is cached", 6.7),
    Claim("partitioned_join", "both sides of a large join are partitioned by its keys", 2.8),
    Claim("partitioned_group_by", "the input of a group-by is partitioned by its columns", 2.6),
    Claim(
        "coalesced_output",
        "2,000 partitions of output are coalesced to 50",
        40.0,
        # As sessions are made for clusters: with Spark's 200 there would be no 2,000 files to begin with.
        {"spark.sql.shuffle.partitions": "2000"},
    ),
)


def without_tuning(config: Config) -> Config:
    """Return ``config`` without the steps and keys by which people tune: nothing is cached, repartitioned or coalesced.

    Who named the DataFrame of a step that is left out gets the one that the step worked on.
    """
    steps: list[Config] = []
    stands_for: dict[str, str] = {}
    primary = ""
    for step in config["steps"]:
        options = step["config"]
        name = options.get("registerAs") or step.get("name", "")
        if step["method"] in TUNING_METHODS:
            source = options.get("inputDataFrame", primary)
            stands_for[name] = stands_for.get(source, source)
            continue
        kept = {key: value for key, value in options.items() if key not in TUNING_KEYS}
        if "inputDataFrame" in kept:
            kept["inputDataFrame"] = stands_for.get(kept["inputDataFrame"], kept["inputDataFrame"])
        if "inputDataFrames" in kept:
            kept["inputDataFrames"] = [stands_for.get(each, each) for each in kept["inputDataFrames"]]
        steps.append({**step, "config": kept})
        if step["type"] in ("extract", "transform"):
            primary = name
    return {**config, "steps": steps}


def variant(config: Config, name: str) -> Config:
    """Return ``config`` as the variant of that name."""
    if name == "tuned":
        return {**config, "optimize": False}
    plain = without_tuning(config)
    return {**plain, "optimize": False} if name == "plain" else plain


@dataclass
class ClaimComparison:
    """The measured runs of each variant of a claim's pipeline, in order, with Spark's adaptive execution or without.

    ``files``: how many each variant wrote in a run.
    """

    claim: Claim
    scale: float
    adaptive: bool
    runs: dict[str, Runs] = field(default_factory=lambda: {name: Runs() for name in VARIANTS})
    files: dict[str, int] = field(default_factory=dict)

    def ratio(self, above: str, below: str) -> Spread:
        """The wall time of one variant over that of another, round by round."""
        return Spread.of_ratios(self.runs[above].seconds, self.runs[below].seconds)

    def work(self, name: str) -> list[float]:
        """The seconds of the steps of a variant's runs, without the first, which starts Spark."""
        return [work_seconds(phases, self.claim.name) for phases in self.runs[name].phases]

    def work_ratio(self, above: str, below: str) -> Spread:
        """The same without start-up."""
        return Spread.of_ratios(self.work(above), self.work(below))


def work_seconds(phases: Phases, job: str) -> float:
    """Return what the steps of a run took, without the first: that one is an extract, which waits for Spark's start."""
    _, *others = (name for name in phases if name.startswith(f"{job}__"))
    return sum(phases[name] for name in others)


class ClaimPlace(CodeLocation):
    """A location of one variant of one claim at a time, on TPC-H's tables in ``data``."""

    def __init__(self, folder: Path, data: Path, scale: float) -> None:
        site = folder / "site"
        install_training(site)
        python_path = os.pathsep.join([str(PROJECT), str(site)])
        super().__init__(folder, {**environment(data, scale), "PYTHONPATH": python_path})

    def run(self, claim: Claim, name: str, *, adaptive: bool) -> tuple[ProcessCost, Phases]:
        """Run a variant of the claim's pipeline, into a folder without tables."""
        conf = {**claim.conf, "spark.sql.adaptive.enabled": str(adaptive).lower()}
        tables = self.tables(name)
        shutil.rmtree(tables, ignore_errors=True)
        for of_before in self.configs.iterdir():
            of_before.unlink()
        self.write(variant(claim.config(), name))
        cost = self.execute(claim.name, conf, {"PIPELINE_ASSETS_WAREHOUSE": str(tables), "RESULTS": str(tables)})
        return cost, job_phases(cost, self.dagster_home, claim.name)

    def tables(self, name: str) -> Path:
        """Return the folder of the Delta tables that a variant's last run wrote."""
        return self.folder / "tables" / name


def compare_claim(
    place: ClaimPlace, claim: Claim, scale: float, count: int, report: Report, *, adaptive: bool = True
) -> ClaimComparison:
    """Run the variants in ``count`` rounds, and hold that they give the same."""
    what = f"{claim.name}{'' if adaptive else ', without adaptive execution'}"
    found = ClaimComparison(claim, scale, adaptive)
    for counts, order in rounds(what, VARIANTS, count, report):
        for name in order:
            cost, phases = place.run(claim, name, adaptive=adaptive)
            if counts:
                found.runs[name].add(cost, phases)
        wanted = contents(place.tables("plain"))
        for name in VARIANTS[1:]:
            if contents(place.tables(name)) != wanted:
                raise ProgramFailedError(f"{claim.name}: {name} does not give the rows of plain")
    found.files = {name: file_count(place.tables(name)) for name in VARIANTS}
    return found


def install_training(site: Path) -> None:
    """Make ``site``, a folder for Python's path, tell of the step method that trains, as a package of its own does."""
    information = site / "pipeline_assets_benchmarks-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: pipeline_assets_benchmarks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\ntrainClassifiers = benchmarks.training_method:TrainClassifiers\n"
    )
