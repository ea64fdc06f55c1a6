"""The code location of a folder of configs, put together. What a ``definitions.py`` calls."""

import dagster as dg

from pipeline_assets.assets import IO_MANAGER_KEY, build_pipelines
from pipeline_assets.broken_assets import broken_assets
from pipeline_assets.config_loading import BrokenConfig, load_folder
from pipeline_assets.errors import ConfigIssue, ConfigurationError
from pipeline_assets.executors import executor_of
from pipeline_assets.links import link_pipelines
from pipeline_assets.planned_folder import PlannedFolder, plan_folder
from pipeline_assets.resources import SparkResource, dataframe_io_manager
from pipeline_assets.sensors import build_sensors
from pipeline_assets.settings import Settings


def build_definitions(settings: Settings, spark: SparkResource | None = None) -> dg.Definitions:
    """Return the code location of the configs in ``settings.configs``. Touches no network, no secret and no Spark.

    ``spark``: what runs and sensors get Spark and secrets from, when not by its defaults.
    Raises ConfigurationError when there is no such folder, or for a setting that is none of its choices.
    """
    settings.check()
    folder = plan_folder(load_folder(settings.configs))
    try:
        found = _definitions(folder, settings, spark)
    except Exception:  # noqa: BLE001  (Dagster has many; what it refuses is told for each config by itself)
        folder = _without_refused(folder, settings)
        found = _definitions(folder, settings, spark)
    for broken in folder.broken:
        dg.get_dagster_logger().error("%s could not be loaded: %s", broken.file, broken.error)
    return found


def _definitions(folder: PlannedFolder, settings: Settings, spark: SparkResource | None = None) -> dg.Definitions:
    pipelines = build_pipelines(folder.plans, link_pipelines(folder.plans), settings)
    spark = spark or SparkResource()
    found = dg.Definitions(
        assets=[*pipelines.assets, *broken_assets(folder.broken)],
        asset_checks=pipelines.checks,
        jobs=pipelines.jobs,
        schedules=pipelines.schedules,
        sensors=build_sensors(folder.plans, settings, vault=spark.vault),
        resources={
            "spark": spark,
            "vault": spark.vault,
            IO_MANAGER_KEY: dataframe_io_manager(pipelines.steps),
        },
        executor=executor_of(settings, {plan.name: plan for plan in folder.plans}),
    )
    # Dagster does this later anyway, and keeps it: an error of one pipeline would then be one of the location.
    found.get_repository_def()
    return found


def _without_refused(folder: PlannedFolder, settings: Settings) -> PlannedFolder:
    """Move the pipelines that Dagster does not take, each looked at alone, to the broken ones."""
    taken, refused = [], []
    for plan in folder.plans:
        try:
            _definitions(PlannedFolder((plan,), ()), settings)
        except Exception as error:  # noqa: BLE001  (whatever it is, the others load)
            issue = ConfigIssue(plan.pipeline.file, "", f"Dagster does not take it: {error}")
            refused.append(BrokenConfig(plan.pipeline.file, plan.name, ConfigurationError.from_issues([issue])))
        else:
            taken.append(plan)
    return PlannedFolder(tuple(taken), (*folder.broken, *refused))
