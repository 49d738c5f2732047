"""Accounts on a real PostgreSQL that is killed and comes back, and on one that never was."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.keys import accounts as module
from gateway.keys.accounts import Accounts
from gateway.keys.key import Key, digest
from gateway.keys.store import Store
from gateway.usage import Tokens

pytestmark = pytest.mark.slow

QUOTA = Key("k1", "ci", tokens_per_day=2000)
FREE = Key("k2", "laptop")

Opened = Callable[[str], Store]
Start = Callable[[str], Awaitable[Accounts]]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.05)
    monkeypatch.setattr(module, "AWAY_ROUND_S", 0.05)
    monkeypatch.setattr(module, "LEAST_PAUSE_S", 0.01)


@pytest.fixture
async def start(opened: Opened) -> AsyncIterator[Start]:
    """Start gateways' accounts on stores at an address, with keys that the first one makes."""
    running: list[tuple[Accounts, asyncio.Task[None]]] = []

    async def begin(address: str) -> Accounts:
        store = opened(address)
        if not running:
            await asyncio.to_thread(store.create, QUOTA, digest("ck-quota"))
            await asyncio.to_thread(store.create, FREE, digest("ck-free"))
        made = Accounts(store)
        running.append((made, asyncio.create_task(made.run())))
        await until(lambda: made.find("ck-quota") is not None)
        return made

    yield begin
    for made, task in running:
        if not task.done():
            await made.aclose(task)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.01)


async def spend(accounts: Accounts, key: Key, tokens: int) -> None:
    held = await accounts.admit(key, tokens, tokens)
    accounts.settle(held, "m", Tokens(tokens, 0), estimated=False)


async def spend_all(accounts: Accounts, key: Key, tokens: int) -> int:
    """Spend pieces until it is refused, and return how much it was."""
    spent = 0
    while True:
        try:
            await spend(accounts, key, tokens)
        except ApiError:
            return spent
        spent += tokens


def used(store: Store) -> dict[str, int]:
    totals: dict[str, int] = {}
    for row in store.usage():
        totals[row.key_id] = totals.get(row.key_id, 0) + row.prompt_tokens + row.completion_tokens
    return totals


async def test_known_keys_go_on_and_nothing_is_lost_or_counted_twice(
    cluster: Any, new_address: Callable[[str], str], opened: Opened, start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    address = new_address("postgres")
    accounts = await start(address)
    await spend(accounts, QUOTA, 10)
    await spend(accounts, FREE, 7)
    await until(lambda: accounts.view()["unreported"] == 0)

    cluster.kill()
    await until(lambda: accounts.view()["state"].startswith("away for "))
    assert "cannot be used" in accounts.view()["state"]
    assert accounts.find("ck-free") == FREE
    for _ in range(50):
        await spend(accounts, FREE, 3)
    leased = await spend_all(accounts, QUOTA, 10)
    assert 0 < leased <= 100  # what was left of its block
    with pytest.raises(ApiError) as refused:
        await accounts.admit(QUOTA, 10, 10)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 5)

    await asyncio.to_thread(cluster.start)
    await until(lambda: accounts.view()["state"] == "ok")
    await spend(accounts, QUOTA, 10)
    await until(lambda: accounts.view()["unreported"] == 0)
    store = opened(address)
    assert await asyncio.to_thread(used, store) == {"k1": 20 + leased, "k2": 157}
    for text in ("go on with what they have leased", "answers again"):
        assert sum(text in record.getMessage() for record in caplog.records) == 1


async def test_killed_again_and_again_in_the_middle(
    cluster: Any, new_address: Callable[[str], str], opened: Opened, start: Start
) -> None:
    address = new_address("postgres")
    gateways = [await start(address) for _ in range(2)]
    spent = {"k1": 0, "k2": 0}
    stop = time.monotonic() + 4

    async def work(accounts: Accounts) -> None:
        while time.monotonic() < stop:
            await spend(accounts, FREE, 1)
            spent["k2"] += 1
            try:
                await spend(accounts, QUOTA, 2)
            except ApiError:
                pass
            else:
                spent["k1"] += 2
            await asyncio.sleep(0.01)

    async def trouble() -> None:
        while time.monotonic() < stop:
            await asyncio.sleep(0.4)
            cluster.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(cluster.start)

    async with asyncio.TaskGroup() as group:
        for accounts in gateways:
            group.create_task(work(accounts))
        group.create_task(trouble())
    for accounts in gateways:
        await until(lambda a=accounts: a.view()["unreported"] == 0)  # type: ignore[misc]
    assert await asyncio.to_thread(used, opened(address)) == spent
    assert spent["k1"] <= 2000 and spent["k2"] > 50


async def test_a_server_that_stands_still_is_left(
    cluster: Any, new_address: Callable[[str], str], opened: Opened, start: Start,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    address = new_address("postgres")
    accounts = await start(address)
    await spend(accounts, FREE, 5)
    await until(lambda: accounts.view()["unreported"] == 0)
    [standing] = await asyncio.to_thread(cluster.backends, address.split("/")[3].split("?")[0])
    os.kill(standing, signal.SIGSTOP)
    try:
        await until(lambda: "go on with what they have leased" in caplog.text)
        await spend(accounts, FREE, 6)  # another connection, to a server process of its own
        await until(lambda: accounts.view()["unreported"] == 0)
    finally:
        os.kill(standing, signal.SIGCONT)
    assert await asyncio.to_thread(used, opened(address)) == {"k2": 11}


async def test_two_gateways_share_one_quota(
    new_address: Callable[[str], str], opened: Opened, start: Start
) -> None:
    address = new_address("postgres")
    first, second = [await start(address) for _ in range(2)]
    spent = sum(await asyncio.gather(*(spend_all(one, QUOTA, 10) for one in (first, second))))
    assert 2000 - 2 * 100 <= spent <= 2000  # all but what the other one has leased and not used
    await until(lambda: first.view()["unreported"] == second.view()["unreported"] == 0)
    assert await asyncio.to_thread(used, opened(address)) == {"k1": spent}


async def test_keys_that_are_made_and_revoked_are_known_soon(
    new_address: Callable[[str], str], opened: Opened, start: Start
) -> None:
    address = new_address("sqlite")
    accounts = await start(address)
    store = opened(address)
    store.create(Key("k3", "late"), digest("ck-late"))
    await until(lambda: accounts.find("ck-late") is not None)
    store.revoke("late", time.time())
    await until(lambda: accounts.find("ck-late").state(time.time()) == "revoked")  # type: ignore[union-attr]
    assert accounts.view()["active_keys"] == 2


async def test_a_store_that_nobody_made_is_not_made_by_a_gateway(
    new_address: Callable[[str], str], opened: Opened
) -> None:
    store = opened(new_address("sqlite"))
    accounts = Accounts(store)
    task = asyncio.create_task(accounts.run())
    await until(lambda: accounts.known)
    await accounts.aclose(task)
    assert not store.there()
    assert accounts.view()["state"].startswith("not made yet")


async def test_an_end_gives_the_lease_back_and_tells_what_was_counted(
    new_address: Callable[[str], str], opened: Opened
) -> None:
    address = new_address("sqlite")
    store = opened(address)
    store.create(QUOTA, digest("ck-quota"))
    accounts = Accounts(store)
    task = asyncio.create_task(accounts.run())
    await until(lambda: accounts.known)
    await spend(accounts, QUOTA, 10)
    await accounts.aclose(task)
    assert used(store) == {"k1": 10}
    with store._database.transaction(write=False):
        assert store._rows("SELECT granted FROM covey_leases") == [(10,)]


async def test_what_cannot_be_told_at_the_end_is_in_the_log(
    cluster: Any, new_address: Callable[[str], str], opened: Opened,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    store = opened(new_address("postgres"))
    store.create(FREE, digest("ck-free"))
    accounts = Accounts(store)
    task = asyncio.create_task(accounts.run())
    await until(lambda: accounts.known)
    cluster.kill()
    await spend(accounts, FREE, 42)
    await accounts.aclose(task)
    [line] = [r.getMessage() for r in caplog.records if "not in the store" in r.getMessage()]
    assert "key_id=k2" in line and "prompt_tokens=42" in line
