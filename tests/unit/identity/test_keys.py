"""Node ids as text, and keys that are not keys."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey

KEY = NodeKey(bytes(range(32)))


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32))
def test_a_node_id_survives_being_written_and_read(raw: bytes) -> None:
    assert NodeId.parse(str(NodeId(raw))) == NodeId(raw)


@settings(max_examples=100)
@given(st.text(max_size=80))
def test_any_other_text_is_refused_with_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        NodeId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        str(KEY.id)[:-1],
        str(KEY.id) + "1",
        "1" + str(KEY.id),
        str(KEY.id).replace("D", "0"),
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA PeerId, from libp2p's spec
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a node id"):
        NodeId.parse(text)


def test_a_huge_text_is_refused_without_quoting_it() -> None:
    with pytest.raises(UsageError) as caught:
        NodeId.parse("2" * 1_000_000)
    assert "1000000 characters" in caught.value.message
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_wrong_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(UsageError):
        NodeId(raw)
    with pytest.raises(UsageError):
        NodeKey(raw)


@pytest.mark.parametrize(
    "raw",
    [
        bytes(32),  # y = 0: of order 4
        b"\x01" + bytes(31),  # the neutral element
        b"\x02" + bytes(31),  # no point of the curve
        b"\xff" * 32,  # y above the field
    ],
)
def test_a_point_that_is_no_key_has_no_wireguard_key(raw: bytes) -> None:
    with pytest.raises(UsageError, match="not a valid key"):
        _ = NodeId(raw).wireguard_public


def test_the_secret_is_not_in_the_repr() -> None:
    assert KEY.seed.hex() not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)


def test_a_garbled_signature_does_not_verify() -> None:
    signature = KEY.sign(b"message")
    assert KEY.id.verify(signature, b"message")
    assert not KEY.id.verify(signature[:-1], b"message")
    assert not KEY.id.verify(b"", b"message")
    assert not KEY.id.verify(bytes([signature[0] ^ 1]) + signature[1:], b"message")


@settings(max_examples=50)
@given(st.integers(0, 0xFFFF), st.integers(8, 30))
def test_an_ipv4_address_is_always_a_host_of_its_network(counter: int, length: int) -> None:
    network = IPv4Network((10 << 24, length))
    address = addresses.overlay_ipv4(network, KEY.id, counter)
    assert address in network
    assert address not in (network.network_address, network.broadcast_address)


@pytest.mark.parametrize("length", [31, 32])
def test_a_network_without_room_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="too small"):
        addresses.overlay_ipv4(IPv4Network((10 << 24, length)), KEY.id, 0)
