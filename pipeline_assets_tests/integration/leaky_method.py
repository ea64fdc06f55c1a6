"""A step method that does its worst: it shows its secret in every way that a step has."""

# ruff: noqa: T201

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline_assets.steps.base import ExtractMethod, StepContext

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

HOPS = ("print", "stderr", "child", "jvm out", "jvm err", "log", "dagster log", "warning", "base64", "url", "json")


class Leak(ExtractMethod):
    """Shows a secret."""

    method = "leak"

    secret: str
    """Reference to it."""
    ui_dump: str | None = None
    """File for what Spark's UI shows."""

    def extract(self, context: StepContext) -> DataFrame:
        value = context.connections.secrets.fetch(self.secret)
        if self.ui_dump is not None:
            self._dump_ui(Path(self.ui_dump), value, context)
        self._show(value, context)
        try:
            context.spark._jvm.java.lang.Integer.parseInt(value)
        except Exception as error:
            raise RuntimeError(f"could not use {value!r}") from error
        raise AssertionError

    def _show(self, value: str, context: StepContext) -> None:
        from dagster import get_dagster_logger
        from pyspark.sql import functions as F  # noqa: N812

        print("hop print", value, flush=True)
        print("hop stderr", value, file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-c", f"print('hop child', {value!r})"], check=True)
        system = context.spark._jvm.java.lang.System
        system.out.println(f"hop jvm out {value}")
        system.err.println(f"hop jvm err {value}")
        logging.getLogger("pipeline_assets").warning("hop log %s", value)
        get_dagster_logger().warning("hop dagster log %s", value)
        warnings.warn(f"hop warning {value}", stacklevel=1)
        print("hop base64", base64.b64encode(value.encode()).decode())
        print("hop url", quote(value, safe=""))
        print("hop json", json.dumps({"x": value}), flush=True)
        broken = F.udf(lambda number: int(f"{number} {value}"), "bigint")
        with suppress(Exception):
            context.spark.range(1).select(broken("id")).collect()

    def _dump_ui(self, target: Path, value: str, context: StepContext) -> None:
        """Keep what Spark's UI shows of a session that has the secret in its conf, its options and its plans."""
        spark = context.spark
        spark.conf.set("fs.s3a.bucket.leaky.secret.key", value)
        spark.range(2).selectExpr("id AS shown_by_the_ui").collect()
        options: dict[str, Any] = {"url": "jdbc:postgresql://127.0.0.1:1/x", "user": "u", "password": value}
        with suppress(Exception):
            spark.range(1).write.format("jdbc").options(dbtable="t", **options).save()
        context_ = spark.sparkContext
        base, application = context_.uiWebUrl, context_.applicationId
        pages = ("environment", "sql?details=true&planDescription=true&length=1000", "jobs", "stages")
        urls = [f"{base}/api/v1/applications/{application}/{page}" for page in pages]
        urls += [f"{base}/environment/", f"{base}/SQL/", *(f"{base}/SQL/execution/?id={n}" for n in range(12))]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with target.open("wb") as file:
            for url in urls:
                with suppress(OSError), opener.open(url, timeout=60) as page:
                    file.write(page.read())
