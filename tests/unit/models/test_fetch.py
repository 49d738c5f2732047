"""Fetching from real servers that cut, stall, lie, ignore ranges, change the file, or refuse."""

import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from servers import Server, serving
from tiny_models import write_model

from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.errors import PeerError
from agent.models import fetch as fetching
from agent.models import origins, pieces, survey
from agent.models.fetch import Progress, fetch, fetch_tensors
from agent.models.manifest import HEADER, MIN_PIECE_BYTES, Manifest
from agent.models.origins import FileOrigin, HttpOrigin
from agent.models.partfile import PartFile

BODY = random.Random(4).randbytes(20 * MIN_PIECE_BYTES + 777)
SILENCE_S = 0.3
QUICK_S = 0.01


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with origins.session(SILENCE_S) as one:
        yield one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    return survey.survey(model, lambda _: None, MIN_PIECE_BYTES)


async def get(
    session: aiohttp.ClientSession,
    folder: Path,
    *servers: Server,
    manifest: Manifest | None = None,
    tiers: tuple[int, ...] = (),
) -> list[Progress]:
    """Fetch the servers' file to folder/got.part; return what was told meanwhile."""
    plan = pieces.blind(len(servers[0].body), MIN_PIECE_BYTES)
    if manifest is not None:
        plan = pieces.of_manifest(manifest)
    told: list[Progress] = []
    found = [
        HttpOrigin(session, server.url, networks=(), tier=tier, name=f"s{number}")
        for number, (server, tier) in enumerate(
            zip(servers, tiers or [0] * len(servers), strict=True)
        )
    ]
    with PartFile(folder / "got.part", plan, [len(servers[0].body)]) as part:
        await fetch(part, found, told.append, backoff_s=QUICK_S)
    return told


async def test_a_good_server_sends_every_byte_once(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY)
    async with serving(server):
        told = await get(session, tmp_path, server)
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert server.sent == len(BODY)
    assert (told[-1].done, told[-1].total) == (len(BODY), len(BODY))
    assert told[-1].rate > 0
    assert all(a.done <= b.done for a, b in itertools.pairwise(told))


async def test_a_server_that_cuts_is_asked_for_the_rest(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY, cut_after=MIN_PIECE_BYTES + 5000)
    async with serving(server):
        await get(session, tmp_path, server)
    assert (tmp_path / "got.part").read_bytes() == BODY


async def test_a_server_that_cuts_before_the_first_piece_is_left_after_three(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY, cut_after=5000)
    async with serving(server):
        with pytest.raises(PeerError, match="s0: it failed 3 times") as caught:
            await get(session, tmp_path, server)
    assert len(server.asked) <= 6  # two at once
    assert "\n" not in caught.value.line()


async def test_a_server_that_stalls_is_left_and_another_goes_on(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    dead, good = Server(BODY, stall_after=20_000), Server(BODY, rate=4e6)
    async with serving(dead, good):
        told = await get(session, tmp_path, dead, good)
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert good.sent >= len(BODY)
    assert told[-1].sources[1].bytes > told[-1].sources[0].bytes


async def test_a_server_that_is_silent_is_named(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY, stall_after=0)
    async with serving(server):
        with pytest.raises(PeerError, match="s0: it failed 3 times, the last time it is silent"):
            await get(session, tmp_path, server)


async def test_a_server_that_only_drips_is_left(
    session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SLOW_AFTER_S", 0.05)
    monkeypatch.setattr(fetching, "SLOW_BYTES_S", 10**7)
    dripping = Server(BODY, rate=2e5)
    async with serving(dripping):
        with pytest.raises(PeerError, match="the last time it sends less than 10000000 bytes/s"):
            await get(session, tmp_path, dripping)


async def test_a_packed_file_and_a_redirect_in_a_circle_are_refused(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    packed = Server(BODY, headers={"Content-Encoding": "gzip"})
    circle = Server(BODY, statuses=[302] * 99, headers={"Location": "/file"})
    out = Server(BODY, statuses=[302] * 99, headers={"Location": "http://example.org/file"})
    async with serving(packed, circle, out):
        with pytest.raises(PeerError) as caught:
            await get(session, tmp_path, packed, circle, out)
    for words in (
        "s0: it sends the file packed",
        "s1: it leads on more than 5 times",
        "s2: http://example.org/file is not encrypted",
    ):
        assert words in caught.value.message


async def test_nobody_there_is_named(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    server = Server(BODY, url="http://127.0.0.1:9/file")
    words = (
        r"s0: it failed 3 times, the last time 127\.0\.0\.1:9 is not reached: Connection refused"
    )
    with pytest.raises(PeerError, match=words):
        await get(session, tmp_path, server)


async def test_a_server_without_tls_is_named(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY)
    async with serving(server):
        server.url = server.url.replace("http://", "https://")
        with pytest.raises(PeerError, match=r"127\.0\.0\.1:\d+ speaks no TLS: WRONG_VERSION"):
            await get(session, tmp_path, server)


@pytest.mark.parametrize("claims", [len(BODY) + 5, len(BODY) - 5])
async def test_a_server_that_lies_about_the_length_is_left(
    session: aiohttp.ClientSession, tmp_path: Path, claims: int
) -> None:
    liar, good = Server(BODY, claims=claims, ranges=False), Server(BODY)
    async with serving(liar, good):
        told = await get(session, tmp_path, liar, good)
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert told[-1].sources[1].left == ""
    async with serving(liar):
        (tmp_path / "other").mkdir()
        if claims > len(BODY):
            # Longer than it is: every byte came before the lie could matter.
            await get(session, tmp_path / "other", liar)
        else:
            with pytest.raises(PeerError, match="s0: it"):
                await get(session, tmp_path / "other", liar)


async def test_a_server_without_ranges_is_read_from_its_start(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    plan = pieces.blind(len(BODY), MIN_PIECE_BYTES)
    with PartFile(tmp_path / "got.part", plan, [len(BODY)]) as part:
        for index in (0, 1, 5):
            part.write(index, BODY[plan[index].start : plan[index].end])
    server = Server(BODY, ranges=False)
    async with serving(server):
        await get(session, tmp_path, server)
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert server.sent <= 2 * len(BODY)


@pytest.mark.parametrize("tell", ["etag", "length", "gone"])
async def test_a_file_that_changes_half_way_is_not_mixed(
    session: aiohttp.ClientSession, tmp_path: Path, tell: str
) -> None:
    server = Server(BODY, etag='"one"' if tell == "etag" else "")
    other = bytes(len(BODY)) if tell == "etag" else bytes(len(BODY) + 1)

    def change(one: Server) -> None:
        if len(one.asked) >= 4:
            one.etag, one.body = ('"two"' if tell == "etag" else ""), other
            if tell == "gone":
                one.body = BODY[: 2 * MIN_PIECE_BYTES]

    server.after = change
    plan = pieces.blind(len(BODY), MIN_PIECE_BYTES)
    async with serving(server):
        with pytest.raises(PeerError, match=r"s0: its file was changed|shorter now"):
            await get(session, tmp_path, server)
    raw = (tmp_path / "got.part").read_bytes()
    with PartFile(tmp_path / "got.part", plan, [len(BODY)]) as part:
        assert part.done
        for index in part.done:
            piece = plan[index]
            assert raw[piece.start : piece.end] == BODY[piece.start : piece.end]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
async def test_a_refusal_is_the_answer(
    session: aiohttp.ClientSession, tmp_path: Path, status: int
) -> None:
    server = Server(BODY, statuses=[status] * 50)
    async with serving(server):
        with pytest.raises(PeerError, match=f"s0: it answered {status}"):
            await get(session, tmp_path, server)
    assert len(server.asked) <= 2


async def test_a_server_in_trouble_is_asked_again(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = Server(BODY, statuses=[500, 503])
    async with serving(server):
        await get(session, tmp_path, server)
    assert (tmp_path / "got.part").read_bytes() == BODY
    server = Server(BODY, statuses=[500] * 50)
    (tmp_path / "two").mkdir()
    async with serving(server):
        with pytest.raises(PeerError, match="s0: it failed 3 times, the last time it answered 500"):
            await get(session, tmp_path / "two", server)


async def test_fast_and_slow_members_share_and_the_url_is_left_alone(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    fast, slow, url = Server(BODY, rate=4e6), Server(BODY, rate=2e5), Server(BODY)
    async with serving(fast, slow, url):
        await get(session, tmp_path, fast, slow, url, tiers=(0, 0, 1))
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert fast.sent > 2 * slow.sent > 0
    assert url.asked == []


async def test_the_url_is_asked_once_all_members_are_left(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    member, url = Server(BODY, statuses=[404] * 50), Server(BODY)
    async with serving(member, url):
        await get(session, tmp_path, member, url, tiers=(0, 1))
    assert (tmp_path / "got.part").read_bytes() == BODY
    assert url.sent == len(BODY)


async def test_a_lying_members_pieces_are_found_and_thrown_away(
    session: aiohttp.ClientSession, tmp_path: Path, model: Path, manifest: Manifest
) -> None:
    body = model.read_bytes()

    def lies(at: int, raw: bytes) -> bytes:
        return raw[:-1] + bytes([raw[-1] ^ 1])

    liar, honest = Server(body, wrong=lies), Server(body, rate=2e6)
    async with serving(liar, honest):
        told = await get(session, tmp_path, liar, honest, manifest=manifest)
    assert (tmp_path / "got.part").read_bytes() == body
    assert "wrong bytes 3 times" in told[-1].sources[0].left
    (tmp_path / "alone").mkdir()
    async with serving(liar):
        with pytest.raises(PeerError, match="s0: it sent wrong bytes 3 times"):
            await get(session, tmp_path / "alone", liar, manifest=manifest)
    plan = pieces.of_manifest(manifest)
    with PartFile(tmp_path / "alone" / "got.part", plan, [len(body)]) as part:
        assert part.done == set()


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (4, 6), (10, 12)])
async def test_only_the_wanted_tensors_come_and_a_part_cut_from_them_is_the_same(
    session: aiohttp.ClientSession, tmp_path: Path, model: Path, manifest: Manifest, start: int,
    stop: int,
) -> None:  # fmt: skip
    body = model.read_bytes()
    one, two = Server(body), Server(body)
    async with serving(one, two):
        found = [
            HttpOrigin(session, server.url, networks=(), name=str(number))
            for number, server in enumerate((one, two))
        ]
        header = await fetch_tensors(manifest, (), found, tmp_path / "header", backoff_s=QUICK_S)
        with GgufFile(header) as known:
            names = cut.needed(known, start, stop)
        one.sent = two.sent = 0
        sparse = await fetch_tensors(
            manifest, names, found, tmp_path / "some.gguf", backoff_s=QUICK_S
        )
    wanted = sum(span.size for span in manifest.spans if span.name in {HEADER, *names})
    assert wanted <= one.sent + two.sent < 1.2 * wanted < len(body) / 2
    with GgufFile(sparse) as part, GgufFile(model) as whole:
        here = cut.write_part(part, start, stop, tmp_path / "here")
        there = cut.write_part(whole, start, stop, tmp_path / "there")
    assert here.sha256 == there.sha256
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("*.journal"))


async def test_an_unknown_tensor_is_a_mistake_of_ours(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"blk\.99"):
        await fetch_tensors(manifest, {"blk.99"}, [], tmp_path / "x")


async def test_no_sources_is_said(tmp_path: Path) -> None:
    with (
        PartFile(tmp_path / "x.part", pieces.blind(10), [10]) as part,
        pytest.raises(PeerError, match="nobody has it"),
    ):
        await fetch(part, [])


async def test_a_file_of_this_node_is_copied_and_a_change_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY)
    plan = pieces.blind(len(BODY), MIN_PIECE_BYTES)
    origin = FileOrigin(source)
    with PartFile(tmp_path / "got.part", plan, [len(BODY)]) as part:
        await fetch(part, [origin], backoff_s=QUICK_S)
    assert (tmp_path / "got.part").read_bytes() == BODY
    source.write_bytes(BODY + b"x")
    with (
        PartFile(tmp_path / "new.part", plan, [len(BODY)]) as part,
        pytest.raises(PeerError, match="changed meanwhile"),
    ):
        await fetch(part, [origin], backoff_s=QUICK_S)
