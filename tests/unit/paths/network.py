"""A network that is simulated: realms, NATs, links, relays, and engines on it, under virtual time.

    Realm       a set of addresses that reach each other, and a gateway to the outside
    Nat         a gateway; its kinds are those of nftables and of real routers
    Node        a machine with a path engine and a model of WireGuard
    World       time, links (delay, loss, order, doubles), the control plane, relays

It is not for measuring: what a kernel does is tests/lab's to show.
"""

from __future__ import annotations

import enum
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface

from agent.identity.keys import NodeId
from agent.paths import outputs as out
from agent.paths.candidates import PathClass, Surroundings
from agent.paths.engine import PathEngine
from agent.paths.messages import Ping, Place, Probe, RelayOffer, pack
from agent.paths.own import RelayNode, Rendezvous

WG = 51820
UNSOLICITED_S = 30.0


class Filter(enum.Enum):
    """What a NAT lets in to a mapping."""

    ADDRESS_AND_PORT = enum.auto()
    ADDRESS = enum.auto()


@dataclass
class Data:
    """A WireGuard packet: `kind` is init, response or data; `number` for echoes."""

    kind: str
    sender: NodeId
    number: int = 0
    echo: bool = False


Payload = Probe | Data


class Firewall:
    """A stateful IPv6 firewall before one machine: nothing comes in that was not asked for."""

    def __init__(self, node: Node, host: str) -> None:
        self.node = node
        self.host = host
        self._asked: dict[Place, float] = {}
        node.world.internet6.hosts[host] = self

    def send(self, port: int, to: Place, payload: Payload) -> None:
        self._asked[to] = self.node.world.now
        self.node.world.internet6.send((self.host, port), to, self.node.id, payload)

    def receive(self, source: Place, to: Place, sender: NodeId, payload: Payload) -> None:
        if self.node.world.now - self._asked.get(source, float("-inf")) <= 30.0:
            self.node.receive(source, to, sender, payload)


class Realm:
    """Addresses that reach each other; `gateway` takes what goes elsewhere."""

    def __init__(self, world: World, gateway: Nat | None = None) -> None:
        self.world = world
        self.gateway = gateway
        self.hosts: dict[str, Node | Nat | Firewall] = {}

    def send(self, source: Place, to: Place, sender: NodeId, payload: Payload) -> None:
        at = self.hosts.get(to[0])
        if at is not None:
            self.world.carry(lambda: at.receive(source, to, sender, payload))
        elif self.gateway is not None:
            self.gateway.outbound(source, to, sender, payload)


@dataclass
class _Mapping:
    inside: Place
    port: int
    used_at: float
    remotes: dict[Place, float] = field(default_factory=dict)


class Nat:
    """A router between an inner realm and an outer one.

    `hard`: a mapping for each destination. `race`: like Linux, what came in unasked from a place
    makes our own later packet to it leave from another port. `drops_udp`: a strict firewall.
    """

    def __init__(
        self,
        outer: Realm,
        address: str,
        *,
        hard: bool = False,
        admits: Filter = Filter.ADDRESS_AND_PORT,
        race: bool = False,
        hairpin: bool = False,
        drops_udp: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        self.world = outer.world
        self.outer = outer
        self.address = address
        self.hard = hard
        self.admits = admits
        self.race = race
        self.hairpin = hairpin
        self.drops_udp = drops_udp
        self.timeout_s = timeout_s
        self.inner = Realm(self.world, self)
        self._by_key: dict[tuple[Place, Place | None], _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}
        self._unsolicited: dict[tuple[int, Place], float] = {}
        self.forwards: dict[int, Place] = {}
        outer.hosts[address] = self

    def forget(self) -> None:
        """Restart: all mappings are lost, new ones get other ports."""
        self._by_key.clear()
        self._by_port.clear()

    def outbound(self, source: Place, to: Place, sender: NodeId, payload: Payload) -> None:
        if self.drops_udp or (to[0] == self.address and not self.hairpin):
            return
        if self.outer.gateway is None and to[0].startswith(("192.168.", "10.")):
            return  # no route for private addresses on the internet
        for port, inside in self.forwards.items():
            if inside == source:
                self.outer.send((self.address, port), to, sender, payload)
                return
        mapping = self._mapping(source, to)
        mapping.used_at = self.world.now
        mapping.remotes[to] = self.world.now
        self.outer.send((self.address, mapping.port), to, sender, payload)

    def receive(self, source: Place, to: Place, sender: NodeId, payload: Payload) -> None:
        inside = self.forwards.get(to[1])
        if inside is not None and not self.drops_udp:
            self.inner.send(source, inside, sender, payload)
            return
        mapping = self._by_port.get(to[1])
        if mapping is None or self.drops_udp or self._stale(mapping):
            return
        now = self.world.now
        fresh = [p for p, at in mapping.remotes.items() if now - at <= self.timeout_s]
        if self.admits is Filter.ADDRESS:
            admitted = source[0] in {host for host, _ in fresh}
        else:
            admitted = source in fresh
        if admitted:
            mapping.used_at = now
            if source in mapping.remotes:
                mapping.remotes[source] = now
            self.inner.send(source, mapping.inside, sender, payload)
        elif self.race:
            self._unsolicited[to[1], source] = now

    def _stale(self, mapping: _Mapping) -> bool:
        return self.world.now - mapping.used_at > self.timeout_s

    def _mapping(self, source: Place, to: Place) -> _Mapping:
        key = (source, to if self.hard else None)
        mapping = self._by_key.get(key)
        if mapping is not None and not self._stale(mapping):
            if not (self.race and self._raced(mapping.port, to)):
                return mapping
            key = (source, to)
            mapping = self._by_key.get(key)
            if mapping is not None and not self._stale(mapping):
                return mapping
        elif (raced := self._by_key.get((source, to))) is not None and not self._stale(raced):
            return raced
        port = source[1]
        if self.hard or port in self._by_port or key[1] is not None:
            while port in self._by_port or port == source[1]:
                port = self.world.rng.randrange(1024, 65536)
        mapping = self._by_key[key] = self._by_port[port] = _Mapping(source, port, self.world.now)
        return mapping

    def _raced(self, port: int, to: Place) -> bool:
        at = self._unsolicited.get((port, to))
        if at is None:
            return False
        if self.world.now - at > UNSOLICITED_S:
            del self._unsolicited[port, to]
            return False
        return True


class _Allocation:
    """A pair of places on a relay, which learns who is behind each from what comes in."""

    def __init__(self, relay: Node, ports: tuple[int, int]) -> None:
        self.relay = relay
        self.ports = ports
        self.behind: dict[int, Place] = {}
        self.tunnels: dict[int, Node] = {}

    def receive(self, source: Place, port: int, sender: NodeId, payload: Payload) -> None:
        if self.relay.dead:
            return
        self.behind[port] = source
        self.pass_on(port, sender, payload)

    def pass_on(self, port: int, sender: NodeId, payload: Payload) -> None:
        other = self.ports[1] if port == self.ports[0] else self.ports[0]
        tunnel = self.tunnels.get(other)
        if tunnel is not None:
            place = ("127.0.0.1", other)
            self.relay.world.later(
                0.03, lambda: tunnel.receive(place, ("127.0.0.1", WG), sender, payload)
            )
        elif other in self.behind:
            realm, host = self.relay.realm, self.relay.host
            realm.send((host, other), self.behind[other], sender, payload)


class Wire:
    """One peer in WireGuard: endpoint, counters, and the state of the handshake.

    `initiated`: ours is out, and an answer to it counts; one of the peer's takes its place, so that
    of two which cross neither is completed. They are repeated after 5 s only. `staged`: a packet
    waits for a session.
    """

    def __init__(self) -> None:
        self.endpoint: Place | None = None
        self.relay: NodeId | None = None
        self.set_places: list[tuple[float, Place, NodeId | None]] = []
        self.session = self.initiated = self.staged = False
        self.init_at = float("-inf")
        self.rx = self.tx = 0
        self.echoes: list[float] = []
        self.sent_numbers: dict[int, float] = {}


class Node:
    """A machine with an address in a realm, an engine, and WireGuard."""

    def __init__(self, world: World, name: int, realm: Realm, host: str, prefix: int = 24) -> None:
        self.world = world
        self.id = NodeId(name.to_bytes(32, "big"))
        self.engine = PathEngine(self.id, random.Random(world.rng.random()), epoch=world.epoch())
        self.wires: dict[NodeId, Wire] = {}
        self.dead = False
        self.probes = Counter[tuple[NodeId, int]]()
        self.signals = Counter[NodeId]()
        self.answered: set[tuple[NodeId, Place]] = set()
        self.changes: list[tuple[float, out.PathChanged]] = []
        self.renewals: list[float] = []
        self.snat: dict[Place, int] = {}
        self.birthday: dict[int, NodeId] = {}
        self.allocations: dict[int, _Allocation] = {}
        self.pairs: dict[tuple[NodeId, NodeId], _Allocation] = {}
        self.tunnels: dict[int, tuple[_Allocation, int]] = {}
        self.holds: dict[Place, Place] = {}
        self.tunnel_peers: dict[int, NodeId] = {}
        self.mtus: dict[NodeId, int] = {}
        self.pinged: dict[int, tuple[NodeId, Place]] = {}
        self.mapped: tuple[Place, ...] = ()
        self.ipv6: Firewall | None = None
        self.place(realm, host, prefix)
        world.nodes[self.id] = self

    def place(self, realm: Realm, host: str, prefix: int = 24) -> None:
        """Move to an address."""
        old = getattr(self, "realm", None)
        if old is not None:
            old.hosts.pop(self.host, None)
        self.realm, self.host, self.prefix = realm, host, prefix
        realm.hosts[host] = self

    # Out.

    def send(self, port: int, to: Place, payload: Payload) -> None:
        if self.dead:
            return
        if to[0] == "127.0.0.1":
            tunnel = self.tunnels.get(to[1])
            if tunnel is not None:
                allocation, leg = tunnel
                sender = self.id
                if not allocation.relay.dead:
                    self.world.later(0.03, lambda: allocation.pass_on(leg, sender, payload))
            return
        if ":" in to[0]:
            if self.ipv6 is not None:
                self.ipv6.send(port, to, payload)
            return
        if port == WG:
            port = self.snat.get(to, WG)
        self.realm.send((self.host, port), to, self.id, payload)

    def act(self) -> None:
        """Do what the engine wants; WireGuard takes in a peer at once."""
        self.engine.ready(self.engine.peers(), self.world.now)
        for output in self.engine.take():
            self._do(output)
        self.world.wake(self)

    def _do(self, output: out.Output) -> None:
        world, peer = self.world, output.peer
        match output:
            case out.SendProbe(place=place, probe=probe, local_port=local_port):
                self.probes[peer, int(world.now)] += 1
                if isinstance(probe, Ping):
                    self.pinged[probe.token] = (peer, place)
                self.send(local_port or WG, place, probe)
            case out.SendSignal(signal=signal):
                self.signals[peer] += 1
                world.signal(self.id, peer, signal)
            case out.SetEndpoint(place=place, relay=relay):
                wire = self.wires.setdefault(peer, Wire())
                first = wire.endpoint is None
                wire.endpoint, wire.relay = place, relay
                wire.set_places.append((world.now, place, relay))
                # The lower id alone keeps the session up, and so begins it.
                if first and not wire.session and (self.id < peer or wire.staged):
                    self.handshake(peer)
            case out.RenewSession():
                wire = self.wires.setdefault(peer, Wire())
                wire.session = wire.initiated = False
                wire.init_at = float("-inf")
                self.renewals.append(world.now)
                self.handshake(peer)
            case out.OpenRelay(relay=relay, tunnel=tunnel, ticket=ticket):
                world.later(0.05, lambda: self._open(peer, relay, tunnel, ticket))
            case out.HoldEndpoint(old=old, new=new):
                assert old not in self.holds
                self.holds[old] = new
            case out.ReleaseEndpoint(old=old):
                del self.holds[old]
            case out.CloseRelay(relay=relay):
                self._close(peer, relay)
            case out.StartBirthday(place=place, sockets=sockets):
                ports = world.rng.sample(range(20000, 60000), sockets)
                self.birthday.update(dict.fromkeys(ports, peer))
                for port in ports:
                    self.send(port, place, Ping(0, answer=False))
            case out.StopBirthday():
                self.birthday = {p: n for p, n in self.birthday.items() if n != peer}
            case out.AddSnat(place=place, local_port=local_port):
                self.snat[place] = local_port
            case out.RemoveSnat(place=place):
                self.snat.pop(place, None)
            case out.MtuFound(mtu=mtu):
                self.mtus[peer] = mtu
            case out.PathChanged():
                self.changes.append((world.now, output))

    def _close(self, peer: NodeId, relay: NodeId) -> None:
        gone = [p for p, (a, _) in self.tunnels.items() if a.relay.id == relay]
        for port in gone:
            if self.tunnel_peers.get(port) == peer:
                self.tunnels.pop(port)[0].tunnels.pop(port, None)

    def _open(self, peer: NodeId, relay: NodeId, tunnel: bool, ticket: bytes | None) -> None:
        self._close(peer, relay)
        at = self.world.nodes[relay]
        if at.dead:
            self.engine.relay_failed(peer, relay, self.world.now)
            self.act()
            return
        if ticket is None:
            # Whoever of a pair asks first: both get the same allocation, each its own side.
            first, second = sorted((self.id, peer))
            allocation = at.pairs.get((first, second))
            if allocation is None:
                rng = self.world.rng
                ports = (rng.randrange(10000, 20000) * 2, rng.randrange(10000, 20000) * 2 + 1)
                allocation = at.pairs[first, second] = _Allocation(at, ports)
                at.allocations.update({ports[0]: allocation, ports[1]: allocation})
            mine, theirs = allocation.ports if self.id == first else allocation.ports[::-1]
            offer = RelayOffer(relay.ed25519, pack((at.host, theirs)), theirs.to_bytes(4, "big"))
        else:
            mine = int.from_bytes(ticket, "big")
            if mine not in at.allocations:  # the relay was restarted since
                self.engine.relay_failed(peer, relay, self.world.now)
                self.act()
                return
            allocation, offer = at.allocations[mine], None
        place = (at.host, mine)
        if tunnel:
            self.tunnels[mine] = (allocation, mine)
            self.tunnel_peers[mine] = peer
            allocation.tunnels[mine] = self
            place = ("127.0.0.1", mine)
        self.engine.relay_opened(peer, relay, place, offer, self.world.now)
        self.act()

    # In.

    def receive(self, source: Place, to: Place, sender: NodeId, payload: Payload) -> None:
        now, port = self.world.now, to[1]
        if self.dead:
            return
        allocation = self.allocations.get(port)
        if allocation is not None:
            allocation.receive(source, port, sender, payload)
            return
        if port in self.snat.values() and self.snat.get(source) == port:
            port = WG
        if isinstance(payload, Data):
            if port == WG:
                self._data(self.holds.get(source, source), payload)
            return
        if port not in (WG, WG + 1) and port not in self.birthday:
            return
        token = getattr(payload, "token", -1)
        if self.pinged.get(token) == (sender, source) and not isinstance(payload, Ping):
            self.answered.add((sender, source))
        self.engine.probe_received(sender, source, payload, now, 0 if port == WG else port)
        self.act()

    # WireGuard.

    def handshake(self, peer: NodeId) -> None:
        """Send an initiation unless one went in the last 5 s."""
        wire = self.wires.get(peer)
        if wire is None or wire.endpoint is None or self.world.now - wire.init_at < 5.0:
            return
        wire.init_at, wire.initiated = self.world.now, True
        self.send(WG, wire.endpoint, Data("init", self.id))

    def data(self, peer: NodeId, number: int, *, echo: bool = False) -> None:
        """Send a packet through the tunnel, or an initiation when there is no session."""
        wire = self.wires.setdefault(peer, Wire())
        if self.world.handshakes and not wire.session:
            wire.staged = True
            self.handshake(peer)
        if wire.endpoint is None or (self.world.handshakes and not wire.session):
            return
        wire.tx += 1000
        if not echo:
            wire.sent_numbers[number] = self.world.now
        self.send(WG, wire.endpoint, Data("data", self.id, number, echo))

    def _data(self, source: Place, packet: Data) -> None:
        peer = packet.sender
        known = peer in self.wires or peer in self.engine.peers()
        if not known:
            return
        wire = self.wires.setdefault(peer, Wire())
        wire.endpoint = source  # WireGuard roams
        wire.rx += 1000
        match packet.kind:
            case "init":
                wire.initiated = False
                self.send(WG, source, Data("response", self.id))
            case "response":
                if not wire.initiated:
                    return  # WireGuard calls it invalid
                wire.session, wire.initiated = True, False
                self.send(WG, source, Data("keepalive", self.id))
            case "keepalive":
                wire.session = True
            case _:
                wire.session = True
                if packet.echo:
                    wire.echoes.append(self.world.now)
                else:
                    self.data(peer, packet.number, echo=True)


class World:
    """Time, links, control plane."""

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        reorder: float = 0.0,
        double: float = 0.0,
        delay_s: float = 0.02,
        signal_s: float = 0.04,
        signal_loss: float = 0.0,
        handshakes: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.loss, self.reorder, self.double = loss, reorder, double
        self.delay_s, self.signal_s, self.signal_loss = delay_s, signal_s, signal_loss
        self.handshakes = handshakes
        self.nodes: dict[NodeId, Node] = {}
        self.internet = Realm(self)
        self.internet6 = Realm(self)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._wakes: dict[NodeId, float] = {}
        self._epoch = 0

    def epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def later(self, delay_s: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay_s, self._count, do))

    def carry(self, deliver: Callable[[], None]) -> None:
        """Take a datagram over one link: it may be lost, late, doubled."""
        if self.loss and self.rng.random() < self.loss:
            return
        delay = self.delay_s * self.rng.uniform(0.8, 1.2)
        if self.reorder and self.rng.random() < self.reorder:
            delay *= 5
        self.later(delay, deliver)
        if self.double and self.rng.random() < self.double:
            self.later(delay * 1.5, deliver)

    def signal(self, sender: NodeId, to: NodeId, signal: object) -> None:
        node = self.nodes[to]
        if node.dead or self.nodes[sender].dead or self.rng.random() < self.signal_loss:
            return

        def deliver() -> None:
            node.engine.signal_received(sender, signal, self.now)  # type: ignore[arg-type]
            node.act()

        self.later(self.signal_s * self.rng.uniform(0.8, 1.5), deliver)
        if self.double and self.rng.random() < self.double:
            self.later(self.signal_s * 4, deliver)

    def wake(self, node: Node) -> None:
        due = node.engine.wake_at()
        if due == float("inf") or self._wakes.get(node.id, -1.0) == due:
            return
        self._wakes[node.id] = due

        def tick() -> None:
            if self._wakes.get(node.id) == due:
                self._wakes.pop(node.id, None)
                if not node.dead:
                    node.engine.tick(self.now)
                    node.act()

        self.later(max(0.0, due - self.now), tick)

    def run(self, for_s: float, until: Callable[[], bool] | None = None) -> None:
        """Let time pass, until something holds if it is given."""
        end = self.now + for_s
        while self._events and self._events[0][0] <= end:
            if until is not None and until():
                return
            self.now, _, do = heapq.heappop(self._events)
            do()
        if until is None or not until():
            self.now = end

    def traffic(self, a: Node, b: Node, every_s: float = 0.1) -> None:
        """Have `a` send to `b` for ever, and WireGuard's state told to both engines."""
        state = {"n": 0}

        def send() -> None:
            state["n"] += 1
            a.data(b.id, state["n"])
            if state["n"] % max(1, round(0.5 / every_s)) == 0:
                for x, y in ((a, b), (b, a)):
                    wire = x.wires.get(y.id)
                    if wire is not None:
                        x.engine.wireguard_seen(
                            y.id, wire.endpoint, wire.rx, wire.tx, self.now,
                            session=wire.session or not self.handshakes,
                        )  # fmt: skip
                        x.act()
            self.later(every_s, send)

        send()


@dataclass
class Site:
    """A machine, and the NATs before it, nearest first."""

    node: Node
    nats: list[Nat]


class Town:
    """Two rendezvous, two relays, and what a test puts beside them."""

    def __init__(self, world: World, *, relays: int = 2) -> None:
        self.world = world
        self.helpers = [
            Node(world, 900 + n, world.internet, f"198.51.100.{n + 1}") for n in range(2)
        ]
        self.relays = [
            Node(world, 910 + n, world.internet, f"198.51.100.{n + 11}") for n in range(relays)
        ]
        self._next = 0

    def site(self, kind: str, name: int, *, race: bool = False, timeout_s: float = 30.0) -> Site:
        """Make a machine in a surrounding of the kind."""
        self._next += 1
        world, n = self.world, self._next
        if kind == "public":
            return self._begin(Node(world, name, world.internet, f"203.0.113.{n}", 32), [])
        nat = Nat(
            world.internet,
            f"203.0.113.{n}",
            hard=kind == "hard",
            admits=Filter.ADDRESS if kind == "easy_address" else Filter.ADDRESS_AND_PORT,
            drops_udp=kind == "blocked",
            race=race,
            timeout_s=timeout_s,
        )
        nats, realm = [nat], nat.inner
        if kind == "double":
            inner = Nat(nat.inner, f"10.{n}.0.2", timeout_s=timeout_s)
            nats, realm = [inner, nat], inner.inner
        host = f"192.168.{n}.10"
        node = Node(world, name, realm, host)
        if kind == "mapped":
            nat.forwards[40000 + n] = (host, WG)
            node.mapped = ((nat.address, 40000 + n),)
        return self._begin(node, nats)

    def lan(self, name: int, beside: Site) -> Site:
        """Make a machine on the same LAN as another."""
        host = beside.node.host.rsplit(".", 1)[0] + ".11"
        return self._begin(Node(self.world, name, beside.node.realm, host), beside.nats)

    def _begin(self, node: Node, nats: list[Nat]) -> Site:
        self.tell(node)
        return Site(node, nats)

    def tell(self, node: Node) -> None:
        """Tell a node's engine of its network."""
        interfaces = [ip_interface(f"{node.host}/{node.prefix}")]
        if node.ipv6 is not None:
            interfaces.append(ip_interface(f"{node.ipv6.host}/64"))
        around = Surroundings(interfaces=tuple(interfaces), port=WG, mapped=node.mapped)
        rendezvous = [Rendezvous(h.id, (h.host, WG), (h.host, WG + 1)) for h in self.helpers]
        relays = [RelayNode(r.id, frozenset({r.host})) for r in self.relays]
        node.engine.set_local(around, rendezvous, relays, self.world.now)
        node.act()


def path(a: Node, b: Node) -> PathClass | None:
    """Return the class by which one reaches the other."""
    view = a.engine.describe(b.id, a.world.now)
    return view.path_class if view is not None else None
