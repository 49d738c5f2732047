"""A member gives what it runs: from its slot to another appliance's, over HTTP."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.appliance import door, sharing, sources
from agent.errors import PeerError
from image.node.machine import Machine
from image.node.slots import Good, State, Trial
from image.node.updating import Caller, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "image/node"))
from updates import CONTENT, appliance, update

RAW = update("0.2.0")


@contextmanager
def updater(machine: Machine, path: Path) -> Iterator[None]:
    """Let callers in until the block ends, as the appliance's door does."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        threads: list[threading.Thread] = []

        def answer(connection: socket.socket) -> None:
            with connection:
                serve(Caller(connection), machine, path.parent)

        def let_in() -> None:
            while True:
                connection, _ = listening.accept()
                if not connection.recv(1, socket.MSG_PEEK):
                    connection.close()
                    return
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

        door_thread = threading.Thread(target=let_in)
        door_thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.shutdown(socket.SHUT_WR)
                door_thread.join(60)
            for thread in threads:
                thread.join(60)


@asynccontextmanager
async def member(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, state: State | None = None, kept: bool = True
) -> AsyncIterator[str]:
    """Run an appliance on version 0.2.0 in slot b; yield the URL where members reach it."""
    machine = appliance(folder, state or State("b", Good(), Good()), version="0.2.0", running="b")
    (folder / "slot-b").write_bytes(CONTENT + b"old" * 1000)
    if kept:
        machine.keep_head("b", RAW[: len(RAW) - len(CONTENT)])
    (folder / "release").touch()
    monkeypatch.setattr(door, "RELEASE", folder / "release")
    monkeypatch.setattr(door, "SOCKET", folder / "sock")
    app = web.Application()
    app.add_routes(sharing.routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        with updater(machine, folder / "sock"):
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/appliance"
    finally:
        await runner.cleanup()


async def test_what_it_runs_comes_as_it_was_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with member(tmp_path, monkeypatch) as url:
        got = b"".join([chunk async for chunk in sources.url(f"{url}/update", "box")])
        assert got == RAW
        async with aiohttp.ClientSession() as session:
            for first, last in ((0, 0), (10, 99), (len(RAW) - 5, len(RAW) + 5), (600, 70000)):
                headers = {"Range": f"bytes={first}-{last}"}
                async with session.get(f"{url}/update", headers=headers) as response:
                    assert response.status == 206
                    assert await response.read() == RAW[first : last + 1]
                    end = min(last, len(RAW) - 1)
                    told = response.headers["Content-Range"]
                    assert told == f"bytes {first}-{end}/{len(RAW)}"
            async with session.get(
                f"{url}/update", headers={"Range": f"bytes={len(RAW)}-"}
            ) as response:
                assert response.status == 416
            async with session.get(url) as response:
                assert await response.json() == {"version": "0.2.0", "standing": "good"}


@pytest.mark.parametrize(
    ("state", "kept"), [(State("b", Good(), Good()), False), (State("b", Good(), Trial(2)), True)]
)
async def test_what_nobody_signed_or_is_on_trial_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, kept: bool
) -> None:
    async with member(tmp_path, monkeypatch, state=state, kept=kept) as url:
        with pytest.raises(PeerError, match="box does not give the update: it answered 404"):
            async for _ in sources.url(f"{url}/update", "box"):
                raise AssertionError("nothing is to come")


async def test_another_machine_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with member(tmp_path, monkeypatch) as url, aiohttp.ClientSession() as session:
        (tmp_path / "release").unlink()
        for path in ("", "/update"):
            async with session.get(url + path) as response:
                assert response.status == 404


def test_how_it_stands_in_one_word() -> None:
    found = {"trial": None, "leaving": False, "writing": False, "next": "a", "slot": "a"}
    assert sharing.standing(found) == "good"
    assert sharing.standing(found | {"next": "b"}) == "written"
    assert sharing.standing(found | {"next": "b", "writing": True}) == "writing"
    assert sharing.standing(found | {"next": "b", "leaving": True}) == "leaving"
    assert sharing.standing(found | {"trial": {}, "leaving": True}) == "trial"
