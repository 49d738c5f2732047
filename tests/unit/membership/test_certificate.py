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
from agent.membership import grant as grants
from agent.membership import naming
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer

ROOT = NodeKey(b"r" * 32)
NODE = NodeKey(b"n" * 32)
MESH = addresses.mesh_id(ROOT.id)
NOW = 1_800_000_000.0
ISSUER = NodeKey(b"i" * 32)
GRANT = grants.sign(ROOT, ISSUER.id, int(NOW) - 100, int(NOW) + 7200)
BY_ROOT = Signer.of_root(ROOT)
BY_ISSUER = Signer(ISSUER, ROOT.id, GRANT)


def make(signer: Signer = BY_ROOT, **changes: object) -> Certificate:
    fields: dict[str, object] = {
        "node": NODE.id,
        "name": "box",
        "roles": ("worker", "gateway"),
        "tags": ("home", "gpu=1"),
        "ipv4_counter": 300,
        "not_before": int(NOW),
        "not_after": int(NOW) + 3600,
    }
    return certificates.sign(signer, **{**fields, **changes})  # type: ignore[arg-type]


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
    # msgpack: one byte says "array of 12", the signature is the last element: 2 bytes and 64.
    assert raw[0] == 0x9C
    signed = b"covey-certificate-v1\0" + b"\x9b" + raw[1:-66]
    assert ROOT.id.verify(certificate.signature, signed)
    assert not ROOT.id.verify(certificate.signature, signed[21:])


def test_the_largest_certificate_fits() -> None:
    largest: dict[str, object] = {"name": "n" * 63, "tags": ("t" * 32,), "ipv4_counter": 65535}
    for certificate in (
        make(roles=naming.ROLES, **largest),
        make(BY_ISSUER, roles=("worker", "gateway", "relay"), **largest),
    ):
        assert 380 < len(certificate.encode()) <= certificates.MAX_BYTES
        assert Certificate.decode(certificate.encode()) == certificate
        verify(certificate)


def test_a_grant_adds_what_design_allows() -> None:
    assert len(make(BY_ISSUER).encode()) - len(make().encode()) <= 80


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
    foreign = make(Signer.of_root(other))
    with pytest.raises(MembershipError, match="is for another mesh"):
        verify(foreign)


def test_a_root_of_another_mesh_is_refused() -> None:
    with pytest.raises(MembershipError, match="root key of another mesh"):
        verify(make(), root=NodeKey(b"o" * 32).id)


def forged(key: NodeKey, **changes: object) -> Certificate:
    """What `key` can make of a certificate: any fields, and its own signature."""
    changed = msgspec.structs.replace(make(), issuer=key.id.ed25519, **changes)
    return msgspec.structs.replace(changed, signature=key.sign(changed.signed_bytes()))


def test_a_granted_issuer_issues_and_the_root_key_alone_verifies() -> None:
    certificate = Certificate.decode(make(BY_ISSUER).encode())
    verify(certificate)
    assert certificate.issuer_id == ISSUER.id
    assert certificate.own_grant is None
    assert certificate.chains_to(ROOT.id)


def test_an_issuers_certificate_carries_its_own_grant() -> None:
    certificate = make(roles=("worker", "issuer"))
    verify(certificate)
    grant = certificate.own_grant
    assert grant is not None
    assert grant.covers(certificate.not_before, certificate.not_after)
    assert grants.is_genuine(grant, ROOT.id, NODE.id.ed25519)
    # and with it the node issues: Signer refuses a grant that is another's
    verify(make(Signer(NODE, ROOT.id, grant), node=ISSUER.id))
    with pytest.raises(ValueError, match="another key"):
        Signer(ISSUER, ROOT.id, grant)
    with pytest.raises(ValueError, match="only the root key"):
        Signer(ISSUER, ROOT.id, None)


@pytest.mark.parametrize("role", ["issuer", "admin"])
def test_only_the_root_makes_issuers_and_admins(role: str) -> None:
    with pytest.raises(MembershipError, match=f"the role {role} of box takes the mesh's root key"):
        make(BY_ISSUER, roles=("worker", role))
    with pytest.raises(MembershipError, match="roles that only the mesh's root gives"):
        verify(forged(ISSUER, grant=GRANT, roles=(role,)))


def test_who_has_no_grant_issues_nothing() -> None:
    with pytest.raises(MembershipError, match="which has no grant"):
        verify(forged(NODE))
    other = NodeKey(b"o" * 32)
    for grant in (
        GRANT,  # another's
        grants.sign(other, NODE.id, GRANT.not_before, GRANT.not_after),  # of another root
        grants.sign(NODE, NODE.id, GRANT.not_before, GRANT.not_after),  # of its own
        msgspec.structs.replace(GRANT, not_after=GRANT.not_after + 1),
    ):
        with pytest.raises(MembershipError, match="grant that the mesh's root did not give"):
            verify(forged(NODE, grant=grant))


@pytest.mark.parametrize(("before_s", "after_s"), [(-101, 60), (0, 7201)])
def test_a_certificate_lies_within_its_issuers_grant(before_s: int, after_s: int) -> None:
    times = {"not_before": int(NOW) + before_s, "not_after": int(NOW) + after_s}
    with pytest.raises(ValueError, match="outside the grant"):
        make(BY_ISSUER, **times)
    with pytest.raises(MembershipError, match="outside its issuer's grant"):
        verify(forged(ISSUER, grant=GRANT, **times))


def test_a_grant_goes_with_the_role_issuer_and_only_so() -> None:
    own = grants.sign(ROOT, NODE.id, int(NOW), int(NOW) + 9)
    with pytest.raises(MembershipError, match="grant without the role issuer"):
        verify(forged(ROOT, grant=own))
    with pytest.raises(MembershipError, match="grant without the role issuer"):
        verify(forged(ROOT, roles=("issuer",)))
    with pytest.raises(MembershipError, match="grant that the mesh's root did not give"):
        verify(forged(ROOT, roles=("issuer",), grant=GRANT))


def test_a_forged_signature_is_refused() -> None:
    claimed = msgspec.structs.replace(forged(NODE), issuer=ROOT.id.ed25519)
    with pytest.raises(MembershipError, match="bad signature"):
        verify(claimed)
    assert not claimed.chains_to(ROOT.id)
    assert make().chains_to(ROOT.id)
    assert not make().chains_to(ISSUER.id)


def test_which_of_two_is_newer() -> None:
    old, new = make(), make(not_before=int(NOW) + 1)
    assert new.newer_than(old, NOW) and not old.newer_than(new, NOW)
    assert not old.newer_than(old, NOW)
    # one of a clock far ahead is no obstacle to what comes now
    ahead = make(not_before=int(NOW) + 9999, not_after=int(NOW) + 99999)
    assert old.newer_than(ahead, NOW)
    # of the same second: everyone decides alike
    twin = make(name="twin")
    assert twin.newer_than(old, NOW) != old.newer_than(twin, NOW)


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
        (10, [1, 2]),
        (10, [1, 2, bytes(63)]),
        (10, [1, 2, bytes(64), 3]),
        (11, bytes(63)),
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
    raw = bytearray(make(data.draw(st.sampled_from([BY_ROOT, BY_ISSUER]))).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MembershipError):
        verify(Certificate.decode(bytes(raw)))


@settings(max_examples=150)
@given(st.binary(max_size=500))
def test_any_bytes_are_refused_with_a_membership_error(raw: bytes) -> None:
    with pytest.raises(MembershipError):
        Certificate.decode(raw)


@pytest.mark.parametrize("raw", [b"\x91" * 430, b"\x92\x02" + b"\x91" * 420, bytes(10_000)])
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
