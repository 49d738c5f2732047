"""The datagrams by which a side of a pair proves its place to a relay. A core.

They go from WireGuard's own port to the side's port at the relay, so the relay sees the place from
which WireGuard will send. WireGuard ignores them by their first word, the relay tells them by it.

    magic 4 | nonce 24 | XChaCha20-Poly1305( kind 1 | allocation 8 | sent 8 | cookie 16 | seen 20 )

    Open       side → relay   here I am; with the cookie of a Challenge once it has one
    Challenge  relay → side   say that again with this cookie, from there
    Opened     relay → side   your place counts; `seen` is what it looks like from here

The key follows from the secret of the two node keys and from the network key: nobody else can read,
make or provoke one, and the direction is authenticated, so nothing can be sent back at its sender.
All have one length: an answer is never longer than what asked for it. `sent` is the side's clock in
microseconds, strictly increasing, and answers repeat it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.probing.port import MAGIC
from agent.relay.messages import ID_BYTES
from agent.relay.pairs import Place

NONCE_BYTES = 24
COOKIE_BYTES = 16
NO_COOKIE = bytes(COOKIE_BYTES)
_TAG_BYTES = 16
_SEEN_BYTES = 20
_PLAIN_BYTES = 1 + ID_BYTES + 8 + COOKIE_BYTES + _SEEN_BYTES
DATAGRAM_BYTES = len(MAGIC) + NONCE_BYTES + _PLAIN_BYTES + _TAG_BYTES
_MAX_SENT_US = 2**63 - 1
_OPEN, _CHALLENGE, _OPENED = 1, 2, 3


@dataclass(frozen=True)
class Open:
    """Here I am; `cookie` is NO_COOKIE before a Challenge gave one."""

    id: bytes
    sent_us: int
    cookie: bytes = NO_COOKIE


@dataclass(frozen=True)
class Challenge:
    """Say that again with `cookie`."""

    id: bytes
    sent_us: int
    cookie: bytes


@dataclass(frozen=True)
class Opened:
    """The place counts and is seen as `seen`; `peer_open`: the other side's counts as well."""

    id: bytes
    sent_us: int
    seen: Place
    peer_open: bool


Message = Open | Challenge | Opened


class PairSeal:
    """Seals and opens what one node and one relay say to each other, seen from one of them."""

    def __init__(self, own: NodeKey, other: NodeId, mesh_id: bytes, keys: NetworkKeys) -> None:
        """Take our key, the other end, and the mesh's id and keys.

        Raises UsageError when the other is no point of the curve.
        """
        try:
            shared = nacl.bindings.crypto_scalarmult(own.wireguard_private, other.wireguard_public)
        except (nacl.exceptions.CryptoError, RuntimeError):
            raise UsageError(f"{other} is not a valid key") from None
        secret = shared + b"".join(sorted((own.id.ed25519, other.ed25519)))
        self._sending = _derive(secret, mesh_id, keys.sending)
        self._accepting = tuple(_derive(secret, mesh_id, key) for key in keys.accepting)
        self._out = MAGIC + own.id.ed25519 + other.ed25519
        self._in = MAGIC + other.ed25519 + own.id.ed25519

    def seal(self, message: Message, nonce: bytes) -> bytes:
        """Return the datagram, DATAGRAM_BYTES long. `nonce`: 24 random bytes."""
        sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            _encode(message), self._out, nonce, self._sending
        )
        return MAGIC + nonce + sealed

    def open(self, datagram: bytes) -> Message | None:
        """Return the message, or None for anything that the other end did not seal for us."""
        if len(datagram) != DATAGRAM_BYTES or not datagram.startswith(MAGIC):
            return None
        nonce, sealed = datagram[4 : 4 + NONCE_BYTES], datagram[4 + NONCE_BYTES :]
        for key in self._accepting:
            try:
                plain = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    sealed, self._in, nonce, key
                )
            except nacl.exceptions.CryptoError:
                continue
            return _decode(plain)
        return None


def packed(place: Place) -> bytes:
    """Return a place as 19 bytes: the family, the address, the port."""
    address = ip_address(place[0])
    return bytes([address.version]) + address.packed.ljust(16, b"\0") + place[1].to_bytes(2, "big")


def _derive(secret: bytes, mesh_id: bytes, network_key: bytes) -> bytes:
    key = HKDF(SHA256(), 32, salt=mesh_id, info=b"covey-relay-open-v1").derive(network_key)
    return hashlib.blake2b(secret, key=key, digest_size=32).digest()


def _encode(message: Message) -> bytes:
    cookie, seen = NO_COOKIE, bytes(_SEEN_BYTES)
    match message:
        case Open():
            kind, cookie = _OPEN, message.cookie
        case Challenge():
            kind, cookie = _CHALLENGE, message.cookie
        case Opened():
            kind, seen = _OPENED, packed(message.seen) + bytes([message.peer_open])
    return bytes([kind]) + message.id + message.sent_us.to_bytes(8, "big") + cookie + seen


def _decode(plain: bytes) -> Message | None:
    kind, identity = plain[0], plain[1 : 1 + ID_BYTES]
    at = 1 + ID_BYTES
    sent_us = int.from_bytes(plain[at : at + 8], "big")
    cookie, seen = plain[at + 8 : at + 8 + COOKIE_BYTES], plain[at + 8 + COOKIE_BYTES :]
    if sent_us > _MAX_SENT_US:
        return None
    if kind == _OPENED and cookie == NO_COOKIE and seen[-1] <= 1:
        place = _unpacked(seen[:-1])
        return None if place is None else Opened(identity, sent_us, place, bool(seen[-1]))
    if any(seen):
        return None
    if kind == _OPEN:
        return Open(identity, sent_us, cookie)
    if kind == _CHALLENGE:
        return Challenge(identity, sent_us, cookie)
    return None


def _unpacked(raw: bytes) -> Place | None:
    family, address, port = raw[0], raw[1:17], int.from_bytes(raw[17:], "big")
    if family == 4 and not any(address[4:]):
        return str(IPv4Address(address[:4])), port
    if family == 6:
        return str(IPv6Address(address)), port
    return None
