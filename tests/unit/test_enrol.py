"""Joining: whichever way answers first counts, and a refusal is an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config, enrol
from agent.config import Config
from agent.control.troubles import BROKE
from agent.errors import EnvironmentFault, MembershipError, PeerError, StateError, TicketError
from agent.identity.keys import NodeId, NodeKey
from agent.lan.peers import LanPeer
from agent.membership import join
from agent.membership.join import JoinRequest
from agent.membership.networkkeys import NetworkKeys
from agent.membership.store import Membership, StateDir

NOW = 1_800_000_000.0
FAR = "198.51.100.1:4001"


class World:
    """A founder, and who answers at which address; stands in for control plane and LAN."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.answering: set[str] = set()
        self.on_lan: list[LanPeer] = []
        self.lan_fault: EnvironmentFault | None = None
        self.lan_asked = 0
        self.asked: list[tuple[NodeId | None, tuple[str, ...]]] = []
        self.keys: NetworkKeys | None = None
        self.stopped = 0
        self.breaking = 0

    def __call__(self, key: NodeKey, keys: NetworkKeys, listen: Sequence[str]) -> World:
        assert listen == ()
        self.keys = keys
        return self

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped += 1

    async def request(
        self, peer: NodeId | None, addresses: Sequence[str], protocol: str, payload: bytes,
        *, timeout_s: float,
    ) -> bytes:  # fmt: skip
        assert protocol == join.PROTOCOL
        self.asked.append((peer, tuple(addresses)))
        if not self.answering.intersection(addresses):
            raise PeerError("nobody could be reached")
        answer = self.membership.admit(JoinRequest.decode(payload), NOW).encode()
        if self.breaking:
            self.breaking -= 1
            raise PeerError(f"{BROKE} {protocol} (any node)", hint="Try again.")
        return answer

    async def find(self, mesh_id: bytes, network_key: bytes, **_: Any) -> AsyncIterator[LanPeer]:
        self.lan_asked += 1
        assert mesh_id == self.membership.mesh.id
        if self.lan_fault is not None:
            raise self.lan_fault
        for peer in self.on_lan:
            yield peer

    def near(self, number: int) -> str:
        node = self.membership.key.id
        host = f"192.0.2.{number}"
        self.on_lan.append(LanPeer(node, (host,), 4001, 4001, 51820, NOW))
        return f"{host}:4001"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    with StateDir(tmp_path / "founder").lock() as state:
        made = World(state.create_mesh("home", "box", NOW))
        monkeypatch.setattr(enrol, "ControlPlane", made)
        monkeypatch.setattr(enrol.newcomer, "find", made.find)
        monkeypatch.setattr(enrol, "_LAN_AFTER_S", 0.0)
        monkeypatch.setattr(enrol, "_TRY_AGAIN_S", 0.0)
        monkeypatch.setattr(made.membership, "_state", state)
        yield made  # type: ignore[misc]


def settings_for(tmp_path: Path, *assignments: str) -> Config:
    return config.load(
        Path(os.devnull), {}, [f"node.state_dir={tmp_path / 'state'}", *assignments]
    )[0]


async def joined(
    world: World, tmp_path: Path, *addresses: str, assignments: Sequence[str] = (),
    bootstrap: Sequence[str] = (),
) -> Membership:  # fmt: skip
    ticket = world.membership.invite(NOW, addresses=addresses, ttl_s=600)
    settings = settings_for(tmp_path, *assignments)
    wish = enrol.Enrolment(ticket.encode(), tuple(bootstrap), "pi")
    with StateDir(settings.state_dir).lock() as state:
        return await enrol.join_mesh(settings, state, wish, NOW)


async def test_any_member_at_the_tickets_addresses_is_asked(world: World, tmp_path: Path) -> None:
    world.answering = {FAR}
    membership = await joined(world, tmp_path, "192.0.2.77:4001", FAR)
    assert membership.certificate.name == "pi"
    assert world.asked == [(None, ("192.0.2.77:4001", FAR))]
    assert world.keys == world.membership.network_keys(NOW)
    assert world.stopped == 1
    assert world.membership.is_member(membership.key.id, NOW)


async def test_addresses_given_by_hand_are_asked_instead(world: World, tmp_path: Path) -> None:
    world.answering = {"10.0.0.9:4001", "[2001:db8::1]:5000"}
    await joined(world, tmp_path, FAR, bootstrap=("10.0.0.9", "[2001:db8::1]:5000"))
    assert world.asked == [(None, ("10.0.0.9:4001", "[2001:db8::1]:5000"))]


async def test_without_an_address_the_lan_helps(world: World, tmp_path: Path) -> None:
    silent, near = world.near(1), world.near(2)
    world.answering = {near}
    await joined(world, tmp_path)
    issuer = world.membership.key.id
    assert world.asked == [(issuer, (silent,)), (issuer, (near,))]


async def test_where_no_address_answers_the_lan_helps_too(world: World, tmp_path: Path) -> None:
    world.answering = {world.near(1)}
    await joined(world, tmp_path, FAR)
    assert [peer for peer, _ in world.asked] == [None, world.membership.key.id]


@pytest.mark.parametrize("fault", [None, EnvironmentFault("no multicast here")])
async def test_the_addresses_fault_is_told_when_nobody_answers(
    world: World, tmp_path: Path, fault: EnvironmentFault | None
) -> None:
    world.lan_fault = fault
    with pytest.raises(PeerError, match="nobody could be reached"):
        await joined(world, tmp_path, FAR)
    assert world.lan_asked == 1
    with pytest.raises(PeerError, match="names no address, and no member was found on this LAN"):
        await joined(world, tmp_path)
    assert StateDir(tmp_path / "state").membership() is None


async def test_the_lan_is_left_alone_where_mdns_is_off(world: World, tmp_path: Path) -> None:
    world.answering = {world.near(1)}
    with pytest.raises(PeerError):
        await joined(world, tmp_path, FAR, assignments=["network.mdns=false"])
    assert world.lan_asked == 0


async def test_a_refusal_is_told_at_once(world: World, tmp_path: Path) -> None:
    world.answering = {FAR}
    await joined(world, tmp_path, FAR)
    ticket = world.membership.invite(NOW, addresses=[FAR], ttl_s=600)
    wrong = msgspec.structs.replace(ticket, secret=bytes(16)).encode()
    settings = settings_for(tmp_path)
    with StateDir(settings.state_dir).lock() as state:
        with pytest.raises(TicketError, match="not known to its issuer"):
            await enrol.join_mesh(settings, state, enrol.Enrolment(wrong), NOW)
        with pytest.raises(TicketError, match="expired"):
            await enrol.join_mesh(settings, state, enrol.Enrolment(wrong), NOW + 9999)
        foreign = msgspec.structs.replace(ticket, mesh_id=bytes(32)).encode()
        with pytest.raises(StateError, match="already in the mesh home"):
            await enrol.join_mesh(settings, state, enrol.Enrolment(foreign), NOW)


async def way(*outcome: object) -> bytes:
    for each in outcome:
        if isinstance(each, float):
            await asyncio.sleep(each)
        elif isinstance(each, Exception):
            raise each
        else:
            assert isinstance(each, bytes)
            return each
    raise AssertionError


async def test_the_first_to_succeed_wins() -> None:
    assert await enrol.first([way(PeerError("no")), way(0.001, b"yes")]) == b"yes"
    assert await enrol.first([way(60.0), way(b"yes")]) == b"yes"
    with pytest.raises(MembershipError, match="refused"):
        await enrol.first([way(60.0), way(MembershipError("refused"))])
    with pytest.raises(PeerError, match="one"):
        await enrol.first([way(0.001, PeerError("one")), way(PeerError("two"))])


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    task = asyncio.create_task(enrol.first([way(60.0), way(60.0)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_connection_that_broke_under_the_request_costs_no_use_of_the_ticket(
    world: World, tmp_path: Path
) -> None:
    """The member has admitted the newcomer, and its answer was lost: twice."""
    world.answering, world.breaking = {FAR}, 2
    membership = await joined(world, tmp_path, FAR, assignments=["network.mdns=false"])
    assert membership.certificate.name == "pi"
    assert len(world.asked) == 3
    assert len(world.membership.peers()) == 1


async def test_a_connection_that_breaks_each_time_is_said(world: World, tmp_path: Path) -> None:
    world.answering, world.breaking = {FAR}, 99
    with pytest.raises(PeerError, match="the connection broke"):
        await joined(world, tmp_path, FAR, assignments=["network.mdns=false"])
    assert len(world.asked) == 3
