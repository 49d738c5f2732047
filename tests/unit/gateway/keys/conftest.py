"""A PostgreSQL of the tests' own, which can be killed and started again; and a store in SQLite."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.keys.database import open_database
from gateway.keys.store import Store

START_S = 30.0


def _program(name: str) -> str | None:
    """Return where Debian or the PATH has a program of PostgreSQL's server."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name) or shutil.which(
        name, path=os.pathsep.join(str(version) for version in versions)
    )


class Cluster:
    """One server on a unix socket; its superuser is `covey`."""

    def __init__(self, folder: Path, initdb: str, postgres: str) -> None:
        self._folder = folder
        self._postgres = postgres
        # initdb refuses to run as root.
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._run(initdb, "-D", self._data, "-U", "covey", "--auth=trust", "--no-sync",
                  "--no-locale", "-E", "UTF8")  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def url(self, database: str) -> str:
        return f"postgresql:///{database}?host={self._folder}&user=covey"

    def start(self) -> None:
        """Start it and wait until it answers; after a crash the old children must go first."""
        deadline = time.monotonic() + START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [self._postgres, "-D", self._data, "-k", str(self._folder), "-F",
                     "-c", "listen_addresses=", "-c", "max_connections=20",
                     "-c", "shared_buffers=4MB"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as_user(),
                )  # fmt: skip
            if self._answers():
                return
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def backends(self, database: str) -> list[int]:
        """Return the processes that serve connections to a database."""
        import psycopg

        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            return [pid for (pid,) in connection.execute(query, (database,))]

    def create(self, database: str) -> str:
        """Make a database and return its URL."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return self.url(database)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, **self._as_user())
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict[str, object]:
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid} if self._user else {}
        return {**user, "cwd": "/"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = {name: _program(name) for name in ("initdb", "postgres")}
    if None in programs.values():
        assert not os.environ.get("CI"), "PostgreSQL's server is missing (Debian: postgresql)"
        pytest.skip("PostgreSQL's server is missing (Debian: postgresql)")
    # A unix socket's path is short; pytest's folders are not.
    folder = Path(tempfile.mkdtemp(prefix="covey-pg-"))
    made = Cluster(folder, **{name: str(path) for name, path in programs.items()})
    try:
        made.start()
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return iter(range(10**6))


@pytest.fixture
def new_address(cluster: Cluster, numbers: Iterator[int], tmp_path: Path) -> Callable[[str], str]:
    """Return a maker of addresses of empty stores: of `sqlite` or `postgres`."""

    def make(kind: str) -> str:
        number = next(numbers)
        if kind == "sqlite":
            return f"sqlite://{tmp_path}/state/{number}.db"
        cluster.start()
        return cluster.create(f"store{number}")

    return make


@pytest.fixture
def opened() -> Iterator[Callable[[str], Store]]:
    """Open stores, and close them in the end."""
    stores: list[Store] = []

    def make(address: str) -> Store:
        stores.append(Store(open_database(address)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
