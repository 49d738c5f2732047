"""PCP's datagrams: against RFC 6887's own layouts, and against whatever may come."""

import struct
from ipaddress import ip_address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.portmap import pcp
from agent.portmap.pcp import Pcp
from agent.portmap.words import Alive, Granted, Kind, Refused, Released, Request

PORT = 51820
NONCE = b"twelve bytes"
DIALECT = Pcp("192.168.1.7", PORT, NONCE)
U16, U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)


def mapped(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ip_address(address).packed


def head(opcode: int, result: int = 0, life: int = 3600, epoch: int = 7, version: int = 2) -> bytes:
    return struct.pack("!BBBBII12x", version, 128 + opcode, 0, result, life, epoch)


def map_answer(
    result: int = 0,
    life: int = 3600,
    epoch: int = 7,
    nonce: bytes = NONCE,
    protocol: int = 17,
    internal: int = PORT,
    external: int = 4000,
    address: bytes = mapped("9.9.9.9"),
) -> bytes:
    data = struct.pack("!12sB3xHH16s", nonce, protocol, internal, external, address)
    return head(1, result, life, epoch) + data


def test_requests_are_as_the_rfc_draws_them() -> None:
    client = mapped("192.168.1.7")
    assert DIALECT.encode(Request(Kind.PROBE)) == b"\2\0\0\0" + bytes(4) + client
    asked = DIALECT.encode(Request(Kind.ASK, 7200, 4000, "9.9.9.9"))
    assert asked[:24] == b"\2\1\0\0" + bytes.fromhex("00001c20") + client
    assert asked[24:36] == NONCE
    assert asked[36:44] == bytes.fromhex("11000000 ca6c 0fa0")
    assert asked[44:] == mapped("9.9.9.9")
    assert len(asked) == 60


def test_no_address_is_asked_for_at_first() -> None:
    assert DIALECT.encode(Request(Kind.ASK, 7200, PORT))[44:] == mapped("0.0.0.0")
    six = Pcp("2001:db8::7", PORT, NONCE).encode(Request(Kind.ASK, 7200, PORT))
    assert six[8:24] == ip_address("2001:db8::7").packed
    assert six[44:] == bytes(16)


def test_a_release_has_the_mappings_nonce_and_no_lifetime() -> None:
    released = DIALECT.encode(Request(Kind.RELEASE, 7200, 4000, "9.9.9.9"))
    assert released[4:8] == bytes(4)
    assert released[24:36] == NONCE


@given(epoch=U32, external=U16, life=st.integers(1, 2**32 - 1))
def test_a_grant_is_read(epoch: int, external: int, life: int) -> None:
    data = map_answer(epoch=epoch, external=external, life=life)
    assert DIALECT.read(data) == Granted(external, life, epoch, "9.9.9.9")


@given(
    nonce=st.binary(min_size=12, max_size=12).filter(lambda nonce: nonce != NONCE),
    result=st.integers(0, 14),
)
def test_an_answer_with_another_nonce_is_none(nonce: bytes, result: int) -> None:
    assert DIALECT.read(map_answer(result, nonce=nonce)) is None


def test_an_answer_about_another_port_or_protocol_is_none() -> None:
    assert DIALECT.read(map_answer(internal=PORT + 1)) is None
    assert DIALECT.read(map_answer(protocol=6)) is None


def test_a_lifetime_of_nothing_is_a_release() -> None:
    assert DIALECT.read(map_answer(life=0)) == Released(7)


@pytest.mark.parametrize("address", [bytes(16), mapped("0.0.0.0"), mapped("127.0.0.1")])
def test_an_address_that_none_can_be_is_a_refusal(address: bytes) -> None:
    assert isinstance(DIALECT.read(map_answer(address=address)), Refused)


@pytest.mark.parametrize("result", range(1, 14))
def test_each_refusal_has_a_sentence_and_a_time(result: int) -> None:
    answer = DIALECT.read(map_answer(result, life=1800))
    assert isinstance(answer, Refused)
    assert answer.kinds == {Kind.ASK, Kind.RELEASE}
    assert answer.retry_s == 1800
    assert "unknown" not in answer.why


def test_a_nat_on_the_way_is_called_one() -> None:
    assert DIALECT.read(map_answer(12)).why == "a NAT stands between this machine and it"


def test_a_gateway_is_alive_with_or_without_announce() -> None:
    assert DIALECT.read(head(0)) == Alive(7)
    assert DIALECT.read(head(0, result=4)) == Alive(7)
    refused = DIALECT.read(head(0, result=2))
    assert isinstance(refused, Refused)
    assert refused.kinds == {Kind.PROBE, Kind.CHECK}


def test_a_gateway_that_speaks_natpmp_alone_says_so() -> None:
    answer = DIALECT.read(bytes.fromhex("0080 0001 00000007"))
    assert isinstance(answer, Refused)
    assert "NAT-PMP" in answer.why


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda b: b"\2\x81\0\0" + b)))
def test_whatever_comes_is_read_or_left(data: bytes) -> None:
    if isinstance(DIALECT.read(data), Granted | Released):
        assert data[24:36] == NONCE


def test_sizes_that_the_rfc_forbids_are_left() -> None:
    good = map_answer()
    assert isinstance(DIALECT.read(good + bytes(8)), Granted)  # options, that we did not ask for
    for bad in (good[:56], good + b"\0", good + bytes(1048), head(0)[:20], head(0, version=1)):
        assert DIALECT.read(bad) is None


def test_the_nonce_is_the_same_after_a_restart_and_another_elsewhere() -> None:
    secret = b"s" * 32
    first = pcp.nonce(secret, "192.168.1.1", "192.168.1.7", PORT)
    assert first == pcp.nonce(secret, "192.168.1.1", "192.168.1.7", PORT)
    others = {
        pcp.nonce(b"t" * 32, "192.168.1.1", "192.168.1.7", PORT),
        pcp.nonce(secret, "192.168.2.1", "192.168.1.7", PORT),
        pcp.nonce(secret, "192.168.1.1", "192.168.1.8", PORT),
        pcp.nonce(secret, "192.168.1.1", "192.168.1.7", PORT + 1),
    }
    assert len(first) == 12
    assert len(others) == 4
    assert first not in others


def test_announcements() -> None:
    assert pcp.is_announcement(head(0))
    assert not pcp.is_announcement(map_answer())
    assert not pcp.is_announcement(b"")


@given(st.integers(0, 1000))
def test_the_waits_double_from_three_seconds(seed: int) -> None:
    waits = list(pcp.waits(Random(seed)))
    assert len(waits) == 4
    assert 2.7 <= waits[0] <= 3.3
    for before, after in pairwise(waits):
        assert 1.8 * before <= after <= 2.2 * before


@given(epoch=st.integers(0, 2**30), passed=st.floats(0, 1e6), drift=st.floats(-0.05, 0.05))
def test_a_clock_that_drifts_is_no_restart(epoch: int, passed: float, drift: float) -> None:
    heard = epoch + int(passed * (1 + drift))
    assert not pcp.lost_state(epoch, 50.0, heard, 50.0 + passed)


def test_a_clock_that_jumps_is_a_restart() -> None:
    assert pcp.lost_state(1000, 0.0, 998, 0.0)
    assert not pcp.lost_state(1000, 0.0, 999, 0.0)
    assert pcp.lost_state(1000, 0.0, 1010, 300.0)
    assert pcp.lost_state(1000, 0.0, 5000, 300.0)
