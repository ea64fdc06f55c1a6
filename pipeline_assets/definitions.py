"""The composition root: what ``dagster dev``, the daemon and run workers load. Imported by nothing of ours."""

import dagster as dg

from pipeline_assets.assets import broken_asset, build_pipelines
from pipeline_assets.config import load_folder
from pipeline_assets.plan import link_pipelines, plan_folder
from pipeline_assets.resources import SparkResource, dataframe_io_manager
from pipeline_assets.sensors import build_sensors
from pipeline_assets.settings import Settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """Return the code location of the configs in ``settings.configs``. Touches no network, no secret and no Spark.

    Raises ConfigurationError when there is no such folder, or for an executor other than in_process or multiprocess.
    """
    folder = plan_folder(load_folder(settings.configs))
    for broken in folder.broken:
        dg.get_dagster_logger().error("%s could not be loaded: %s", broken.file, broken.error)
    pipelines = build_pipelines(folder.plans, link_pipelines(folder.plans), settings)
    return dg.Definitions(
        assets=[*pipelines.assets, *(broken_asset(broken) for broken in folder.broken)],
        asset_checks=pipelines.checks,
        jobs=pipelines.jobs,
        schedules=pipelines.schedules,
        sensors=build_sensors(folder.plans, settings),
        resources={"spark": SparkResource(), "dataframe_io_manager": dataframe_io_manager(pipelines.steps)},
        executor=dg.multiprocess_executor if settings.executor == "multiprocess" else dg.in_process_executor,
    )


defs = build_definitions(Settings.from_environment())
