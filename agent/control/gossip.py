"""GossipSub for one node, as a state machine: what to send to whom, and what to deliver. A core.

`topics.py` gives it streams and time. The wire is GossipSub 1.1's (`rpc.py`), so another libp2p
program can take part; the router is our own, because the library's loses messages. py-libp2p
0.8.1, 30 nodes, 100 messages (tests/bench/gossip measures it again): with its usual degree of 6 a
star delivers 14 to 24 %; a random graph with three links a node delivers all of 4 a second, and of
50 a second 76 to 100 %, half of the complete ones after 3.5 s and more. Its queues to a
peer hold 32 messages and refuse more, a peer in its mesh is never told what it has missed, each
message carries a newly signed address record, and every message that comes starts a task.

Ours has six rules.

    accept   once: size, author a member, time, signature, rate; then the subscriber's own judgement
    pass on  at once to every link that wants the topic and did not send it; GRAFT to all, no PRUNE
    to one   a topic that begins with `to/` carries messages for one member each, whose id (32
             bytes) they begin with: the others pass them on without their subscriber's judgement,
             and at once to FANOUT links only, and to that member where it is linked; a new link
             hears only of those of the last ADDRESSED_S, since they tell of that moment
    repair   a new link or stream hears at once of all that is still kept: IHAVE; who lacks one asks
             one link: IWANT. So does a link whose queue was too full. Streams lose nothing else;
             for what no rule foresees, all links that did not show that they have a message are
             told of it again, many messages at a time, each REPAIR_GRID_S
    unknown  an author who is no member (yet), or writes too much: not kept and not passed on, but
             asked for again (`wanted.py`)
    bounds   per link: bytes queued, work per second (`debt_s`); in all: bytes and time kept

Nothing happens while nobody publishes: no heartbeat.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from agent.control import envelope, rpc
from agent.control.authors import Authors, Verdict
from agent.control.outbox import Outbox
from agent.control.wanted import Wanted
from agent.errors import PeerError

ID_BYTES, ID_OF_NODE_BYTES = 20, 32
# Told one by one and at once they were half of what an idle mesh says, and cost as much CPU.
REPAIR_S = 2.0
REPAIR_GRID_S = 10.0
# Messages are kept so long for those who ask; a node that was away for longer asks its services.
KEPT_S = 120.0
MAX_KEPT_BYTES = 8 * 1024 * 1024
MAX_KEPT_MESSAGES = 4096
# Ids that are known and need no second look. `Authors` holds against replays without them.
MAX_SEEN = 16_384
# One message may be asked for by one link as often as this.
MAX_SERVED = 6
MAX_TOPICS_PER_PEER = 64
ADDRESSED, FANOUT = "to/", 3
# To a member that has started again, an older one says where another was, not where it is.
ADDRESSED_S = 5.0
# Nobody but its addressee judges such a message, so what all carry is bounded here.
MAX_ADDRESSED_BYTES = 4096
# A link's work, in units of about 0.3 ms: what it may cause in a second, and at once.
WORK_PER_S = 200.0
WORK_BURST = 2000.0
WORK_RPC, WORK_ITEM, WORK_MESSAGE, WORK_ID, WORK_SERVED = 0.2, 0.2, 1.0, 0.02, 1.0
WORK_BYTES = 4096
# Signatures that do not hold, and what is no RPC: an honest node has checked before it passes on.
WORK_FORGED = 50.0


@dataclass(frozen=True)
class Arrival:
    """A message that passed the checks; `settle` says what its subscriber thinks of it."""

    id: bytes
    topic: str
    author: bytes
    payload: bytes


@dataclass
class _Message:
    """One message, judged or kept."""

    topic: str
    data: bytes
    # Links that have shown that they have it.
    holders: set[bytes]
    # Whom it is for; empty: everybody.
    addressee: bytes = b""
    at: float = 0.0
    served: dict[bytes, int] = field(default_factory=dict)


@dataclass
class _Peer:
    """One link."""

    outbox: Outbox
    topics: set[str] = field(default_factory=set)
    # Topics for which it wants to be told only (a PRUNE; ours never send one).
    told_only: set[str] = field(default_factory=set)
    # Topics of which it has been told all that is kept, on the stream there is now.
    told: set[str] = field(default_factory=set)
    tokens: float = WORK_BURST
    at: float = 0.0


class Gossip:
    """All links and topics of one node; a link is named by its node's id (32 bytes).

    `now` is monotonic seconds everywhere, `wall` unix seconds.
    """

    def __init__(self, own: bytes) -> None:
        """`own`: this node's id (32 bytes)."""
        self._own = own
        self._authors = Authors(own)
        self._topics: set[str] = set()
        self._published: set[str] = set()
        self._peers: dict[bytes, _Peer] = {}
        self._judged: dict[bytes, _Message] = {}
        self._kept: OrderedDict[bytes, _Message] = OrderedDict()
        self._kept_bytes = 0
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._repairs: deque[tuple[float, bytes]] = deque()
        self._wanted = Wanted()
        self.counts: dict[str, int] = {verdict.name.lower(): 0 for verdict in Verdict}
        self.counts |= {"forged": 0, "refused": 0}

    # What the shell says.

    def set_members(self, members: AbstractSet[bytes], now: float, wall: float) -> None:
        """Replace the authors whose messages count."""
        self._authors.set_members(members, wall)
        self._wanted.hurry(now)

    def subscribe(self, topic: str) -> None:
        """Take and pass on this topic from now on."""
        if topic in self._topics:
            return
        self._topics.add(topic)
        for peer in self._peers.values():
            peer.outbox.subscribe([topic])
            if topic in peer.topics:
                peer.outbox.graft(topic)

    def add_peer(self, peer: bytes, now: float) -> None:
        """Begin to talk to a link, or begin anew: say what we want, and what there is."""
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = _Peer(Outbox(), at=now)
        known.outbox.subscribe(sorted(self._topics))
        known.told.clear()
        for topic in known.topics:
            self._tell_all(peer, known, topic, now)

    def peers(self) -> set[bytes]:
        """Return the links that have been added."""
        return set(self._peers)

    def remove_peer(self, peer: bytes) -> None:
        """Forget a link."""
        self._peers.pop(peer, None)

    def publish(self, topic: str, data: bytes, now: float) -> None:
        """Send our own message: `data` is a sealed envelope."""
        self._published.add(topic)
        name = _id(data)
        if name not in self._kept:
            payload = envelope.decode(data).payload if topic.startswith(ADDRESSED) else b""
            self._keep(name, _Message(topic, data, set(), _addressee(topic, payload)), now)

    def receive(self, peer: bytes, raw: bytes, now: float, wall: float) -> list[Arrival]:
        """Take an RPC from a link and return the messages that its subscribers are to judge.

        Raises RpcError for what is none; a link that is not known is ignored.
        """
        link = self._peers.get(peer)
        if link is None:
            return []
        self._charge(link, WORK_RPC + len(raw) / WORK_BYTES, now)
        try:
            found = rpc.decode(raw)
        except rpc.RpcError:
            self._charge(link, WORK_FORGED, now)
            raise
        self._take_topics(peer, link, found, now)
        arrivals = [self._take(peer, link, *each, now, wall) for each in found.published]
        for topic, ids in found.ihave:
            self._charge(link, WORK_ID * len(ids), now)
            if topic in self._topics:
                self._take_ihave(peer, link, ids, now)
        if found.iwant:
            self._charge(link, WORK_ID * len(found.iwant), now)
            self._take_iwant(peer, link, found.iwant, now)
        return [each for each in arrivals if each is not None]

    def settle(self, name: bytes, fits: bool, now: float) -> None:
        """Say whether a message from `receive` makes sense: it is passed on, or dropped."""
        message = self._judged.pop(name, None)
        if message is None:
            return
        if fits:
            self._keep(name, message, now)
        else:
            self.counts["refused"] += 1
            self._see(name)

    def tick(self, now: float) -> None:
        """Do what is due."""
        while self._repairs and self._repairs[0][0] <= now:
            _, name = self._repairs.popleft()
            message = self._kept.get(name)
            if message is None:
                continue
            for peer, link in self._peers.items():
                if message.topic in link.topics and peer not in message.holders:
                    link.outbox.ihave(message.topic, [name])
        for name, peer in self._wanted.due(now):
            if peer in self._peers:
                self._peers[peer].outbox.iwant([name])
        while self._kept and next(iter(self._kept.values())).at + KEPT_S <= now:
            self._drop_oldest()

    def wake_at(self) -> float | None:
        """Return when `tick` is due next, or None while there is nothing to do."""
        repair = self._repairs[0][0] if self._repairs else None
        oldest = next(iter(self._kept.values())).at + KEPT_S if self._kept else None
        times = (repair, oldest, self._wanted.wake_at())
        return min((each for each in times if each is not None), default=None)

    # What the shell asks.

    def take(self, peer: bytes, now: float) -> bytes | None:
        """Return the next RPC for a link, or None while there is none."""
        link = self._peers.get(peer)
        if link is None:
            return None
        raw = link.outbox.take()
        if link.outbox.caught_up():
            link.told.clear()
            for topic in link.topics:
                self._tell_all(peer, link, topic, now)
        return raw

    def pending(self) -> list[bytes]:
        """Return the links for which `take` has something."""
        return [peer for peer, link in self._peers.items() if link.outbox]

    def debt_s(self, peer: bytes, now: float) -> float:
        """Return for how long nothing is to be read from a link, since it has caused too much."""
        link = self._peers.get(peer)
        if link is None:
            return 0.0
        self._charge(link, 0.0, now)
        return max(0.0, -link.tokens / WORK_PER_S)

    # What an RPC says.

    def _take_topics(self, peer: bytes, link: _Peer, found: rpc.Rpc, now: float) -> None:
        items = len(found.subscriptions) + len(found.graft) + len(found.prune)
        self._charge(link, WORK_ITEM * items, now)
        for topic, wanted in found.subscriptions:
            if not wanted:
                link.topics.discard(topic)
            elif topic not in link.topics and len(link.topics) < MAX_TOPICS_PER_PEER:
                link.topics.add(topic)
                if topic in self._topics:
                    link.outbox.graft(topic)
                self._tell_all(peer, link, topic, now)
        link.told_only -= set(found.graft)
        link.told_only |= self._topics & set(found.prune)

    def _take_ihave(self, peer: bytes, link: _Peer, ids: Iterable[bytes], now: float) -> None:
        missing = []
        for name in ids:
            message = self._kept.get(name) or self._judged.get(name)
            if message is not None:
                message.holders.add(peer)
            elif name not in self._seen and self._wanted.ask(name, now):
                missing.append(name)
        link.outbox.iwant(missing)

    def _take_iwant(self, peer: bytes, link: _Peer, ids: Iterable[bytes], now: float) -> None:
        for name in ids:
            message = self._kept.get(name)
            if message is None or message.served.get(peer, 0) >= MAX_SERVED:
                continue
            message.served[peer] = message.served.get(peer, 0) + 1
            self._charge(link, WORK_SERVED, now)
            link.outbox.publish(name, message.topic, message.data)

    def _take(
        self, peer: bytes, link: _Peer, topic: str, data: bytes, now: float, wall: float
    ) -> Arrival | None:
        if topic not in self._topics:
            self._charge(link, WORK_ITEM, now)
            return None
        name = _id(data)
        known = self._kept.get(name) or self._judged.get(name)
        if known is not None:
            known.holders.add(peer)
        if known is not None or name in self._seen:
            self._charge(link, WORK_ITEM, now)
            return None
        self._charge(link, WORK_MESSAGE, now)
        try:
            found = envelope.decode(data)
        except PeerError:
            self._forged(link, name, now)
            return None
        verdict = self._authors.judge(found, wall)
        if verdict is Verdict.TAKEN:
            if found.topic != topic or not envelope.proved(found, data):
                self._forged(link, name, now)
                return None
            verdict = self._authors.take(found, now, wall)
        self.counts[verdict.name.lower()] += 1
        if verdict in (Verdict.STRANGER, Verdict.RATE):
            self._wanted.refused(name, peer, now)
            return None
        if verdict is not Verdict.TAKEN:
            self._see(name)
            return None
        self._wanted.came(name)
        addressee = _addressee(topic, found.payload)
        if addressee and len(found.payload) > MAX_ADDRESSED_BYTES:
            self.counts["refused"] += 1
            self._see(name)
            return None
        message = _Message(topic, data, {peer, found.author}, addressee)
        if addressee not in (b"", self._own):
            # Most are for others, and to wake a subscriber costs more than all the rest.
            self._keep(name, message, now)
            return None
        self._judged[name] = message
        return Arrival(name, topic, found.author, found.payload)

    def _forged(self, link: _Peer, name: bytes, now: float) -> None:
        self.counts["forged"] += 1
        self._charge(link, WORK_FORGED, now)
        self._see(name)

    # What is kept.

    def _keep(self, name: bytes, message: _Message, now: float) -> None:
        """Keep a message that counts, and pass it on."""
        message.at = now
        self._kept[name] = message
        self._kept_bytes += len(message.data)
        while len(self._kept) > MAX_KEPT_MESSAGES or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop_oldest()
        for peer in self._next_hops(name, message):
            link = self._peers[peer]
            if message.topic in link.told_only:
                link.outbox.ihave(message.topic, [name])
            else:
                link.outbox.publish(name, message.topic, message.data)
        due = math.ceil((now + REPAIR_S) / REPAIR_GRID_S) * REPAIR_GRID_S
        self._repairs.append((due, name))

    def _next_hops(self, name: bytes, message: _Message) -> list[bytes]:
        """Return the links to which a message goes at once."""
        found = [
            peer
            for peer, link in self._peers.items()
            if message.topic in link.topics and peer not in message.holders
        ]
        if not message.addressee:
            return found
        if message.addressee == self._own:
            return []
        # By chance, so that each message has its own ways, and the same whenever it is asked.
        found.sort(key=lambda peer: (peer != message.addressee, _id(name + self._own + peer)))
        return found[: FANOUT + (message.addressee in found)]

    def _drop_oldest(self) -> None:
        name, message = self._kept.popitem(last=False)
        self._kept_bytes -= len(message.data)
        self._see(name)

    def _tell_all(self, peer: bytes, link: _Peer, topic: str, now: float) -> None:
        """Tell a link, once on a stream, of every kept message of a topic that it may lack."""
        if topic in link.told or topic not in self._topics | self._published:
            return
        link.told.add(topic)
        since = now - (ADDRESSED_S if topic.startswith(ADDRESSED) else KEPT_S)
        link.outbox.ihave(
            topic,
            [
                name
                for name, message in self._kept.items()
                if message.topic == topic and message.at > since and peer not in message.holders
            ],
        )

    def _see(self, name: bytes) -> None:
        self._seen[name] = None
        self._wanted.came(name)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _charge(self, link: _Peer, work: float, now: float) -> None:
        link.tokens = min(WORK_BURST, link.tokens + (now - link.at) * WORK_PER_S) - work
        link.at = now


def _id(data: bytes) -> bytes:
    """Return a message's name: its hash, for one message has one encoding."""
    return hashlib.sha256(data).digest()[:ID_BYTES]


def _addressee(topic: str, payload: bytes) -> bytes:
    """Return whom a message is for; empty: everybody."""
    return payload[:ID_OF_NODE_BYTES] if topic.startswith(ADDRESSED) else b""
