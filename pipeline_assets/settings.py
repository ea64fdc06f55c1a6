"""What the environment says about where things are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.uris import normalize_uri, root_of, unmistakable, without_login


def cache_folder() -> Path:
    """Return the user's folder for what is downloaded or made once. It may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipeline-assets"


def _is_connect_address(remote: str) -> bool:
    """Whether PySpark takes ``remote``, which it would quote in its error, with a token where there is one."""
    try:
        parts = urlparse(f"http{remote.removeprefix('sc')}")
        is_server = remote.startswith("sc://") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or a bracket that is not closed
        return False
    parameters = parts.params.rstrip(";").split(";") if parts.params else []
    return is_server and parts.path in ("", "/") and all(each.count("=") == 1 for each in parameters)


@dataclass(frozen=True)
class Settings:
    """Where configs, tables and Spark are; read from the environment once, when the location is loaded.

    ``path_prefix`` is put before absolute paths that have no scheme, so that ``/data/purchases`` can live in a
    sandbox. ``spark_remote`` is a Spark Connect address (``sc://host:port``) and wins over ``spark_master``.
    ``audit_file`` is where each access to a secret is noted, ``metrics`` the folder where runs record theirs.
    ``metrics_listen`` is the ``host:port`` where a running stream answers Prometheus, ``pushgateway`` the URL of the
    Pushgateway that batch runs push to. ``log_format`` is ``text`` or ``json``; ``log_level`` that of this package and
    of Spark's JVM. ``reports`` is the folder where runs write a report of themselves, ``reports_url`` where that folder
    is served.
    """

    configs: Path = Path("configs")
    warehouse: str = "warehouse"
    path_prefix: str = ""
    spark_remote: str | None = None
    spark_master: str | None = None
    executor: str = "in_process"
    audit_file: Path | None = None
    metrics: Path | None = None
    metrics_listen: str | None = None
    pushgateway: str | None = None
    log_format: str = "text"
    log_level: str | None = None
    reports: Path | None = None
    reports_url: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read PIPELINE_ASSETS_CONFIGS, _WAREHOUSE, _PATH_PREFIX, _EXECUTOR, _AUDIT_FILE, _METRICS, _METRICS_LISTEN,
        _PUSHGATEWAY, _LOG_FORMAT, _LOG_LEVEL, _REPORTS, _REPORTS_URL, and SPARK_REMOTE, SPARK_MASTER.
        """
        env = os.environ if environment is None else environment
        return cls(
            configs=Path(env.get("PIPELINE_ASSETS_CONFIGS") or "configs"),
            warehouse=env.get("PIPELINE_ASSETS_WAREHOUSE") or "warehouse",
            path_prefix=env.get("PIPELINE_ASSETS_PATH_PREFIX") or "",
            spark_remote=env.get("SPARK_REMOTE") or None,
            spark_master=env.get("SPARK_MASTER") or None,
            executor=env.get("PIPELINE_ASSETS_EXECUTOR") or "in_process",
            audit_file=Path(env["PIPELINE_ASSETS_AUDIT_FILE"]) if env.get("PIPELINE_ASSETS_AUDIT_FILE") else None,
            metrics=Path(env["PIPELINE_ASSETS_METRICS"]) if env.get("PIPELINE_ASSETS_METRICS") else None,
            metrics_listen=env.get("PIPELINE_ASSETS_METRICS_LISTEN") or None,
            pushgateway=env.get("PIPELINE_ASSETS_PUSHGATEWAY") or None,
            log_format=env.get("PIPELINE_ASSETS_LOG_FORMAT") or "text",
            log_level=env.get("PIPELINE_ASSETS_LOG_LEVEL") or None,
            reports=Path(env["PIPELINE_ASSETS_REPORTS"]) if env.get("PIPELINE_ASSETS_REPORTS") else None,
            reports_url=env.get("PIPELINE_ASSETS_REPORTS_URL") or None,
        )

    @property
    def in_one_process(self) -> bool:
        """Whether all steps of a run are in its one process."""
        return self.executor == "in_process"

    def check(self) -> None:
        """Raise ConfigurationError for a variable that is none of its choices, no address where it has to be one, or a
        path with credentials.
        """
        if self.spark_remote is not None and not _is_connect_address(self.spark_remote):
            # Not what it is: it may have a token in it.
            raise ConfigurationError(
                "SPARK_REMOTE is no address of a Spark Connect server: expected sc://HOST:PORT, and parameters after "
                "it where there are any (sc://HOST:PORT/;use_ssl=true;token=..., with %3D for a = in a value)"
            )
        for name, path in (
            ("PIPELINE_ASSETS_WAREHOUSE", self.warehouse),
            ("PIPELINE_ASSETS_PATH_PREFIX", self.path_prefix),
        ):
            try:
                unmistakable(without_login(path))
            except ValueError as error:
                raise ConfigurationError(f"{name}: {error}") from error
        for name, value, choices in (
            ("PIPELINE_ASSETS_EXECUTOR", self.executor, ("in_process", "multiprocess")),
            ("PIPELINE_ASSETS_LOG_FORMAT", self.log_format, ("text", "json")),
            ("PIPELINE_ASSETS_LOG_LEVEL", self.log_level, (None, "DEBUG", "INFO", "WARNING", "ERROR")),
        ):
            if value not in choices:
                expected = " or ".join(repr(choice) for choice in choices if choice is not None)
                raise ConfigurationError(f"{name} is {value!r}: expected {expected}")

    def resolve(self, path: str) -> str:
        """Return ``path`` as Spark is to see it: URIs as they are, absolute paths prefixed, others made absolute."""
        if not root_of(path):
            path = self.path_prefix.rstrip("/") + path if path.startswith("/") else str(Path(path).absolute())
        return normalize_uri(path)

    def table_path(self, pipeline: str, asset: str) -> str:
        """Return where the warehouse keeps the Delta table of one asset."""
        root = normalize_uri(self.warehouse) if root_of(self.warehouse) else str(Path(self.warehouse).absolute())
        return f"{root.rstrip('/')}/{pipeline}/{asset}"
