"""Keys, usage and leases in a database that several gateways may share.

A shell over `database.py`, synchronous, for one thread at a time: `accounts.py` runs it beside the
loop, the command line as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from gateway.errors import EnvironmentFault, UsageFault
from gateway.keys import database
from gateway.keys.key import Key
from gateway.keys.ledger import Grant, Row, Want
from gateway.keys.limits import Share, grant
from gateway.keys.schema import MIGRATIONS, VERSION_TABLE

# A gateway that said nothing for so long is gone, and what it had leased is free again. A running
# one is heard of every minute.
GONE_S = 3600.0
_KEY = (
    "id, name, models, requests_per_minute, tokens_per_minute, tokens_per_day, weight, created, "
    "expires, revoked, admin"
)


class Used(NamedTuple):
    """What was used of a key's day and model, over all gateways."""

    day: str
    key_id: str
    key: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated: int


class Store:
    """The store in a database; its tables are made or migrated with the first call."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened
        self._migrated = False

    @property
    def name(self) -> str:
        """What people call it: a path, or an address without its secrets."""
        return self._database.name

    def there(self) -> bool:
        """Return False when it is known that nobody has made it yet."""
        return self._database.there()

    def abort(self) -> None:
        """Make a call that runs in another thread end with StoreAway, now."""
        self._database.abort()

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        self._database.close()

    def migrate(self, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
        """Bring the tables to this program's version; raises EnvironmentFault for newer ones."""
        while self._migrate_once(migrations):
            pass
        self._migrated = True

    def create(self, key: Key, hashed: str) -> None:
        """Add a key; raises UsageFault when another one that is not revoked has its name."""
        self._ready()
        with self._database.transaction(write=True):
            if self._rows("SELECT id FROM covey_keys WHERE name = ? AND revoked IS NULL", key.name):
                raise UsageFault(
                    f"there is a key named {key.name} already",
                    hint="Choose another name, or revoke it first.",
                )
            self._database.execute(
                f"INSERT INTO covey_keys ({_KEY}, hash) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
                (
                    key.id, key.name, msgspec.json.encode(key.models).decode(),
                    key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day,
                    key.weight, key.created, key.expires, key.revoked, int(key.admin), hashed,
                ),
            )  # fmt: skip

    def all_keys(self) -> list[Key]:
        """Return all keys, the oldest first."""
        return sorted(self.by_hash().values(), key=lambda key: (key.created, key.id))

    def by_hash(self) -> dict[str, Key]:
        """Return all keys by the hashes of their secrets."""
        self._ready()
        with self._database.transaction(write=False):
            rows = self._rows(f"SELECT {_KEY}, hash FROM covey_keys")  # noqa: S608
        return {row[-1]: _key(row) for row in rows}

    def revision(self) -> tuple[int, int]:
        """Return what changes whenever keys do: a key is only ever made, and revoked once."""
        self._ready()
        with self._database.transaction(write=False):
            [(made, revoked)] = self._rows("SELECT COUNT(*), COUNT(revoked) FROM covey_keys")
        return made, revoked

    def revoke(self, which: str, now: float) -> Key:
        """Revoke the key with this id or name; raises UsageFault when there is none."""
        self._ready()
        with self._database.transaction(write=True):
            rows = self._rows(
                f"SELECT {_KEY} FROM covey_keys "  # noqa: S608
                "WHERE (id = ? OR name = ?) AND revoked IS NULL",
                which, which,
            )  # fmt: skip
            if not rows:
                raise UsageFault(
                    f"there is no key {which} that could be revoked",
                    hint="`gateway keys list` shows ids and names.",
                )
            if len(rows) > 1:
                raise UsageFault(f"{which} is one key's id and another's name", hint="Use the id.")
            key = _key(rows[0])
            self._database.execute("UPDATE covey_keys SET revoked = ? WHERE id = ?", (now, key.id))
        return msgspec.structs.replace(key, revoked=now)

    def exchange(
        self, gateway: str, rows: Iterable[Row], wants: Iterable[Want], now: float
    ) -> list[Grant]:
        """Take down what a gateway counted, in all, and lease it what it wants of quotas.

        All of it or nothing. To say the same again changes nothing.
        """
        self._ready()
        execute = self._database.execute
        with self._database.transaction(write=True):
            execute(
                "INSERT INTO covey_gateways (id, seen) VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET seen = excluded.seen",
                (gateway, now),
            )
            for row in rows:
                execute(
                    "INSERT INTO covey_usage (gateway, key_id, day, model, requests, "
                    "prompt_tokens, completion_tokens, estimated) VALUES (?,?,?,?,?,?,?,?) "
                    "ON CONFLICT (key_id, day, model, gateway) DO UPDATE SET "
                    "requests = excluded.requests, prompt_tokens = excluded.prompt_tokens, "
                    "completion_tokens = excluded.completion_tokens, "
                    "estimated = excluded.estimated",
                    (gateway, *row),
                )
            return [self._grant(gateway, want, now) for want in sorted(wants)]

    def forget(self, gateway: str) -> None:
        """Take note that a gateway is gone: what it had leased and did not use is free again."""
        self._ready()
        with self._database.transaction(write=True):
            self._database.execute("UPDATE covey_gateways SET seen = 0 WHERE id = ?", (gateway,))

    def usage(self, since: str = "", until: str = "9999-12-31", which: str = "") -> list[Used]:
        """Return usage by day, key and model; days are inclusive, `which` is an id or a name."""
        self._ready()
        with self._database.transaction(write=False):
            rows = self._rows(
                "SELECT u.day, u.key_id, COALESCE(k.name, ''), u.model, "
                "SUM(u.requests), SUM(u.prompt_tokens), SUM(u.completion_tokens), SUM(u.estimated) "
                "FROM covey_usage u LEFT JOIN covey_keys k ON k.id = u.key_id "
                "WHERE u.day >= ? AND u.day <= ? AND (? = '' OR u.key_id = ? OR k.name = ?) "
                "GROUP BY u.day, u.key_id, k.name, u.model "
                "ORDER BY u.day, k.name, u.key_id, u.model",
                since, until, which, which, which,
            )  # fmt: skip
        return [Used(*row[:4], *(int(number) for number in row[4:])) for row in rows]

    def _grant(self, gateway: str, want: Want, now: float) -> Grant:
        """Lease what there is of what is wanted, inside of the exchange's transaction."""
        key_id, day, tokens = want
        limits = self._rows("SELECT tokens_per_day FROM covey_keys WHERE id = ?", key_id)
        used = {
            name: int(spent)
            for name, spent in self._rows(
                "SELECT gateway, SUM(prompt_tokens + completion_tokens) FROM covey_usage "
                "WHERE key_id = ? AND day = ? GROUP BY gateway",
                key_id, day,
            )
        }  # fmt: skip
        others = [
            Share(int(granted), used.get(name, 0), seen < now - GONE_S)
            for name, granted, seen in self._rows(
                "SELECT l.gateway, l.granted, g.seen FROM covey_leases l "
                "JOIN covey_gateways g ON g.id = l.gateway "
                "WHERE l.key_id = ? AND l.day = ? AND l.gateway <> ?",
                key_id, day, gateway,
            )
        ]  # fmt: skip
        mine = used.pop(gateway, 0)
        granted = grant((limits[0][0] or 0) if limits else 0, tokens, mine, others)
        self._database.execute(
            "INSERT INTO covey_leases (key_id, day, gateway, granted) VALUES (?,?,?,?) "
            "ON CONFLICT (key_id, day, gateway) DO UPDATE SET granted = excluded.granted",
            (key_id, day, gateway, granted),
        )
        return Grant(key_id, day, granted, sum(used.values()))

    def _rows(self, sql: str, *parameters: object) -> list[database.Row]:
        return self._database.execute(sql, parameters)

    def _ready(self) -> None:
        if not self._migrated:
            self.migrate()

    def _migrate_once(self, migrations: tuple[tuple[str, ...], ...]) -> bool:
        """Do the next migration, in a transaction; False if there is none to do."""
        with self._database.transaction(write=True):
            self._database.execute(VERSION_TABLE)
            [(version,)] = self._rows("SELECT COALESCE(MAX(version), 0) FROM covey_schema")
            if version > len(migrations):
                raise EnvironmentFault(
                    f"the store {self.name} is of version {version}, newer than this program's "
                    f"{len(migrations)}",
                    hint="Upgrade this gateway, or name another store with --store.",
                )
            if version == len(migrations):
                return False
            for statement in migrations[version]:
                self._database.execute(statement)
            self._database.execute("INSERT INTO covey_schema VALUES (?)", (version + 1,))
        return True


def _key(row: database.Row) -> Key:
    """Return the key in a row of the columns _KEY."""
    id_, name, globs, *limits, admin = row[:11]
    models = msgspec.json.decode(globs, type=tuple[str, ...])
    return msgspec.structs.replace(Key(id_, name, models, *limits), admin=bool(admin))
