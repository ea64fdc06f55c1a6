"""The archive of Spark's classes, which `make setup` has made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.spark import class_archive
from pipeline_assets.spark import jars as jars_module
from pipeline_assets.spark.class_archive import archive_file, archived_classes, make_archive
from pipeline_assets.spark.jars import resolve_jars
from pipeline_assets.spark.java_options import has_own_class_path, java_defaults
from pipeline_assets_tests.spark.fresh_process import in_fresh_process

SESSION = """
    from pathlib import Path
    from pipeline_assets.settings import Settings
    from pipeline_assets.spark import class_archive
    from pipeline_assets.spark.session import SparkSessions

    {before}
    with SparkSessions(Settings(spark_master="local[1]")) as sessions:
        spark = sessions.session("run", "pipeline")
        print("counted", spark.range(7).count())
        {after}
"""


def test_a_driver_takes_its_classes_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_file()
    assert archive is not None
    assert archive.exists()
    log = tmp_path / "classes"
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", f"{os.environ['SPARK_SUBMIT_OPTS']} -Xlog:class+load:file={log}")
    assert "counted 7" in in_fresh_process(SESSION.format(before="", after=""))
    loaded = log.read_text().splitlines()
    for package, least in (("org.apache.spark.", 4000), ("io.delta.", 5)):
        sources = [line.rpartition("source: ")[2] for line in loaded if f" {package}" in line]
        shared = sum(source.startswith("shared objects file") for source in sources)
        # The others are made while Spark runs.
        assert shared > len(sources) / 2
        assert shared > least


def test_a_driver_does_not_copy_the_jars_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_DIST_CLASSPATH", "/of/a/user/*")
    after = """
        import glob, os
        print("added", spark.sparkContext._jsc.sc().listJars().length())
        print("copied", glob.glob(f"{os.environ['TMPDIR']}/**/*.jar", recursive=True))
        print("path", spark._jvm.System.getProperty("java.class.path"))
    print("after", os.environ["SPARK_DIST_CLASSPATH"])"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    found = dict(line.split(" ", 1) for line in in_fresh_process(SESSION.format(before="", after=after)).splitlines())
    path = found.pop("path").split(os.pathsep)
    assert found == {"counted": "7", "added": "0", "copied": "[]", "after": "/of/a/user/*"}
    spark_jars = [index for index, jar in enumerate(path) if "/pyspark/jars/" in jar]
    user, *ours = (path.index(jar) for jar in ("/of/a/user/*", *map(str, resolve_jars())))
    assert max(spark_jars) < user < min(ours)


@pytest.mark.parametrize(
    ("script", "own"),
    [
        ("export SPARK_DIST_CLASSPATH=$(hadoop classpath)\n", True),
        ("#!/bin/sh\n. /etc/hadoop.sh\n", True),
        ("if true; then\n  source /etc/hadoop.sh\nfi\n", True),
        ("export SPARK_LOCAL_DIRS=/data/spark\n", False),
    ],
)
def test_a_spark_env_that_may_set_the_class_path(
    script: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spark-env.sh").write_text(script)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    assert has_own_class_path() is own


def test_a_class_path_that_spark_env_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another file, as vendors do, so that nothing in it tells."""
    (tmp_path / "hadoop.sh").write_text("export SPARK_DIST_CLASSPATH=/of/hadoop/*\n")
    (tmp_path / "spark-env.sh").write_text(f"\n. {tmp_path / 'hadoop.sh'}\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    after = """
        spark.sql("SELECT 7 AS seven").write.format("delta").save("{table}")
        print("read", spark.read.format("delta").load("{table}").first().seven)
        print(spark._jvm.System.getProperty("java.class.path").rpartition(":")[2])
    """.format(table=tmp_path / "table")
    output = in_fresh_process(SESSION.format(before="", after=after))
    assert output.splitlines() == ["counted 7", "read 7", "/of/hadoop/*"]


def test_jars_that_are_not_those_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = tmp_path / "spark" / "jars"
    jars.mkdir(parents=True)
    jar = jars / "spark-core.jar"
    jar.write_bytes(b"classes")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = tmp_path / "delta.jar"
    own.touch()
    remembered = jars_module._jar_list_file()
    remembered.parent.mkdir()
    remembered.write_text(f"{own}\n")
    before = archive_file()
    os.utime(own, (1, 1))
    assert archive_file() != before
    before = archive_file()
    monkeypatch.setenv("SPARK_DIST_CLASSPATH", "/of/a/user/*")
    assert archive_file() != before
    monkeypatch.delenv("SPARK_DIST_CLASSPATH")
    assert archive_file() == before
    os.utime(jar, (1, 1))
    after = archive_file()
    assert before is not None
    assert after is not None
    assert before != after == archive_file()
    other_place = tmp_path / "pipeline-assets" / "spark-classes-0-0.jsa"
    for file in (before, after, other_place):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    class_archive._remove_older(after)
    assert sorted(other_place.parent.glob("*.jsa")) == sorted([after, other_place])


def test_jars_whose_times_an_image_keeps_in_whole_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "spark" / "jars" / "spark-core.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(b"classes")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def named_with(nanoseconds: int) -> Path | None:
        os.utime(jar, ns=(nanoseconds, nanoseconds))
        return archive_file()

    second = 1_764_000_000 * 10**9
    assert named_with(second + 999_999_999) == named_with(second) is not None
    assert named_with(second + 10**9) != named_with(second)


def test_one_that_does_not_fit_is_passed_over_in_silence(tmp_path: Path) -> None:
    other = tmp_path / "other.jsa"
    other.write_bytes(b"no archive" * 1000)
    before = f"class_archive.archive_file = lambda: Path({str(other)!r})"
    assert in_fresh_process(SESSION.format(before=before, after="")).strip() == "counted 7"


@pytest.mark.parametrize("before", [None, "-Dmine=1"])
def test_the_options_of_a_user_stay(before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "with space.jsa"
    archive.touch()
    monkeypatch.setattr(class_archive, "archive_file", lambda: archive)
    monkeypatch.delenv("SPARK_SUBMIT_OPTS")
    if before:
        monkeypatch.setenv("SPARK_SUBMIT_OPTS", before)
    with archived_classes([]):
        inside = os.environ["SPARK_SUBMIT_OPTS"]
    assert inside.startswith(before or '"-XX:SharedArchiveFile=')
    assert f'"-XX:SharedArchiveFile={archive}"' in inside
    assert os.environ.get("SPARK_SUBMIT_OPTS") == before
    with java_defaults("-Dmine=0"):
        assert os.environ["SPARK_SUBMIT_OPTS"].split() == ["-Dmine=0", *([before] if before else [])]
    assert os.environ.get("SPARK_SUBMIT_OPTS") == before


def test_it_is_made_where_runs_have_a_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_to_exit(_conf: Mapping[str, str], folder: Path) -> None:
        assert "SPARK_REMOTE" not in os.environ
        (folder / "made.jsa").touch()

    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1:1")
    monkeypatch.setattr(class_archive, "archive_file", lambda: tmp_path / "made.jsa")
    monkeypatch.setattr(class_archive, "_run_to_exit", run_to_exit)
    assert make_archive({}, []).exists()
    assert os.environ["SPARK_REMOTE"] == "sc://127.0.0.1:1"


def test_a_java_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    output = in_fresh_process("""
        from click.testing import CliRunner
        from pipeline_assets.cli import main

        print(CliRunner().invoke(main, ["archive-classes"]).stderr)
    """)
    assert "Error: Java did not start: Spark needs a JDK or JRE 17 or 21" in output


def test_a_java_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_archive, "_EXIT_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as java:
        with pytest.raises(ConfigurationError, match=r"within 0\.1 s: try again when the machine has less to do"):
            class_archive._wait_for_exit(java)
        assert java.returncode is not None
