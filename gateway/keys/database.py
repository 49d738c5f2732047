"""A connection to SQLite or PostgreSQL behind one small surface: transactions, and `?` in SQL.

A shell, used by `store.py` from one thread at a time. A connection that broke is made anew with the
next transaction.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from gateway.errors import EnvironmentFault, UsageFault

# How long a writer waits for another one; their transactions take milliseconds.
BUSY_S = 5
CONNECT_S = 3
# The store's own key among PostgreSQL's advisory locks: "covey" in ASCII.
_LOCK = 0x636F766579
_BEGIN = f"BEGIN; SET LOCAL statement_timeout = '{BUSY_S}s'"
_BEGIN_WRITING = f"{_BEGIN}; SELECT pg_advisory_xact_lock({_LOCK})"

Parameters = Sequence[Any]
Row = tuple[Any, ...]


class StoreAway(EnvironmentFault):
    """The store cannot be used now. `perhaps_done`: the transaction may have been committed."""

    def __init__(self, message: str, *, hint: str = "", perhaps_done: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.perhaps_done = perhaps_done


class Database(Protocol):
    """What `store.py` needs of a database."""

    name: str

    def there(self) -> bool:
        """Return False when it is known that nobody has made it yet."""

    def transaction(self, *, write: bool) -> AbstractContextManager[None]:
        """Hold a transaction; writers wait for each other. Raises StoreAway."""

    def execute(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement inside of a transaction, and return its rows."""

    def abort(self) -> None:
        """Make what runs in another thread end with StoreAway, now."""

    def close(self) -> None:
        """Close the connection."""


def open_database(address: str) -> Database:
    """Return the database at a path, `sqlite:///path` or `postgresql://…`; raises UsageFault."""
    scheme, colon, rest = address.partition("://")
    if not colon:
        return Sqlite(Path(address).expanduser())
    if scheme in ("postgresql", "postgres"):
        return Postgres(address)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return Sqlite(Path(rest))
    raise UsageFault(
        f"--store {scheme}://… is no store",
        hint="Give a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE.",
    )


def default_address(environment: Mapping[str, str]) -> str:
    """Return the file in the state folder: systemd's, else /var/lib as root, else XDG's."""
    folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if not folder and os.geteuid() == 0:
        folder = "/var/lib/covey-gateway"
    if not folder:
        base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        folder = f"{base}/covey-gateway"
    return f"{folder}/gateway.db"


class Sqlite:
    """One file, with 0600 and a write-ahead log, so that readers and a writer do not wait."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def there(self) -> bool:
        """Return whether the file is there."""
        try:
            return self._path.exists()
        except OSError:
            return True  # it may be; why it cannot be read is said when it is opened

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Hold a transaction; raises StoreAway."""
        committing = False
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            committing = True
            connection.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreAway(
                f"the store {self.name} cannot be used: {error}",
                hint="Its file and folder must be this user's, and the disk must not be full.",
                perhaps_done=committing,
            ) from error

    def execute(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement, and return its rows."""
        assert self._connection is not None  # noqa: S101  # inside of a transaction
        return self._connection.execute(sql, parameters).fetchall()

    def abort(self) -> None:
        """Interrupt the statement that runs, if any."""
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._make()
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        return self._connection

    def _make(self) -> None:
        """Make the file for the owner of its folder alone; SQLite's other files follow it."""
        if self._path.exists():
            return
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        if os.geteuid() == 0:  # an operator makes a key before the service ran for the first time
            owner = folder.stat()
            os.chown(self._path, owner.st_uid, owner.st_gid)


class Postgres:
    """A PostgreSQL server. Its driver is imported only where one is used."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as error:
            raise UsageFault(f"--store is no address of a PostgreSQL server: {error}") from None
        # Without the password and whatever else the query may hold.
        self.name = f"postgresql://{parts.hostname or ''}{port}{parts.path}"
        self._url = url
        self._connection: Any = None

    def there(self) -> bool:
        """Return True: a server's tables are made by whoever comes first."""
        return True

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Hold a transaction; raises StoreAway."""
        import psycopg

        committing = False
        try:
            connection = self._connect()
            connection.execute(_BEGIN_WRITING if write else _BEGIN)
            try:
                yield
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            committing = True
            connection.execute("COMMIT")
        except psycopg.IntegrityError:
            raise
        except psycopg.Error as error:
            self.close()
            raise StoreAway(
                f"the store {self.name} cannot be used: {_first_line(error)}",
                hint="Is PostgreSQL running, and may this user use the database?",
                perhaps_done=committing,
            ) from error

    def execute(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement, and return its rows."""
        cursor = self._connection.execute(sql.replace("?", "%s"), parameters)
        rows: list[Row] = cursor.fetchall() if cursor.description else []
        return rows

    def abort(self) -> None:
        """Shut the connection's socket: a server that stands still ends nothing."""
        connection = self._connection
        if connection is not None and not connection.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        import psycopg

        if self._connection is None:
            # A server that is switched off closes nothing: TCP and the limits find out.
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_S,
                application_name="covey-gateway",
                prepare_threshold=None,  # a pooler may give each transaction another server
                keepalives_idle=5,
                keepalives_interval=3,
                keepalives_count=3,
                tcp_user_timeout=1000 * 2 * BUSY_S,
            )
        return self._connection


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
