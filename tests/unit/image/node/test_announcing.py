"""The LAN is told, by real sockets on loopback: at once, when asked, and once more when it ends."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from zeroconf import DNSIncoming, DNSOutgoing, DNSQuestion

from image.node import announcing, lans
from image.node.announcing import Announcer, Port, told
from image.node.setupdns import Setup

GROUP, PORT = "224.0.0.251", 5353
LOOPBACK = Port(socket.if_nametoindex("lo"), IPv4Address("127.0.0.1"))
SETUP = Setup("covey-test-a1", "waiting for a ticket")
PATIENCE_S = 20.0


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    one = Announcer()
    yield one
    one.close()


@pytest.fixture
def member() -> Iterator[socket.socket]:
    """A listener of the group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((GROUP, PORT))
        membership = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), LOOPBACK.index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.settimeout(0.2)
        yield sock


def heard(sock: socket.socket, until_s: float = PATIENCE_S) -> DNSIncoming | None:
    """Return the next packet of our machine; others of this computer may speak as well."""
    deadline = time.monotonic() + until_s
    while time.monotonic() < deadline:
        try:
            packet = sock.recv(2048)
        except TimeoutError:
            continue
        if SETUP.name.encode() in packet and DNSIncoming(packet).num_answers:
            return DNSIncoming(packet)
    return None


def ttls(message: DNSIncoming | None) -> set[int]:
    assert message is not None
    return {int(record.ttl) for record in message.answers()}


def question(name: str, kind: int) -> bytes:
    out = DNSOutgoing(0, multicast=False, id_=9)
    out.add_question(DNSQuestion(name, kind, 1))
    return out.packets()[0]


@contextmanager
def serving(announcer: Announcer, seconds: float = PATIENCE_S) -> Iterator[None]:
    thread = threading.Thread(target=announcer.serve, args=(time.monotonic() + seconds,))
    thread.start()
    yield
    thread.join()


def test_it_is_told_at_once_and_taken_back(announcer: Announcer, member: socket.socket) -> None:
    announcer.set(SETUP, [LOOPBACK], 0.0)
    assert ttls(heard(member)) == {120}
    announcer.set(SETUP, [LOOPBACK], 3.0)
    assert heard(member, 0.3) is None
    announcer.set(SETUP, [LOOPBACK], 63.0)
    assert ttls(heard(member)) == {120}
    announcer.set(Setup(SETUP.name, "covey.toml has mistakes", ("line 1",)), [LOOPBACK], 64.0)
    assert ttls(heard(member)) == {120}
    announcer.set(None, [LOOPBACK], 65.0)
    assert ttls(heard(member)) == {0}
    announcer.set(None, [LOOPBACK], 165.0)
    assert heard(member, 0.3) is None


def test_who_asks_is_answered(announcer: Announcer, member: socket.socket) -> None:
    announcer.set(SETUP, [LOOPBACK], 0.0)
    heard(member)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
            struct.pack("=4s4si", bytes(4), LOOPBACK.address.packed, LOOPBACK.index),
        )  # fmt: skip
        asking.settimeout(0.2)
        with serving(announcer, 1.0):
            asking.sendto(b"nonsense", (GROUP, PORT))
            asking.sendto(question("_covey-setup._udp.local.", 12), (GROUP, PORT))
            message = heard(asking)
        assert ttls(message) == {10}
        assert message and message.id == 9
        announcer.set(None, [LOOPBACK], 0.0)
        with serving(announcer, 0.3):
            asking.sendto(question("_covey-setup._udp.local.", 12), (GROUP, PORT))
        assert heard(asking, 0.3) is None


def test_what_is_told_is_in_a_file(tmp_path: Path) -> None:
    assert told(tmp_path) is None
    (tmp_path / "hostname").write_text("shed-1\n")
    (tmp_path / "setup").write_text("")
    assert told(tmp_path) is None
    (tmp_path / "setup").write_text("covey.toml has mistakes\nline 2\nline 3\n")
    assert told(tmp_path) == Setup("shed-1", "covey.toml has mistakes", ("line 2", "line 3"))


def test_ports_are_those_of_a_lan(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "2: eth0    inet 192.168.1.7/24 brd 192.168.1.255 scope global eth0\\  valid_lft forever\n"
        "2: eth0    inet 192.168.1.8/24 scope global secondary eth0\\       valid_lft forever\n"
        "5: covey0    inet 10.77.0.9/16 scope global covey0\\       valid_lft forever\n"
    )
    done = type("Done", (), {"stdout": listed})
    monkeypatch.setattr(lans.subprocess, "run", lambda *_, **__: done)
    assert announcing.ports() == [Port(2, IPv4Address("192.168.1.7"))]
