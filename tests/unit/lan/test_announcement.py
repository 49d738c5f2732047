import random
from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PeerError
from agent.identity.keys import NodeKey
from agent.lan.announcement import (
    _DOMAIN,
    _LENGTH_BYTES,
    _PLAIN_BYTES,
    ADDRESSES_MAX,
    SEALED_BYTES,
    VERSION,
    Announcement,
    AnnouncementSeal,
    Ports,
    pack,
    usable,
)
from agent.membership.networkkeys import NetworkKeys

MESH, NETWORK = b"m" * 32, b"n" * 32
A, B = NodeKey(b"a" * 32), NodeKey(b"b" * 32)
RNG = random.Random(1)
SEAL = AnnouncementSeal(MESH, NetworkKeys.single(NETWORK))
LARGEST = Announcement(
    VERSION, A.id.ed25519, 2**63 - 1, 2**32 - 1, Ports(65535, 65535, 65535), True,
    (b"\xfd" * 16,) * ADDRESSES_MAX,
)  # fmt: skip
SMALLEST = Announcement(VERSION, A.id.ed25519, 0, 0, Ports(1, 1, 1), False, ())


def announcements() -> st.SearchStrategy[Announcement]:
    ports = st.builds(Ports, *[st.integers(1, 65535)] * 3)
    packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
    return st.builds(
        Announcement, st.just(VERSION), st.just(A.id.ed25519), st.integers(0, 2**63 - 1),
        st.integers(0, 2**32 - 1), ports, st.booleans(),
        st.lists(packed, max_size=ADDRESSES_MAX).map(tuple),
    )  # fmt: skip


def sealed(said: Announcement, key: NodeKey = A, seal: AnnouncementSeal = SEAL) -> bytes:
    return seal.seal(said, key, RNG.randbytes(24))


def of_body(body: bytes, padding: bytes = b"\0", key: NodeKey = A) -> bytes:
    """What any holder of the network key can seal."""
    plain = key.sign(_DOMAIN + MESH + body) + len(body).to_bytes(_LENGTH_BYTES, "big") + body
    return SEAL._seal.seal(plain.ljust(_PLAIN_BYTES, padding)[:_PLAIN_BYTES], RNG.randbytes(24))


@settings(max_examples=50)
@given(announcements())
def test_what_is_announced_is_read_and_proved(said: Announcement) -> None:
    opened = SEAL.open(sealed(said))
    assert opened is not None
    assert opened.announcement == said
    assert SEAL.proved(opened)


def test_all_announcements_have_one_length_and_fit_two_strings_of_a_txt_record() -> None:
    assert {len(sealed(said)) for said in (LARGEST, SMALLEST)} == {SEALED_BYTES}
    assert SEALED_BYTES <= 2 * (255 - 2)


def test_outsiders_read_nothing() -> None:
    for mesh, network in ((b"x" * 32, NETWORK), (MESH, b"x" * 32)):
        outsider = AnnouncementSeal(mesh, NetworkKeys.single(network))
        assert outsider.open(sealed(SMALLEST)) is None
        assert SEAL.open(sealed(SMALLEST, seal=outsider)) is None


def test_the_same_announcement_never_looks_the_same() -> None:
    one, other = sealed(SMALLEST), sealed(SMALLEST)
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 20


def test_another_node_cannot_speak_for_this_one() -> None:
    opened = SEAL.open(sealed(SMALLEST, key=B))
    assert opened is not None
    assert not SEAL.proved(opened)


def test_a_signature_for_another_mesh_proves_nothing() -> None:
    body = msgspec.msgpack.encode(SMALLEST)
    plain = A.sign(_DOMAIN + b"x" * 32 + body) + len(body).to_bytes(2, "big") + body
    opened = SEAL.open(SEAL._seal.seal(plain.ljust(_PLAIN_BYTES, b"\0"), b"n" * 24))
    assert opened is not None
    assert not SEAL.proved(opened)


@pytest.mark.parametrize(
    "blob",
    [
        of_body(b""),
        of_body(b"\xc1"),
        of_body(msgspec.msgpack.encode(SMALLEST) + b"\0"),
        of_body(msgspec.msgpack.encode(SMALLEST), padding=b"\1"),
        of_body(msgspec.msgpack.encode(msgspec.structs.replace(SMALLEST, version=2))),
        of_body(msgspec.msgpack.encode(msgspec.structs.replace(SMALLEST, packed=(b"12345",)))),
        of_body(msgspec.msgpack.encode([1, b"short", 0, 0, [1, 1, 1], False, []])),
        of_body(msgspec.msgpack.encode([1, b"k" * 32, 0, 0, [0, 1, 1], False, []])),
        of_body(msgspec.msgpack.encode([1, b"k" * 32, -1, 0, [1, 1, 1], False, []])),
        of_body(msgspec.msgpack.encode([1, b"k" * 32, 0, 0, [1, 1, 1], False, [b"1234"] * 7])),
    ],
)
def test_what_a_key_holder_seals_beside_announcements_is_refused(blob: bytes) -> None:
    with pytest.raises(PeerError, match="LAN announcement"):
        SEAL.open(blob)


@settings(max_examples=60)
@given(st.binary(max_size=_PLAIN_BYTES))
def test_no_content_of_a_key_holder_does_worse_than_that(body: bytes) -> None:
    with pytest.raises(PeerError):
        SEAL.open(of_body(body))


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_opens_nothing(data: st.DataObject) -> None:
    blob = bytearray(sealed(SMALLEST))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    assert SEAL.open(bytes(blob)) is None


@settings(max_examples=60)
@given(st.binary(max_size=600))
def test_no_bytes_raise_or_open(junk: bytes) -> None:
    assert SEAL.open(junk) is None


@pytest.mark.parametrize(
    ("address", "fit"),
    [("192.168.1.5", True), ("169.254.3.4", True), ("8.8.8.8", True), ("fd00::1", True),
     ("2001:db8::1", True), ("fe80::1", False), ("224.0.0.251", False), ("ff02::fb", False),
     ("0.0.0.0", False), ("::", False), ("255.255.255.255", False), ("127.0.0.1", False),
     ("::1", False)],
)  # fmt: skip
def test_which_addresses_others_can_use(address: str, fit: bool) -> None:
    assert usable(ip_address(address), loopback=False) is fit


def test_loopback_counts_for_nodes_of_one_machine() -> None:
    assert usable(ip_address("127.0.0.1"), loopback=True)
    assert usable(ip_address("::1"), loopback=True)


def test_no_more_addresses_are_packed_than_fit() -> None:
    many = [ip_address(f"10.0.0.{n}") for n in range(1, 20)]
    said = msgspec.structs.replace(SMALLEST, packed=pack(many))
    assert said.addresses == tuple(many[:ADDRESSES_MAX])
