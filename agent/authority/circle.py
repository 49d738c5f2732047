"""The members around this one: how the parts of the authority reach them and tell them. A shell.

One place for time, chance, the control plane and the links; `desk`, `herald`, `upkeep` and
`service` share it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from random import Random
from typing import Protocol, TypeVar

from agent.authority import messages
from agent.errors import CoveyError, MembershipError, NotRunning, PeerError
from agent.identity.keys import NodeId
from agent.membership.certificate import Certificate
from agent.membership.issuing import Membership
from agent.membership.keyring import KeyChange
from agent.membership.revocation import RevocationList
from agent.membership.ticket import MAX_ADDRESSES

_log = logging.getLogger(__name__)

# A member answers from memory and one fsync; the local API gives a whole command ten seconds.
ASK_TIMEOUT_S = 4.0
ISSUERS_TIMEOUT_S = 8.5
# Who is pushed a certificate and is off gets it when it is back.
PUSH_TIMEOUT_S = 2.0
# Tickets name this node's addresses, and one of each of a few others.
MAX_OTHERS_IN_TICKET = 3

Handler = Callable[[NodeId, bytes], Awaitable[bytes]]
NewsHandler = Callable[[NodeId, bytes], Awaitable[bool]]
_Answer = TypeVar("_Answer", bound=messages.Message)


class Control(Protocol):
    """What the authority needs of the control plane."""

    def serve(self, protocol: str, handler: Handler, *, strangers: bool = False) -> None:
        """Answer a protocol; `strangers`: those too who are no members."""

    def subscribe(self, topic: str, handler: NewsHandler) -> None:
        """Get a topic's news: who said it (proved), and what; False: it makes no sense."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell everyone; raises NotRunning."""

    async def request(
        self,
        peer: NodeId | None,
        addresses: Sequence[str],
        protocol: str,
        payload: bytes,
        *,
        timeout_s: float,
    ) -> bytes:
        """Ask one node; raises PeerError, NotRunning, or what its handler raised."""


class Circle:
    """This node's membership among the others."""

    def __init__(
        self,
        membership: Membership,
        control: Control,
        addresses_of: Callable[[NodeId], list[str]],
        on_change: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.membership = membership
        self.own = membership.key.id
        self.random = random
        self.now = clock
        self.linked: set[NodeId] = set()
        # Set when something came in that a reply must precede: the upkeep then calls `changed`.
        self.change_soon = asyncio.Event()
        # Set by `changed`: the upkeep looks at what is due.
        self.stirred = asyncio.Event()
        self._control = control
        self._addresses_of = addresses_of
        self._on_change = on_change
        self._revision = membership.revision

    async def changed(self, *, anyway: bool = False) -> None:
        """Let the daemon follow what is new: at once, and once for several changes."""
        revision = self.membership.revision
        if revision != self._revision or anyway:
            self._revision = revision
            self.stirred.set()
            await self._on_change()

    # -------------------------------------------------------------- asking

    async def ask(
        self,
        node: NodeId,
        request: messages.Request,
        kind: type[_Answer],
        timeout_s: float = ASK_TIMEOUT_S,
    ) -> _Answer:
        """Return a member's answer; raises PeerError, NotRunning, or the member's own refusal."""
        raw = await self._control.request(
            node, self._addresses_of(node), messages.PROTOCOL, messages.encode(request),
            timeout_s=timeout_s,
        )  # fmt: skip
        return messages.decode_answer(raw, kind)

    async def ask_issuers(
        self, request: messages.Request, kind: type[_Answer], without: Collection[NodeId] = ()
    ) -> _Answer:
        """Return the answer of the first live issuer that gives one; linked ones are asked first.

        Raises the last refusal, which says more than that another did not answer; PeerError when
        none answered; MembershipError when there is none.
        """
        issuers = [
            member.node_id
            for member in self.membership.issuers(self.now())
            if member.node_id != self.own and member.node_id not in without
        ]
        if not issuers:
            raise MembershipError(
                "the mesh has no other issuer that could do this",
                hint="`agent members` shows the roles; `agent grant NODE --role issuer` makes one.",
            )
        refusal: CoveyError | None = None
        fault: CoveyError = PeerError("no issuer answered", hint="`agent members` shows them.")
        try:
            async with asyncio.timeout(ISSUERS_TIMEOUT_S):
                for node in self.shuffled(issuers):
                    try:
                        return await self.ask(node, request, kind)
                    except (PeerError, NotRunning) as error:
                        fault = error
                    except CoveyError as error:
                        refusal = error
        except TimeoutError:
            _log.info("issuers.slow asked=%d", len(issuers))
        raise refusal or fault

    def shuffled(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Return nodes in a random order, those that a link leads to before the others."""
        mixed = sorted(nodes)
        self.random.shuffle(mixed)
        return sorted(mixed, key=lambda node: node not in self.linked)

    # -------------------------------------------------------------- telling

    async def tell(self, news: messages.News) -> None:
        """Gossip; without a control plane the others learn it from records and from `Sync`."""
        try:
            await self._control.publish(messages.TOPIC, messages.encode(news))
        except NotRunning:
            _log.warning("news.not_told kind=%s", type(news).__name__)

    async def tell_certificates(self, made: Iterable[Certificate]) -> None:
        """Tell everyone about new certificates, many at a time."""
        encoded = [certificate.encode() for certificate in made]
        for begin in range(0, len(encoded), messages.MAX_CERTIFICATES):
            some = tuple(encoded[begin : begin + messages.MAX_CERTIFICATES])
            await self.tell(messages.NewCertificates(some))

    async def tell_list(self, made: RevocationList | None) -> None:
        """Tell everyone about a revocation list, if there is one to tell."""
        if made is None:
            return
        raw = made.encode()
        long = len(raw) > messages.MAX_NEWS_BYTES
        await self.tell(messages.NewListThere(made.what) if long else messages.NewList(raw))

    async def tell_key(self, change: KeyChange) -> None:
        """Tell everyone that the network key changes."""
        await self.tell(messages.NewKey(change.encode()))

    async def push(self, certificate: Certificate) -> bool:
        """Give a member its new certificate; False if it is off, and gets it later."""
        if certificate.node_id == self.own:
            return True
        try:
            await self.ask(
                certificate.node_id, messages.Push(certificate.encode()), messages.Done,
                timeout_s=PUSH_TIMEOUT_S,
            )  # fmt: skip
        except (PeerError, NotRunning, MembershipError) as error:
            _log.info("certificate.not_pushed node=%s: %s", certificate.node_id, error.message)
            return False
        return True

    def ticket_addresses(self, own: Sequence[str]) -> list[str]:
        """Return where a newcomer may ask: this node first, then a few others."""
        nodes = (m.node_id for m in self.membership.live_members(self.now()))
        others = []
        for node in self.shuffled(node for node in nodes if node != self.own):
            member = self.membership.find(node)
            if member is not None and member.control_addresses:
                others.append(member.control_addresses[0])
            if len(others) == MAX_OTHERS_IN_TICKET:
                break
        room = MAX_ADDRESSES - len(others)
        return list(dict.fromkeys([*own[:room], *others]))
