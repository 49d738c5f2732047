"""What is said of a relay that cannot do what it is there for, and that it is taken back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from relay_ends import ANNA, BERT, CARL, KEYS, MESH, RELAY

from agent.acl.firewall import Finished
from agent.errors import EnvironmentFault
from agent.health import Health
from agent.relay import condition, forwarding, messages, service
from agent.relay.allocation import UNUSABLE_S, Limits
from agent.relay.condition import NO_PORTS, NO_TUNNEL, SLOW, faults
from agent.relay.messages import Allocate
from agent.relay.service import Relay, Settings

NFT = EnvironmentFault("nft is not installed", hint="Install the package nftables.")
PORT = EnvironmentFault("TCP port 443 is in use", hint="Set network.tunnel_port.")
NONE_FREE = EnvironmentFault("other programs hold this relay's ports", hint="Give it others.")
PORTS = range(23880, 23884)


def test_a_relay_says_what_happened_and_what_to_do() -> None:
    slow, tunnel, ports = faults(NFT, PORT, NONE_FREE, expected=True)
    assert (slow.code, slow.severity) == (SLOW, "warning")
    assert "nft is not installed" in slow.text
    assert slow.what_to_do == "Install the package nftables."
    assert (tunnel.code, tunnel.severity) == (NO_TUNNEL, "warning")
    assert "TCP port 443 is in use" in tunnel.text
    assert tunnel.what_to_do.startswith("Set network.tunnel_port.")
    assert (ports.code, ports.severity) == (NO_PORTS, "error")
    assert ports.what_to_do == "Give it others."
    assert {slow.code, tunnel.code, ports.code} == set(condition.CODES)


def test_what_to_do_is_never_empty() -> None:
    bare = EnvironmentFault("something")
    for item in faults(bare, bare, NONE_FREE, expected=True):
        assert item.what_to_do.strip() == item.what_to_do != ""


def test_a_node_that_just_may_relay_is_not_blamed_for_being_slow() -> None:
    assert faults(NFT, PORT, None, expected=False) == []
    assert [item.code for item in faults(NFT, PORT, NONE_FREE, expected=False)] == [NO_PORTS]


def test_nothing_wrong_is_nothing_said() -> None:
    assert faults(None, None, None, expected=True) == []


def codes(health: Health) -> list[str]:
    return [item.code for item in health.items()]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TICK_S", 0.02)
    monkeypatch.setattr(service, "TUNNEL_RETRY_S", 0.1)
    monkeypatch.setattr(forwarding, "RETRY_S", 0.1)


async def test_a_tunnel_s_port_in_use_is_said_until_it_is_free() -> None:
    health = Health()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        settings = Settings(
            Limits(ports=PORTS), kernel=True, tunnel_port=port, tunnel_host="127.0.0.1",
            expected=True,
        )  # fmt: skip
        relay = Relay(RELAY, MESH, KEYS, "relaytest1", settings, health=health)
        relay._forwarding._run = _nft_works
        await relay.start()
        try:
            assert codes(health) == [NO_TUNNEL]
            assert f"TCP port {port}" in health.items()[0].text
            await asyncio.sleep(0.3)
            assert codes(health) == [NO_TUNNEL]
            holder.close()
            await until(lambda: codes(health) == [])
            assert relay.describe()["tunnel_port"] == port
            assert relay.describe()["tunnel_fault"] is None
        finally:
            await relay.stop()


async def test_a_missing_nft_is_said_until_it_is_there() -> None:
    health, there = Health(), False

    async def nft(arguments: object, stdin: bytes) -> Finished:
        if not there:
            raise NFT
        return Finished(0, b"", b"")

    settings = Settings(Limits(ports=PORTS), tunnel_port=None, expected=True)
    relay = Relay(RELAY, MESH, KEYS, "relaytest1", settings, health=health)
    relay._forwarding._run = nft
    await relay.start()
    try:
        (item,) = health.items()
        assert (item.code, item.what_to_do) == (SLOW, NFT.hint)
        there = True
        await until(lambda: codes(health) == [])
        assert relay.describe()["forwarding"] == "kernel"
    finally:
        await relay.stop()


async def test_ports_that_others_hold_are_said_until_a_pair_gets_some() -> None:
    health = Health()
    clock = [1_800_000_000.0]
    settings = Settings(Limits(ports=PORTS), kernel=False, tunnel_port=None)
    relay = Relay(RELAY, MESH, KEYS, "relaytest1", settings, health=health, clock=lambda: clock[0])
    relay.set_members([ANNA.id, BERT.id, CARL.id, RELAY.id])
    held = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in PORTS]
    await relay.start()
    ask = messages.encode(Allocate(BERT.id.ed25519))
    try:
        for one, port in zip(held, PORTS, strict=True):
            one.bind(("::", port))
        with pytest.raises(EnvironmentFault):
            await relay.answer(ANNA.id, ask)
        await until(lambda: codes(health) == [NO_PORTS])
        for one in held:
            one.close()
        clock[0] += UNUSABLE_S + 1
        await relay.answer(ANNA.id, ask)
        await until(lambda: codes(health) == [])
    finally:
        for one in held:
            one.close()
        await relay.stop()


async def _nft_works(arguments: object, stdin: bytes) -> Finished:
    return Finished(0, b"", b"")
