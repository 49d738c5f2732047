"""Signed, expiring statements by nodes, kept in the DHT: their form and their verification. A core.

Used by `store.py` and `node.py`; the daemon builds `MemberRecord` and reads both kinds.

Every record carries its node's certificate, so whoever reads one can judge it alone: the
certificate says that the node is a member, the node's signature says that the words are its own.

    kind 1 ("M" or "S") | signature 64 | body (msgpack array)

The signature covers a domain, the mesh id, the kind and the exact bytes of the body. The sequence
is the publisher's unix time in ms (or one more than its last): a node that lost its state is not
locked out by what it published before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent.discovery.dhtkeys import listing_path, member_key, news_key, service_key
from agent.discovery.seal import CLOCK_SKEW_S
from agent.errors import CoveyError
from agent.identity.keys import NodeId, NodeKey

# One record must fit a datagram together with what surrounds it (design §5).
RECORD_MAX_BYTES = 1000
PAYLOAD_MAX_BYTES = 300
SERVICE_NAME_MAX_BYTES = 64
ENDPOINTS_MAX = 16
ENDPOINT_MAX_BYTES = 128
# A record that outlives its node for longer than this would only mislead.
TTL_MAX_S = 2 * 3600
# How long a verdict on a certificate stands: a revocation must bite within seconds (5 s at most).
CERTIFICATE_VERDICT_S = 2.0
# Verified records and certificates that are remembered, so that a poll verifies only what is new.
REMEMBERED_MAX = 4096

_T = TypeVar("_T")
_DOMAIN = b"covey-record-v1\0"
_MEMBER, _SERVICE = b"M", b"S"
_SIGNATURE_BYTES = 64
_HEAD_BYTES = 1 + _SIGNATURE_BYTES

VerifyCertificate = Callable[[bytes, float], NodeId]
"""(certificate, now in unix s) → its node; raises MembershipError unless it is a member now."""
IsMember = Callable[[NodeId, float], bool]
"""Says without arithmetic that a node is a member at a time (unix s); False when it is not
known."""


class MemberRecord(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Where a member can be reached. Endpoints are "HOST:PORT" or "[IPv6]:PORT", best first.

    `seq` (unix ms) and `expiry` (unix s) are set by `Discovery.publish_member`.
    """

    node: bytes
    certificate: bytes
    wireguard_endpoints: tuple[str, ...] = ()
    control_addresses: tuple[str, ...] = ()
    discovery_endpoints: tuple[str, ...] = ()
    seq: int = 0
    expiry: int = 0

    @property
    def id(self) -> NodeId:
        """The node that signed it."""
        return NodeId(self.node)


class ServiceRecord(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """One node's word that it provides `service`; `withdrawn` takes the word back.

    `payload` is at most 300 bytes, by convention a msgpack map; `seq` is unix ms, `expiry` unix s.
    """

    node: bytes
    certificate: bytes
    service: str
    payload: bytes = b""
    seq: int = 0
    expiry: int = 0
    withdrawn: bool = False

    @property
    def id(self) -> NodeId:
        """The node that signed it."""
        return NodeId(self.node)


Record = MemberRecord | ServiceRecord

_decode_member = msgspec.msgpack.Decoder(MemberRecord).decode
_decode_service = msgspec.msgpack.Decoder(ServiceRecord).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class Signed:
    """A record that was verified, with the bytes that prove it and the DHT keys it belongs to."""

    record: Record
    raw: bytes
    keys: tuple[bytes, ...]

    @property
    def key(self) -> bytes:
        """The key under which it stands alone: the member's or the service's."""
        return self.keys[0]


def record_keys(mesh_id: bytes, record: Record) -> tuple[bytes, ...]:
    """Return the only DHT keys (20 bytes each) under which this record may be stored.

    A service record has one. A member record has its node's, then those of the listing, the root
    first, then that of the news.
    """
    if isinstance(record, ServiceRecord):
        return (service_key(mesh_id, record.service),)
    node = record.id
    return (member_key(mesh_id, node), *listing_path(mesh_id, node), news_key(mesh_id))


def sign(key: NodeKey, mesh_id: bytes, record: Record) -> Signed:
    """Return the record signed by its node.

    Raises ValueError when the record is another node's, breaks a limit or is over 1,000 bytes.
    """
    if record.node != key.id.ed25519:
        raise ValueError("a record is signed by the node that it names")
    if reason := _excess(record):
        raise ValueError(reason)
    kind, body = _kind(record), _encode(record)
    raw = kind + key.sign(_DOMAIN + mesh_id + kind + body) + body
    if len(raw) > RECORD_MAX_BYTES:
        raise ValueError(f"a record holds at most {RECORD_MAX_BYTES} bytes, this one {len(raw)}")
    return Signed(record, raw, record_keys(mesh_id, record))


class Verifier:
    """Judges certificates and records; remembers what it has judged. Never raises on any bytes."""

    def __init__(
        self,
        mesh_id: bytes,
        verify_certificate: VerifyCertificate,
        is_member: IsMember | None = None,
    ) -> None:
        """With `is_member`, a certificate is verified once and not each time its verdict ages."""
        self._mesh_id = mesh_id
        self._verify_certificate = verify_certificate
        self._is_member = is_member
        self._certificates: OrderedDict[bytes, tuple[float, NodeId | None]] = OrderedDict()
        self._records: OrderedDict[bytes, Signed] = OrderedDict()

    def member(self, certificate: bytes, now: float) -> NodeId | None:
        """Return the node that the certificate makes a member now, or None."""
        known = self._certificates.get(certificate)
        if known is not None and abs(now - known[0]) < CERTIFICATE_VERDICT_S:
            return known[1]
        node: NodeId | None = known[1] if known is not None else None
        if node is None or self._is_member is None or not self._is_member(node, now):
            try:
                node = self._verify_certificate(certificate, now)
            except CoveyError:
                node = None
        _remember(self._certificates, certificate, (now, node))
        return node

    def recheck(self) -> None:
        """Judge each certificate anew when it is next needed: who is a member has changed."""
        for certificate, (_, node) in self._certificates.items():
            self._certificates[certificate] = (float("-inf"), node)

    def record(self, raw: bytes, key: bytes, now: float) -> Signed | None:
        """Return the record if it is genuine, current and belongs under `key`; else None."""
        signed = self._records.get(raw)
        if signed is None:
            signed = self._judge(raw, now)
            if signed is None:
                return None
            _remember(self._records, raw, signed)
        return signed if key in signed.keys and self.current(signed, now) else None

    def current(self, signed: Signed, now: float) -> bool:
        """Say whether a genuine record still holds: unexpired, and its node still a member."""
        record = signed.record
        if not now < record.expiry <= now + TTL_MAX_S + CLOCK_SKEW_S:
            return False
        if record.seq > (now + 2 * CLOCK_SKEW_S) * 1000:
            return False
        member = self.member(record.certificate, now)
        return member is not None and member.ed25519 == record.node

    def _judge(self, raw: bytes, now: float) -> Signed | None:
        """Check form, limits, certificate and signature: all that does not change with time."""
        if not _HEAD_BYTES < len(raw) <= RECORD_MAX_BYTES:
            return None
        kind, signature, body = raw[:1], raw[1:_HEAD_BYTES], raw[_HEAD_BYTES:]
        record: Record
        try:
            if kind == _MEMBER:
                record = _decode_member(body)
            elif kind == _SERVICE:
                record = _decode_service(body)
            else:
                return None
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        if _excess(record) or _encode(record) != body:
            return None
        if self.member(record.certificate, now) != record.id:
            return None
        if not record.id.verify(signature, _DOMAIN + self._mesh_id + kind + body):
            return None
        return Signed(record, raw, record_keys(self._mesh_id, record))


def _kind(record: Record) -> bytes:
    return _MEMBER if isinstance(record, MemberRecord) else _SERVICE


def _excess(record: Record) -> str:
    """Return which limit the record breaks, or an empty string."""
    if len(record.node) != 32:
        return "a record names its node by 32 bytes"
    if record.seq < 0 or record.expiry < 0:
        return "sequence and expiry are not negative"
    if isinstance(record, ServiceRecord):
        if not 1 <= len(record.service.encode(errors="replace")) <= SERVICE_NAME_MAX_BYTES:
            return f"a service's name holds 1 to {SERVICE_NAME_MAX_BYTES} bytes"
        if len(record.payload) > PAYLOAD_MAX_BYTES:
            return f"a service's payload holds at most {PAYLOAD_MAX_BYTES} bytes"
        return ""
    for endpoints in (
        record.wireguard_endpoints,
        record.control_addresses,
        record.discovery_endpoints,
    ):
        if len(endpoints) > ENDPOINTS_MAX:
            return f"a member record lists at most {ENDPOINTS_MAX} endpoints of a kind"
        if any(len(endpoint) > ENDPOINT_MAX_BYTES for endpoint in endpoints):
            return f"an endpoint holds at most {ENDPOINT_MAX_BYTES} bytes"
    return ""


def _remember(kept: OrderedDict[bytes, _T], key: bytes, value: _T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > REMEMBERED_MAX:
        kept.popitem(last=False)
