from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dagster as dg
import grpc
import psutil
import pytest

from devstack import spark_servers
from devstack.ports import free_port
from devstack.spark_servers import SparkConnect, SparkConnectServer
from devstack.stack import Stack
from pipeline_assets.errors import ConfigurationError, PipelineError, RetryableError
from pipeline_assets.resources import SparkResource
from pipeline_assets.settings import Settings
from pipeline_assets.spark import driver_start
from pipeline_assets.spark.connect_sessions import KeptSessions, cloned_session, connect_url
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.spark.jars import EXCLUDES, PACKAGES, resolve_jars
from pipeline_assets.spark.jvm_log import log_options
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets.spark.session_conf import driver_jars, session_conf
from pipeline_assets.spark.temporary_conf import temporary_conf
from pipeline_assets_tests.conftest import SPARK_CONF
from pipeline_assets_tests.spark.fresh_process import in_fresh_process
from pipeline_assets_tests.spark_jobs import wait_for_events
from pipeline_assets_tests.transience.cases import silent_server

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from devstack.spark_servers import SparkCluster


def views(spark: SparkSession) -> set[str]:
    return {row.viewName for row in spark.sql("SHOW VIEWS").collect() if row.isTemporary}


def test_a_session_does_without_pandas_and_still_takes_numpy_values() -> None:
    script = """
        import sys
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions
        from pipeline_assets.steps.counted_rows import CountedRows

        with SparkSessions(Settings(spark_master="local[1]")) as sessions:
            spark = sessions.session("run", "pipeline")
            spark.range(3).createOrReplaceTempView("numbers")
            assert [row.id for row in spark.sql("SELECT id FROM numbers WHERE id > 1").collect()] == [2]
            count = CountedRows()
            count.on(spark.range(3)).write.format("noop").mode("overwrite").save()
            assert count.get() == 3
            print([name for name in ("numpy", "pandas", "pyarrow") if name in sys.modules])

            import numpy
            from pyspark.sql.functions import lit

            print(list(spark.range(1).select(lit(numpy.int64(3)), lit(numpy.array([1.5, 2.5]))).first()))
    """
    assert in_fresh_process(script).splitlines()[-2:] == ["[]", "[3, [1.5, 2.5]]"]


@pytest.mark.parametrize("master", ["spark://host:7077", "local-cluster[2,1,1024]", "yarn"])
def test_the_conf_names_the_jars_that_executors_fetch(master: str) -> None:
    conf = session_conf(Settings(spark_master=master))
    names = [Path(jar).name for jar in conf["spark.jars"].split(",")]
    for package in PACKAGES:
        group, artifact, version = package.split(":")
        assert f"{group}_{artifact}-{version}.jar" in names
    for excluded in EXCLUDES:
        assert not [name for name in names if name.startswith(excluded.replace(":", "_") + "-")]
    assert [str(jar) for jar in driver_jars()] == conf["spark.jars"].split(",")
    assert session_conf(Settings(spark_master=master), {"spark.jars": "mine.jar"})["spark.jars"] == "mine.jar"
    assert driver_jars({"spark.jars": "mine.jar"}) == []


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*, 3]"])
def test_the_conf_names_delta_and_a_loopback_address(master: str) -> None:
    conf = session_conf(Settings(spark_master=master))
    assert conf["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    assert conf["spark.driver.host"] == "127.0.0.1"
    assert conf["spark.ui.enabled"] == "false"
    assert conf["spark.kafka.producer.cache.timeout"] == "1m"
    assert conf["spark.kafka.producer.cache.evictorThreadRunInterval"] == "10s"


def test_a_given_conf_wins() -> None:
    given = {"spark.jars": "", "spark.ui.enabled": "true", "spark.sql.session.timeZone": "CET"}
    conf = session_conf(Settings(), given)
    assert conf["spark.master"] == "local[*]"
    assert given.items() <= conf.items()
    cluster = session_conf(Settings(spark_master="spark://host:7077"), given)
    assert cluster["spark.master"] == "spark://host:7077"
    assert "spark.driver.host" not in cluster


def test_connect_gets_runtime_conf_only() -> None:
    conf = session_conf(Settings(spark_remote="sc://host", spark_master="local[2]"), {"spark.sql.x": "y"})
    assert conf["spark.sql.x"] == "y"
    assert all(key.startswith("spark.sql.") for key in conf)


def test_jars_are_resolved_again_when_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = resolve_jars()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert resolve_jars() == jars
    (remembered,) = tmp_path.glob("pipeline-assets/jars-*.txt")
    assert remembered.read_text().splitlines() == [str(jar) for jar in jars]
    remembered.write_text(f"{tmp_path / 'gone.jar'}\n")
    assert resolve_jars() == jars
    # Remembered lists are read, not resolved: nothing else could have put this one there.
    jar = tmp_path / "one.jar"
    jar.touch()
    remembered.write_text(f"{jar}\n")
    assert resolve_jars() == [jar]


def test_jars_are_resolved_where_runs_have_a_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "one.jar"
    jar.touch()
    program = tmp_path / "bin" / "spark-submit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ -z "$SPARK_REMOTE" ] && echo "(spark.jars,{jar.as_uri()})"\n')
    program.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1:1")
    assert resolve_jars() == [jar]


def test_connect_urls_keep_their_parameters_and_differ_by_run_and_pipeline() -> None:
    url = connect_url("sc://host:15002/;use_ssl=true", "run", "orders")
    parameters = dict(part.split("=") for part in urlsplit(url).path.removeprefix("/;").split(";"))
    assert parameters.pop("use_ssl") == "true"
    assert uuid.UUID(parameters.pop("session_id"))
    assert not parameters
    assert url == connect_url("sc://host:15002/;use_ssl=true", "run", "orders")
    others = {connect_url("sc://host", run, name) for run in ("a", "b") for name in ("x", "y")}
    assert len(others) == 4
    assert all(other.startswith("sc://host/;session_id=") for other in others)


def test_sessions_are_opened_once_per_run_and_pipeline(spark_settings: Settings) -> None:
    run = str(uuid.uuid4())
    with SparkSessions(spark_settings, SPARK_CONF) as sessions:
        one = sessions.session(run, "one")
        other = sessions.session(run, "other")
        assert sessions.session(run, "one") is one
        one.range(3).createOrReplaceTempView("numbers")
        other.range(5).createOrReplaceTempView("numbers")
        assert one.table("numbers").count() == 3
        assert other.table("numbers").count() == 5
        assert sessions.session(str(uuid.uuid4()), "one").catalog.listTables() == []


def test_sessions_have_the_conf_wherever_they_run(spark_settings: Settings) -> None:
    with SparkSessions(spark_settings, {"spark.sql.shuffle.partitions": "7"}) as sessions:
        opened = sessions.session(str(uuid.uuid4()), "orders")
        assert opened.conf.get("spark.sql.session.timeZone") == "UTC"
        assert opened.conf.get("spark.sql.shuffle.partitions") == "7"
        wide = opened.range(1).selectExpr(*(f"id + {number} AS c{number}" for number in range(300)))
        from pipeline_assets.spark.plan_tree import explain_text

        assert "c299" in explain_text(wide, "simple")


def test_a_pipeline_has_settings_of_its_own(spark_settings: Settings) -> None:
    name = "spark.sql.shuffle.partitions"
    with SparkSessions(spark_settings, {name: "7"}) as sessions:
        assert sessions.session("run", "a", {name: "3"}).conf.get(name) == "3"
        assert sessions.session("run", "b").conf.get(name) == "7"
        with pytest.raises(ConfigurationError, match=r"no setting 'spark.sql.shufle.partitions', did you mean 'spark"):
            sessions.session("run", "c", {"spark.sql.shufle.partitions": "3"})
        with pytest.raises(ConfigurationError, match=r"'spark.sql.extensions' can't be set in a session"):
            sessions.session("run", "c", {"spark.sql.extensions": "x"})
        with pytest.raises(PipelineError, match="few"):
            sessions.session("run", "c", {name: "few"})


def test_delta_works(spark_settings: Settings, tmp_path: Path) -> None:
    with SparkSessions(spark_settings, SPARK_CONF) as sessions:
        opened = sessions.session(str(uuid.uuid4()), "orders")
        opened.range(4).write.format("delta").save(str(tmp_path / "table"))
        # A statement of Delta's own: its extension is there, not the data source alone.
        (written,) = opened.sql(f"DESCRIBE HISTORY delta.`{tmp_path}/table`").collect()
        assert (written.version, written.operation) == (0, "WRITE")
        assert opened.read.format("delta").load(str(tmp_path / "table")).count() == 4


@pytest.mark.parametrize("maintenance", [False, True])
def test_many_folders_are_listed_by_few_tasks(spark: SparkSession, tmp_path: Path, *, maintenance: bool) -> None:
    """Spark lists each by a task of its own, Delta's VACUUM takes 10,000 tasks for however few."""
    path = str(tmp_path / "table")
    rows = spark.range(40).selectExpr("id", "id AS part").coalesce(1)
    rows.write.format("delta" if maintenance else "parquet").partitionBy("part").save(path)
    tasks = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup(path, "lists folders")
    if maintenance:
        spark.sql(f"VACUUM delta.`{path}`")
    else:
        assert spark.read.parquet(path).columns == ["id", "part"]
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
    wait_for_events(spark)
    jobs = [tasks.getJobInfo(job) for job in tasks.getJobIdsForGroup(path)]
    stages = [tasks.getStageInfo(stage) for job in jobs if job is not None for stage in job.stageIds]
    assert 1 < max(stage.numTasks for stage in stages if stage is not None) <= 32


def test_a_borrowed_spark_goes_on_without_our_views(spark: SparkSession, settings: Settings) -> None:
    sessions = SparkSessions(settings, SPARK_CONF)
    opened = sessions.session("run", "orders")
    assert opened is not spark
    assert opened.sparkContext is spark.sparkContext
    opened.range(3).createOrReplaceTempView("left_behind")
    assert views(opened) == {"left_behind"}
    sessions.close()
    sessions.close()
    # The views went with their session: neither its owner nor the next session of the name has them.
    assert "left_behind" not in views(spark)
    assert views(sessions.session("run", "orders")) == set()
    sessions.close()
    assert spark.range(6).count() == 6


def test_connect_sessions_are_shared_between_processes(spark_connect_server: SparkConnectServer) -> None:
    run = str(uuid.uuid4())
    script = """
        import sys
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        sessions = SparkSessions(Settings(spark_remote=sys.argv[1]))
        spark = sessions.session(sys.argv[2], "orders")
        spark.range(7).createOrReplaceTempView("numbers")
        sessions.close(release=False)
    """
    in_fresh_process(script, spark_connect_server.remote, run)
    before = os.environ.get("SPARK_CONNECT_MODE_ENABLED")
    with SparkSessions(Settings(spark_remote=spark_connect_server.remote)) as sessions:
        assert sessions.session(run, "orders").table("numbers").count() == 7
        assert views(sessions.session(run, "customers")) == set()
    assert os.environ.get("SPARK_CONNECT_MODE_ENABLED") == before
    # Released: the server knows the session no longer, and does not take its id again.
    from pipeline_assets.errors import PipelineExecutionError

    with (
        SparkSessions(Settings(spark_remote=spark_connect_server.remote)) as sessions,
        pytest.raises(PipelineExecutionError),
    ):
        sessions.session(run, "orders").table("numbers")


def test_a_connect_server_that_died_does_not_hold_up_the_end(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    try:
        server = stack.up([SparkConnect()])["spark-connect"]
        assert isinstance(server, SparkConnectServer)
        sessions = SparkSessions(Settings(spark_remote=server.remote))
        opened: Any = sessions.session("run", "orders")
        assert opened.range(3).count() == 3
    finally:
        stack.down()
    # PySpark's own stop() tries for minutes to release the session.
    begun = time.monotonic()
    sessions.close()
    assert time.monotonic() - begun < 60
    assert opened.client.is_closed


def test_what_is_cached_where_nobody_answers_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_start, "_STOP_SECONDS", 0.2)
    asked, ended = threading.Event(), threading.Event()
    answered: list[bool] = []

    def release_cache() -> None:
        asked.set()
        answered.append(ended.wait(60))

    run: Any = SimpleNamespace(release_cache=release_cache)
    with SparkResource().yield_for_execution(dg.build_init_resource_context()) as opened:
        opened._runs["run", "orders", None] = run
    assert asked.is_set()
    assert not answered
    ended.set()


@pytest.mark.timeout(600)
def test_a_connect_server_that_was_started_anew_gets_new_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr(spark_servers, "free_port", lambda: port)
    stack = Stack(tmp_path)
    try:
        server = stack.up([SparkConnect()])["spark-connect"]
        assert isinstance(server, SparkConnectServer)
        with SparkSessions(Settings(spark_remote=server.remote)) as sessions:
            orders, customers = (sessions.session("run", name) for name in ("orders", "customers"))
            assert (orders.range(3).count(), customers.range(4).count()) == (3, 4)
            assert not sessions.has_died()
            stack.down()
            stack.up([SparkConnect()])
            with pytest.raises(RetryableError, match="has been started anew") as raised, spark_errors():
                orders.range(3).count()
            assert raised.value.transient_kind == "lostExecutor"
            assert sessions.has_died()
            sessions.close(release=False)
            # Also of the one that had not been asked for meanwhile.
            assert [sessions.session("run", name).range(5).count() for name in ("orders", "customers")] == [5, 5]
            assert not sessions.has_died()
    finally:
        stack.down()


def test_kept_sessions_are_asked_for_by_a_client_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """PySpark's closes itself when the server has been started anew, and asks for nothing more."""
    clients: list[Any] = []

    class Client:
        def __init__(self, url: str) -> None:
            self.url, self.is_closed, self.asked = url, False, 0
            clients.append(self)

        def get_configs(self, *_: str) -> None:
            self.asked += 1

        def close(self) -> None:
            self.is_closed = True

    monkeypatch.setattr("pyspark.sql.connect.client.SparkConnectClient", Client)
    kept = KeptSessions("sc://server", "run")
    kept._ask("orders")
    kept._ask("orders")
    clients[0].is_closed = True
    kept._ask("orders")
    assert [(client.url, client.asked) for client in clients] == [
        (connect_url("sc://server", "run", "orders"), n) for n in (2, 1)
    ]
    kept.end()
    assert clients[1].is_closed


def test_kept_sessions_are_closed_on_the_server_when_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, also where one can't be."""
    urls: list[str] = []

    class Client:
        is_closed = False

        def __init__(self, url: str) -> None:
            self.url = url

        def release_session(self) -> None:
            urls.append(self.url)
            if len(urls) == 1:
                raise RuntimeError("closed by the server already")

        def close(self) -> None:
            self.is_closed = True

    monkeypatch.setattr("pyspark.sql.connect.client.SparkConnectClient", Client)
    with silent_server() as port:
        remote = f"sc://127.0.0.1:{port}"
        kept = KeptSessions(remote, "run")
        for pipeline in ("orders", "customers"):
            kept.keep(pipeline)
        kept.end()
    assert sorted(urls) == [connect_url(remote, "run", pipeline) for pipeline in ("customers", "orders")]
    assert all(client.is_closed for client in kept._clients.values())


def test_the_conf_of_a_shared_session_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared: dict[str, str] = {}
    conf = SimpleNamespace(get=lambda key, _: shared.get(key), set=shared.__setitem__, unset=shared.pop)
    session_type = type("SparkSession", (), {"__module__": "pyspark.sql.connect.session"})
    found: list[tuple[str | None, str | None]] = []

    def work(number: int) -> None:
        session: Any = session_type()
        session.client, session.conf = SimpleNamespace(_session_id="shared"), conf
        for _ in range(10):
            with temporary_conf(session, {"mark": str(number)}):
                before = shared.get("mark")
                time.sleep(0.001)
                found.append((before, shared.get("mark")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(found) == sorted((str(number), str(number)) for number in range(8) for _ in range(10))
    assert shared == {}
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_runs_the_queries(
    spark_cluster: SparkCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
        import sys
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        conf = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.extraJavaOptions": "-Dmine=1",
            "spark.executor.extraJavaOptions": "-Dmine=2",
            "spark.executorEnv.TZ": "Europe/Berlin",
            "spark.databricks.delta.snapshotPartitions": "2",  # of 50 tasks, for two small workers
            "spark.sql.shuffle.partitions": "2",
        }
        zone = "reflect('java.time.ZoneId', 'systemDefault') AS zone"
        mine = "reflect('java.lang.System', 'getProperty', 'mine') AS mine"
        with SparkSessions(Settings(spark_master=sys.argv[1]), conf) as sessions:
            spark = sessions.session("run", "orders")
            spark.range(0, 10, 1, 2).write.format("delta").save(sys.argv[2])
            rows = spark.read.format("delta").load(sys.argv[2])
            java = spark.sparkContext._jvm.java
            print(spark.sparkContext.master, rows.count())
            print(java.time.ZoneId.systemDefault().toString(), java.lang.System.getProperty("mine"))
            print(*rows.selectExpr(zone, mine).distinct().collect())
    """
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert in_fresh_process(script, spark_cluster.master, str(tmp_path / "table")).splitlines() == [
        f"{spark_cluster.master} 10",
        "UTC 1",
        "Row(zone='UTC', mine='2')",
    ]


def test_nothing_is_left_behind_on_any_way_out() -> None:
    script = """
        import contextlib, os, signal, threading
        import psutil
        from py4j.protocol import Py4JError
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        SETTINGS = Settings(spark_master="local[2]")
        # A process that was started in the background of a shell ignores SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def java():
            found = []
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    # spark-submit is a shell script that becomes the JVM.
                    if child.name() == "java" or "spark" in " ".join(child.cmdline()):
                        found.append(child.pid)
            return found

        def interrupt_when(ready):
            def watch():
                while not ready():
                    threading.Event().wait(0.02)
                os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=watch, daemon=True).start()

        handler = signal.getsignal(signal.SIGINT)
        sessions = SparkSessions(SETTINGS)
        assert java() == [], "nothing starts before it is asked for"
        sessions.close()

        interrupt_when(lambda: java())
        try:
            with SparkSessions(SETTINGS) as sessions:
                sessions.session("run", "interrupted start")
        except KeyboardInterrupt:
            print("interrupted start", java())

        try:
            with SparkSessions(SETTINGS) as sessions:
                spark = sessions.session("run", "failed")
                assert spark.range(5).count() == 5
                assert java() != []
                assert signal.getsignal(signal.SIGINT) is handler
                raise ValueError
        except ValueError:
            print("failed", java())

        try:
            with SparkSessions(SETTINGS) as sessions:
                spark = sessions.session("run", "interrupted action")
                tracker = spark.sparkContext.statusTracker()
                interrupt_when(lambda: tracker.getActiveJobsIds())
                spark.range(10**13).selectExpr("sum(id % 7)").collect()
        # PySpark's own clean-up calls the JVM once more, and may fail at it in the interrupt's place.
        except (KeyboardInterrupt, Py4JError):
            print("interrupted action", java())

        sessions = SparkSessions(SETTINGS)
        spark = sessions.session("run", "killed")
        os.kill(spark.sparkContext._gateway.proc.pid, signal.SIGKILL)
        sessions.close()
        print("killed", java())

        with SparkSessions(SETTINGS) as sessions:
            spark = sessions.session("run", "again")
            from pyspark.sql.functions import udf
            assert [row[0] for row in spark.range(2).select(udf(lambda x: x + 1, "long")("id")).collect()] == [1, 2]
        print("again", java())
    """
    assert in_fresh_process(script).splitlines() == [
        f"{way} []" for way in ("interrupted start", "failed", "interrupted action", "killed", "again")
    ]


def test_a_start_that_failed_is_tried_anew(tmp_path: Path) -> None:
    """A try of the step after that of a failed start may do better: what was not there is there by then."""
    script = """
        import sys
        from pathlib import Path
        from pipeline_assets.errors import PipelineError
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        events = Path(sys.argv[1])
        conf = {"spark.master": "local[1]", "spark.eventLog.enabled": "true", "spark.eventLog.dir": events.as_uri()}
        with SparkSessions(Settings(), conf) as sessions:
            try:
                sessions.session("run", "pipeline")
            except PipelineError as error:
                print(type(error).__name__)
            events.mkdir()
            print(sessions.has_died())
            sessions.close()
            print(sessions.session("run", "pipeline").range(3).count(), sessions.has_died())
    """
    told = in_fresh_process(script, str(tmp_path / "events")).splitlines()
    assert told == ["PipelineExecutionError", "True", "3 False"]


def test_a_spark_that_a_cluster_has_ended_is_started_anew() -> None:
    """Its JVM lives, and the context in it is stopped, as when the master takes the application off."""
    script = """
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        with SparkSessions(Settings(), {"spark.master": "local[1]"}) as sessions:
            first = sessions.session("run", "pipeline")
            print(sessions.has_died())
            first.sparkContext._jsc.sc().stop()
            print(sessions.has_died())
            sessions.close()
            print(sessions.session("run", "pipeline").range(3).count(), sessions.has_died())
    """
    assert in_fresh_process(script).splitlines() == ["False", "True", "3 False"]


def test_what_is_secret_in_the_conf_is_not_on_the_command_line_of_java() -> None:
    script = """
        import psutil
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        conf = {"spark.hadoop.fs.s3a.secret.key": "canary-1", "spark.ssl.keyPassword": "canary-2", "spark.mine": "seen"}
        with SparkSessions(Settings(spark_master="local[1]"), conf) as sessions:
            context = sessions.session("run", "pipeline").sparkContext
            words = psutil.Process(context._gateway.proc.pid).cmdline()
            print("spark.mine=seen" in words, [word for word in words if "canary" in word])
            print(all(context.getConf().get(key) == value for key, value in conf.items()))
            print(context._jsc.hadoopConfiguration().get("fs.s3a.secret.key"))
    """
    assert in_fresh_process(script).splitlines() == ["True []", "True", "canary-1"]


def test_what_python_lets_go_of_last_is_no_error() -> None:
    script = """
        import logging, signal, sys, threading
        from py4j.clientserver import ClientServerConnection, FinalizerWorker
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark import driver_start
        from pipeline_assets.spark.session import SparkSessions

        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        sessions = SparkSessions(Settings(spark_master="local[1]"))
        frames = [sessions.session("run", "pipeline").range(5)]
        client = frames[0].sparkSession._sc._gateway._gateway_client
        (worker,) = (each for each in threading.enumerate() if isinstance(each, FinalizerWorker))
        # It has a connection once it has let go of something.
        while client.finalizer_deque or len(client.deque) < 2:
            threading.Event().wait(0.02)

        def send_command(connection, command, send=ClientServerConnection.send_command):
            if threading.current_thread() is worker:
                told.set()
            return send(connection, command)

        def end(process, end=driver_start._end):
            # It ends before it has read what it is told.
            process.send_signal(signal.SIGSTOP)
            frames.clear()
            while client.finalizer_deque and not told.is_set():
                threading.Event().wait(0.02)
            process.kill()
            end(process)

        told = threading.Event()
        ClientServerConnection.send_command = send_command
        driver_start._end = end
        sessions.close()
        worker.join(60)
        print(worker.is_alive())
    """
    assert in_fresh_process(script) == "False\n"


def test_a_jvm_that_does_not_end_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_start, "_STOP_SECONDS", 0.2)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        driver_start._end(process)
    assert not psutil.pid_exists(process.pid)


def test_java_that_is_missing_is_said(tmp_path: Path) -> None:
    script = """
        from pipeline_assets.errors import ConfigurationError
        from pipeline_assets.settings import Settings
        from pipeline_assets.spark.session import SparkSessions

        try:
            with SparkSessions(Settings(spark_master="local[2]"), {"spark.jars": ""}) as sessions:
                sessions.session("run", "orders")
        except ConfigurationError as error:
            print(error.message)
    """
    environment = {**os.environ, "JAVA_HOME": str(tmp_path)}
    done: Any = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=120, check=True, env=environment,
    )  # fmt: skip
    assert "JDK or JRE 17 or 21" in done.stdout


def test_no_name_changes_the_options_of_the_jvm() -> None:
    told = log_options(Settings(), 'a "run\\" -Dx=y', "p q")
    options = shlex.split(told)
    assert options[:2] == ["-Dpipeline_assets.run_id=a__run___-Dx=y", "-Dpipeline_assets.pipeline=p_q"]


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("log4j2.properties", True),
        ("log4j2.xml", True),
        ("log4j2.properties.template", False),
        ("spark-defaults.conf", False),
    ],
)
def test_a_layout_of_ones_own_in_sparks_conf_folder(
    file: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.delenv("SPARK_SUBMIT_OPTS", raising=False)
    (tmp_path / file).touch()
    options = shlex.split(log_options(Settings(), "run", "pipeline"))
    assert own is not any(option.startswith("-Dlog4j2.configurationFile=") for option in options)


def test_a_server_that_can_not_clone_a_session() -> None:
    class Unimplemented(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNIMPLEMENTED

    class Session:
        def cloneSession(self) -> None:  # noqa: N802  (PySpark's name)
            raise Unimplemented

    with pytest.raises(ConfigurationError, match=r"has to be of Spark 4\.1 or later"), cloned_session(Session()):  # type: ignore[arg-type]
        pass
