"""The seal of probes and signals: who opens what, what is refused, how large it is."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.paths import messages, wire
from agent.paths.messages import (
    CANDIDATES_MAX,
    OFFERS_MAX,
    PROBE_BYTES,
    Candidate,
    Kind,
    MtuAnswer,
    MtuProbe,
    NatKind,
    Observe,
    Observed,
    Ping,
    Pong,
    RelayOffer,
    Signal,
    WireError,
    pack,
    unpack,
)

MESH = bytes(32)
OLD, NEW = b"o" * 32, b"n" * 32
KEYS = [NodeKey(bytes([n]) * 32) for n in range(1, 5)]
IDS = [key.id for key in KEYS]
SEEN = pack(("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 65535))
PROBES = [
    Ping(2**63 - 1, answer=True, nominates=True, relayed=True),
    Pong(2**63 - 1, SEEN, provisional=True),
    Observe(7),
    Observed(2**63 - 1, SEEN),
    MtuProbe(1, 1400),
    MtuAnswer(2**63 - 1, 1472),
]


def seal(index: int, keys: NetworkKeys | None = None, session: int = 1) -> wire.PathSeal:
    made = wire.PathSeal(KEYS[index], MESH, keys or NetworkKeys.single(OLD), session)
    made.set_members(IDS[:3])
    return made


def nonce(number: int = 0) -> bytes:
    return number.to_bytes(24, "big")


def full_signal() -> Signal:
    return Signal(
        epoch=2**63 - 1,
        sequence=2**63 - 1,
        heard_epoch=2**63 - 1,
        heard=2**63 - 1,
        nat=NatKind.HARD,
        answer=True,
        call_me=True,
        candidates=(Candidate(Kind.IPV6, SEEN),) * CANDIDATES_MAX,
        offers=(RelayOffer(IDS[0].ed25519, SEEN, b"t" * 64),) * OFFERS_MAX,
        birthday=2**31,
    )


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_is_opened_by_its_receiver_alone(probe: messages.Probe) -> None:
    a, b, c = (seal(n) for n in range(3))
    datagram = a.seal_probe(IDS[1], probe, nonce())
    assert datagram.startswith(b"CVY\x01")
    with pytest.raises(WireError):
        c.open_probe(datagram)
    with pytest.raises(WireError):
        a.open_probe(datagram)
    assert b.open_probe(datagram) == (IDS[0], probe)


def test_no_answer_is_larger_than_what_asked_for_it() -> None:
    sizes = {type(p): len(seal(0).seal_probe(IDS[1], p, nonce())) for p in PROBES}
    assert sizes[MtuProbe] == 1400
    assert {sizes[kind] for kind in (Ping, Pong, Observe, Observed, MtuAnswer)} == {PROBE_BYTES}


def test_the_sender_is_hidden_from_those_without_the_key() -> None:
    a = seal(0)
    first, second = (a.seal_probe(IDS[1], PROBES[0], nonce(n)) for n in (1, 2))
    assert first[4:12] != second[4:12]


def test_the_other_end_s_words_do_not_come_back_as_its_own() -> None:
    """Bytes from A to B, sent back to A, are not from B."""
    a, b = seal(0), seal(1)
    datagram = b.seal_probe(IDS[0], PROBES[0], nonce())
    with pytest.raises(WireError):
        b.open_probe(datagram)
    assert a.open_probe(datagram)[0] == IDS[1]


def test_nor_when_another_member_changes_the_name_on_them() -> None:
    """A member can hide any name, and the key of the pair is the same in both directions."""
    a = seal(0)
    datagram = a.seal_probe(IDS[1], PROBES[0], nonce())
    under = a._generations[0]
    forged = datagram[:4] + under.masked(under.name(IDS[1]), nonce()) + datagram[12:]
    with pytest.raises(WireError):
        a.open_probe(forged)


def test_a_signal_is_not_a_probe_and_the_reverse() -> None:
    a, b = seal(0), seal(1)
    sealed = a.seal_signal(IDS[1], Signal(1, 1), nonce())
    with pytest.raises(WireError):
        b.open_probe(b"CVY\x01" + sealed.ljust(PROBE_BYTES, b"\0"))
    datagram = a.seal_probe(IDS[1], PROBES[0], nonce())
    with pytest.raises(WireError):
        b.open_signal(datagram[4:])


def test_the_largest_signal_fits() -> None:
    a, b = seal(0), seal(1)
    sealed = a.seal_signal(IDS[1], full_signal(), nonce())
    assert len(sealed) <= wire.SIGNAL_MAX_BYTES
    assert b.open_signal(sealed) == (IDS[0], full_signal())


def test_keys_overlap_while_they_change() -> None:
    late = seal(0)
    b = seal(1, NetworkKeys(NEW, (NEW, OLD)))
    both = seal(2, NetworkKeys(OLD, (NEW, OLD)))
    assert b.open_probe(late.seal_probe(IDS[1], Ping(1), nonce()))[0] == IDS[0]
    assert both.open_probe(b.seal_probe(IDS[2], Ping(1), nonce()))[0] == IDS[1]
    with pytest.raises(WireError):
        late.open_probe(b.seal_probe(IDS[0], Ping(1), nonce()))
    b.set_network_keys(NetworkKeys.single(NEW))
    with pytest.raises(WireError):
        b.open_probe(late.seal_probe(IDS[1], Ping(2), nonce()))


def test_a_replay_is_refused_also_under_another_key_of_the_same_mesh() -> None:
    a, b = seal(0), seal(1)
    datagram = a.seal_probe(IDS[1], Ping(1), nonce())
    b.open_probe(datagram)
    b.set_network_keys(NetworkKeys(NEW, (NEW, OLD)))
    with pytest.raises(WireError, match="before"):
        b.open_probe(datagram)


def test_probes_may_overtake_each_other_within_the_window() -> None:
    a, b = seal(0), seal(1)
    sent = [a.seal_probe(IDS[1], Ping(n), nonce(n)) for n in range(wire.REPLAY_WINDOW + 1)]
    b.open_probe(sent[-1])
    order = sent[1:-1]
    random.Random(1).shuffle(order)
    for datagram in order:
        b.open_probe(datagram)
    for datagram in sent:
        with pytest.raises(WireError, match="before"):
            b.open_probe(datagram)


def test_a_restarted_node_is_heard_though_its_stamps_begin_anew() -> None:
    a, b = seal(0), seal(1)
    for n in range(50):
        b.open_probe(a.seal_probe(IDS[1], Ping(n), nonce(n)))
    again = seal(0, session=2)
    assert b.open_probe(again.seal_probe(IDS[1], Ping(1), nonce()))[0] == IDS[0]
    # What of the first start is still under way is heard once, too.
    last = a.seal_probe(IDS[1], Ping(51), nonce(51))
    b.open_probe(last)
    with pytest.raises(WireError):
        b.open_probe(last)


def test_one_who_is_no_member_any_more_is_not_heard() -> None:
    a, b = seal(0), seal(1)
    b.set_members([IDS[2]])
    with pytest.raises(WireError):
        b.open_probe(a.seal_probe(IDS[1], Ping(1), nonce()))


def test_a_peer_that_is_no_point_of_the_curve_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        seal(0).seal_probe(NodeId(b"\x02" + bytes(31)), Ping(1), nonce())


@pytest.mark.parametrize("probe", PROBES)
def test_a_changed_bit_is_noticed(probe: messages.Probe) -> None:
    b = seal(1)
    datagram = seal(0).seal_probe(IDS[1], probe, nonce())
    for at in range(len(datagram)):
        broken = bytearray(datagram)
        broken[at] ^= 1 << at % 8
        with pytest.raises(WireError):
            b.open_probe(bytes(broken))


@given(st.binary(max_size=1600))
def test_hostile_bytes_raise_wire_error_alone(noise: bytes) -> None:
    b = seal(1)
    for bytes_ in (noise, b"CVY\x01" + noise):
        with pytest.raises(WireError):
            b.open_probe(bytes_)
    with pytest.raises(WireError):
        b.open_signal(noise)


@given(st.binary(max_size=70))
@settings(max_examples=300)
def test_a_hostile_member_s_bodies_raise_wire_error_alone(body: bytes) -> None:
    """What is sealed properly but made by a member that does as it likes."""
    a, b = seal(0), seal(1)
    sealed = a._seal(IDS[1], wire.MAGIC, body, 74, nonce())
    with contextlib.suppress(WireError):
        assert b.open_probe(wire.MAGIC + sealed)[0] == IDS[0]
    with contextlib.suppress(WireError):
        assert b.open_signal(a._seal(IDS[1], b"signal", body, 0, nonce()))[0] == IDS[0]


@given(
    st.builds(
        Signal,
        epoch=st.integers(0, 2**63 - 1),
        sequence=st.integers(0, 2**63 - 1),
        nat=st.sampled_from(NatKind),
        call_me=st.booleans(),
        candidates=st.lists(
            st.builds(Candidate, st.sampled_from(Kind), st.binary(min_size=6, max_size=6)),
            max_size=CANDIDATES_MAX,
        ).map(tuple),
    )
)
def test_signals_come_out_as_they_went_in(signal: Signal) -> None:
    assert seal(1).open_signal(seal(0).seal_signal(IDS[1], signal, nonce())) == (IDS[0], signal)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_places_come_out_as_they_went_in(address: object, port: int) -> None:
    assert unpack(pack((str(address), port))) == (str(address), port)
