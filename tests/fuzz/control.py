"""Hostile bytes through every decoder of the control plane: nothing but their own errors comes out.

    python tests/fuzz/control.py [COUNT] [SEED]

What is fuzzed: a connection's first bytes, frames and replies of streams, envelopes, gossip's RPCs,
and RPCs of a hostile member through the router's state machine, whose memory must stay bounded.
Random bytes, mutations of good ones, and well-formed ones with hostile values, in turn.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bounds
from growth import nobody

from agent.control import authors, envelope, frames, gossip, outbox, rpc, wanted
from agent.control.gossip import Gossip
from agent.control.preamble import FIRST_BYTES, Doorkeeper, make_nonce
from agent.control.rpc import Rpc, RpcError
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeKey

WALL = 1_700_000_000.0
KEY, HOSTILE, OWN = (NodeKey(bytes([n]) * 32) for n in (1, 2, 3))
NETWORK_KEY = bytes(range(32))
TOPICS = ("health", "load", "é", "", "x" * 101)
LIMITS = {
    gossip: ("MAX_SEEN", "MAX_KEPT_MESSAGES"),
    wanted: ("MAX_WANTED", "MAX_RETRIED"),
    authors: ("MAX_KEPT",),
}


def fuzz(count: int, seed: int, pulse: Callable[[int], None] = nobody) -> None:
    """Run `count` cases; raises AssertionError, or what escapes, for the first that is wrong.

    `pulse` is called with the number of each.
    """
    with bounds.small(LIMITS):
        _fuzz(count, seed, pulse)


def _fuzz(count: int, seed: int, pulse: Callable[[int], None]) -> None:
    chance = random.Random(seed)
    router = Router(chance)
    cases: list[Callable[[random.Random], None]] = [
        first_bytes, frame, reply, an_envelope, an_rpc, router.feed,
    ]  # fmt: skip
    for number in range(count):
        cases[number % len(cases)](chance)
        pulse(number)
    router.check()


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """Return `raw` with some bytes changed, lost, doubled or put in."""
    out = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 10))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del out[at : at + chance.randrange(1, 9)]
            case 2:
                out[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                out[at:at] = out[: chance.randrange(20)]
            case 4:
                out[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x80" * 4, b"\x7f"))
    return bytes(out)


def hostile(chance: random.Random, good: bytes) -> bytes:
    """Return random bytes, or mutated good ones."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    return mutated(chance, good)


def first_bytes(chance: random.Random) -> None:
    """Without the network key, and with every byte as it was, there is no way in."""
    keeper = Doorkeeper(OWN.id.ed25519, WALL - 1000)
    good = make_nonce(NETWORK_KEY, OWN.id.ed25519, WALL, chance.randbytes(4)) + bytes(20)
    raw = hostile(chance, good)[:FIRST_BYTES].ljust(FIRST_BYTES, b"\0")
    assert keeper.open(raw, [NETWORK_KEY, bytes(32)], WALL) is None


def frame(chance: random.Random) -> None:
    """A decoder never holds more than its limit."""
    limit = chance.randrange(300)
    decoder = frames.FrameDecoder(limit)
    raw = hostile(chance, frames.encode_frame(chance.randbytes(chance.randrange(300))))
    at = 0
    try:
        while at < len(raw):
            size = chance.randrange(1, max(2, decoder.wanted + 2))
            payload = decoder.feed(raw[at : at + size])
            at += size
            if payload is not None:
                assert len(payload) <= limit
                return
    except frames.FrameError as error:
        assert str(error)


def reply(chance: random.Random) -> None:
    """A reply is an answer, an error of ours, or nonsense."""
    good = frames.encode_refusal(PeerError("no", hint="Try again."))[frames.LENGTH_BYTES :]
    try:
        frames.decode_reply(hostile(chance, good))
    except frames.FrameError as error:
        assert str(error)
    except CoveyError as error:
        assert error.line().isprintable()


def an_envelope(chance: random.Random) -> None:
    """What was changed is not proved."""
    good = sealed(chance, HOSTILE)
    raw = hostile(chance, good)
    try:
        found = envelope.decode(raw)
    except PeerError as error:
        assert str(error)
        return
    assert envelope.proved(found, raw) is (raw == good)


def an_rpc(chance: random.Random) -> None:
    """An RPC is read within its limits, and reads the same when it is written again."""
    try:
        found = rpc.decode(hostile(chance, rpc.encode(some_rpc(chance))))
    except RpcError as error:
        assert str(error)
        return
    assert rpc.decode(rpc.encode(found)) == found


def sealed(chance: random.Random, key: NodeKey, sequence: int = 0, wall: float = WALL) -> bytes:
    """Return a message with some time and topic."""
    sent_ms = int(wall * 1000) + chance.choice((0, 0, -400_000, 400_000))
    return envelope.seal(key, chance.choice(TOPICS[:2]), chance.randbytes(20), sent_ms, sequence)


def some_rpc(chance: random.Random) -> Rpc:
    """Return a well-formed RPC with much of anything."""
    few = range(chance.choice((0, 0, 1, 3, 30)))
    ids = [chance.randbytes(chance.choice((0, 20, 20, 64))) for _ in few]
    topics = [chance.choice(TOPICS) for _ in few]
    return Rpc(
        subscriptions=[(topic, chance.random() < 0.7) for topic in topics],
        published=[(t, chance.randbytes(chance.randrange(99))) for t in topics[:3]],
        ihave=[(chance.choice(TOPICS), ids)] if ids else [],
        iwant=ids[: chance.randrange(9)],
        graft=topics[:5],
        prune=topics[:5],
    )


class Router:
    """One node's router with a hostile member on one link and an honest one on another."""

    def __init__(self, chance: random.Random) -> None:
        self.began = self.now = 1000.0
        self.sequence = chance.randrange(1000)
        self.node = Gossip(OWN.id.ed25519)
        self.node.set_members({k.id.ed25519 for k in (KEY, HOSTILE, OWN)}, self.now, WALL)
        self.node.subscribe("health")
        for key in (KEY, HOSTILE):
            self.node.add_peer(key.id.ed25519, self.now)
        honest = rpc.encode(Rpc(subscriptions=[("health", True)]))
        self.node.receive(KEY.id.ed25519, honest, self.now, WALL)

    @property
    def wall(self) -> float:
        return WALL + self.now - self.began

    def feed(self, chance: random.Random) -> None:
        """Give the router something from the hostile member, and let it do its work."""
        self.now += chance.random()
        found = some_rpc(chance)
        self.sequence += chance.randrange(2)
        # A signature takes longer than everything else together.
        if chance.random() < 0.05:
            found.published.append(("health", sealed(chance, HOSTILE, self.sequence, self.wall)))
        raw = rpc.encode(found)
        try:
            arrivals = self.node.receive(
                HOSTILE.id.ed25519,
                raw if chance.random() < 0.5 else hostile(chance, raw),
                self.now,
                self.wall,
            )
        except RpcError as error:
            assert str(error)
            arrivals = []
        for arrival in arrivals:
            assert arrival.author == HOSTILE.id.ed25519
            self.node.settle(arrival.id, chance.random() < 0.5, self.now)
        self.node.tick(self.now)
        for peer in self.node.pending():
            while (out := self.node.take(peer, self.now)) is not None:
                assert len(out) <= rpc.MAX_RPC_BYTES
                rpc.decode(out)

    def check(self) -> None:
        """What the router keeps is within its limits."""
        node = self.node
        assert len(node._seen) <= gossip.MAX_SEEN
        assert len(node._wanted) <= wanted.MAX_WANTED
        assert len(node._kept) <= gossip.MAX_KEPT_MESSAGES
        assert node._kept_bytes <= gossip.MAX_KEPT_BYTES
        for peer in node._peers.values():
            assert len(peer.topics) <= gossip.MAX_TOPICS_PER_PEER
            assert peer.outbox._bytes <= outbox.MAX_BYTES


if __name__ == "__main__":
    fuzz(*(int(each) for each in (*sys.argv[1:], *("100000", "1")[len(sys.argv) - 1 :])))
