"""The archive of Spark's classes, which `make setup` has made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline_assets.spark import class_archive
from pipeline_assets.spark.class_archive import archive_file, archived_classes
from pipeline_assets_tests.spark.fresh_process import in_fresh_process

SESSION = """
    from pathlib import Path
    from pipeline_assets.settings import Settings
    from pipeline_assets.spark import class_archive
    from pipeline_assets.spark.session import SparkSessions

    {before}
    with SparkSessions(Settings(spark_master="local[1]")) as sessions:
        print("counted", sessions.session("run", "pipeline").range(7).count())
"""


def test_a_driver_takes_its_classes_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_file()
    assert archive is not None
    assert archive.exists()
    log = tmp_path / "classes"
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", f"{os.environ['SPARK_SUBMIT_OPTS']} -Xlog:class+load:file={log}")
    assert "counted 7" in in_fresh_process(SESSION.format(before=""))
    sources = [line.rpartition("source: ")[2] for line in log.read_text().splitlines() if "org.apache.spark" in line]
    shared = sum(source.startswith("shared objects file") for source in sources)
    # The others are made while Spark runs, or are from the JARs of Delta and the like.
    assert shared > len(sources) / 2 > 1000


def test_jars_that_are_not_those_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = tmp_path / "spark" / "jars"
    jars.mkdir(parents=True)
    jar = jars / "spark-core.jar"
    jar.write_bytes(b"classes")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = archive_file()
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


def test_one_that_does_not_fit_is_passed_over_in_silence(tmp_path: Path) -> None:
    other = tmp_path / "other.jsa"
    other.write_bytes(b"no archive" * 1000)
    before = f"class_archive.archive_file = lambda: Path({str(other)!r})"
    assert in_fresh_process(SESSION.format(before=before)).strip() == "counted 7"


@pytest.mark.parametrize("before", [None, "-Dmine=1"])
def test_the_options_of_a_user_stay(before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "with space.jsa"
    archive.touch()
    monkeypatch.setattr(class_archive, "archive_file", lambda: archive)
    monkeypatch.delenv("SPARK_SUBMIT_OPTS")
    if before:
        monkeypatch.setenv("SPARK_SUBMIT_OPTS", before)
    with archived_classes():
        inside = os.environ["SPARK_SUBMIT_OPTS"]
    assert inside.startswith(before or '"-XX:SharedArchiveFile=')
    assert f'"-XX:SharedArchiveFile={archive}"' in inside
    assert os.environ.get("SPARK_SUBMIT_OPTS") == before
