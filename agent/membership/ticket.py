"""The string that lets a newcomer join (design §4). A core.

    covey1 base32(msgpack array ‖ CRC-32), lower case, no padding

Base32 survives being read aloud, and in capitals it is what QR codes hold most densely; so a ticket
all in capitals is read too, but not one in mixed case. CRC-32 finds every damaged character for
certain; it is no protection, and need not be: the secret and the mesh id are. The digit after
"covey" is the version. Whoever has a ticket can join, so it is never logged; `repr` hides it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from agent import endpoint
from agent.errors import TicketError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import spell, wire
from agent.membership.certificate import Name
from agent.membership.wire import Key, Time

VERSION = 1
INVITE_ID_BYTES = 8
SECRET_BYTES = 16
MAX_ADDRESSES = 8
_WORD = "covey"
_PREFIX = f"{_WORD}{VERSION}"
_CHECKSUM_BYTES = 4
_INVITE_KEY_PREFIX = b"covey-invite-key-v1\0"
# Eight of the longest host names fit; more is not a ticket, and is not worth decoding.
_MAX_CHARACTERS = 8192
_BASE32_GROUP = 8

InviteId = Annotated[bytes, msgspec.Meta(min_length=INVITE_ID_BYTES, max_length=INVITE_ID_BYTES)]
Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
Address = Annotated[str, msgspec.Meta(max_length=endpoint.MAX_CHARACTERS)]
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a newcomer needs: which mesh, whom to ask and where, and the invite's secret.

    `mesh_id`, `network_key` and `issuer` (Ed25519) are 32 bytes; `addresses` are HOST:PORT of any
    members' control planes (TCP, underlay); `not_after` is unix seconds.
    """

    version: int
    mesh_id: Key
    mesh_name: Name
    network_key: Key
    issuer: Key
    invite_id: InviteId
    secret: Secret
    addresses: Addresses
    not_after: Time

    def __repr__(self) -> str:
        return f"Ticket(mesh_name={self.mesh_name!r}, not_after={self.not_after}, …)"

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read a ticket; spaces and line breaks from pasting are ignored.

        Raises TicketError: not a ticket at all, cut short or garbled, or from a newer version.
        """
        text = "".join(text[:_MAX_CHARACTERS].split())
        if text.isupper():
            text = text.lower()
        word, version, body = text[:5], text[5:6], text[6:]
        if word != _WORD or not version.isascii() or not version.isdigit() or version == "0":
            raise TicketError(
                "this is not a ticket",
                hint=f"A ticket is one long word that begins with {_PREFIX}.",
            )
        if int(version) > VERSION:
            raise wire.newer("this ticket", TicketError)
        raw = _from_base32(body)
        payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if _checksum(payload) != checksum:
            raise _garbled()
        ticket = wire.decode(payload, cls, "this ticket", VERSION, TicketError)
        try:
            for address in ticket.addresses:
                endpoint.split(address)
        except UsageError:
            raise _garbled() from None
        return ticket

    def encode(self) -> str:
        """Return the ticket as text."""
        payload = msgspec.msgpack.encode(self)
        raw = payload + _checksum(payload)
        return _PREFIX + _to_base32(raw)

    @property
    def issuer_id(self) -> NodeId:
        """The node that decides; any member passes the question on to it."""
        return NodeId(self.issuer)

    @property
    def invite_key(self) -> NodeKey:
        """The key whose public half the issuer knows this ticket's invite by."""
        return invite_key(self.secret)

    def at(self, addresses: Sequence[str]) -> Ticket:
        """Return the same ticket with other addresses; raises UsageError for one that is none."""
        if len(addresses) > MAX_ADDRESSES:
            raise UsageError(f"a ticket holds at most {MAX_ADDRESSES} addresses")
        for address in addresses:
            endpoint.split(address)
        return msgspec.structs.replace(self, addresses=tuple(addresses))

    def expired(self, now: float) -> bool:
        """Say whether the ticket's time is over at `now` (unix seconds)."""
        return now > self.not_after

    def check(self, now: float) -> None:
        """Raise TicketError, saying how long ago, when the ticket's time is over."""
        if self.expired(now):
            raise expired(now - self.not_after)


def invite_key(secret: bytes) -> NodeKey:
    """Return the invite's key for a ticket's secret (16 bytes)."""
    return NodeKey(hashlib.sha256(_INVITE_KEY_PREFIX + secret).digest())


def expired(ago_s: float) -> TicketError:
    """Return the error for a ticket whose time was over `ago_s` seconds ago."""
    return TicketError(
        f"this ticket expired {spell.duration(ago_s)} ago",
        hint="Ask for a new one (`agent invite`), or check this machine's clock.",
    )


def _garbled() -> TicketError:
    return TicketError(
        "this ticket is cut short or garbled",
        hint="Copy it again, from the first to the last letter.",
    )


def _checksum(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(_CHECKSUM_BYTES, "big")


def _to_base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    padding = "=" * (-len(text) % _BASE32_GROUP)
    try:
        raw = base64.b32decode(text.upper() + padding)
    except (binascii.Error, ValueError):
        raise _garbled() from None
    # Mixed case, and bits set in the last character that no byte uses, would be second spellings.
    if _to_base32(raw) != text:
        raise _garbled()
    return raw
