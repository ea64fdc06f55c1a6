"""The column lineage of every method, against what is written down here. Nothing is read, and no Spark job runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from pipeline_assets import asset_metadata
from pipeline_assets.asset_keys import dataset_key
from pipeline_assets.asset_metadata import ColumnOrigins, column_origins, quarantine_origins
from pipeline_assets.connections import Connections
from pipeline_assets.execution import PipelineRun
from pipeline_assets.partitions import PartitionSlice
from pipeline_assets.settings import Settings
from pipeline_assets.spark.caching import DataFrameCache
from pipeline_assets.spark.lineage import ColumnLineage, column_lineage
from pipeline_assets.steps import METHODS
from pipeline_assets.steps.base import (
    ExtractMethod,
    StepContext,
    StepMethod,
    StreamTraits,
    ValidateMethod,
)
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.streaming_load import StreamingLoad
from pipeline_assets_tests.config_documents import batch, extract_file, load, transform
from pipeline_assets_tests.planning.bench import planned
from pipeline_assets_tests.spark_jobs import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ORDERS = "id BIGINT, customer BIGINT, at TIMESTAMP, amount DOUBLE"
CUSTOMERS = "id BIGINT, name STRING, city STRING"
SAME = {name: f"orders.{name}" for name in ("id", "customer", "at", "amount")}
Lineage = Mapping[str, str]


def extract(method: str, **config: Any) -> dict[str, Any]:
    return {"type": "extract", "method": method, "config": config}


def check(method: str, **config: Any) -> dict[str, Any]:
    return {"type": "validate", "method": method, "config": {"inputDataFrame": "orders", **config}}


@dataclass(frozen=True)
class Case:
    """A step, on ``orders`` and ``customers`` or, for an extract, with the columns of ``reads``; None: no DataFrame."""

    step: dict[str, Any]
    lineage: Lineage | None
    reads: str = ""
    quarantine: Lineage | None = None
    partition: PartitionSlice | None = None


def on_orders(method: str, lineage: Lineage | None, **config: Any) -> Case:
    return Case(transform(method, inputDataFrame="orders", **config), lineage)


def into(method: str, lineage: Lineage, partition: PartitionSlice | None = None, **config: Any) -> Case:
    return Case(load(method, inputDataFrame="orders", **config), lineage, partition=partition)


def aside(method: str, reasons: str, **config: Any) -> Case:
    """A check that puts rows into quarantine for what is in ``columns``."""
    added = {"quarantine_reasons": reasons, "quarantine_run_id": "", "quarantined_at": ""}
    return Case(check(method, onFailure="quarantine", **config), SAME, quarantine={**SAME, **added})


def told(*columns: str, of: str) -> Lineage:
    return {column: f"{of}.{column}" for column in columns}


PARTITION = PartitionSlice("a", None, "partition_key = 'a'")
JOINED = {**SAME, "customers_id": "customers.id", "name": "customers.name", "city": "customers.city"}
RECORD = {"id": "events.value", "kind": "events.value"}
WHERE = ("key", "topic", "partition", "offset", "timestamp")

CASES = [
    Case(extract("fromPostgres", table="shop.orders"), told("id", "amount", of="orders"), "id BIGINT, amount DOUBLE"),
    Case(
        extract("fromPostgres", query="SELECT * FROM orders WHERE amount > 3"),
        told("id", "amount", of="orders"),
        "id BIGINT, amount DOUBLE",
    ),
    Case(
        extract(
            "fromPostgres",
            query='SELECT o.id, upper(c.name) AS who, o.amount * o."Rate" AS paid, count(*) OVER () AS n, zip '
            "FROM orders o JOIN shop.customers c ON c.id = o.customer",
        ),
        # Whose `zip` is, only the database knows.
        {"id": "orders.id", "who": "customers.name", "paid": "orders.Rate orders.amount", "n": ""},
        "id BIGINT, who STRING, paid DOUBLE, n BIGINT, zip STRING",
    ),
    Case(
        extract(
            "fromPostgres",
            query="WITH late AS (SELECT o.id AS number, o.day + 1 AS due FROM orders o) SELECT due, number FROM late",
        ),
        {"due": "orders.day", "number": "orders.id"},
        "due DATE, number BIGINT",
    ),
    Case(
        extract("fromS3", paths=["s3a://data/old/*.parquet", "s3a://data/new"], format="parquet"),
        {"id": "new.id old.id"},
        "id BIGINT",
    ),
    Case(extract("fromFile", path="/data/orders.csv"), {"id": "orders.csv.id"}, "id BIGINT"),
    Case(extract("fromDeltaLake", path="/data/orders"), {"id": "orders.id"}, "id BIGINT"),
    Case(extract("fromDeltaLake", table="sales.orders"), {"id": "orders.id"}, "id BIGINT"),
    Case(extract("fromKafka", topic="events"), RECORD, "id BIGINT, kind STRING"),
    Case(extract("fromKafka", topic="events", format="raw"), {"value": "events.value"}, "value BINARY"),
    Case(
        extract("fromKafka", topics=["events", "others"], includeMetadata=True),
        {"id": "events.value others.value", **{f"kafka_{part}": f"events.{part} others.{part}" for part in WHERE}},
        "id BIGINT, " + ", ".join(f"kafka_{part} STRING" for part in WHERE),
    ),
    on_orders("filterRows", SAME, condition="amount > 3"),
    Case(
        transform("joinDataFrames", inputDataFrames=["orders", "customers"], leftKeys=["customer"], rightKeys=["id"]),
        JOINED,
    ),
    Case(
        transform("joinDataFrames", inputDataFrames=["orders", "customers"], keys=["id"], joinType="inner"),
        {**SAME, "name": "customers.name", "city": "customers.city"},
    ),
    on_orders(
        "aggregateData",
        {"customer": "orders.customer", "day": "orders.at", "paid": "orders.amount", "n": ""},
        groupBy=["customer", "window(at, '1 day').start AS day"],
        aggregations={"paid": "sum(amount)", "n": "count(*)"},
    ),
    on_orders(
        "selectColumns",
        {"number": "orders.id", "net": "orders.amount", "fixed": ""},
        columns=["id AS number", "amount / 1.19 AS net", "1 AS fixed"],
    ),
    on_orders(
        "withColumns",
        {**SAME, "amount": "orders.amount orders.customer", "label": "orders.at"},
        columns={"amount": "amount + customer", "label": "date_format(at, 'yyyy')"},
    ),
    Case(
        transform("sql", query="SELECT o.amount * 2 AS twice, c.name FROM orders o JOIN customers c ON o.id = c.id"),
        {"twice": "orders.amount", "name": "customers.name"},
    ),
    Case(
        transform("union", inputDataFrames=["orders", "customers"], allowMissingColumns=True),
        {**SAME, "id": "customers.id orders.id", "name": "customers.name", "city": "customers.city"},
    ),
    on_orders("dropDuplicates", SAME, columns=["id"]),
    on_orders("withWatermark", SAME, eventTime="at", delay="1 hour"),
    on_orders("dropDuplicatesWithinWatermark", SAME, columns=["id"]),
    on_orders("repartition", SAME, numPartitions=2),
    on_orders("repartitionByColumns", SAME, columns=["customer"]),
    on_orders("coalesce", SAME, numPartitions=1),
    Case(transform("cache", dataFrames=["orders"]), None),
    Case(transform("uncache", dataFrames=["orders"]), None),
    Case(transform("uncacheAll"), None),
    aside("notNull", "orders.amount orders.id", columns=["id", "amount"]),
    Case(check("unique", columns=["id"]), None),
    aside("inRange", "orders.amount", column="amount", min=0),
    aside("inSet", "orders.customer", column="customer", values=[1, 2]),
    aside("matches", "orders.customer", column="customer", pattern="[0-9]+"),
    aside("expression", "orders.amount orders.id", condition="amount > id"),
    Case(check("rowCount", min=1), None),
    Case(check("freshness", column="at", maxAge="1 day"), None),
    Case(check("referential", columns=["customer"], references="customers", referencedColumns=["id"]), None),
    Case(check("schema", columns={"id": "BIGINT"}), None),
    aside("expectations", "orders.amount orders.at", expectations={"paid": "amount > 0", "dated": "at IS NOT NULL"}),
    into("toDeltaLake", SAME, path="/out"),
    into("toDeltaLake", {**SAME, "partition_key": ""}, PARTITION, path="/out"),
    into("toPostgres", SAME, table="orders"),
    into("toPostgres", {**SAME, "partition_key": ""}, PARTITION, table="orders"),
    into("toS3", SAME, path="s3a://data/orders"),
    into("toKafka", {"value": "orders.amount orders.at orders.customer orders.id"}, topic="orders"),
    into(
        "toKafka",
        {"key": "orders.id", "value": "orders.amount orders.at orders.customer orders.id"},
        topic="orders",
        keyColumn="id",
    ),
]


def names(cases: list[Case]) -> list[str]:
    return [f"{number}-{case.step['method']}" for number, case in enumerate(cases)]


def method_of(case: Case) -> type[StepMethod]:
    (found,) = [cls for cls in METHODS if (cls.type, cls.method) == (case.step["type"], case.step["method"])]
    return found


def texts(origins: ColumnOrigins) -> dict[str, str]:
    """The origins as short texts: the last part of the asset's key and the column."""
    return {
        column: " ".join(sorted(f"{dep.asset_key.path[-1]}.{dep.column_name}" for dep in deps))
        for column, deps in origins.items()
    }


class Frames:
    """Makes DataFrames without rows, or streaming ones that are not started."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark = spark
        self._folder = folder

    def make(self, ddl: str, *, streaming: bool = False) -> DataFrame:
        if not streaming:
            return self.spark.createDataFrame([], ddl)
        return self.spark.readStream.schema(ddl).parquet(str(self._folder))

    def run(self, folder: Path, *steps: dict[str, Any], partition: PartitionSlice | None = None) -> PipelineRun:
        context = StepContext(
            pipeline="p",
            run_id="run",
            spark=self.spark,
            settings=Settings(),
            connections=Connections(),
            cache=DataFrameCache(),
            partition=partition,
        )
        return PipelineRun(planned(folder, batch("p", *steps)), context)


@pytest.fixture
def frames(spark: SparkSession, tmp_path: Path) -> Iterator[Frames]:
    before = jobs(spark)
    (tmp_path / "empty").mkdir()
    yield Frames(spark, tmp_path / "empty")
    assert jobs(spark) <= before


def test_every_method_has_a_case() -> None:
    assert {method_of(case) for case in CASES} == set(METHODS)


def lineages(
    case: Case, frames: Frames, folder: Path, *, streaming: bool
) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Return the lineage of the step's DataFrame, or of what it writes, and of what it puts into quarantine."""
    if case.step["type"] == "extract":
        run = frames.run(folder, case.step)
        (step,) = run.plan.steps
        sources = {source: (dataset_key(source),) for source in step.method.sources()}
        frame = frames.make(case.reads, streaming=streaming)
        return texts(column_origins(run, step, frame, {}, {}, sources)), None
    run = frames.run(
        folder,
        extract_file("orders", "/orders.csv", cache=True),
        extract_file("customers", "/customers.csv"),
        case.step,
        partition=case.partition,
    )
    step = run.plan.steps[2]
    made = dict(enumerate(frames.make(ddl, streaming=streaming) for ddl in (ORDERS, CUSTOMERS)))
    inputs = {index: made[index] for index in step.inputs}
    upstream = {index: dg.AssetKey(["p", run.plan.steps[index].name]) for index in step.inputs}
    if step.has_dataframe:
        found = run.build(step, inputs)
    elif step.method.type == "load":
        found = run.written(step, inputs[step.inputs[0]])
    else:
        return None, None
    quarantine = None if step.quarantine is None else texts(quarantine_origins(run, step, inputs, upstream))
    return texts(column_origins(run, step, found, inputs, upstream)), quarantine


STREAMING_ONLY = "dropDuplicatesWithinWatermark"
BATCH_CASES = [case for case in CASES if case.step["method"] != STREAMING_ONLY]


@pytest.mark.parametrize("case", BATCH_CASES, ids=names(BATCH_CASES))
def test_in_a_batch(case: Case, frames: Frames, tmp_path: Path) -> None:
    assert lineages(case, frames, tmp_path, streaming=False) == (case.lineage, case.quarantine)


def goes_on_streams(case: Case) -> bool:
    if case.partition is not None or case.lineage is None:
        return False
    cls = method_of(case)
    if issubclass(cls, ExtractMethod):
        return cls.extract_stream is not ExtractMethod.extract_stream
    place = {"checkpointLocation": "/checkpoint"} if issubclass(cls, StreamingLoad) else {}
    method = cls.model_validate({**case.step["config"], **place})
    inputs = (True,) if issubclass(cls, ValidateMethod) else (True, True)
    return method.stream_problem(StreamTraits(inputs, True, frozenset({"update"}))) is None


STREAM_CASES = [case for case in CASES if goes_on_streams(case)]


@pytest.mark.parametrize("case", STREAM_CASES, ids=names(STREAM_CASES))
def test_in_a_stream(case: Case, frames: Frames, tmp_path: Path) -> None:
    assert lineages(case, frames, tmp_path, streaming=True) == (case.lineage, case.quarantine)


def test_dead_letters() -> None:
    method = FromKafka.model_validate({"topic": "events"})
    (topic,) = method.sources()
    parts = ("topic", "partition", "offset", "timestamp", "key", "value")
    expected = {**{part: ((topic, part),) for part in parts}}
    expected |= {"value_text": ((topic, "value"),), "reason": ((topic, "value"),)}
    assert method.dead_letter_sources() == expected


def test_a_source_without_an_asset_is_left_out(frames: Frames, tmp_path: Path) -> None:
    run = frames.run(tmp_path, extract_file("orders", "/orders.csv"))
    assert column_origins(run, run.plan.steps[0], frames.make(ORDERS), {}, {}, {}) == {}


def test_a_query_on_views_leaves_the_real_ones_registered(frames: Frames, tmp_path: Path) -> None:
    run = frames.run(
        tmp_path, extract_file("orders", "/orders.csv"), transform("sql", query="SELECT amount FROM orders")
    )
    step = run.plan.steps[1]
    orders = frames.make(ORDERS)
    frame = run.build(step, {0: orders})
    column_origins(run, step, frame, {0: orders}, {0: dg.AssetKey(["p", "orders"])})
    assert frames.spark.table("orders").schema == orders.schema
    assert frames.spark.table("orders").sameSemantics(orders)


@pytest.mark.parametrize("spark_settings", ["connect"], indirect=True)
def test_views_that_other_processes_of_a_run_read_stay_as_they_are(
    any_spark: SparkSession, spark_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[int] = []

    def looked_at(*arguments: Any) -> ColumnLineage | None:
        found = column_lineage(*arguments)
        during.append(any_spark.table("orders").count())
        return found

    monkeypatch.setattr(asset_metadata, "column_lineage", looked_at)
    query = transform("sql", query="SELECT id FROM orders")
    plan = planned(tmp_path, batch("p", extract_file("orders", "/orders.csv"), query))
    context = StepContext("p", "run", any_spark, spark_settings, Connections(), DataFrameCache())
    run = PipelineRun(plan, context, in_one_process=False)
    inputs = {0: any_spark.range(3)}
    step = plan.steps[1]
    found = run.build(step, inputs)
    assert texts(column_origins(run, step, found, inputs, {0: dg.AssetKey(["p", "orders"])})) == {"id": "orders.id"}
    assert during == [3]
    assert found.count() == 3


def test_what_is_kept_of_a_query_stays_kept(any_spark: SparkSession, spark_settings: Settings, tmp_path: Path) -> None:
    query = transform("sql", query="SELECT uuid() AS key, id FROM orders", registerAs="keyed", cache=True)
    after = transform("sql", query="SELECT count(*) AS n FROM keyed, orders")
    plan = planned(tmp_path, batch("p", extract_file("orders", "/orders.csv"), query, after))
    run = PipelineRun(plan, StepContext("p", "run", any_spark, spark_settings, Connections(), DataFrameCache()))
    assets = {index: dg.AssetKey(["p", str(index)]) for index in range(2)}
    inputs: dict[int, DataFrame] = {0: any_spark.range(3)}
    run.register(plan.steps[0], inputs[0])
    keyed = run.build(plan.steps[1], inputs)
    run.register(plan.steps[1], keyed)
    first = keyed.collect()
    assert set(column_origins(run, plan.steps[1], keyed, inputs, assets)) == {"key", "id"}
    inputs[1] = keyed
    counted = run.build(plan.steps[2], inputs)
    assert set(column_origins(run, plan.steps[2], counted, inputs, assets)) == {"n"}
    assert keyed.collect() == first
    run.context.cache.release()


def test_a_query_of_a_function_that_a_method_has_registered(
    any_spark: SparkSession, spark_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    any_spark.udf.register("known_here", lambda number: number, "bigint")
    plan = planned(
        tmp_path,
        batch("p", extract_file("orders", "/o.csv"), transform("sql", query="SELECT known_here(id) AS x FROM orders")),
    )
    run = PipelineRun(plan, StepContext("p", "run", any_spark, spark_settings, Connections(), DataFrameCache()))
    inputs = {0: any_spark.range(3)}
    found = run.build(plan.steps[1], inputs)
    with caplog.at_level("INFO"):
        origins = texts(column_origins(run, plan.steps[1], found, inputs, {0: dg.AssetKey(["p", "orders"])}))
    # A new session on a Connect server does not know it: that is no reason to fail.
    is_known = spark_settings.spark_remote is None
    assert origins == ({"x": "orders.id"} if is_known else {})
    assert ("no column lineage" in caplog.text) is not is_known
