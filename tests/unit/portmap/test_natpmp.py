"""NAT-PMP's datagrams: against RFC 6886's own layouts, and against whatever may come."""

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.portmap import natpmp
from agent.portmap.natpmp import NatPmp
from agent.portmap.words import Alive, Granted, Kind, Refused, Released, Request

PORT = 51820
DIALECT = NatPmp(PORT)
U16, U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)


def address_answer(result: int = 0, epoch: int = 7, address: bytes = bytes([9, 9, 9, 9])) -> bytes:
    return struct.pack("!BBHI4s", 0, 128, result, epoch, address)


def map_answer(
    result: int = 0, epoch: int = 7, internal: int = PORT, external: int = 4000, life: int = 3600
) -> bytes:
    return struct.pack("!BBHIHHI", 0, 129, result, epoch, internal, external, life)


def test_requests_are_as_the_rfc_draws_them() -> None:
    assert DIALECT.encode(Request(Kind.PROBE)) == b"\0\0"
    assert DIALECT.encode(Request(Kind.CHECK)) == b"\0\0"
    asked = DIALECT.encode(Request(Kind.ASK, 7200, 4000, "9.9.9.9"))
    assert asked == bytes.fromhex("0001 0000 ca6c 0fa0 00001c20")


def test_a_release_names_our_port_alone() -> None:
    """Internal port 0 would take back all mappings of this machine, those of others on it too."""
    released = DIALECT.encode(Request(Kind.RELEASE, 7200, 4000))
    assert released == bytes.fromhex("0001 0000 ca6c 0000 00000000")


@given(epoch=U32)
def test_an_address_is_read(epoch: int) -> None:
    assert DIALECT.read(address_answer(epoch=epoch)) == Alive(epoch, "9.9.9.9")


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_an_address_that_none_can_be_is_a_refusal(address: str) -> None:
    packed = bytes(map(int, address.split(".")))
    answer = DIALECT.read(address_answer(address=packed))
    assert isinstance(answer, Refused)
    assert answer.why == natpmp.NO_ADDRESS


@given(epoch=U32, external=U16, life=st.integers(1, 2**32 - 1))
def test_a_grant_is_read(epoch: int, external: int, life: int) -> None:
    data = map_answer(epoch=epoch, external=external, life=life)
    assert DIALECT.read(data) == Granted(external, life, epoch)


def test_a_lifetime_of_nothing_is_a_release() -> None:
    assert DIALECT.read(map_answer(life=0, external=0)) == Released(7)


@given(internal=U16.filter(lambda port: port != PORT), result=st.integers(0, 6))
def test_an_answer_about_another_port_is_none(internal: int, result: int) -> None:
    assert DIALECT.read(map_answer(result, internal=internal)) is None


@pytest.mark.parametrize("result", range(1, 6))
def test_each_refusal_has_a_sentence_of_its_own(result: int) -> None:
    about_map = DIALECT.read(map_answer(result))
    about_address = DIALECT.read(address_answer(result))
    assert isinstance(about_map, Refused)
    assert isinstance(about_address, Refused)
    assert about_map.kinds == {Kind.ASK, Kind.RELEASE}
    assert about_address.kinds == {Kind.PROBE, Kind.CHECK}
    assert about_map.why == about_address.why
    assert "unknown" not in about_map.why
    others = {DIALECT.read(map_answer(other)).why for other in range(1, 6) if other != result}
    assert about_map.why not in others


def test_an_unknown_refusal_is_told_by_its_number() -> None:
    assert DIALECT.read(map_answer(77)).why == "it gave the unknown reason 77"


def test_a_gateway_that_speaks_pcp_says_so() -> None:
    answer = DIALECT.read(bytes([2, 128, 0, 1]) + bytes(20))
    assert isinstance(answer, Refused)
    assert "PCP" in answer.why


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda b: b"\0\x81\0\0" + b)))
def test_whatever_comes_is_read_or_left(data: bytes) -> None:
    answer = DIALECT.read(data)
    if isinstance(answer, Granted):
        assert len(data) == 16
        assert struct.unpack_from("!H", data, 8)[0] == PORT
    if isinstance(answer, Alive):
        assert len(data) == 12


@given(cut=st.integers(0, 15))
def test_a_cut_grant_is_none(cut: int) -> None:
    assert DIALECT.read(map_answer()[:cut]) is None
    assert DIALECT.read(map_answer() + b"\0") is None


def test_announcements() -> None:
    assert natpmp.is_announcement(address_answer())
    assert not natpmp.is_announcement(map_answer())
    assert not natpmp.is_announcement(b"")


def test_the_waits_are_the_rfcs() -> None:
    waits = list(natpmp.waits(Random(1)))
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]


@given(epoch=st.integers(0, 2**31), passed=st.floats(0, 1e6), drift=st.floats(-0.12, 0.5))
def test_a_clock_that_drifts_is_no_restart(epoch: int, passed: float, drift: float) -> None:
    now = epoch + passed * (1 + drift)
    assert not natpmp.lost_state(epoch, 50.0, int(now), 50.0 + passed)


@given(before=st.integers(10, 2**31), passed=st.floats(0, 1e5))
def test_a_clock_that_begins_anew_is_a_restart(before: int, passed: float) -> None:
    assert natpmp.lost_state(before, 0.0, 0, passed)
