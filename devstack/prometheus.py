"""Prometheus and its Pushgateway: Debian's packages ``prometheus`` and ``prometheus-pushgateway``."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devstack.loopback_http import open_without_proxy
from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, server_environment

_CONFIG = "prometheus.json"
_EXPORTER = f"{LOOPBACK}:9464"  # where `pipeline-assets metrics serve` answers


@dataclass(frozen=True)
class _WebServer:
    """A running server that answers by HTTP."""

    url: str

    @property
    def address(self) -> str:
        return self.url

    def problem(self) -> str | None:
        try:
            _get(f"{self.url}/-/ready")
        except OSError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class PrometheusServer(_WebServer):
    """A running Prometheus."""

    @property
    def environment(self) -> dict[str, str]:
        return {"PROMETHEUS_URL": self.url}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what the instant query gives: ``metric`` (the labels) and ``value`` ([time, text]) of each series."""
        answer = json.loads(_get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@dataclass(frozen=True)
class Prometheus:
    """Starts a Prometheus that scrapes ``targets`` (``host:port``) each second."""

    targets: Sequence[str] = (_EXPORTER,)
    name: str = "prometheus"

    def missing(self) -> str | None:
        return None if shutil.which("prometheus") else "install Debian's prometheus"

    def start(self, run: PartRun) -> PrometheusServer:
        server = PrometheusServer(f"http://{LOOPBACK}:{free_port()}")
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {"job_name": "pipeline_assets", "honor_labels": True, "static_configs": [{"targets": [*self.targets]}]}
            ],
        }
        # JSON is YAML.
        (run.data / _CONFIG).write_text(json.dumps(config))
        run.say("starting")
        run.spawn(
            "prometheus",
            [
                "prometheus", f"--config.file={run.data / _CONFIG}", f"--storage.tsdb.path={run.data / 'series'}",
                f"--web.listen-address={server.url.removeprefix('http://')}",
            ],
            environment=server_environment(),
        )  # fmt: skip
        run.wait_until_ready(server.problem, limit=60)
        return server


@dataclass(frozen=True)
class PushgatewayServer(_WebServer):
    """A running Pushgateway."""

    @property
    def environment(self) -> dict[str, str]:
        return {"PIPELINE_ASSETS_PUSHGATEWAY": self.url}

    def exposition(self) -> str:
        """Return what it shows Prometheus."""
        return _get(f"{self.url}/metrics")


@dataclass(frozen=True)
class Pushgateway:
    """Starts a Pushgateway that keeps everything in memory."""

    name: str = "pushgateway"

    def missing(self) -> str | None:
        return None if shutil.which("prometheus-pushgateway") else "install Debian's prometheus-pushgateway"

    def start(self, run: PartRun) -> PushgatewayServer:
        server = PushgatewayServer(f"http://{LOOPBACK}:{free_port()}")
        run.say("starting")
        run.spawn(
            "pushgateway",
            ["prometheus-pushgateway", f"--web.listen-address={server.url.removeprefix('http://')}"],
            environment=server_environment(),
        )
        run.wait_until_ready(server.problem, limit=60)
        return server


def _get(url: str) -> str:
    with open_without_proxy(url) as answer:
        return answer.read().decode()
