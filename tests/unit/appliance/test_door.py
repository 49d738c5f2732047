"""The command line's side of the updater's socket, against the updater itself."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.appliance import door
from agent.errors import CoveyError, NotRunning, PeerError, StateError, UsageError
from image.node import locks
from image.node.machine import Machine
from image.node.slots import Empty, Good, State, Trial
from image.node.updating import Caller, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "image/node"))
from updates import CONTENT, appliance, update


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "release").touch()
    monkeypatch.setattr(door, "RELEASE", tmp_path / "release")
    monkeypatch.setattr(door, "SOCKET", tmp_path / "sock")
    return tmp_path


@contextmanager
def updater(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """Answer one caller in a thread."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def once() -> None:
            connection, _ = listening.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=once)
        thread.start()
        try:
            yield
        finally:
            thread.join(60)


async def pieces(raw: bytes, fault: CoveyError | None = None) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), 1 << 18):
        await asyncio.sleep(0)
        yield raw[at : at + (1 << 18)]
    if fault:
        raise fault


async def test_an_update_goes_through_and_its_progress_is_told(places: Path) -> None:
    machine = appliance(places)
    told: list[tuple[str, int, int]] = []
    with updater(places / "sock", lambda sock: serve(Caller(sock), machine, places)):
        answer = await door.ask(
            "install", restart=True, source=pieces(update()), tell=lambda *f: told.append(f)
        )
    assert answer == {"version": "0.2.0", "slot": "b", "restarts": True}
    assert machine.store.read().state == State("b", Good(), Trial(3))
    assert told[-1] == ("reading back", len(CONTENT), len(CONTENT))


async def test_a_refusal_counts_although_bytes_are_still_on_their_way(places: Path) -> None:
    machine = appliance(places)
    raw = update(seed=b"o" * 32) + bytes(20 << 20)
    with (
        updater(places / "sock", lambda sock: serve(Caller(sock), machine, places)),
        pytest.raises(UsageError, match="not signed by a key that this machine trusts"),
    ):
        await door.ask("install", source=pieces(raw))
    assert machine.store.read().state == State()


async def test_a_source_that_fails_is_told_and_the_updater_has_ended(places: Path) -> None:
    machine = appliance(places)
    source = pieces(update()[: 1 << 20], PeerError("it broke off"))
    with updater(places / "sock", lambda sock: serve(Caller(sock), machine, places)):
        with pytest.raises(PeerError, match="it broke off"):
            await door.ask("install", source=source)
        assert machine.store.read().state == State("a", Good(), Empty())
        assert "ends after" in (places / "update-error").read_text()


@contextmanager
def updaters(path: Path, machine: Machine, count: int) -> Iterator[None]:
    """Be the updater for so many callers, one after the other."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            for _ in range(count):
                connection, _ = listening.accept()
                with connection:
                    serve(Caller(connection), machine, path.parent)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            thread.join(60)


async def test_the_next_try_goes_on_behind_what_came(places: Path) -> None:
    machine, raw = appliance(places), update()
    starts: list[int] = []
    faults = [PeerError("it broke off"), None, None]

    def open_at(start: int) -> AsyncIterator[bytes]:
        starts.append(start)
        fault = faults.pop(0)
        return pieces(raw[start : 2 << 20] if fault else raw[start:], fault)

    # Each asks first what came before.
    with updaters(places / "sock", machine, 4):
        with pytest.raises(PeerError, match="it broke off"):
            await door.install(open_at, door.ignore)
        answer = await door.install(open_at, door.ignore)
    assert answer["version"] == "0.2.0"
    assert machine.store.read().state == State("b", Good(), Trial(3))
    assert starts == [0, 0, 2 << 20]


async def test_of_another_update_nothing_came(places: Path) -> None:
    machine, other = appliance(places), update("0.3.0", content=b"squashfs" * 9999)
    with updaters(places / "sock", machine, 4):
        with pytest.raises(UsageError, match="ends after"):
            await door.install(lambda _: pieces(update()[: 1 << 20]), door.ignore)
        answer = await door.install(lambda start: pieces(other[start:]), door.ignore)
    assert answer["version"] == "0.3.0"


async def test_it_is_leaving_for_as_long_as_the_block_lasts(places: Path) -> None:
    machine = appliance(places)
    with updater(places / "sock", lambda sock: serve(Caller(sock), machine, places)):
        async with door.leaving():
            assert locks.taken(places, locks.LEAVING)
    assert not locks.taken(places, locks.LEAVING)


async def test_on_another_machine_it_says_what_to_do(places: Path) -> None:
    (places / "release").unlink()
    with pytest.raises(UsageError, match="no appliance") as caught:
        await door.ask("status")
    assert "Update the package instead" in caught.value.hint


async def test_an_updater_that_is_not_there_or_says_nonsense(places: Path) -> None:
    with pytest.raises(NotRunning, match="does not answer"):
        await door.ask("status")
    for said, kind in (
        (b"", StateError), (b"x\n", StateError), (b"[]\n", CoveyError), (b"{}\n", CoveyError),
        (b'{"phase": "writing", "done": 1, "total": 2}\n', StateError),
        (b'{"error": {"kind": "PeerError", "message": "no"}}\n', PeerError),
    ):  # fmt: skip

        def answer(sock: socket.socket, said: bytes = said) -> None:
            sock.makefile("rb").readline()
            sock.sendall(said)

        with updater(places / "sock", answer), pytest.raises(kind):
            await door.ask("status")
        (places / "sock").unlink()


async def test_one_that_says_nothing_is_given_up(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_ANSWER_S", 0.05)
    given_up = threading.Event()
    with updater(places / "sock", lambda _: given_up.wait(60)):
        try:
            with pytest.raises(NotRunning, match="says nothing for"):
                await door.ask("status")
        finally:
            given_up.set()
