"""GossipSub's messages on the wire (/meshsub/1.1.0): one `Rpc` as protobuf. A core.

Written by hand, because a generated parser first builds every object that a hostile message names:
256 KiB of empty submessages become some 60 MB. Here nothing is kept beyond the limits below. What
we do not use (peer exchange, libp2p's own signatures, extensions) is skipped when read and never
written. `gossip.py` says what an Rpc means.

    RPC       1 subscriptions* {1 subscribe, 2 topic}   2 publish* {2 data, 4 topic*}   3 control
    control   1 ihave* {1 topic, 2 id*}   2 iwant* {1 id*}   3 graft* {1 topic}   4 prune* {1 topic}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.control.envelope import MAX_TOPIC_CHARACTERS

# Inbound, of one RPC. We write at most 64 KiB and one message more.
MAX_RPC_BYTES = 256 * 1024
MAX_ITEMS = 512
MAX_IDS = 1024
# An id of ours has 20 bytes; other programs use up to 64.
MAX_ID_BYTES = 64
# Of all messages in it together: what has no meaning to us takes time as well.
MAX_FIELDS = 4096
LENGTH_BYTES = 3

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_VARINT_BYTES = 10


class RpcError(ValueError):
    """The bytes are no RPC, or one beyond the limits; the message says what, as a clause."""


@dataclass
class Rpc:
    """One RPC. `published` holds (topic, data), `ihave` topic → message ids."""

    subscriptions: list[tuple[str, bool]] = field(default_factory=list)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    ihave: list[tuple[str, list[bytes]]] = field(default_factory=list)
    iwant: list[bytes] = field(default_factory=list)
    graft: list[str] = field(default_factory=list)
    prune: list[str] = field(default_factory=list)


def encode(rpc: Rpc) -> bytes:
    """Return the RPC's bytes, without the length that goes in front of them on a stream."""
    out = bytearray()
    for topic, subscribe in rpc.subscriptions:
        out += _bytes(1, _number(1, int(subscribe)) + _bytes(2, topic.encode()))
    for topic, data in rpc.published:
        out += _bytes(2, _bytes(2, data) + _bytes(4, topic.encode()))
    control = bytearray()
    for topic, ids in rpc.ihave:
        control += _bytes(1, _bytes(1, topic.encode()) + _repeated(2, ids))
    if rpc.iwant:
        control += _bytes(2, _repeated(1, rpc.iwant))
    for topic in rpc.graft:
        control += _bytes(3, _bytes(1, topic.encode()))
    for topic in rpc.prune:
        control += _bytes(4, _bytes(1, topic.encode()))
    if control:
        out += _bytes(3, bytes(control))
    return bytes(out)


def decode(raw: bytes) -> Rpc:
    """Return the RPC in `raw`; raises RpcError. Topics that are no text are left out."""
    if len(raw) > MAX_RPC_BYTES:
        raise RpcError(f"{len(raw)} bytes, and the limit is {MAX_RPC_BYTES}")
    rpc = Rpc()
    budget = _Budget()
    for number, value in _fields(raw, budget):
        match number:
            case 1:
                budget.item()
                _read_subscription(_message(value), rpc, budget)
            case 2:
                budget.item()
                _read_published(_message(value), rpc, budget)
            case 3:
                budget.item()
                _read_control(_message(value), rpc, budget)
    return rpc


def encode_length(size: int) -> bytes:
    """Return the varint that stands in front of an RPC of `size` bytes on a stream."""
    return _varint(size)


def decode_length(head: bytes) -> int | None:
    """Return the length that `head` holds, or None if more bytes are needed.

    Raises RpcError for a length over the limit, or a varint longer than that needs.
    """
    if head and head[-1] < 0x80:
        size = 0
        for index, byte in enumerate(head):
            size |= (byte & 0x7F) << (7 * index)
        if size > MAX_RPC_BYTES:
            raise RpcError(f"{size} bytes announced, and the limit is {MAX_RPC_BYTES}")
        return size
    if len(head) >= LENGTH_BYTES:
        raise RpcError("a length that is too long")
    return None


class _Budget:
    """What one RPC may still name."""

    def __init__(self) -> None:
        self._items, self._ids, self._fields = MAX_ITEMS, MAX_IDS, MAX_FIELDS

    def field(self) -> None:
        self._fields -= 1
        if self._fields < 0:
            raise RpcError(f"more than {MAX_FIELDS} fields")

    def item(self) -> None:
        self._items -= 1
        if self._items < 0:
            raise RpcError(f"more than {MAX_ITEMS} items")

    def id(self) -> None:
        self._ids -= 1
        if self._ids < 0:
            raise RpcError(f"more than {MAX_IDS} message ids")


def _read_subscription(raw: bytes, rpc: Rpc, budget: _Budget) -> None:
    subscribe, topic = False, None
    for number, value in _fields(raw, budget):
        if number == 1 and isinstance(value, int):
            subscribe = bool(value)
        elif number == 2:
            topic = _topic(value)
    if topic is not None:
        rpc.subscriptions.append((topic, subscribe))


def _read_published(raw: bytes, rpc: Rpc, budget: _Budget) -> None:
    data, topics = None, 0
    topic = None
    for number, value in _fields(raw, budget):
        if number == 2:
            data = _message(value)
        elif number == 4:
            topic, topics = _topic(value), topics + 1
    if data is not None and topic is not None and topics == 1:
        rpc.published.append((topic, data))


def _read_control(raw: bytes, rpc: Rpc, budget: _Budget) -> None:
    for number, value in _fields(raw, budget):
        budget.item()
        match number:
            case 1:
                _read_ihave(_message(value), rpc, budget)
            case 2:
                rpc.iwant += [_id(v, budget) for n, v in _fields(_message(value), budget) if n == 1]
            case 3:
                rpc.graft += _topics(_message(value), budget)
            case 4:
                rpc.prune += _topics(_message(value), budget)


def _read_ihave(raw: bytes, rpc: Rpc, budget: _Budget) -> None:
    topic, ids = None, []
    for number, value in _fields(raw, budget):
        if number == 1:
            topic = _topic(value)
        elif number == 2:
            ids.append(_id(value, budget))
    if topic is not None and ids:
        rpc.ihave.append((topic, ids))


def _topics(raw: bytes, budget: _Budget) -> list[str]:
    """Return the last topic that a GRAFT or PRUNE names, if any."""
    found = [_topic(value) for number, value in _fields(raw, budget) if number == 1]
    return [topic for topic in found[-1:] if topic is not None]


def _topic(value: bytes | int) -> str | None:
    raw = _message(value)
    if not 0 < len(raw) <= MAX_TOPIC_CHARACTERS or not raw.isascii():
        return None
    topic = raw.decode("ascii")
    return topic if topic.isprintable() else None


def _id(value: bytes | int, budget: _Budget) -> bytes:
    budget.id()
    raw = _message(value)
    if len(raw) > MAX_ID_BYTES:
        raise RpcError(f"a message id of {len(raw)} bytes")
    return raw


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise RpcError("a number where bytes belong")
    return value


# Protobuf itself.


def _fields(raw: bytes, budget: _Budget) -> Iterator[tuple[int, bytes | int]]:
    """Yield (field number, value) of a message; fields of fixed width are skipped."""
    at, end = 0, len(raw)
    while at < end:
        budget.field()
        key, at = _read_varint(raw, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _read_varint(raw, at)
            yield key >> 3, number
        elif kind == _BYTES:
            size, at = _read_varint(raw, at)
            if size > end - at:
                raise RpcError("a field that is longer than its message")
            yield key >> 3, raw[at : at + size]
            at += size
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
            if at > end:
                raise RpcError("a message that ends within a field")
        else:
            raise RpcError(f"a field of kind {kind}")


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(raw[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, at + index + 1
    raise RpcError("a number without an end")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3 | _VARINT) + _varint(value)


def _bytes(field_number: int, value: bytes) -> bytes:
    return _varint(field_number << 3 | _BYTES) + _varint(len(value)) + value


def _repeated(field_number: int, values: Iterable[bytes]) -> bytes:
    return b"".join(_bytes(field_number, value) for value in values)
