"""The same store in SQLite and in a real PostgreSQL: keys, usage, leases, migrations."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import EnvironmentFault, UsageFault
from gateway.keys import schema
from gateway.keys.database import StoreAway, default_address, open_database
from gateway.keys.key import Key
from gateway.keys.ledger import Grant, Row, Want
from gateway.keys.store import GONE_S, Store, Used

pytestmark = pytest.mark.slow

DAY = "2030-01-31"
NOW = 1_900_000_000.0
KEY = Key("k1", "ci", ("qwen*", "phi"), 60, 10_000, 1000, 2.5, NOW, NOW + 60)
OTHER = Key("k2", "laptop", created=NOW + 1)

Opened = Callable[[str], Store]


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, new_address: Callable[[str], str]) -> str:
    return new_address(request.param)


@pytest.fixture
def store(address: str, opened: Opened) -> Store:
    made = opened(address)
    made.create(KEY, "hash1")
    made.create(OTHER, "hash2")
    return made


def test_keys_come_back_as_they_were_made(store: Store) -> None:
    assert store.all_keys() == [KEY, OTHER]
    assert store.by_hash() == {"hash1": KEY, "hash2": OTHER}


def test_revoking_frees_the_name_and_changes_the_revision(store: Store) -> None:
    assert store.revision() == (2, 0)
    revoked = store.revoke("ci", NOW + 5)
    assert revoked == msgspec.structs.replace(KEY, revoked=NOW + 5)
    assert store.revision() == (2, 1)
    assert store.all_keys() == [revoked, OTHER]
    with pytest.raises(UsageFault, match="no key ci that could be revoked"):
        store.revoke("ci", NOW)
    store.create(msgspec.structs.replace(KEY, id="k3"), "hash3")
    assert store.revoke("k3", NOW).name == "ci"
    with pytest.raises(UsageFault, match="no key nobody"):
        store.revoke("nobody", NOW)


def test_a_name_that_is_in_use_or_could_mean_two(store: Store) -> None:
    with pytest.raises(UsageFault, match="a key named ci already"):
        store.create(msgspec.structs.replace(KEY, id="k3"), "hash3")
    store.create(msgspec.structs.replace(KEY, id="k3", name="k2"), "hash3")
    with pytest.raises(UsageFault, match="one key's id and another's name"):
        store.revoke("k2", NOW)
    assert store.revision() == (3, 0)


def test_a_report_that_is_told_twice_counts_once(store: Store) -> None:
    row = Row("k1", DAY, "m", 2, 10, 20, 1)
    for _ in range(2):
        store.exchange("a", [row], [], NOW)
    store.exchange("a", [row._replace(requests=3, completion_tokens=25)], [], NOW)
    store.exchange("b", [Row("k1", DAY, "m", 1, 1, 1, 0), Row("k2", DAY, "m", 1, 2, 3, 0)], [], NOW)
    store.exchange("b", [Row("k1", "2030-02-01", "other", 1, 1, 1, 0)], [], NOW)
    assert store.usage() == [
        Used(DAY, "k1", "ci", "m", 4, 11, 26, 1),
        Used(DAY, "k2", "laptop", "m", 1, 2, 3, 0),
        Used("2030-02-01", "k1", "ci", "other", 1, 1, 1, 0),
    ]
    assert [used.day for used in store.usage(since="2030-02-01")] == ["2030-02-01"]
    assert [used.day for used in store.usage(until=DAY, which="ci")] == [DAY]
    assert [used.key for used in store.usage(which="k2")] == ["laptop"]


def test_leases_are_within_the_quota(store: Store) -> None:
    [first] = store.exchange("a", [], [Want("k1", DAY, 700)], NOW)
    [second] = store.exchange("b", [], [Want("k1", DAY, 700)], NOW)
    assert (first, second) == (Grant("k1", DAY, 700, 0), Grant("k1", DAY, 300, 0))
    used = [Row("k1", DAY, "m", 1, 100, 50, 0), Row("k1", DAY, "n", 1, 1, 0, 0)]
    [first] = store.exchange("a", used, [Want("k1", DAY, 151)], NOW)
    assert first == Grant("k1", DAY, 151, 0)
    [second] = store.exchange("b", [], [Want("k1", DAY, 900)], NOW)
    assert second == Grant("k1", DAY, 849, 151)
    [tomorrow] = store.exchange("b", [], [Want("k1", "2030-02-01", 10)], NOW)
    assert tomorrow == Grant("k1", "2030-02-01", 10, 0)


def test_the_lease_of_a_gateway_that_is_gone_is_free_again(store: Store) -> None:
    store.exchange("a", [Row("k1", DAY, "m", 1, 200, 0, 0)], [Want("k1", DAY, 1000)], NOW)
    [refused] = store.exchange("b", [], [Want("k1", DAY, 500)], NOW + GONE_S)
    assert refused.granted == 0
    [lent] = store.exchange("b", [], [Want("k1", DAY, 900)], NOW + GONE_S + 1)
    assert lent == Grant("k1", DAY, 800, 200)
    [back] = store.exchange("a", [], [Want("k1", DAY, 1000)], NOW + GONE_S + 2)
    assert back.granted == 200


def test_the_lease_of_a_process_that_is_known_to_be_dead_is_free_at_once(store: Store) -> None:
    store.exchange("a", [Row("k1", DAY, "m", 1, 200, 0, 0)], [Want("k1", DAY, 1000)], NOW)
    store.forget("a")
    store.forget("nobody")
    [lent] = store.exchange("b", [], [Want("k1", DAY, 1000)], NOW)
    assert (lent.granted, lent.others) == (800, 200)


def test_a_key_that_is_not_in_the_store_gets_nothing_and_stops_nothing(store: Store) -> None:
    rows = [Row("lost", DAY, "m", 1, 5, 5, 0), Row("k1", DAY, "m", 1, 1, 1, 0)]
    [grant] = store.exchange("a", rows, [Want("lost", DAY, 100)], NOW)
    assert grant.granted == 10  # what was used, and no more
    assert [used.key for used in store.usage()] == ["", "ci"] or [
        used.key for used in store.usage()
    ] == ["ci", ""]


def test_an_exchange_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(Exception, match=r"."):
        store.exchange(
            "a",
            [Row("k1", DAY, "m", 1, 5, 5, 0), Row(None, DAY, "m", 1, 1, 1, 0)],
            [],
            NOW,  # type: ignore[arg-type]
        )
    assert store.usage() == []
    store.exchange("a", [Row("k1", DAY, "m", 1, 5, 5, 0)], [], NOW)
    assert len(store.usage()) == 1


def test_many_gateways_at_once_lease_no_more_than_there_is(
    store: Store, address: str, opened: Opened
) -> None:
    granted: dict[str, int] = {}

    def lease(name: str) -> None:
        mine = opened(address)
        for tokens in range(20, 320, 20):
            [grant] = mine.exchange(name, [], [Want("k1", DAY, tokens)], NOW)
            granted[name] = grant.granted

    threads = [threading.Thread(target=lease, args=(f"g{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted.values()) == 1000
    assert len(granted) == 5


def test_two_programs_that_start_at_once_make_one_store(address: str, opened: Opened) -> None:
    faults: list[Exception] = []

    def begin() -> None:
        try:
            opened(address).migrate()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert opened(address).all_keys() == []


def test_migrations_go_on_where_they_were(store: Store, address: str, opened: Opened) -> None:
    more = (*schema.MIGRATIONS, ("ALTER TABLE covey_keys ADD COLUMN note TEXT",))
    newer = opened(address)
    newer.migrate(more)
    newer.migrate(more)
    older = opened(address)
    with pytest.raises(
        EnvironmentFault,
        match=f"is of version {len(more)}, newer than this program's {len(more) - 1}",
    ):
        older.all_keys()


def test_keys_of_the_first_version_may_not_act(address: str, opened: Opened) -> None:
    old = open_database(address)
    with old.transaction(write=True):
        old.execute(schema.VERSION_TABLE)
        for statement in schema.MIGRATIONS[0]:
            old.execute(statement)
        old.execute("INSERT INTO covey_schema VALUES (1)")
        old.execute(
            "INSERT INTO covey_keys (id, name, hash, models, weight, created) "
            "VALUES ('i', 'ada', 'h', '[\"*\"]', 1.0, 5.0)"
        )
    old.close()
    store = opened(address)
    assert store.all_keys() == [Key("i", "ada", created=5.0)]
    store.create(Key("r", "root", admin=True), "h2")
    assert store.by_hash()["h2"].admin


def test_a_migration_that_fails_leaves_nothing(store: Store, address: str, opened: Opened) -> None:
    broken = (*schema.MIGRATIONS, ("CREATE TABLE covey_more (a TEXT)", "CREATE NONSENSE"))
    with pytest.raises(StoreAway):
        opened(address).migrate(broken)
    assert opened(address).all_keys() == [KEY, OTHER]
    good = (*schema.MIGRATIONS, ("CREATE TABLE covey_more (a TEXT)",))
    opened(address).migrate(good)


def test_the_file_is_the_owners_alone(tmp_path: Path, opened: Opened) -> None:
    file = tmp_path / "new" / "gateway.db"
    store = opened(str(file))
    assert not store.there()
    store.create(KEY, "hash1")
    assert store.there()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert set(modes) >= {"gateway.db", "gateway.db-wal"}
    assert set(modes.values()) == {0o600}
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert b"hash1" in b"".join(path.read_bytes() for path in file.parent.iterdir())


@pytest.mark.parametrize("content", [b"no database, but long enough to be one" * 50, None])
def test_a_file_that_cannot_be_used_is_said(
    tmp_path: Path, opened: Opened, content: bytes | None
) -> None:
    file = tmp_path / "gateway.db"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(StoreAway, match=f"the store {file} cannot be used"):
        opened(str(file)).all_keys()


@pytest.mark.parametrize(
    "address", ["mysql://h/d", "sqlite://", "sqlite://x", "postgresql://h:x/d"]
)
def test_addresses_that_are_no_store(address: str) -> None:
    with pytest.raises(UsageFault, match="--store"):
        open_database(address)


def test_an_address_is_shown_without_its_secrets() -> None:
    shown = open_database("postgresql://user:secret@db.lan:5433/covey?sslpassword=other").name
    assert shown == "postgresql://db.lan:5433/covey"


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_address({"STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}) == "/var/lib/x/gateway.db"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_address({}) == "/var/lib/covey-gateway/gateway.db"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    environment: dict[str, Any] = {"XDG_STATE_HOME": str(tmp_path)}
    assert default_address(environment) == f"{tmp_path}/covey-gateway/gateway.db"
