"""The step methods: one class each, listed here."""

from __future__ import annotations

from importlib.metadata import entry_points

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.base import StepMethod
from pipeline_assets.steps.extract_delta import FromDeltaLake
from pipeline_assets.steps.extract_files import FromFile, FromS3
from pipeline_assets.steps.extract_kafka import FromKafka
from pipeline_assets.steps.extract_postgres import FromPostgres
from pipeline_assets.steps.join import JoinDataFrames
from pipeline_assets.steps.load_delta import ToDeltaLake
from pipeline_assets.steps.load_files import ToS3
from pipeline_assets.steps.load_kafka import ToKafka
from pipeline_assets.steps.load_postgres import ToPostgres
from pipeline_assets.steps.transform import (
    AggregateData,
    Cache,
    Coalesce,
    DropDuplicates,
    DropDuplicatesWithinWatermark,
    FilterRows,
    Repartition,
    RepartitionByColumns,
    SelectColumns,
    Sql,
    Uncache,
    UncacheAll,
    Union,
    WithColumns,
    WithWatermark,
)
from pipeline_assets.steps.validate import (
    Expectations,
    ValidateExpression,
    ValidateFreshness,
    ValidateInRange,
    ValidateInSet,
    ValidateMatches,
    ValidateNotNull,
    ValidateReferential,
    ValidateRowCount,
    ValidateSchema,
    ValidateUnique,
)

ENTRY_POINT_GROUP = "pipeline_assets.steps"

METHODS: tuple[type[StepMethod], ...] = (
    FromPostgres,
    FromS3,
    FromFile,
    FromDeltaLake,
    FromKafka,
    FilterRows,
    JoinDataFrames,
    AggregateData,
    SelectColumns,
    WithColumns,
    Sql,
    Union,
    DropDuplicates,
    WithWatermark,
    DropDuplicatesWithinWatermark,
    Repartition,
    RepartitionByColumns,
    Coalesce,
    Cache,
    Uncache,
    UncacheAll,
    ValidateNotNull,
    ValidateUnique,
    ValidateInRange,
    ValidateInSet,
    ValidateMatches,
    ValidateExpression,
    ValidateRowCount,
    ValidateFreshness,
    ValidateReferential,
    ValidateSchema,
    Expectations,
    ToDeltaLake,
    ToPostgres,
    ToS3,
    ToKafka,
)


def method_registry() -> dict[tuple[str, str], type[StepMethod]]:
    """Return every method there is, by (type, method): those above and those that other packages bring.

    Raises ConfigurationError when one that is brought is no method, or is called like another.
    """
    registry: dict[tuple[str, str], type[StepMethod]] = {(cls.type, cls.method): cls for cls in METHODS}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        where = f"entry point {entry.name!r} ({entry.value}) of group {ENTRY_POINT_GROUP}"
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, StepMethod)):
            raise ConfigurationError(f"{where} is not a class derived from StepMethod")
        key = (cls.type, cls.method)
        if key in registry:
            taken = registry[key]
            raise ConfigurationError(
                f"{where} brings the {cls.type} method {cls.method!r}, "
                f"which {taken.__module__}.{taken.__qualname__} is already"
            )
        registry[key] = cls
    return registry
