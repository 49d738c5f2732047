"""Two machines somewhere on the simulated network, found to each other, and what has to hold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agent.paths.candidates import PathClass

from .network import Node, Site, Town, World, path

KINDS = ("public", "easy", "easy_address", "hard", "mapped", "double", "blocked")
LAN = "lan"  # behind the same router as the other one, which has no hairpin
# A burst at 16 places and its repetition, keepalives; birthday probing has 200 a second by itself.
PROBES_PER_S = 130
BIRTHDAY_PER_S = 200 + 5
SIGNALS_PER_S = 6


@dataclass
class Found:
    """What came of it: seconds until the first packet came back, and until the path was direct."""

    first_s: float | None
    direct_s: float | None
    classes: tuple[PathClass | None, PathClass | None]


class Duet:
    """Two machines, of which `starter` wants the other."""

    def __init__(
        self, world: World, kind_a: str, kind_b: str, *, starts_b: bool = False, relays: int = 2,
        race: bool = False, leads: bool = True,
    ) -> None:  # fmt: skip
        """`leads`: the starter has the lower id."""
        self.world = world
        self.town = Town(world, relays=relays)
        name = 2 if starts_b == leads else 1
        self.a: Site = self.town.site(kind_a, name, race=race)
        name = 3 - name
        if kind_b == LAN:
            self.b = self.town.lan(name, self.a)
        else:
            self.b = self.town.site(kind_b, name, race=race)
        self.starter, self.other = (
            (self.b.node, self.a.node) if starts_b else (self.a.node, self.b.node)
        )
        self.at = world.now

    def settle(self) -> None:
        """Let the engines learn about their NATs."""
        self.world.run(2.5)

    def start(self, *, both: bool = False) -> None:
        """Have the starter want the other, and traffic between them."""
        self.at = self.world.now
        self.starter.engine.want(self.other.id, self.world.now)
        self.starter.act()
        if both:
            self.other.engine.want(self.starter.id, self.world.now)
            self.other.act()
        self.world.traffic(self.starter, self.other)

    def carries(self) -> bool:
        """Say whether a packet went there and back."""
        return self.last_echo() is not None

    def last_echo(self) -> float | None:
        wire = self.starter.wires.get(self.other.id)
        return wire.echoes[-1] if wire is not None and wire.echoes else None

    def direct(self) -> bool:
        """Say whether both sides are direct."""
        return all(found is not None and found is not PathClass.RELAYED for found in self.classes())

    def direct_or_relayed(self) -> bool:
        """Say whether both sides have a path."""
        return None not in self.classes()

    def classes(self) -> tuple[PathClass | None, PathClass | None]:
        return path(self.starter, self.other), path(self.other, self.starter)

    def measure(self, for_s: float = 8.0, first_s: float = 4.0) -> Found:
        """Return how it goes from `start` on."""
        self.world.run(first_s, until=self.carries)
        echo = self.last_echo()
        first = echo - self.at if echo is not None else None
        left = self.at + for_s - self.world.now
        self.world.run(max(0.0, left), until=self.direct)
        direct = self.world.now - self.at if self.direct() else None
        return Found(first, direct, self.classes())

    def gap(self, break_it: Callable[[], None], for_s: float = 8.0) -> float:
        """Break something; return the longest time without an echo in the `for_s` after it."""
        begin = self.world.now
        break_it()
        self.world.run(for_s)
        echoes = [at for at in self.starter.wires[self.other.id].echoes if at >= begin]
        times = [begin, *echoes, self.world.now]
        return max(b - a for a, b in itertools.pairwise(times))


def check(*nodes: Node) -> None:
    """Check what holds always: proved endpoints, bounded output."""
    for node in nodes:
        relays = {host for n in node.world.nodes.values() for host in [n.host]}
        for peer, wire in node.wires.items():
            for _, place, relay in wire.set_places:
                is_relay = relay is not None and (place[0] in relays or place[0] == "127.0.0.1")
                assert is_relay or (peer, place) in node.answered, (place, relay)
        for (peer, second), count in node.probes.items():
            limit = PROBES_PER_S + BIRTHDAY_PER_S
            assert count <= limit, f"{count} probes to {peer.short} in second {second}"
        seconds = Counter[int]()
        for (_, second), count in node.probes.items():
            seconds[second] += count
        age = node.world.now - 1000.0
        for peer, count in node.signals.items():
            assert count <= SIGNALS_PER_S * age + 8, f"{count} signals to {peer.short}"
