"""Keeps the book of wishes: on the disk, and the same as the other members'.

A new wish goes out by gossip at once; what gossip lost is found by comparing digests when a link
comes up and each 10 s with one member. deployments.json in the state directory holds the book.
Used by `deployments.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from agent.deploy.book import DeploymentBook
from agent.deploy.mesh import Mesh
from agent.deploy.messages import (
    Answer,
    BookSummary,
    BookWishes,
    CompareBook,
    ExchangeBook,
)
from agent.deploy.wish import Wish
from agent.errors import CoveyError, MembershipError, PeerError, StateError
from agent.identity import privatefile
from agent.identity.keys import NodeId, NodeKey
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

TOPIC = "deployments"
FILE = "deployments.json"
_VERSION = 1
# Books are compared with each new link, and changes are gossiped; this is for what was missed.
COMPARE_INTERVAL_S = 30.0
_ASK_TIMEOUT_S = 5.0
_DEPLOYERS = frozenset({"worker", "admin"})


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    wishes: tuple[bytes, ...]


class BookKeeper:
    """The book of this node. `changed` is called after each change that came from elsewhere too."""

    def __init__(
        self, state_dir: Path, mesh_id: bytes, key: NodeKey, mesh: Mesh,
        changed: Callable[[], None], rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._path = state_dir / FILE
        self._mesh_id = mesh_id
        self._key = key
        self._mesh = mesh
        self._changed = changed
        self._rng = rng or random.SystemRandom()
        self._restored: set[bytes] = set()
        self._linked: set[NodeId] = set()
        self._to_compare: set[NodeId] = set()
        self._to_compare_news = asyncio.Event()
        self.book = DeploymentBook(mesh_id)

    def restore(self) -> None:
        """Read the stored book. Raises StateError for a damaged file, which is left alone."""
        wishes = self._read()
        self.book = DeploymentBook(self._mesh_id, wishes)
        self._restored = {wish.signature for wish in wishes}

    def restored(self, wish: Wish) -> bool:
        """Say whether a wish was stored already when this agent started."""
        return wish.signature in self._restored

    def may_deploy(self, node: NodeId) -> bool:
        """Say whether a node is a member that may deploy."""
        return any(
            member.node_id == node and _DEPLOYERS & set(member.certificate.roles)
            for member in self._mesh.members(time.time())
        )

    # ------------------------------------------------------------------ this node's own word

    def require_may_deploy(self) -> None:
        """Raise MembershipError when this node may not deploy."""
        if not self.may_deploy(self._key.id):
            raise MembershipError(
                "this node may not deploy: it has neither the role worker nor admin",
                hint="Use a node that has one, or a ticket with --role worker.",
            )

    async def add(self, wish: Wish) -> Wish:
        """Write down a new wish as this node's own and tell it.

        Raises UsageError for a name in use, StateError.
        """
        before = self.book.entries()
        return await self._own_word(self.book.add(self._key, time.time(), wish), before)

    async def remove(self, name: str) -> Wish:
        """Write down that a deployment shall end and tell it. Raises UsageError, StateError."""
        before = self.book.entries()
        return await self._own_word(self.book.remove(self._key, time.time(), name), before)

    async def adopt_orphans(self, names: Iterable[str]) -> None:
        """Sign anew those of `names` whose authors may not speak any more."""
        for name in names:
            wish = self.book.find(name)
            if wish is not None and not self.may_deploy(wish.author_id):
                before = self.book.entries()
                adopted = self.book.adopt(self._key, time.time(), name)
                self._restored.add(adopted.signature)
                _log.info("deployment name=%s adopted from=%s", name, wish.author_id)
                await self._own_word(adopted, before)

    # ------------------------------------------------------------------ others' word

    async def on_gossip(self, author: NodeId, payload: bytes) -> bool:
        """Take in a wish that was told to all; returns False for one that makes no sense."""
        try:
            news = self._merge([payload])
        except CoveyError as error:
            _log.info("gossip of node=%s is not used: %s", author, error.line())
            return False
        self._settle(news)
        return True

    def on_link(self, node: NodeId, up: bool) -> None:
        """Compare with a member whose connection just came up."""
        if not up:
            self._linked.discard(node)
            return
        self._linked.add(node)
        self._to_compare.add(node)
        self._to_compare_news.set()

    def answer(self, request: CompareBook | ExchangeBook) -> Answer:
        """Answer a member that compares."""
        if isinstance(request, CompareBook):
            same = request.digest == self.book.digest()
            return BookSummary(same=same, entries=() if same else self.book.summary())
        wanted = [self.book.find(name) for name in request.wanted]
        self._settle(self._merge_each(request.wishes))
        return BookWishes(tuple(wish.encode() for wish in wanted if wish is not None))

    async def follow(self) -> None:
        """Compare with others; runs until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(COMPARE_INTERVAL_S):
                    await self._to_compare_news.wait()
                self._to_compare_news.clear()
            except TimeoutError:
                self._to_compare |= self._someone()
                if self.book.prune(time.time()):
                    self._settle(True)
            while self._to_compare:
                node = self._to_compare.pop()
                try:
                    await self.compare(node)
                except CoveyError as error:
                    _log.info("deployments are not compared with %s: %s", node, error.line())

    async def compare(self, node: NodeId) -> None:
        """Make this book and another member's the same. Raises CoveyError."""
        summary = await self._mesh.ask(node, CompareBook(self.book.digest()), _ASK_TIMEOUT_S)
        if not isinstance(summary, BookSummary):
            raise PeerError(f"node …{node.short} answered {type(summary).__name__}")
        if summary.same:
            return
        newer, wanted = self.book.compare(summary.entries)
        if not newer and not wanted:
            return
        request = ExchangeBook(tuple(wish.encode() for wish in newer), tuple(wanted))
        answer = await self._mesh.ask(node, request, _ASK_TIMEOUT_S)
        if not isinstance(answer, BookWishes):
            raise PeerError(f"node …{node.short} answered {type(answer).__name__}")
        self._settle(self._merge_each(answer.wishes))

    # ------------------------------------------------------------------ inside

    def _someone(self) -> set[NodeId]:
        """Return one member to compare with: a linked one, for the links alone connect all.

        A connection made just to compare would carry gossip too, until it is idle for long.
        """
        others = sorted(self._linked) or [m.node_id for m in self._mesh.live_workers(time.time())]
        others = [node for node in others if node != self._key.id]
        return {self._rng.choice(others)} if others else set()

    def _merge_each(self, raws: Iterable[bytes]) -> bool:
        """Take in what can be taken in; one bad wish must not keep the others out."""
        news = False
        for raw in raws:
            try:
                news |= self._merge([raw])
            except CoveyError as error:
                _log.info("a deployment is not taken in: %s", error.line())
        return news

    def _merge(self, raws: Iterable[bytes]) -> bool:
        now = time.time()
        news = False
        for raw in raws:
            news |= self.book.merge(Wish.decode(raw), self.may_deploy, now)
        return news

    async def _own_word(self, wish: Wish, before: tuple[Wish, ...]) -> Wish:
        try:
            self._write()
        except StateError:
            self.book = DeploymentBook(self._mesh_id, before)
            raise
        self._changed()
        try:
            await self._mesh.publish(TOPIC, wish.encode())
        except CoveyError as error:
            _log.info("deployment name=%s is not gossiped: %s", wish.name, error.line())
        return wish

    def _settle(self, news: bool) -> None:
        """Store what came from others; a full disk must not keep it from being used."""
        if not news:
            return
        try:
            self._write()
        except StateError as error:
            _log.error("%s", error.line())
        self._changed()

    def _read(self) -> tuple[Wish, ...]:
        raw = privatefile.read(self._path, "list of deployments")
        if raw is None:
            return ()
        hint = "Move it away; the other members still know what is deployed."
        try:
            file = msgspec.json.decode(raw, type=_File)
            wishes = tuple(Wish.decode(wish) for wish in file.wishes)
            for wish in wishes:
                wish.check(self._mesh_id)
        except UNREADABLE as error:
            raise StateError(f"{self._path} is damaged: {error}", hint=hint) from None
        except CoveyError as error:
            raise StateError(f"{self._path} is damaged: {error.message}", hint=hint) from None
        if file.version != _VERSION:
            raise StateError(
                f"{self._path} has format {file.version}, and this agent knows {_VERSION}",
                hint="Update Covey on this node; nothing was changed.",
            )
        return wishes

    def _write(self) -> None:
        file = _File(_VERSION, tuple(wish.encode() for wish in self.book.entries()))
        privatefile.replace(self._path, msgspec.json.encode(file) + b"\n")
