"""Links that are kept: dialled, redialled, moved to a better address, and no more than one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agent.control import ControlPlane, Link
from agent.errors import UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = pytest.mark.slow

KEYS = NetworkKeys.single(bytes(range(32)))
NODES = [NodeKey(bytes([n]) * 32) for n in range(61, 65)]
ECHO = "/test/echo/1"
SOON_S = 8.0


@contextlib.asynccontextmanager
async def running(*planes: ControlPlane) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for each in planes:
            await each.start()
            stack.push_async_callback(each.stop)
        yield


async def echo(peer: NodeId, request: bytes) -> bytes:
    return request


def plane(number: int, *listen: str) -> ControlPlane:
    made = ControlPlane(NODES[number], KEYS, listen or ["127.0.0.1:0"])
    made.serve(ECHO, echo)
    made.set_members(each.id for each in NODES)
    return made


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float = SOON_S) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.005)


async def links_to(plane: ControlPlane, number: int) -> list[Link]:
    return [each for each in await plane.links() if each.node == NODES[number].id]


async def linked(plane: ControlPlane, number: int, count: int = 1) -> None:
    async def there() -> bool:
        return len(await links_to(plane, number)) == count

    await until(there)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.control import keeper, redial

    monkeypatch.setattr(redial, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(redial, "MAX_DELAY_S", 0.2)
    monkeypatch.setattr(keeper, "UPGRADE_FIRST_S", 0.1)
    monkeypatch.setattr(keeper, "RETIRE_IDLE_S", 0.1)


async def test_a_link_is_dialled_and_told_on_both_sides(quick: None) -> None:
    one, two = plane(0), plane(1)
    told: list[tuple[int, NodeId, bool]] = []
    one.on_link(lambda node, up: told.append((0, node, up)))
    two.on_link(lambda node, up: told.append((1, node, up)))
    async with running(one, two):
        one.keep_links({NODES[1].id: two.addresses})
        await linked(one, 1)
        await linked(two, 0)
        ours, theirs = (await links_to(one, 1))[0], (await links_to(two, 0))[0]
        assert (ours.address, ours.outbound) == (two.addresses[0], True)
        assert (theirs.address.startswith("127.0.0.1:"), theirs.outbound) == (True, False)
        assert 0 <= ours.age_s < SOON_S
        one.keep_links({})
        await linked(one, 1, 0)
        await linked(two, 0, 0)

        async def both_told() -> bool:
            return len(told) == 4

        await until(both_told)
    assert set(told) == {(n, NODES[1 - n].id, up) for n in (0, 1) for up in (True, False)}
    assert [up for n, _, up in told if n == 0] == [True, False]


async def test_it_is_dialled_again_when_the_node_comes_and_comes_back(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    one = plane(0)
    async with running(one):
        one.keep_links({NODES[1].id: [address]})
        for _ in range(2):
            two = plane(1, address)
            async with running(two):
                await linked(one, 1)
            await linked(one, 1, 0)


async def test_two_that_dial_each_other_at_once_end_with_one_link(quick: None) -> None:
    one, two = plane(0), plane(1)
    changes: list[bool] = []
    async with running(one, two):
        one.on_link(lambda node, up: changes.append(up))
        one.keep_links({NODES[1].id: two.addresses})
        two.keep_links({NODES[0].id: one.addresses})
        await linked(one, 1)
        for _ in range(20):  # requests in both directions, while one of two may be closed
            answers = await asyncio.gather(
                one.request(NODES[1].id, two.addresses, ECHO, b"1", timeout_s=SOON_S),
                two.request(NODES[0].id, one.addresses, ECHO, b"2", timeout_s=SOON_S),
            )
            assert answers == [b"1", b"2"]
        await linked(one, 1)
        await linked(two, 0)
        assert {each.outbound for each in await links_to(one, 1)} != {
            each.outbound for each in await links_to(two, 0)
        }
    assert changes[0] is True
    assert changes.count(False) <= 1  # at the end, and never between


async def test_many_that_dial_each_other_at_once_end_with_one_link_each(quick: None) -> None:
    planes = [plane(n) for n in range(4)]
    async with running(*planes):
        for n, each in enumerate(planes):
            each.keep_links({NODES[m].id: planes[m].addresses for m in range(4) if m != n})

        async def settled() -> bool:
            found = [await each.links() for each in planes]
            return (
                all(sorted(x.node for x in f) == sorted({x.node for x in f}) for f in found)
                and [len(f) for f in found] == [3] * 4
            )

        await until(settled)


async def test_a_link_moves_to_a_better_address_and_stays_there(quick: None) -> None:
    """127.0.0.2 stands for the overlay, 127.0.0.1 for the underlay."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        better = f"127.0.0.2:{free.getsockname()[1]}"
    one, two = plane(0), plane(1, "127.0.0.1:0", better)
    async with running(one, two):
        worse = two.addresses[0]
        one.keep_links({NODES[1].id: [worse]})
        await linked(one, 1)
        one.keep_links({NODES[1].id: [better, worse]})

        async def moved() -> bool:
            return [each.address for each in await links_to(one, 1)] == [better]

        await until(moved)
        await linked(two, 0)
        age_s = (await links_to(one, 1))[0].age_s
        await asyncio.sleep(0.3)  # several times the interval at which better ones are looked for
        links = await links_to(one, 1)
        assert [each.address for each in links] == [better]
        assert links[0].age_s > age_s


async def test_a_better_address_that_does_not_work_costs_nothing(quick: None) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        closed = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        one, two = plane(0), plane(1, "127.0.0.3:0")
        async with running(one, two):
            dead = [closed, f"127.0.0.1:{silent.getsockname()[1]}"]
            one.keep_links({NODES[1].id: [*dead, *two.addresses]})
            await linked(one, 1)
            age_s = (await links_to(one, 1))[0].age_s
            await asyncio.sleep(0.3)
            links = await links_to(one, 1)
            assert len(links) == 1
            assert links[0].age_s > age_s


async def test_links_before_the_start_and_nonsense(quick: None) -> None:
    one, two = plane(0), plane(1)
    assert await one.links() == []
    with pytest.raises(UsageError, match="is not an address"):
        one.keep_links({NODES[1].id: ["nowhere"]})
    async with running(two):
        one.keep_links({NODES[1].id: two.addresses, NODES[0].id: ["127.0.0.1:1"]})
        async with running(one):
            await linked(one, 1)
            assert await links_to(one, 0) == []


async def test_a_watcher_that_fails_is_logged(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = plane(0), plane(1)
    seen: list[NodeId] = []

    def fail(node: NodeId, up: bool) -> None:
        raise ZeroDivisionError

    one.on_link(fail)
    one.on_link(lambda node, up: seen.append(node))
    async with running(one, two):
        one.keep_links({NODES[1].id: two.addresses})
        await linked(one, 1)

        async def told() -> bool:
            return bool(seen)

        await until(told)
    assert "a link's watcher failed" in caplog.text


async def test_a_connection_for_a_request_that_nobody_wants_is_closed_in_the_end(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.control import keeper

    monkeypatch.setattr(keeper, "IDLE_LIMIT_S", 0.05)
    monkeypatch.setattr(keeper, "SWEEP_S", 0.05)
    one, two, three = plane(0), plane(1), plane(2)
    async with running(one, two, three):
        one.keep_links({NODES[2].id: three.addresses})
        await linked(one, 2)
        assert await one.request(NODES[1].id, two.addresses, ECHO, b"", timeout_s=SOON_S) == b""
        await linked(one, 1, 0)
        assert len(await links_to(one, 2)) == 1
