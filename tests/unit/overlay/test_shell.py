"""The asyncio face: order, restarts, cancellation and clean ends, mostly on the fake device."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from agent.errors import EnvironmentFault
from agent.overlay import links, shell
from agent.overlay.device import Interface, Opened, PeerConfig
from agent.overlay.fake import FakeDevice
from agent.overlay.shell import Overlay

KEY = bytes([1]) * 32
ADDRESSES = (ip_interface("fd12:3456:789a::1/48"), ip_interface("10.77.1.1/16"))
PEER = PeerConfig(bytes([7]) * 32, ("192.0.2.7", 51820), (ADDRESSES[0].network,), 25)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "CHECK_INTERVAL_S", 0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.005)


async def started(device: FakeDevice) -> Overlay:
    overlay = Overlay("covey0", device=device)
    await overlay.start(KEY, 51820, ADDRESSES)
    return overlay


async def test_start_peers_states_stop() -> None:
    device = FakeDevice()
    overlay = await started(device)
    assert (overlay.kind, overlay.listen_port, overlay.fault) == ("fake", 51820, None)
    assert device.config.mtu == 1280
    await overlay.set_peers([PEER])
    (state,) = await overlay.states()
    assert (state.public_key, state.endpoint) == (PEER.node_public, PEER.endpoint)
    await overlay.stop()
    await overlay.stop()
    assert device.failure() == "the device is closed"
    assert (overlay.kind, overlay.listen_port) == ("", 0)
    with pytest.raises(EnvironmentFault, match="the overlay is not up"):
        await overlay.states()


async def test_other_addresses_come_with_the_peers_that_there_are() -> None:
    device = FakeDevice()
    overlay = await started(device)
    await overlay.set_peers([PEER])
    others = (ADDRESSES[0], ip_interface("10.77.9.9/16"))
    await overlay.set_addresses(others)
    assert device.config.addresses == others
    assert [state.public_key for state in await overlay.states()] == [PEER.node_public]
    await overlay.stop()


async def test_mtus_outlive_other_addresses_and_a_broken_device() -> None:
    device = FakeDevice()
    overlay = Overlay("covey0", device=device)
    await overlay.start(KEY, 51820, ADDRESSES, 1440)
    own = ip_network("10.77.2.2/32")
    await overlay.set_mtus([((own,), 1420)])
    assert device.routed == {own: 1408}
    await overlay.set_addresses((ADDRESSES[0], ip_interface("10.77.9.9/16")))
    assert (device.opened, device.routed) == (2, {own: 1408})
    device.break_down()
    await until(lambda: device.opened == 3 and device.routed == {own: 1408})
    device.break_down()
    await overlay.set_mtus([((own,), 1440)])
    assert (device.opened, device.routed) == (4, {own: 1440})
    await overlay.set_mtus([((own,), 0)])
    assert device.routed == {}
    await overlay.stop()


async def test_mtus_that_could_not_be_set_are_set_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeDevice()
    overlay = Overlay("covey0", device=device)
    await overlay.start(KEY, 51820, ADDRESSES, 1440)
    own = ip_network("10.77.2.2/32")

    def refused(_: object) -> None:
        raise EnvironmentFault("the kernel says no")

    with monkeypatch.context() as broken, pytest.raises(EnvironmentFault, match="says no"):
        broken.setattr(device, "route", refused)
        await overlay.set_mtus([((own,), 1440)])
    await overlay.set_mtus([((own,), 1440)])
    assert device.routed == {own: 1440}
    await overlay.stop()


async def test_started_again_after_a_stop() -> None:
    device = FakeDevice()
    overlay = await started(device)
    with pytest.raises(ValueError, match="started already"):
        await overlay.start(KEY, 51820, ADDRESSES)
    await overlay.stop()
    await overlay.start(KEY, 51820, ADDRESSES)
    assert await overlay.states() == []
    await overlay.stop()


async def test_a_fault_at_the_start_leaves_nothing() -> None:
    device = FakeDevice()
    device.underlay.ports.add((device.host, 51820))
    overlay = Overlay(device=device)
    with pytest.raises(EnvironmentFault, match="UDP port 51820 is in use"):
        await overlay.start(KEY, 51820, ADDRESSES)
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("overlay")])
    device.underlay.ports.clear()
    await overlay.start(KEY, 51820, ADDRESSES)
    await overlay.stop()


async def test_a_broken_device_is_made_anew_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice()
    overlay = Overlay(device=device)
    await overlay.start(KEY, 0, ADDRESSES)
    await overlay.set_peers([PEER])
    port = overlay.listen_port
    with caplog.at_level(logging.INFO, "agent.overlay.shell"):
        device.break_down("wireguard-go ended (signal 9)")
        await until(lambda: device.opened == 2)
        (state,) = await overlay.states()
    assert state.endpoint == PEER.endpoint
    assert device.listen_port == port
    assert [record.getMessage() for record in caplog.records] == [
        "overlay restarted interface=covey0 reason=wireguard-go ended (signal 9)"
    ]
    await overlay.stop()


@pytest.mark.parametrize("first_call", ["states", "set_peers"])
async def test_a_call_does_not_wait_for_the_watch(
    first_call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "CHECK_INTERVAL_S", 3600)
    device = FakeDevice()
    overlay = await started(device)
    device.break_down()
    if first_call == "states":
        assert await overlay.states() == []
    await overlay.set_peers([PEER])
    assert [state.public_key for state in await overlay.states()] == [PEER.node_public]
    assert device.opened == 2
    await overlay.stop()


async def test_a_restart_that_fails_is_a_fault_until_it_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = FakeDevice()
    overlay = await started(device)
    device.underlay.ports.add((device.host, 51820))
    device.break_down()
    await until(lambda: overlay.fault is not None)
    assert overlay.fault is not None
    assert overlay.fault.message == "UDP port 51820 is in use"
    with pytest.raises(EnvironmentFault, match="is not up"):
        await overlay.set_peers([PEER])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    device.underlay.ports.clear()
    await until(lambda: overlay.fault is None)
    assert [state.public_key for state in await overlay.states()] == [PEER.node_public]
    await overlay.stop()


async def test_wrong_peers_are_not_remembered() -> None:
    device = FakeDevice()
    overlay = await started(device)
    await overlay.set_peers([PEER])
    with pytest.raises(ValueError, match="given twice"):
        await overlay.set_peers([PEER, PEER])
    device.break_down()
    assert [state.public_key for state in await overlay.states()] == [PEER.node_public]
    await overlay.stop()


async def test_an_apply_that_fails_on_a_working_device_is_raised() -> None:
    class Refusing(FakeDevice):
        def apply(self, peers: Sequence[PeerConfig]) -> None:
            raise EnvironmentFault("the kernel refuses")

    overlay = await started(Refusing())
    with pytest.raises(EnvironmentFault, match="the kernel refuses"):
        await overlay.set_peers([PEER])
    await overlay.stop()


class _Slow(FakeDevice):
    """Opens, and closes, only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()

    def open(
        self, private_key: bytes, listen_port: int, addresses: Sequence[Interface], mtu: int = 1280
    ) -> Opened:
        self.begun.set()
        assert self.go.wait(10)
        return super().open(private_key, listen_port, addresses, mtu)


async def test_a_cancelled_start_leaves_nothing() -> None:
    device = _Slow()
    overlay = Overlay(device=device)
    start = asyncio.create_task(overlay.start(KEY, 51820, ADDRESSES))
    await until(device.begun.is_set)
    start.cancel()
    await asyncio.sleep(0.02)
    start.cancel()
    device.go.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert device.opened == 1
    assert device.failure() == "the device is closed"
    await overlay.start(KEY, 51820, ADDRESSES)
    await overlay.stop()


async def test_a_cancelled_stop_still_closes() -> None:
    device = FakeDevice()
    overlay = await started(device)
    stop = asyncio.create_task(overlay.stop())
    await asyncio.sleep(0)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert device.failure() == "the device is closed"


async def test_a_hanging_device_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "OPERATION_TIMEOUT_S", 0.05)
    device = _Slow()
    overlay = Overlay(device=device)
    with pytest.raises(EnvironmentFault, match="did not answer within"):
        await overlay.start(KEY, 51820, ADDRESSES)
    device.go.set()
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("overlay")])


async def test_the_watch_survives_a_programming_error(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice()
    overlay = await started(device)
    monkey: Any = device
    monkey.refresh = lambda: 1 / 0
    await until(lambda: "overlay check failed interface=covey0" in caplog.messages)
    del monkey.refresh
    device.break_down()
    await until(lambda: device.opened == 2)
    await overlay.stop()


async def test_every_call_is_in_one_thread() -> None:
    threads: set[int] = set()

    class Noting(FakeDevice):
        def failure(self) -> str | None:
            threads.add(threading.get_ident())
            return super().failure()

    overlay = await started(Noting())
    await asyncio.gather(overlay.states(), overlay.set_peers([PEER]), overlay.states())
    await until(lambda: len(threads) > 0)
    await overlay.stop()
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})


def test_a_bad_name_is_refused() -> None:
    for name in ("", "covey/0", "a-name-too-long-", "."):
        with pytest.raises(ValueError, match="cannot be an interface name"):
            Overlay(name)


def test_a_killed_wireguard_go_comes_back_and_traffic_flows(
    real: Any, running: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "add_wireguard", lambda name: False)  # a kernel without the module
    real.open(1).apply([real.peer(0)])

    async def scenario() -> None:
        overlay = Overlay(real.names[0], "auto")
        await overlay.start(KEY, 51820, ADDRESSES)
        await overlay.set_peers([real.peer(1)])
        assert overlay.kind == "userspace"
        ping = asyncio.to_thread(real.ping, 1, "10.77.1.1")  # side 1's thread is free
        assert await ping
        (pid,) = running(real.names[0])
        os.kill(int(pid), signal.SIGKILL)
        await until(lambda: running(real.names[0]) not in ([], [pid]))
        await overlay.states()
        # From this side: the other one would first wait 15 s for the session that is gone.
        assert await asyncio.to_thread(real.ping_from_worker, 0, "10.77.2.2")
        assert overlay.listen_port == 51820
        await overlay.stop()

    real.hosts[0].run(lambda: asyncio.run(scenario()))
    assert real.left(0) == []
