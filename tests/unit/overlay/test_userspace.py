"""What only wireguard-go has: a process, a socket, and what a killed agent leaves of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_interface
from typing import Any

import pytest

from agent.errors import EnvironmentFault
from agent.overlay import alias, links, userspace
from agent.overlay.auto import AutoDevice
from agent.overlay.userspace import UserspaceDevice

pytestmark = pytest.mark.slow

KEY = bytes([1]) * 32
ADDRESSES = [ip_interface("fd12:3456:789a::1/48"), ip_interface("10.77.1.1/16")]
OWN = alias.of(links.public_key(KEY), alias.NOT_KEPT, 7)

_AGENT = """
import sys, time
from ipaddress import ip_interface
from agent.overlay.alias import Keeping
from agent.overlay.userspace import UserspaceDevice
device = UserspaceDevice(sys.argv[1], Keeping(float(sys.argv[2])))
device.open(bytes([1]) * 32, 51820, [ip_interface("fd12:3456:789a::1/48")])
print("open", flush=True)
time.sleep(60)
"""


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def killed_agent(real: Any, seconds: float) -> None:
    """Have an agent open side 0's device, and kill it."""
    command = [sys.executable, "-c", _AGENT, real.names[0], str(seconds)]
    agent = real.hosts[0].run(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    with agent:
        assert agent.stdout.readline() == "open\n"
        assert real.left(0) != []
        agent.kill()
        agent.wait(10)


def test_what_a_killed_agent_left_goes_after_a_while(real: Any) -> None:
    killed_agent(real, 0.0)
    wait_until(lambda: real.left(0) == [])
    real.up()
    assert real.ping(0, "10.77.2.2")


def test_what_a_killed_agent_left_is_adopted(
    real: Any, running: Callable[[str], list[str]]
) -> None:
    killed_agent(real, 60.0)
    (before,) = running(real.names[0])
    other = real.device(0)
    with pytest.raises(EnvironmentFault, match="belongs to another Covey node"):
        other.open(bytes([3]) * 32, 51820, ADDRESSES)
    elsewhere = UserspaceDevice(real.names[0], alias.Keeping(60.0, "/another/state"))
    with pytest.raises(EnvironmentFault, match="another state directory"):
        real.hosts[0].run(elsewhere.open, KEY, 51820, ADDRESSES)
    first, second = real.up()
    assert running(real.names[0]) == [before]
    assert real.shown_addresses(0) == {"fd12:3456:789a::1/48", "10.77.1.1/16"}, "one is new"
    assert real.ping(0, "10.77.2.2")
    assert first.device._process.adopted
    os.kill(int(before), signal.SIGKILL)
    wait_until(lambda: first.failure() is not None)
    assert first.failure() == "wireguard-go ended"
    first.close()
    assert real.left(0) == []
    second.close()


def test_another_port_is_not_adopted(real: Any, running: Callable[[str], list[str]]) -> None:
    killed_agent(real, 60.0)
    before = running(real.names[0])
    real.open(0, listen_port=51999)
    assert len(running(real.names[0])) == 1
    assert running(real.names[0]) != before


def test_peers_that_are_adopted_are_not_touched_by_the_same_wish(real: Any) -> None:
    first, second = real.up()
    assert real.ping(0, "10.77.2.2")
    (before,) = first.peers()
    real.abandon(0)
    again = real.devices[0]
    opened = again.open(KEY, 51820, ADDRESSES)
    assert opened.adopted
    assert opened.peers == (real.peer(1),)
    sent: list[bytes] = []
    request = again.device._request
    again.device._request = lambda text: (sent.append(text), request(text))[1]
    again.apply([real.peer(1)])
    assert [text for text in sent if text.startswith(b"set")] == []
    assert again.peers() == [before]
    assert real.ping(1, "10.77.1.1")
    again.close()
    second.close()


def test_a_process_that_outlived_its_agent_is_ended(
    real: Any, running: Callable[[str], list[str]]
) -> None:
    host, name = real.hosts[0], real.names[0]
    environment = {"PATH": os.environ["PATH"], "LOG_LEVEL": "silent"}
    command = ["wireguard-go", "-f", name]
    orphan = host.run(
        subprocess.Popen, command, env=environment, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        path = userspace.SOCKET_DIRECTORY / f"{name}.sock"
        wait_until(path.exists)
        host.run(links.claim, name, OWN, 1280)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(f"set=1\nprivate_key={KEY.hex()}\n\n".encode())
            assert connection.recv(100) == b"errno=0\n\n"
        real.open(0)
        assert orphan.wait(5) == 0
        assert len(running(name)) == 1
        assert real.devices[0].failure() is None
    finally:
        orphan.kill()
        orphan.wait(5)


def test_a_socket_of_someone_else_is_not_touched(real: Any) -> None:
    path = userspace.SOCKET_DIRECTORY / f"{real.names[0]}.sock"
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            listener.listen()
            fault = pytest.raises(EnvironmentFault, match="another program answers on")
            with fault, pytest.MonkeyPatch.context() as patch:
                patch.setattr(userspace, "_REQUEST_TIMEOUT_S", 0.05)
                real.open(0)
            assert path.exists()
        finally:
            path.unlink()


def test_a_stale_socket_is_replaced(real: Any) -> None:
    path = userspace.SOCKET_DIRECTORY / f"{real.names[0]}.sock"
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    real.open(0)


def test_a_killed_process_is_a_failure_and_close_clears_up(
    real: Any, running: Callable[[str], list[str]]
) -> None:
    device = real.open(0)
    os.kill(int(running(real.names[0])[0]), signal.SIGKILL)
    wait_until(lambda: device.failure() is not None)
    assert device.failure() == "wireguard-go ended (signal 9)"
    with pytest.raises(EnvironmentFault, match="does not answer"):
        device.peers()
    device.close()
    assert real.left(0) == []


def test_a_removed_interface_is_a_failure(real: Any) -> None:
    device = real.open(0)
    real.hosts[0].run(links.delete, device.name)
    wait_until(lambda: device.failure() is not None)
    assert device.failure() == "wireguard-go ended (0)"
    device.close()
    real.open(0)


def test_a_port_taken_after_the_check_is_still_noticed(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "check_port", lambda port, left_over: None)
    with (
        real.port_taken(0, 51820),
        pytest.raises(EnvironmentFault, match=r"^UDP port 51820 is in use$"),
    ):
        real.open(0)
    assert real.left(0) == []


def test_no_program(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    device = AutoDevice(real.names[0])
    with pytest.raises(EnvironmentFault, match="no WireGuard and wireguard-go is not") as caught:
        real.hosts[0].run(device.open, KEY, 0, ADDRESSES)
    assert "Install" in caught.value.hint


def test_no_capability(real: Any) -> None:
    real.hosts[0].drop_net_admin()
    with pytest.raises(
        EnvironmentFault,
        match=r"^cannot create the WireGuard interface \w+: this needs CAP_NET_ADMIN$",
    ) as caught:
        real.open(0)
    assert "container `--cap-add NET_ADMIN`" in caught.value.hint


def test_no_tun_device(real: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(userspace, "PROGRAM", "false")
    tun = tmp_path / "tun"
    monkeypatch.setattr(userspace, "_TUN", tun)
    with pytest.raises(EnvironmentFault, match=f"there is no {tun}") as caught:
        real.open(0)
    assert "give the container `--device /dev/net/tun`" in caught.value.hint
    tun.touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tun and access(path, mode))
    with pytest.raises(EnvironmentFault, match="may not be opened") as caught:
        real.open(0)
    assert "chmod" in caught.value.hint


def test_where_ipv6_is_off_it_is_switched_on_for_the_interface_only(real: Any) -> None:
    def write(value: str) -> None:
        for name in ("all", "default"):
            with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as stream:
                stream.write(value)

    real.hosts[0].run(write, "1")
    real.open(0)
    assert "fd12:3456:789a::1/48" in real.shown_addresses(0)
    with open("/proc/sys/net/ipv6/conf/default/disable_ipv6") as stream:
        assert stream.read().strip() == "0"  # ours was not touched


def test_address_changes_are_seen_once(real: Any) -> None:
    host = real.hosts[0]
    changes = host.run(links.AddressChanges)
    try:
        assert not changes.since_last()
        host.address("192.0.2.9")
        assert changes.since_last()
        assert not changes.since_last()
    finally:
        changes.close()


def test_auto_takes_userspace_here_and_passes_everything_on(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "add_wireguard", lambda name: False)  # a kernel without the module
    host = real.hosts[0]
    device = AutoDevice(real.names[0])
    host.run(device.open, KEY, 0, ADDRESSES)
    try:
        assert device.kind == "userspace"
        assert device.name == real.names[0]
        assert device.listen_port > 0
        host.run(device.apply, [real.peer(1)])
        host.run(device.refresh)
        assert [state.endpoint for state in host.run(device.peers)] == [("192.0.2.2", 51821)]
        assert host.run(device.failure) is None
    finally:
        host.run(device.close)
    assert device.failure() == "the device is closed"


def test_who_waits_for_the_agents_end_is_started_again_if_somebody_ended_it(real: Any) -> None:
    device = real.open(0)
    process = device.device._afterwards._process
    process.kill()
    process.wait(5)
    device.refresh()
    again = device.device._afterwards._process
    assert again.pid != process.pid
    assert again.poll() is None
    device.close()
    assert again.poll() is not None


def test_an_interface_that_was_adopted_is_not_taken_away_by_who_waited(real: Any) -> None:
    killed_agent(real, 1.0)
    device = real.open(0)
    time.sleep(2.5)
    assert device.failure() is None
    device.close()


def test_clearing_takes_away_what_a_killed_agent_left_and_says_so(real: Any) -> None:
    killed_agent(real, 60.0)
    device = real.device(0)
    assert not device.clear(bytes([3]) * 32), "another node's"
    assert real.left(0) != []
    assert device.clear(KEY)
    assert real.left(0) == []
    assert not device.clear(KEY)
