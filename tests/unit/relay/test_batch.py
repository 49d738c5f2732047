"""Batches of datagrams between real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.relay.batch import SIZE, SLOT_BYTES, Batch


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two that are connected to each other."""
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with one, other:
        for each in (one, other):
            each.setblocking(False)
            each.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        other.connect(one.getsockname())
        yield one, other


@pytest.mark.parametrize("strides", [True, False])
def test_what_is_received_can_be_sent_on(
    sockets: tuple[socket.socket, socket.socket], strides: bool
) -> None:
    one, other = sockets
    batch = Batch(strides=strides)
    for sizes in ([1, 1400, 7, 0, 300], [900], [3] * SIZE, [5, 6]):
        sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
        for data in sent:
            one.send(data)
        assert batch.receive(other.fileno()) == len(sizes)
        assert batch.lengths(len(sizes)) == sizes
        assert [batch.datagram(n) for n in range(len(sizes))] == sent
        assert batch.send(other.fileno(), 0, len(sizes)) == len(sizes)
        assert [one.recv(2048) for _ in sizes] == sent


def test_a_part_can_be_sent(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    batch = Batch()
    for data in (b"a", b"bb", b"ccc"):
        one.send(data)
    got = batch.receive(other.fileno())
    assert batch.send(other.fileno(), 1, got) == 2
    assert [one.recv(9), one.recv(9)] == [b"bb", b"ccc"]


def test_no_more_than_a_batch_at_once(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    batch = Batch()
    for n in range(SIZE + 3):
        one.send(bytes([n]))
    assert [batch.receive(other.fileno()) for _ in range(3)] == [SIZE, 3, 0]


def test_one_that_is_cut_is_seen(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    batch = Batch()
    one.send(bytes(SLOT_BYTES + 500))
    one.send(b"next")
    assert batch.receive(other.fileno()) == 2
    assert batch.lengths(2) == [SLOT_BYTES, 4]
    assert batch.datagram(1) == b"next"


def test_a_first_word_is_found(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    batch = Batch()
    for data in (b"CVY\x01 and more", b"no", b"also not CVY\x01"):
        one.send(data)
    got = batch.receive(other.fileno())
    value = memoryview(b"CVY\x01").cast("I")[0]
    assert batch.has_word(value, got)
    assert not batch.has_word(value + 1, got)
    one.send(b"quiet")  # what lies in the slots from before does not count
    assert not batch.has_word(value, batch.receive(other.fileno()))


def test_an_error_of_an_earlier_datagram_stops_nothing() -> None:
    batch = Batch()
    gone = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    gone.bind(("127.0.0.1", 0))
    place = gone.getsockname()
    gone.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.connect(place)
        one.send(b"x")  # answered with ICMP
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
            back.bind(place)
            back.settimeout(2)
            assert batch.send(one.fileno(), 0, 1) == 1
            assert len(back.recv(9000)) == SLOT_BYTES


def test_a_socket_that_is_closed_sends_nothing() -> None:
    batch = Batch()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        number = one.fileno()
    assert batch.send(number, 0, 3) == 0
    assert batch.receive(number) == 0
