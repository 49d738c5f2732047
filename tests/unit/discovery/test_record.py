from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.discovery.dhtkeys import (
    listing_below,
    listing_key,
    listing_path,
    member_key,
    news_key,
    node_key,
    service_key,
)
from agent.discovery.record import (
    CERTIFICATE_VERDICT_S,
    PAYLOAD_MAX_BYTES,
    RECORD_MAX_BYTES,
    SERVICE_NAME_MAX_BYTES,
    TTL_MAX_S,
    Signed,
    sign,
)
from agent.identity.keys import NodeKey

if TYPE_CHECKING:
    from conftest import Root  # the fixtures' types only

NOW = 1_800_000_000.0
A, B = NodeKey(b"a" * 32), NodeKey(b"b" * 32)


@pytest.fixture(scope="module")
def home(make_root: Any) -> Root:
    return make_root()


def member(root: Root, **changes: Any) -> Signed:
    record = msgspec.structs.replace(root.member(A, 5, NOW + 60), **changes)
    return sign(A, root.mesh_id, record)


def test_both_kinds_come_back_as_they_were(home: Root) -> None:
    for record in (
        home.member(A, 5, NOW + 60),
        home.service(A, "head:covey-mini", 5, NOW + 60, b"\x80"),
    ):
        signed = sign(A, home.mesh_id, record)
        found = home.verifier().record(signed.raw, signed.key, NOW)
        assert found == signed
        assert found is not None
        assert found.record == record
        assert found.record.id == A.id


def test_keys_are_apart(home: Root) -> None:
    keys = {
        node_key(home.mesh_id, A.id), node_key(home.mesh_id, B.id), node_key(b"x" * 32, A.id),
        member_key(home.mesh_id, A.id), member_key(b"x" * 32, A.id),
        service_key(home.mesh_id, "members"), service_key(home.mesh_id, "head"),
        news_key(home.mesh_id), news_key(b"x" * 32), *listing_path(home.mesh_id, A.id),
        listing_key(home.mesh_id, "0"), listing_key(b"x" * 32, "0"),
    }  # fmt: skip
    assert len(keys) == 14


def test_the_listing_is_a_tree_of_sixteens(home: Root) -> None:
    root, *below = listing_path(home.mesh_id, A.id)
    assert root == listing_key(home.mesh_id, "")
    prefix = ""
    for key in below:
        (prefix,) = [p for p in listing_below(prefix) if listing_key(home.mesh_id, p) == key]
    assert node_key(home.mesh_id, A.id).hex().startswith(prefix)
    assert listing_below(prefix) == ()


def test_a_member_record_belongs_under_its_own_keys_alone(home: Root) -> None:
    signed, verifier = member(home), home.verifier()
    path = listing_path(home.mesh_id, A.id)
    keys = (member_key(home.mesh_id, A.id), *path, news_key(home.mesh_id))
    assert signed.keys == keys
    assert all(verifier.record(signed.raw, key, NOW) == signed for key in keys)
    others = {listing_key(home.mesh_id, prefix) for prefix in listing_below("")} - set(path)
    assert all(verifier.record(signed.raw, key, NOW) is None for key in others)
    assert {len(key) for key in keys} == {20}


def test_a_record_belongs_under_its_own_key_only(home: Root) -> None:
    signed = member(home)
    assert home.verifier().record(signed.raw, member_key(home.mesh_id, B.id), NOW) is None
    assert home.verifier().record(signed.raw, service_key(home.mesh_id, "members"), NOW) is None


def test_another_meshs_record_is_refused(home: Root, make_root: Any) -> None:
    other = make_root("other")
    signed = sign(A, other.mesh_id, other.member(A, 5, NOW + 60))
    assert other.verifier().record(signed.raw, signed.key, NOW) is not None
    assert home.verifier().record(signed.raw, signed.key, NOW) is None
    relabelled = sign(A, home.mesh_id, other.member(A, 5, NOW + 60))
    assert home.verifier().record(relabelled.raw, relabelled.key, NOW) is None


def test_a_certificate_of_another_node_is_refused(home: Root) -> None:
    signed = member(home, certificate=home.certify(B.id))
    assert home.verifier().record(signed.raw, signed.key, NOW) is None


def test_a_member_cannot_write_for_another(home: Root) -> None:
    with pytest.raises(ValueError, match="names"):
        sign(B, home.mesh_id, home.member(A, 5, NOW + 60))
    genuine = member(home).raw
    body = msgspec.msgpack.encode(home.member(A, 6, NOW + 60))
    signature = B.sign(b"covey-record-v1\0" + home.mesh_id + b"M" + body)
    forged = b"M" + signature + body
    assert home.verifier().record(forged, member_key(home.mesh_id, A.id), NOW) is None
    stitched = genuine[:65] + body
    assert home.verifier().record(stitched, member_key(home.mesh_id, A.id), NOW) is None


@pytest.mark.parametrize(
    ("expiry", "good"),
    [(NOW, False), (NOW + 1, True), (NOW + TTL_MAX_S, True), (NOW + TTL_MAX_S + 300, False)],
)
def test_expired_and_everlasting_records_are_refused(home: Root, expiry: float, good: bool) -> None:
    signed = member(home, expiry=int(expiry))
    assert (home.verifier().record(signed.raw, signed.key, NOW) is not None) is good


def test_a_sequence_from_the_far_future_is_refused(home: Root) -> None:
    signed = member(home, seq=int((NOW + 3600) * 1000))
    assert home.verifier().record(signed.raw, signed.key, NOW) is None
    signed = member(home, seq=int(NOW * 1000))
    assert home.verifier().record(signed.raw, signed.key, NOW) is not None


def test_the_largest_service_record_fits(home: Root) -> None:
    name, payload = "s" * SERVICE_NAME_MAX_BYTES, bytes(PAYLOAD_MAX_BYTES)
    signed = sign(A, home.mesh_id, home.service(A, name, 2**53, NOW + 60, payload))
    assert len(signed.raw) <= RECORD_MAX_BYTES


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("", b"", "name"),
        ("é" * 33, b"", "name"),
        ("x", bytes(PAYLOAD_MAX_BYTES + 1), "payload"),
    ],
)
def test_limits_of_a_service(home: Root, name: str, payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sign(A, home.mesh_id, home.service(A, name, 1, NOW + 60, payload))


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        (("192.0.2.1:1",) * 17, "16 endpoints"),
        (("x" * 129,), "128 bytes"),
        (("x" * 120,) * 8, "1000 bytes"),
    ],
)
def test_limits_of_a_member_record(home: Root, endpoints: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        member(home, control_addresses=endpoints)


def test_a_verdict_on_a_certificate_is_kept_for_moments_only(make_root: Any) -> None:
    root = make_root()
    verifier, signed = root.verifier(), member(root)
    for _ in range(100):
        assert verifier.record(signed.raw, signed.key, NOW) is not None
    assert root.verified == 1
    root.revoked.add(A.id)
    later = NOW + CERTIFICATE_VERDICT_S
    assert verifier.record(signed.raw, signed.key, later) is None
    assert not verifier.current(signed, later)
    assert verifier.member(signed.record.certificate, later) is None


@settings(max_examples=60)
@given(data=st.data())
def test_no_changed_byte_is_accepted(home: Root, data: st.DataObject) -> None:
    signed = member(home)
    raw = bytearray(signed.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert home.verifier().record(bytes(raw), signed.key, NOW) is None


@settings(max_examples=100)
@given(kind=st.sampled_from([b"M", b"S", b""]), noise=st.binary(max_size=1100))
def test_no_bytes_raise(home: Root, kind: bytes, noise: bytes) -> None:
    assert home.verifier().record(kind + noise, bytes(20), NOW) is None


def test_deep_nesting_is_refused(home: Root) -> None:
    raw = b"S" + bytes(64) + b"\x91" * 900
    assert home.verifier().record(raw, bytes(20), NOW) is None


def test_a_second_spelling_of_the_same_record_is_refused(home: Root) -> None:
    """Only one encoding is valid, so equal records are equal bytes."""
    record = home.service(A, "x", 1, NOW + 60)
    body = msgspec.msgpack.encode(list(msgspec.structs.astuple(record))[:-1])  # default left out
    raw = b"S" + A.sign(b"covey-record-v1\0" + home.mesh_id + b"S" + body) + body
    assert home.verifier().record(raw, service_key(home.mesh_id, "x"), NOW) is None
