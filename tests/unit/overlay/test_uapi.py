"""The text protocol, with the answer of the specification (wireguard.com/xplatform)."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from agent import endpoint as endpoints
from agent.overlay import uapi
from agent.overlay.device import PeerConfig, PeerState, canonical, parse_endpoint
from agent.overlay.reconcile import RemovePeer, SetPeer

PRIVATE = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a"
FIRST = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"
SECOND = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376"
ANSWER = f"""private_key={PRIVATE}
listen_port=12912
public_key={FIRST}
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
last_handshake_time_sec=0
public_key={SECOND}
tx_bytes=38333
rx_bytes=2224
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
endpoint=182.122.22.19:3233
protocol_version=1
errno=0

"""


def test_an_answer_is_read() -> None:
    answer = uapi.decode(ANSWER.replace("%2", "").encode())
    assert (answer.errno, answer.listen_port, answer.private_key.hex()) == (0, 12912, PRIVATE)
    assert answer.peers == (
        PeerState(bytes.fromhex(FIRST), ("abcd:23::33", 51820), None, 0, 0),
        PeerState(bytes.fromhex(SECOND), ("182.122.22.19", 3233), 1700000000.5, 2224, 38333),
    )
    assert PRIVATE not in repr(answer)
    assert "\\xe8KZm" not in repr(answer)


def test_the_sign_of_an_errno_does_not_matter() -> None:
    assert uapi.decode(b"errno=-98\n\n").errno == 98
    assert uapi.decode(b"errno=98\n\n").errno == 98


@pytest.mark.parametrize("data", [b"", b"listen_port=1\n\n", b"nonsense\n\n", b"errno=x\n\n"])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(ValueError):
        uapi.decode(data)


def test_complete() -> None:
    assert uapi.complete(b"errno=0\n\n")
    assert not uapi.complete(b"errno=0\n")
    assert not uapi.complete(b"\n\n")


def test_requests() -> None:
    key = bytes.fromhex(FIRST)
    assert uapi.encode_device(bytes.fromhex(PRIVATE), 5) == (
        f"set=1\nprivate_key={PRIVATE}\nlisten_port=5\n\n".encode()
    )
    assert uapi.encode_device() == b"set=1\n\n"
    assert uapi.encode_change(RemovePeer(key)) == (
        f"set=1\npublic_key={FIRST}\nremove=true\n\n".encode()
    )
    networks = (ip_network("10.77.0.1/32"), ip_network("fd00::/48"))
    assert uapi.encode_change(SetPeer(key, ("2001:db8::1", 9), networks, 25)) == (
        f"set=1\npublic_key={FIRST}\nendpoint=[2001:db8::1]:9\n"
        "persistent_keepalive_interval=25\nreplace_allowed_ips=true\n"
        "allowed_ip=10.77.0.1/32\nallowed_ip=fd00::/48\n\n".encode()
    )
    assert uapi.encode_change(SetPeer(key, None, None, 0)) == (
        f"set=1\npublic_key={FIRST}\npersistent_keepalive_interval=0\n\n".encode()
    )


@pytest.mark.parametrize("endpoint", [("192.0.2.1", 1), ("2001:db8::1", 65535), ("host.lan", 80)])
def test_endpoints_there_and_back(endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(endpoints.join(*endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:0", "host:65536", "2001:db8::1:5", "[x]:1"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


def test_mapped_addresses_are_ipv4() -> None:
    assert canonical(("::ffff:192.0.2.1", 5)) == ("192.0.2.1", 5)
    assert canonical(("2001:0db8::0001", 5)) == ("2001:db8::1", 5)


def test_peers_are_read_as_they_could_have_been_set() -> None:
    more = ANSWER.replace("%2", "").replace(
        "allowed_ip=192.168.4.6/32\n", "allowed_ip=192.168.4.6/32\nallowed_ip=fd00::6/128\n"
    )
    first, second = uapi.decode(more.encode()).configs
    assert first == PeerConfig(
        bytes.fromhex(FIRST), ("abcd:23::33", 51820), (ip_network("192.168.4.4/32"),)
    )
    assert second == PeerConfig(
        bytes.fromhex(SECOND), ("182.122.22.19", 3233),
        (ip_network("192.168.4.6/32"), ip_network("fd00::6/128")), 111,
    )  # fmt: skip
