"""What a node keeps for the DHT: for each key a bounded set of providers, newest word each. A core.

Used by `protocol.py` to answer others and by `node.py` to remember what its own lookups found.
Nothing enters that the verifier does not accept; nothing is given out that no longer holds.

A member's key has one provider, the member. A set cannot be crowded out by strangers: one member
has one place in a set, and RECORDS_PER_NODE places in all. A full set takes no newcomer; only the
set of the news (see `dhtkeys.py`) gives up the place of whoever came first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.discovery.record import MemberRecord, Signed, Verifier

if TYPE_CHECKING:
    import random

# A poll sends four bytes for each record that it has; 256 of them fit a datagram.
PROVIDERS_MAX = 256
# Members in one set of the listing, and in the news: half of that, so that a poll stays small.
LISTING_MAX = 128
# A reader looks below a set of the listing that holds so many: it may have been full a while ago.
LISTING_FULL = LISTING_MAX // 2
# A node's member record in its places, and the services that it provides.
RECORDS_PER_NODE = 64
# About 8 MB of records at most.
RECORDS_MAX = 8192
# What a node has found may be more than anyone stores: several nodes' different parts of a set, and
# the records of 10,000 members in two places each.
FOUND_SETS, FOUND_MAX = 2, 32768
DIGEST_BYTES = 4


@dataclass(frozen=True)
class Put:
    """What became of a record: kept or not, and the sequence now held for its node (0: none).

    `new` tells a record that was not held before from one that was.
    """

    accepted: bool
    held_seq: int
    new: bool = field(default=False, compare=False)


class RecordStore:
    """Verified records by key and node; time (unix s) and randomness are arguments."""

    def __init__(
        self,
        verifier: Verifier,
        changed: Callable[[Signed], None] | None = None,
        *,
        sets: int = 1,
        records_max: int = RECORDS_MAX,
    ) -> None:
        """`changed` is told of each record that is kept and was not held before.

        `sets` says how many nodes' sets one set here may hold together.
        """
        self._verifier = verifier
        self._changed = changed
        self._set_factor = sets
        self._records_max = records_max
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
        node, seq = signed.record.node, signed.record.seq
        held = self._sets.get(key, {}).get(node)
        if held is not None:
            if seq <= held.record.seq and self._verifier.current(held, now):
                return Put(raw == held.raw, held.record.seq)
            del self._sets[key][node]  # the newest stands last
            self._sets[key][node] = signed
        elif self._has_room(key, signed, now):
            self._sets.setdefault(key, {})[node] = signed
            self._per_node[node] += 1
            self._total += 1
        else:
            return Put(False, 0)
        if self._changed is not None:
            self._changed(signed)
        return Put(True, seq, new=True)

    def records(self, key: bytes, now: float) -> list[Signed]:
        """Return what holds now under the key, withdrawals included."""
        return [s for s in self._sets.get(key, {}).values() if self._verifier.current(s, now)]

    def missing(
        self, key: bytes, salt: bytes, have: bytes, budget: int, now: float, rng: random.Random
    ) -> tuple[list[bytes], int, int]:
        """Return records that the asker lacks, at most `budget` bytes.

        With them come how many more it lacks, and how many are held in all.

        `have` is the asker's digests (see `digests`). Which records go first is random, so that
        several nodes asked at once give different parts of a large set.
        """
        known = {have[i : i + DIGEST_BYTES] for i in range(0, len(have), DIGEST_BYTES)}
        held = self.records(key, now)
        lacking = [s.raw for s in held if digest(s.raw, salt) not in known]
        rng.shuffle(lacking)
        chosen: list[bytes] = []
        for raw in lacking:
            if len(raw) + 3 <= budget:
                chosen.append(raw)
                budget -= len(raw) + 3
        return chosen, len(lacking) - len(chosen), len(held)

    def purge(self, now: float) -> int:
        """Forget what no longer holds; return how many records went."""
        before = self._total
        for key in list(self._sets):
            self._purge_set(key, now)
        return before - self._total

    def _has_room(self, key: bytes, signed: Signed, now: float) -> bool:
        node, most, is_news = signed.record.node, PROVIDERS_MAX, False
        if isinstance(signed.record, MemberRecord) and key != signed.key:
            most, is_news = LISTING_MAX, key == signed.keys[-1]
        most *= self._set_factor
        if len(self._sets.get(key, {})) >= most:
            self._purge_set(key, now)
        if len(self._sets.get(key, {})) >= most and is_news:
            self._drop(key, next(iter(self._sets[key])))
        if self._per_node[node] >= RECORDS_PER_NODE or self._total >= self._records_max:
            self.purge(now)
        return (
            len(self._sets.get(key, {})) < most
            and self._per_node[node] < RECORDS_PER_NODE
            and self._total < self._records_max
        )

    def _purge_set(self, key: bytes, now: float) -> None:
        records = self._sets[key]
        for node in [n for n, s in records.items() if not self._verifier.current(s, now)]:
            self._drop(key, node)
        if not records:
            del self._sets[key]

    def _drop(self, key: bytes, node: bytes) -> None:
        del self._sets[key][node]
        self._per_node[node] -= 1
        if not self._per_node[node]:
            del self._per_node[node]
        self._total -= 1


def digest(raw: bytes, salt: bytes) -> bytes:
    """Return a record's short name in one question (4 bytes); the salt makes clashes pass."""
    return hashlib.blake2b(raw, key=salt, digest_size=DIGEST_BYTES).digest()


def digests(records: list[Signed], salt: bytes) -> bytes:
    """Return the short names of what a lookup has already, for at most PROVIDERS_MAX records."""
    return b"".join(digest(s.raw, salt) for s in records[:PROVIDERS_MAX])
