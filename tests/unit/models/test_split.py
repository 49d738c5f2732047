"""Split models in whole stores: from files, servers and members, damaged, repaired, and in part."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from homes import Home
from servers import Server, serving_together
from split_models import split
from tiny_models import write_model

from agent.deploy import asked
from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.errors import CoveyError, EnvironmentFault, ModelError, PeerError, StateError, UsageError
from agent.models import manifest as manifests
from agent.models import pieces, survey
from agent.models.manifest import HEADER, MIN_PIECE_BYTES, File, Manifest, Span
from agent.models.store import Store

SPLIT = [f"tiny-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=4)


@pytest.fixture(scope="module")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split(model, tmp_path_factory.mktemp("split"), 3)


@pytest.fixture(scope="module")
def total(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


Serve = Callable[..., Any]


@pytest.fixture
async def serve(files: list[Path]) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**how: Any) -> list[Server]:
            """Serve the three files; `how` is said of all, `one` of the second alone."""
            one = how.pop("one", {})
            servers = [Server(path.read_bytes(), etag=f'"{path.name}"', **how) for path in files]
            for key, value in one.items():
                setattr(servers[1], key, value)
            await stack.enter_async_context(
                serving_together(dict(zip(SPLIT, servers, strict=True)))
            )
            return servers

        yield start


def here(folder: Path, files: Sequence[Path], name: str = "tiny") -> bool:
    kept = [folder / "models" / path.name.replace("tiny", name) for path in files]
    return all(a.read_bytes() == b.read_bytes() for a, b in zip(kept, files, strict=True))


def whole_hash(files: Sequence[Path]) -> str:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@pytest.mark.parametrize("named", [0, 1, 2])
async def test_any_file_of_it_on_this_node_brings_all(
    home: Home, files: list[Path], total: int, named: int
) -> None:
    node = await home.node("box")
    job = await node.pull(str(files[named]))
    assert (job["name"], job["total"], job["done"]) == ("tiny", total, total)
    assert job["result"]["sha256"] == whole_hash(files)
    assert (job["result"]["size"], job["result"]["files"]) == (total, 3)
    assert node.files == {*SPLIT, "tiny.json"}
    assert here(node.folder, files)
    (listed,) = (await node.listed()).values()
    assert (listed["name"], listed["phase"], listed["size"]) == ("tiny", "whole", total)
    assert (listed["files"], listed["layers"], listed["architecture"]) == (3, 4, "llama")
    assert (await node.store.describe())["used_bytes"] == total
    assert (await node.pull(str(files[0])))["note"] == "it is here already"
    with pytest.raises(UsageError, match="cannot name a model: files of a split model"):
        await node.pull(str(files[0]), name="tiny-00001-of-00003")
    await node.store.remove("tiny")
    assert node.files == set()


async def test_a_url_of_one_file_brings_all(home: Home, files: list[Path], serve: Serve) -> None:
    node, servers = await home.node("box"), await serve()
    job = await node.pull(f"{servers[1].url}?token=secret")
    assert job["result"]["trust"] == "its first use"
    assert here(node.folder, files)
    assert [s.sent for s in servers] == [path.stat().st_size + 1 for path in files]
    assert "secret" not in str(job)
    with pytest.raises(ModelError, match="tiny is here with the SHA-256"):
        await node.pull(servers[0].url, sha256="1" * 64)
    given = await node.pull(servers[0].url, name="given", sha256=whole_hash(files))
    assert given["result"]["trust"] == "the given SHA-256"
    # Whichever is named, it is the same model.
    again = await node.pull(f"{servers[2].url}?token=secret")
    assert again["note"] == "it is here already"


@pytest.mark.parametrize(
    "how",
    [
        {"ranges": False},
        {"cut_after": 3 * MIN_PIECE_BYTES // 2},
        {"one": {"statuses": [503, 503]}},
        {"one": {"ranges": False}},
        {"one": {"cut_after": 100, "cuts": 2}},
        {"ranges": False, "cut_after": 3 * MIN_PIECE_BYTES, "cuts": 1},
        {"etag": ""},
    ],
)
async def test_servers_that_misbehave_give_it_all_the_same(
    home: Home, files: list[Path], serve: Serve, how: dict[str, Any]
) -> None:
    node, etag = await home.node("box"), how.pop("etag", None)
    servers = await serve(**how)
    if etag is not None:
        for server in servers:
            server.etag = etag
    await node.pull(servers[0].url)
    assert here(node.folder, files)


async def test_an_absent_or_refused_file_is_named_before_anything_is_fetched(
    home: Home, files: list[Path], serve: Serve, tmp_path: Path
) -> None:
    node = await home.node("box")
    servers = await serve(one={"statuses": [404] * 9})
    with pytest.raises(PeerError, match=r"/tiny-00002-of-00003\.gguf: it answered 404"):
        await node.pull(servers[0].url)
    assert [server.sent for server in servers] == [1, 0, 1]
    for path in files[::2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"cannot read the model .*/tiny-00002-of-00003\.gguf"):
        await node.pull(str(tmp_path / files[0].name))
    assert node.files == set()


async def test_files_that_are_not_of_one_model_are_refused(
    home: Home, model: Path, files: list[Path], serve: Serve, tmp_path: Path
) -> None:
    node = await home.node("box")
    servers = await serve()
    servers[1].body = servers[2].body
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.part does not belong to tiny-0000"):
        await node.pull(servers[0].url)
    for path in files:
        (tmp_path / path.name).write_bytes(files[0].read_bytes())
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf does not belong to tiny-0000"):
        await node.pull(str(tmp_path / files[0].name))
    servers[0].body = model.read_bytes()
    with pytest.raises(ModelError, match="is called like one of 3 files, and is a whole model"):
        await node.pull(servers[0].url)
    assert node.files == set()
    servers[2].body = b"<html>not here</html>"
    with pytest.raises(PeerError, match="file 3 of 3: it sends no GGUF file"):
        await node.pull(servers[0].url)


async def test_the_hubs_hashes_decide_file_by_file_and_find_the_members_that_have_it(
    home: Home, files: list[Path], serve: Serve
) -> None:
    one, two = await home.node("one"), await home.node("two")
    servers = await serve()
    for server, path in zip(servers, files, strict=True):
        server.etag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
    job = await one.pull(servers[0].url)
    assert job["result"]["trust"] == "the source's SHA-256"
    before = [server.sent for server in servers]
    job = await two.pull(servers[2].url, name="mine")
    assert job["result"]["trust"] == "the hub's SHA-256"
    assert job["sources"][0]["name"] == "one"
    assert [server.sent for server in servers] == [sent + 1 for sent in before]  # the probe's byte
    assert here(two.folder, files, "mine")
    await one.down()
    await two.down()
    three = await home.node("three")
    servers[1].etag = f'"{"0" * 64}"'
    with pytest.raises(ModelError, match=f"file 2 of 3 .* has the SHA-256 .* {'0' * 64} was expec"):
        await three.pull(servers[0].url)
    assert three.files == set()


async def test_a_pull_goes_on_over_all_files(
    home: Home, files: list[Path], total: int, serve: Serve
) -> None:
    node, servers = await home.node("box"), await serve(rate=1.5e6)
    job = await start(node, servers[0].url)
    async with asyncio.timeout(10):
        while servers[1].sent < MIN_PIECE_BYTES:  # noqa: ASYNC110 - the server counts
            await asyncio.sleep(0.01)
    await node.down()
    assert {path.replace("part", "gguf") for path in node.files if ".part" in path} == set(SPLIT)
    assert "tiny.journal" in node.files
    for server in servers:
        server.rate = None
    sent = sum(server.sent for server in servers)
    await node.up()
    assert (await node.listed())["tiny"]["phase"] != "whole"
    await node.end(job | {"job": 1, "phase": "fetching", "error": None})
    assert here(node.folder, files)
    again = sum(server.sent for server in servers) - sent
    assert again < total - MIN_PIECE_BYTES


async def start(node: Any, url: str) -> dict[str, Any]:
    from agent.api import PullRequest

    job: dict[str, Any] = await node.store.pull(PullRequest(url))
    return job


async def test_a_pull_is_cancelled_and_leaves_nothing(home: Home, serve: Serve) -> None:
    node, servers = await home.node("box"), await serve(rate=3e5)
    await start(node, servers[0].url)
    async with asyncio.timeout(10):
        while servers[0].sent < MIN_PIECE_BYTES:  # noqa: ASYNC110 - the server counts
            await asyncio.sleep(0.01)
    await node.store.cancel("tiny")
    assert node.files == set()


@pytest.mark.parametrize("renamed", [0, 1, 2])
async def test_a_crash_between_two_renames_costs_no_byte_again(
    home: Home, files: list[Path], serve: Serve, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    node, servers = await home.node("box"), await serve()
    real, count = Path.rename, 0

    def rename(path: Path, target: Path) -> Path:
        nonlocal count
        if path.suffix == ".part" and path.parent.name == "models":
            count += 1
            if count > renamed:
                raise OSError(5, "Input/output error")
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(StateError, match="cannot keep"):
            await node.pull(servers[0].url)
    sent = sum(server.sent for server in servers)
    await node.down()
    await node.up()
    await node.end({"job": 1, "phase": "fetching", "error": None})
    assert here(node.folder, files)
    assert sum(server.sent for server in servers) == sent + 3  # the probes' bytes


async def test_the_sum_counts_for_disk_and_quota(
    home: Home, files: list[Path], total: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = await home.node("box", quota_bytes=total - 1)
    with pytest.raises(EnvironmentFault, match=r"tiny has .* too much for models\.quota_bytes"):
        await node.pull(str(files[0]))
    await node.down()
    roomy = await home.node("roomy", quota_bytes=total + 1000)
    await roomy.pull(str(files[0]))
    other = write_model(tmp_path / "other.gguf", layers=1)
    await roomy.pull(str(other))
    assert set(await roomy.listed()) == {"other"}  # all three files went
    monkeypatch.setattr(Store, "free", lambda _: total + (64 << 20) - 1)
    tight = await home.node("tight")
    with pytest.raises(EnvironmentFault, match="are needed in"):
        await tight.pull(str(files[0]))


async def test_members_share_it(home: Home, files: list[Path], total: int) -> None:
    one, two, three = [await home.node(name) for name in ("one", "two", "three")]
    model_id = (await one.pull(str(files[0]), name="shared"))["result"]["id"]
    await two.pull(str(files[0]), name="shared")
    job = await three.pull("shared")
    assert job["result"]["id"] == model_id
    assert {source["name"] for source in job["sources"]} == {"one", "two"}
    assert here(three.folder, files, "shared")
    assert (await three.listed())["shared"]["elsewhere"] == ["one", "two"]
    path = two.folder / "models" / "shared-00002-of-00003.gguf"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    four = await home.node("four")
    await four.pull(model_id[:12])
    assert here(four.folder, files, "shared")


async def test_damage_in_one_file_is_named_and_only_that_is_fetched_again(
    home: Home, files: list[Path], serve: Serve
) -> None:
    node, servers = await home.node("box"), await serve()
    await node.pull(servers[0].url)
    assert [found["damaged"] for found in await node.verify()] == [[]]
    path = node.folder / "models" / SPLIT[1]
    with GgufFile(path.with_name(SPLIT[0])) as opened:
        victim = next(tensor for tensor in opened.tensors if tensor.file == 1)
    raw = bytearray(path.read_bytes())
    raw[victim.start + 5] ^= 1
    path.write_bytes(raw + b"more")
    with path.with_name(SPLIT[2]).open("r+b") as file:
        file.truncate(files[2].stat().st_size - 40)
    (found,) = await node.verify()
    start = files[0].stat().st_size + files[1].stat().st_size
    assert found["damaged"][0] == victim.name
    assert f"@{start}" in found["damaged"]
    assert len(found["damaged"]) == 3
    node.used = {path.with_name(SPLIT[0]).resolve(): "chat"}
    with pytest.raises(UsageError, match="tiny is damaged, and the deployment chat uses it"):
        await node.verify("tiny", repair=True)
    with pytest.raises(UsageError, match="tiny is used by the deployment chat"):
        await node.store.remove("tiny")
    node.used = {}
    sent = [server.sent for server in servers]
    (found,) = await node.verify("tiny", repair=True)
    assert found["repairing"]
    await node.pull("tiny")
    assert here(node.folder, files)
    assert node.files == {*SPLIT, "tiny.json"}
    came = [server.sent - before for server, before in zip(servers, sent, strict=True)]
    assert came[0] == 1
    assert 1 < came[1] < files[1].stat().st_size
    # A repair that finds no source leaves it as it was.
    path.write_bytes(raw)
    for server in servers:
        server.statuses = [404] * 9
    await node.verify("tiny", repair=True)
    with pytest.raises(CoveyError):
        await node.pull("tiny")
    await node.store.cancel("tiny")
    assert path.read_bytes() == raw
    assert (await node.listed())["tiny"]["phase"] == "whole"


@pytest.mark.parametrize("span", [(0, 2), (1, 3), (2, 4)])
async def test_a_stage_gets_its_tensors_alone_from_all_who_have_it(
    home: Home, model: Path, files: list[Path], total: int, tmp_path: Path, span: tuple[int, int]
) -> None:
    one, two, stage = [await home.node(name) for name in ("one", "two", "stage")]
    model_id = (await one.pull(str(files[0]), name="m"))["result"]["id"]
    await two.pull(str(files[0]), name="m")
    told: list[Any] = []
    part = await stage.store.part(model_id, span, tmp_path / "there", told.append)
    own = await one.store.part(model_id, span, tmp_path / "here")
    assert (part.sha256, part.size) == (own.sha256, own.size)
    assert told[-1].done == told[-1].total < 0.8 * total
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"there", "here"}
    with GgufFile(model) as whole, GgufFile(files[0]) as opened:
        same = cut.write_part(whole, *span, tmp_path / "same").path.read_bytes()
        known = same.replace(whole.header_sha256.encode(), opened.header_sha256.encode())
    assert part.path.read_bytes() == known


async def test_it_is_deployed_by_its_name_or_by_any_file(
    home: Home, files: list[Path], tmp_path: Path
) -> None:
    node = await home.node("box")
    await node.pull(str(files[0]))
    folder = node.settings.models_dir
    first = folder.resolve() / SPLIT[0]
    assert asked.model_path("tiny", folder) == first
    assert asked.model_path(str(folder / SPLIT[2]), folder) == first
    assert (await node.listed())["tiny"]["used_at"] is not None
    # A hub's cache has links with the files' names to files of other names.
    for path in files:
        (tmp_path / path.name).symlink_to(path.rename(path.with_name(f"{path.stem}.blob")))
    try:
        linked = asked.model_path(str(tmp_path / SPLIT[1]), folder)
        assert linked == tmp_path.resolve() / SPLIT[0]
        assert asked.model_facts(linked).layers == 4
    finally:
        for path in files:
            path.with_name(f"{path.stem}.blob").rename(path)


def ignore(_: int) -> None:
    """Watch nothing."""


def test_its_manifest_covers_every_byte_of_every_file(files: list[Path]) -> None:
    found = survey.survey(files[0], ignore, MIN_PIECE_BYTES)
    raw = b"".join(path.read_bytes() for path in files)
    assert manifests.fault_of(found) == ""
    assert found.sizes == tuple(path.stat().st_size for path in files)
    assert manifests.decode(manifests.encode(found), manifests.identity(found)) == found
    starts = set(manifests.starts_of(found.sizes))
    plan = pieces.of_manifest(found)
    assert starts <= {piece.start for piece in plan}
    for piece in plan:
        assert pieces.wrong(piece, raw[piece.start : piece.end]) == ""
    assert sum(piece.size for piece in plan) == len(raw)
    assert len(found.headers()) == 3


ZERO = "0" * 64
GOOD = Manifest(
    100, manifests.whole_sha256([ZERO, "1" * 64]),
    (Span(HEADER, 0, 10, ZERO), Span("a", 32, 8, ZERO), Span("@60", 60, 10, ZERO)),
    files=(File(60, ZERO), File(40, "1" * 64)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": (File(50, ZERO), File(50, "1" * 64))}, "no header begins its file at byte 50"),
        ({"files": (File(60, ZERO), File(41, "1" * 64))}, "do not make it up"),
        ({"files": (File(100, ZERO),)}, "do not make it up"),
        ({"files": (File(60, ZERO), File(40, ZERO))}, "its SHA-256 is not that of its files'"),
        ({"spans": GOOD.spans[:2]}, "no header begins its file at byte 60"),
        ({"spans": (*GOOD.spans[:1], Span("a", 32, 60, ZERO))}, "a lies in two files"),
    ],
)
def test_a_manifest_whose_files_make_no_sense_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    assert manifests.fault_of(GOOD) == ""
    bad = msgspec.structs.replace(GOOD, **changes)
    with pytest.raises(PeerError, match=words):
        manifests.decode(manifests.encode(bad), manifests.identity(bad))
