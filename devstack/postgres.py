"""PostgreSQL: the system's server on Debian, else the one in the Python package pgserver, else that on the PATH."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack.java import package_folder
from devstack.ports import LOOPBACK, free_port
from devstack.processes import PartRun, server_environment

if TYPE_CHECKING:
    import psycopg

_DATABASE = "pipeline"
_DEBIAN = Path("/usr/lib/postgresql")  # a folder for each version, none of them on the PATH


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL server with one database and its owner, who is a superuser."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.database,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
        }

    @property
    def address(self) -> str:
        return f"postgresql://{self.host}:{self.port}/{self.database}"

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection to the database; as a context manager it commits or rolls back, and closes."""
        import psycopg

        return psycopg.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, dbname=self.database
        )

    def problem(self) -> str | None:
        return self._execute("select 1", self.database)

    def create_database(self) -> str | None:
        """Make the database in which everything happens; says why it could not."""
        return self._execute(f"create database {self.database}", "postgres")

    def _execute(self, statement: str, database: str) -> str | None:
        import psycopg

        try:
            with psycopg.connect(
                host=self.host, port=self.port, user=self.user, password=self.password,
                dbname=database, connect_timeout=5, autocommit=True,
            ) as connection:  # fmt: skip
                connection.execute(statement.encode())
        except psycopg.Error as error:
            return str(error).strip().replace("\n", " ")
        return None


@dataclass(frozen=True)
class Postgres:
    """Starts PostgreSQL on an empty data folder; password authentication over TCP, no Unix socket."""

    name: str = "postgres"

    def missing(self) -> str | None:
        if _programs() is not None:
            return None
        advice = "install PostgreSQL (Debian: apt install postgresql) and put its initdb on the PATH"
        unusable = next(_installed(), None)
        if unusable is None:
            return advice
        whom = f"the user {_server_user()}, as whom root starts PostgreSQL," if _server_user() else "you"
        return f"{unusable}/initdb can't be run by {whom} where it is: {advice}, where everybody may run it"

    def start(self, run: PartRun) -> PostgresServer:
        programs = _programs()
        assert programs is not None, "missing() has looked"
        user = _server_user()
        folder = run.folder_of(user)
        server = PostgresServer(LOOPBACK, free_port(), _DATABASE, _DATABASE, run.secret())
        password_file = folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(server.password)
        if user is not None:
            os.chown(password_file, pwd.getpwnam(user).pw_uid, -1)
        environment = server_environment({"HOME": str(folder)})
        run.say("making its data folder")
        run.run_to_end(
            "initdb",
            [
                programs / "initdb", f"--pgdata={folder}/data", "--encoding=UTF8", "--locale=C", "--no-sync",
                f"--username={server.user}", f"--pwfile={password_file}", "--auth=scram-sha-256",
            ],
            environment=environment,
            limit=60,
            user=user,
            cwd=folder,
        )  # fmt: skip
        password_file.unlink()
        run.say("starting")
        run.spawn(
            "postgres",
            [
                programs / "postgres", "-D", folder / "data", "-p", str(server.port),
                "-c", f"listen_addresses={server.host}", "-c", "unix_socket_directories=",
                "-c", "fsync=off",  # its data does not outlive it
            ],
            environment=environment,
            user=user,
            cwd=folder,
            stop_signal=signal.SIGINT,  # SIGTERM would wait for every client to go first
        )  # fmt: skip
        run.wait_until_ready(server.create_database, limit=60)
        run.wait_until_ready(server.problem, limit=10)
        return server


def _programs() -> Path | None:
    """The first folder whose programs the server's user can run."""
    return next((folder for folder in _installed() if _can_run(folder / "initdb")), None)


def _installed() -> Iterator[Path]:
    """The folders with initdb and postgres; of several versions of Debian the newest first."""
    found = [
        folder for folder in _DEBIAN.glob("*/bin")
        if folder.parent.name.isdigit() and (folder / "initdb").exists()
    ]  # fmt: skip
    yield from sorted(found, key=lambda folder: int(folder.parent.name), reverse=True)
    package = package_folder("pgserver")
    if package is not None:
        yield package / "pginstall" / "bin"
    on_path = shutil.which("initdb")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _can_run(program: Path) -> bool:
    """Whether the server's user can: root's own folders are closed to others, as is what umask 077 has made."""
    user = _server_user()
    try:
        subprocess.run(
            [program, "--version"],
            cwd="/",
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            extra_groups=None if user is None else [],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _server_user() -> str | None:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
