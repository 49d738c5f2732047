"""Whole stores that share over real HTTP: members, a hub, and everything that goes wrong there."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from homes import Home
from servers import Server, serving
from tiny_models import write_model

from agent.api import PullRequest
from agent.deploy import asked
from agent.errors import CoveyError, ModelError, StateError, UsageError
from agent.models import manifest as manifests
from agent.models import survey
from agent.models.fetch import Progress
from agent.models.jobs import Job
from agent.models.manifest import MIN_PIECE_BYTES
from agent.models.room import RESERVE_BYTES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=4)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def start(body: bytes, **how: Any) -> Server:
            server = Server(body, **how)
            await stack.enter_async_context(serving(server))
            return server

        yield start


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def sent(server: Server) -> None:
    """Wait until some pieces of the file went."""
    async with asyncio.timeout(10):
        while server.sent < 3 * MIN_PIECE_BYTES:  # noqa: ASYNC110 - the server counts
            await asyncio.sleep(0.01)


async def sent_anything(server: Server) -> None:
    """Wait until the file itself is asked for."""
    async with asyncio.timeout(10):
        while len(server.asked) < 2:  # noqa: ASYNC110 - the server counts
            await asyncio.sleep(0.01)


Serve = Callable[..., Any]


async def test_a_url_nobody_vouches_for_is_trusted_from_its_first_use(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes())
    job = await node.pull(f"{server.url}?token=secret", name="tiny")
    assert job["result"]["trust"] == "its first use"
    assert job["result"]["sha256"] == sha256(model)
    assert (node.folder / "models" / "tiny.gguf").read_bytes() == model.read_bytes()
    assert node.files == {"tiny.gguf", "tiny.json"}
    (listed,) = (await node.listed()).values()
    assert (listed["architecture"], listed["layers"], listed["phase"]) == ("llama", 4, "whole")
    assert listed["used_at"] is None
    assert server.sent == model.stat().st_size + 1  # the probe's byte
    assert "secret" not in f"{job}{await node.store.describe()}"
    with pytest.raises(UsageError, match=f"a model tiny already, from {server.url}") as caught:
        await node.pull("https://x.org/tiny.gguf")
    assert "secret" not in caught.value.line()
    again = await node.pull(f"{server.url}?token=secret", name="tiny")
    assert again["note"] == "it is here already"
    assert server.sent == model.stat().st_size + 1


async def test_a_stored_model_is_deployed_by_its_name_and_counts_as_used(
    home: Home, model: Path
) -> None:
    node = await home.node("box")
    job = await node.pull(str(model))
    assert job["result"]["trust"] == "a file of this node"
    found = asked.model_path("tiny", node.settings.models_dir)
    assert found == (node.folder / "models" / "tiny.gguf").resolve()
    assert (await node.listed())["tiny"]["used_at"] is not None
    assert asked.model_path(str(found), node.settings.models_dir) == found
    with pytest.raises(ModelError, match="there is no model nothing"):
        asked.model_path("nothing", node.settings.models_dir)
    with pytest.raises(ModelError, match="there is no model"):
        asked.model_path("../box/models/tiny", node.settings.models_dir)


async def hub(model: Path, said: str) -> tuple[web.AppRunner, list[str]]:
    app = web.Application()
    asked: list[str] = []

    async def resolve(_: web.Request) -> web.StreamResponse:
        headers = {"Location": "/cdn/file", "X-Linked-Etag": f'"{said}"', "X-Linked-Size": "1"}
        return web.Response(status=302, headers=headers)

    async def give(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Range"])
        return web.FileResponse(model)

    app.router.add_get("/org/repo/resolve/main/q8/tiny.gguf", resolve)
    app.router.add_get("/cdn/file", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, asked


async def test_the_hubs_hash_decides_and_a_member_that_has_the_file_is_asked_first(
    home: Home, model: Path
) -> None:
    runner, asked = await hub(model, sha256(model))
    home.hub = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        one, two = await home.node("one"), await home.node("two")
        job = await one.pull("hf:org/repo/q8/tiny.gguf")
        assert job["result"]["trust"] == "the source's SHA-256"
        asked.clear()
        job = await two.pull("hf:org/repo/q8/tiny.gguf", name="mine")
        assert asked == ["bytes=0-0"]
        assert job["result"]["trust"] == "the hub's SHA-256"
        assert job["sources"][0]["name"] == "one"
        assert (two.folder / "models" / "mine.gguf").read_bytes() == model.read_bytes()
        assert (await one.listed())["tiny"]["elsewhere"] == ["two"]
    finally:
        await runner.cleanup()


async def test_a_hub_whose_file_is_another_one_is_refused(home: Home, model: Path) -> None:
    runner, _ = await hub(model, "0" * 64)
    home.hub = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        node = await home.node("box")
        with pytest.raises(ModelError, match=f"{sha256(model)}, and {'0' * 64} was expected"):
            await node.pull("hf:org/repo/q8/tiny.gguf")
        assert node.files == set()
    finally:
        await runner.cleanup()


async def test_a_wrong_sha256_throws_everything_away(home: Home, model: Path, serve: Serve) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes())
    with pytest.raises(ModelError, match="was expected") as caught:
        await node.pull(server.url, name="tiny", sha256="1" * 64)
    assert "thrown away" in caught.value.hint
    assert node.files == set()
    job = await node.pull(server.url, name="tiny", sha256=sha256(model))
    assert job["result"]["trust"] == "the given SHA-256"
    with pytest.raises(ModelError, match="tiny is here with the SHA-256"):
        await node.pull(server.url, name="tiny", sha256="1" * 64)


@pytest.mark.parametrize("by", ["name", "id", "start", "sha256"])
async def test_a_members_model_is_pulled_by_name_or_hash_from_all_that_have_it(
    home: Home, model: Path, by: str
) -> None:
    one, two, three = [await home.node(name) for name in ("one", "two", "three")]
    job = await one.pull(str(model), name="shared")
    await two.pull(str(model), name="shared")
    model_id = job["result"]["id"]
    asked = {"name": "shared", "id": model_id, "start": model_id[:12], "sha256": sha256(model)}[by]
    job = await three.pull(asked)
    assert job["name"] == "shared"
    assert job["result"]["id"] == model_id
    assert {source["name"] for source in job["sources"]} == {"one", "two"}
    assert (three.folder / "models" / "shared.gguf").read_bytes() == model.read_bytes()
    listed = (await three.listed())["shared"]
    assert listed["elsewhere"] == ["one", "two"]
    assert (await three.pull(asked))["note"] == "it is here already"


async def test_a_member_whose_file_is_damaged_is_found_out(home: Home, model: Path) -> None:
    liar, good, asker = [await home.node(name) for name in ("liar", "good", "asker")]
    await liar.pull(str(model), name="m")
    await good.pull(str(model), name="m")
    path = liar.folder / "models" / "m.gguf"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    job = await asker.pull("m")
    assert (asker.folder / "models" / "m.gguf").read_bytes() == model.read_bytes()
    told = {source["name"]: source["left"] for source in job["sources"]}
    assert told["good"] == ""
    for node in (good, asker):
        await node.down()
    other = await home.node("other")
    with pytest.raises(CoveyError, match="liar: it sent wrong bytes 3 times"):
        await other.pull("m")
    assert "m.gguf" not in other.files


async def test_a_member_with_a_made_up_manifest_is_left_out(
    home: Home, model: Path, tmp_path: Path, serve: Serve
) -> None:
    liar, asker = await home.node("liar"), await home.node("asker")
    other = write_model(tmp_path / "other.gguf", layers=4, seed=9)
    await liar.pull(str(other), name="m")
    store = liar.store._store
    record = store.records["m"]
    claimed = msgspec.structs.replace(record.manifest, sha256=sha256(model))
    store._know("m", msgspec.structs.replace(record, manifest=claimed))
    server = await serve(model.read_bytes())
    job = await asker.pull(server.url, name="m", sha256=sha256(model))
    assert "liar is left out" in job["note"]
    assert (asker.folder / "models" / "m.gguf").read_bytes() == model.read_bytes()
    third = await home.node("third")
    await asker.down()
    with pytest.raises(ModelError, match="from liar does not fit its manifest"):
        await third.pull("m")
    assert third.files == set()


async def test_a_manifest_that_is_not_the_models_is_refused(home: Home, model: Path) -> None:
    liar, asker = await home.node("liar"), await home.node("asker")
    await liar.pull(str(model), name="m")
    liar.store._store.ids["m"] = "f" * 64
    with pytest.raises(CoveyError, match="not the one of model ffffffffffff"):
        await asker.pull("m")


async def test_what_nobody_has_and_what_is_not_clear(
    home: Home, model: Path, tmp_path: Path
) -> None:
    one, two, asker = [await home.node(name) for name in ("one", "two", "asker")]
    with pytest.raises(ModelError, match="no member that is there has a model m"):
        await asker.pull("m")
    await one.pull(str(model), name="m")
    await two.pull(str(write_model(tmp_path / "other.gguf", layers=2)), name="m")
    with pytest.raises(ModelError, match="different models called m") as caught:
        await asker.pull("m")
    assert "(one)" in caught.value.message and "(two)" in caught.value.message
    two.silent = True
    await asker.pull("m", name="mine")
    assert (await asker.listed())["mine"]["elsewhere"] == ["one"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>not found</html>" * 9, "it sends no GGUF file"),
        (b"GGUF" + b"\xff" * 200, "GGUF"),
        (b"", "failed|empty|416|how long"),
    ],
)
async def test_what_is_no_model_is_refused(
    home: Home, serve: Serve, body: bytes, words: str
) -> None:
    node, server = await home.node("box"), await serve(body)
    with pytest.raises(CoveyError, match=words) as caught:
        await node.pull(server.url, name="m")
    assert "\n" not in caught.value.line()
    assert not {name for name in node.files if name.endswith(".gguf")}


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_a_url_that_answers_no_is_named(home: Home, serve: Serve, status: int) -> None:
    node, server = await home.node("box"), await serve(b"", statuses=[status] * 9)
    with pytest.raises(CoveyError, match=f"{server.url}.*it answered {status}"):
        await node.pull(f"{server.url}?secret=1", name="m")


async def test_a_pull_goes_on_after_the_agent_was_stopped(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes(), rate=1e6)
    job = await node.store.pull(PullRequest(server.url, name="m"))
    await sent(server)
    assert (await node.store.pull(PullRequest(server.url, name="m")))["job"] == job["job"]
    assert (await node.listed())["m"]["phase"] == "fetching"
    with pytest.raises(UsageError, match=f"m is being pulled from {server.url}"):
        await node.store.pull(PullRequest("https://x.org/other", name="m"))
    await node.down()
    assert {"m.part", "m.journal", "m.pull"} <= node.files
    before, server.sent, server.rate = server.sent, 0, None
    await node.up()
    shown = await node.pull("m")
    assert shown["result"]["sha256"] == sha256(model)
    assert server.sent < model.stat().st_size - before + 3 * MIN_PIECE_BYTES
    assert node.files == {"m.gguf", "m.json"}


async def test_a_pull_whose_file_changed_while_the_agent_was_off_begins_anew(
    home: Home, model: Path, tmp_path: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes(), rate=1e6)
    await node.store.pull(PullRequest(server.url, name="m"))
    await sent(server)
    await node.down()
    other = write_model(tmp_path / "other.gguf", layers=4, seed=3)
    server.body, server.etag, server.rate = other.read_bytes(), '"two"', None
    await node.up()
    assert (await node.pull("m"))["result"]["sha256"] == sha256(other)


@pytest.mark.parametrize("step", ["rename", "record"])
async def test_a_crash_as_it_is_kept_costs_no_byte_again(
    home: Home, model: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes())

    def crash(*_: object) -> None:
        raise StateError("the power went")

    store = node.store._store
    with monkeypatch.context() as patch:
        if step == "record":
            patch.setattr(store, "keep", crash)
        else:
            patch.setattr(Path, "rename", crash)
            patch.setattr("agent.models.store.privatefile.replace", lambda p, d: p.write_bytes(d))
        with pytest.raises(StateError, match="the power went"):
            await node.pull(server.url, name="m")
    assert {"m.part", "m.journal", "m.pull"} <= node.files
    await node.down()
    before = server.sent
    await node.up()
    assert (await node.pull(server.url, name="m"))["result"]["sha256"] == sha256(model)
    assert server.sent <= before + 2  # the probes
    assert node.files == {"m.gguf", "m.json"}


async def test_a_pull_is_cancelled_and_leaves_nothing(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes(), rate=3e5)
    await node.store.pull(PullRequest(server.url, name="m"))
    await asyncio.sleep(0.1)
    assert (await node.store.cancel("m"))["phase"] == "cancelled"
    assert node.files == set()
    with pytest.raises(UsageError, match="nothing named m is being pulled"):
        await node.store.cancel("m")


async def test_a_model_is_removed_unless_it_is_used(home: Home, model: Path) -> None:
    node = await home.node("box")
    await node.pull(str(model), name="m")
    path = (node.folder / "models" / "m.gguf").resolve()
    node.used = {path: "chat"}
    with pytest.raises(UsageError, match="m is used by the deployment chat"):
        await node.store.remove("m")
    node.used = {}
    await node.store.remove("m")
    assert node.files == set()
    for unknown in ("m", "../node.key", "x" * 300):
        with pytest.raises(UsageError, match="there is no model"):
            await node.store.remove(unknown)


async def test_damage_is_named_and_only_that_is_fetched_again(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes())
    await node.pull(server.url, name="m")
    assert await node.verify() == [{"name": "m", "damaged": [], "repairing": False}]
    path = node.folder / "models" / "m.gguf"
    span = next(s for s in node.store._store.records["m"].manifest.spans if "ffn_up" in s.name)
    raw = bytearray(path.read_bytes())
    raw[span.start + 5] ^= 1
    path.write_bytes(raw)
    assert (await node.verify("m"))[0]["damaged"] == [span.name]
    node.used = {path.resolve(): "chat"}
    with pytest.raises(UsageError, match="the deployment chat uses it"):
        await node.verify("m", repair=True)
    node.used = {}
    server.sent = 0
    assert (await node.verify("m", repair=True))[0]["repairing"]
    await node.pull("m")
    assert path.read_bytes() == model.read_bytes()
    assert server.sent <= 2 * MIN_PIECE_BYTES
    assert (await node.verify("m"))[0]["damaged"] == []
    assert node.files == {"m.gguf", "m.json"}
    with pytest.raises(UsageError, match="there is no whole model x"):
        await node.verify("x")


async def test_a_model_that_is_removed_while_it_is_read_is_said(
    home: Home, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await home.node("box")
    await node.pull(str(model), name="m")
    path = node.folder / "models" / "m.gguf"
    real = survey._hashed

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        path.unlink()
        return found

    monkeypatch.setattr(survey, "_hashed", slow)
    with pytest.raises(ModelError, match="cannot read the model"):
        await node.verify("m", repair=True)


async def test_a_repair_that_finds_no_source_can_go_on_or_be_given_up(
    home: Home, model: Path
) -> None:
    one, node = await home.node("one"), await home.node("box")
    await one.pull(str(model), name="m")
    await node.pull("m")
    path = node.folder / "models" / "m.gguf"
    damaged = b"GGUF" + bytes(50_000) + model.read_bytes()[50_004:]
    path.write_bytes(damaged)
    await one.down()
    await node.verify("m", repair=True)
    with pytest.raises(CoveyError, match="nobody has it"):
        await node.pull("m")
    assert "m.gguf" not in node.files
    await node.store.cancel("m")
    assert path.read_bytes() == damaged
    await node.verify("m", repair=True)
    await one.up()
    await asyncio.sleep(0.05)
    await node.pull("m")
    assert path.read_bytes() == model.read_bytes()


async def test_the_quota_takes_what_was_unused_for_longest(
    home: Home, model: Path, tmp_path: Path
) -> None:
    size = model.stat().st_size
    node = await home.node("box", quota_bytes=int(2.5 * size))
    paths = [write_model(tmp_path / f"m{i}.gguf", layers=4, seed=i) for i in range(5)]
    await node.pull(str(paths[0]), pinned=True)
    await node.pull(str(paths[1]))
    await node.pull(str(paths[2]))
    assert {"m0.gguf", "m2.gguf"} == {name for name in node.files if name.endswith(".gguf")}
    node.used = {(node.folder / "models" / "m2.gguf").resolve(): "chat"}
    with pytest.raises(CoveyError, match=r"m0 \(pinned\), m2 \(used by chat\)"):
        await node.pull(str(paths[3]))
    assert {"m0.gguf", "m2.gguf"} <= node.files
    await node.pull(str(paths[0]), pinned=False)
    await node.pull(str(paths[3]))
    assert {"m3.gguf", "m2.gguf"} == {name for name in node.files if name.endswith(".gguf")}


async def test_a_disk_without_room_is_said_before_anything_comes(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes())
    node.store._store.free = lambda: 1000
    with pytest.raises(CoveyError, match=r"kB are needed in .*/models, and 1\.0 kB are free"):
        await node.pull(server.url, name="m")
    assert server.sent == 1


async def test_what_other_pulls_will_take_counts_as_taken(
    home: Home, model: Path, serve: Serve
) -> None:
    node, server = await home.node("box"), await serve(model.read_bytes(), rate=1e5)
    await node.store.pull(PullRequest(server.url, name="first"))
    await sent_anything(server)
    size = model.stat().st_size
    node.store._store.free = lambda: RESERVE_BYTES + int(1.5 * size)
    with pytest.raises(CoveyError, match=r"MB are needed in .*/models"):
        await node.pull(str(model), name="second")
    await node.store.cancel("first")
    await node.pull(str(model), name="second")


async def test_what_is_not_the_stores_is_never_overwritten(home: Home, model: Path) -> None:
    node = await home.node("box")
    mine = node.folder / "models" / "mine.gguf"
    mine.write_bytes(b"my own")
    with pytest.raises(StateError, match="is in the way"):
        await node.pull(str(model), name="mine")
    await node.pull(str(model), name="m")
    record = node.folder / "models" / "m.json"
    record.write_bytes(record.read_bytes()[:50])
    await node.down()
    await node.up()
    (fault,) = (await node.store.describe())["faults"]
    assert "m.json cannot be read" in fault
    with pytest.raises(StateError, match="is in the way"):
        await node.pull(str(model), name="m")
    assert mine.read_bytes() == b"my own"
    await node.store.remove("m")
    await node.pull(str(model), name="m")


async def test_the_bundled_models_name_is_taken(home: Home, model: Path) -> None:
    node = await home.node("box")
    with pytest.raises(UsageError, match="covey-mini is the bundled model's name"):
        await node.pull(str(model), name="covey-mini")


async def test_a_file_that_is_not_there_is_named(home: Home) -> None:
    node = await home.node("box")
    with pytest.raises(UsageError, match=r"cannot read the model /nowhere/m\.gguf"):
        await node.pull("/nowhere/m.gguf")
    with pytest.raises(UsageError, match="is no file"):
        await node.pull("/tmp", name="m")


@pytest.mark.parametrize("span", [(0, 2), (1, 3), (2, 4)])
async def test_a_stage_is_cut_of_its_tensors_alone_from_all_who_have_the_model(
    home: Home, model: Path, tmp_path: Path, span: tuple[int, int]
) -> None:
    one, two, stage = [await home.node(name) for name in ("one", "two", "stage")]
    model_id = (await one.pull(str(model), name="m"))["result"]["id"]
    await two.pull(str(model), name="m")
    told: list[Progress] = []
    part = await stage.store.part(model_id, span, tmp_path / "there", told.append)
    whole = await one.store.part(model_id, span, tmp_path / "here")
    assert (part.sha256, part.size) == (whole.sha256, whole.size)
    assert told[-1].done == told[-1].total < 0.8 * model.stat().st_size
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"there", "here"}
    await one.down()
    await two.down()
    with pytest.raises(CoveyError, match="nobody has it"):
        await stage.store.part(model_id, span, tmp_path / "again")


async def test_a_model_is_found_by_its_name_or_hash_here_and_at_members(
    home: Home, model: Path, tmp_path: Path
) -> None:
    one, two, asks = [await home.node(name) for name in ("one", "two", "asks")]
    result = (await one.pull(str(model), name="m"))["result"]
    named = asks.store.provision.named
    for text in ("m", result["id"][:12], result["sha256"]):
        assert await named(text) == ("m", result["id"])
        assert await one.store.provision.named(text, mesh=False) == ("m", result["id"])
        assert await named(text, mesh=False) is None
    assert await named("other") is None
    assert await asks.store.provision.holders(result["id"]) == {one.id}
    other = write_model(tmp_path / "other.gguf", layers=3)
    second = (await two.pull(str(other), name="m"))["result"]
    with pytest.raises(ModelError, match="different models called m"):
        await named("m")
    await asks.pull(second["id"])
    assert await named("m") == ("m", second["id"]), "its own comes first"


async def test_a_models_header_says_all_that_a_plan_needs(home: Home, model: Path) -> None:
    one, asks = await home.node("one"), await home.node("asks")
    model_id = (await one.pull(str(model), name="tiny"))["result"]["id"]
    provision = asks.store.provision
    header, again = await asyncio.gather(provision.header(model_id), provision.header(model_id))
    assert header == again
    assert asked.model_facts(header) == asked.model_facts(model)
    assert header.stat().st_blocks * 512 < model.stat().st_size / 2, "its tensors are holes"
    assert provision.path(model_id) is None
    assert await one.store.provision.header(model_id) == one.folder / "models" / "tiny.gguf"
    await one.down()
    assert await provision.header(model_id) == header
    with pytest.raises(CoveyError, match="no member that is there has the model 0000"):
        await provision.header("0" * 64)


async def test_a_whole_model_is_pulled_under_a_name_that_is_free(home: Home, model: Path) -> None:
    one, asks = await home.node("one"), await home.node("asks")
    model_id = (await one.pull(str(model), name="m"))["result"]["id"]
    (asks.folder / "models" / "m.gguf").write_bytes(b"my own")
    told: list[Progress] = []
    path = await asks.store.provision.whole(model_id, "m", told.append)
    assert path == asks.folder / "models" / f"m-{model_id[:8]}.gguf"
    assert path.read_bytes() == model.read_bytes()
    assert told
    assert await asks.store.provision.whole(model_id, "m") == path
    assert (asks.folder / "models" / "m.gguf").read_bytes() == b"my own"
    with pytest.raises(CoveyError, match="no member that is there has a model 0000"):
        await asks.store.provision.whole("0" * 64, "n")


async def test_who_waits_for_a_whole_model_follows_the_pull_that_is_on_its_way(
    home: Home, model: Path
) -> None:
    one, asks = await home.node("one"), await home.node("asks")
    model_id = (await one.pull(str(model), name="m"))["result"]["id"]
    begun = await asks.store.pull(PullRequest("m", name="mine"))
    path = await asks.store.provision.whole(model_id, "m")
    assert path.name == "mine.gguf"
    assert len((await asks.store.jobs())["jobs"]) == 1 == begun["job"]
    await asks.store.remove("mine")

    async def cancelled(_: PullRequest) -> Job:
        return Job(7, "pull", "m", phase="cancelled")

    asks.store.provision._pull = cancelled
    with pytest.raises(CoveyError, match="the pull of m was cancelled"):
        await asks.store.provision.whole(model_id, "m")


async def test_members_get_ranges_and_nothing_else(home: Home, model: Path) -> None:
    import aiohttp

    node = await home.node("box")
    job = await node.pull(str(model), name="m")
    base = f"http://{node.host}:{home.port}/models"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/{job['result']['id']}/manifest") as response:
            found = manifests.decode(await response.read(), job["result"]["id"])
        assert found.sha256 == sha256(model)
        headers = {"Range": "bytes=5-9"}
        async with session.get(f"{base}/{job['result']['id']}/file", headers=headers) as response:
            assert response.status == 206
            assert await response.read() == model.read_bytes()[5:10]
        for path in ("m/file", f"{'0' * 64}/file", f"{'0' * 64}/manifest", "..%2fnode.key/file"):
            async with session.get(f"{base}/{path}") as response:
                assert response.status == 404
