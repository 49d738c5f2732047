"""What a member says of itself on the LAN, sealed and signed. A core.

    nonce 24 | XChaCha20-Poly1305( signature 64 | length 2 | msgpack array | zeros )

Every announcement has the same length, whatever is in it, and looks like random bytes to whoever
lacks the network key. The signature by the node's key keeps another holder of the network key from
speaking for that node; the addresses are inside, so a replay from elsewhere leads nowhere new.
`peers.py` judges what comes; the mesh id is no field, since it goes into key and signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated

import msgspec

from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import wire
from agent.membership.networkkeys import NetworkKeys
from agent.sealing import OVERHEAD_BYTES, NetworkSeal

VERSION = 1
# One interface's addresses: its IPv4 and a few IPv6 prefixes. More would not be tried anyway.
ADDRESSES_MAX = 6
_SIGNATURE_BYTES = 64
_LENGTH_BYTES = 2
# The longest body (six IPv6 addresses) has 169 bytes; the rest is room for a later version.
_PLAIN_BYTES = 256
SEALED_BYTES = _PLAIN_BYTES + OVERHEAD_BYTES
_PURPOSE = b"covey-lan-announcement-v1"
_DOMAIN = b"covey-lan-announcement-v1\0"

Address = IPv4Address | IPv6Address
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Packed = Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Link = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Ports(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a member listens: control plane (TCP), discovery and WireGuard (UDP)."""

    control: Port
    discovery: Port
    wireguard: Port


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member on one of its links, at one moment.

    `node` is its Ed25519 key (32 bytes), `sent_us` its clock in unix microseconds, strictly
    increasing, `link` the number that it gives to the interface, `packed` that interface's
    addresses (4 or 16 bytes each). One that is `leaving` goes away and is reached nowhere.
    """

    version: int
    node: _Key
    sent_us: _Time
    link: _Link
    ports: Ports
    leaving: bool
    packed: Annotated[tuple[_Packed, ...], msgspec.Meta(max_length=ADDRESSES_MAX)]

    @property
    def id(self) -> NodeId:
        """The node that it names; proved only by `AnnouncementSeal.proved`."""
        return NodeId(self.node)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses, best first. Raises ValueError for 5 to 15 bytes; `open` refuses those."""
        return tuple(ip_address(packed) for packed in self.packed)


class Sealed(msgspec.Struct, frozen=True):
    """What came out of the seal: an announcement whose signature is not checked yet."""

    announcement: Announcement
    signature: bytes


class AnnouncementSeal:
    """Seals and opens the announcements of one mesh."""

    def __init__(self, mesh_id: bytes, keys: NetworkKeys) -> None:
        """Take the mesh id (32 bytes) and its network keys."""
        self._mesh_id = mesh_id
        self._seal = NetworkSeal(mesh_id, keys, _PURPOSE)

    def seal(self, announcement: Announcement, key: NodeKey, nonce: bytes) -> bytes:
        """Return SEALED_BYTES, signed by `key`, under the sending key. `nonce`: 24 random bytes."""
        body = msgspec.msgpack.encode(announcement)
        plain = key.sign(self._signed(body)) + len(body).to_bytes(_LENGTH_BYTES, "big") + body
        return self._seal.seal(plain.ljust(_PLAIN_BYTES, b"\0"), nonce)

    def open(self, sealed: bytes) -> Sealed | None:
        """Return what is inside, not proved yet; None when it is not of this mesh.

        Raises PeerError when a holder of the network key sealed something that is no announcement.
        """
        if len(sealed) != SEALED_BYTES:
            return None
        plain = self._seal.open(sealed)
        if plain is None:
            return None
        rest = plain[_SIGNATURE_BYTES:]
        length = int.from_bytes(rest[:_LENGTH_BYTES], "big")
        body, padding = rest[_LENGTH_BYTES:][:length], rest[_LENGTH_BYTES + length :]
        announcement = wire.decode(body, Announcement, "a LAN announcement", VERSION, PeerError)
        if any(padding) or any(len(packed) not in (4, 16) for packed in announcement.packed):
            raise PeerError("a LAN announcement is damaged")
        return Sealed(announcement, plain[:_SIGNATURE_BYTES])

    def proved(self, sealed: Sealed) -> bool:
        """Say whether the node that the announcement names has signed it (some 100 µs)."""
        body = msgspec.msgpack.encode(sealed.announcement)
        return sealed.announcement.id.verify(sealed.signature, self._signed(body))

    def _signed(self, body: bytes) -> bytes:
        return _DOMAIN + self._mesh_id + body


def pack(addresses: Sequence[Address]) -> tuple[bytes, ...]:
    """Return the best of the addresses, as an announcement holds them."""
    return tuple(address.packed for address in addresses[:ADDRESSES_MAX])


def usable(address: Address, *, loopback: bool) -> bool:
    """Say whether another member can be told, or tries, this address.

    A link-local IPv6 address means nothing without the interface at the other end, which our
    endpoints do not carry. Loopback is for nodes on one machine.
    """
    if address.is_loopback:
        return loopback
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return False
    return not (address.version == 6 and address.is_link_local)
