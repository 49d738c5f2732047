"""Our messages against the zeroconf package's reading and writing of them, and against anything."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zeroconf import (
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    DNSText,
)

from agent.lan import dns
from agent.lan.dns import Answer, Names, Query

NAMES = Names(b"00112233aabbccdd", b"8899aabbccddeeff")
TYPE, INSTANCE = "_covey._udp.local.", "00112233aabbccdd._covey._udp.local."
PTR, TXT, SRV, A, ANY, IN, UNIQUE = 12, 16, 33, 1, 255, 1, 0x8000
TEXT = bytes(range(256)) + b"rest"


def written(*questions: DNSQuestion, flags: int = 0, id_: int = 0) -> bytes:
    out = DNSOutgoing(flags, multicast=id_ == 0, id_=id_)
    for each in questions:
        out.add_question(each)
    (packet,) = out.packets()
    return packet


def responded(*records: object) -> bytes:
    out = DNSOutgoing(0x8400)
    for record in records:
        out.add_answer_at_time(record, 0)
    (packet,) = out.packets()
    return packet


def text_record(name: str, text: bytes, ttl: int = 120, class_: int = IN) -> DNSText:
    return DNSText(name, TXT, class_, ttl, text)


def test_another_program_reads_our_question() -> None:
    incoming = DNSIncoming(dns.question(7))
    assert incoming.valid
    assert incoming.is_query()
    assert incoming.id == 7
    assert incoming.questions == [DNSQuestion(TYPE, PTR, IN)]


def test_another_program_reads_our_answer() -> None:
    incoming = DNSIncoming(dns.answer(NAMES, TEXT))
    assert incoming.valid
    assert incoming.is_response()
    pointer, service, text = incoming.answers()
    assert (pointer.name, pointer.alias, pointer.ttl, pointer.unique) == (
        TYPE,
        INSTANCE,
        120,
        False,
    )
    assert (service.name, service.server, service.port) == (INSTANCE, "8899aabbccddeeff.local.", 0)
    assert service.unique
    assert text.unique
    assert text.name == INSTANCE
    assert text.text == b"\xff0=" + TEXT[:253] + b"\x091=" + TEXT[253:]


def test_a_direct_answer_repeats_the_question_and_flushes_nothing() -> None:
    packet = dns.answer(NAMES, TEXT, to=Query(0x1234, ANY, unicast=True))
    incoming = DNSIncoming(packet)
    assert incoming.id == 0x1234
    assert incoming.questions == [DNSQuestion(TYPE, ANY, IN)]
    records = incoming.answers()
    assert [record.ttl for record in records] == [10, 10, 10]
    assert not any(record.unique for record in records)
    assert dns.read(packet) == Answer((TEXT,))


def test_goodbye_has_no_time_to_live_and_is_read() -> None:
    packet = dns.answer(NAMES, TEXT, ttl_s=0)
    assert {record.ttl for record in DNSIncoming(packet).answers()} == {0}
    assert dns.read(packet) == Answer((TEXT,))


def test_our_answers_are_read_and_carry_the_mark_and_fit_a_packet() -> None:
    text = bytes(296)
    for to in (None, Query(1, PTR, unicast=False)):
        packet = dns.answer(NAMES, text, to=to)
        assert dns.read(packet) == Answer((text,))
        assert dns.MARK in packet
        assert len(packet) < 500


@settings(max_examples=40)
@given(st.binary(max_size=1000))
def test_every_text_comes_back(text: bytes) -> None:
    assert dns.read(dns.answer(NAMES, text)) == Answer((text,))


@pytest.mark.parametrize(
    ("question", "read"),
    [
        (DNSQuestion(TYPE, PTR, IN), Query(9, PTR, unicast=False)),
        (DNSQuestion("_COVEY._Udp.local.", PTR, IN), Query(9, PTR, unicast=False)),
        (DNSQuestion(TYPE, ANY, IN), Query(9, ANY, unicast=False)),
        (DNSQuestion(INSTANCE, TXT, IN), Query(9, TXT, False, NAMES.instance)),
        (DNSQuestion(INSTANCE, SRV, IN), Query(9, SRV, False, NAMES.instance)),
        (DNSQuestion(INSTANCE, A, IN), None),
        (DNSQuestion(TYPE, A, IN), None),
        (DNSQuestion(TYPE, PTR, 3), None),
        (DNSQuestion("_other._udp.local.", PTR, IN), None),
        (DNSQuestion("_services._dns-sd._udp.local.", PTR, IN), None),
        (DNSQuestion("local.", PTR, IN), None),
    ],
)
def test_another_programs_questions(question: DNSQuestion, read: Query | None) -> None:
    assert dns.read(written(question, id_=9)) == read


def test_a_question_that_wants_a_direct_answer() -> None:
    assert dns.read(written(DNSQuestion(TYPE, PTR, IN | UNIQUE))) == Query(0, PTR, unicast=True)


def test_our_question_among_others_and_compressed() -> None:
    packet = written(DNSQuestion("_http._tcp.local.", PTR, IN), DNSQuestion(TYPE, PTR, IN))
    assert dns.read(packet) == Query(0, PTR, unicast=False)
    assert dns.MARK in packet


def test_another_programs_answers() -> None:
    packet = responded(
        DNSPointer(TYPE, PTR, IN, 4500, INSTANCE),
        DNSService(INSTANCE, SRV, IN | UNIQUE, 120, 0, 0, 5, "host.local."),
        text_record(INSTANCE, b"\x040=ab\x041=cd", class_=IN | UNIQUE),
        text_record("other._covey._udp.local.", b"\x03a=b\x01x", ttl=2**31 - 1),
        text_record("x._other._udp.local.", b"\x040=no"),
    )
    assert dns.read(packet) == Answer((b"abcd", b""))


def test_answers_without_our_texts_are_of_no_concern() -> None:
    assert dns.read(responded(DNSPointer(TYPE, PTR, IN, 4500, INSTANCE))) is None
    assert dns.read(responded(text_record("x._other._udp.local.", b"\x040=no"))) is None


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff", b"\x050=", b"\x021=", b"\x021=\x020="])
def test_txt_strings_that_are_no_text_of_ours(data: bytes) -> None:
    assert dns.read(responded(text_record(INSTANCE, data))) == Answer((b"",))


def test_texts_and_their_number_are_bounded() -> None:
    records = [text_record(f"n{n}._covey._udp.local.", b"\x040=ab") for n in range(40)]
    read = dns.read(responded(*records))
    assert isinstance(read, Answer)
    assert len(read.texts) == 16
    long = b"".join(b"\xff" + f"{n}=".encode() + bytes(253) for n in range(5))
    read = dns.read(responded(text_record(INSTANCE, long)))
    assert isinstance(read, Answer)
    assert len(read.texts[0]) <= 1024 + 253


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(11),
        bytes(1473),
        struct.pack("!6H", 0, 0, 1, 0, 0, 0),
        struct.pack("!6H", 0, 0x7800, 1, 0, 0, 0) + dns.question()[12:],
        struct.pack("!6H", 0, 0x0003, 1, 0, 0, 0) + dns.question()[12:],
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\x0c\0\x01",  # points to itself
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\xc0\x0e\xc0\x0c\0\x0c\0\x01",  # to each other
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\xff\xff\0\x0c\0\x01",  # beyond the end
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\xc0",
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\x40a\0\0\x0c\0\x01",  # a label of no kind
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\x3fabc",
        struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\x01a" * 200 + b"\0\0\x0c\0\x01",
        struct.pack("!6H", 0, 0, 0xFFFF, 0, 0, 0),
        struct.pack("!6H", 0, 0x8400, 0, 0xFFFF, 0xFFFF, 0xFFFF),
        dns.answer(NAMES, TEXT)[:-1],
        dns.answer(NAMES, TEXT)[:60],
    ],
)
def test_what_cannot_be_read_is_of_no_concern(packet: bytes) -> None:
    assert dns.read(packet) is None


@settings(max_examples=150)
@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 4), st.integers(0, 4))
def test_no_bytes_raise(body: bytes, flags: int, questions: int, records: int) -> None:
    dns.read(struct.pack("!6H", 0, flags, questions, records, 0, 0) + body)
    dns.read(body)


@settings(max_examples=150)
@given(st.data())
def test_no_damaged_message_raises(data: st.DataObject) -> None:
    packet = bytearray(data.draw(st.sampled_from([dns.question(), dns.answer(NAMES, TEXT)])))
    for _ in range(data.draw(st.integers(1, 8))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    read = dns.read(bytes(packet[: data.draw(st.integers(0, len(packet)))]))
    assert read is None or isinstance(read, Query | Answer)


def test_the_most_tangled_packet_takes_few_steps() -> None:
    """Each record's name jumps as often as it may, over many labels."""
    start = 12 + 1 + 10  # behind the header, an empty name and the fields of the first record
    tangle = b"\1a\1b\1c\0"
    for _ in range(3):
        last = start + len(tangle) - (9 if len(tangle) > 7 else 7) + (1 if len(tangle) > 7 else 0)
        tangle += b"\1a\1b\1c" + (0xC000 | last).to_bytes(2, "big")
    entry = start + len(tangle) - 8
    packet = struct.pack("!6H", 0, 0x8400, 0, 0xFFFF, 0, 0)
    packet += b"\0" + struct.pack("!HHIH", 10, IN, 0, len(tangle)) + tangle
    packet += ((0xC000 | entry).to_bytes(2, "big") + struct.pack("!HHIH", 10, IN, 0, 0)) * 100
    reads = 0

    class Counting(bytes):
        def __getitem__(self, at):  # type: ignore[no-untyped-def,override]
            nonlocal reads
            reads += 1
            return super().__getitem__(at)

    dns.read(Counting(packet[: dns.PACKET_MAX_BYTES]))
    assert 31 * 12 < reads < 31 * 60
