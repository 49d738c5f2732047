"""The shell over real UDP on loopback: three nodes, each on an address of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.errors import EnvironmentFault, StateError
from agent.identity.keys import NodeId
from agent.ownership import messages, rendezvous
from agent.ownership.messages import Hint, Report
from agent.ownership.owner import Phase, Want
from agent.ownership.service import OwnershipService

NODES = {NodeId(bytes([n]) * 32): f"127.0.0.{n}" for n in (11, 12, 13)}


class Mesh:
    """Who is there, and what is wished; shared by all nodes of a test."""

    def __init__(self) -> None:
        self.live = set(NODES)
        self.wants: dict[str, Want] = {}

    def members(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(
                node_id=node, certificate=SimpleNamespace(ipv6=address, roles=("worker",))
            )
            for node, address in NODES.items()
        ]

    def live_workers(self, now: float) -> list[Any]:
        return [member for member in self.members(now) if member.node_id in self.live]

    def draining(self) -> frozenset[NodeId]:
        return frozenset()


class Node:
    """One service, and the rings that it says it runs."""

    def __init__(self, mesh: Mesh, node: NodeId, state: Path) -> None:
        self.id = node
        self.running: dict[str, Report] = {}
        self.changes = 0
        state.mkdir(mode=0o700, exist_ok=True)
        self.service = OwnershipService(
            node, state, mesh, wants=lambda: mesh.wants, running=lambda: self.running,
            changed=self._changed,
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[Mesh, dict[NodeId, Node], int]]:
    shared, port = Mesh(), free_port()
    nodes = {node: Node(shared, node, tmp_path / str(i)) for i, node in enumerate(NODES)}
    for node in nodes.values():
        await node.service.start(NODES[node.id], port)
    yield shared, nodes, port
    for node in nodes.values():
        await node.service.stop()


async def until(what: Callable[[], Any]) -> Any:
    async with asyncio.timeout(20):
        while True:
            if found := what():
                return found
            await asyncio.sleep(0.02)


async def test_one_takes_the_lease_and_another_when_it_is_gone(
    mesh: tuple[Mesh, dict[NodeId, Node], int],
) -> None:
    shared, nodes, _ = mesh
    first, second, third = rendezvous.order("m", NODES)
    shared.wants = {"m": Want("m", prefer=third)}
    for node in nodes.values():
        node.service.kick()
    (holding,) = await until(lambda: nodes[first].service.owned().get("m"))
    assert (holding.head, holding.main, holding.token.owner_id) == (third, True, first)
    assert nodes[third].service.admits("m", holding.token)
    assert not nodes[second].service.admits("m", holding.token)
    assert nodes[first].changes == 1
    nodes[third].running = {"m": Report(Phase.READY, 1)}
    nodes[third].service.kick()
    await until(lambda: nodes[first].service.owned()["m"][0].report == Report(Phase.READY, 1))
    await until(lambda: nodes[second].service.view("m").head == third)

    await nodes[first].service.stop()
    shared.live.discard(first)
    for node in (second, third):
        nodes[node].service.suspect(first)
    (taken,) = await until(lambda: nodes[second].service.owned().get("m"))
    assert taken.head == third
    assert taken.token.epoch > holding.token.epoch
    assert not nodes[third].service.admits("m", holding.token)
    assert nodes[first].service.owned() == {}


async def test_strangers_and_nonsense_are_dropped(
    mesh: tuple[Mesh, dict[NodeId, Node], int],
) -> None:
    _, nodes, port = mesh
    first, second, _ = NODES
    service = nodes[first].service
    (hint,) = messages.encode([Hint("m", second.ed25519)])
    for address, source_port, data in (
        ("127.0.0.99", port, hint), (NODES[second], port + 1, hint), (NODES[second], port, b"x"),
        (NODES[first], port, hint),
    ):  # fmt: skip
        service.datagram_received(data, (address, source_port))
        assert service._core is not None
        assert service._core._hearsay.heads("m") == {}
    service.datagram_received(hint, (NODES[second], port))
    assert list(service._core._hearsay.heads("m")) == [second]


async def test_epochs_are_reserved_before_they_are_granted(
    mesh: tuple[Mesh, dict[NodeId, Node], int], tmp_path: Path
) -> None:
    _, nodes, port = mesh
    first = next(iter(NODES))
    assert b'"reserved":1000' in (tmp_path / "0" / "epochs.json").read_bytes()
    core = nodes[first].service._core
    assert core is not None
    core.leases.highest = 950
    nodes[first].service._settle(core)
    assert core.leases.limit == 1950
    assert b'"reserved":1950' in (tmp_path / "0" / "epochs.json").read_bytes()
    await nodes[first].service.stop()
    await nodes[first].service.start(NODES[first], port)
    again = nodes[first].service._core
    assert again is not None
    assert (again.leases.highest, again.leases.limit) == (1950, 2950)


async def test_a_damaged_file_and_a_port_in_use_are_named(
    mesh: tuple[Mesh, dict[NodeId, Node], int], tmp_path: Path
) -> None:
    shared, _, port = mesh
    node = next(iter(NODES))
    other = Node(shared, node, tmp_path / "other")
    with pytest.raises(EnvironmentFault, match=rf"UDP port {port} .*{NODES[node]}"):
        await other.service.start(NODES[node], port)
    file = tmp_path / "other" / "epochs.json"
    for content, words in (("{", "damaged"), ('{"version":2,"reserved":1}', "format 2")):
        file.write_text(content)
        with pytest.raises(StateError, match=words) as caught:
            await other.service.start(NODES[node], port)
        assert str(file) in caught.value.message
        assert file.read_text() == content


async def test_nothing_wakes_a_node_while_nothing_is_deployed(
    mesh: tuple[Mesh, dict[NodeId, Node], int],
) -> None:
    _, nodes, _ = mesh
    for node in nodes.values():
        await until(lambda: node.service._timer is None)  # noqa: B023 - used at once
