"""The sockets of the hard side, on loopback: what is sent, what counts as met, what is left."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.errors import EnvironmentFault
from agent.probing import birthday
from agent.probing.birthday import Birthday, spare_descriptors
from agent.probing.port import MAGIC, Place, Sent

OPENER, PROOF = MAGIC + b"open", MAGIC + b"proof"


def proves(place: Place, payload: bytes) -> bool:
    return payload == PROOF


@contextmanager
def easy_side(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((host, 0))
        made.setblocking(False)
        yield made


def heard(sock: socket.socket) -> list[Place]:
    """Return who sent openers since the last look."""
    found = []
    while True:
        try:
            payload, address = sock.recvfrom(100)
        except BlockingIOError:
            return found
        assert payload == OPENER
        found.append(address[:2])


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def limit(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_socket_that_the_peer_meets_is_told_and_kept(host: str) -> None:
    with easy_side(host) as peer:
        before = descriptors()
        sockets = Birthday(peer.getsockname()[:2], proves)
        sockets.open()
        assert sockets.open_sockets == birthday.SOCKETS
        waiting = asyncio.create_task(sockets.hit(lambda: OPENER, 5.0))
        places: list[Place] = []
        async with asyncio.timeout(5):
            while len(places) < birthday.SOCKETS:
                await asyncio.sleep(0.005)
                places += heard(peer)
        assert len(set(places)) == birthday.SOCKETS
        met = places[77]
        for noise in (b"", b"CVY", MAGIC + b"forged", b"\x01\0\0\0"):
            peer.sendto(noise, places[5])
        peer.sendto(PROOF, met)
        peer.sendto(PROOF, places[78])  # the first counts
        hit = await waiting
        assert hit is not None
        assert (hit.local_address, hit.local_port) == met
        assert (hit.place, hit.payload) == (peer.getsockname()[:2], PROOF)
        assert hit.send(OPENER) is Sent.SENT
        await asyncio.sleep(0.01)
        assert heard(peer) == [met]
        assert len(descriptors() - before) == 1
        hit.close()
        assert descriptors() == before


async def test_without_an_answer_it_refreshes_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(birthday, "REFRESH_S", 0.05)
    with easy_side() as peer:
        before = descriptors()
        sockets = Birthday(peer.getsockname(), proves, count=4)
        sockets.open()
        assert await sockets.hit(lambda: OPENER, 0.32) is None
        # Each 50 ms by all four; a machine that is busy comes to fewer.
        assert len(heard(peer)) in (8, 12, 16, 20, 24, 28)
        assert descriptors() == before


async def test_cancelled_it_closes_everything() -> None:
    with easy_side() as peer:
        before = descriptors()
        sockets = Birthday(peer.getsockname(), proves)
        sockets.open()
        waiting = asyncio.create_task(sockets.hit(lambda: OPENER, 60.0))
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert time.perf_counter() - began < 0.5
        assert descriptors() == before
        sockets.close()


async def test_another_address_meets_nothing() -> None:
    with easy_side() as peer, easy_side("127.0.0.2") as other:
        sockets = Birthday(peer.getsockname(), proves, count=2)
        sockets.open()
        waiting = asyncio.create_task(sockets.hit(lambda: OPENER, 0.2))
        await asyncio.sleep(0.05)
        for place in heard(peer):
            other.sendto(PROOF, place)
        assert await waiting is None


async def test_a_judge_that_fails_says_no(caplog: pytest.LogCaptureFixture) -> None:
    def fails(place: Place, payload: bytes) -> bool:
        raise RuntimeError("no")

    with easy_side() as peer:
        sockets = Birthday(peer.getsockname(), fails, count=1)
        sockets.open()
        waiting = asyncio.create_task(sockets.hit(lambda: OPENER, 0.1))
        await asyncio.sleep(0.02)
        peer.sendto(PROOF, heard(peer)[0])
        assert await waiting is None
    assert "judging a datagram from 127.0.0.1 failed" in caplog.text


async def test_where_descriptors_are_short_it_takes_fewer() -> None:
    used = len(descriptors()) - 1
    with easy_side() as peer, limit(used + birthday.DESCRIPTORS_SPARED + 60):
        assert 55 <= spare_descriptors() <= 60
        sockets = Birthday(peer.getsockname(), proves)
        sockets.open()
        assert 55 <= sockets.open_sockets <= 60
        os.close(os.open("/dev/null", os.O_RDONLY))  # the agent has what was spared
        sockets.close()


async def test_too_few_descriptors_are_a_fault_and_leave_nothing() -> None:
    used = len(descriptors()) - 1
    with easy_side() as peer:
        before = descriptors()
        with limit(used + birthday.DESCRIPTORS_SPARED + 10):
            sockets = Birthday(peer.getsockname(), proves)
            with pytest.raises(EnvironmentFault, match="sockets could be opened") as caught:
                sockets.open()
        assert "LimitNOFILE" in caught.value.hint
        assert descriptors() == before


async def test_wrong_use_is_refused() -> None:
    for place, count in ((("127.0.0.1", 0), 2), (("127.0.0.1", 5), 0)):
        with pytest.raises(ValueError, match="make no birthday path"):
            Birthday(place, proves, count=count)
    with pytest.raises(OSError, match="illegal IP"):
        Birthday(("host", 5), proves)
    sockets = Birthday(("127.0.0.1", 5), proves, count=1)
    with pytest.raises(ValueError, match="not open"):
        await sockets.hit(lambda: OPENER, 1.0)
    sockets.open()
    with pytest.raises(ValueError, match="open already"):
        sockets.open()
    sockets.close()


async def test_a_place_without_a_route_is_only_counted() -> None:
    sockets = Birthday(("255.255.255.255", 5), proves, count=2)
    sockets.open()
    assert await sockets.send(OPENER) == 0
    sockets.close()
