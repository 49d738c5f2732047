"""Who is no member gets no stream but those for strangers, and who was one is cut off at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agent.control import ControlPlane, answers, gate
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

KEYS = NetworkKeys.single(bytes(range(32)))
ONE, TWO, NEWCOMER = (NodeKey(bytes([n]) * 32) for n in (41, 42, 43))
JOIN, DEPLOY = "/test/join/1", "/test/deploy/1"
SOON_S = 5.0


class Events:
    """What happened, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def until(self, *expected: str) -> None:
        async with asyncio.timeout(SOON_S):
            while not set(expected) <= set(self.seen):  # noqa: ASYNC110 - it changes in another thread
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(*planes: ControlPlane) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for each in planes:
            await each.start()
            stack.push_async_callback(each.stop)
        yield


def plane(key: NodeKey, *members: NodeKey) -> ControlPlane:
    made = ControlPlane(key, KEYS, ["127.0.0.1:0"])
    made.serve(JOIN, echo, strangers=True)
    made.serve(DEPLOY, echo)
    made.set_members(each.id for each in members)
    return made


async def echo(peer: NodeId, request: bytes) -> bytes:
    return request


async def ask(
    source: ControlPlane, node: NodeKey | None, target: ControlPlane, protocol: str
) -> bytes:
    peer = node.id if node is not None else None
    return await source.request(peer, target.addresses, protocol, b"x", timeout_s=SOON_S)


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float = SOON_S) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.005)


async def connections(plane: ControlPlane, count: int) -> None:
    async def there() -> bool:
        return await plane.connections() == count

    await until(there)


async def test_a_stranger_gets_what_is_for_strangers_and_nothing_else() -> None:
    member, stranger = plane(ONE, ONE, TWO), plane(NEWCOMER)
    async with running(member, stranger):
        assert await ask(stranger, ONE, member, JOIN) == b"x"
        # Not even that there is no such thing, or that there is.
        for protocol in (DEPLOY, "/test/unknown/1", "/meshsub/1.1.0"):
            with pytest.raises(PeerError, match="takes no more requests from here"):
                await ask(stranger, ONE, member, protocol)
        assert await member.links() == []


async def test_a_newcomer_that_knows_only_an_address() -> None:
    member, stranger = plane(ONE, ONE), plane(NEWCOMER)
    async with running(member, stranger):
        assert await ask(stranger, None, member, JOIN) == b"x"
        with pytest.raises(PeerError, match=r"takes no more requests from here now \(any node\)"):
            await ask(stranger, None, member, DEPLOY)
        with pytest.raises(PeerError, match=r"refused the connection \(any node\)"):
            await stranger.request(None, ["127.0.0.1:1"], JOIN, b"", timeout_s=SOON_S)


async def test_who_asks_itself_by_an_address_is_told_so() -> None:
    member = plane(ONE, ONE)
    async with running(member):
        with pytest.raises(PeerError, match="is another node"):
            await ask(member, None, member, JOIN)


async def test_before_the_first_list_nobody_is_a_member() -> None:
    fresh, other = ControlPlane(ONE, KEYS, ["127.0.0.1:0"]), plane(TWO, ONE, TWO)
    fresh.serve(DEPLOY, echo)
    async with running(fresh, other):
        with pytest.raises(PeerError):
            await ask(other, ONE, fresh, DEPLOY)
        fresh.set_members([ONE.id, TWO.id])
        assert await ask(other, ONE, fresh, DEPLOY) == b"x"


async def test_a_revoked_members_connections_and_requests_end_at_once() -> None:
    events = Events()

    async def hang(peer: NodeId, request: bytes) -> bytes:
        events.seen.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            events.seen.append("cancelled")
        return b""

    one, two = plane(ONE, ONE, TWO), plane(TWO, ONE, TWO)
    one.serve("/test/hang/1", hang)
    one.on_link(lambda node, up: events.seen.append(f"{node.short} {up}"))
    async with running(one, two):
        asking = asyncio.create_task(ask(two, ONE, one, "/test/hang/1"))
        await events.until("began", f"{TWO.id.short} True")
        one.set_members([ONE.id])
        with pytest.raises(PeerError, match="the connection broke"):
            await asking
        await events.until("cancelled", f"{TWO.id.short} False")
        assert await one.connections() == 0
        with pytest.raises(PeerError):
            await ask(two, ONE, one, DEPLOY)
        one.set_members([ONE.id, TWO.id])
        assert await ask(two, ONE, one, DEPLOY) == b"x"


async def test_a_stranger_that_becomes_a_member_keeps_its_connection() -> None:
    events = Events()
    member, newcomer = plane(ONE, ONE), plane(NEWCOMER)
    member.on_link(lambda node, up: events.seen.append(f"{node.short} {up}"))
    async with running(member, newcomer):
        assert await ask(newcomer, ONE, member, JOIN) == b"x"
        newcomer.set_members([ONE.id, NEWCOMER.id])
        member.set_members([ONE.id, NEWCOMER.id])
        await events.until(f"{NEWCOMER.id.short} True")
        assert await ask(newcomer, ONE, member, DEPLOY) == b"x"
        links = await member.links()
        assert [(link.node, link.outbound) for link in links] == [(NEWCOMER.id, False)]
        assert await member.connections() == 1


async def test_a_stranger_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.control import links

    monkeypatch.setattr(links, "STRANGER_IDLE_S", 0.1)
    monkeypatch.setattr(links, "STRANGER_TICK_S", 0.02)
    member, stranger = plane(ONE, ONE), plane(NEWCOMER, ONE, NEWCOMER)
    async with running(member, stranger):
        assert await ask(stranger, ONE, member, JOIN) == b"x"
        await connections(member, 0)
        await connections(stranger, 0)
        assert await ask(stranger, ONE, member, JOIN) == b"x"


async def test_a_stranger_that_takes_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.control import links

    monkeypatch.setattr(links, "STRANGER_LIMIT_S", 0.1)
    monkeypatch.setattr(links, "STRANGER_TICK_S", 0.02)

    async def hang(peer: NodeId, request: bytes) -> bytes:
        await asyncio.sleep(3600)
        return b""

    member, stranger = plane(ONE, ONE), plane(NEWCOMER)
    member.serve(JOIN, hang, strangers=True)
    async with running(member, stranger):
        with pytest.raises(PeerError, match="the connection broke"):
            await ask(stranger, ONE, member, JOIN)


async def test_strangers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_STRANGERS_PER_ADDRESS", 2)
    strangers = [plane(NodeKey(bytes([n]) * 32)) for n in range(51, 54)]
    member = plane(ONE, ONE)
    async with running(member, *strangers):
        for each in strangers[:2]:
            assert await ask(each, ONE, member, JOIN) == b"x"
        with pytest.raises(PeerError):
            await ask(strangers[2], ONE, member, JOIN)
        # One that leaves makes room, and so does one that becomes a member.
        await strangers[0].stop()
        await connections(member, 1)
        assert await ask(strangers[2], ONE, member, JOIN) == b"x"


async def test_where_nothing_is_for_strangers_they_are_closed_at_once() -> None:
    member = ControlPlane(ONE, KEYS, ["127.0.0.1:0"])
    member.serve(DEPLOY, echo)
    stranger = plane(NEWCOMER)
    async with running(member, stranger):
        with pytest.raises(PeerError):
            await ask(stranger, ONE, member, DEPLOY)
        await connections(member, 0)
        await connections(stranger, 0)


async def test_a_strangers_request_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    member, stranger = plane(ONE, ONE, TWO), plane(NEWCOMER)
    async with running(member, stranger):
        size = answers.MAX_STRANGERS_REQUEST_BYTES
        sent = await stranger.request(
            ONE.id, member.addresses, JOIN, bytes(size), timeout_s=SOON_S
        )  # fmt: skip
        assert len(sent) == size
        with pytest.raises(PeerError, match="the connection broke"):
            await stranger.request(
                ONE.id, member.addresses, JOIN, bytes(size + 1), timeout_s=SOON_S
            )  # fmt: skip


async def test_what_is_said_before_and_during_the_start_counts() -> None:
    one, two = plane(ONE), plane(TWO, ONE, TWO)
    starting = asyncio.create_task(one.start())
    await asyncio.sleep(0)
    one.set_members([ONE.id, TWO.id])
    one.serve("/test/late/1", echo)
    await starting
    async with running(two):
        assert await ask(two, ONE, one, "/test/late/1") == b"x"
    await one.stop()
