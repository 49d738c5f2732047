"""Hostile datagrams at the discovery port: no exception, no answer to outsiders, no growing memory.

    python tests/fuzz/discovery.py [COUNT] [SEED]

One whole node on virtual time is fed, in turn, with: random bytes; datagrams of an honest member,
changed, cut, spliced, too long, or simply once more; what someone with the network key but without
a certificate can seal; and what a member that means harm can seal, from random bytes and changed
messages to well-formed questions and answers with hostile values. The member also hears what the
node asks, and answers that.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parent)]

import bounds
import msgspec
import nacl.bindings
from dht.root import Root, key_of
from dht.virtual import Network, run
from growth import nobody

from agent.discovery import liveness, messages, questions, reach, record, seal, store, walk
from agent.discovery.dhtkeys import member_key, node_key
from agent.discovery.messages import Answered, Asked, Goodbye, Message, Probe
from agent.discovery.node import Discovery
from agent.discovery.record import Record, ServiceRecord, sign
from agent.discovery.seal import Opened, Seal
from agent.identity.keys import NodeKey

EPOCH = 1_800_000_000.0
VICTIM, HONEST, HOSTILE, OUTSIDER = (f"20.0.0.{n}" for n in (1, 2, 3, 4))
PORT = 4001
# Inputs between two checks of the bounds; virtual time passes meanwhile.
BATCH, BATCH_S = 500, 2.0
HEARD_MAX = 64
LIMITS = {
    liveness: ("PLACES_MAX",),
    seal: ("SENDERS_MAX",),
    record: ("REMEMBERED_MAX",),
    reach: ("SENT_MAX",),
    walk: ("READ_MAX",),
}


def fuzz(count: int, seed: int, pulse: Callable[[int], None] = nobody) -> dict[str, int]:
    """Feed `count` datagrams; return the node's counters.

    Raises AssertionError, or what escapes, for the first that is wrong. `pulse` is called
    with the number of each.
    """
    with bounds.small(LIMITS):
        return run(_fuzz(count, seed, pulse))


async def _fuzz(count: int, seed: int, pulse: Callable[[int], None]) -> dict[str, int]:
    fill_memories()
    bout = Bout(random.Random(seed))
    await bout.start()
    try:
        for number in range(count):
            bout.feed(number)
            if number % BATCH == BATCH - 1:
                await asyncio.sleep(BATCH_S)
                bout.check()
            pulse(number)
        await asyncio.sleep(BATCH_S)
        bout.check()
        await bout.check_service()
        return dict(bout.victim.counters)
    finally:
        await bout.victim.stop()
        await bout.friend.stop()


def fill_memories() -> None:
    """Let what is remembered by function be full from the start, as what has LIMITS soon is."""
    for number in range(messages._ADDRESSES_REMEMBERED):
        host = f"21.0.{number >> 8}.{number & 255}"
        messages.unpack_address(messages.pack_address(host, 9))
        reach.scope_of(host)


class Ear(asyncio.DatagramProtocol):
    """Keeps what comes to a port, and counts it."""

    def __init__(self) -> None:
        self.count = 0
        self.heard: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.count += 1
        self.heard = [*self.heard[-HEARD_MAX + 1 :], data]


class Bout:
    """One node, one friend, one foe within and one without."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.root = Root("fuzz")
        self.network = Network(chance)
        self.loop = asyncio.get_running_loop()
        # What a timer or a task raises ends up here, and nowhere else.
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, fault: self.faults.append(fault))
        self.foe, self.stranger = key_of("foe"), key_of("stranger")
        self.certificate = self.root.certify(self.foe.id)
        self.member = self.root.record(self.foe, 1)
        self.victim = self._node("victim", VICTIM)
        self.friend = self._node("friend", HONEST)
        # A foe has one seal; its sent times grow, or its datagrams would be replays.
        self.foes_seal = Seal(self.foe, self.root.mesh_id, self.root.keys)
        self.strangers_seal = Seal(self.stranger, self.root.mesh_id, self.root.keys)
        elsewhere = Root("elsewhere")
        self.foreign_seal = Seal(self.foe, self.root.mesh_id, elsewhere.keys)
        self.foreign_certificate = elsewhere.certify(self.stranger.id)
        self.ear, self.outer_ear = Ear(), Ear()
        self.genuine: list[bytes] = []
        self.kinds: list[Callable[[], bytes]] = [
            self.noise, self.changed, self.again, self.too_long, self.under_the_seal,
            self.without_certificate, self.members_noise, self.members_changed,
            self.members_question, self.members_question, self.members_answer,
            self.members_signed,
        ]  # fmt: skip

    def clock(self) -> float:
        return EPOCH + self.loop.time()

    async def start(self) -> None:
        """Let the two meet, and listen to what the friend sends."""
        await self.victim.start()
        await self.friend.start()
        receive = self._receive

        def overhear(data: bytes, addr: tuple[str, int]) -> None:
            if addr[0] == HONEST:
                self.genuine = [*self.genuine[-HEARD_MAX + 1 :], data]
            receive(data, addr)

        self._protocol.datagram_received = overhear
        await self.friend.bootstrap([f"{VICTIM}:{PORT}"])
        for node, name in ((self.victim, "victim"), (self.friend, "friend")):
            await node.publish_member(self.root.record(key_of(name), 1))
        await self.network.host(HOSTILE).open(lambda: self.ear, HOSTILE, PORT)
        await self.network.host(OUTSIDER).open(lambda: self.outer_ear, OUTSIDER, PORT)

    def feed(self, number: int) -> None:
        """Give the node one datagram."""
        make = self.kinds[number % len(self.kinds)]
        outside = make in (
            self.noise, self.changed, self.again, self.too_long, self.under_the_seal,
            self.without_certificate,
        )  # fmt: skip
        host = OUTSIDER if outside else HOSTILE
        port = PORT if outside or self.chance.random() < 0.5 else self.chance.randrange(1, 65536)
        self._protocol.datagram_received(make(), (host, port))

    def check(self) -> None:
        """Say that outsiders heard nothing, and that everything kept is within its bounds."""
        assert self.outer_ear.count == 0, "an outsider was answered"
        assert not self.faults, self.faults
        protocol, node = self._protocol, self.victim
        sizes = {
            "questions": (len(protocol._questions), questions.PENDING_MAX),
            "due": (len(protocol._questions._due), 4 * questions.PENDING_MAX),
            "roster": (len(protocol.roster), seal.SENDERS_MAX),
            "introduced": (len(protocol.roster._introduced), seal.SENDERS_MAX),
            "windows": (len(node._seal._windows), seal.SENDERS_MAX),
            "shared": (len(node._seal._shared), seal.SENDERS_MAX),
            "dead": (len(protocol._liveness._dead), liveness.PLACES_MAX),
            "proofs": (len(protocol._liveness._prove_after), liveness.PLACES_MAX),
            "sent": (len(protocol.reach._sent), reach.SENT_MAX),
            "scopes": (len(protocol.reach._scopes), 6),
            "lately": (len(protocol.lately), 64),
            "contacts": (len(protocol.router.contacts()), 3),
            "records": (len(node._store), store.RECORDS_MAX),
            "found": (len(node._found), store.FOUND_MAX),
            "certificates": (len(node._verifier._certificates), record.REMEMBERED_MAX),
            "verified": (len(node._verifier._records), record.REMEMBERED_MAX),
            "counters": (len(protocol.counters), 24),
            "trails": (len(node._running().walker._trails), walk.TRAILS_MAX),
            "read": (len(node._running().walker._read), walk.READ_MAX),
            "foe's records": (
                node._store._per_node[self.foe.id.ed25519], store.RECORDS_PER_NODE
            ),
        }  # fmt: skip
        over = {name: size for name, size in sizes.items() if size[0] > size[1]}
        assert not over, over

    async def check_service(self) -> None:
        """Say that the two who behave still find each other."""
        for node, name in ((self.victim, "friend"), (self.friend, "victim")):
            found = await node.member(key_of(name).id)
            assert found is not None, name

    # -- from outside

    def noise(self) -> bytes:
        return self.chance.randbytes(self.chance.choice((0, 1, 24, 96, 97, 600, 1232, 1233, 9000)))

    def changed(self) -> bytes:
        raw = bytearray(self.chance.choice(self.genuine))
        match self.chance.randrange(3):
            case 0:
                raw[self.chance.randrange(len(raw))] ^= self.chance.randrange(1, 256)
            case 1:
                del raw[self.chance.randrange(len(raw)) :]
            case _:
                other = self.chance.choice(self.genuine)
                cut = self.chance.randrange(len(raw))
                raw = raw[:cut] + other[cut:] + b"\0"
        return bytes(raw)

    def again(self) -> bytes:
        return self.chance.choice(self.genuine)

    def too_long(self) -> bytes:
        return self.chance.choice(self.genuine) + bytes(self.chance.choice((1, 1300, 60_000)))

    def under_the_seal(self) -> bytes:
        """What someone with the network key, or with another mesh's, may put inside the seal."""
        if self.chance.random() < 0.2:
            return self._sealed(self.foreign_seal, self._message(), to_victim=True)
        outer = self.foes_seal._generations[0].outer
        nonce = self.chance.randbytes(24)
        sent = int(self.clock() * 1e6) + self.chance.choice((0, -(10**9), 10**9))
        sender = self.chance.choice((self.chance.randbytes(32), bytes(32), b"\xff" * 32))
        head = bytes([self.chance.choice((0, 1, 2, 255))]) + sender + sent.to_bytes(8, "big")
        plain = head + self.chance.randbytes(self.chance.randrange(200))
        plain = plain[: self.chance.randrange(41, len(plain) + 1)]
        return nonce + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, None, nonce, outer
        )

    def without_certificate(self) -> bytes:
        """What someone with the network key asks, without a certificate or with a wrong one."""
        wrong = (b"", b"x" * 380, self.foreign_certificate, self.certificate, bytes(500))
        shown = self.chance.choice(wrong)
        asked = Asked(self._question(), True, self.chance.random() < 0.5, shown)
        content: Any = self.chance.choice((asked, asked, asked, Goodbye(), Probe()))
        payload = messages.encode(Message(self.chance.randbytes(8), content))
        return self._sealed(self.strangers_seal, payload, to_victim=self.chance.random() < 0.7)

    # -- from within

    def members_noise(self) -> bytes:
        kind = self.chance.choice((b"Q", b"A", b"P", b"B", b""))
        return self._sealed(
            self.foes_seal, kind + self.chance.randbytes(self.chance.randrange(300))
        )

    def members_changed(self) -> bytes:
        raw = bytearray(self._message())
        for _ in range(self.chance.choice((1, 1, 2, 5))):
            raw[self.chance.randrange(len(raw))] = self.chance.randrange(256)
        return self._sealed(self.foes_seal, bytes(raw[: seal.PAYLOAD_MAX_BYTES]))

    def members_question(self) -> bytes:
        return self._sealed(self.foes_seal, self._message())

    def members_signed(self) -> bytes:
        return self._sealed(self.foes_seal, self._message(), to_victim=False)

    def members_answer(self) -> bytes:
        """Answer something that the node asked, or nothing that it asked."""
        ident = self.chance.randbytes(8)
        if self.ear.heard:
            opened = self.foes_seal.open(self.ear.heard.pop(), self.clock())
            message = messages.decode(opened.payload) if isinstance(opened, Opened) else None
            if message is not None and isinstance(message.content, Asked):
                ident = message.id
        answered = Answered(self._reply(), self.chance.random() < 0.5, self.certificate)
        return self._sealed(self.foes_seal, messages.encode(Message(ident, answered)))

    # -- hostile values

    def _message(self) -> bytes:
        shown = self.certificate if self.chance.random() < 0.3 else b""
        serves = self.chance.random() < 0.5
        asked = Asked(self._question(), serves, self.chance.random() < 0.5, shown)
        return messages.encode(Message(self.chance.randbytes(8), asked))

    def _question(self) -> messages.Question:
        chance, key = self.chance, self._key()
        match chance.randrange(6):
            case 0:
                return messages.Ping()
            case 1:
                return messages.FindNode(key)
            case 2:
                have = chance.randbytes(4 * chance.randrange(200))
                return messages.FindRecords(key, chance.randbytes(8), have, chance.random() < 0.5)
            case 3:
                raw, place = self._record()
                return messages.Store(place if chance.random() < 0.8 else key, raw)
            case 4:
                return messages.TestMe(chance.randbytes(8))
            case _:
                address = messages.pack_address(f"20.1.{chance.randrange(256)}.1", 9)
                return messages.Knock(chance.randbytes(32), address, chance.randbytes(8))

    def _reply(self) -> messages.Reply:
        chance = self.chance
        contacts = tuple(
            chance.randbytes(32) + messages.pack_address(f"20.1.{n}.1", 1 + chance.randrange(9))
            for n in range(chance.randrange(17))
        )
        match chance.randrange(5):
            case 0:
                return messages.Pong(chance.randbytes(chance.choice((6, 10, 18))))
            case 1:
                return messages.Contacts(contacts)
            case 2:
                raws = (self._record()[0],)
                return messages.Records(raws, chance.randrange(257), contacts[:2], True)
            case 3:
                return messages.Stored(chance.random() < 0.5, chance.choice((0, 2**63 - 1)))
            case _:
                return messages.Promise(True)

    def _record(self) -> tuple[bytes, bytes]:
        """Return a record of the foe's and a key for it: genuine, spoilt, or none at all."""
        chance = self.chance
        if chance.random() < 0.2:
            return chance.randbytes(chance.choice((0, 64, 200, 700))), self._key()
        seq = chance.choice((0, int(self.clock() * 1000), int(self.clock() * 1000), 2**62))
        expiry = int(self.clock()) + chance.choice((-1, 0, 60, 600, 10**6))
        found: Record
        if chance.random() < 0.3:
            found = msgspec.structs.replace(self.member, seq=seq, expiry=expiry)
        else:
            payload = chance.randbytes(chance.randrange(300))
            found = ServiceRecord(
                node=self.foe.id.ed25519, certificate=self.certificate, seq=seq, expiry=expiry,
                service=f"s{chance.randrange(1000)}", payload=payload,
            )  # fmt: skip
        signed = sign(self.foe, self.root.mesh_id, found)
        raw = bytearray(signed.raw)
        if chance.random() < 0.3:
            raw[chance.randrange(len(raw))] ^= 1
        return bytes(raw), chance.choice(signed.keys)

    def _key(self) -> bytes:
        return self.chance.choice(
            (
                self.chance.randbytes(20),
                bytes(20),
                node_key(self.root.mesh_id, self.foe.id),
                member_key(self.root.mesh_id, self.foe.id),
            )
        )

    # -- inside

    def _node(self, name: str, host: str) -> Discovery:
        key: NodeKey = key_of(name)
        root = self.root
        return Discovery(
            key, root.mesh_id, root.keys, root.verify, (host, PORT), root.certify(key.id),
            clock=self.clock, ports=self.network.host(host), rng=random.Random(name),
        )  # fmt: skip

    @property
    def _protocol(self) -> Any:
        return self.victim._running().protocol

    @property
    def _receive(self) -> Callable[[bytes, tuple[str, int]], None]:
        receive: Callable[[bytes, tuple[str, int]], None] = self._protocol.datagram_received
        return receive

    def _sealed(self, by: Seal, payload: bytes, *, to_victim: bool = True) -> bytes:
        to = key_of("victim").id if to_victim else None
        if self.chance.random() < 0.9:
            return by.seal(payload, to, self.clock(), self.chance.randbytes(24))
        last = by._last_sent
        try:
            return by.seal(payload, to, self.clock() + 500, self.chance.randbytes(24))
        finally:
            by._last_sent = last  # or all that follows would be from the future


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    print(fuzz(*(arguments + [100_000, 1][len(arguments) :])))
