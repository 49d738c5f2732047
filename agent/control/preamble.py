"""The first bytes of a connection: how a node knows, before it answers, who may call. A core.

The wire is libp2p's private network (pnet v1): each side sends 8 bytes of nonce, and everything
after it is encrypted with Salsa20 under the network key. The library's listener sends its nonce and
a first message at once, to anybody. Ours reads first. The caller always begins with the same 20
bytes, so the right network key shows; and the caller's nonce says when and to whom it was made, so
that what an outsider recorded achieves nothing elsewhere or later:

    nonce    random 4 | (unix time in s, 4) xor mask(network key, random, node called or nothing)

Another time or another node gives other masks, hence a time far from ours (1 in 18 million passes).
Changing the nonce changes what the 20 bytes decrypt to. A node remembers the nonces that it took
for as long as their time is accepted. Two things stay possible, each for one answer to one who has
recorded a member's call: repeating it to a node that restarted within START_SLACK_S after it; and
repeating a call that names no node (a newcomer's with a bare address, or a request's last try at an
address where nobody answered) to another node within CLOCK_SKEW_S.

Used by `sockets.py`. Who has the network key is a member or holds a ticket; who it is, Noise says.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from Crypto.Cipher import Salsa20

NONCE_BYTES = 8
# What every libp2p connection begins with: the length (a varint), the name, a line feed.
GREETING = b"\x13/multistream/1.0.0\n"
FIRST_BYTES = NONCE_BYTES + len(GREETING)
# As discovery does: a machine that keeps time at all is within this.
CLOCK_SKEW_S = 120
# What was made before this node started was not meant for it; clocks differ a little.
START_SLACK_S = 5
# Connections of members within twice the skew; beyond it the oldest are forgotten.
MAX_NONCES = 65_536

_RANDOM_BYTES = 4
_PERSON = b"covey-pnet-v1"


@dataclass(frozen=True)
class Opened:
    """A caller with a network key: the key it used, and what decrypts the bytes that follow."""

    key: bytes
    cipher: Salsa20.Salsa20Cipher


def make_nonce(key: bytes, called: bytes, wall: float, chance: bytes) -> bytes:
    """Return a caller's nonce. `called`: the node's id (32 bytes), or b"" if it is not known.

    `wall`: unix seconds; `chance`: 4 random bytes.
    """
    stamp = int(wall) & 0xFFFFFFFF
    return chance + (stamp ^ _mask(key, called, chance)).to_bytes(4, "big")


class Doorkeeper:
    """Judges the first bytes of inbound connections."""

    def __init__(self, own: bytes, started: float) -> None:
        """`own`: this node's id (32 bytes); `started`: unix seconds."""
        self._own = own
        self._earliest = started - START_SLACK_S
        self._nonces: OrderedDict[bytes, float] = OrderedDict()

    def open(self, first: bytes, keys: Sequence[bytes], wall: float) -> Opened | None:
        """Return what the first FIRST_BYTES bytes prove, or None: then nothing may be answered."""
        nonce, sealed = first[:NONCE_BYTES], first[NONCE_BYTES:FIRST_BYTES]
        for key in keys:
            cipher = Salsa20.new(key=key, nonce=nonce)
            if cipher.decrypt(sealed) == GREETING:
                return Opened(key, cipher) if self._fresh(key, nonce, wall) else None
        return None

    def _fresh(self, key: bytes, nonce: bytes, wall: float) -> bool:
        while self._nonces and next(iter(self._nonces.values())) < wall - 2 * CLOCK_SKEW_S:
            self._nonces.popitem(last=False)
        chance, masked = nonce[:_RANDOM_BYTES], int.from_bytes(nonce[_RANDOM_BYTES:], "big")
        stamps = (masked ^ _mask(key, called, chance) for called in (self._own, b""))
        if not any(abs(t - wall) <= CLOCK_SKEW_S and t >= self._earliest for t in stamps):
            return False
        if nonce in self._nonces:
            return False
        self._nonces[nonce] = wall
        if len(self._nonces) > MAX_NONCES:
            self._nonces.popitem(last=False)
        return True


def _mask(key: bytes, called: bytes, chance: bytes) -> int:
    digest = hashlib.blake2b(chance + called, key=key, person=_PERSON, digest_size=4).digest()
    return int.from_bytes(digest, "big")
