"""Signals get there by a request where the peer can be asked, else by gossip."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from agent.errors import NotRunning, PeerError
from agent.identity.keys import NodeId
from agent.paths.wire import SIGNAL_MAX_BYTES
from agent.traversal.carrier import GOSSIP_BURST, PROTOCOL, TOPIC, Carrier

ME, PEER = (NodeId(bytes([n]) * 32) for n in (1, 2))


class FakeControl:
    """Notes what is asked and told; `fails` makes requests fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[NodeId, bytes]] = []
        self.told: list[bytes] = []
        self.fails = self.down = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.handler: Callable[[NodeId, bytes], Awaitable[bytes]] | None = None
        self.subscriber: Callable[[NodeId, bytes], Awaitable[bool]] | None = None

    def serve(self, protocol: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]]) -> None:
        assert protocol == PROTOCOL
        self.handler = handler

    def subscribe(self, topic: str, handler: Callable[[NodeId, bytes], Awaitable[bool]]) -> None:
        assert topic == TOPIC
        self.subscriber = handler

    async def request(
        self, peer: NodeId, addresses: Sequence[str], protocol: str, payload: bytes, *,
        timeout_s: float,
    ) -> bytes:  # fmt: skip
        await self.answers.wait()
        if self.fails:
            raise PeerError("it does not answer")
        self.asked.append((peer, payload))
        return b""

    async def publish(self, topic: str, payload: bytes) -> None:
        if self.down:
            raise NotRunning("the control plane is not running")
        self.told.append(payload)


def carrier(control: FakeControl, addresses: list[str] | None) -> tuple[Carrier, list[bytes]]:
    taken: list[bytes] = []
    made = Carrier(control, lambda _: addresses, lambda _, sealed: taken.append(sealed))
    made.begin()
    return made, taken


async def settled(made: Carrier) -> None:
    if made._tasks:
        await asyncio.wait(made._tasks)


async def test_a_linked_peer_is_asked_and_nobody_else_told() -> None:
    control = FakeControl()
    made, _ = carrier(control, ["192.88.99.1:4001"])
    made.send(PEER, b"signal")
    await settled(made)
    assert control.asked == [(PEER, b"signal")]
    assert control.told == []


async def test_a_peer_that_cannot_be_asked_is_told_by_gossip() -> None:
    control = FakeControl()
    made, _ = carrier(control, None)
    made.send(PEER, b"signal")
    await settled(made)
    assert control.told == [PEER.ed25519 + b"signal"]


async def test_after_a_request_that_failed_gossip_carries_the_signals_at_once() -> None:
    control = FakeControl()
    made, _ = carrier(control, ["192.88.99.1:4001"])
    control.fails = True
    made.send(PEER, b"one")
    await settled(made)
    control.fails = False
    made.send(PEER, b"two")
    await settled(made)
    assert control.told == [PEER.ed25519 + b"one", PEER.ed25519 + b"two"]
    assert control.asked == []


@pytest.mark.parametrize(("doubtful", "hedge"), [(False, "_HEDGE_S"), (True, "_DOUBTFUL_HEDGE_S")])
async def test_a_request_that_takes_long_is_helped_by_gossip(
    monkeypatch: pytest.MonkeyPatch, doubtful: bool, hedge: str
) -> None:
    monkeypatch.setattr(f"agent.traversal.carrier.{hedge}", 0.02)
    control = FakeControl()
    made, _ = carrier(control, ["10.77.0.2:4001"])
    control.answers.clear()
    made.send(PEER, b"one", doubtful=doubtful)
    await asyncio.sleep(0.05)
    assert control.told == [PEER.ed25519 + b"one"], "the link hangs"
    control.answers.set()
    await settled(made)
    made.send(PEER, b"two")
    await settled(made)
    assert control.asked == [(PEER, b"one"), (PEER, b"two")], "it is asked as before"
    assert control.told == [PEER.ed25519 + b"one"]
    control.answers.clear()
    made.send(PEER, b"three")
    await asyncio.sleep(0)
    await made.stop()
    assert control.asked[-1] == (PEER, b"two")


async def test_a_signal_that_comes_by_gossip_is_taken() -> None:
    control = FakeControl()
    _, taken = carrier(control, None)
    assert control.subscriber is not None
    assert await control.subscriber(PEER, ME.ed25519 + b"ours")
    assert taken == [b"ours"]


@pytest.mark.parametrize("payload", [b"", bytes(32), bytes(33 + SIGNAL_MAX_BYTES)])
async def test_gossip_that_cannot_be_a_signal_is_not_passed_on(payload: bytes) -> None:
    control = FakeControl()
    _, taken = carrier(control, None)
    assert control.subscriber is not None
    assert not await control.subscriber(PEER, payload)
    assert taken == []


async def test_a_request_that_is_too_long_is_refused() -> None:
    control = FakeControl()
    _, taken = carrier(control, None)
    assert control.handler is not None
    with pytest.raises(PeerError):
        await control.handler(PEER, bytes(SIGNAL_MAX_BYTES + 1))
    await control.handler(PEER, b"fine")
    assert taken == [b"fine"]


async def test_members_together_gossip_no_more_than_a_mesh_bears() -> None:
    control = FakeControl()
    made, _ = carrier(control, None)
    made.set_members(frozenset(NodeId(bytes([n]) * 32) for n in range(2, 101)))
    for n in range(200):
        made.send(PEER, b"%d" % n)
    await settled(made)
    at_once = len(control.told)
    assert at_once == 32
    made._allowance.per_s = 1000.0  # as if time had passed
    await asyncio.sleep(0.01)
    made.send(PEER, b"later")
    await settled(made)
    assert control.told[-1] == PEER.ed25519 + b"later"


async def test_calling_those_who_may_not_be_there_leaves_words_for_those_who_are() -> None:
    control = FakeControl()
    made, _ = carrier(control, None)
    made.set_members(frozenset(NodeId(bytes([n]) * 32) for n in range(2, 101)))
    for n in range(100):
        made.send(NodeId(bytes([100 + n]) * 32), b"who is there?", unheard=True)
    made.send(PEER, b"you")
    await settled(made)
    assert len(control.told) == 32 + 1
    assert control.told[-1] == PEER.ed25519 + b"you"


async def test_what_nobody_heard_does_not_count() -> None:
    control = FakeControl()
    made, _ = carrier(control, None)
    control.down = True
    for _ in range(int(3 * GOSSIP_BURST)):
        made.send(PEER, b"early", unheard=True)
        await settled(made)
    control.down = False
    made.send(PEER, b"now", unheard=True)
    await settled(made)
    assert control.told == [PEER.ed25519 + b"now"]
