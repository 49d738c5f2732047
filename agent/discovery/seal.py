"""Sealed datagrams: what a node puts on the discovery port, and what it opens. A core.

Used by `protocol.py` alone. It knows nothing of what is inside, nor of certificates.

Two layers. The outer is XChaCha20-Poly1305 under a key that every member derives from the network
key: whoever lacks it sees random bytes and gets no answer. (Many nodes share that key and choose
nonces at random, hence the 24-byte nonce.) The inner proves which node sent it. A signature on each
datagram would cost 64 bytes and some 100 µs; the X25519 secret of the two node keys gives a 16-byte
MAC for about 2 µs once it is cached. Only a greeting to an address whose node is not known yet is
signed. So a sender cannot claim another node's key, and its DHT id is computed from that key.

While the network key changes there are several: each that is accepted is tried (2 µs more for a
datagram of a stranger), and what is sent goes under the sending one unless the caller names another
that still holds, for an answer to a member that is late. Which key a datagram came under is its
`generation`, a number that means nothing outside this object. Replay windows belong to senders and
not to keys, so that nothing passes a second time because a key was added.

    nonce 24 | XChaCha20-Poly1305( proof kind 1 | sender 32 | sent 8 | proof 16 or 64 | payload )

`sent` is the sender's clock in microseconds, made strictly increasing. It must be within
CLOCK_SKEW_S of ours and not seen before from that sender. A replay within the skew to a node that
has just started is the one that passes: requests are idempotent and answers are matched to a
random id, so it achieves nothing.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

# The largest UDP payload that needs no fragment on any IPv6 path: 1280 - 40 (IPv6) - 8 (UDP).
DATAGRAM_MAX_BYTES = 1232
# A machine that keeps time at all is within this; every refusal for it is counted and logged.
CLOCK_SKEW_S = 120.0
# Datagrams of one sender that may overtake each other before the oldest is refused.
REPLAY_WINDOW_DATAGRAMS = 128
# Senders whose window and secret are kept: ten times the largest mesh we plan for. About 2 MB, and
# 20 MB if all of them send as fast as they can.
SENDERS_MAX = 4096
# Network keys accepted at one time: old and new, and as many again for a change that overlaps.
GENERATIONS_MAX = 4

NONCE_BYTES = 24
_KEY_BYTES = 32
_TAG_BYTES = 16
_PAIRWISE, _SIGNED = 0, 1
_PROOF_BYTES = {_PAIRWISE: 16, _SIGNED: 64}
_KINDS = {_PAIRWISE: b"\0", _SIGNED: b"\1"}
_HEADER_BYTES = 1 + 32 + 8
_Kept = TypeVar("_Kept")
_DOMAIN = b"covey-discovery-datagram-v1\0"
# What is left for a payload in a pairwise datagram of the largest size.
PAYLOAD_MAX_BYTES = DATAGRAM_MAX_BYTES - NONCE_BYTES - _TAG_BYTES - _HEADER_BYTES - 16
_DATAGRAM_MIN_BYTES = NONCE_BYTES + _TAG_BYTES + _HEADER_BYTES + 16


class Refusal(enum.Enum):
    """Why a datagram was not opened; nobody but our own counters hears of it."""

    FOREIGN = "not sealed with this mesh's network key"
    MALFORMED = "sealed, but not of our form"
    OWN = "our own"
    CLOCK = "too old or from the future"
    UNPROVEN = "not from the node that it names, or not to us"
    REPLAY = "seen before"


@dataclass(frozen=True)
class Opened:
    """A datagram that its sender has proved to be its own, and the network key it came under."""

    sender: NodeId
    payload: bytes
    generation: int = 0


class ReplayWindow:
    """What one sender has sent lately: the times seen, in order, above a floor."""

    __slots__ = ("_floor", "_seen")

    def __init__(self) -> None:
        self._floor = 0
        self._seen: list[int] = []

    def accept(self, sent: int, oldest: int = 0) -> bool:
        """Say whether `sent` is new, and remember it; before `oldest` all is refused elsewhere."""
        seen = self._seen
        if sent <= self._floor:
            return False
        if not seen or sent > seen[-1]:
            seen.append(sent)
        else:
            at = bisect_left(seen, sent)
            if seen[at] == sent:
                return False
            seen.insert(at, sent)
        if len(seen) > REPLAY_WINDOW_DATAGRAMS:
            self._floor = seen.pop(0)
        if seen[0] < oldest:
            old = bisect_left(seen, oldest)
            self._floor = max(self._floor, seen[old - 1])
            del seen[:old]
        return True


class _Generation:
    """What follows from one network key."""

    def __init__(self, number: int, mesh_id: bytes, network_key: bytes) -> None:
        derived = HKDF(SHA256(), 64, salt=mesh_id, info=b"covey-discovery-seal-v1").derive(
            network_key
        )
        self.number = number
        self.outer, self.pairing = derived[:32], derived[32:]
        self.pairs: OrderedDict[bytes, bytes] = OrderedDict()


class Seal:
    """Seals and opens the datagrams of one node on one mesh."""

    def __init__(self, key: NodeKey, mesh_id: bytes, network_keys: NetworkKeys) -> None:
        """Take the node's key, the mesh id (32 bytes) and the network keys.

        Raises ValueError for another length, and for more keys than GENERATIONS_MAX.
        """
        if len(mesh_id) != _KEY_BYTES:
            raise ValueError("a mesh id holds 32 bytes")
        self._key = key
        self._mesh_id = mesh_id
        self._known: dict[bytes, _Generation] = {}
        self._numbers = count()
        self._shared: OrderedDict[bytes, bytes] = OrderedDict()
        self._windows: OrderedDict[bytes, ReplayWindow] = OrderedDict()
        self._last_sent = 0
        self.set_network_keys(network_keys)

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Accept these from now on, and no others; raises ValueError for too many."""
        if len(keys.accepting) > GENERATIONS_MAX:
            raise ValueError(f"at most {GENERATIONS_MAX} network keys hold at one time")
        known = self._known
        self._known = {
            key: known.get(key) or _Generation(next(self._numbers), self._mesh_id, key)
            for key in dict.fromkeys((keys.sending, *keys.accepting))
        }
        # The sending one first: most datagrams come under it.
        self._generations = tuple(self._known.values())

    @property
    def other(self) -> int | None:
        """The generation of a key that is accepted beside the sending one, or None."""
        return self._generations[1].number if len(self._generations) > 1 else None

    def seal(
        self,
        payload: bytes,
        to: NodeId | None,
        now: float,
        nonce: bytes,
        generation: int | None = None,
    ) -> bytes:
        """Return the datagram; `to` None signs it for whoever is there. `nonce`: 24 random bytes.

        `generation` is that of an opened datagram; None, or one that is retired, means the sending
        key. Raises UsageError when `to` is no point of the curve.
        """
        self._last_sent = max(self._last_sent + 1, int(now * 1e6))
        under = self._generations[0]
        if generation is not None and generation != under.number:
            under = next((g for g in self._generations if g.number == generation), under)
        kind = _SIGNED if to is None else _PAIRWISE
        header = _KINDS[kind] + self._key.id.ed25519 + self._last_sent.to_bytes(8, "big")
        if to is None:
            proof = self._key.sign(_DOMAIN + header + payload)
        else:
            proof = self._mac(under, to, header, payload)
        return nonce + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            header + proof + payload, None, nonce, under.outer
        )

    def open(self, datagram: bytes, now: float) -> Opened | Refusal:
        """Return the proved content, or why it is to be dropped. Never raises."""
        if not _DATAGRAM_MIN_BYTES <= len(datagram) <= DATAGRAM_MAX_BYTES:
            return Refusal.FOREIGN
        for generation in self._generations:
            try:
                plain = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    datagram[NONCE_BYTES:], None, datagram[:NONCE_BYTES], generation.outer
                )
            except nacl.exceptions.CryptoError:
                continue
            return self._judge(generation, plain, now)
        return Refusal.FOREIGN

    def _judge(self, generation: _Generation, plain: bytes, now: float) -> Opened | Refusal:
        header = plain[:_HEADER_BYTES]
        proof_bytes = _PROOF_BYTES.get(header[0])
        if proof_bytes is None or len(plain) < _HEADER_BYTES + proof_bytes:
            return Refusal.MALFORMED
        proof = plain[_HEADER_BYTES : _HEADER_BYTES + proof_bytes]
        payload = plain[_HEADER_BYTES + proof_bytes :]
        sender, sent = NodeId(header[1:33]), int.from_bytes(header[33:], "big")
        if sender == self._key.id:
            return Refusal.OWN
        if abs(sent / 1e6 - now) > CLOCK_SKEW_S:
            return Refusal.CLOCK
        if not self._proved(generation, sender, header, proof, payload):
            return Refusal.UNPROVEN
        window = _recall(self._windows, sender.ed25519, ReplayWindow)
        if not window.accept(sent, int((now - CLOCK_SKEW_S) * 1e6)):
            return Refusal.REPLAY
        return Opened(sender, payload, generation.number)

    def _proved(
        self, under: _Generation, sender: NodeId, header: bytes, proof: bytes, payload: bytes
    ) -> bool:
        if header[0] == _SIGNED:
            return sender.verify(proof, _DOMAIN + header + payload)
        try:
            return hmac.compare_digest(proof, self._mac(under, sender, header, payload))
        except UsageError:
            return False

    def _mac(self, under: _Generation, peer: NodeId, header: bytes, payload: bytes) -> bytes:
        pair = _recall(under.pairs, peer.ed25519, lambda: self._pair_key(under, peer))
        return hashlib.blake2b(header + payload, key=pair, digest_size=16).digest()

    def _pair_key(self, under: _Generation, peer: NodeId) -> bytes:
        shared = _recall(self._shared, peer.ed25519, lambda: self._agree(peer))
        return hashlib.blake2b(shared, key=under.pairing, digest_size=32).digest()

    def _agree(self, peer: NodeId) -> bytes:
        """Return what this node and the peer alone know, with both ends' names."""
        try:
            shared = nacl.bindings.crypto_scalarmult(
                self._key.wireguard_private, peer.wireguard_public
            )
        except (nacl.exceptions.CryptoError, RuntimeError):
            raise UsageError(f"{peer} is not a valid key") from None
        return shared + b"".join(sorted((self._key.id.ed25519, peer.ed25519)))


def _recall(kept: OrderedDict[bytes, _Kept], sender: bytes, make: Callable[[], _Kept]) -> _Kept:
    """Return the sender's entry, made if there is none; the least used one goes when it is full."""
    found = kept.get(sender)
    if found is None:
        found = kept[sender] = make()
        if len(kept) > SENDERS_MAX:
            kept.popitem(last=False)
    else:
        kept.move_to_end(sender)
    return found
