"""The node key: one 32-byte seed gives the signing key, the node id and the WireGuard key.

A core: no files, no network. `keyfile.py` stores a seed. Nothing here is ever read from a record,
so nobody can claim another node's WireGuard key or address.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import nacl.bindings
import nacl.exceptions
import nacl.signing

from agent.errors import UsageError

SEED_BYTES = 32
# An Ed25519 PeerId has 52 characters, and the time to read base58 grows with the square.
_MAX_PEER_ID_CHARACTERS = 64
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# libp2p's PeerId of an Ed25519 key: an identity multihash (0x00, length 0x24) of the protobuf
# PublicKey {type: 1 (Ed25519), data: 32 bytes}. Source: libp2p specs, peer-ids.
_PEER_ID_PREFIX = bytes.fromhex("002408011220")


@dataclass(frozen=True, order=True)
class NodeId:
    """A node's name on the mesh: its Ed25519 public key (32 bytes), written as a libp2p PeerId."""

    ed25519: bytes

    def __post_init__(self) -> None:
        """Refuse anything that is not 32 bytes."""
        if len(self.ed25519) != SEED_BYTES:
            raise UsageError(f"a node id holds 32 bytes, not {len(self.ed25519)}")

    def __str__(self) -> str:
        return _base58_encode(_PEER_ID_PREFIX + self.ed25519)

    @property
    def short(self) -> str:
        """The last eight characters, for logs and tables."""
        return str(self)[-8:]

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Read `12D3Koo…`; raises UsageError for anything that is not an Ed25519 PeerId."""
        if len(text) > _MAX_PEER_ID_CHARACTERS:
            raise UsageError(f"{text[:16]!r}… is not a node id: it has {len(text)} characters")
        try:
            raw = _base58_decode(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is not a node id: {error}") from None
        if not raw.startswith(_PEER_ID_PREFIX) or len(raw) != len(_PEER_ID_PREFIX) + SEED_BYTES:
            raise UsageError(f"{text!r} is not a node id: node ids begin with 12D3Koo")
        return cls(raw[len(_PEER_ID_PREFIX) :])

    @cached_property
    def wireguard_public(self) -> bytes:
        """The X25519 form of the key (32 bytes), by the birational map.

        Raises UsageError for bytes that are no point of the curve: a hostile record may name them.
        """
        try:
            return _to_x25519(self.ed25519)
        except (nacl.exceptions.CryptoError, RuntimeError):
            raise UsageError(f"{self} is not a valid key") from None

    @property
    def wireguard_public_base64(self) -> str:
        """The WireGuard public key as `wg` prints it."""
        return base64.b64encode(self.wireguard_public).decode()

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Say whether this node signed `message`."""
        try:
            nacl.signing.VerifyKey(self.ed25519).verify(message, signature)
        except (nacl.exceptions.CryptoError, ValueError):
            return False
        return True


@dataclass(frozen=True)
class NodeKey:
    """A node's secret: the seed (32 bytes) from which every other key is derived."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse anything that is not 32 bytes."""
        if len(self.seed) != SEED_BYTES:
            raise UsageError(f"a node key holds 32 bytes, not {len(self.seed)}")

    @cached_property
    def _signing(self) -> nacl.signing.SigningKey:
        return nacl.signing.SigningKey(self.seed)

    @cached_property
    def id(self) -> NodeId:
        """The public half."""
        return NodeId(bytes(self._signing.verify_key))

    @cached_property
    def wireguard_private(self) -> bytes:
        """The X25519 private key (32 bytes) whose public half is `id.wireguard_public`."""
        return nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(self.seed + self.id.ed25519)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        return self._signing.sign(message).signature


# The map takes 60 us, twice as long as the exchange that it is for, and a node id is made anew from
# each datagram of its node.
_to_x25519 = lru_cache(4096)(nacl.bindings.crypto_sign_ed25519_pk_to_curve25519)


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    leading = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * leading + "".join(reversed(digits))


def _base58_decode(text: str) -> bytes:
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise ValueError(f"{character!r} is not a base58 digit")
        number = number * 58 + digit
    leading = len(text) - len(text.lstrip("1"))
    return b"\0" * leading + number.to_bytes((number.bit_length() + 7) // 8, "big")
