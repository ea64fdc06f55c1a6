"""The devstack on real servers: what each does with a real client, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from devstack import postgres as postgres_part
from devstack.cache import cache_folder, made_once
from devstack.errors import PartFailedError, UnsafeHomeError, UnwritableCacheError
from devstack.kafka import KafkaBroker, KafkaServer
from devstack.postgres import Postgres, PostgresServer
from devstack.processes import PartRun, ProcessRecord, is_alive, server_environment, stop_processes
from devstack.s3 import S3Server
from devstack.spark_servers import SparkCluster, SparkConnectServer
from devstack.stack import Stack
from devstack.vault import Vault, VaultServer

REPOSITORY = Path(__file__).parents[2]


# Each part with a real client


def test_postgres_answers_a_query_and_refuses_a_wrong_password(postgres: PostgresServer) -> None:
    import psycopg

    # No arguments: the names in .environment are those that PostgreSQL's own clients know.
    arguments = {
        "host": postgres.environment["PGHOST"],
        "port": postgres.environment["PGPORT"],
        "dbname": postgres.environment["PGDATABASE"],
        "user": postgres.environment["PGUSER"],
    }
    with psycopg.connect(**arguments, password=postgres.environment["PGPASSWORD"]) as connection:
        row = connection.execute("select 6 * 7, current_database(), current_setting('server_encoding')").fetchone()
    assert row == (42, "pipeline", "UTF8")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**arguments, password="wrong")


def test_postgres_is_found_on_the_path_where_nothing_else_is(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_part, "_DEBIAN", open_folder / "no-debian")
    monkeypatch.setattr(postgres_part, "package_folder", lambda _package: None)
    monkeypatch.setenv("PATH", str(open_folder / "bin"))
    (open_folder / "bin").mkdir()
    assert "PATH" in (Postgres().missing() or "")
    program = _fake_initdb(open_folder / "17" / "bin")
    (open_folder / "bin" / "initdb").symlink_to(program)
    assert Postgres().missing() is None
    assert postgres_part._programs() == program.parent


def test_a_postgres_that_its_user_cannot_run_is_passed_over(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = open_folder / "closed" / "pgserver"
    _fake_initdb(package / "pginstall" / "bin")
    monkeypatch.setattr(postgres_part, "_DEBIAN", open_folder / "no-debian")
    monkeypatch.setattr(postgres_part, "package_folder", lambda _package: package)
    monkeypatch.setenv("PATH", str(open_folder / "bin"))
    # Neither for root's postgres nor for whoever else runs the tests, and who owns it.
    package.parent.chmod(0o600)
    advice = Postgres().missing() or ""
    assert f"{package}/pginstall/bin/initdb can't be run by" in advice
    assert "apt install postgresql" in advice
    assert "\n" not in advice
    _fake_initdb(open_folder / "bin")
    assert postgres_part._programs() == open_folder / "bin"
    package.parent.chmod(0o755)
    assert postgres_part._programs() == package / "pginstall" / "bin"


def _fake_initdb(folder: Path) -> Path:
    folder.mkdir(parents=True)
    program = folder / "initdb"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_s3_gives_back_what_was_put_and_refuses_wrong_keys(s3: S3Server) -> None:
    from botocore.exceptions import ClientError

    client = s3.client()
    client.put_object(Bucket=s3.bucket, Key="orders/1.json", Body=b'{"id": 1}')
    assert client.get_object(Bucket=s3.bucket, Key="orders/1.json")["Body"].read() == b'{"id": 1}'
    for wrong in (replace(s3, secret_access_key="wrong"), replace(s3, access_key_id="AKWRONG")):
        with pytest.raises(ClientError) as caught:
            wrong.client().get_object(Bucket=s3.bucket, Key="orders/1.json")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{s3.endpoint}/{s3.bucket}/orders/1.json")


def test_kafka_gives_back_what_was_produced(kafka: KafkaServer) -> None:
    _produce(kafka, "events", range(10))
    assert _consume(kafka, "events", 10) == list(range(10))


def test_kafka_keeps_its_records_and_its_address_over_a_restart(own_kafka: KafkaBroker) -> None:
    _produce(own_kafka.server, "kept", range(10))
    own_kafka.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((own_kafka.server.host, own_kafka.server.port), timeout=5)
    own_kafka.start()
    _produce(own_kafka.server, "kept", range(10, 20))
    assert _consume(own_kafka.server, "kept", 20) == list(range(20))


def test_kafka_s_password_is_not_told(part_run: PartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devstack.kafka.jars_folder", lambda *_: tmp_path)
    monkeypatch.setattr(PartRun, "run_to_end", lambda *_, **__: None)
    server = KafkaBroker.prepare(part_run).server
    assert server.password not in repr(server)
    record = part_run.spawn("kafka", ["echo", server.password], environment=server_environment())
    _wait_for(lambda: not record.alive())
    assert part_run.failure(record, "it failed").tail == "*****"


def _produce(kafka: KafkaServer, topic: str, numbers: Iterable[int]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in numbers:
        producer.produce(topic, key=str(number), value=json.dumps({"number": number}))
    assert producer.flush(120) == 0


def _consume(kafka: KafkaServer, topic: str, count: int) -> list[int]:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    messages = consumer.consume(count, timeout=120)
    consumer.close()
    return [json.loads(message.value())["number"] for message in messages]


def test_vault_keeps_secrets_and_can_be_sealed_and_unsealed(vault: VaultServer) -> None:
    import hvac

    client = hvac.Client(url=vault.environment["VAULT_ADDR"], token=vault.environment["VAULT_TOKEN"])
    client.secrets.kv.v2.create_or_update_secret("postgres", secret={"password": "s3cret"})
    read = client.secrets.kv.v2.read_secret_version("postgres", raise_on_deleted_version=True)
    assert read["data"]["data"] == {"password": "s3cret"}
    client.secrets.kv.v1.create_or_update_secret("postgres", secret={"password": "0ld"}, mount_point="kv")
    assert client.secrets.kv.v1.read_secret("postgres", mount_point="kv")["data"] == {"password": "0ld"}
    assert {"approle/", "jwt/", "kubernetes/"} <= client.sys.list_auth_methods()["data"].keys()
    assert "database/" in client.sys.list_mounted_secrets_engines()["data"]
    client.sys.seal()
    assert "503" in (vault.problem() or "")
    client.sys.submit_unseal_key(vault.unseal_key)
    assert vault.problem() is None
    with pytest.raises(hvac.exceptions.Forbidden):
        hvac.Client(url=vault.url, token="wrong").secrets.kv.v2.read_secret_version(
            "postgres", raise_on_deleted_version=True
        )


def test_spark_connect_server_runs_a_query(spark_connect_server: SparkConnectServer) -> None:
    script = "spark = SparkSession.builder.getOrCreate(); print(spark.range(100).selectExpr('sum(id)').first()[0])"
    assert _run_spark(script, spark_connect_server.environment) == "4950"


def test_spark_cluster_has_two_workers(spark_cluster: SparkCluster) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{spark_cluster.web_port}/json/") as answer:
        assert [worker["state"] for worker in json.load(answer)["workers"]] == ["ALIVE", "ALIVE"]


def _run_spark(script: str, environment: dict[str, str]) -> str:
    """In a process of its own: one process can have one kind of Spark session."""
    done = subprocess.run(
        [sys.executable, "-c", f"from pyspark.sql import SparkSession\n{script}"],
        env={**server_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_port_is_on_loopback(
    devstack: Stack,
    postgres: PostgresServer,
    s3: S3Server,
    kafka: KafkaServer,
    vault: VaultServer,
    spark_connect_server: SparkConnectServer,
    spark_cluster: SparkCluster,
) -> None:
    sessions = {record.pid for state in devstack.states().values() for record in state.processes}
    assert len(sessions) == 8
    listening = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid:
            try:
                session = os.getsid(connection.pid)
            except ProcessLookupError:
                continue
            if session in sessions:
                listening.setdefault(session, set()).add(connection.laddr.ip)
    assert listening.keys() == sessions
    assert set().union(*listening.values()) <= {"127.0.0.1", "::ffff:127.0.0.1"}


# The command line


class CommandLine:
    """``python -m devstack`` with state, data and temporary files in a folder of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.environment = {
            **os.environ,
            "DEVSTACK_HOME": str(self.home),
            "TMPDIR": str(base),
            "XDG_CACHE_HOME": str(cache_folder().parent),
            "NOT_FOR_SERVERS": "a secret of the caller",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), env=self.environment, cwd=REPOSITORY, capture_output=True, text=True,
            timeout=500, check=False,
        )  # fmt: skip

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(arguments), env=self.environment, cwd=REPOSITORY, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "devstack", *arguments]

    def processes(self) -> list[str]:
        """What runs on this folder: it is in every server's command line, environment or working folder."""
        return [line for line in map(self._belongs_here, psutil.process_iter()) if line]

    def _belongs_here(self, process: psutil.Process) -> str | None:
        try:
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
            return f"{process.pid} {process.name()}" if any(str(self.base) in word for word in words) else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def data(self) -> list[Path]:
        return [*self.base.glob("home/data/*"), *self.base.glob("pipeline-assets-*")]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder like tmp_path that PostgreSQL's own user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="devstack-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def command_line(open_folder: Path) -> Iterator[CommandLine]:
    line = CommandLine(open_folder)
    yield line
    line.run("down")
    assert line.processes() == []


def test_up_leaves_servers_running_until_down(command_line: CommandLine) -> None:
    up = command_line.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    status = command_line.run("status")
    assert status.returncode == 0, status.stdout
    assert [line.split()[:2] for line in status.stdout.splitlines()[1:]] == [
        [name, "healthy"] for name in ("postgres", "s3", "kafka", "vault")
    ]
    as_json = json.loads(command_line.run("env", "--json").stdout)
    assert set(as_json) == {
        "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "S3_ENDPOINT", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "KAFKA_BOOTSTRAP_SERVERS", "VAULT_ADDR", "VAULT_TOKEN",
    }  # fmt: skip
    script = f'eval "{command_line.run("env").stdout}"; env -0'.replace('"', "'")
    seen = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
    assert {f"{name}={value}" for name, value in as_json.items()} <= set(seen)

    pids = _pids(command_line)
    secret_names = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "VAULT_TOKEN")
    for pid in pids:
        assert "NOT_FOR_SERVERS" not in psutil.Process(pid).environ()
        assert not {as_json[name] for name in secret_names} & set(psutil.Process(pid).cmdline())
    again = command_line.run("up")
    assert again.returncode == 0
    assert again.stdout.count("already running") == 4
    assert _pids(command_line) == pids

    down = command_line.run("down")
    assert down.returncode == 0, down.stderr
    assert command_line.processes() == []
    assert list(command_line.base.iterdir()) == []
    assert command_line.run("status").returncode == 1
    nothing = command_line.run("env")
    assert (nothing.returncode, nothing.stdout) == (1, "")


def test_status_notices_a_dead_server_and_up_starts_it_anew(command_line: CommandLine) -> None:
    assert command_line.run("up", "vault").returncode == 0
    (pid,) = _pids(command_line)
    vault = psutil.Process(pid)
    vault.kill()
    _wait_for(lambda: not psutil.pid_exists(pid))
    status = command_line.run("status", "vault")
    assert status.returncode == 1
    assert "has ended" in status.stdout
    assert command_line.run("up", "vault").returncode == 0
    assert command_line.run("status").returncode == 0


def test_up_waits_for_a_server_that_is_slow_to_answer(command_line: CommandLine) -> None:
    assert command_line.run("up", "vault").returncode == 0
    pids = _pids(command_line)
    os.kill(pids[0], signal.SIGSTOP)
    up = command_line.popen("up", "vault")
    assert up.stdout is not None
    line = next(up.stdout)
    os.kill(pids[0], signal.SIGCONT)
    rest, _ = up.communicate(timeout=300)
    assert "runs, but does not answer yet" in line
    assert "already running" in rest
    assert _pids(command_line) == pids


def test_up_replaces_a_server_that_does_not_answer_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devstack.stack._ANSWER_LIMIT", 0.3)
    stack = Stack(tmp_path / "home")
    try:
        sealed = stack.server(Vault(), VaultServer)
        sealed.request("PUT", "sys/seal")
        replaced = stack.server(Vault(), VaultServer)
        assert replaced != sealed
        assert replaced.problem() is None
    finally:
        stack.down()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["postgres: making", "kafka: starting", "s3: starting"])
def test_interrupted_up_leaves_nothing_behind(command_line: CommandLine, number: signal.Signals, moment: str) -> None:
    up = command_line.popen("up")
    assert up.stdout is not None
    seen = []
    for line in up.stdout:
        seen.append(line)
        if moment in line:
            break
    else:
        pytest.fail("".join(seen))
    up.send_signal(signal.SIGSTOP)  # or it might be done before it has been looked at
    assert command_line.processes() != []
    up.send_signal(number)
    up.send_signal(signal.SIGCONT)
    rest, _ = up.communicate(timeout=300)
    assert up.returncode == 128 + number, rest
    assert command_line.processes() == []
    assert command_line.data() == []
    assert command_line.run("status").returncode == 1


def test_interrupted_up_keeps_what_an_earlier_up_started(command_line: CommandLine) -> None:
    assert command_line.run("up", "vault").returncode == 0
    pids = _pids(command_line)
    up = command_line.popen("up", "vault", "kafka")
    assert up.stdout is not None
    next(line for line in up.stdout if "kafka: starting" in line)
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=300)
    assert _pids(command_line) == pids
    assert command_line.run("status", "vault").returncode == 0


def test_a_killed_up_is_cleaned_up_by_down(command_line: CommandLine) -> None:
    up = command_line.popen("up", "kafka", "postgres")
    assert up.stdout is not None
    next(line for line in up.stdout if "kafka: starting" in line)
    up.kill()
    up.communicate()
    assert command_line.run("down").returncode == 0
    assert command_line.processes() == []
    assert list(command_line.base.iterdir()) == []


def test_a_broken_part_shows_the_end_of_its_log(command_line: CommandLine) -> None:
    programs = command_line.base / "bin"
    programs.mkdir()
    broken = programs / "vault"
    says = ('echo "Unseal Key: c2VjcmV0="', 'echo "token is $VAULT_DEV_ROOT_TOKEN_ID"', 'echo "storage is on fire" >&2')
    broken.write_text("\n".join(["#!/bin/sh", *says, "exit 3\n"]))
    broken.chmod(0o755)
    command_line.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    up = command_line.run("up", "vault", "s3")
    assert up.returncode == 1
    assert "vault ended with exit code 3" in up.stderr
    log = command_line.home / "logs" / "vault" / "vault.log"
    assert f"log: {log}" in up.stderr
    assert log.stat().st_mode & 0o777 == 0o600
    assert "  | *****\n  | token is *****\n  | storage is on fire" in up.stderr
    assert command_line.run("status").returncode == 1
    assert command_line.run("status", "s3").returncode == 0


def test_up_without_go_and_vault_warns_and_starts_the_others(command_line: CommandLine) -> None:
    programs = command_line.base / "bin"
    programs.mkdir()
    java = shutil.which("java")
    assert java is not None
    (programs / "java").symlink_to(java)
    command_line.environment["PATH"] = str(programs)
    caches = command_line.base / "cache" / "pipeline-assets"
    caches.mkdir(parents=True)
    (cache_folder() / "jars").mkdir(parents=True, exist_ok=True)
    (caches / "jars").symlink_to(cache_folder() / "jars")
    command_line.environment["XDG_CACHE_HOME"] = str(caches.parent)
    up = command_line.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "warning: vault is left out: install Vault, or Go" in up.stderr
    assert command_line.run("status").returncode == 0
    asked_for = command_line.run("up", "vault")
    assert asked_for.returncode == 1
    assert asked_for.stderr.startswith("error: vault: install Vault, or Go")


def test_a_home_that_others_can_read_is_refused(command_line: CommandLine) -> None:
    command_line.home.mkdir(mode=0o755)
    up = command_line.run("up", "vault")
    assert up.returncode == 1
    assert "other users may look into it" in up.stderr
    with pytest.raises(UnsafeHomeError):
        Stack(command_line.home).states()
    command_line.home.rmdir()


# Processes


def test_a_server_that_never_answers_is_given_up(part_run: PartRun) -> None:
    part_run.spawn("deaf", ["sh", "-c", "echo listening to nobody; exec sleep 600"], environment=server_environment())
    with pytest.raises(PartFailedError) as caught:
        part_run.wait_until_ready(lambda: "connection refused", limit=0.3)
    assert "connection refused" in caught.value.reason
    assert caught.value.log == part_run.logs / "deaf.log"


def test_stop_kills_a_server_that_ignores_the_signal_with_its_children(part_run: PartRun) -> None:
    script = "trap '' TERM; sleep 600 & sleep 600 & echo up; while :; do wait; done"
    record = part_run.spawn("stubborn", ["sh", "-c", script], environment=server_environment())
    _wait_for(lambda: len(record.session()) == 3)
    members = record.session()
    stop_processes([record], limit=0.5)
    assert not any(map(is_alive, members))


def test_stop_finds_the_children_of_a_server_that_has_crashed(part_run: PartRun) -> None:
    record = part_run.spawn("crashed", ["sh", "-c", "sleep 600 & exec sleep 601"], environment=server_environment())
    _wait_for(lambda: len(record.session()) == 2)
    psutil.Process(record.pid).kill()
    _wait_for(lambda: not record.alive())
    _wait_for(record.session)  # what is just being started has no environment to be known by
    (child,) = record.session()
    stop_processes([record])
    assert not is_alive(child)


def test_stop_spares_another_process_with_the_same_pid(part_run: PartRun) -> None:
    record = part_run.spawn("other", ["sleep", "600"], environment=server_environment())
    recycled = replace(record, started=record.started - 3600, marker="another")
    stop_processes([recycled])
    assert not recycled.alive()
    assert record.alive()


def test_what_vault_needs_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    advice = Vault().missing()
    assert advice is not None
    assert "\n" not in advice


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not a folder without permission, in which root may write.
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnwritableCacheError, match="set XDG_CACHE_HOME"):
        made_once(cache_folder() / "jars", lambda: None)


def _pids(command_line: CommandLine) -> list[int]:
    state: dict[str, Any] = json.loads((command_line.home / "state.json").read_text())
    return [ProcessRecord(**record).pid for part in state.values() for record in part["processes"]]


def _wait_for(condition: Any, limit: float = 120) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
