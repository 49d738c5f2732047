"""What a node keeps for the DHT: for each key a bounded set of providers, newest word each. A core.

Used by `protocol.py` to answer others and by `node.py` to remember what its own lookups found.
Nothing enters that the verifier does not accept; nothing is given out that no longer holds.

A member's key has one provider, the member. A set cannot be crowded out by strangers: one member
has one place in a set, and RECORDS_PER_NODE places in all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.discovery.record import Signed, Verifier

if TYPE_CHECKING:
    import random

# A poll sends four bytes for each record that it has; 256 of them fit a datagram.
PROVIDERS_MAX = 256
# A node's member record and the services that it provides.
RECORDS_PER_NODE = 64
# About 8 MB of records at most.
RECORDS_MAX = 8192
DIGEST_BYTES = 4


@dataclass(frozen=True)
class Put:
    """What became of a record: kept or not, and the sequence now held for its node (0: none)."""

    accepted: bool
    held_seq: int


class RecordStore:
    """Verified records by key and node; time (unix s) and randomness are arguments."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._sets: dict[bytes, dict[bytes, Signed]] = {}
        self._per_node: Counter[bytes] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def put(self, key: bytes, raw: bytes, now: float) -> Put:
        """Keep the record if it is genuine, current, belongs here and is newer than what we have.

        The very record that is held already is accepted again.
        """
        signed = self._verifier.record(raw, key, now)
        if signed is None:
            return Put(False, 0)
        record = signed.record
        held = self._sets.get(key, {}).get(record.node)
        if held is not None and self._verifier.current(held, now):
            if record.seq > held.record.seq:
                self._sets[key][record.node] = signed
                return Put(True, record.seq)
            return Put(raw == held.raw, held.record.seq)
        if held is not None:
            self._sets[key][record.node] = signed
            return Put(True, record.seq)
        if not self._has_room(key, record.node, now):
            return Put(False, 0)
        self._sets.setdefault(key, {})[record.node] = signed
        self._per_node[record.node] += 1
        self._total += 1
        return Put(True, record.seq)

    def records(self, key: bytes, now: float) -> list[Signed]:
        """Return what holds now under the key, withdrawals included."""
        return [s for s in self._sets.get(key, {}).values() if self._verifier.current(s, now)]

    def missing(
        self, key: bytes, salt: bytes, have: bytes, budget: int, now: float, rng: random.Random
    ) -> tuple[list[bytes], int]:
        """Return records that the asker lacks, at most `budget` bytes, and how many were left out.

        `have` is the asker's digests (see `digests`). Which records go first is random, so that
        several nodes asked at once give different parts of a large set.
        """
        known = {have[i : i + DIGEST_BYTES] for i in range(0, len(have), DIGEST_BYTES)}
        lacking = [s.raw for s in self.records(key, now) if digest(s.raw, salt) not in known]
        rng.shuffle(lacking)
        chosen: list[bytes] = []
        for raw in lacking:
            if len(raw) + 3 <= budget:
                chosen.append(raw)
                budget -= len(raw) + 3
        return chosen, len(lacking) - len(chosen)

    def purge(self, now: float) -> int:
        """Forget what no longer holds; return how many records went."""
        before = self._total
        for key in list(self._sets):
            self._purge_set(key, now)
        return before - self._total

    def _has_room(self, key: bytes, node: bytes, now: float) -> bool:
        if len(self._sets.get(key, {})) >= PROVIDERS_MAX:
            self._purge_set(key, now)
        if self._per_node[node] >= RECORDS_PER_NODE or self._total >= RECORDS_MAX:
            self.purge(now)
        return (
            len(self._sets.get(key, {})) < PROVIDERS_MAX
            and self._per_node[node] < RECORDS_PER_NODE
            and self._total < RECORDS_MAX
        )

    def _purge_set(self, key: bytes, now: float) -> None:
        records = self._sets.get(key, {})
        for node in [n for n, s in records.items() if not self._verifier.current(s, now)]:
            del records[node]
            self._per_node[node] -= 1
            if not self._per_node[node]:
                del self._per_node[node]
            self._total -= 1
        if not records:
            self._sets.pop(key, None)


def digest(raw: bytes, salt: bytes) -> bytes:
    """Return a record's short name in one question (4 bytes); the salt makes clashes pass."""
    return hashlib.blake2b(raw, key=salt, digest_size=DIGEST_BYTES).digest()


def digests(records: list[Signed], salt: bytes) -> bytes:
    """Return the short names of what a lookup has already, for at most PROVIDERS_MAX records."""
    return b"".join(digest(s.raw, salt) for s in records[:PROVIDERS_MAX])
