"""Whole nodes in one process: books, beats over loopback UDP, owners, heads and what people see.

Only the engines and the control plane are fakes; requests cross it as bytes.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent import config
from agent.api import DeployRequest
from agent.deploy import board, deployments, executor, keeper, messages, rings, succession
from agent.deploy.deployments import Deployments
from agent.deploy.hardware import Hardware
from agent.deploy.heads import Head
from agent.deploy.logs import Logs
from agent.deploy.messages import Drop, Keep, Placed
from agent.deploy.ring import ring_id
from agent.deploy.wish import Wish
from agent.engine.spec import EngineSpec
from agent.errors import CoveyError, MembershipError, NotRunning, PeerError, StateError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled
from agent.ownership import headside, owner, rendezvous
from agent.ownership.lease import Token
from agent.placement.results import Plan, Stage

pytestmark = pytest.mark.slow

MESH = bytes(range(32))
NAMES = ("alpha", "beta", "gamma")
MINI, MINI_ID = "mini", "ab" * 32


class FakeHead:
    """A head engine that runs until it is stopped."""

    http_port = 7101
    busy: asyncio.Event | None = None

    async def wait_ended(self) -> CoveyError | None:
        return await asyncio.get_running_loop().create_future()

    @classmethod
    async def until_idle(cls, url: str, within_s: float) -> bool:
        if cls.busy is not None:
            await cls.busy.wait()
        return True


class FakeBuild:
    """Stands for `Build`: it always succeeds."""

    missing = 0

    made: list[tuple[str, str]]

    def __init__(self, wish: Wish, ring: str, epoch: int, **more: Any) -> None:
        self.plan, self.context, self.head, self.reasons = None, 64, FakeHead(), ()
        self.placed, self.runs_on, self.lost, self.missing = (), {"": ""}, None, 0
        self.carries = False
        type(self).made.append((wish.name, more["own"].node.name))

    async def up(self) -> FakeHead:
        return self.head

    def carry(self) -> None:
        """Its head is gone with it."""

    async def down(self) -> None:
        """Nothing is left of it."""


class FakeStored:
    """The stores as `node` sees them: `net.stored` has the names of who has each model, by id."""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def path(self, model_id: str) -> Path | None:
        here = self.node.name in self.node.net.stored.get(model_id, ())
        return self.node.state / f"{model_id[:4]}.gguf" if here else None

    async def named(self, text: str, *, mesh: bool = True) -> tuple[str, str] | None:
        for model_id, names in self.node.net.stored.items():
            if text == MINI and names and (mesh or self.node.name in names):
                return MINI, model_id
        return None

    async def holders(self, model_id: str) -> frozenset[NodeId]:
        names = self.node.net.stored.get(model_id, ())
        return frozenset(n.id for n in self.node.net.running() if n.name in names) - {self.node.id}

    async def header(self, model_id: str) -> Path:
        found = self.path(model_id) or self.node.state / "header.gguf"
        found.write_bytes(bundled.path().read_bytes())
        return found


async def _nothing() -> None:
    """No engine runs in advance."""


class Node:
    """One agent as far as deployments go; it is also the `Mesh` that its deployments see."""

    def __init__(self, net: "Net", name: str, number: int, roles: Sequence[str]) -> None:
        self.net, self.name = net, name
        self.key = NodeKey(bytes([number]) * 32)
        self.id = self.key.id
        self.address = f"127.0.0.{20 + number}"
        self.member: Any = SimpleNamespace(
            node_id=self.id,
            certificate=SimpleNamespace(ipv6=self.address, name=name, roles=tuple(roles), tags=()),
        )
        self.state = net.folder / name
        self.state.mkdir(mode=0o700)
        self.deployments: Deployments | None = None
        self.announced: list[str] = []
        self.notes: list[tuple[str, str, str]] = []
        self.logs = Logs()
        self.expects = False

    def _note(self, kind: str, name: str, text: str) -> None:
        self.notes.append((kind, name, text))

    def _expect(self, *, parts: bool) -> None:
        self.expects = parts

    @property
    def up(self) -> Deployments:
        assert self.deployments is not None, f"{self.name} does not run"
        return self.deployments

    async def start(self) -> None:
        settings, _ = config.load(Path("/dev/null"), {}, [f"node.state_dir={self.state}"])
        engines: Any = SimpleNamespace(
            own_address=self.address, hardware=Hardware(settings), logs=self.logs,
            stop=_nothing, expect=self._expect,
        )  # fmt: skip
        stored: Any = FakeStored(self)
        stored.part = None
        made = Deployments(
            settings, self.key, self.name, MESH, engines, Any, self, self._note, stored=stored,  # type: ignore[arg-type] # no blobs are served
        )  # fmt: skip
        await made.start(self.address, self.net.port)
        # The quiet time after a start has tests of its own, on virtual time.
        core = made._ownership._core
        assert core is not None
        core._ready_at = core.leases._quiet_until = 0.0
        self.deployments = made

    async def stop(self) -> None:
        if self.deployments is not None:
            ending, self.deployments = self.deployments, None
            await ending.stop()

    async def kill(self) -> None:
        """End it without a word to anyone."""
        if self.deployments is not None:
            self.deployments._ownership._transport.close()  # type: ignore[union-attr] # it runs
            self.deployments._ownership._transport = None
            await self.stop()
            for node in self.net.running():
                node.up.on_link(self.id, False)

    # what `Mesh` asks for

    def members(self, now: float) -> list[Any]:
        return [node.member for node in self.net.nodes.values()]

    def live_workers(self, now: float) -> list[Any]:
        running = [*self.net.running(), self]
        nodes = {node.id: node.member for node in running if "worker" in node.roles}
        return list(nodes.values())

    def draining(self) -> frozenset[NodeId]:
        return self.net.draining

    def find(self, node: NodeId) -> Any:
        return next((m for m in self.members(0) if m.node_id == node), None)

    async def ask(
        self, node: NodeId, request: messages.Request, timeout_s: float
    ) -> messages.Answer:
        assert node != self.id
        other = next(n for n in self.net.nodes.values() if n.id == node)
        if other.deployments is None or self.net.mute:
            raise PeerError(f"{other.name} does not answer")
        received = messages.decode_request(messages.encode(request))
        answer = await other.deployments.answer(self.id, received)
        return messages.decode_answer(messages.encode(answer))

    async def publish(self, topic: str, payload: bytes) -> None:
        assert topic == keeper.TOPIC
        if self.net.no_gossip:
            raise NotRunning("no gossip")
        for node in self.net.running():
            if node is not self:
                assert await node.up.on_gossip(self.id, payload)

    async def announce_heads(self, heads: Sequence[Head]) -> None:
        self.announced = [head.model for head in heads]

    # what tests ask for

    @property
    def roles(self) -> tuple[str, ...]:
        roles: tuple[str, ...] = self.member.certificate.roles
        return roles

    async def see(self, name: str = "m") -> dict[str, Any]:
        found = {d["name"]: d for d in await self.up.describe()}
        return found.get(name, {"phase": "none"})


class Net:
    """Three workers and a gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.no_gossip = self.mute = False
        self.draining: frozenset[NodeId] = frozenset()
        self.stored: dict[str, set[str]] = {}
        self.nodes: dict[str, Node] = {}
        for number, name in enumerate(NAMES, 1):
            self.nodes[name] = Node(self, name, number, ["worker"])
        self.nodes["door"] = Node(self, "door", 9, ["gateway"])

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.deployments is not None]

    def ranked(self, name: str) -> list[Node]:
        """Return the workers in the order in which they own `name`."""
        by_id = {node.id: node for node in self.nodes.values() if "worker" in node.roles}
        return [by_id[node] for node in rendezvous.order(name, by_id)]


@pytest.fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setattr(rings, "Build", FakeBuild)
    monkeypatch.setattr(rings, "UNANNOUNCED_S", 0.0)
    monkeypatch.setattr(rings.answering, "until_idle", FakeHead.until_idle)
    FakeHead.busy = None
    # Leases and beats go by the clock as they are; what waits for news, or looks now and then, does
    # so for less.
    monkeypatch.setattr(headside, "HERE_INTERVAL_S", 0.2)
    monkeypatch.setattr(owner, "SETTLE_S", 0.4)
    monkeypatch.setattr(owner, "PATIENCE_S", 1.0)
    monkeypatch.setattr(executor, "_POLL_S", 0.05)
    monkeypatch.setattr(executor, "_RETRY_S", 0.1)
    monkeypatch.setattr(executor, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(deployments, "_POLL_S", 0.05)
    monkeypatch.setattr(succession, "_POLL_S", 0.05)
    monkeypatch.setattr(succession, "_AGAIN_S", 0.1)
    monkeypatch.setattr(board, "CACHED_S", 0.1)
    FakeBuild.made = []
    made = Net(tmp_path)
    for node in made.nodes.values():
        await node.start()
    yield made
    for node in made.nodes.values():
        await node.stop()


async def until(what: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while True:
            if found := await what():
                return found
            await asyncio.sleep(0.05)


async def phase(node: Node, wanted: str, name: str = "m") -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        seen = await node.see(name)
        return seen if seen["phase"] == wanted else None

    found: dict[str, Any] = await until(look)
    return found


def request(**changes: Any) -> DeployRequest:
    return DeployRequest(**{"model": bundled.NAME, "name": "m"} | changes)


async def test_deploy_anywhere_see_it_everywhere_lose_the_owner_end_it_anywhere(net: Net) -> None:
    first, second, third = net.ranked("m")
    begun = await third.up.deploy(request())
    assert begun["phase"] == "planning"
    seen = await phase(third, "ready")
    assert (seen["owner_name"], seen["head_name"]) == (first.name, third.name)
    assert seen["owner"] == str(first.id)
    assert seen["url"] == f"http://{third.address}:7101"
    for node in net.nodes.values():
        there = await phase(node, "ready")
        assert {k: there[k] for k in ("owner", "owner_epoch", "head", "ring", "epoch")} == {
            k: seen[k] for k in ("owner", "owner_epoch", "head", "ring", "epoch")
        }
    assert third.announced == ["m"]
    owned = [("deployment.owner", "m", f"owned here, epoch {seen['owner_epoch']}")]
    assert first.notes == owned
    phases = [text for kind, _, text in third.notes if kind == "deployment.phase"]
    assert phases == ["planning", "ready"]

    await first.kill()

    async def taken() -> dict[str, Any] | None:
        there = await second.see()
        return there if there["owner"] == str(second.id) and there["owner_epoch"] else None

    after = await until(taken)
    assert after["owner_epoch"] > seen["owner_epoch"]
    assert after["head"] == seen["head"]
    state = await until(lambda: _adopted(third, second))
    assert state["phase"] == "ready"
    assert FakeBuild.made == [("m", third.name)], "the ring went on"

    assert (await net["door"].see())["owner"] == str(second.id)
    assert net["door"].up.wished() == ["m"]
    with pytest.raises(MembershipError, match="may not deploy"):
        await net["door"].up.undeploy("m")
    assert await second.up.undeploy("m") == {"name": "m", "phase": "ended"}
    assert third.announced == []
    assert await third.up.describe() == []
    assert third.up.wished() == []
    with pytest.raises(UsageError, match="not deployed in this mesh"):
        await third.up.undeploy("m")


async def _adopted(head: Node, owner: Node) -> dict[str, Any] | None:
    token = head.up._rings.state("m").token
    return await head.see() if token and token.owner_id == owner.id else None


async def test_a_lost_head_is_replaced_and_everything_comes_back_after_a_restart(net: Net) -> None:
    first, second, third = net.ranked("m")
    await third.up.deploy(request())
    await phase(first, "ready")
    await third.kill()

    async def moved() -> dict[str, Any] | None:
        there = await first.see()
        return there if there["phase"] == "ready" and there["head"] != str(third.id) else None

    assert (await until(moved))["head"] == str(first.id)
    for node in net.nodes.values():
        await node.stop()
    FakeBuild.made.clear()
    for node in net.nodes.values():
        await node.start()
    back = await phase(second, "ready")
    assert (back["owner"], back["head"]) == (str(first.id), str(third.id))
    assert FakeBuild.made == [("m", third.name)]


async def test_a_file_runs_where_it_lies_or_waits(net: Net, tmp_path: Path) -> None:
    first, second, third = net.ranked("file")
    model = tmp_path / "own.gguf"
    model.write_bytes(bundled.path().read_bytes())
    await third.up.deploy(request(model=str(model), name="file"))
    seen = await phase(first, "ready", "file")
    assert (seen["head"], seen["model"]) == (str(third.id), str(model))
    await third.kill()
    gone = await phase(second, "waiting", "file")
    assert gone["error"]["message"].startswith(f"{model} lies on {third.name} alone")
    await third.start()
    await phase(second, "ready", "file")
    assert {head for _, head in FakeBuild.made} == {third.name}


async def head_of(node: Node, *among: Node) -> Node:
    """Return which of some nodes is the head, once one of them is and answers."""

    async def look() -> Node | None:
        seen = await node.see()
        heads = [one for one in among if str(one.id) == seen.get("head")]
        return heads[0] if heads and seen["phase"] == "ready" else None

    found: Node = await until(look)
    return found


async def test_a_stored_model_runs_on_one_that_has_it_and_then_on_the_next(net: Net) -> None:
    first, second, third = net.ranked("m")
    net.stored = {MINI_ID: {second.name, third.name}}
    planned = await net["door"].up.plan(request(model=MINI))
    assert planned["stages"][0]["name"] in (second.name, third.name)
    await first.up.deploy(request(model=MINI))
    head = await head_of(first, second, third)
    seen = await net["door"].see()
    assert (seen["model"], seen["model_id"], seen["source"]) == (MINI, MINI_ID, "")
    assert [node.name for node in net.nodes.values() if node.up.files()] == sorted(
        (second.name, third.name)
    )
    await head.kill()
    other = third if head is second else second
    assert await head_of(first, other) is other
    assert FakeBuild.made == [("m", head.name), ("m", other.name)]
    # Where nobody is left that has it, it waits until one is back.
    await other.kill()
    gone = await phase(net["door"], "waiting")
    assert gone["error"]["message"] == (
        f"no member that is there has the model mini ({MINI_ID[:12]}…)"
    )
    await head.start()
    assert await head_of(first, head) is head


async def test_where_no_worker_has_a_stored_model_any_may_fetch_it(net: Net) -> None:
    first, second, third = net.ranked("m")
    net.stored = {MINI_ID: {"door"}}
    await third.up.deploy(request(model=MINI))
    head = await head_of(third, first, second, third)
    _drain(net, head.name)
    others = [node for node in (first, second, third) if node is not head]
    assert await head_of(third, *others) is not head

    async def left() -> bool:
        return not await head.up.work()

    await until(left)


async def test_a_stored_model_with_a_draft_from_a_file_stays_with_the_file(net: Net) -> None:
    alpha, beta = net["alpha"], net["beta"]
    net.stored = {MINI_ID: {"beta"}}
    small = net.folder / "small.gguf"
    small.write_bytes(bundled.path().read_bytes())
    await alpha.up.deploy(request(model=MINI, draft=str(small)))
    assert await head_of(beta, alpha) is alpha
    wish = beta.up._keeper.book.find("m")
    assert wish is not None
    assert (wish.model_id, wish.draft, wish.source_id) == (MINI_ID, str(small), alpha.id)
    _drain(net, "alpha")
    with pytest.raises(UsageError, match=f"{small} lies on this node alone"):
        await alpha.up.deploy(request(model=MINI, draft=str(small), name="n"))


async def test_what_gossip_lost_is_found_when_a_link_comes_up(net: Net) -> None:
    net.no_gossip = True
    alpha, beta = net["alpha"], net["beta"]
    await alpha.up.deploy(request())
    assert (await beta.see())["phase"] == "none"
    beta.up.on_link(alpha.id, True)
    await until(lambda: _knows(beta))
    assert (alpha.state / "deployments.json").stat().st_mode & 0o777 == 0o600
    stored = msgspec.json.decode((beta.state / "deployments.json").read_bytes())
    assert len(stored["wishes"]) == 1


async def _knows(node: Node) -> bool:
    return bool(await node.up.describe())


async def test_impossible_wishes_are_refused_before_anything_is_told(net: Net) -> None:
    alpha, door = net["alpha"], net["door"]
    for changes, words in (
        ({"nodes": 4}, "this mesh has 3"),
        ({"context": 10**6}, "was trained for"),
        ({"model": "/none.gguf"}, "there is no model"),
        ({"name": "a/b"}, "cannot name"),
        ({"draft": "/none.gguf"}, "there is no model /none.gguf"),
    ):
        with pytest.raises(CoveyError, match=words):
            await alpha.up.deploy(request(**changes))
    with pytest.raises(MembershipError, match="may not deploy"):
        await door.up.deploy(request())
    assert not (alpha.state / "deployments.json").exists()
    await alpha.up.deploy(request())
    with pytest.raises(UsageError, match="already deployed"):
        await net["beta"].up.deploy(request())


async def test_a_draft_model_is_part_of_the_wish_and_known_to_all(net: Net) -> None:
    alpha, beta = net["alpha"], net["beta"]
    small = net.folder / "small.gguf"
    small.write_bytes(bundled.path().read_bytes())
    described = await alpha.up.deploy(request(draft=str(small), name="guessing"))
    assert (described["model"], described["draft"]) == (bundled.NAME, str(small))
    bare = await alpha.up.deploy(request(draft=bundled.NAME, name="anywhere"))
    assert bare["draft"] == bundled.NAME
    await until(lambda: _count(beta, 2))
    known = {each["name"]: each["draft"] for each in await beta.up.describe()}
    assert known == {"guessing": str(small), "anywhere": bundled.NAME}
    wishes = {wish.name: wish for wish in beta.up._keeper.book.wishes()}
    # Where the draft model's file lies, and nowhere else, it can run.
    assert wishes["guessing"].source_id == alpha.id
    assert wishes["anywhere"].source_id is None


async def _count(node: Node, count: int) -> bool:
    return len(await node.up.describe()) == count


async def test_an_admin_that_is_no_worker_deploys_what_all_have(net: Net) -> None:
    door = net["door"]
    door.member.certificate.roles = ("admin",)
    with pytest.raises(MembershipError, match="is no worker"):
        await door.up.deploy(request(model=str(bundled.path())))
    await door.up.deploy(request())
    seen = await phase(door, "ready")
    assert seen["head"] == seen["owner"] == str(net.ranked("m")[0].id)


async def test_a_head_obeys_its_present_owner_alone(net: Net) -> None:
    first, second, third = net.ranked("m")
    await third.up.deploy(request())
    await phase(first, "ready")
    token = third.up._rings.state("m").token
    wish = third.up._keeper.book.find("m")
    assert token is not None
    assert wish is not None
    stolen = Token(token.epoch, second.id.ed25519)
    older = Token(token.epoch - 1, first.id.ed25519)
    for peer, wrong in ((second, token), (second, stolen), (first, older)):
        for command in (Keep(wish.encode(), wrong, True), Drop("m", wrong)):
            with pytest.raises(UsageError, match="does not own m here any more"):
                await third.up.answer(peer.id, command)
    assert (await third.see())["phase"] == "ready"
    forged = msgspec.structs.replace(wish, generation=9)
    with pytest.raises(UsageError, match="another wish"):
        await third.up.answer(first.id, Keep(forged.encode(), token, True))
    await second.up.undeploy("m")
    with pytest.raises(UsageError, match="another wish"):
        await third.up.answer(first.id, Keep(wish.encode(), token, True))


async def test_who_may_not_deploy_has_no_stage_loaded_either(net: Net) -> None:
    alpha, beta = net["alpha"], net["beta"]
    stop = messages.StopRing("00" * 16, Token(1, alpha.id.ed25519))
    for roles in (("relay",), ("gateway",), ("issuer",)):
        alpha.member.certificate.roles = roles
        with pytest.raises(MembershipError, match="neither the role worker nor admin"):
            await beta.up.answer(alpha.id, stop)
        await beta.up.answer(alpha.id, messages.AskFacts())  # to plan, anybody may ask
    with pytest.raises(MembershipError):
        await beta.up.answer(NodeKey(b"x" * 32).id, stop)
    alpha.member.certificate.roles = ("worker",)
    await beta.up.answer(alpha.id, stop)


async def test_an_owner_that_does_not_answer_is_said_to(net: Net) -> None:
    first, _, third = net.ranked("m")
    await third.up.deploy(request())
    await phase(first, "ready")
    net.mute = True
    door = await net["door"].see()
    assert door["phase"] == "unknown"
    assert door["progress"] == f"its owner, {first.name}, does not answer"


async def test_bad_gossip_is_not_passed_on(net: Net) -> None:
    alpha, beta, door = net["alpha"], net["beta"], net["door"]
    blank = Wish(name="m", model="m", author=door.id.ed25519, generation=1, at=1)
    for payload in (b"", b"nonsense", blank.encode(), blank.signed_by(door.key, MESH).encode()):
        assert not await beta.up.on_gossip(alpha.id, payload)
    assert await beta.up.describe() == []


async def test_an_orphan_is_signed_anew_by_its_owner(net: Net) -> None:
    first, second, third = net.ranked("m")
    await third.up.deploy(request())
    await phase(first, "ready")
    await third.kill()
    del net.nodes[third.name]
    await first.up._keeper.adopt_orphans(["m"])
    for node in (first, second):
        wish = node.up._keeper.book.find("m")
        assert wish is not None
        assert (wish.author_id, wish.generation) == (first.id, 2)
    await third.stop()


async def test_what_comes_before_the_start_cannot_overwrite_the_stored_book(net: Net) -> None:
    alpha, beta = net["alpha"], net["beta"]
    await alpha.up.deploy(request())
    wish = alpha.up._keeper.book.find("m")
    assert wish is not None
    ended = alpha.up
    await alpha.stop()
    stored = (alpha.state / "deployments.json").read_bytes()
    other = await beta.up._keeper.add(
        Wish(name="n", model="covey-mini", nodes=1, author=beta.id.ed25519, generation=1, at=0)
    )
    assert await ended.on_gossip(beta.id, other.encode())
    with pytest.raises(NotRunning, match="starting or stopping"):
        await ended.answer(beta.id, messages.AskFacts())
    assert (alpha.state / "deployments.json").read_bytes() == stored


async def test_a_damaged_book_is_named_and_left_alone(net: Net) -> None:
    alpha = net["alpha"]
    await alpha.up.deploy(request())
    await alpha.stop()
    file = alpha.state / "deployments.json"
    good = file.read_bytes()
    for content in (
        good[:-5],
        good.replace(b"version", b"versoin"),
        b'{"version":1,"wishes":["AA=="]}',
    ):
        file.write_bytes(content)
        with pytest.raises(StateError, match=r"deployments\.json is damaged"):
            await alpha.start()
        assert file.read_bytes() == content
    file.write_bytes(b'{"version":2,"wishes":[]}')
    with pytest.raises(StateError, match="format 2"):
        await alpha.start()
    file.write_bytes(good)


def _drain(net: Net, *names: str) -> None:
    """Have exactly these nodes drain, and all know it."""
    net.draining = frozenset(net[name].id for name in names)
    for node in net.running():
        node.up.draining_changed()


async def _answered(net: Net, until_: Callable[[], Awaitable[Any]]) -> None:
    """Wait for something; meanwhile some head is announced at any time."""
    async with asyncio.timeout(30):
        while not await until_():
            assert any("m" in node.announced for node in net.running())
            await asyncio.sleep(0.02)


async def _possible(node: Node) -> bool:
    return node.up._rings._deployments["m"].possible


async def test_a_head_that_drains_is_replaced_first_and_ends_with_its_last_answer(
    net: Net,
) -> None:
    first, second, third = net.ranked("m")
    await first.up.deploy(request())
    seen = await phase(first, "ready")
    assert (seen["owner"], seen["head"]) == (str(first.id), str(first.id))
    FakeHead.busy = asyncio.Event()
    _drain(net, first.name)
    [work] = await first.up.work()
    assert (work["deployment"], work["what"], work["stays"]) == ("m", "head", False)

    async def moved() -> bool:
        there = await third.see()
        return there["phase"] == "ready" and there["head"] == str(second.id)

    await _answered(net, moved)
    there = await second.see()
    assert there["owner"] == str(second.id), "ownership went to the next"
    assert FakeBuild.made == [("m", first.name), ("m", second.name)]
    # It answers, so it is possible; whoever takes over hears of it, if not with the first word.
    await until(lambda: _possible(second))

    async def told() -> bool:
        return first.up._rings.state("m").phase == "draining"

    await until(told)
    assert await first.up.work() == [
        {"deployment": "m", "what": "head", "state": "its last answers are written",
         "stays": False}
    ]  # fmt: skip
    await asyncio.sleep(0.1)
    assert first.announced == []
    FakeHead.busy.set()

    async def nothing() -> bool:
        return await first.up.work() == []

    await until(nothing)
    _drain(net)
    await asyncio.sleep(0.3)
    assert (await phase(second, "ready"))["head"] == str(second.id), "it is not moved back"


async def test_what_is_deployed_on_a_draining_node_runs_elsewhere(net: Net, tmp_path: Path) -> None:
    first, second, third = net.ranked("m")
    _drain(net, first.name)
    await first.up.deploy(request())
    seen = await phase(first, "ready")
    assert (seen["owner"], seen["head"]) == (str(second.id), str(second.id))
    assert [node.expects for node in (first, second, third)] == [False, True, True]
    assert FakeBuild.made == [("m", second.name)]
    model = tmp_path / "own.gguf"
    model.write_bytes(bundled.path().read_bytes())
    with pytest.raises(UsageError, match=r"own\.gguf lies on this node alone, which is draining"):
        await first.up.deploy(request(model=str(model), name="file"))
    with pytest.raises(UsageError, match=f"has 2 that could be in it; {first.name} is draining"):
        await first.up.deploy(request(name="trio", nodes=3))
    # A command of an owner that has not heard of it.
    wish = first.up._keeper.book.find("m")
    assert wish is not None
    first.up._ownership.admits = lambda name, token: True  # type: ignore[method-assign,union-attr] # as its owner
    token = Token(5, third.id.ed25519)
    with pytest.raises(UsageError, match=f"{first.name} is draining"):
        await first.up.answer(third.id, Keep(wish.encode(), token, True))


async def test_a_file_stays_where_it_lies(net: Net, tmp_path: Path) -> None:
    first, second, third = net.ranked("file")
    model = tmp_path / "own.gguf"
    model.write_bytes(bundled.path().read_bytes())
    await third.up.deploy(request(model=str(model), name="file"))
    await phase(first, "ready", "file")
    _drain(net, third.name)
    await asyncio.sleep(0.5)
    [work] = await third.up.work()
    assert work["state"] == f"its file {model} lies on {third.name} alone"
    assert work["stays"]
    assert (await phase(second, "ready", "file"))["head"] == str(third.id)
    # After a restart it is not begun there again, until that is taken back.
    await third.stop()
    await third.start()
    waiting = await phase(second, "waiting", "file")
    assert waiting["error"]["message"].endswith("alone, and that node is draining")
    assert await third.up.work() == []
    _drain(net)
    await phase(second, "ready", "file")


async def test_where_all_drain_it_goes_on(net: Net) -> None:
    first, _, third = net.ranked("m")
    await third.up.deploy(request())
    await phase(first, "ready")
    _drain(net, *NAMES)
    await asyncio.sleep(0.5)
    seen = await phase(first, "ready")
    assert (seen["owner"], seen["head"]) == (str(first.id), str(third.id))
    [work] = await third.up.work()
    assert work["state"] == "no other worker is there that is not draining"
    await third.up.deploy(request(name="n"))
    found = await phase(third, "waiting", "n")
    assert found["error"]["message"] == "every worker that is there is draining"


async def test_what_shall_run_is_known_everywhere_and_a_plan_says_what_runs(net: Net) -> None:
    first, second, third = net.ranked("m")
    assert second.up.wished() == []
    await third.up.deploy(request())
    await phase(first, "ready")
    assert [node.up.wished() for node in (first, second, third)] == [["m"]] * 3
    assert [node.expects for node in (first, second, third)] == [True] * 3
    found = await second.up.plan(request())
    assert found["running"] == [{"name": "m", "gain": ""}]
    await second.up.undeploy("m")
    assert second.up.wished() == []
    assert not second.expects


async def test_a_plan_has_links_measured_and_the_catalogue_asks_all(net: Net) -> None:
    alpha, beta = net["alpha"], net["beta"]
    asked: list[list[NodeId]] = []

    async def measure(nodes: Iterable[NodeId], limit_s: float) -> None:
        asked.append(sorted(nodes))

    beta.up.links.measure = measure  # type: ignore[method-assign]
    stranger = NodeKey(b"x" * 32).id
    request = messages.MeasureLinks(tuple(map(str, (alpha.id, beta.id, stranger))))
    facts = await beta.up.answer(alpha.id, request)
    assert isinstance(facts, messages.Facts)
    assert facts.links == ()
    assert asked == [[alpha.id]], "neither itself nor who is no member"
    with pytest.raises(CoveyError, match="not a node id"):
        await beta.up.answer(alpha.id, messages.MeasureLinks(("nobody",)))
    told = await alpha.up.offers.describe("covey-mini")
    assert {worker["name"] for worker in told["workers"]} == set(NAMES)
    assert told["models"][0]["files"][0]["nodes"][0] in NAMES


def _engine(name: str, ring: str = "") -> Any:
    role: Any = "stage" if ring else "whole"
    spec = EngineSpec(role=role, files=("x",), model_name=name or "model", ring=ring, stage=1)
    return SimpleNamespace(spec=spec, pid=7, alive=True, state="runs", log_tail=["hello"],
                           log_lines=1)  # fmt: skip


async def test_logs_come_from_all_nodes_of_a_deployment(net: Net) -> None:
    first, second, third = net.ranked("m")
    with pytest.raises(UsageError, match="m is not deployed in this mesh"):
        await first.up.logs("m", None, 50)
    await third.up.deploy(request())
    await phase(first, "ready")
    third.logs.add(_engine("m"))
    third.logs.add(_engine("other"))
    first.logs.add(_engine("", ring_id(third.id, "m")))
    first.logs.add(_engine("", "ab" * 16))
    found = await first.up.logs("m", None, 50)
    said = {one["name"]: [t["title"] for t in one["tails"]] for one in found["nodes"]}
    assert said == {third.name: ["the model"], first.name: ["stage 1"]}
    # One node alone, by name or all of it; and this node's own.
    [one] = (await second.up.logs("m", first.id, 50))["nodes"]
    assert (one["name"], len(one["tails"])) == (first.name, 1)
    [one] = (await second.up.logs("", third.id, 50))["nodes"]
    assert len(one["tails"]) == 2
    assert (await second.up.logs("", None, 50))["nodes"][0]["tails"] == []
    # Who is not there is named; what there is of the others is shown.
    net.mute = True
    found = await first.up.logs("m", None, 50)
    errors = {one["name"]: one["error"] for one in found["nodes"]}
    assert errors == {first.name: ""} | {
        name: f"{name} does not answer." for name in errors if name != first.name
    }
    # What ended is kept here for a while.
    net.mute = False
    await third.up.undeploy("m")
    [one] = (await third.up.logs("m", None, 50))["nodes"]
    assert len(one["tails"]) == 1


class PlacedBuild(FakeBuild):
    """Has a plan: its head's node alone holds the whole model."""

    def __init__(self, wish: Wish, ring: str, epoch: int, **more: Any) -> None:
        super().__init__(wish, ring, epoch, **more)
        own = more["own"].node
        self.plan: Any = Plan((Stage(own.node, own.name, 0, 3),), ())
        self.placed: tuple[Any, ...] = (Placed(own.node, own.name, 0, 3),)


async def _rings(node: Node, name: str = "m") -> list[dict[str, Any]]:
    return [one for one in await node.up.describe() if one["name"] == name]


async def _apart(node: Node, count: int) -> list[dict[str, Any]] | None:
    found = await _rings(node)
    answer = [one for one in found if one["phase"] == "ready"]
    return found if len(answer) == count == len({one["head"] for one in answer}) else None


async def test_rings_are_on_nodes_of_their_own_and_outlive_each_other(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "Build", PlacedBuild)
    monkeypatch.setattr(executor, "AVOID_S", 2.0)
    alpha, beta, gamma = (net[name] for name in NAMES)
    begun = await alpha.up.deploy(request(rings=2, nodes=1))
    assert (begun["key"], begun["number"], begun["rings"]) == ("m", 1, 2)
    first, second = await until(lambda: _apart(gamma, 2))
    assert first["head"] == str(alpha.id)
    assert [one["key"] for one in (first, second)] == ["m", "m/2"]
    assert alpha.announced == ["m"]
    [spare] = [n for n in (beta, gamma) if str(n.id) != second["head"]]
    [other] = {beta.name, gamma.name} - {spare.name}

    # Its node dies: the ring is built on the one that is free, and the other is left alone.
    built = list(FakeBuild.made)
    await net[other].kill()
    _, moved = await until(lambda: _on(alpha, {str(alpha.id), str(spare.id)}))
    assert moved["head"] == str(spare.id)
    assert FakeBuild.made == [*built, ("m", spare.name)]

    # That one too: nobody is left for it, which is said, and the other goes on.
    await spare.kill()

    async def lacks() -> dict[str, Any] | None:
        _, lost = await _rings(alpha)
        return lost if lost["error"] else None

    lost = await until(lacks)
    assert lost["phase"] == "waiting"
    assert lost["error"]["message"] == (
        "no worker is left for this ring: the others of m have alpha"
    )
    assert (await _rings(alpha))[0]["phase"] == "ready"
    assert FakeBuild.made == [*built, ("m", spare.name)]

    # Everything survives a restart of who is left, and the lost ring comes back with a node.
    await alpha.stop()
    await alpha.start()
    await spare.start()
    back = await until(lambda: _apart(alpha, 2))
    assert {one["head"] for one in back} == {str(alpha.id), str(spare.id)}
    assert await spare.up.undeploy("m") == {"name": "m", "phase": "ended"}
    assert alpha.announced == spare.announced == []


async def _on(node: Node, heads: set[str]) -> list[dict[str, Any]] | None:
    found = await _apart(node, 2)
    return found if found and {one["head"] for one in found} == heads else None


async def test_fewer_rings_of_the_same_name_end_what_a_sleeper_still_runs(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "Build", PlacedBuild)
    alpha = net["alpha"]
    await alpha.up.deploy(request(rings=3))
    found = await until(lambda: _apart(alpha, 3))
    assert {one["owner_name"] for one in found} <= set(NAMES)
    sleeper = next(net[name] for name in NAMES if str(net[name].id) == found[2]["head"])
    net.no_gossip = True
    await alpha.up._keeper.remove("m")
    await alpha.up.deploy(request())
    for node in net.running():
        if node is not alpha:
            node.up.on_link(alpha.id, True)
    await until(lambda: _apart(alpha, 1))

    async def ended() -> bool:
        return "m/3" not in sleeper.up._rings.names()

    await until(ended)


async def test_a_node_has_part_in_one_ring_alone(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "Build", PlacedBuild)
    alpha = net["alpha"]
    await alpha.up.deploy(request(rings=2))
    await until(lambda: _apart(alpha, 2))
    wish = alpha.up._keeper.book.find("m")
    assert wish is not None
    monkeypatch.setattr(alpha.up, "_check_token", lambda *_: None)
    keep = Keep(wish.encode(), Token(1, alpha.id.ed25519), True, 2)
    state: Any = await alpha.up.answer(alpha.id, keep)
    assert (state.phase, state.progress) == ("taken", "alpha has part in ring 1 of m")
    facts: Any = await alpha.up.answer(alpha.id, messages.AskFacts(deployment="m"))
    [here] = facts.rings
    assert (here.number, here.head, here.nodes) == (1, True, (str(alpha.id),))
    facts = await alpha.up.answer(alpha.id, messages.AskFacts())
    assert facts.rings == ()


async def test_rings_that_cannot_be_are_refused_before_anything_is_told(
    net: Net, tmp_path: Path
) -> None:
    alpha = net["alpha"]
    own = tmp_path / "own.gguf"
    own.write_bytes(bundled.path().read_bytes())
    for changes, words in (
        ({"rings": 4}, "4 rings were asked for, and this mesh has 3"),
        ({"rings": 2, "nodes": 2}, "2 rings were asked for over 2 nodes each, and this mesh has 3"),
        ({"rings": 2, "engine": "rpc"}, "for Covey's own rings"),
        ({"rings": 2, "model": str(own)}, "lies on this node alone, and each of 2 rings"),
        ({"rings": 2, "name": "n" * 63}, "cannot name a deployment of 2 rings"),
    ):
        with pytest.raises(CoveyError, match=words):
            await alpha.up.deploy(request(**changes))
    assert await alpha.up.describe() == []
    planned = await alpha.up.plan(request(rings=2))
    assert len(planned["rings"]) == 2
    assert planned["tokens_s"] == sum(ring["tokens_s"] for ring in planned["rings"])
    assert {1, 3} == {way["rings"] for way in planned["otherwise"]}
    best = await alpha.up.plan(request(rings=None))
    assert best["tokens_s"] >= max(way["tokens_s"] for way in best["otherwise"])
    described = await alpha.up.deploy(request(rings=None))
    assert described["rings"] == len(best["rings"])
