"""Probes and signals as bytes: sealed, so that an outsider neither reads nor provokes. A core.

    datagram = MAGIC 4 | hidden sender 8 | nonce 24 | XChaCha20-Poly1305( length 2 | body | zeros )

The key is of the pair: HKDF over the X25519 secret of the two node keys and the network key. So it
takes both to make one: being a member, and being that node. What was sealed by one end does not
open as the other's, since both names are authenticated with their direction.

The receiver finds the sender by eight bytes that are a keyed hash of its name, masked with a hash
of the nonce: a member looks it up in one step, an outsider sees noise that differs each time. What
an outsider makes up names nobody and is dropped after one hash.

Every probe that asks for an answer is at least as large as the answer (`PROBE_BYTES` each; an MTU
probe is larger), so nobody can have us amplify.

**Replay.** Each start of a node draws a session number, and its stamps grow within it; a window of
REPLAY_WINDOW stamps is kept for the two newest sessions of each sender. No clock is compared: a
machine two days off has to work. What gets past, then, is a datagram from before our own start or
of a session older than two. It buys one answer, no larger, to where it came from, and that place is
asked with a token of ours before it is used. A path is only ever proved by such a token.

    WireError (PeerError)      these bytes are not for us, or damaged, or seen before
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated, TypeVar

import msgspec
import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.paths.messages import (
    DATAGRAM_MAX_BYTES,
    NUMBER_MAX,
    PROBE_BYTES,
    MtuProbe,
    Observed,
    Pong,
    Probe,
    Signal,
    WireError,
    unpack,
)
from agent.probing.port import MAGIC
from agent.unreadable import UNREADABLE

NONCE_BYTES = 24
SIGNAL_MAX_BYTES = 1000
# How far a probe may be overtaken, in probes that its sender sends to anyone: birthday probing
# sends 200 a second, so that this is some seconds.
REPLAY_WINDOW = 2048
# Four times the largest mesh that we plan for: 4 MB.
SENDERS_MAX = 4096
_SESSIONS = 2
_WINDOW_MASK = (1 << REPLAY_WINDOW) - 1
_HIDDEN_BYTES = 8
_TAG_BYTES = 16
_LENGTH_BYTES = 2
_HEADER_BYTES = len(MAGIC) + _HIDDEN_BYTES + NONCE_BYTES
_OVERHEAD_BYTES = _HEADER_BYTES + _TAG_BYTES + _LENGTH_BYTES
_SIGNAL_OVERHEAD_BYTES = _HIDDEN_BYTES + NONCE_BYTES + _TAG_BYTES + _LENGTH_BYTES
_Kept = TypeVar("_Kept")
_Count = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session: _Count
    stamp: _Count
    probe: Probe


_ENCODER = msgspec.msgpack.Encoder()
_PROBES = msgspec.msgpack.Decoder(_Envelope)
_SIGNALS = msgspec.msgpack.Decoder(Signal)


class _Window:
    """The stamps of one sender: for its newest sessions the highest, and which of those below."""

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def accept(self, session: int, stamp: int) -> bool:
        highest, seen = self._sessions.get(session, (stamp, 0))
        if stamp > highest:
            seen = (seen << min(stamp - highest, REPLAY_WINDOW)) & _WINDOW_MASK
            highest = stamp
        age = highest - stamp
        if age >= REPLAY_WINDOW or seen >> age & 1:
            return False
        self._sessions[session] = (highest, seen | 1 << age)
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return True


class _Generation:
    """What follows from one network key: how senders are hidden, and the keys of pairs."""

    def __init__(self, mesh_id: bytes, network_key: bytes) -> None:
        self.network_key = network_key
        derived = HKDF(SHA256(), 64, salt=mesh_id, info=b"covey-paths-v1").derive(network_key)
        self._naming, self._masking = derived[:32], derived[32:]
        self.members: dict[bytes, NodeId] = {}
        self.pairs: OrderedDict[bytes, bytes] = OrderedDict()

    def name(self, node: NodeId) -> bytes:
        return hashlib.blake2b(node.ed25519, key=self._naming, digest_size=_HIDDEN_BYTES).digest()

    def masked(self, name: bytes, nonce: bytes) -> bytes:
        """Hide a name; the same again brings it back."""
        mask = hashlib.blake2b(nonce, key=self._masking, digest_size=_HIDDEN_BYTES).digest()
        return bytes(a ^ b for a, b in zip(name, mask, strict=True))


class PathSeal:
    """Seals and opens what one node says to its peers about paths."""

    def __init__(
        self, key: NodeKey, mesh_id: bytes, network_keys: NetworkKeys, session: int
    ) -> None:
        """`session` is a random number of up to 63 bits, another at each start."""
        self._key = key
        self._mesh_id = mesh_id
        self._session = session & NUMBER_MAX
        self._stamp = 0
        self._members: frozenset[NodeId] = frozenset()
        self._shared: OrderedDict[bytes, bytes] = OrderedDict()
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()
        self._generations: tuple[_Generation, ...] = ()
        self.set_network_keys(network_keys)

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Send under `keys.sending` and open under each that is accepted, from now on."""
        known = {g.network_key: g for g in self._generations}
        self._generations = tuple(
            known.get(key) or _Generation(self._mesh_id, key)
            for key in dict.fromkeys((keys.sending, *keys.accepting))
        )
        self.set_members(self._members)

    def set_members(self, members: Iterable[NodeId]) -> None:
        """Say who is a member: nobody else is heard."""
        self._members = frozenset(members) - {self._key.id}
        for generation in self._generations:
            generation.members = {generation.name(node): node for node in self._members}

    def seal_probe(self, peer: NodeId, probe: Probe, nonce: bytes) -> bytes:
        """Return the datagram. `nonce`: 24 random bytes. Raises UsageError for an unusable peer."""
        self._stamp += 1
        body = _ENCODER.encode(_Envelope(self._session, self._stamp, probe))
        size = probe.size if isinstance(probe, MtuProbe) else PROBE_BYTES
        return MAGIC + self._seal(peer, MAGIC, body, size - _OVERHEAD_BYTES, nonce)

    def open_probe(self, datagram: bytes) -> tuple[NodeId, Probe]:
        """Return the sender and what it says; raises WireError."""
        if not datagram.startswith(MAGIC) or not (
            PROBE_BYTES <= len(datagram) <= DATAGRAM_MAX_BYTES
        ):
            raise WireError("not a probe")
        sender, body = self._open(datagram[len(MAGIC) :], MAGIC)
        try:
            envelope = _PROBES.decode(body)
        except UNREADABLE:
            raise WireError(f"{sender} sent a malformed probe") from None
        match envelope.probe:
            case MtuProbe(size=size) if size != len(datagram):
                raise WireError(f"{sender} sent an MTU probe of another size than it says")
            case Pong(seen=packed) | Observed(seen=packed):
                unpack(packed)
        if not _recall(self._windows, sender.ed25519, _Window()).accept(
            envelope.session, envelope.stamp
        ):
            raise WireError(f"{sender} sent this before")
        return sender, envelope.probe

    def seal_signal(self, peer: NodeId, signal: Signal, nonce: bytes) -> bytes:
        """Return the signal as bytes for whoever carries it; its order is inside, not here.

        Raises ValueError when it is longer than SIGNAL_MAX_BYTES.
        """
        sealed = self._seal(peer, b"signal", _ENCODER.encode(signal), 0, nonce)
        if len(sealed) > SIGNAL_MAX_BYTES:
            raise ValueError(f"a signal of {len(sealed)} bytes")
        return sealed

    def open_signal(self, sealed: bytes) -> tuple[NodeId, Signal]:
        """Return who wrote it and what; raises WireError."""
        if not _SIGNAL_OVERHEAD_BYTES <= len(sealed) <= SIGNAL_MAX_BYTES:
            raise WireError("not a signal")
        sender, body = self._open(sealed, b"signal")
        try:
            signal = _SIGNALS.decode(body)
        except UNREADABLE:
            raise WireError(f"{sender} sent a malformed signal") from None
        for packed in (*(c.packed for c in signal.candidates), *(o.packed for o in signal.offers)):
            unpack(packed)
        return sender, signal

    def _seal(self, peer: NodeId, what: bytes, body: bytes, size: int, nonce: bytes) -> bytes:
        under, own = self._generations[0], self._key.id
        plain = len(body).to_bytes(_LENGTH_BYTES, "big") + body.ljust(size, b"\0")
        hidden = under.masked(under.name(own), nonce)
        sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, what + own.ed25519 + peer.ed25519, nonce, self._pair_key(under, peer)
        )
        return hidden + nonce + sealed

    def _open(self, rest: bytes, what: bytes) -> tuple[NodeId, bytes]:
        hidden = rest[:_HIDDEN_BYTES]
        nonce = rest[_HIDDEN_BYTES : _HIDDEN_BYTES + NONCE_BYTES]
        sealed = rest[_HIDDEN_BYTES + NONCE_BYTES :]
        for under in self._generations:
            sender = under.members.get(under.masked(hidden, nonce))
            if sender is None:
                continue
            try:
                plain = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    sealed,
                    what + sender.ed25519 + self._key.id.ed25519,
                    nonce,
                    self._pair_key(under, sender),
                )
            except (nacl.exceptions.CryptoError, UsageError):
                raise WireError(f"not sealed by {sender} for us") from None
            end = _LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "big")
            if end > len(plain):
                raise WireError(f"{sender} sent a length beyond the end")
            return sender, plain[_LENGTH_BYTES:end]
        raise WireError("not sealed by a member of this mesh")

    def _pair_key(self, under: _Generation, peer: NodeId) -> bytes:
        found = under.pairs.get(peer.ed25519)
        if found is None:
            names = b"".join(sorted((self._key.id.ed25519, peer.ed25519)))
            found = HKDF(
                SHA256(), 32, salt=self._mesh_id, info=b"covey-paths-pair-v1" + names
            ).derive(self._agree(peer) + under.network_key)
        return _recall(under.pairs, peer.ed25519, found)

    def _agree(self, peer: NodeId) -> bytes:
        found = self._shared.get(peer.ed25519)
        if found is None:
            try:
                found = nacl.bindings.crypto_scalarmult(
                    self._key.wireguard_private, peer.wireguard_public
                )
            except (nacl.exceptions.CryptoError, RuntimeError):
                raise UsageError(f"{peer} is not a valid key") from None
        return _recall(self._shared, peer.ed25519, found)


def _recall(kept: OrderedDict[bytes, _Kept], name: bytes, new: _Kept) -> _Kept:
    """Return the entry, `new` if there is none; the one used longest ago goes when it is full."""
    found = kept.setdefault(name, new)
    kept.move_to_end(name)
    if len(kept) > SENDERS_MAX:
        kept.popitem(last=False)
    return found
