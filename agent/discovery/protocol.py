"""The discovery port: kademlia's protocol with sealed datagrams, certificates and short timeouts.

Used by `node.py` alone. It opens what comes, answers members, asks others, and decides who enters
the routing table. It starts no task: timers and futures only.

    outsider (no network key)            nothing, not even an answer
    certificate refused                  nothing
    certificate not known here           Introduce, so that it sends its certificate
    member                               an answer
    member that answered a question      a place in the routing table, unless it does not serve

A node enters the table only at an address that answered our question: a datagram's source can be
forged. A node that does not answer, or says goodbye, leaves the table at once and is passed over
for a while, whoever offers it, so that it costs one timeout and not one in each lookup.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.liveness import Liveness
from agent.discovery.messages import CONTACTS_MAX, Answered, Asked, Goodbye, Message
from agent.discovery.record import Verifier
from agent.discovery.routing import Table
from agent.discovery.seal import NONCE_BYTES, SENDERS_MAX, Refusal, Seal
from agent.discovery.store import PROVIDERS_MAX, RecordStore
from agent.errors import UsageError
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

# Newcomers that are asked at one time whether they are where their datagrams come from.
PROVING_MAX = 16
# Questions in flight: a bound on memory that no honest load reaches.
PENDING_MAX = 4096
# An answer that comes after its timeout still shows that its node lives (a busy machine).
LATE_S = 3.0
_CLOCK_WARNING_S = 60.0

Address = tuple[str, int]


@dataclass
class _Pending:
    """A question in flight. `peer` None: whoever answers at the address."""

    question: messages.Question
    peer: NodeId | None
    address: Address
    future: asyncio.Future[tuple[NodeId, messages.Reply] | None]
    timers: list[asyncio.TimerHandle]
    asked_at: float
    introducing: bool = False
    given_up: bool = False


class Protocol(KademliaProtocol):  # type: ignore[misc]  # kademlia has no types
    """One node's traffic on the discovery port."""

    def __init__(
        self,
        *,
        own_key: bytes,
        mesh_id: bytes,
        seal: Seal,
        verifier: Verifier,
        store: RecordStore,
        certificate: bytes,
        serves: bool,
        clock: Callable[[], float],
        rng: random.Random,
        admitted: Callable[[Contact], None],
    ) -> None:
        """`admitted` is told of each contact that is new in the table, or new at its address."""
        super().__init__(Node(own_key), store, CONTACTS_MAX)
        self.router = Table(self, CONTACTS_MAX, self.source_node)
        self.counters: Counter[str] = Counter()
        self.closed = asyncio.Event()
        self._mesh_id = mesh_id
        self._seal = seal
        self._verifier = verifier
        self._store = store
        self._certificate = certificate
        self._serves = serves
        self._clock = clock
        self._rng = rng
        self._admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._ipv6 = False
        self._pending: dict[bytes, _Pending] = {}
        self._certificates: dict[NodeId, bytes] = {}
        self._introduced: set[NodeId | None] = set()
        self._liveness = Liveness()
        self._proving = 0
        self._clock_warned = float("-inf")

    def __getattr__(self, name: str) -> Any:
        """Undo rpcudp's rule that any unknown attribute is a remote call."""
        raise AttributeError(name)

    # -- what node.py asks for

    def set_certificate(self, certificate: bytes) -> None:
        """Use a new certificate, and show it to everyone again."""
        if certificate != self._certificate:
            self._certificate = certificate
            self._introduced.clear()

    def ask(
        self, peer: NodeId | None, address: Address, question: messages.Question
    ) -> asyncio.Future[tuple[NodeId, messages.Reply] | None]:
        """Ask, and return a future: who answered what, or None after a second at the latest.

        It never raises. `peer` None greets whoever is at the address.
        """
        future: asyncio.Future[tuple[NodeId, messages.Reply] | None] = self._loop.create_future()
        ident = os.urandom(messages.ID_BYTES)
        pending = _Pending(question, peer, address, future, [], self._loop.time())
        if len(self._pending) >= PENDING_MAX or not self._send_question(ident, pending):
            future.set_result(None)
            return future
        self._pending[ident] = pending
        pending.timers = [
            self._loop.call_later(self._liveness.repeat_s, self._send_question, ident, pending),
            self._loop.call_later(self._liveness.timeout_s, self._give_up, ident),
        ]
        return future

    @property
    def slow_s(self) -> float:
        """How long a lookup waits for one answer before it goes on beside it (s)."""
        return self._liveness.slow_s

    def is_dead(self, contact: Contact) -> bool:
        """Say whether the contact is to be passed over at this address for now."""
        if ":" in contact.ip and not self._ipv6:
            return True
        return self._liveness.is_dead(contact.place, self._loop.time())

    def goodbye(self) -> None:
        """Tell all contacts that this node goes away, and give up what is in flight."""
        for contact in self.router.contacts():
            self._send(Message(b"", Goodbye()), contact.node, contact.address)
        for ident in list(self._pending):
            self._resolve(ident, None)

    # -- the socket

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        """Take the socket."""
        self.transport = transport
        self._ipv6 = transport.get_extra_info("socket").family == socket.AF_INET6

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed and its port free."""
        self.closed.set()

    def error_received(self, exc: Exception) -> None:
        """Count what the system could not send; the question's timeout does the rest."""
        self.counters["send_errors"] += 1
        log.debug("discovery.send_failed error=%s", exc)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Open a datagram and act on it; whatever is not from a member is dropped silently."""
        opened = self._seal.open(data, self._clock())
        if isinstance(opened, Refusal):
            self.counters[f"refused_{opened.name.lower()}"] += 1
            if opened is Refusal.CLOCK:
                self._warn_of_clock(addr)
            return
        message = messages.decode(opened.payload)
        if message is None:
            self.counters["refused_malformed"] += 1
            return
        address = _plain(addr)
        if isinstance(message.content, Goodbye):
            self._introduced.discard(opened.sender)
            self._bury(Contact(self._mesh_id, opened.sender, *address))
        elif isinstance(message.content, Asked):
            self._on_question(opened.sender, address, addr, message.id, message.content)
        else:
            self._on_answer(opened.sender, message.id, message.content)

    # -- questions of others

    def _on_question(
        self, sender: NodeId, address: Address, addr: tuple[str, int], ident: bytes, asked: Asked
    ) -> None:
        if not self._learn(sender, asked.certificate):
            self.counters["refused_not_member"] += 1
            return
        if sender not in self._certificates:
            answer = Answered(messages.Introduce(), self._serves)
            self._send(Message(ident, answer), sender, addr)
            return
        self.counters[f"question_{type(asked.question).__name__.lower()}"] += 1
        own = b"" if asked.knows_you else self._certificate
        reply = self._reply(sender, address, asked.question, messages.room_for_records(own))
        self._send(Message(ident, Answered(reply, self._serves, own)), sender, addr)
        contact = Contact(self._mesh_id, sender, *address)
        self._liveness.heard(contact.place)
        known = self.router.get(contact.id)
        if known is not None and known.place == contact.place:
            known.heard = self._loop.time()
        elif asked.serves:
            self._prove(contact)

    def _reply(
        self, sender: NodeId, address: Address, question: messages.Question, room: int
    ) -> messages.Reply:
        match question:
            case messages.Ping():
                return messages.Pong(messages.pack_address(*address))
            case messages.FindNode(key):
                return messages.Contacts(self._contacts_near(key, sender, room))
            case messages.FindRecords(key, salt, have):
                records, left_out = self._store.missing(
                    key, salt, have, room, self._clock(), self._rng
                )
                room -= sum(len(raw) + 3 for raw in records)
                contacts = self._contacts_near(key, sender, room)
                left_out = min(left_out, PROVIDERS_MAX)
                return messages.Records(tuple(records), left_out, contacts)
            case messages.Store(key, record):
                put = self._store.put(key, record, self._clock())
                return messages.Stored(put.accepted, put.held_seq)

    def _contacts_near(self, key: bytes, sender: NodeId, room: int) -> tuple[bytes, ...]:
        asker = Contact(self._mesh_id, sender, "", 0)
        chosen = []
        for contact in self.router.find_neighbors(Node(key), CONTACTS_MAX, exclude=asker):
            packed = contact.pack()
            room -= len(packed) + 2
            if room < 0:
                break
            chosen.append(packed)
        return tuple(chosen)

    def _prove(self, contact: Contact) -> None:
        """Ask a newcomer at the address it seems to have; its answer admits it."""
        if self._proving >= PROVING_MAX:
            return
        if not self._liveness.may_prove(contact.place, self._loop.time()):
            return
        self._proving += 1
        future = self.ask(contact.node, contact.address, messages.Ping())
        future.add_done_callback(self._proving_done)

    def _proving_done(self, _: object) -> None:
        self._proving -= 1

    # -- our own questions

    def _send_question(self, ident: bytes, pending: _Pending) -> bool:
        known = pending.peer is not None and self._is_member(pending.peer)
        asked = Asked(pending.question, self._serves, known, self._certificate)
        if pending.peer in self._introduced or not messages.fits(Message(ident, asked)):
            asked = Asked(pending.question, self._serves, known)
        return self._send(Message(ident, asked), pending.peer, pending.address)

    def _on_answer(self, sender: NodeId, ident: bytes, answered: Answered) -> None:
        pending = self._pending.get(ident)
        if pending is None or pending.peer not in (None, sender):
            self.counters["answers_unasked"] += 1
            return
        self._liveness.measured(self._loop.time() - pending.asked_at)
        if isinstance(answered.reply, messages.Introduce):
            self._introduce(sender, ident, pending)
            return
        contact = Contact(self._mesh_id, sender, *pending.address)
        if not self._learn(sender, answered.certificate) or sender not in self._certificates:
            self.counters["refused_not_member"] += 1
            self._bury(contact)
            self._resolve(ident, None)
            return
        if len(self._introduced) >= SENDERS_MAX:
            self._introduced.clear()
        self._introduced.add(sender)
        if answered.serves:
            self._admit(contact)
        else:
            self.router.remove_place(contact.place)
        self._resolve(ident, (sender, answered.reply))

    def _introduce(self, sender: NodeId, ident: bytes, pending: _Pending) -> None:
        """Repeat a question with our certificate; after a ping with it where both do not fit."""
        self._introduced.discard(sender)
        if pending.introducing or pending.given_up:
            return
        pending.introducing = True
        asked = Asked(pending.question, self._serves, True, self._certificate)
        if messages.fits(Message(ident, asked)):
            self._send_question(ident, pending)
            return

        def repeat(greeted: asyncio.Future[tuple[NodeId, messages.Reply] | None]) -> None:
            if greeted.result() is not None and ident in self._pending:
                self._send_question(ident, pending)

        self.ask(sender, pending.address, messages.Ping()).add_done_callback(repeat)

    def _give_up(self, ident: bytes) -> None:
        """Answer "nobody", and listen a little longer for the sake of the routing table."""
        pending = self._pending[ident]
        self.counters["timeouts"] += 1
        if pending.peer is not None:
            self._bury(Contact(self._mesh_id, pending.peer, *pending.address))
        pending.given_up = True
        pending.timers = [self._loop.call_later(LATE_S, self._resolve, ident, None)]
        if not pending.future.done():
            pending.future.set_result(None)

    def _resolve(self, ident: bytes, result: tuple[NodeId, messages.Reply] | None) -> None:
        pending = self._pending.pop(ident)
        for timer in pending.timers:
            timer.cancel()
        if not pending.future.done():
            pending.future.set_result(result)

    # -- who is who

    def _is_member(self, node: NodeId) -> bool:
        held = self._certificates.get(node)
        return held is not None and self._verifier.member(held, self._clock()) == node

    def _learn(self, sender: NodeId, certificate: bytes) -> bool:
        """Keep the sender's certificate; False when it is refused, or no longer stands.

        True with none known means that the sender has shown none yet.
        """
        now = self._clock()
        certificate = certificate or self._certificates.get(sender, b"")
        if not certificate:
            return True
        if self._verifier.member(certificate, now) != sender:
            return False
        if sender not in self._certificates and len(self._certificates) >= SENDERS_MAX:
            self._certificates.pop(next(iter(self._certificates)))
        self._certificates[sender] = certificate
        return True

    def _admit(self, contact: Contact) -> None:
        known = self.router.get(contact.id)
        contact.heard = self._loop.time()
        self._liveness.answered(contact.place, contact.heard)
        if known is not None and known.place == contact.place:
            known.heard = contact.heard
        elif self.router.add_contact(contact):
            log.debug("discovery.contact_new node=%s address=%s:%d", contact.node, *contact.address)
            self._admitted(contact)

    def _bury(self, contact: Contact) -> None:
        self._liveness.silent(contact.place, self._loop.time())
        if self.router.remove_place(contact.place):
            log.debug(
                "discovery.contact_gone node=%s address=%s:%d", contact.node, *contact.address
            )

    def _send(self, message: Message, to: NodeId | None, address: Address) -> bool:
        """Seal and send; False when it cannot be sent at all."""
        host = address[0]
        if ":" in host and not self._ipv6:
            return False
        if self._ipv6 and ":" not in host:
            address = (f"::ffff:{host}", address[1])
        try:
            datagram = self._seal.seal(
                messages.encode(message), to, self._clock(), os.urandom(NONCE_BYTES)
            )
        except UsageError:
            return False
        if self.transport is None or self.transport.is_closing():
            return False
        self.transport.sendto(datagram, address)
        self.counters["sent"] += 1
        return True

    def _warn_of_clock(self, addr: tuple[str, int]) -> None:
        if self._loop.time() - self._clock_warned >= _CLOCK_WARNING_S:
            self._clock_warned = self._loop.time()
            log.warning(
                "discovery.clock_refused from=%s:%d text=%r",
                *_plain(addr),
                "a member's clock and ours differ by over two minutes, or an old datagram came",
            )


def _plain(addr: tuple[str, int]) -> Address:
    """Return host and port as we write them: no scope, IPv4 as IPv4 on an IPv6 socket."""
    return addr[0].removeprefix("::ffff:").partition("%")[0], addr[1]
