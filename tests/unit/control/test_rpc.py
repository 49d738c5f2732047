"""GossipSub's wire: ours reads what libp2p writes and the other way round, and has bounds."""

from __future__ import annotations

import random

import pytest

from agent.control import rpc
from agent.control.rpc import Rpc, RpcError

FULL = Rpc(
    subscriptions=[("health", True), ("load", False)],
    published=[("health", b"one"), ("load", bytes(300))],
    ihave=[("health", [b"a" * 20, b"b" * 20]), ("load", [b""])],
    iwant=[b"c" * 20, b"d"],
    graft=["health"],
    prune=["load", "models"],
)


def test_what_is_encoded_is_decoded() -> None:
    assert rpc.decode(rpc.encode(FULL)) == FULL
    assert rpc.decode(rpc.encode(Rpc())) == Rpc()


def test_libp2p_reads_what_we_write() -> None:
    from libp2p.pubsub.pb import rpc_pb2

    theirs = rpc_pb2.RPC()
    theirs.ParseFromString(rpc.encode(FULL))
    assert [(s.topicid, s.subscribe) for s in theirs.subscriptions] == FULL.subscriptions
    assert [(m.topicIDs[0], m.data) for m in theirs.publish] == FULL.published
    assert [(i.topicID, list(i.messageIDs)) for i in theirs.control.ihave] == FULL.ihave
    assert [each for i in theirs.control.iwant for each in i.messageIDs] == FULL.iwant
    assert [g.topicID for g in theirs.control.graft] == FULL.graft
    assert [p.topicID for p in theirs.control.prune] == FULL.prune


def test_we_read_what_libp2p_writes_and_skip_what_we_do_not_use() -> None:
    from libp2p.pubsub.pb import rpc_pb2

    theirs = rpc_pb2.RPC(senderRecord=b"record")
    theirs.subscriptions.add(subscribe=True, topicid="health")
    theirs.publish.add(from_id=b"f", data=b"one", seqno=b"s", topicIDs=["health"], signature=b"g")
    theirs.publish.add(data=b"two", topicIDs=["a", "b"])  # several topics: not ours
    theirs.publish.add(data=b"no topic")
    theirs.control.prune.add(topicID="health", backoff=60).peers.add(peerID=b"x")
    theirs.control.iwant.add(messageIDs=[b"1", b"2"])
    theirs.control.iwant.add(messageIDs=[b"3"])
    theirs.control.idontwant.add(messageIDs=[b"4"])
    assert rpc.decode(theirs.SerializeToString()) == Rpc(
        subscriptions=[("health", True)],
        published=[("health", b"one")],
        iwant=[b"1", b"2", b"3"],
        prune=["health"],
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",  # a number without an end
        b"\x80" * 11,
        b"\x0a\x05ab",  # longer than its message
        b"\x0f",  # no such kind
        b"\x09\0",  # eight bytes that are not there
        b"\x08\x01",  # a number where a message belongs
        b"\x12\x02\x10\x01",  # data as a number
        b"\x1a\x02\x08\x01",  # an IHAVE as a number
        b"\x12" * 3,
    ],
)
def test_nonsense_is_an_rpc_error(raw: bytes) -> None:
    with pytest.raises(RpcError):
        rpc.decode(raw)


def test_topics_that_are_no_text_are_left_out() -> None:
    for topic in (b"", b"x" * 101, b"\xff", b"a\nb"):
        inner = bytes([0x08, 1, 0x12, len(topic)]) + topic
        assert rpc.decode(bytes([0x0A, len(inner)]) + inner) == Rpc()


@pytest.mark.parametrize(
    ("many", "said"),
    [
        (Rpc(graft=["t"] * (rpc.MAX_ITEMS + 1)), "items"),
        (Rpc(subscriptions=[("t", True)] * (rpc.MAX_ITEMS + 1)), "items"),
        (Rpc(iwant=[b"i"] * (rpc.MAX_IDS + 1)), "message ids"),
        (Rpc(ihave=[("t", [b"i"] * 600)] * 2), "message ids"),
        (Rpc(iwant=[bytes(rpc.MAX_ID_BYTES + 1)]), "a message id of 65 bytes"),
        (Rpc(published=[("t", bytes(rpc.MAX_RPC_BYTES))]), "the limit is"),
    ],
)
def test_more_than_the_limits_is_refused(many: Rpc, said: str) -> None:
    with pytest.raises(RpcError, match=said):
        rpc.decode(rpc.encode(many))


def test_fields_without_meaning_are_bounded_too() -> None:
    with pytest.raises(RpcError, match="fields"):
        rpc.decode(b"\x28\x01" * (rpc.MAX_FIELDS + 1))
    nested = b"\x28\x01" * 100
    with pytest.raises(RpcError, match="fields"):
        rpc.decode((b"\x12" + bytes([0xC8, 0x01]) + nested) * 50)


def test_lengths() -> None:
    for size in (0, 1, 127, 128, 70_000, rpc.MAX_RPC_BYTES):
        head = rpc.encode_length(size)
        assert rpc.decode_length(head) == size
        assert rpc.decode_length(head[:-1]) is None
    for head in (rpc.encode_length(rpc.MAX_RPC_BYTES + 1), b"\x80\x80\x80"):
        with pytest.raises(RpcError):
            rpc.decode_length(head)


def test_random_and_mutated_bytes_raise_nothing_else() -> None:
    chance = random.Random(3)
    whole = rpc.encode(FULL)
    for _ in range(2000):
        raw = bytearray(whole if chance.random() < 0.7 else chance.randbytes(chance.randrange(80)))
        for _ in range(chance.randrange(1, 5)):
            if raw:
                raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            rpc.decode(bytes(raw))
        except RpcError as error:
            assert str(error)
