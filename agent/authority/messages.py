"""What members say to each other about membership: requests, their answers, and news. A core.

Requests and answers cross `PROTOCOL`, which members alone may use; news crosses the gossip topic
`TOPIC`. All of it is msgpack. What must be believed is signed inside, by `agent.membership`.

    request   who may ask                     answer     of whom
    -------   -----------                     ------     -------
    Renew     a member, for itself            Certified  an issuer
    Reissue   a member, its own name;         Certified  an issuer
              issuer and admin, anything
    Revoke    issuer, admin                   Done       an issuer
    Invite    issuer, admin                   Invited    an issuer
    Rotate    issuer, admin                   Rotated    an issuer
    Join      a member, for a newcomer        Joined     the ticket's issuer
    Depart    who leaves                      Done       any member
    Sync      a member                        Synced     any member
    GetKeys   a member                        Keys       any member
    Push      a member                        Done       the certificate's node
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from agent.errors import PeerError
from agent.membership.certificate import MAX_BYTES, Roles, Tags
from agent.membership.keyring import Offer, SignedBytes
from agent.membership.revocation import Have
from agent.membership.wire import Key
from agent.unreadable import UNREADABLE

PROTOCOL = "/covey/authority/1"
TOPIC = "members"
# Gossip carries 64 KiB at most; a longer list is only named, and fetched.
MAX_NEWS_BYTES = 48 * 1024
MAX_CERTIFICATES = 100
# An answer holds 4 MiB at most; what does not fit comes with the next one.
MAX_LISTS_BYTES = 3 * 1024 * 1024
# One list of each issuer, and a farewell of each who left in a year.
MAX_HAVE = 16384

_Certificate = Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=256)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="say"):
    """A tagged msgpack map."""


class Renew(Message, frozen=True, tag="renew"):
    """Give me a newer certificate; `against` is one of a member whose name or address I have."""

    certificate: _Certificate
    against: _Certificate = b""


class Reissue(Message, frozen=True, tag="reissue"):
    """Give `node` (Ed25519) a certificate with what is not None changed."""

    node: Key
    name: _Text | None = None
    roles: Roles | None = None
    tags: Tags | None = None


class Revoke(Message, frozen=True, tag="revoke"):
    """Put `node` (Ed25519) out of the mesh."""

    node: Key
    reason: _Text = ""


class Invite(Message, frozen=True, tag="invite"):
    """Make a ticket."""

    ttl_s: float
    uses: int
    roles: Roles
    tags: Tags


class Rotate(Message, frozen=True, tag="rotate"):
    """Change the network key."""

    overlap_s: float
    force: bool = False


class Join(Message, frozen=True, tag="join"):
    """A newcomer asked me, and you are its ticket's issuer: the bytes of its request."""

    request: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Depart(Message, frozen=True, tag="depart"):
    """I leave: my farewell, the bytes of a revocation list."""

    farewell: Annotated[bytes, msgspec.Meta(max_length=2048)]


class Sync(Message, frozen=True, tag="sync"):
    """What I have; tell me what I lack."""

    certificate: _Certificate
    have: Annotated[tuple[Have, ...], msgspec.Meta(max_length=MAX_HAVE)]


class GetKeys(Message, frozen=True, tag="keys"):
    """Give me the network keys."""


class Push(Message, frozen=True, tag="push"):
    """Your new certificate."""

    certificate: _Certificate


Request = Renew | Reissue | Revoke | Invite | Rotate | Join | Depart | Sync | GetKeys | Push


class Done(Message, frozen=True, tag="done"):
    """It is so."""


class Certified(Message, frozen=True, tag="certified"):
    """The certificate that the node shall have."""

    certificate: _Certificate


class Invited(Message, frozen=True, tag="invited"):
    """The ticket as text."""

    ticket: Annotated[str, msgspec.Meta(max_length=8192)]


class Rotated(Message, frozen=True, tag="rotated"):
    """The signed key change."""

    change: SignedBytes


class Joined(Message, frozen=True, tag="joined"):
    """The bytes of the issuer's signed reply to the newcomer."""

    reply: bytes


class Synced(Message, frozen=True, tag="synced"):
    """Revocation lists that the asker lacks, its newer certificate, and all key changes."""

    lists: tuple[bytes, ...]
    changes: tuple[SignedBytes, ...]
    certificate: _Certificate = b""


class Keys(Message, frozen=True, tag="keys"):
    """The network keys that are not retired."""

    offer: Offer


Answer = Done | Certified | Invited | Rotated | Joined | Synced | Keys


class NewCertificates(Message, frozen=True, tag="certificates"):
    """Somebody's certificates are new."""

    certificates: Annotated[tuple[_Certificate, ...], msgspec.Meta(max_length=MAX_CERTIFICATES)]


class NewList(Message, frozen=True, tag="list"):
    """A revocation list or a farewell is new."""

    made: Annotated[bytes, msgspec.Meta(max_length=MAX_NEWS_BYTES)]


class NewListThere(Message, frozen=True, tag="list-there"):
    """A revocation list is new, and too long to be told this way: ask for it."""

    have: Have


class NewKey(Message, frozen=True, tag="key"):
    """The network key changes; the key itself is to be asked for."""

    change: SignedBytes


News = NewCertificates | NewList | NewListThere | NewKey

_T = TypeVar("_T", bound=Message)
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_news = msgspec.msgpack.Decoder(News).decode
_decode_have = msgspec.msgpack.Decoder(Have).decode


def encode(message: Request | Answer | News | Have) -> bytes:
    """Return the message's bytes."""
    return msgspec.msgpack.encode(message)


def decode_request(raw: bytes) -> Request:
    """Read a request; raises PeerError for anything else."""
    try:
        request: Request = _decode_request(raw)
    except UNREADABLE:
        raise _nonsense("a request") from None
    return request


def decode_answer(raw: bytes, kind: type[_T]) -> _T:
    """Read the answer of a kind; raises PeerError for anything else."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except UNREADABLE:
        raise _nonsense("an answer") from None


def decode_news(raw: bytes) -> News:
    """Read a piece of news; raises PeerError for anything else."""
    try:
        news: News = _decode_news(raw)
    except UNREADABLE:
        raise _nonsense("news") from None
    return news


def decode_have(raw: bytes) -> Have:
    """Read what an issuer announces in the DHT; raises PeerError for anything else."""
    try:
        return _decode_have(raw)
    except UNREADABLE:
        raise _nonsense("an announcement") from None


def _nonsense(what: str) -> PeerError:
    return PeerError(
        f"{what} about membership makes no sense", hint="It may run another version of Covey."
    )
