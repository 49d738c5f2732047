"""Links between nodes: real transfers over loopback, and what is kept and told of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from agent.deploy import links, messages
from agent.deploy.blobs import BlobServer
from agent.deploy.links import Around, Links, from_facts, transfer
from agent.deploy.messages import LinkFacts
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.placement.measured import Heard

ANNA, BEN = (NodeKey(bytes([number]) * 32).id for number in (1, 2))
LAN = Heard("lan 127.0.0.1", 0.001, 0.0002, 0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def made(folder: Path, port: int = 1, path: Heard | None = LAN) -> Links:
    around = Around(nodes=lambda: [ANNA, BEN], path=lambda node: path if node == BEN else None)
    return Links(folder / "links.json", port, lambda _: "127.0.0.1", around)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Serve transfers as the agent does, beside stage files."""
    server, found = BlobServer(), free_port()
    await server.start("127.0.0.1", found, made(tmp_path).routes())
    yield found
    await server.stop()


async def test_a_real_transfer_tells_a_bandwidth_and_a_turn(port: int) -> None:
    bytes_s, turn_s = await transfer(f"127.0.0.1:{port}")
    assert bytes_s > 1e6
    assert 0 < turn_s < 1


async def test_what_was_measured_is_told_kept_and_not_measured_again(
    tmp_path: Path, port: int
) -> None:
    found = made(tmp_path, port)
    found.restore()  # nothing was kept: no fault
    assert found.due([ANNA, BEN]) == [ANNA, BEN] or found.due([ANNA, BEN]) == [BEN, ANNA]
    assert found.describe(BEN) == {"link_bytes_s": None}
    await found.measure([BEN], 10.0)
    (fact,) = found.facts()
    assert (fact.node, fact.rtt_s, fact.jitter_s, fact.loss) == (str(BEN), 0.001, 0.0002, 0.01)
    assert fact.bytes_s > 1e6
    assert found.due([BEN]) == []
    again = made(tmp_path, port=1)
    again.restore()
    assert again.facts() == (fact,)
    await again.measure([BEN], 10.0)  # it is not due: nobody is on port 1
    assert again.facts() == (fact,)
    assert again.describe(BEN) == {"link_bytes_s": fact.bytes_s}
    assert from_facts([fact])[str(BEN)].bytes_s == fact.bytes_s
    assert from_facts([LinkFacts("x", 0.1)])["x"].bytes_s is None
    assert (tmp_path / "links.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "links.json").write_text('{"nobody": []}')
    broken = made(tmp_path)
    broken.restore()
    assert broken.known()[BEN].bytes_s is None


async def test_who_cannot_be_reached_or_does_not_answer_is_tried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_PATH_LIMIT_S", 0.1)
    needed: list[NodeId] = []
    nowhere = Links(
        tmp_path / "links.json", 1, lambda _: "127.0.0.1",
        Around(nodes=lambda: [BEN], need=needed.append),
    )  # fmt: skip
    await nowhere.measure([BEN], 5.0)
    assert needed == [BEN]
    assert nowhere.due([BEN]) == []
    assert nowhere.facts() == ()
    silent = made(tmp_path, free_port())
    await silent.measure([BEN], 5.0)
    assert silent.due([BEN]) == []
    assert silent.known()[BEN].bytes_s is None
    assert not (tmp_path / "links.json").exists()


async def test_a_transfer_that_went_by_two_paths_counts_for_neither(
    tmp_path: Path, port: int
) -> None:
    ways = iter(["lan a", "lan a", *["relayed x"] * 9])
    found = Links(
        tmp_path / "links.json", port, lambda _: "127.0.0.1",
        Around(nodes=lambda: [BEN], path=lambda _: Heard(next(ways), 0.01)),
    )  # fmt: skip
    await found.measure([BEN], 10.0)
    assert found.known()[BEN].bytes_s is None


async def test_nobody_takes_more_than_is_sent_nor_two_at_once(port: int) -> None:
    url = f"http://127.0.0.1:{port}/measure"
    async with aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientError, AssertionError)):
            async with session.post(url, data=links._zeros(8 << 20)) as response:
                assert response.status == 204
        going = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x"
            await going.wait()

        first = asyncio.create_task(session.post(url, data=slow()))
        async with asyncio.timeout(5.0):
            while await _status(session, url) != 503:  # noqa: ASYNC110 - the server's word
                await asyncio.sleep(0.02)
        with pytest.raises(PeerError, match="answered 503"):
            await transfer(f"127.0.0.1:{port}")
        going.set()
        assert (await first).status == 204
        assert await _status(session, url) == 204


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.post(url) as response:
        return response.status


async def test_a_server_of_another_kind_is_no_fault(tmp_path: Path) -> None:
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with pytest.raises(PeerError, match="answered 404 to a transfer"):
        await transfer(f"127.0.0.1:{port}")
    await runner.cleanup()
    with pytest.raises(PeerError, match="broke off"):
        await transfer(f"127.0.0.1:{port}")


def test_facts_are_read_strictly_and_old_ones_too() -> None:
    facts = messages.Facts(1, 2, 2e10, 3e11, 1.7e9, True, (LinkFacts("n", 0.04, 0.001, 0.1, 1e6),))
    assert messages.decode_answer(messages.encode(facts)) == facts
    # As a node says it that knows nothing more, or no more than that.
    plain = messages.encode(messages.Facts(1, 2))
    assert msgspec.msgpack.decode(plain) == {"type": "Facts", "free_bytes": 1, "cores": 2}
    for wrong in (
        {"decode_bytes_s": -1.0}, {"prefill_flop_s": float("nan")}, {"measured_at": float("inf")},
        {"links": [{"node": "n"}]}, {"links": [{"node": "n", "rtt_s": 1.0, "loss": 1.5}]},
        {"links": [{"node": "n", "rtt_s": 1.0}] * 257}, {"speed": 1.0},
        {"links": [{"node": "n", "rtt_s": 1.0, "way": "lan"}]},
    ):  # fmt: skip
        raw = msgspec.msgpack.encode({"type": "Facts", "free_bytes": 1, "cores": 2} | wrong)
        with pytest.raises(PeerError, match="cannot be read"):
            messages.decode_answer(raw)
    request = messages.MeasureLinks((str(BEN),))
    assert messages.decode_request(messages.encode(request)) == request
