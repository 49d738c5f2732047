"""Two nodes' traversal on a fake network: they find each other, and let go of everything."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from agent.acl.firewall import Finished
from agent.errors import EnvironmentFault
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.overlay.device import PeerState
from agent.peers import Wish
from agent.probing.port import FakeNetwork, FakePort, Port
from agent.traversal.carrier import PROTOCOL
from agent.traversal.service import CALLERS_MAX, LOOK_MIN_S, Addresses, Settings, Traversal

pytestmark = pytest.mark.slow

MESH = b"m" * 32
KEYS = NetworkKeys(bytes(32), (bytes(32),))
WG = 51820
HOSTS = ("192.88.99.1", "192.88.99.2")
OVERLAY: dict[IPv4Address | IPv6Address, NodeId] = {}


class Plane:
    """A control plane that joins its ends."""

    def __init__(self) -> None:
        self.handlers: dict[NodeId, Callable[[NodeId, bytes], Awaitable[bytes]]] = {}
        self.requests = 0

    def end(self, node: NodeId) -> "End":
        return End(self, node)


class End:
    """One node's end."""

    def __init__(self, plane: Plane, node: NodeId) -> None:
        self._plane, self._node = plane, node

    def serve(self, protocol: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]]) -> None:
        assert protocol == PROTOCOL
        self._plane.handlers[self._node] = handler

    def subscribe(self, topic: str, handler: Callable[[NodeId, bytes], Awaitable[bool]]) -> None:
        """Nobody gossips here."""

    async def request(
        self, peer: NodeId, addresses: Sequence[str], protocol: str, payload: bytes, *,
        timeout_s: float,
    ) -> bytes:  # fmt: skip
        self._plane.requests += 1
        return await self._plane.handlers[peer](self._node, payload)

    async def publish(self, topic: str, payload: bytes) -> None:
        raise AssertionError("both can be asked")


async def no_nft(arguments: Sequence[str], stdin: bytes) -> Finished:
    return Finished(0, b"", b"")


class Bench:
    """Two nodes on one fake network; what WireGuard would be told is in `changes`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.network = FakeNetwork(later=loop.call_soon)
        self.plane = Plane()
        self.keys = [NodeKey(bytes([n]) * 32) for n in (1, 2)]
        self.ids = [key.id for key in self.keys]
        self.changes = [0, 0]
        self.notes: list[str] = []
        self.slept: list[NodeId] = []
        self.nodes = [self._node(index) for index in range(2)]

    def _node(self, index: int, **more: Any) -> Traversal:
        def port(number: int) -> Port:
            return FakePort(self.network, HOSTS[index], number)

        def changed() -> None:
            self.changes[index] += 1
            asyncio.get_running_loop().call_soon(configure)

        def configure() -> None:
            self.nodes[index].configured({peer.wireguard_public for peer in self.ids})

        node = Traversal(
            self.keys[index], MESH, KEYS, self.plane.end(self.ids[index]),
            Settings("covey-none", (), HOSTS[index : index + 1], port_mapping=False),
            addresses=Addresses(
                control=lambda _: [], signal=lambda _: [], node_at=OVERLAY.get,
                overlay=lambda nodes: [],
            ),
            changed=changed, slept=self.slept.append,
            note=lambda _, text: self.notes.append(text),
            **({"make_port": port, "make_second": port, "run": no_nft} | more),
        )  # fmt: skip
        node.begin()
        return node

    def connected(self) -> bool:
        """Say whether each has an endpoint for the other."""
        wishes = [n.wish(peer) for n, peer in zip(self.nodes, self.ids[::-1], strict=True)]
        return all(wish is not None and wish.endpoint is not None for wish in wishes)

    async def start(self) -> None:
        for node in self.nodes:
            await node.start(WG)
            node.set_members(self.ids)
            node.keep(frozenset(self.ids), self.ids)

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_record_is_enough_where_the_peer_answers_at_its_address() -> None:
    for _ in range(5):
        bench = Bench()
        await bench.start()
        try:
            for node, peer, host in zip(bench.nodes, bench.ids[::-1], HOSTS[::-1], strict=True):
                node.introduce(peer, [(host, WG)])
            await until(bench.connected)
            wishes = [n.wish(peer) for n, peer in zip(bench.nodes, bench.ids[::-1], strict=True)]
            assert [wish and wish.endpoint for wish in wishes] == [(HOSTS[1], WG), (HOSTS[0], WG)]
            described = bench.nodes[0].describe(bench.ids[1])
            assert described["route"] in ("public", "punched")
            assert described["why"] == ""
            assert described["path_loss"] == 0.0
            assert described["path_jitter_ms"] >= 0.0
            assert any("is reached" in note for note in bench.notes)
        finally:
            await bench.stop()
        assert bench.network.ports == {}, "every port is closed"
        # Where other work holds the answers back, members are asked as well; not each time.
        if bench.plane.requests == 0:
            return
    pytest.fail("members had to be asked each time")


async def test_what_a_path_carries_is_measured_and_told() -> None:
    bench = Bench()
    await bench.start()
    for node, peer, host in zip(bench.nodes, bench.ids[::-1], HOSTS[::-1], strict=True):
        node.introduce(peer, [(host, WG)])
    one, peer = bench.nodes[0], bench.ids[1]
    assert one.mtu(peer) == 0
    await until(lambda: one.mtu(peer) == 1280)
    changes = bench.changes[0]
    await until(lambda: one.mtu(peer) == 1440)
    assert bench.changes[0] > changes, "WireGuard's side has to hear of it"
    one.rest(peer)
    assert one.mtu(peer) == 0
    await bench.stop()


async def test_signals_bring_together_those_who_know_no_address() -> None:
    bench = Bench()
    await bench.start()
    for node, peer in zip(bench.nodes, bench.ids[::-1], strict=True):
        node.introduce(peer, [])
    await until(bench.connected)
    assert bench.plane.requests > 0
    await bench.stop()


async def test_who_is_no_member_any_more_is_forgotten() -> None:
    bench = Bench()
    await bench.start()
    one, two = bench.nodes
    one.introduce(bench.ids[1], [(HOSTS[1], WG)])
    two.introduce(bench.ids[0], [(HOSTS[0], WG)])
    await until(bench.connected)
    one.set_members([bench.ids[0]])
    assert one.wish(bench.ids[1]) is None
    assert one.describe(bench.ids[1]) == {}
    one.introduce(bench.ids[1], [(HOSTS[1], WG)])
    assert one.describe(bench.ids[1]) == {}, "a stranger is not looked for"
    await bench.stop()


async def test_a_member_that_nobody_talks_to_is_asleep_until_it_is_needed() -> None:
    bench = Bench()
    await bench.start()
    one, two = bench.nodes
    for node in bench.nodes:
        node.keep(frozenset(), bench.ids)
    one.introduce(bench.ids[1], [(HOSTS[1], WG)])
    two.introduce(bench.ids[0], [(HOSTS[0], WG)])
    await asyncio.sleep(0.05)
    assert one.asleep(bench.ids[1])
    assert one.wish(bench.ids[1]) is None
    assert one.describe(bench.ids[1])["route"] == "asleep"
    assert one.need(bench.ids[1])
    await until(bench.connected)
    assert not two.asleep(bench.ids[0]), "who is wanted takes part"
    assert bench.plane.requests == 0, "a ping is enough"
    one.rest(bench.ids[1])
    assert one.asleep(bench.ids[1])
    assert bench.slept == [bench.ids[1]]
    assert not one.need(NodeKey(bytes([9]) * 32).id), "a stranger"
    await bench.stop()


async def test_a_member_that_is_gone_may_call_again_after_it_was_looked_for() -> None:
    bench = Bench()
    await bench.nodes[0].start(WG)
    one, peer = bench.nodes[0], bench.ids[1]
    one.set_members(bench.ids)
    one.introduce(peer, [])
    assert one.wish(peer) is None, "nobody has said yet who is there"
    one.keep(frozenset(), ())
    assert one.describe(peer)["route"] == "none"
    assert not one.asleep(peer)
    assert one.wish(peer) == Wish(passive=True)
    assert one.need(peer)
    assert one.describe(peer)["why"] != "it is gone; it is looked for when it is heard of again"
    assert one.wish(peer) == Wish(), "it may be found soon"
    one.rest(peer)
    assert one.wish(peer) == Wish(passive=True)
    changes = bench.changes[0]
    one.keep(frozenset(), [peer])
    assert bench.changes[0] > changes
    assert one.wish(peer) is None, "it is there, so it is asked to be connected"
    await bench.nodes[0].stop()


async def test_where_many_are_gone_each_may_call_some() -> None:
    bench = Bench()
    many = [NodeKey(n.to_bytes(32, "big")).id for n in range(10, 10 + 2 * CALLERS_MAX)]
    for node in bench.nodes:
        await node.start(WG)
        node.set_members([*bench.ids, *many])
        node.keep(frozenset(), bench.ids)
    may = [{peer for peer in many if node.wish(peer)} for node in bench.nodes]
    assert [len(some) for some in may] == [CALLERS_MAX, CALLERS_MAX]
    assert may[0] != may[1]
    await bench.stop()


async def test_what_flows_is_told_from_what_flows_by_itself() -> None:
    bench = Bench()
    await bench.start()
    one, peer = bench.nodes[0], bench.ids[1]
    one.introduce(peer, [(HOSTS[1], WG)])
    key = peer.wireguard_public
    assert not one.observe([PeerState(key, None, None, 0, 0)])
    assert not one.observe([PeerState(key, None, None, 0, 90_000)]), "that was a moment ago"
    await asyncio.sleep(LOOK_MIN_S)
    assert not one.observe([PeerState(key, (HOSTS[1], WG), 1.0, 300, 300)])
    await asyncio.sleep(LOOK_MIN_S)
    assert one.observe([PeerState(key, (HOSTS[1], WG), 1.0, 300, 90_000)])
    await bench.stop()


async def test_netcheck_says_what_it_knows_and_what_follows() -> None:
    bench = Bench()
    await bench.start()
    found = await bench.nodes[0].netcheck()
    assert found["nat"] == "unknown"
    assert found["port_mapping"].startswith("port mapping is switched off")
    assert found["verdict"].endswith("open port.")
    await bench.stop()


async def test_without_the_right_to_share_the_port_endpoints_are_others_business() -> None:
    def refused(number: int) -> Port:
        raise EnvironmentFault("this needs CAP_NET_RAW", hint="Run the agent as root.")

    bench = Bench()
    node = bench._node(0, make_port=refused)
    with pytest.raises(EnvironmentFault, match="CAP_NET_RAW"):
        await node.start(WG)
    assert node.failed
    node.set_members(bench.ids)
    node.introduce(bench.ids[1], [(HOSTS[1], WG)])
    assert not node.asleep(bench.ids[1])
    assert not node.observe([])
    await node.stop()
