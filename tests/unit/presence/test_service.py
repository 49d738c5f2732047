"""Presence over a gossip of its own: who dies is gone, who speaks is heard, links are kept."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from agent.health import Health, HealthItem
from agent.identity.keys import NodeId
from agent.presence import report, service
from agent.presence.liveness import State
from agent.presence.needs import Sources
from agent.presence.report import Event, Load, Model
from agent.presence.service import Presence

Handler = Callable[[NodeId, bytes], Awaitable[bool]]


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class Hub:
    """Carries what is published to everyone else who is up."""

    def __init__(self) -> None:
        self.controls: dict[NodeId, Control] = {}
        self.dead: set[NodeId] = set()

    async def spread(self, author: NodeId, topic: str, payload: bytes) -> None:
        for other, control in list(self.controls.items()):
            if other not in self.dead and author not in self.dead:
                await control.handlers[topic](author, payload)


class Control:
    """One node's gossip and links, in memory."""

    def __init__(self, hub: Hub, own: NodeId) -> None:
        self.hub, self.own = hub, own
        self.handlers: dict[str, Handler] = {}
        self.wanted: Mapping[NodeId, Sequence[str]] = {}
        self.link: Callable[[NodeId, bool], None] = lambda node, up: None
        hub.controls[own] = self

    async def publish(self, topic: str, payload: bytes) -> None:
        await self.hub.spread(self.own, topic, payload)

    def subscribe(self, topic: str, handler: Handler) -> None:
        self.handlers[topic] = handler

    def keep_links(self, wanted: Mapping[NodeId, Sequence[str]]) -> None:
        self.wanted = wanted

    def on_link(self, callback: Callable[[NodeId, bool], None]) -> None:
        self.link = callback


class Fleet:
    """Several nodes that know each other."""

    def __init__(self, count: int) -> None:
        self.hub = Hub()
        self.nodes = [node(n) for n in range(1, count + 1)]
        self.changes: dict[NodeId, list[tuple[NodeId, State]]] = {n: [] for n in self.nodes}
        self.health = {n: Health() for n in self.nodes}
        self.models: dict[NodeId, list[Model]] = {n: [] for n in self.nodes}
        self.news: Counter[NodeId] = Counter()
        self.draining: set[NodeId] = set()
        self.drains: Counter[NodeId] = Counter()
        self.left: dict[NodeId, list[NodeId]] = {n: [] for n in self.nodes}
        self.presence = {n: self._make(n) for n in self.nodes}

    def _make(self, own: NodeId) -> Presence:
        async def ping(other: NodeId, timeout_s: float) -> float | None:
            await asyncio.sleep(0)
            return None if other in self.hub.dead else 0.002

        sources = Sources(
            load=lambda: Load(1 << 30, 2, 0.5, 0),
            models=lambda: self.models[own],
            name_of=lambda one: f"n{int.from_bytes(one.ed25519, 'big')}",
            control_addresses=lambda one: ("192.0.2.1:4001",),
            draining=lambda: own in self.draining,
        )
        return Presence(
            own, Control(self.hub, own), ping, sources, self.health[own],
            changed=lambda other, state: self.changes[own].append((other, state)),
            models=lambda: self.news.update([own]), left=self.left[own].append,
            draining=lambda: self.drains.update([own]), rng=random.Random(own.ed25519),
        )  # fmt: skip

    def control(self, one: NodeId) -> Control:
        return self.hub.controls[one]

    def kinds(self, one: NodeId) -> list[str]:
        return [entry.kind for entry in self.presence[one].events.after(0)]


@asynccontextmanager
async def fleet(count: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Nodes whose clocks run some thirty times as fast, so that nothing here waits for seconds."""
    for name in ("_TICK_S", "_LINKS_INTERVAL_S", "_CHANGE_INTERVAL_S"):
        monkeypatch.setattr(service, name, getattr(service, name) / 30)
    for name in ("PROBE_INTERVAL_S", "SUSPECT_INTERVAL_S", "SUSPECT_S", "GONE_INTERVAL_S"):
        monkeypatch.setattr(
            f"agent.presence.liveness.{name}", getattr(service_liveness(), name) / 30
        )
    made = Fleet(count)
    for one in made.presence.values():
        one.start()
        one.set_members(made.nodes)
    try:
        yield made
    finally:
        for one in made.presence.values():
            await one.stop()


def service_liveness() -> Any:
    import agent.presence.liveness as module

    return module


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_dead_node_is_gone_everywhere_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(4, monkeypatch) as made:
        first, second, *_ = made.nodes
        await until(lambda: made.presence[first].describe(second)["rtt_ms"] is not None)
        made.hub.dead.add(second)
        await until(lambda: all(
            made.presence[n].describe(second)["presence"] == "gone"
            for n in made.nodes if n != second
        ))  # fmt: skip
        assert second not in made.presence[first].alive()
        assert made.kinds(first)[-2:] == ["member.suspect", "member.gone"]
        assert made.changes[first] == [(second, State.SUSPECT), (second, State.GONE)]
        made.hub.dead.discard(second)
        await until(lambda: second in made.presence[first].alive())


async def test_beats_carry_load_health_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(2, monkeypatch) as made:
        first, second = made.nodes
        await until(lambda: made.presence[first].describe(second)["load"] is not None)
        made.health[second].set(HealthItem("disk", "warning", "t", "x", "y"))
        made.models[second].append(Model("covey-mini", "head", "ready"))
        await until(lambda: made.presence[first].describe(second)["models"] != [])
        seen = made.presence[first].describe(second)
        assert seen["health"] == [{"code": "disk", "severity": "warning"}]
        assert seen["models"] == [{"name": "covey-mini", "part": "head", "phase": "ready"}]
        assert seen["load"]["free_bytes"] == 1 << 30
        await until(lambda: "health.set" in made.kinds(first))


async def test_only_models_that_are_news_have_others_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(2, monkeypatch) as made:
        first, second = made.nodes
        await until(lambda: made.presence[first].describe(second)["load"] is not None)
        before = made.news[first]
        hear = made.control(first).handlers[report.MODELS]
        models, now = (Model("m", "head", "ready"),), time.time() + 1
        for step, (said, looks) in enumerate((
            (report.Models(now, models, 7), 1),
            (report.Models(now + 1, models, 7), 0),  # said again, for who missed it
            (report.Models(now + 2, models, 8), 1),  # its head answers elsewhere
            (report.Models(now + 3, (), 8), 1),
        )):  # fmt: skip
            await hear(second, report.encode(said))
            assert made.news[first] - before == looks, step
            before = made.news[first]


async def test_a_goodbye_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(3, monkeypatch) as made:
        first, second, _ = made.nodes
        await until(lambda: made.presence[first].describe(second)["load"] is not None)
        await made.presence[second].stop()
        assert made.presence[first].describe(second)["presence"] == "gone"


async def test_a_newcomer_that_is_told_old_gossip_sees_nobody_go_and_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.presence.words.HOLD_S", 0.3)
    async with fleet(3, monkeypatch) as made:
        first, second, third = made.nodes
        # Nobody can be asked: there is no path yet, and only gossip tells.
        made.hub.dead |= {second, third}
        hear, now, load = made.control(first).handlers[report.HEALTH], time.time(), Load(1, 1, 0, 0)
        history: list[tuple[NodeId, report.Message]] = [
            (second, report.Beat(now - 20, load, links=7)),
            (second, report.Beat(now - 60, load, leaving=True)),
            (second, report.Beat(now - 90, load)),
            (third, report.Doubt(now - 70, second.ed25519)),
            (third, report.Beat(now - 30, load, leaving=True)),
            (third, report.Beat(now - 31, load)),
        ]
        for author, message in history:
            assert await hear(author, report.encode(message))
        await until(lambda: made.presence[first].describe(third)["presence"] == "gone")
        await asyncio.sleep(0.5)
        assert made.changes[first] == [(third, State.GONE)]
        assert made.left[first] == [third], "the others' goodbyes were before they came back"
        assert "member.suspect" not in made.kinds(first)
        assert made.presence[first].describe(second)["presence"] == "alive"


async def test_links_are_kept_to_the_living_and_a_lost_link_is_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(3, monkeypatch) as made:
        first, second, third = made.nodes
        control = made.control(first)
        await until(lambda: set(control.wanted) == {second, third})
        control.link(second, True)
        assert made.presence[first].links() == [second]
        await until(lambda: made.presence[first].describe(second)["rtt_ms"] is not None)
        made.hub.dead.add(second)
        control.link(second, False)
        await until(lambda: made.presence[first].describe(second)["presence"] == "gone")
        await until(lambda: set(control.wanted) == {third})


async def test_who_drains_is_known_to_all_and_so_is_when_it_does_not_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(3, monkeypatch) as made:
        first, second, third = made.nodes
        others = (made.presence[second], made.presence[third])
        await until(lambda: all(one.describe(first)["load"] for one in others))
        assert made.drains == Counter()
        for on in (True, False):
            made.draining = {first} if on else set()
            made.presence[first].models_changed()
            await until(lambda: all(one.draining() == made.draining for one in others))
            assert [one.describe(first)["draining"] for one in others] == [on, on]
        assert made.drains == {second: 2, third: 2}
        made.draining = {first}
        made.presence[first].models_changed()
        await until(lambda: all(one.draining() for one in others))
        await made.presence[first].stop()
        assert made.presence[second].draining() == {first}, "it still drains once it is back"
        made.presence[second].set_members([second, third])
        assert made.presence[second].draining() == frozenset()


def test_beats_of_before_are_understood_and_understand_those_of_now() -> None:
    """An agent that does not know `draining` understands every beat of one that does not drain."""
    load = Load(1 << 30, 2, 0.5, 1)

    class Before(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="beat"):
        at: float
        load: Load
        items: tuple[report.Item, ...] = ()
        links: int = 0
        software: str = ""
        leaving: bool = False

    item = report.Item("disk", "error")
    for old in (Before(1.5, load), Before(1.5, load, (item,), 3, "1.0", leaving=True)):
        new = report.Beat(old.at, old.load, old.items, old.links, old.software, old.leaving)
        assert report.decode(report.HEALTH, msgspec.msgpack.encode(old)) == new
        assert msgspec.msgpack.decode(report.encode(new), type=Before) == old
    drains = report.Beat(1.5, load, draining=True)
    assert report.decode(report.HEALTH, report.encode(drains)) == drains


async def test_nonsense_and_strangers_are_refused_and_events_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(2, monkeypatch) as made:
        first, second = made.nodes
        hear = made.control(first).handlers
        assert not await hear[report.HEALTH](second, b"\xc1junk")
        beat = report.encode(report.Beat(1.5, Load(1, 1, 0.0, 0)))
        assert not await hear[report.MODELS](second, beat)
        assert await hear[report.HEALTH](node(99), beat)
        assert made.presence[first].describe(node(99))["presence"] == "unknown"
        shout = report.encode(Event(1.0, "deployment.phase", "x", "y"))
        for _ in range(200):
            assert await hear[report.EVENTS](second, shout)
        told = [e for e in made.presence[first].events.after(0) if e.scope == "mesh"]
        assert len(told) == service._EVENTS_PER_MINUTE


async def test_any_datagram_of_a_member_shows_that_it_lives_but_none_after_its_goodbye() -> None:
    made = Fleet(2)
    own, peer = made.nodes
    presence = made.presence[own]
    presence.set_members(made.nodes)
    liveness = presence._liveness
    liveness.doubt(peer, time.monotonic())
    liveness.missed(peer, time.monotonic(), time.monotonic())
    assert liveness.state(peer) is State.SUSPECT
    presence.shown(peer)
    assert liveness.state(peer) is State.ALIVE
    liveness.departed(peer, time.monotonic())
    presence.shown(peer)
    assert liveness.state(peer) is State.GONE, "it came late"
