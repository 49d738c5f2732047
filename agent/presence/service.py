"""Presence: asks who is there, says that this node is, keeps its links, and collects events.

The daemon makes one and tells it who is a member. It decides nothing by itself: `liveness.py` says
who is gone, `links.py` to whom links are kept. Monotonic time inside, unix time in events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.errors import CoveyError, PeerError
from agent.health import Health
from agent.identity.keys import NodeId
from agent.presence import report
from agent.presence.events import EventLog
from agent.presence.links import LinkChooser
from agent.presence.liveness import Liveness, State
from agent.presence.needs import Control, Ping, Sources
from agent.presence.report import Beat, Doubt, Event, Item, Load, Model, Models
from agent.presence.words import Word, Words

_log = logging.getLogger(__name__)

_TICK_S = 0.5
# On a LAN an answer takes a millisecond, over relays and satellites one second.
_PING_TIMEOUT_S = 1.0
_LINKS_INTERVAL_S = 2.0
_MODELS_EACH_BEATS = 5
# A change is told at once, but not more often than this.
_CHANGE_INTERVAL_S = 2.0
# Doubts are told this far apart, and by nobody who suspects more than these or a quarter of all.
_DOUBT_INTERVAL_S = 5.0
_FEW_SUSPECTS = 2
# What others say in events is kept for this many different authors a minute at most each.
_EVENTS_PER_MINUTE = 30
# Messages said at once, or after the clock was set back, are told apart by this.
_AT_STEP_S = 1e-4


@dataclass
class _Heard:
    """What a member last told."""

    beat: Beat | None = None
    models: Models | None = None
    rtt_s: float | None = None
    events: list[float] = field(default_factory=list)


class Presence:
    """Which members are there, as this node sees it. All methods belong to the asyncio loop."""

    def __init__(
        self,
        own: NodeId,
        control: Control,
        ping: Ping,
        sources: Sources,
        health: Health,
        *,
        changed: Callable[[NodeId, State], None] = lambda node, state: None,
        models: Callable[[], None] = lambda: None,
        left: Callable[[NodeId], None] = lambda node: None,
        came: Callable[[NodeId], None] = lambda node: None,
        draining: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
        software: str = "",
    ) -> None:
        """`changed` is called when a member turns alive, suspect or gone, `models` when one says
        that its models changed, `left` when one says that its agent stops, `came` when one that
        was only taken to be there shows that it is, `draining` when one says that it drains or
        does not any more.
        """
        self._own = own
        self._control = control
        self._ping = ping
        self._sources = sources
        self._health = health
        self._on_changed = changed
        self._on_models = models
        self._on_left = left
        self._on_draining = draining
        self._stirred = asyncio.Event()
        self._models_changed = asyncio.Event()
        self._software = software
        self._rng = rng or random.SystemRandom()
        self._liveness = Liveness(self._rng, self._state_changed, came)
        self._chooser = LinkChooser(own)
        self._chosen: tuple[NodeId, ...] = ()
        self._linked: set[NodeId] = set()
        self._doubted: dict[NodeId, float] = {}
        self._doubted_at = self._spoke_up_at = float("-inf")
        self._words, self._said_at = Words(), 0.0
        self._heard: dict[NodeId, _Heard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._told: tuple[Sequence[Item], Sequence[Model]] = ((), ())
        self.events = EventLog()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Hear the topics, and begin to ask, to tell and to link."""
        for topic in (report.HEALTH, report.MODELS, report.EVENTS):
            self._control.subscribe(topic, self._handler(topic))
        self._control.on_link(self._on_link)
        self._loops = [
            asyncio.create_task(self._follow_due(), name="presence ask"),
            asyncio.create_task(self._every(_LINKS_INTERVAL_S, self._keep_links), name="links"),
            asyncio.create_task(self._tell(), name="presence tell"),
        ]

    async def stop(self) -> None:
        """Say goodbye to whoever listens, and end."""
        running = [*self._loops, *self._tasks]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)
        if self._loops:
            self._loops = []
            self._note("node.down", self._own, "its agent stops", tell=False)
            try:
                beat = msgspec.structs.replace(self._beat(self._at()), leaving=True)
                await self._control.publish(report.HEALTH, report.encode(beat))
            except CoveyError as error:
                _log.debug("no goodbye was said: %s", error.line())

    def set_members(self, nodes: Iterable[NodeId]) -> None:
        """Say who is a member; this node itself may be among them."""
        others = {node for node in nodes if node != self._own}
        self._liveness.set_members(others, time.monotonic())
        for node in self._heard.keys() - others:
            del self._heard[node]
        self._linked &= others
        self._words.keep(others | {self._own})

    # --------------------------------------------------------------- answers

    def alive(self) -> list[NodeId]:
        """Return the other members that are not gone."""
        return self._liveness.alive()

    def there(self) -> list[NodeId]:
        """Return the other members that have shown that they are there, or have just come."""
        return self._liveness.there(time.monotonic())

    def draining(self) -> frozenset[NodeId]:
        """Return the other members that say that they drain."""
        return frozenset(
            node for node, heard in self._heard.items() if heard.beat and heard.beat.draining
        )

    def clock_differs(self) -> bool:
        """Say whether all that members tell was written at another time than this node's."""
        return self._words.clock_differs()

    def heard(self, node: NodeId) -> None:
        """Note that something came from a member: a request, an answer."""
        self._liveness.heard(node, time.monotonic())

    def shown(self, node: NodeId) -> None:
        """Note that a datagram came that a member has sealed: it is there, unless it said goodbye.

        Much is on its way when an agent stops, and arrives after its last word.
        """
        if self._liveness.state(node) is not State.GONE:
            self._liveness.heard(node, time.monotonic())

    def doubt(self, node: NodeId) -> None:
        """Take a hint that a member may have died: it is asked at once."""
        if self._liveness.doubt(node, time.monotonic()):
            self._stirred.set()

    def slept(self, node: NodeId) -> None:
        """Hear that no path to a member is kept any more: that it does not answer says nothing."""
        self._liveness.slept(node)

    def models_changed(self) -> None:
        """Tell all members now which models run here, and whether this node drains."""
        self._models_changed.set()

    def describe(self, node: NodeId) -> dict[str, Any]:
        """Describe a member's presence for the local API."""
        state, heard = self._liveness.state(node), self._heard.get(node)
        beat = heard.beat if heard else None
        return {
            "presence": state.value if state else "unknown",
            "heard_ago_s": self._liveness.heard_ago(node, time.monotonic()),
            "rtt_ms": None if heard is None or heard.rtt_s is None else 1000 * heard.rtt_s,
            "linked": node in self._linked,
            "load": msgspec.to_builtins(_named(beat.load)) if beat else None,
            "health": [{"code": i.code, "severity": i.severity} for i in beat.items]
            if beat else [],
            "models": [{"name": m.name, "part": m.part, "phase": m.phase}
                       for m in heard.models.models] if heard and heard.models else [],
            "software": beat.software if beat else "",
            "draining": bool(beat and beat.draining),
        }  # fmt: skip

    def load(self) -> dict[str, Any]:
        """Describe what this node has to spare, as it tells others."""
        return _named(self._sources.load())

    def links(self) -> list[NodeId]:
        """Return the members to whom a control connection is open."""
        return sorted(self._linked)

    def chosen(self) -> tuple[NodeId, ...]:
        """Return the members to whom this node keeps links, open or not yet."""
        return self._chosen

    def note(self, kind: str, subject: NodeId | str, text: str, *, tell: bool = False) -> None:
        """Record an event of this node; `tell` all members of it as well."""
        self._note(kind, subject, text, tell=tell)

    # ---------------------------------------------------------------- asking

    async def _follow_due(self) -> None:
        while True:
            await self._ask_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._stirred.wait()
            self._stirred.clear()

    async def _ask_due(self) -> None:
        for held in self._words.due(time.monotonic()):
            self._act(held.author, held.word, held.written)
        for node in self._liveness.due(time.monotonic()):
            self._spawn(self._ask(node))

    async def _ask(self, node: NodeId) -> None:
        asked_at, patience = time.monotonic(), self._liveness.patience
        rtt_s = await self._ping(node, _PING_TIMEOUT_S * patience)
        now = time.monotonic()
        if rtt_s is None:
            # Discovery gives a question up after a second, but hears what comes later.
            if patience > 1.0:
                await asyncio.sleep(asked_at + _PING_TIMEOUT_S * patience - now)
            self._liveness.missed(node, asked_at, time.monotonic())
            return
        self._liveness.answered(node, now)
        self._of(node).rtt_s = rtt_s

    def _state_changed(self, node: NodeId, state: State) -> None:
        words = {State.ALIVE: "is there again", State.SUSPECT: "does not answer",
                 State.GONE: "is gone"}  # fmt: skip
        self._note(f"member.{state.value}", node, words[state])
        if state is State.SUSPECT:
            self._spawn(self._tell_doubt(node))
        self._on_changed(node, state)

    async def _tell_doubt(self, node: NodeId) -> None:
        """Have others ask as well; one voice is enough, so not when another told it just now.

        Who doubts many at once is slow or cut off itself, and keeps quiet: else a busy moment
        would make everyone ask everyone, and be a busier one. Doubts are told one after another.
        """
        while (wait_s := self._doubted_at + _DOUBT_INTERVAL_S - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
            if self._liveness.state(node) in (State.ALIVE, None):
                return
        now = time.monotonic()
        lately = now - _DOUBT_INTERVAL_S
        others = self._liveness.alive()
        silent = sum(self._liveness.state(one) is State.SUSPECT for one in others)
        if self._doubted.get(node, float("-inf")) > lately:
            return
        if silent > max(_FEW_SUSPECTS, len(others) // 4):
            return
        self._doubted[node] = self._doubted_at = now
        await self._publish(report.HEALTH, Doubt(self._at(), node.ed25519))

    def _on_link(self, node: NodeId, up: bool) -> None:
        if up == (node in self._linked):
            return
        if up:
            self._linked.add(node)
            self.heard(node)
        else:
            self._linked.discard(node)
            # Who joins does so by a link of its own, which ends before its agent is there.
            if self._liveness.settled(node, time.monotonic()):
                self.doubt(node)
        self._note("link.up" if up else "link.down", node, "a control connection is open"
                   if up else "the control connection closed")  # fmt: skip

    # --------------------------------------------------------------- telling

    async def _tell(self) -> None:
        """Send the beat in its time, and what changed soon after it did."""
        beats, revision, due = 0, int(time.time()), 0.0
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        while True:
            now = time.monotonic()
            items, models = self._items(), tuple(self._sources.models())
            asked = self._models_changed.is_set()
            self._models_changed.clear()
            if now >= due:
                beats += 1
                interval_s = report.beat_interval_s(len(self._liveness.alive()) + 1)
                due = now + interval_s * self._rng.uniform(0.8, 1.0)
            elif (items, models) == self._told and not asked:
                await self._pause()
                continue
            new = asked or models != self._told[1]
            if new or beats % _MODELS_EACH_BEATS == 1:
                revision += new
                await self._publish(report.MODELS, Models(self._at(), models, revision))
            if items != self._told[0]:
                self._note_health(items)
            self._told = items, models
            await self._publish(report.HEALTH, self._beat(self._at()))
            await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CHANGE_INTERVAL_S):
                await self._models_changed.wait()

    def _at(self) -> float:
        """Return the time for a message: unix seconds, and later than that of the one before."""
        self._said_at = max(time.time(), self._said_at + _AT_STEP_S)
        self._words.wrote(self._own, self._said_at)
        return self._said_at

    def _beat(self, at: float) -> Beat:
        return Beat(at, self._sources.load(), self._items(), len(self._linked), self._software,
                    draining=self._sources.draining())  # fmt: skip

    def _items(self) -> tuple[Item, ...]:
        found = self._health.items()[: report.MAX_ITEMS]
        return tuple(
            Item(item.code, "error" if item.severity == "error" else "warning") for item in found
        )

    def _note_health(self, items: Sequence[Item]) -> None:
        before, after = {i.code for i in self._told[0]}, {i.code for i in items}
        for code in sorted(after - before):
            self._note("health.set", self._own, code, tell=True)
        for code in sorted(before - after):
            self._note("health.cleared", self._own, code, tell=True)

    def _note(self, kind: str, subject: NodeId | str, text: str, *, tell: bool = False) -> None:
        name = self._sources.name_of(subject) if isinstance(subject, NodeId) else subject
        own = self._sources.name_of(self._own)
        now = time.time()
        self.events.add(now, own, "local", kind, name, text)
        _log.info("event kind=%s subject=%s text=%s", kind, name, text)
        if tell:
            self._spawn(self._publish(report.EVENTS, Event(now, kind, name[:80], text[:300])))

    async def _publish(self, topic: str, message: report.Message) -> None:
        try:
            await self._control.publish(topic, report.encode(message))
        except CoveyError as error:
            _log.debug("not told on %s: %s", topic, error.line())

    # --------------------------------------------------------------- hearing

    def _handler(self, topic: str) -> Callable[[NodeId, bytes], Awaitable[bool]]:
        async def hear(author: NodeId, payload: bytes) -> bool:
            try:
                message = report.decode(topic, payload)
            except PeerError as error:
                _log.warning("node=%s %s", author, error.message)
                return False
            if author != self._own:
                self._hear(author, message)
            return True

        return hear

    def _hear(self, author: NodeId, message: report.Message) -> None:
        now, wall = time.monotonic(), time.time()
        if self._liveness.state(author) is None:
            return  # it is not a member (any more) by what this node knows
        if isinstance(message, Event):
            self._hear_event(author, message, now)
            if not self._words.has_left(author, message.at):
                self._liveness.heard(author, min(now, now - (wall - message.at)))
        elif isinstance(message, Doubt) and not self._known(NodeId(message.node)):
            self._liveness.heard(author, min(now, now - (wall - message.at)))
        elif self._words.take(author, message, now, wall):
            self._act(author, message, now)

    def _known(self, node: NodeId) -> bool:
        return node == self._own or self._liveness.state(node) is not None

    def _act(self, author: NodeId, word: Word, at: float) -> None:
        """Take a word for what was so at `at` (monotonic s): now, or when it was written."""
        match word:
            case Beat():
                heard = self._of(author)
                before, heard.beat = heard.beat, word
                if (before is not None and before.draining) != word.draining:
                    self._on_draining()
                if word.leaving:
                    self._liveness.departed(author, at)
                    if self._liveness.state(author) is State.GONE:
                        self._on_left(author)
                    return
            case Doubt():
                self._act_on_doubt(NodeId(word.node), at)
            case Models():
                heard = self._of(author)
                said, heard.models = heard.models, word
                if said is None or (said.revision, said.models) != (
                    word.revision,
                    word.models,
                ):
                    self._on_models()
        self._liveness.heard(author, at)

    def _act_on_doubt(self, node: NodeId, at: float) -> None:
        if node != self._own:
            self._doubted[node] = max(at, self._doubted.get(node, at))
            self.doubt(node)
        elif at - self._spoke_up_at > _CHANGE_INTERVAL_S:
            self._spoke_up_at = at
            self._spawn(self._publish(report.HEALTH, self._beat(self._at())))

    def _hear_event(self, author: NodeId, event: Event, now: float) -> None:
        recent = [at for at in self._of(author).events if now - at < 60.0]
        if len(recent) < _EVENTS_PER_MINUTE:
            recent.append(now)
            self.events.add(event.at, self._sources.name_of(author), "mesh", event.kind,
                            event.subject, event.text)  # fmt: skip
        self._of(author).events = recent

    # ---------------------------------------------------------------- inside

    async def _keep_links(self) -> None:
        now = time.monotonic()
        chosen = self._chooser.choose(self._liveness.linkable(now), frozenset(self._linked), now)
        self._chosen = chosen
        self._control.keep_links(
            {node: tuple(self._sources.control_addresses(node)) for node in chosen}
        )

    def _of(self, node: NodeId) -> _Heard:
        return self._heard.setdefault(node, _Heard())

    async def _every(self, interval_s: float, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await do()
            except CoveyError as error:
                _log.warning("presence: %s", error.line())
            await asyncio.sleep(interval_s)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _named(load: Load) -> dict[str, Any]:
    return {name: getattr(load, name) for name in load.__struct_fields__}
