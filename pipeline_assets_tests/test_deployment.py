"""The files of docs/deployment: by the linters of their kinds, and run as far as goes without a container engine."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import psycopg
import pyspark
import pytest
import yaml
from compose_spec import PyCompose
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient

from devstack.kafka import KafkaServer
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import PostgresServer
from devstack.processes import PartRun, ProcessRecord, server_environment
from devstack.spark_servers import SparkConnectServer
from pipeline_assets.settings import Settings
from pipeline_assets.spark.jars import PACKAGES
from pipeline_assets.spark.session import SparkSessions
from pipeline_assets_tests.config_documents import write_config
from pipeline_assets_tests.integration.conftest import CONNECTIONS
from pipeline_assets_tests.integration.delta_tables import count_rows, rows_of
from pipeline_assets_tests.integration.run_processes import wait_until
from pipeline_assets_tests.integration.test_streams import SCHEMA, from_kafka, stream, to_delta
from pipeline_assets_tests.integration.topics import Topic, events

PROJECT = Path(__file__).parents[1]
DEPLOYMENT = PROJECT / "docs" / "deployment"
PROGRAMS = Path(sys.executable).parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
LOCKED = {
    package["name"]: package["version"] for package in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]
}
DOCKERFILE = (DEPLOYMENT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOYMENT / "compose.yaml").read_text())
VALUES = yaml.safe_load((DEPLOYMENT / "values.yaml").read_text())
MANIFESTS = [
    (path.name, document)
    for path in sorted((DEPLOYMENT / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
KUBERNETES = "1.33"
HOME = "/opt/dagster/dagster_home"


def instructions(name: str) -> list[str]:
    """Return what follows each instruction of this name in the Dockerfile, on one line each."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [
        document for _, document in MANIFESTS if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return found


# The linters


def test_the_dockerfile_by_hadolint() -> None:
    command = [PROGRAMS / "hadolint", "--failure-threshold", "style", DEPLOYMENT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_what_is_sent_to_the_build() -> None:
    """All that the Dockerfile copies from the repository, and nothing else."""
    sent = {line[1:] for line in (DEPLOYMENT / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {name for line in instructions("COPY") if "--from" not in line for name in shlex.split(line)[:-1]}
    assert copied == sent
    assert all((PROJECT / name).exists() for name in copied)


def test_the_compose_file() -> None:
    # Merged keys are YAML's, not Compose's: the parser is to see what comes of them.
    found = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    found.validate()
    assert set(found.service_names()) == {"postgres", "code", "daemon", "webserver", "metrics"}
    done = subprocess.run(
        [PROGRAMS / "compose-lint", "check", DEPLOYMENT / "compose.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_native_libraries_can_be_loaded_where_java_unpacks_them() -> None:
    """Docker mounts a tmpfs with noexec unless told otherwise."""
    mounts = dict(mount.partition(":")[::2] for mount in COMPOSE["services"]["code"]["tmpfs"])
    assert "exec" in mounts["/tmp"].split(",")


@pytest.mark.parametrize(("file", "document"), MANIFESTS, ids=[f"{file}-{it['kind']}" for file, it in MANIFESTS])
def test_kubernetes_objects(file: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_pod_of_executors() -> None:
    files = manifest("ConfigMap", "spark-on-kubernetes")["data"]
    kubernetes_validate.validate(
        {**(pod := yaml.safe_load(files["executor-pod.yaml"])), "metadata": {**pod["metadata"], "name": "executor"}},
        # Spark fills in the image.
        KUBERNETES,
        strict=True,
    )
    conf = dict(line.split(None, 1) for line in files["spark-defaults.conf"].splitlines() if line[:1] not in ("#", ""))
    assert conf["spark.kubernetes.executor.podTemplateFile"] == "/etc/spark/executor-pod.yaml"
    assert manifest("ServiceAccount", conf["spark.kubernetes.authenticate.executor.serviceAccountName"])
    (subject,) = manifest("RoleBinding", "spark-driver")["subjects"]
    assert subject["name"] == VALUES["dagster-user-deployments"]["serviceAccount"]["name"]


def test_the_pod_of_a_run() -> None:
    """What Dagster makes of values.yaml; the chart's part, from values to Dagster's own config, is repeated here."""
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    names = {
        "containerConfig": "container_config",
        "podSpecConfig": "pod_spec_config",
        "podTemplateSpecMetadata": "pod_template_spec_metadata",
    }
    of_launcher = {"run_k8s_config": {names[key]: value for key, value in launcher.items()}}
    of_location = {
        "env": deployment["env"],
        "volumes": deployment["volumes"],
        "volume_mounts": deployment["volumeMounts"],
        "resources": deployment["resources"],
        "service_account_name": VALUES["dagster-user-deployments"]["serviceAccount"]["name"],
    }
    context = K8sContainerContext.create_from_config({"k8s": of_launcher}).merge(
        K8sContainerContext.create_from_config({"k8s": of_location})
    )
    config = DagsterK8sJobConfig(
        job_image="image", dagster_home=HOME, instance_config_map="dagster-instance", postgres_password_secret="secret"
    )
    arguments = ["dagster", "api", "execute_run"]
    made = construct_dagster_k8s_job(config, arguments, "run", context.run_k8s_config, component="run_worker")
    job = ApiClient().sanitize_for_serialization(made)
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "3Gi"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp", *instructions("WORKDIR")[-1:]}
    assert {variable["name"]: variable.get("value") for variable in container["env"]}[
        "VAULT_AUTH_METHOD"
    ] == "kubernetes"
    assert pod["spec"]["serviceAccountName"] == "pipeline-assets"
    assert pod["spec"]["securityContext"]["runAsUser"] == int(instructions("USER")[-1].split(":")[0])
    # Longer than a stream takes to stop, and shorter than Dagster waits for it.
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert 30 + 2 * 20 < grace < VALUES["dagsterDaemon"]["runMonitoring"]["cancelTimeoutSeconds"]
    # Whom the Spark Connect server lets in.
    (rule,) = manifest("NetworkPolicy", "spark-connect")["spec"]["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


# Versions


def test_memory_is_enough_for_what_the_guide_says_of_it() -> None:
    """docs/operations.md: a heap takes a third more and 0.5 GiB, one of 1 GB in all 1.25 GB; Python up to 275 MB."""
    gib = 2**30
    (connect,) = manifest("Deployment", "spark-connect")["spec"]["template"]["spec"]["containers"]
    defaults = manifest("ConfigMap", "spark-connect")["data"]["spark-defaults.conf"]
    heap = int(re.findall(r"^spark\.driver\.memory (\d+)g$", defaults, re.MULTILINE)[0])
    assert in_bytes(connect["resources"]["limits"]["memory"].removesuffix("i")) >= (heap * 4 / 3 + 0.5) * gib
    code = COMPOSE["services"]["code"]
    assert code["environment"]["SPARK_DRIVER_MEMORY"] == "1g"
    instance = yaml.safe_load((DEPLOYMENT / "dagster.yaml").read_text())
    runs = instance["concurrency"]["runs"]["max_concurrent_runs"]
    assert in_bytes(code["mem_limit"]) >= runs * 1.525e9 + 0.3e9  # the last for the code server


def in_bytes(size: str) -> int:
    return int(size[:-1]) * 2 ** {"m": 20, "g": 30}[size[-1].lower()]


def test_versions() -> None:
    version = PYPROJECT["project"]["version"]
    pins = dict(
        re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?==([\d.]+)", text).groups()  # type: ignore[union-attr]
        for extra in (PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"].values())
        for text in extra
        if "==" in text
    )
    assert {name: LOCKED[name] for name in pins} == pins
    # Dagster's libraries are released together.
    assert {pins[f"dagster-{name}"] for name in ("pyspark", "postgres", "k8s")} == {pins["dagster-pyspark"]}
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    (connect,) = manifest("Deployment", "spark-connect")["spec"]["template"]["spec"]["containers"]
    assert deployment["image"]["tag"] == version
    assert connect["image"] == f"{deployment['image']['repository']}:{version}"
    images = {service["image"] for service in COMPOSE["services"].values()}
    assert images == {f"pipeline-assets:{version}", "postgres:16"}
    assert f"--tag pipeline-assets:{version} " in DOCKERFILE
    chart = re.search(r"--version (\S+)", (DEPLOYMENT / "values.yaml").read_text())
    assert chart is not None
    assert chart[1] == pins["dagster"]
    # The executors' Spark is the driver's; its Scala is that of the JARs, its Java that of the image.
    conf = manifest("ConfigMap", "spark-on-kubernetes")["data"]["spark-defaults.conf"]
    (scala,) = {match for package in PACKAGES for match in re.findall(r"spark-.*_(2\.\d+):", package)}
    (java,) = re.findall(r"openjdk-(\d+)-jre-headless", DOCKERFILE)
    assert f"apache/spark:{pins['pyspark']}-scala{scala}-java{java}-python3-ubuntu" in conf
    assert pins["pyspark"] == pyspark.__version__
    (python,) = re.findall(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert python == PYPROJECT["tool"]["mypy"]["python_version"]


def test_the_configs_write_to_a_volume_of_the_compose_file() -> None:
    """Their absolute paths, by the environment of image and service: all else in the container is read-only."""
    code = COMPOSE["services"]["code"]
    of_image = dict(word.split("=", 1) for line in instructions("ENV") for word in shlex.split(line))
    settings = Settings.from_environment({**of_image, **code["environment"]})
    mounts = [volume.split(":") for volume in code["volumes"]]
    writable = [target for _, target, *options in mounts if options != ["ro"]]
    configs = [path.read_text() for path in (PROJECT / "configs").glob("*.json")]
    paths = [path for text in configs for path in re.findall(r'": "(/[^"]*)"', text)]
    assert {"/data/purchases", "/checkpoints/purchases"} <= set(paths)
    for path in paths:
        assert any(Path(settings.resolve(path)).is_relative_to(target) for target in writable), path


# The instance


def test_the_instance_keeps_runs_in_postgresql(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in storage_of(replace(postgres, database="dagster_storage"), tmp_path).items():
        monkeypatch.setenv(name, value)
    shutil.copy(DEPLOYMENT / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        job = dg.GraphDefinition(name="empty", node_defs=[]).to_job()
        run_id = job.execute_in_process(instance=instance).run_id
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_cancel_timeout_seconds == 180
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert instance.run_coordinator.dequeue_interval_seconds == 1  # type: ignore[attr-defined]
    with psycopg.connect(**connection_of(postgres, "dagster_storage")) as connection:
        assert connection.execute("select run_id, status from runs").fetchall() == [(run_id, "SUCCESS")]


def test_the_instance_of_the_helm_chart(tmp_path: Path) -> None:
    """What limits runs, of values.yaml; the chart's part, from values to dagster.yaml, is repeated here."""
    queued = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    concurrency = VALUES["concurrency"]
    made = {
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in queued.items()},
        },
        "concurrency": {
            "pools": {"default_limit": concurrency["pools"]["defaultLimit"]},
            "runs": {"max_concurrent_runs": concurrency["runs"]["maxConcurrentRuns"]},
        },
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(made))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        found = instance.get_concurrency_config()
        assert found.pool_config.default_pool_limit == 1
        assert found.run_queue_config is not None
        assert found.run_queue_config.max_concurrent_runs == 10
        assert instance.run_coordinator.dequeue_interval_seconds == 1  # type: ignore[attr-defined]


def storage_of(postgres: PostgresServer, folder: Path) -> dict[str, str]:
    """Make the database, and return what dagster.yaml asks the environment for."""
    assert postgres.create_database() is None
    values = {"HOST": postgres.host, "PORT": postgres.port, "DB": postgres.database, "USERNAME": postgres.user}
    return {
        **{f"DAGSTER_PG_{name}": str(value) for name, value in values.items()},
        "DAGSTER_PG_PASSWORD": postgres.password,
        "DAGSTER_COMPUTE_LOGS": str(folder / "compute_logs"),
    }


def connection_of(postgres: PostgresServer, database: str) -> dict[str, Any]:
    return {
        "host": postgres.host,
        "port": postgres.port,
        "dbname": database,
        "user": postgres.user,
        "password": postgres.password,
    }


# The image's environment


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile's steps make of the sent files, in a folder of its own: the programs of its environment."""
    folder = tmp_path_factory.mktemp("image")
    uv = shutil.which("uv") or str(PROJECT / ".uv" / "bin" / "uv")
    environment = {
        **os.environ,
        "UV_PYTHON": str(Path(sys.base_prefix) / "bin" / "python3"),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    environment.pop("VIRTUAL_ENV", None)
    steps = [line for line in instructions("RUN") if line.startswith("uv ")]
    assert len(steps) == 2
    for step in steps:
        for name in ("pyproject.toml", "uv.lock", "README.md"):
            shutil.copy(PROJECT / name, folder)
        if "--no-install-project" not in step:
            shutil.copytree(PROJECT / "pipeline_assets", folder / "pipeline_assets")
        done = subprocess.run(
            [uv, *shlex.split(step)[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "pipeline_assets")  # not editable: what is installed is enough
    return folder / ".venv" / "bin"


def run_in(image: Path, *command: str, cwd: Path) -> str:
    environment = {**server_environment(), "PATH": f"{image}:{os.environ['PATH']}", "DAGSTER_HOME": str(cwd)}
    environment["PIPELINE_ASSETS_CONFIGS"] = str(PROJECT / "configs")
    for name in set(re.findall(r"\$\{(\w+)\}", CONNECTIONS.read_text())):
        environment[name] = "1"
    done = subprocess.run(
        [image / command[0], *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_has_what_runs_need_and_nothing_else(image: Path, tmp_path: Path) -> None:
    program = "import importlib.metadata as m, json; print(json.dumps([d.name.lower() for d in m.distributions()]))"
    installed = set(json.loads(run_in(image, "python", "-c", program, cwd=tmp_path)))
    assert {"pipeline-assets", "pyspark", "dagster-postgres", "dagster-k8s", "dagster-webserver"} <= installed
    only_for_developers = {re.split(r"[<>=\[]", text)[0] for text in PYPROJECT["dependency-groups"]["dev"]}
    needed = {"dagster-k8s", "dagster-postgres", "pandas"}
    assert installed & only_for_developers <= needed
    assert "configs are valid" in run_in(image, "pipeline-assets", "validate", cwd=tmp_path)
    run_in(image, "dagster", "definitions", "validate", "-m", "pipeline_assets.definitions", cwd=tmp_path)


# The whole deployment of compose.yaml, on this machine


class Containers:
    """The services of compose.yaml as processes, each with its own in a session of its own, as in a container."""

    def __init__(self, folder: Path, image: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.ports = {"3000": str(free_port()), "4000": str(free_port()), "9464": str(free_port())}
        self._image = image
        self._environment = environment
        (folder / "data").mkdir()
        (folder / "logs").mkdir()
        self.run = PartRun("deployment", data=folder / "data", logs=folder / "logs")

    def here(self, command: list[str]) -> list[str]:
        """Return ``command`` with the ports, addresses and paths of this machine."""
        ports = "|".join(self.ports)
        words = [word.replace("0.0.0.0", LOOPBACK).replace(HOME, str(self.folder / "home")) for word in command]
        if words[0] == "CMD":
            words = words[1:]
        words = [re.sub(rf"\b({ports})\b", lambda found: self.ports[found[1]], word) for word in words]
        return [str(self._image / words[0]), *words[1:]]

    def start(self, service: str) -> ProcessRecord:
        """Start a service by its command, and wait until its health check succeeds."""
        command = COMPOSE["services"][service].get("command") or json.loads(instructions("CMD")[0])
        check = (COMPOSE["services"][service].get("healthcheck") or {}).get("test")
        health = self.here(check or json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2]))
        record = self.run.spawn(service, self.here(command), environment=self._environment)
        self.run.wait_until_ready(lambda: self._problem(health), limit=300)
        return record

    def _problem(self, health: list[str]) -> str | None:
        done = subprocess.run(health, env=dict(self._environment), capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr)[-500:] if done.returncode else None


@pytest.fixture
def containers(image: Path, postgres: PostgresServer, kafka: KafkaServer, tmp_path: Path) -> Iterator[Containers]:
    home, configs = tmp_path / "home", tmp_path / "configs"
    home.mkdir()
    configs.mkdir()
    write_config(configs, CONNECTIONS.read_text(), "connections.json")
    environment = server_environment(
        {
            **storage_of(replace(postgres, database="dagster_deployment"), tmp_path),
            **postgres.environment,
            **kafka.environment,
            "SPARK_SUBMIT_OPTS": os.environ["SPARK_SUBMIT_OPTS"],
            "PATH": f"{image}:{os.environ['PATH']}",
            "DAGSTER_HOME": str(home),
            "PIPELINE_ASSETS_CONFIGS": str(configs),
            "PIPELINE_ASSETS_WAREHOUSE": str(tmp_path / "warehouse"),
            "PIPELINE_ASSETS_METRICS": str(tmp_path / "metrics"),
            "PIPELINE_ASSETS_PATH_PREFIX": str(tmp_path / "root"),
            "SPARK_MASTER": "local[2]",
        }
    )
    found = Containers(tmp_path, image, environment)
    shutil.copy(DEPLOYMENT / "dagster.yaml", home)
    workspace = (DEPLOYMENT / "workspace.yaml").read_text().replace("host: code", f"host: {LOOPBACK}")
    (home / "workspace.yaml").write_text(workspace.replace("4000", found.ports["4000"]))
    try:
        yield found
    finally:
        found.run.stop()


def test_the_deployment(containers: Containers, kafka: KafkaServer, postgres: PostgresServer) -> None:
    """Sensor, queue, run and metrics work, and a stop of the code location's container ends its stream in order."""
    topic = Topic(kafka).make()
    document = stream(from_kafka(topic, schema=SCHEMA, maxOffsetsPerTrigger=100), to_delta(trigger="100 milliseconds"))
    write_config(containers.folder / "configs", {**document, "sensor": {"status": "running", "interval": 1}})
    topic.send(events(0, 1000))
    table = containers.folder / "root" / "out"
    code = containers.start("code")
    containers.start("webserver")
    containers.start("daemon")
    wait_until(lambda: count_rows(table) >= 300)
    containers.start("metrics")
    page = f"http://{LOOPBACK}:{containers.ports['9464']}/metrics"
    wait_until(lambda: b"pipeline_assets_stream_lag_records{" in urllib.request.urlopen(page).read())
    members = code.session()
    assert any(process.name() == "java" for process in members)
    # What tini -g does with the image's STOPSIGNAL.
    os.killpg(code.pid, getattr(signal, instructions("STOPSIGNAL")[0]))
    wait_until(lambda: not code.session(), 90)
    found = sorted(map(int, rows_of(table)["id"]))
    assert found == list(range(len(found)))
    assert not (containers.folder / "root/checkpoints/out/pipeline_assets/lease.json").exists()
    with psycopg.connect(**connection_of(postgres, "dagster_deployment")) as connection:
        # Those that the sensor asks for after it find no code location.
        assert connection.execute("select status from runs order by id").fetchone() == ("CANCELED",)
    topic.delete()


# The Spark Connect server


def test_the_spark_connect_server(image: Path, tmp_path: Path) -> None:
    """Its container's command, on the settings of its ConfigMap, serves Delta tables, and tells what its jobs did."""
    from pipeline_assets.spark.job_metrics import JobMetrics
    from pipeline_assets.spark.job_watch import JobWatch

    server = SparkConnectServer(LOOPBACK, free_port())
    files = manifest("ConfigMap", "spark-connect")["data"]
    (container,) = manifest("Deployment", "spark-connect")["spec"]["template"]["spec"]["containers"]
    conf = files["spark-defaults.conf"].replace("/etc/spark", str(tmp_path / "spark"))
    (tmp_path / "spark").mkdir()
    jobs_port = free_port()
    conf = (
        conf.replace("15002", str(server.port))
        .replace("15003", str(jobs_port))
        .replace("spark.driver.memory 4g", "spark.driver.memory 1g")
    )
    conf += f"spark.connect.grpc.binding.address {LOOPBACK}\nspark.driver.host {LOOPBACK}\n"
    (tmp_path / "spark" / "spark-defaults.conf").write_text(conf)
    (tmp_path / "spark" / "pools.xml").write_text(files["pools.xml"])
    environment = server_environment(
        {
            "PATH": f"{image}:{os.environ['PATH']}",
            "SPARK_CONF_DIR": str(tmp_path / "spark"),
            "SPARK_SUBMIT_OPTS": os.environ["SPARK_SUBMIT_OPTS"],
        }
    )
    for name in ("data", "logs"):
        (tmp_path / name).mkdir()
    run = PartRun("connect", data=tmp_path / "data", logs=tmp_path / "logs")
    try:
        run.spawn("connect", container["args"], environment=environment)
        run.wait_until_ready(server.problem, limit=300)
        with SparkSessions(Settings(spark_remote=server.remote)) as sessions:
            spark = sessions.session("run", "pipeline")
            told: list[JobMetrics] = []
            with JobWatch(spark).watched(lambda metrics, _: told.append(metrics)):
                spark.range(10).write.format("delta").save(str(tmp_path / "table"))
    finally:
        run.stop()
    assert sorted(rows_of(tmp_path / "table")["id"]) == list(range(10))
    assert [metrics.rows_read for metrics in told] == [10]


def test_the_spark_connect_server_is_set_as_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To all that `pipeline-assets spark-server start` sets, but for what is of the place, and for logs."""
    from pipeline_assets.spark.connect_server import ConnectServer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = ConnectServer(LOOPBACK, 15002).conf(Settings(), {})
    lines = manifest("ConfigMap", "spark-connect")["data"]["spark-defaults.conf"].splitlines()
    given = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    of_the_place = {
        "spark.app.name", "spark.connect.grpc.binding.address", "spark.driver.bindAddress", "spark.driver.host",
        "spark.pyspark.driver.python", "spark.jars", "spark.log.level", "spark.log.structuredLogging.enabled",
        # Of the sessions, which get them from the runs.
        "spark.sql.redaction.options.regex", "spark.sql.redaction.string.regex", "spark.sql.session.timeZone",
        "spark.sql.debug.maxToStringFields",
    }  # fmt: skip
    assert made.keys() - given.keys() <= of_the_place
    for key in given.keys() & made.keys() - {"spark.scheduler.allocation.file", "spark.redaction.regex"}:
        assert given[key] == made[key], key


# What docs/operations.md says


def guide() -> str:
    return (PROJECT / "docs" / "operations.md").read_text()


def test_what_the_guide_quotes_is_said() -> None:
    """Each message in its tables of symptoms is put together from texts in the code."""
    texts = [
        "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for path in (PROJECT / "pipeline_assets").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    symptoms = guide().partition("## When a stream is down")[2].partition("## Routine")[0]
    quoted = re.findall(r"^\| (?:\.\.\. )?`([^`]+)`", symptoms, re.MULTILINE)
    assert len(quoted) >= 15
    for message in quoted:
        for part in re.split(r"\.{3}|\d[\d.]*(?: s\b)?|[(),:]", message):
            words = part.strip()
            assert len(words) < 6 or any(words in text for text in texts), f"nobody says {words!r} of {message!r}"


def test_the_guides_maintenance_can_be_repeated_on_a_server_that_stays(
    spark_connect_server: SparkConnectServer, tmp_path: Path
) -> None:
    """It finds the table where pipelines have it, by their environment."""
    table = tmp_path / "data" / "purchases"
    (block,) = [block for block in re.findall(r"^```sh\n(.*?)^```$", guide(), re.M | re.S) if "OPTIMIZE" in block]
    with SparkSessions(Settings(spark_remote=spark_connect_server.remote)) as sessions:
        spark = sessions.session(str(tmp_path), "writes")
        for _ in range(2):
            spark.range(10).coalesce(1).write.format("delta").mode("append").save(str(table))
    environment = server_environment(
        {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "SPARK_REMOTE": spark_connect_server.remote,
            "PIPELINE_ASSETS_PATH_PREFIX": str(tmp_path),
        }
    )
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-c", block], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    log = "".join(path.read_text() for path in table.glob("_delta_log/*.json"))
    assert log.count('"operation":"OPTIMIZE"') == 1


def test_where_the_guide_points_to() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", guide()):
        file, _, anchor = target.partition("#")
        path = (PROJECT / "docs" / file) if file else PROJECT / "docs" / "operations.md"
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, target
