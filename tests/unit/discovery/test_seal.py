import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.discovery.seal import (
    CLOCK_SKEW_S,
    DATAGRAM_MAX_BYTES,
    GENERATIONS_MAX,
    PAYLOAD_MAX_BYTES,
    REPLAY_WINDOW_DATAGRAMS,
    Opened,
    Refusal,
    ReplayWindow,
    Seal,
)
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

NOW = 1_800_000_000.0
MESH, NETWORK = b"m" * 32, b"n" * 32
A, B, C = (NodeKey(bytes([n]) * 32) for n in (1, 2, 3))
RNG = random.Random(1)


def seal_of(key: NodeKey, network: bytes = NETWORK, mesh: bytes = MESH) -> Seal:
    return Seal(key, mesh, NetworkKeys.single(network))


def sealed(by: Seal, to: NodeId | None, payload: bytes = b"hello", now: float = NOW) -> bytes:
    return by.seal(payload, to, now, RNG.randbytes(24))


@pytest.mark.parametrize("to", [B.id, None], ids=["pairwise", "signed"])
def test_what_is_sealed_opens_at_the_other_end_with_its_sender(to: NodeId | None) -> None:
    assert seal_of(B).open(sealed(seal_of(A), to), NOW) == Opened(A.id, b"hello")


def test_only_the_addressee_opens_a_pairwise_datagram() -> None:
    assert seal_of(C).open(sealed(seal_of(A), B.id), NOW) is Refusal.UNPROVEN


@pytest.mark.parametrize(
    "outsider", [seal_of(A, network=b"x" * 32), seal_of(A, mesh=b"x" * 32)], ids=["key", "mesh"]
)
def test_another_network_key_or_mesh_is_foreign(outsider: Seal) -> None:
    assert seal_of(B).open(sealed(outsider, B.id), NOW) is Refusal.FOREIGN
    assert seal_of(B).open(sealed(outsider, None), NOW) is Refusal.FOREIGN


@pytest.mark.parametrize("to", [B.id, None], ids=["pairwise", "signed"])
def test_a_member_cannot_speak_in_another_nodes_name(to: NodeId | None) -> None:
    forger = seal_of(C)
    forger._key = SimpleNamespace(  # type: ignore[assignment]  # C's secrets under A's name
        id=A.id, sign=C.sign, wireguard_private=C.wireguard_private
    )
    assert seal_of(B).open(sealed(forger, to), NOW) is Refusal.UNPROVEN


def test_a_replay_is_refused_and_an_overtaken_datagram_is_not() -> None:
    a, b = seal_of(A), seal_of(B)
    first, second = sealed(a, B.id), sealed(a, B.id)
    assert isinstance(b.open(second, NOW), Opened)
    assert isinstance(b.open(first, NOW), Opened)
    assert b.open(first, NOW) is Refusal.REPLAY
    assert b.open(second, NOW + 1) is Refusal.REPLAY


def test_old_and_future_datagrams_are_refused() -> None:
    datagram = sealed(seal_of(A), B.id)
    for now in (NOW + CLOCK_SKEW_S + 1, NOW - CLOCK_SKEW_S - 1):
        assert seal_of(B).open(datagram, now) is Refusal.CLOCK


def test_a_reflected_datagram_is_refused() -> None:
    a = seal_of(A)
    assert a.open(sealed(a, None), NOW) is Refusal.OWN
    assert a.open(sealed(a, B.id), NOW) is Refusal.OWN


def test_the_largest_payload_makes_the_largest_datagram() -> None:
    datagram = sealed(seal_of(A), B.id, bytes(PAYLOAD_MAX_BYTES))
    assert len(datagram) == DATAGRAM_MAX_BYTES
    assert isinstance(seal_of(B).open(datagram, NOW), Opened)
    assert seal_of(B).open(sealed(seal_of(A), B.id, bytes(PAYLOAD_MAX_BYTES + 1)), NOW) is (
        Refusal.FOREIGN
    )


def test_what_cannot_be_a_mesh_or_its_keys_is_our_callers_fault() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal_of(A, mesh=b"short")
    too_many = tuple(bytes([n]) * 32 for n in range(GENERATIONS_MAX + 1))
    with pytest.raises(ValueError, match="network keys"):
        Seal(A, MESH, NetworkKeys(too_many[0], too_many))


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_makes_it_foreign(data: st.DataObject) -> None:
    datagram = bytearray(sealed(seal_of(A), data.draw(st.sampled_from([B.id, None]))))
    place = data.draw(st.integers(0, len(datagram) - 1))
    datagram[place] ^= data.draw(st.integers(1, 255))
    assert seal_of(B).open(bytes(datagram), NOW) is Refusal.FOREIGN


@settings(max_examples=60)
@given(st.binary(max_size=1500))
def test_no_bytes_raise_or_open(datagram: bytes) -> None:
    assert isinstance(seal_of(B).open(datagram, NOW), Refusal)


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_no_content_of_a_key_holder_raises(plain: bytes) -> None:
    """Whoever has the network key can put anything under the outer seal."""
    import nacl.bindings

    b = seal_of(B)
    datagram = b"n" * 24 + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        plain, None, b"n" * 24, b._generations[0].outer
    )
    assert isinstance(b.open(datagram, NOW), Refusal)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 2 * REPLAY_WINDOW_DATAGRAMS), max_size=1200))
def test_a_window_accepts_nothing_twice_and_newer_always(sent: list[int]) -> None:
    window, accepted = ReplayWindow(), set()
    for number in sent:
        newest = max(accepted, default=0)
        if window.accept(number):
            assert number not in accepted
            accepted.add(number)
        else:
            assert number <= newest
    assert len(window._seen) <= REPLAY_WINDOW_DATAGRAMS


# -- while the network key changes

OLD, NEW = b"o" * 32, b"n" * 32
BOTH_OLD, BOTH_NEW = (NetworkKeys(key, (NEW, OLD)) for key in (OLD, NEW))


def opened(found: object) -> Opened:
    assert isinstance(found, Opened)
    return found


@pytest.mark.parametrize("to", [B.id, None], ids=["pairwise", "signed"])
def test_any_accepted_key_opens_and_the_sending_one_seals(to: NodeId | None) -> None:
    a, b = Seal(A, MESH, BOTH_OLD), Seal(B, MESH, NetworkKeys.single(OLD))
    assert opened(b.open(sealed(a, to), NOW)).sender == A.id
    a.set_network_keys(BOTH_NEW)
    assert b.open(sealed(a, to), NOW) is Refusal.FOREIGN
    for keys in (BOTH_OLD, BOTH_NEW, NetworkKeys.single(NEW)):
        b.set_network_keys(keys)
        assert opened(b.open(sealed(a, to), NOW)).payload == b"hello"
    a.set_network_keys(NetworkKeys.single(OLD))
    assert b.open(sealed(a, to), NOW) is Refusal.FOREIGN


def test_an_answer_may_go_under_the_key_that_the_question_came_under() -> None:
    late, here = Seal(A, MESH, NetworkKeys.single(OLD)), Seal(B, MESH, BOTH_NEW)
    question = opened(here.open(sealed(late, B.id), NOW))
    answer = here.seal(b"answer", A.id, NOW, bytes(24), question.generation)
    assert opened(late.open(answer, NOW)).payload == b"answer"
    here.set_network_keys(NetworkKeys.single(NEW))
    retired = here.seal(b"answer", A.id, NOW, bytes(24), question.generation)
    assert late.open(retired, NOW) is Refusal.FOREIGN
    assert here.other is None


def test_the_replay_window_holds_across_keys() -> None:
    a, b = Seal(A, MESH, BOTH_OLD), Seal(B, MESH, BOTH_OLD)
    first, second = sealed(a, B.id), sealed(a, B.id)
    assert opened(b.open(first, NOW))
    b.set_network_keys(BOTH_NEW)
    assert b.open(first, NOW) is Refusal.REPLAY
    b.set_network_keys(NetworkKeys.single(NEW))
    b.set_network_keys(BOTH_NEW)
    assert b.open(first, NOW) is Refusal.REPLAY
    assert opened(b.open(second, NOW))


def test_what_is_old_leaves_the_window_and_stays_refused() -> None:
    window = ReplayWindow()
    assert all(window.accept(sent) for sent in (10, 30, 20))
    assert window.accept(100, oldest=25)
    assert window._seen == [30, 100]
    assert not any(window.accept(sent) for sent in (10, 20, 15, 30))
