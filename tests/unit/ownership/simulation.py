"""A mesh of `Ownership` cores on virtual time, with everything that can go wrong on the way.

Messages are lost, delayed, doubled and overtaken; nodes crash, start again, and lose nothing but
what they kept in memory; links break in one direction or both; each node's clock has its own rate.
Presence is late. A simple executor commands the heads as the real one does, over a channel of its
own that delays commands for up to a second, and heads pass the tokens on to a stage host.

`Sim.run` checks after every event that nobody shares a lease, that epochs at a grantor grow, and
that no stage host obeys an older token after a newer one of the same ring. `troubled` makes a whole
random story out of a seed. More stories than a test run has time for:

    python tests/unit/ownership/simulation.py FIRST LAST
"""

import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.identity.keys import NodeId
from agent.ownership import messages, rendezvous
from agent.ownership.fence import Fence
from agent.ownership.lease import Token
from agent.ownership.messages import Report
from agent.ownership.owner import Holding, Ownership, Phase, Send, Want

EPOCH_BLOCK = 1000
BUILD_S = 0.4
COMMAND_INTERVAL_S = 0.3
# How long presence takes to see that a member is gone, and that it is back.
GONE_S, BACK_S = 4.0, 0.5


def node_id(number: int) -> NodeId:
    return NodeId(bytes([number + 1]) * 32)


@dataclass(frozen=True)
class Weather:
    """What the network does to beats: share lost and doubled, delay from … to in seconds."""

    loss: float = 0.0
    double: float = 0.0
    delay: tuple[float, float] = (0.0005, 0.005)


@dataclass
class Node:
    """One simulated worker: its clock, its disk, and what runs on it."""

    id: NodeId
    offset: float
    rate: float
    floor: int = 0
    core: Ownership | None = None
    running: dict[str, Report] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    commanded: dict[str, float] = field(default_factory=dict)
    life: int = 0
    revision: int = 0
    fence: Fence = field(default_factory=Fence)
    draining: set[NodeId] = field(default_factory=set)  # of whom it is known here
    obeyed: dict[str, int] = field(default_factory=dict)
    granted: list[int] = field(default_factory=list)


class Sim:
    """`count` workers and the deployments `wants`; drive it with `run`, break it with the rest."""

    def __init__(
        self, count: int, wants: list[Want], seed: int, weather: Weather = Weather(),
        drift: float = 0.03,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.now = 0.0
        self.weather = weather
        self.wants = {want.name: want for want in wants}
        self.nodes = {
            node_id(i): Node(
                node_id(i), self.rng.uniform(10, 1e6), 1 + self.rng.uniform(-drift, drift)
            )
            for i in range(count)
        }
        self.draining: set[NodeId] = set()
        self.blocked: set[tuple[NodeId, NodeId]] = set()
        self.unreachable_since: dict[tuple[NodeId, NodeId], float] = {}
        self.reachable_since: dict[tuple[NodeId, NodeId], float] = {}
        self.sent = 0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        for node in self.nodes.values():
            self.start(node.id)

    # ------------------------------------------------------------------ what can be done to it

    def run(self, seconds: float) -> None:
        """Let time pass, checking the invariants after each event."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, event = heapq.heappop(self._queue)
            event()
            self.events += 1
            self.check()
        self.now = until

    def start(self, node: NodeId) -> None:
        """Start an agent; it finds its stored epochs and nothing else."""
        n = self.nodes[node]
        limit = n.floor + EPOCH_BLOCK
        n.core = Ownership(node, self.clock(n), floor=n.floor, limit=limit)
        n.floor = limit
        n.running, n.tokens, n.commanded, n.fence = {}, {}, {}, Fence()
        n.obeyed = {}
        n.life += 1
        self.at(self.rng.uniform(0, 0.1), self._tick, n, n.life)
        self.at(self.rng.uniform(0, 0.1), self._execute, n, n.life)

    def crash(self, node: NodeId, hinted: float = 0.0) -> None:
        """Kill an agent; each other one gets a hint at once with the probability `hinted`."""
        self.nodes[node].core = None
        for other in self.nodes.values():
            if other.id != node and self.rng.random() < hinted:
                self.at(self.rng.uniform(0.001, 0.05), self._suspect, other, node)

    def block(self, one: NodeId, other: NodeId, *, both: bool = True) -> None:
        """Break the way from `one` to `other`."""
        self.blocked.add((one, other))
        if both:
            self.blocked.add((other, one))

    def split(self, side: set[NodeId]) -> None:
        """Break all ways between `side` and the others."""
        for one in side:
            for other in self.nodes.keys() - side:
                self.block(one, other)

    def start_dead(self) -> None:
        """Start whoever does not run."""
        for node in self.nodes.values():
            if node.core is None:
                self.start(node.id)

    def hint(self, one: NodeId, other: NodeId) -> None:
        """Tell `one` that `other` may have died."""
        self._suspect(self.nodes[one], other)

    def drain(self, node: NodeId, *, on: bool = True) -> None:
        """Have a node drain, or not any more; the others hear of it within two seconds."""
        (self.draining.add if on else self.draining.discard)(node)
        for other in self.nodes.values():
            delay = 0.0 if other.id == node else self.rng.uniform(0.0, 2.0)
            self.at(delay, self._hear_draining, other, node)

    def _hear_draining(self, n: Node, node: NodeId) -> None:
        (n.draining.add if node in self.draining else n.draining.discard)(node)

    def heal(self) -> None:
        """Mend all ways."""
        self.blocked.clear()

    # ------------------------------------------------------------------ what can be asked

    def alive(self) -> list[NodeId]:
        return [n.id for n in self.nodes.values() if n.core is not None]

    def owned(self, node: NodeId) -> dict[str, tuple[Holding, ...]]:
        n = self.nodes[node]
        return n.core.owned(self.clock(n)) if n.core else {}

    def owners(self, name: str) -> list[NodeId]:
        """Return the nodes that hold any lease for a deployment."""
        return [node for node in self.nodes if name in self.owned(node)]

    def first(self, name: str) -> NodeId:
        order = rendezvous.order(name, self.alive())
        return min(order, key=lambda node: node in self.draining)

    def heads(self, name: str) -> list[NodeId]:
        """Return where a deployment runs."""
        return [n.id for n in self.nodes.values() if n.core is not None and name in n.running]

    def settle(self, condition: Callable[[], bool], within_s: float) -> float:
        """Run until `condition` holds; returns how long that took, fails when it takes longer."""
        began = self.now
        while not condition():
            assert self.now - began < within_s, self.picture()
            self.run(0.01)
        return self.now - began

    def picture(self) -> str:
        lines = [f"at {self.now:.2f} s, alive {[n.short for n in self.alive()]}"]
        for name in self.wants:
            lines.append(f"  {name}: first …{self.first(name).short}")
            for n in self.nodes.values():
                if n.core is not None:
                    view = n.core.view(name, self.clock(n))
                    runs = n.running.get(name)
                    head = view.head.short if view.head else None
                    epoch = view.token.epoch if view.token else None
                    owner = view.owner.short if view.owner else None
                    lines.append(f"    …{n.id.short} {runs=} {owner=} {head=} {epoch=}")
                    lines.append(f"      owns {self.owned(n.id).get(name)}")
        return "\n".join(lines)

    def check(self) -> None:
        """No two nodes hold a valid lease at the same head for the same deployment."""
        seen: dict[tuple[str, NodeId], NodeId] = {}
        for n in self.nodes.values():
            if n.core is None:
                continue
            for name, holdings in n.core.owned(self.clock(n)).items():
                for holding in holdings:
                    other = seen.setdefault((name, holding.head), n.id)
                    assert other == n.id, f"two hold the lease of {name}\n{self.picture()}"
                    head = self.nodes[holding.head]
                    if head.core is not None and head.core.leases.admits(name, holding.token):
                        continue
                    # By the grantor's clock as well: a later grant must not exist yet.
                    if head.core is not None:
                        later = head.core.leases.holder(name, self.clock(head))
                        assert later is None, f"{name} was granted twice\n{self.picture()}"

    def clock(self, node: Node) -> float:
        return node.offset + self.now * node.rate

    # ------------------------------------------------------------------ how it goes on

    def at(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        event = (self.now + delay, next(self._numbers), lambda: call(*arguments))
        heapq.heappush(self._queue, event)

    def reaches(self, one: NodeId, other: NodeId) -> bool:
        """Say whether what `one` sends arrives at `other`."""
        return (
            self.nodes[one].core is not None and self.nodes[other].core is not None
            and (one, other) not in self.blocked
        )  # fmt: skip

    def live(self, viewer: NodeId) -> set[NodeId]:
        """Return who is there by the viewer's presence, which is late both ways."""
        found = {viewer}
        for other in self.nodes:
            pair = (viewer, other)
            if other == viewer:
                continue
            # Presence asks and needs the answer: both ways.
            if self.reaches(viewer, other) and self.reaches(other, viewer):
                self.unreachable_since.pop(pair, None)
                if self.now - self.reachable_since.setdefault(pair, self.now) >= BACK_S:
                    found.add(other)
            else:
                was = self.reachable_since.pop(pair, None) is not None
                since = self.unreachable_since.setdefault(pair, self.now)
                if self.now - since < GONE_S and (was or since < self.now):
                    found.add(other)
        return found

    def _tick(self, n: Node, life: int) -> None:
        if n.core is None or n.life != life:
            return
        now = self.clock(n)
        self._send(n, n.core.tick(now, self.live(n.id), self.wants, n.running, n.draining))
        self.at(min(max(0.001, (n.core.wake - now) / n.rate), 0.5), self._tick, n, life)

    def _suspect(self, n: Node, node: NodeId) -> None:
        if n.core is not None:
            n.core.suspect(node, self.clock(n))
            now = self.clock(n)
            self._send(n, n.core.tick(now, self.live(n.id), self.wants, n.running, n.draining))

    def _send(self, n: Node, sends: list[Send]) -> None:
        assert n.core is not None
        if n.core.leases.highest > (n.granted[-1] if n.granted else 0):
            n.granted.append(n.core.leases.highest)
        else:
            assert not n.granted or n.core.leases.highest <= n.granted[-1]
        for send in sends:
            assert send.to != n.id
            for datagram in messages.encode(send.items):
                self.sent += 1
                copies = 1 + (self.rng.random() < self.weather.double)
                for _ in range(copies):
                    if self.rng.random() >= self.weather.loss:
                        delay = self.rng.uniform(*self.weather.delay)
                        self.at(delay, self._arrive, n.id, send.to, datagram)

    def _arrive(self, sender: NodeId, to: NodeId, datagram: bytes) -> None:
        n = self.nodes[to]
        if n.core is None or (sender, to) in self.blocked:
            return
        items = messages.decode(datagram)
        wake = n.core.wake
        self._send(n, n.core.on_message(sender, items, self.clock(n)))
        if n.core.wake < wake:
            self.at(max(0.0, (n.core.wake - self.clock(n)) / n.rate), self._tick_once, n, n.life)

    def _tick_once(self, n: Node, life: int) -> None:
        if n.core is not None and n.life == life:
            now = self.clock(n)
            self._send(n, n.core.tick(now, self.live(n.id), self.wants, n.running, n.draining))

    # ------------------------------------------------------------------ executor and heads

    def _execute(self, n: Node, life: int) -> None:
        """Command what is owned: keep at the head that is meant, drop everywhere else."""
        if n.core is None or n.life != life:
            return
        for name, holdings in self.owned(n.id).items():
            answers = any(h.main and h.report.phase == Phase.READY for h in holdings)
            for holding in holdings:
                if holding.main and holding.report.phase == Phase.NONE and not holding.sure:
                    continue
                if not holding.main and holding.report.phase == Phase.READY and not answers:
                    continue
                # Keep is said again and again here, so that old ones are always on their way.
                command = self._keep if holding.main else self._drop
                delay = self.rng.uniform(0.0, 1.0) if n.id != holding.head else 0.0
                self.at(delay, self._deliver, command, n.id, holding.head, name, holding.token)
        for name in list(n.running):
            if name not in self.wants or self.wants[name].removed:
                self._end(n, name)
        self.at(COMMAND_INTERVAL_S, self._execute, n, life)

    def _deliver(
        self, command: Callable[[Node, str, Token], None], sender: NodeId, head: NodeId, name: str,
        token: Token,
    ) -> None:  # fmt: skip
        n = self.nodes[head]
        if self.reaches(sender, head) and n.core and n.core.leases.admits(name, token):
            command(n, name, token)

    def _keep(self, n: Node, name: str, token: Token) -> None:
        removed = name not in self.wants or self.wants[name].removed
        if removed:
            return
        n.tokens[name] = token
        if name not in n.running:
            self._report(n, name, Phase.BUILDING)
            self.at(BUILD_S, self._built, n, n.life, name)
        self._command_stage(n, name, token)

    def _drop(self, n: Node, name: str, token: Token) -> None:
        if name in n.running:
            self._end(n, name)
            self._command_stage(n, name, token)

    def _end(self, n: Node, name: str) -> None:
        del n.running[name]
        n.tokens.pop(name, None)

    def _built(self, n: Node, life: int, name: str) -> None:
        if n.core is not None and n.life == life and name in n.running:
            self._report(n, name, Phase.READY)

    def _report(self, n: Node, name: str, phase: Phase) -> None:
        n.revision += 1
        n.running[name] = Report(phase, n.revision)

    def _command_stage(self, n: Node, name: str, token: Token) -> None:
        """A command of the head to a stage host, which may come late and out of order."""
        host = self.rng.choice(list(self.nodes.values()))
        self.at(self.rng.uniform(0.0, 2.0), self._stage, host, host.life, f"{name}@{n.id}", token)

    def _stage(self, host: Node, life: int, ring: str, token: Token) -> None:
        if host.core is None or host.life != life:
            return
        if host.fence.admit(ring, token, self.clock(host)):
            assert token.epoch >= host.obeyed.get(ring, 0), f"{ring} obeyed an older token"
            host.obeyed[ring] = token.epoch


def calm(sim: Sim) -> None:
    """Fail unless each deployment has one owner, the first, and runs once, at a head it holds."""
    for name, want in sim.wants.items():
        if want.only is not None and want.only not in sim.alive():
            assert sim.owners(name) == [], sim.picture()
            continue
        first = sim.first(name)
        if want.only in sim.draining or sim.draining >= set(sim.alive()):
            # Whether it runs depends on what ran before; who owns it does not.
            assert sim.owners(name) in ([], [first]), sim.picture()
            continue
        assert sim.owners(name) == [first], sim.picture()
        (holding,) = sim.owned(first)[name]
        assert sim.heads(name) == [holding.head], sim.picture()
        assert holding.main
        assert holding.report.phase == Phase.READY, sim.picture()
        assert holding.head not in sim.draining, sim.picture()


def troubled(seed: int, quiet_s: float = 12.0) -> Sim:
    """Return a mesh after a random story of crashes, splits and bad weather, and some quiet."""
    rng = random.Random(seed)
    count = rng.randint(2, 6)
    weather = rng.choice([
        Weather(),
        Weather(0.1, 0.1, (0.001, 0.2)),
        Weather(0.3, 0.3, (0.001, 1.0)),
        Weather(0.05, 0.2, (0.0, 3.0)),
    ])  # fmt: skip
    wants = [
        Want(f"m{i}", rng.choice([None, node_id(0)]), rng.choice([None, None, node_id(1)]))
        for i in range(rng.randint(1, 3))
    ]
    sim = Sim(count, wants, seed, weather)
    sim.run(rng.uniform(0, 6))
    for _ in range(rng.randint(1, 10)):
        nodes = list(sim.nodes)
        match rng.randrange(8):
            case 0 if len(sim.alive()) > 1:
                sim.crash(rng.choice(sim.alive()), rng.choice([0.0, 0.5, 1.0]))
            case 1:
                sim.start_dead()
            case 2:
                sim.split(set(rng.sample(nodes, rng.randint(1, count - 1))))
            case 3:
                sim.heal()
            case 4:
                sim.block(*rng.sample(nodes, 2), both=rng.random() < 0.4)
            case 5:
                sim.hint(*rng.sample(nodes, 2))
            case 6:
                one = rng.choice(sim.alive())
                sim.crash(one, 0.5)
                sim.run(rng.uniform(0, 0.3))
                sim.start(one)
            case 7:
                sim.drain(rng.choice(nodes), on=rng.random() < 0.7)
        sim.run(rng.expovariate(1 / 1.5))
    sim.heal()
    sim.weather = Weather()
    if rng.random() < 0.5:
        sim.start_dead()
    sim.run(quiet_s)
    return sim


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            calm(troubled(number))
        except AssertionError as error:
            print(f"seed {number}: {error}")
