"""A Spark that works in the driver alone takes a share of the machine, unless someone says otherwise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline_assets.spark.driver_memory import default_driver_memory, driver_memory
from pipeline_assets_tests.spark.fresh_process import in_fresh_process

GIB = 2**30
NONE = 2**63 - 4096
HEAP = """
    import os
    from pipeline_assets.settings import Settings
    from pipeline_assets.spark.session import SparkSessions

    with SparkSessions(Settings(spark_master="{master}"), {conf}) as sessions:
        spark = sessions.session("run", "pipeline")
        arguments = spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments()
        print([argument for argument in arguments if argument.startswith("-Xmx")], "SPARK_DRIVER_MEMORY" in os.environ)
"""


V1, V2 = "memory.limit_in_bytes", "memory.max"


def groups(folder: Path, cgroup: str, limits: dict[str, int | str]) -> tuple[Path, Path]:
    """Lay out what Linux shows of a process in ``cgroup``; ``limits`` are the files' contents by their path."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    for path, limit in limits.items():
        file = folder / "groups" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return folder / "proc", folder / "groups"


@pytest.mark.parametrize(
    ("cgroup", "limits", "share"),
    [
        ("0::/\n", {V2: 8 * GIB}, 2 * GIB),
        ("0::/\n", {V2: 2 * GIB}, GIB),  # Spark's own default is the least
        # A service of systemd: the limit may be that of a slice above it.
        ("0::/a.slice/b.service\n", {f"a.slice/b.service/{V2}": "max", f"a.slice/{V2}": 6 * GIB}, 1.5 * GIB),
        # A container whose groups have their names of outside.
        ("5:memory:/docker/1f\n0::/\n", {f"memory/{V1}": 7 * GIB}, 1.75 * GIB),
        ("5:cpu,memory:/job\n", {f"memory/job/{V1}": 5 * GIB, f"memory/{V1}": NONE}, 1.25 * GIB),
    ],
)
def test_the_limit_of_a_container_counts(
    cgroup: str, limits: dict[str, int | str], share: float, tmp_path: Path
) -> None:
    assert driver_memory(*groups(tmp_path, cgroup, limits)) == share


@pytest.mark.parametrize("cgroup", ["0::/\n", "5:memory:/job\n"])
def test_without_a_limit_it_is_a_share_of_the_machine(cgroup: str, tmp_path: Path) -> None:
    processes, nothing = groups(tmp_path, cgroup, {f"memory/{V1}": NONE})
    told = subprocess.run(["free", "--bytes"], check=True, capture_output=True, text=True).stdout
    machine = int(told.splitlines()[1].split()[1])
    assert driver_memory(processes, nothing) == min(max(machine // 4, GIB), 31 * GIB)


def test_pointers_stay_short_on_a_large_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 512 * GIB // 4096}.__getitem__)
    assert driver_memory(tmp_path, tmp_path) == 31 * GIB


@pytest.mark.parametrize("master", ["spark://host:7077", "local-cluster[2,1,1024]", "yarn", "k8s://host"])
def test_a_driver_beside_executors_has_what_spark_says(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    with default_driver_memory(master):
        assert "SPARK_DRIVER_MEMORY" not in os.environ


def test_a_driver_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    printed = in_fresh_process(HEAP.format(master="local[1]", conf={}))
    assert printed.splitlines()[-1] == f"['-Xmx{driver_memory() // 2**20}m'] False"


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('spark_master="{master}"', 'spark_master="{master}", executor="multiprocess"'),
        ('session("run", "pipeline")', 'session("run", "pipeline", is_stream=True)'),
    ],
)
def test_where_there_are_several_drivers_they_have_what_spark_says(
    what: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step has one with the multiprocess executor, and each stream."""
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    script = HEAP.replace(what, instead)
    printed = in_fresh_process(script.format(master="local[1]", conf={}))
    assert printed.splitlines()[-1] == "['-Xmx1g'] False"


def test_what_someone_says_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    printed = in_fresh_process(HEAP.format(master="local[1]", conf={"spark.driver.memory": "700m"}))
    assert printed.splitlines()[-1] == "['-Xmx700m'] False"

    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "800m")
    printed = in_fresh_process(HEAP.format(master="local[1]", conf={}))
    assert printed.splitlines()[-1] == "['-Xmx800m'] True"

    monkeypatch.delenv("SPARK_DRIVER_MEMORY")
    (tmp_path / "spark-defaults.conf").write_text("spark.driver.memory 900m\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    printed = in_fresh_process(HEAP.format(master="local[1]", conf={}))
    assert printed.splitlines()[-1] == "['-Xmx900m'] False"
