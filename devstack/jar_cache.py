"""JARs from Maven Central, resolved once by the Ivy that PySpark ships and kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from devstack.cache import cache_folder, made_once
from devstack.java import java_program, package_folder
from devstack.processes import PartRun

_LIMIT = 600.0


def jars_folder(run: PartRun, coordinates: Sequence[str]) -> Path:
    """A folder with the JARs of ``group:artifact:version`` coordinates and all that they depend on."""
    key = hashlib.sha256("\n".join(coordinates).encode()).hexdigest()[:12]
    target = cache_folder() / "jars" / f"{run.part}-{key}"
    return made_once(target, lambda: _resolve(run, coordinates, target))


def _resolve(run: PartRun, coordinates: Sequence[str], target: Path) -> None:
    run.say("downloading its JARs, once")
    # A work folder of its own: Ivy's cache bears one user at a time, and nobody must find half a download.
    work = Path(tempfile.mkdtemp(prefix="resolving-", dir=target.parent))
    try:
        (work / "ivy.xml").write_text(_ivy_file(coordinates))
        pyspark = package_folder("pyspark")
        assert pyspark is not None, "the part's missing() has looked"
        ivy = next((pyspark / "jars").glob("ivy-*.jar"))
        run.run_to_end(
            "ivy",
            [
                java_program() or "java", "-cp", ivy, "org.apache.ivy.Main", "-warn",
                "-cache", work / "cache", "-ivy", work / "ivy.xml", "-confs", "default",
                "-retrieve", f"{work}/jars/[artifact]-[revision](-[classifier]).[ext]",
            ],
            environment=dict(os.environ),  # it fetches: proxies and the like are set there
            limit=_LIMIT,
        )  # fmt: skip
        (work / "jars").rename(target)
    finally:
        shutil.rmtree(work)


def _ivy_file(coordinates: Sequence[str]) -> str:
    dependencies = []
    for each in coordinates:
        group, artifact, version = map(quoteattr, each.split(":"))
        names = f"org={group} name={artifact} rev={version}"
        dependencies.append(f'<dependency {names} conf="default->default"/>')
    return (
        '<ivy-module version="2.0"><info organisation="pipeline-assets" module="devstack"/>'
        '<configurations><conf name="default"/></configurations>'
        f"<dependencies>{''.join(dependencies)}</dependencies></ivy-module>"
    )
