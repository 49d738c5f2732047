"""Members that mean harm: real certificates, wrong answers. And outsiders, who send noise.

A hostile member runs the real node and answers each question with one of these, drawn at random:

    invented     contacts that do not exist, nearer to whatever was asked for than anyone who does:
                 keys can be tried out beforehand, and 50,000 were
    colluding    only other hostile members, those nearest to the target
    misplaced    honest nodes at addresses where nobody is
    withheld     no records, no contacts
    forged       records with a wrong signature, or of another node, or cut off
    replayed     the oldest word that it ever saw of whatever is asked for
    oversized    records far beyond the limit, and "there is more" without end
    false hints  "not kept; I hold a much higher sequence", or "kept" where nothing is kept
    nonsense     an answer of another kind

It promises probes and sends none, stores forged records at others, and sends datagrams that it
received once more, to their addressee and to others.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import node_key
from agent.discovery.node import Discovery
from agent.identity.keys import NodeId

Address = tuple[str, int]

# Forged records and replays that each hostile member sends unasked, one of each so often.
NUISANCE_S = 5.0
_KEPT = 64
_GROUND = 50_000


class Hostile:
    """One member that means harm."""

    def __init__(
        self, node: Discovery, mesh_id: bytes, rng: random.Random, others: Sequence[Contact]
    ) -> None:
        """`others` are the hostile members; the list grows as they are made."""
        self._node = node
        self._mesh_id = mesh_id
        self._rng = rng
        self._others = others
        self._old: dict[bytes, bytes] = {}
        self._overheard: list[bytes] = []
        protocol = node._running().protocol
        self._protocol = protocol
        self._honest = protocol._answers.reply
        self._receive = protocol.datagram_received
        protocol._answers.reply = self._reply
        protocol.datagram_received = self._overhear

    def harass(self, address: Address) -> None:
        """Send somebody a replay and a forged record."""
        transport = self._protocol.transport
        if transport.is_closing():
            return
        if self._overheard:
            transport.sendto(self._rng.choice(self._overheard), address)
        if self._old:
            key, raw = self._rng.choice(list(self._old.items()))
            question = messages.Store(key, self._forge(raw))
            self._protocol.ask(None, address, question)

    def _overhear(self, data: bytes, source: Address) -> None:
        if len(self._overheard) < _KEPT:
            self._overheard.append(data)
        else:
            self._overheard[self._rng.randrange(_KEPT)] = data
        self._receive(data, source)

    def _reply(
        self, sender: NodeId, address: Address, question: messages.Question, room: int
    ) -> messages.Reply:
        rng = self._rng
        match question:
            case messages.FindNode(key):
                lies: list[Callable[[], Any]] = [
                    lambda: messages.Contacts(self._invented(key)),
                    lambda: messages.Contacts(self._colluding(key)),
                    lambda: messages.Contacts(self._misplaced(key)),
                    lambda: messages.Contacts(()),
                    lambda: messages.Stored(True, 1),
                ]
                return rng.choice(lies)()
            case messages.FindRecords(key):
                for signed in self._node._store.records(key, self._node._clock()):
                    self._old.setdefault(key, signed.raw)
                old = [self._old[key]] if key in self._old else []
                lies = [
                    lambda: messages.Records((), 0, self._invented(key)),
                    lambda: messages.Records((), 0, self._colluding(key)),
                    lambda: messages.Records((), 0, self._misplaced(key)),
                    lambda: messages.Records((), 0, ()),
                    lambda: messages.Records(tuple(map(self._forge, old)), 0, ()),
                    lambda: messages.Records(tuple(old), 0, ()),
                    lambda: messages.Records((rng.randbytes(1050),), 256, ()),
                    lambda: messages.Pong(bytes(6)),
                ]
                return rng.choice(lies)()
            case messages.Store(key, record):
                self._old.setdefault(key, record)
                return messages.Stored(rng.random() < 0.5, rng.choice([0, 2**63 - 1]))
            case messages.TestMe() | messages.Knock():
                return messages.Promise(True)
        return self._honest(sender, address, question, room)

    def _invented(self, key: bytes) -> tuple[bytes, ...]:
        ids, keys = _ground(self._mesh_id)
        at = bisect(ids, key)
        wrong = messages.pack_address(f"20.255.{self._rng.randrange(256)}.1", 4001)
        return tuple(k + wrong for k in keys[max(0, at - 8) : at + 8])

    def _colluding(self, key: bytes) -> tuple[bytes, ...]:
        target = int.from_bytes(key, "big")
        return tuple(c.packed for c in sorted(self._others, key=lambda c: c.long_id ^ target)[:16])

    def _misplaced(self, key: bytes) -> tuple[bytes, ...]:
        near = self._protocol.router.nearest(key, 16)
        wrong = messages.pack_address("20.255.255.1", 9)
        return tuple(contact.node.ed25519 + wrong for contact in near)

    def _forge(self, raw: bytes) -> bytes:
        # Another of its kind may have given it one that was cut off to nothing.
        raw = raw or b"M"
        place = self._rng.randrange(len(raw))
        kinds = [
            raw[:place],
            raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :],
            raw + b"\0",
        ]
        return self._rng.choice(kinds)


@lru_cache
def _ground(mesh_id: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return DHT ids, sorted, and the keys of nobody that lead to them."""
    rng = random.Random(7)
    keys = [rng.randbytes(32) for _ in range(_GROUND)]
    pairs = sorted((node_key.__wrapped__(mesh_id, NodeId(key)), key) for key in keys)
    return [ident for ident, _ in pairs], [key for _, key in pairs]
