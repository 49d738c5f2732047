"""Certificates: one encoding, one signer, one mesh, one time."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import naming
from agent.membership.certificate import Certificate

ROOT = NodeKey(b"r" * 32)
NODE = NodeKey(b"n" * 32)
MESH = addresses.mesh_id(ROOT.id)
NOW = 1_800_000_000.0


def make(key: NodeKey = ROOT, **changes: object) -> Certificate:
    fields: dict[str, object] = {
        "mesh_id": MESH,
        "node": NODE.id,
        "name": "box",
        "roles": ("worker", "gateway"),
        "tags": ("home", "gpu=1"),
        "ipv4_counter": 300,
        "not_before": int(NOW),
        "not_after": int(NOW) + 3600,
    }
    return certificates.sign(key, **{**fields, **changes})  # type: ignore[arg-type]


def verify(certificate: Certificate, now: float = NOW, root: NodeId = ROOT.id) -> None:
    certificates.verify(certificate, root, MESH, now)


def test_a_certificate_survives_and_verifies() -> None:
    certificate = Certificate.decode(make().encode())
    assert certificate == make()
    verify(certificate)
    assert certificate.node_id == NODE.id
    assert certificate.issuer_id == ROOT.id
    assert certificate.roles == ("worker", "gateway")
    assert certificate.tags == ("gpu=1", "home")


def test_it_knows_its_addresses() -> None:
    network = addresses.DEFAULT_IPV4_NETWORK
    assert make().ipv6 == addresses.overlay_ipv6(MESH, NODE.id)
    assert make().ipv4(network) == addresses.overlay_ipv4(network, NODE.id, 300)


def test_the_signature_covers_the_exact_bytes_behind_a_prefix() -> None:
    certificate = make()
    raw = certificate.encode()
    # msgpack: one byte says "array of 11", the signature is the last element: 2 bytes and 64.
    assert raw[0] == 0x9B
    signed = b"covey-certificate-v1\0" + b"\x9a" + raw[1:-66]
    assert ROOT.id.verify(certificate.signature, signed)
    assert not ROOT.id.verify(certificate.signature, signed[21:])


def test_the_largest_certificate_fits() -> None:
    certificate = make(name="n" * 63, roles=naming.ROLES, tags=("t" * 32,), ipv4_counter=65535)
    assert len(certificate.encode()) <= certificates.MAX_BYTES
    assert Certificate.decode(certificate.encode()) == certificate


def test_what_is_too_long_together_is_refused() -> None:
    tags = [letter * 32 for letter in "abcdefgh"]
    with pytest.raises(UsageError, match=r"name, roles and tags of box are \d+ bytes too long"):
        make(tags=tags)


@pytest.mark.parametrize(
    "changes",
    [{"name": "Box"}, {"name": ""}, {"roles": ("king",)}, {"tags": ("",)}, {"tags": ("a b",)}],
)
def test_what_cannot_be_is_not_signed(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"ipv4_counter": 65536}, {"ipv4_counter": -1}, {"not_after": 0}, {"not_after": 2**41}],
)
def test_numbers_out_of_range_are_a_programming_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        make(**changes)


def test_another_mesh_is_refused() -> None:
    other = NodeKey(b"o" * 32)
    foreign = make(other, mesh_id=addresses.mesh_id(other.id))
    with pytest.raises(MembershipError, match="is for another mesh"):
        verify(foreign)


def test_a_root_of_another_mesh_is_refused() -> None:
    with pytest.raises(MembershipError, match="root key of another mesh"):
        verify(make(), root=NodeKey(b"o" * 32).id)


def test_only_the_root_issues() -> None:
    with pytest.raises(MembershipError, match="which is not the mesh's root"):
        verify(make(NODE))


def test_a_forged_signature_is_refused() -> None:
    claimed = msgspec.structs.replace(make(NODE), issuer=ROOT.id.ed25519)
    with pytest.raises(MembershipError, match="bad signature"):
        verify(claimed)
    assert not claimed.signed_by(ROOT.id)


@pytest.mark.parametrize(
    ("late_s", "words"), [(0.5, "less than a second"), (300, "5 minutes"), (90000, "1 day")]
)
def test_an_expired_one_is_refused(late_s: float, words: str) -> None:
    certificate = make()
    verify(certificate, certificate.not_after)
    with pytest.raises(MembershipError, match=rf"box \(\w+\) expired {words} ago"):
        verify(certificate, certificate.not_after + late_s)


def test_five_minutes_of_skew_are_allowed_and_no_more() -> None:
    verify(make(), NOW - 300)
    with pytest.raises(MembershipError, match="not yet valid: it begins in 5 minutes"):
        verify(make(), NOW - 301)


def test_a_newer_version_is_told_apart_from_damage() -> None:
    fields = list(msgspec.structs.astuple(make()))
    for newer in ([2, *fields[1:]], [2, "other", "fields"]):
        with pytest.raises(MembershipError, match="newer version of Covey"):
            Certificate.decode(msgspec.msgpack.encode(newer))
    with pytest.raises(MembershipError, match="damaged"):
        Certificate.decode(msgspec.msgpack.encode([0, *fields[1:]]))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (1, bytes(31)),
        (3, "Box"),
        (3, "box\n"),
        (4, ["gateway", "worker"]),
        (4, ["worker", "worker"]),
        (4, ["king"]),
        (5, ["b", "a"]),
        (6, 65536),
        (6, 300.0),
        (8, -1),
        (10, bytes(63)),
    ],
)
def test_other_spellings_are_damage(index: int, value: object) -> None:
    fields: list[object] = list(msgspec.structs.astuple(make()))
    fields[index] = value
    with pytest.raises(MembershipError, match="damaged"):
        Certificate.decode(msgspec.msgpack.encode(fields))


def test_a_longer_number_encoding_is_damage() -> None:
    raw = make().encode()
    # counter 300 as a 32-bit integer instead of a 16-bit one
    assert raw.count(b"\xcd\x01\x2c") == 1
    with pytest.raises(MembershipError, match="damaged"):
        Certificate.decode(raw.replace(b"\xcd\x01\x2c", b"\xce\x00\x00\x01\x2c"))


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_byte_leaves_a_valid_certificate(data: st.DataObject) -> None:
    raw = bytearray(make().encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MembershipError):
        verify(Certificate.decode(bytes(raw)))


@settings(max_examples=150)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_a_membership_error(raw: bytes) -> None:
    with pytest.raises(MembershipError):
        Certificate.decode(raw)


@pytest.mark.parametrize("raw", [b"\x91" * 330, b"\x92\x02" + b"\x91" * 320, bytes(10_000)])
def test_hostile_nesting_and_size_are_refused(raw: bytes) -> None:
    with pytest.raises(MembershipError):
        Certificate.decode(raw)


@settings(max_examples=50)
@given(
    name=st.from_regex(naming.NAME_PATTERN),
    roles=st.sets(st.sampled_from(naming.ROLES)),
    tags=st.sets(st.from_regex(r"\A[a-z0-9]{1,6}\Z"), max_size=4),
    counter=st.integers(0, 65535),
    begin=st.integers(0, 2**39),
    life=st.integers(0, 2**39),
)
def test_what_is_signed_is_read_back(
    name: str, roles: set[str], tags: set[str], counter: int, begin: int, life: int
) -> None:
    certificate = make(
        name=name,
        roles=roles,
        tags=tags,
        ipv4_counter=counter,
        not_before=begin,
        not_after=begin + life,
    )
    assert Certificate.decode(certificate.encode()) == certificate
    verify(certificate, begin)
