"""Where Java and PySpark's own files are, found without importing PySpark."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

ADVICE = "install a JDK or JRE 17 or 21 (Debian: apt install openjdk-17-jre-headless) or set JAVA_HOME"


def java_program() -> str | None:
    """JAVA_HOME's ``java``, else the one on the PATH."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")


def package_folder(package: str) -> Path | None:
    """The folder of an installed Python package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def missing() -> str | None:
    """What must be installed for Java programs that come with PySpark."""
    if java_program() is None:
        return ADVICE
    if package_folder("pyspark") is None:
        return "install the Python package pyspark"
    return None
