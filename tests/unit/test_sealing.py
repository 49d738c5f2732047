import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.membership.networkkeys import NetworkKeys
from agent.sealing import NONCE_BYTES, OVERHEAD_BYTES, NetworkSeal

MESH, OLD, NEW = b"m" * 32, b"o" * 32, b"n" * 32
NONCE = b"x" * NONCE_BYTES


def seal(keys: NetworkKeys, mesh: bytes = MESH, purpose: bytes = b"test") -> NetworkSeal:
    return NetworkSeal(mesh, keys, purpose)


def test_what_is_sealed_opens_and_is_longer_by_the_overhead() -> None:
    one = seal(NetworkKeys.single(OLD))
    sealed = one.seal(b"hello", NONCE)
    assert one.open(sealed) == b"hello"
    assert len(sealed) == 5 + OVERHEAD_BYTES
    assert b"hello" not in sealed


def test_each_accepted_key_opens_and_the_sending_one_seals() -> None:
    both = seal(NetworkKeys(OLD, (NEW, OLD)))
    assert seal(NetworkKeys.single(OLD)).open(both.seal(b"a", NONCE)) == b"a"
    assert seal(NetworkKeys.single(NEW)).open(both.seal(b"a", NONCE)) is None
    for key in (OLD, NEW):
        assert both.open(seal(NetworkKeys.single(key)).seal(b"b", NONCE)) == b"b"


@pytest.mark.parametrize(
    "other",
    [
        seal(NetworkKeys.single(NEW)),
        seal(NetworkKeys.single(OLD), mesh=b"z" * 32),
        seal(NetworkKeys.single(OLD), purpose=b"other"),
    ],
    ids=["key", "mesh", "purpose"],
)
def test_another_key_mesh_or_purpose_opens_nothing(other: NetworkSeal) -> None:
    assert other.open(seal(NetworkKeys.single(OLD)).seal(b"a", NONCE)) is None


def test_a_mesh_id_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(NetworkKeys.single(OLD), mesh=b"short")


@settings(max_examples=60)
@given(st.binary(max_size=100))
def test_no_bytes_raise_or_open(junk: bytes) -> None:
    assert seal(NetworkKeys.single(OLD)).open(junk) is None
