"""The discovery port: kademlia's protocol with sealed datagrams, certificates and short timeouts.

Used by `node.py` and what it is made of. It opens what comes, has members answered, asks others,
and decides who enters the routing table. It starts no task: timers and futures only.

    outsider (no network key)            nothing, not even an answer
    certificate refused, or never shown  nothing
    member                               an answer
    member that answered a question      a place in the routing table, unless it does not serve

A node enters the table only at an address that answered our question: a datagram's source can be
forged. A node that does not answer, says goodbye or no longer serves leaves the table at once; the
first two are passed over for a while, whoever offers them, so that each costs one timeout and not
one in each lookup.

While the network key changes, an answer goes under the key that the question came under, and a
question that was not answered is repeated under the key that its node last used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from agent.discovery import messages
from agent.discovery.answers import Answers
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import node_key
from agent.discovery.liveness import Liveness
from agent.discovery.messages import CONTACTS_MAX, Answered, Asked, Goodbye, Message, Probe
from agent.discovery.questions import Future, Pending, Questions
from agent.discovery.reach import Reach
from agent.discovery.record import Verifier
from agent.discovery.roster import Roster
from agent.discovery.routing import Table
from agent.discovery.seal import NONCE_BYTES, Opened, Refusal, Seal
from agent.discovery.store import RecordStore
from agent.discovery.ways import Ways
from agent.errors import UsageError
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

# Newcomers that are asked at one time whether they are where their datagrams come from.
PROVING_MAX = 16
# Members heard of late that are not in the table, clients for one: they can test whether we are
# reached, and hear of it when that changes.
LATELY_MAX = 64
_CLOCK_WARNING_S = 60.0

Address = tuple[str, int]


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
        reach: Reach,
        certificate: bytes,
        clock: Callable[[], float],
        rng: random.Random,
        send_once: Callable[[bytes, Address], None],
        admitted: Callable[[Contact], None],
        heard: Callable[[NodeId], None],
        ways: Ways,
    ) -> None:
        """`admitted` is told of each contact that is new in the table, or new at its address.

        `heard` is told of whoever asked or answered something, however late.
        """
        super().__init__(Node(own_key), store, CONTACTS_MAX)
        self.router = Table(self, CONTACTS_MAX, self.source_node)
        self.counters: Counter[str] = Counter()
        self.closed = asyncio.Event()
        self.roster = Roster(verifier, certificate)
        self.reach = reach
        self.reach_changed = asyncio.Event()
        self.probed = asyncio.Event()
        self.lately: OrderedDict[bytes, Contact] = OrderedDict()
        self._mesh_id = mesh_id
        self._seal = seal
        self._clock = clock
        self._send_once = send_once
        self._admitted = admitted
        self._heard = heard
        self._ways = ways
        self._loop = asyncio.get_running_loop()
        self._ipv6 = False
        self._liveness = Liveness()
        self._questions = Questions(self._liveness, self._send_question, self._on_silence)
        self._answers = Answers(mesh_id, store, self.router, clock, rng, self.ask, self._knock)
        self._proving = 0
        self._clock_warned = float("-inf")

    def __getattr__(self, name: str) -> Any:
        """Undo rpcudp's rule that any unknown attribute is a remote call."""
        raise AttributeError(name)

    # -- what others here ask for

    def ask(self, peer: NodeId | None, address: Address, question: messages.Question) -> Future:
        """Ask, and return a future: who answered what, or None after a second at the latest.

        It never raises. `peer` None greets whoever is at the address.
        """
        if self._ways.asleep(address[0]):
            if peer is not None:
                self._bury(Contact(self._mesh_id, peer, *address))
            silence: Future = self._loop.create_future()
            silence.set_result(None)
            return silence
        return self._questions.ask(peer, address, question)

    @property
    def slow_s(self) -> float:
        """How long a lookup waits for one answer before it goes on beside it (s)."""
        return self._liveness.slow_s

    def is_dead(self, contact: Contact) -> bool:
        """Say whether the contact is to be passed over at this address for now."""
        if not self._ipv6 and ":" in contact.ip:
            return True
        if self._ways.asleep(contact.ip):
            return True
        life = self._liveness
        return life.any_dead and life.is_dead(contact.place, self._loop.time())

    def promised(self, host: str, *, given: bool) -> None:
        """Note what a contact said that we asked to have us tested."""
        self._reach_may_change(self.reach.promised(host, given, self._loop.time()))

    def conclude(self, host: str) -> None:
        """End the test of the scope of this host."""
        self._reach_may_change(self.reach.conclude(host, self._loop.time()))

    def recheck(self) -> None:
        """Put out at once whoever is no member any more."""
        now = self._clock()
        known = {contact.node for contact in (*self.router.contacts(), *self.lately.values())}
        self.roster.recheck(now)
        refused = {node for node in known if not self.roster.knows(node)}
        for contact in self.router.remove_all(lambda c: not self.roster.knows(c.node)):
            log.info("discovery.contact_refused node=%s", contact.node)
        for contact in [c for c in self.lately.values() if c.node in refused]:
            del self.lately[contact.id]
        for node in refused:
            self._questions.drop(node)

    def goodbye(self) -> None:
        """Tell all contacts that this node goes away, and give up what is in flight."""
        for contact in self.router.contacts():
            self._send(Message(b"", Goodbye()), contact.node, contact.address)
        self._questions.close()

    # -- the socket

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        """Take the socket."""
        self.transport = transport
        self._ipv6 = ":" in transport.get_extra_info("sockname")[0]

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
        address, content = _plain(addr), message.content
        if isinstance(content, Asked | Answered):
            self._heard(opened.sender)
        if isinstance(content, Asked):
            self._on_question(opened, address, message.id, content)
        elif isinstance(content, Answered):
            self._on_answer(opened, address, message.id, content)
        elif isinstance(content, Probe):
            self._on_probe(message.id, address)
        else:
            self.roster.lacks_ours(opened.sender)
            self._bury(Contact(self._mesh_id, opened.sender, *address))

    # -- questions of others

    def _on_question(self, opened: Opened, address: Address, ident: bytes, asked: Asked) -> None:
        sender, now = opened.sender, self._loop.time()
        if not self.roster.learn(sender, asked.certificate, opened.generation, self._clock()):
            self.counters["refused_not_member"] += 1
            return
        self.counters[f"question_{type(asked.question).__name__.lower()}"] += 1
        self._reach_may_change(self.reach.asked_from(address, now))
        own = b"" if asked.knows_you else self.roster.certificate
        room = messages.room_for_records(own)
        reply = self._answers.reply(sender, address, asked.question, room)
        self._answer(opened, address, ident, reply, own)
        self._note_asker(sender, address, serves=asked.serves, now=now)

    def _note_asker(self, sender: NodeId, address: Address, *, serves: bool, now: float) -> None:
        contact = self._contact(sender, address)
        self._liveness.heard(contact.place)
        known = self.router.get(contact.id)
        if known is not None and self._keeps(known, contact):
            known.heard = now
        elif known is not contact:
            self._note_lately(contact)
            if serves and (known is not None or self.router.has_room(contact)):
                self._prove(contact)
        elif serves:
            known.heard = now
        else:
            self.router.remove_place(contact.place)

    def _answer(
        self, opened: Opened, address: Address, ident: bytes, reply: messages.Reply, own: bytes
    ) -> None:
        answered = Answered(reply, self.reach.serves(address[0]), own)
        self._send(Message(ident, answered), opened.sender, address, opened.generation)

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

    # -- whether we are reached

    def _on_probe(self, probe: bytes, address: Address) -> None:
        self.counters["probes"] += 1
        self._reach_may_change(self.reach.probed(probe, address, self._loop.time()))

    def _knock(self, probe: bytes, node: NodeId, address: Address) -> None:
        """Send a probe from a port that nobody has ever sent to."""
        payload = messages.encode(Message(probe, Probe()))
        generation = self.roster.generation(node)
        try:
            datagram = self._seal.seal(
                payload, node, self._clock(), os.urandom(NONCE_BYTES), generation
            )
        except UsageError:
            return
        if not self.transport.is_closing():
            self.counters["knocks"] += 1
            self._send_once(datagram, address)

    def _reach_may_change(self, changed: bool) -> None:
        self.probed.set()
        if changed:
            self.reach_changed.set()

    # -- our own questions

    def _send_question(self, ident: bytes, pending: Pending) -> bool:
        """Send a question, or repeat it: then with our certificate, and under the other's key.

        It may not have come because the other has forgotten us, or does not have our key yet. Where
        the certificate does not fit beside the question, a ping carries it there first.
        """
        peer, generation = pending.peer, None
        if pending.repeated:
            self.roster.lacks_ours(peer)
            generation = self.roster.generation(peer)
            if generation is None:
                generation = self._seal.other
        message = self._asked(ident, pending, pending.question, show=not self.roster.has_ours(peer))
        if not messages.fits(message):
            message = self._asked(ident, pending, pending.question, show=False)
            greeting = self._asked(
                os.urandom(messages.ID_BYTES), pending, messages.Ping(), show=True
            )
            self._send(greeting, peer, pending.address, generation)
        return self._send(message, peer, pending.address, generation)

    def _asked(
        self, ident: bytes, pending: Pending, question: messages.Question, *, show: bool
    ) -> Message:
        known = pending.peer is not None and self.roster.is_member(pending.peer, self._clock())
        serves = self.reach.serves(pending.address[0])
        certificate = self.roster.certificate if show else b""
        return Message(ident, Asked(question, serves, known, certificate))

    def _on_answer(
        self, opened: Opened, address: Address, ident: bytes, answered: Answered
    ) -> None:
        sender, now = opened.sender, self._loop.time()
        pending = self._questions.find(ident, sender)
        if pending is None:
            self.counters["answers_unasked"] += 1
            return
        self._liveness.measured(now - pending.asked_at)
        contact = self._contact(sender, pending.address)
        certificate, generation = answered.certificate, opened.generation
        if not self.roster.learn(sender, certificate, generation, self._clock()):
            self.counters["refused_not_member"] += 1
            self._bury(contact)
            self._questions.resolve(ident, None)
            return
        self.roster.showed(sender)
        if isinstance(answered.reply, messages.Pong):
            seen_from = messages.unpack_address(answered.reply.seen_from)
            if seen_from is not None:
                self.reach.seen_as(address[0], seen_from[0], now)
        if answered.serves:
            self._admit(contact, now)
        else:
            self._liveness.answered(contact.place, now)
            self._note_lately(contact)
            self.router.remove_place(contact.place)
        self._questions.resolve(ident, (sender, answered.reply))

    def _on_silence(self, pending: Pending) -> None:
        self.counters["timeouts"] += 1
        if pending.peer is not None:
            # It may have forgotten us, and have taken our silence about ourselves for a stranger's.
            self.roster.lacks_ours(pending.peer)
            self._bury(Contact(self._mesh_id, pending.peer, *pending.address))

    # -- who is there

    def _contact(self, node: NodeId, address: Address) -> Contact:
        """Return the one in the table, if it has this address, or else a new one."""
        known = self.router.get(node_key(self._mesh_id, node))
        if known is not None and known.address == address:
            return known
        return Contact(self._mesh_id, node, *address)

    def _keeps(self, known: Contact, other: Contact) -> bool:
        """Say whether a contact on the underlay is kept although it was heard over the overlay."""
        inside = self._ways.inside
        return known is not other and inside(other.ip) and not inside(known.ip)

    def _note_lately(self, contact: Contact) -> None:
        self.lately.pop(contact.id, None)
        self.lately[contact.id] = contact
        if len(self.lately) > LATELY_MAX:
            self.lately.popitem(last=False)

    def _admit(self, contact: Contact, now: float) -> None:
        known = self.router.get(contact.id)
        if known is not None and self._keeps(known, contact):
            known.heard = now
            return
        contact.heard = now
        self._liveness.answered(contact.place, now)
        if known is not contact and self.router.add_contact(contact):
            self.lately.pop(contact.id, None)
            log.debug("discovery.contact_new node=%s address=%s:%d", contact.node, *contact.address)
            self._admitted(contact)

    def _bury(self, contact: Contact) -> None:
        self._liveness.silent(contact.place, self._loop.time())
        if self.router.remove_place(contact.place):
            log.debug(
                "discovery.contact_gone node=%s address=%s:%d", contact.node, *contact.address
            )

    def _send(
        self, message: Message, to: NodeId | None, address: Address, generation: int | None = None
    ) -> bool:
        """Seal and send; False when it cannot be sent at all."""
        host = address[0]
        if ":" in host and not self._ipv6:
            return False
        if self.transport is None or self.transport.is_closing():
            return False
        try:
            datagram = self._seal.seal(
                messages.encode(message), to, self._clock(), os.urandom(NONCE_BYTES), generation
            )
        except UsageError:
            return False
        self.reach.sent(address, self._loop.time())
        wire = (f"::ffff:{host}", address[1]) if self._ipv6 and ":" not in host else address
        self.transport.sendto(datagram, wire)
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
    if ":" not in addr[0]:
        return addr[0], addr[1]
    return addr[0].removeprefix("::ffff:").partition("%")[0], addr[1]
