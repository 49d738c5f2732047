"""Which prompts' beginnings a replica has seen, so that it may have them in its KV cache.

A core. A prompt is cut into blocks, and each block's hash covers all that comes before it: two
prompts share their beginning as far as their hashes are equal. What a replica was sent is
remembered with its age, the least recently used forgotten first; a replica's own cache may
forget sooner, so how often a memory proves true is learned as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Some 64 tokens of English, then, where a prompt is long, some 512.
FINE_BYTES, FINE_BLOCKS = 256, 64
COARSE_BYTES, COARSE_BLOCKS = 2048, 120
# 2,048 fine blocks are some 130,000 tokens, more than the context of most replicas.
MOST_BLOCKS = 2048
# Whoever goes on with a conversation mostly does so within some minutes.
OLDEST_S = 1800.0
# How far a memory is trusted at first, and how much each proof changes that.
TRUST = 0.9
TRUST_WEIGHT = 0.1


def blocks(parts: Iterable[bytes | memoryview]) -> tuple[int, ...]:
    """Return the hashes of a prompt, one a whole block; `parts` in the order of their tokens."""
    text = b""
    for part in parts:
        text += part[: covered_bytes(FINE_BLOCKS + COARSE_BLOCKS) - len(text)]
    hashes: list[int] = []
    before, at = 0, 0
    for size, most in ((FINE_BYTES, FINE_BLOCKS), (COARSE_BYTES, COARSE_BLOCKS)):
        for _ in range(min(most, (len(text) - at) // size)):
            # Python's own hash is keyed for each process, so nobody can aim at a collision.
            before = hash((before, text[at : at + size]))
            hashes.append(before)
            at += size
        if len(hashes) < FINE_BLOCKS:
            break
    return tuple(hashes)


def covered_bytes(count: int) -> int:
    """Return how many bytes the first `count` blocks hold."""
    return min(count, FINE_BLOCKS) * FINE_BYTES + max(count - FINE_BLOCKS, 0) * COARSE_BYTES


class Prefixes:
    """What one replica was sent: at most `most` blocks, each with the time it was last used."""

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._most = most
        self._used: dict[int, float] = {}  # the least recently used first
        self.trust = TRUST

    def __len__(self) -> int:
        return len(self._used)

    def matched(self, prefix: Sequence[int], now: float) -> int:
        """Return how many blocks from the beginning it has seen, and not too long ago."""
        count = 0
        for block in prefix:
            at = self._used.get(block)
            if at is None or now - at > OLDEST_S:
                break
            count += 1
        return count

    def sent(self, prefix: Sequence[int], now: float) -> None:
        """Note that the replica works on a prompt that begins so."""
        # The end first: a beginning that is forgotten would make what follows it useless.
        for block in reversed(prefix):
            self._used.pop(block, None)
            self._used[block] = now
        while len(self._used) > self._most:
            del self._used[next(iter(self._used))]

    def proved(self, share: float) -> None:
        """Note which share (0 to 1) of what was taken for cached really was."""
        self.trust += TRUST_WEIGHT * (min(max(share, 0.0), 1.0) - self.trust)

    def forget(self) -> None:
        """Forget everything: the replica was started anew."""
        self._used.clear()
