"""What the LAN is told: python-zeroconf reads it, questions are known, and nonsense is not."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import (
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    DNSText,
)

from image.node.setupdns import Setup, answer, read

HERE = IPv4Address("192.168.1.7")
SERVICE = "_covey-setup._udp.local."
SETUP = Setup(
    "shed-1", "covey.toml has mistakes", ("line 2, name: “Shed 1” cannot be a name.", "x" * 400)
)
QUERY, PTR, SRV, TXT, A, ANY = 0, 12, 33, 16, 1, 255


def question(name: str, kind: int, ident: int = 0, network: int = 1) -> bytes:
    out = DNSOutgoing(QUERY, multicast=not ident, id_=ident)
    out.add_question(DNSQuestion(name, kind, network))
    return out.packets()[0]


def texts(raw: bytes) -> list[str]:
    found, at = [], 0
    while at < len(raw):
        found.append(raw[at + 1 : at + 1 + raw[at]].decode())
        at += 1 + raw[at]
    return found


def records(packet: bytes) -> dict[type, Any]:
    message = DNSIncoming(packet)
    assert message.valid
    return {type(record): record for record in message.answers()}


def test_zeroconf_reads_all_of_it() -> None:
    packet = answer(SETUP, HERE)
    found = records(packet)
    assert found[DNSPointer].alias == f"shed-1.{SERVICE}"
    assert (found[DNSService].server, found[DNSService].port) == ("shed-1.local.", 0)
    assert found[DNSAddress].address == HERE.packed
    state, first, second = texts(found[DNSText].text)
    assert state == "state=covey.toml has mistakes"
    assert first == "1=line 2, name: “Shed 1” cannot be a name."
    assert second == "2=" + "x" * 253
    assert len(packet) < 1472


def test_goodbye() -> None:
    assert {record.ttl for record in DNSIncoming(answer(SETUP, HERE, ttl_s=0)).answers()} == {0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (SERVICE, PTR), ("_services._dns-sd._udp.local.", PTR), (f"shed-1.{SERVICE}", SRV),
        (f"Shed-1.{SERVICE}", TXT), ("shed-1.local.", A), (SERVICE, ANY),
    ],
)  # fmt: skip
def test_questions_about_it(name: str, kind: int) -> None:
    asked = read(question(name, kind, 7), SETUP)
    assert asked and asked.ident == 7 and not asked.unicast
    direct = read(question(name, kind, 0, 0x8001), SETUP)
    assert direct and direct.unicast
    # A resolver that is no mDNS one sees its question again, and forgets soon.
    message = DNSIncoming(answer(SETUP, HERE, to=asked))
    assert message.id == 7 and message.questions[0].type == kind
    assert {record.ttl for record in message.answers()} == {10}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("_covey._udp.local.", PTR), ("shed-2.local.", A), (SERVICE, A), ("shed-1.local.", PTR)],
)
def test_questions_about_others(name: str, kind: int) -> None:
    assert read(question(name, kind), SETUP) is None


def test_many_and_long_lines_fit_one_packet() -> None:
    lines = tuple(f"line {number}, wifi: “{'ü' * 300}”" for number in range(99))
    packet = answer(Setup("x" * 80, "covey.toml has mistakes", lines), HERE)
    assert len(packet) <= 1472
    assert 3 <= len(texts(records(packet)[DNSText].text)) < 9


@given(st.binary(max_size=200))
def test_nonsense_is_no_question(raw: bytes) -> None:
    read(raw, SETUP)
    read(struct.pack("!6H", 0, 0, 9, 0, 0, 0) + raw, SETUP)
    assert read(answer(SETUP, HERE), SETUP) is None
