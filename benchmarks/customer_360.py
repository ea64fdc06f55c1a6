"""The main job beside a bare script that does the same, and beside a plain Dagster job that does nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.code_location import CodeLocation, job_command, script_conf
from benchmarks.demo_servers import DemoServers
from benchmarks.measured_process import ProcessCost, ProgramFailedError, run_measured
from benchmarks.paired_runs import Report, Spread, rounds
from benchmarks.spark_event_log import SparkWork, event_log_conf, read_event_log
from benchmarks.table_contents import contents
from devstack.dagster_daemon import PROJECT, program
from devstack.delta_tables import row_count
from pipeline_assets.spark.driver_memory import driver_memory

JOB = "customer_360"
TABLE = "join_data_frames"
JOB_COMMAND = job_command(JOB)
EMPTY_COMMAND = ("dagster", "job", "execute", "-m", "benchmarks.empty_assets", "-j", "empty_assets")
SCRIPT_COMMAND = ("python", "benchmarks/bare_customer_360.py", "CONF", "TABLE")

Phases = dict[str, float]


@dataclass
class Runs:
    """The measured runs of one program, in order; ``phases`` says of each where its seconds went."""

    costs: list[ProcessCost] = field(default_factory=list)
    phases: list[Phases] = field(default_factory=list)

    def add(self, cost: ProcessCost, phases: Phases) -> None:
        """Take a run down."""
        self.costs.append(cost)
        self.phases.append(phases)

    @property
    def seconds(self) -> list[float]:
        """The runs' times on the wall."""
        return [cost.seconds for cost in self.costs]

    @property
    def cpu_seconds(self) -> list[float]:
        """What processors spent on the runs."""
        return [cost.cpu_seconds for cost in self.costs]

    @property
    def memory(self) -> list[float]:
        """The Python processes' memory at its peak, in bytes."""
        return [cost.memory for cost in self.costs]

    @property
    def java_memory(self) -> list[float]:
        """The JVMs' memory at its peak, in bytes."""
        return [cost.java_memory for cost in self.costs]

    def phase_spreads(self) -> dict[str, Spread]:
        """Return the seconds of each phase over all runs."""
        return {name: Spread.of(phases.get(name, 0.0) for phases in self.phases) for name in self.phases[0]}


@dataclass
class Comparison:
    """``job``: `customer_360` in Dagster; ``script``: bare PySpark; ``empty``: plain Dagster, where it was run."""

    orders: int
    job: Runs = field(default_factory=Runs)
    script: Runs = field(default_factory=Runs)
    empty: Runs = field(default_factory=Runs)
    job_work: SparkWork | None = None
    script_work: SparkWork | None = None

    def over_script(self) -> Spread:
        """The job's time over the script's, round by round."""
        return Spread.of_ratios(self.job.seconds, self.script.seconds)

    def over_sum(self) -> Spread:
        """The job's time over those of script and empty job together."""
        sums = [script + empty for script, empty in zip(self.script.seconds, self.empty.seconds, strict=True)]
        return Spread.of_ratios(self.job.seconds, sums)

    def memory_over_script(self) -> Spread:
        """The Python processes' memory, the job's over the script's."""
        return Spread.of_ratios(self.job.memory, self.script.memory)


class Workplace(CodeLocation):
    """The demo's location, with what the other programs need and leave."""

    def __init__(self, folder: Path, servers: DemoServers) -> None:
        super().__init__(folder, {**servers.environment, "PIPELINE_ASSETS_CONFIGS": str(PROJECT / "configs")})
        self.script_table = folder / "script_table"
        # What the location sets for S3 when a step needs it, and the heap that it gives a batch run's driver: beside a
        # script that has Spark's 1 GB alone, the job would gain by a line that anybody can write.
        self.conf = script_conf() | {
            "spark.driver.memory": f"{driver_memory() // 2**20}m",
            "spark.hadoop.fs.s3a.endpoint": servers.s3.endpoint,
            "spark.hadoop.fs.s3a.endpoint.region": servers.s3.region,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            "spark.hadoop.fs.s3a.access.key": servers.s3.access_key_id,
            "spark.hadoop.fs.s3a.secret.key": servers.s3.secret_access_key,
            "spark.hadoop.fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
        }

    def run_job(
        self,
        spark_conf: Mapping[str, str] | None = None,
        more: Mapping[str, str] | None = None,
        run_by: Sequence[str] = (),
    ) -> ProcessCost:
        """Run `customer_360` as ``execute`` runs any, into a warehouse without tables."""
        shutil.rmtree(self.warehouse, ignore_errors=True)
        return self.execute(JOB, spark_conf, more, run_by)

    def run_empty(self) -> ProcessCost:
        """Run the job of empty assets by Dagster's command line."""
        return run_measured([program("dagster"), *EMPTY_COMMAND[1:]], self.environment, self.folder)

    def run_script(self, spark_conf: Mapping[str, str] | None = None) -> ProcessCost:
        """Run the bare script, into a folder without table."""
        conf = self.folder / "conf.json"
        conf.write_text(json.dumps({**self.conf, **(spark_conf or {})}))
        shutil.rmtree(self.script_table, ignore_errors=True)
        script = str(PROJECT / "benchmarks" / "bare_customer_360.py")
        return run_measured([sys.executable, script, str(conf), str(self.script_table)], self.environment, self.folder)

    def check_table(self, rows: int) -> None:
        """Hold that the job has written all the rows: what was measured is the work that was meant."""
        _check_rows(self.warehouse / JOB / TABLE, rows)

    def check_tables(self, rows: int) -> None:
        """Hold that both programs have written all the rows."""
        self.check_table(rows)
        _check_rows(self.script_table, rows)

    def compare_tables(self) -> None:
        """Hold that both programs have written the same, whatever the order of the rows."""
        job, script = contents(self.warehouse / JOB / TABLE), contents(self.script_table)
        if job != script:
            raise ProgramFailedError(f"job and script have not written the same rows: {job}, {script}")


def compare(workplace: Workplace, orders: int, pairs: int, *, with_empty: bool, report: Report) -> Comparison:
    """Count the Spark jobs of job and script; then run both and, where asked for, the empty job in ``pairs`` rounds."""
    found = Comparison(orders)
    report(f"{orders:,} orders: counting Spark's jobs")
    logs = workplace.folder / "event_logs"
    workplace.run_job(event_log_conf(logs / "job"))
    workplace.run_script(event_log_conf(logs / "script"))
    job_work, script_work = read_event_log(logs / "job"), read_event_log(logs / "script")
    shutil.rmtree(logs)
    workplace.compare_tables()
    if job_work.memory != script_work.memory:
        raise ProgramFailedError(f"the job has {job_work.memory} bytes for data, the script {script_work.memory}")
    found.job_work, found.script_work = job_work, script_work

    def run_job() -> tuple[Runs, ProcessCost, Phases]:
        cost = workplace.run_job()
        return found.job, cost, job_phases(cost, workplace.dagster_home, JOB)

    def run_script() -> tuple[Runs, ProcessCost, Phases]:
        cost = workplace.run_script()
        return found.script, cost, _script_phases(cost)

    def run_empty() -> tuple[Runs, ProcessCost, Phases]:
        return found.empty, workplace.run_empty(), {}

    programs = [run_job, run_script, *([run_empty] if with_empty else [])]
    for counts, order in rounds(f"{orders:,} orders", programs, pairs, report):
        for run in order:
            runs, cost, phases = run()
            if counts:
                runs.add(cost, phases)
        workplace.check_tables(orders)
    return found


def _check_rows(table: Path, rows: int) -> None:
    written = row_count(table)
    if written != rows:
        raise ProgramFailedError(f"{written} rows were written to {table.name}, {rows} are expected")


def _script_phases(cost: ProcessCost) -> Phases:
    """Return the seconds between the points that the script says it reached."""
    reached: dict[str, float] = json.loads(cost.output.splitlines()[-1])
    return _between({"start": cost.started, **reached, "process gone": cost.ended})


def job_phases(cost: ProcessCost, dagster_home: Path, job: str) -> Phases:
    """Return the seconds between the events that Dagster recorded of the job's last run."""
    import dagster as dg

    reached: dict[str, float] = {"start": cost.started}
    with ExitStack() as closing:
        instance = closing.enter_context(dg.DagsterInstance.from_config(str(dagster_home)))
        (run,) = instance.get_runs(dg.RunsFilter(job_name=job), limit=1)
        for record in instance.all_logs(run.run_id):
            event = record.dagster_event
            if event is None:
                continue
            if event.event_type is dg.DagsterEventType.RUN_START:
                reached["imports, location loaded"] = record.timestamp
            elif event.event_type is dg.DagsterEventType.STEP_START:
                reached[f"before {event.step_key}"] = record.timestamp
            elif event.event_type is dg.DagsterEventType.STEP_SUCCESS:
                reached[str(event.step_key)] = record.timestamp
            elif event.event_type is dg.DagsterEventType.RUN_SUCCESS:
                reached["Spark stopped, run filed as successful"] = record.timestamp
    return _between({**reached, "process gone": cost.ended})


def _between(reached: Mapping[str, float]) -> Phases:
    """Return the seconds that each point took from the one before it."""
    names = list(reached)
    return {name: reached[name] - reached[before] for before, name in pairwise(names)}
