"""Calling a peer: all its addresses side by side, each in the ways that may get an answer.

trio and libp2p, imported in the control plane's thread only. Used by `links.py`, which keeps what
is made here.

A call is heard by nobody but the node that it names, and with the right network key only
(`preamble.py`): everybody else is silent. So an address that stays silent is called again, beside
the first call: with the other accepted keys, since a peer may not have learnt the new one; and in
the end without a name, if somebody wants to hear that another node is there now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio
from libp2p.peer.id import ID

from agent import endpoint
from agent.control import sockets
from agent.control.listening import chain, trouble
from agent.control.sockets import Socket
from agent.control.swarm import Host
from agent.control.troubles import Trouble
from agent.errors import UsageError
from agent.identity.keys import NodeId
from agent.membership.networkkeys import NetworkKeys

if TYPE_CHECKING:
    from agent.control.links import Link

log = logging.getLogger(__name__)

# Addresses of one peer are tried this far apart (RFC 8305 says 0.25 s).
STAGGER_S = 0.25
# Who is silent for this long after a call, or for four times what the connection took, is called
# again in another way.
SILENCE_S = 0.3
SILENCE_CONNECTS = 4
SILENCE_MAX_S = 2.0

# A network key, and the id of the node that is called, or nothing.
_Call = tuple[bytes, bytes]
Take = Callable[[Any, Socket, NodeId, str], "Link"]


class _DialError(Exception):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


class Dialler:
    """Makes connections for one host."""

    def __init__(
        self, host: Host, own: NodeId, keys: NetworkKeys, open_sockets: set[Socket], take: Take
    ) -> None:
        """`open_sockets` holds each socket while it is open; `take` gets what is connected."""
        self._swarm = host.swarm
        self._own = own
        self.keys = keys
        self._sockets = open_sockets
        self._take = take

    async def dial(
        self,
        node: NodeId | None,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        *,
        explain: bool,
    ) -> list[Link]:
        """Return a link, rarely several, none if every address has failed.

        `troubles` gets what was wrong with each address, also when this is cancelled. With
        `explain` another node at an address is told from silence.
        """
        links: list[Link] = []
        calls = self._calls(node, explain)
        async with trio.open_nursery() as nursery:

            async def attempt(address: str, delay_s: float) -> None:
                await trio.sleep(delay_s)
                try:
                    await self._call_until_answered(node, address, calls, links)
                except _DialError as error:
                    troubles[address] = error.trouble
                else:
                    nursery.cancel_scope.cancel()

            for index, address in enumerate(addresses):
                nursery.start_soon(attempt, address, index * STAGGER_S)
        return links

    def _calls(self, node: NodeId | None, explain: bool) -> list[_Call]:
        name = node.ed25519 if node is not None else b""
        others = [key for key in self.keys.accepting if key != self.keys.sending]
        calls = [(key, name) for key in (self.keys.sending, *others)]
        return [*calls, (self.keys.sending, b"")] if explain and name else calls

    async def _call_until_answered(
        self, node: NodeId | None, address: str, calls: Sequence[_Call], links: list[Link]
    ) -> None:
        """Add a link to `links`, or raise what is wrong with this address."""
        found = Trouble.HANDSHAKE
        async with trio.open_nursery() as nursery:

            async def call(tcp: Socket, as_whom: _Call, heard: trio.Event) -> None:
                nonlocal found
                try:
                    links.append(await self._shake_hands(node, tcp, address, as_whom, heard))
                except _DialError as error:
                    found = error.trouble
                else:
                    nursery.cancel_scope.cancel()
                finally:
                    heard.set()
                if found is Trouble.OTHER_NODE:
                    nursery.cancel_scope.cancel()

            for as_whom in calls:
                heard = trio.Event()
                began = trio.current_time()
                try:
                    tcp = await self._connect(address)
                except _DialError as error:
                    found = error.trouble
                    nursery.cancel_scope.cancel()
                    break
                took_s = trio.current_time() - began
                nursery.start_soon(call, tcp, as_whom, heard)
                silence_s = min(SILENCE_MAX_S, max(SILENCE_S, SILENCE_CONNECTS * took_s))
                with trio.move_on_after(silence_s) as silence:
                    await heard.wait()
                if not silence.cancelled_caught and not tcp.aborted:
                    break  # answered: the others would only be in the way
        if not links:
            raise _DialError(found)

    async def _connect(self, address: str) -> Socket:
        host, port = endpoint.split(address)
        try:
            # Resolves a name anew each time, and tries all its addresses.
            tcp = Socket(await trio.open_tcp_stream(host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name looks like this
            log.debug("dial failed, address=%s: %s", address, error)
            raise _DialError(trouble(error)) from None
        self._sockets.add(tcp)
        return tcp

    async def _shake_hands(
        self, node: NodeId | None, tcp: Socket, address: str, as_whom: _Call, heard: trio.Event
    ) -> Link:
        try:
            wanted = ID.from_base58(str(node)) if node is not None else None
            private = sockets.calling(tcp, *as_whom, heard.set)
            connection = await self._swarm.upgrade_outbound_raw_conn(private, wanted)
            found = proved_node(connection.muxed_conn)
        except BaseException as error:
            self._abort(tcp)
            if not isinstance(error, Exception):
                raise
            log.debug("handshake failed, address=%s, node=%s: %r", address, node, error)
            # The library has no class of its own for another identity.
            other = "mismatch" in " ".join(repr(each) for each in chain(error)).lower()
            raise _DialError(Trouble.OTHER_NODE if other else Trouble.HANDSHAKE) from None
        if found == self._own:
            self._abort(tcp)
            raise _DialError(Trouble.OTHER_NODE)
        return self._take(connection, tcp, found, address)

    def _abort(self, tcp: Socket) -> None:
        tcp.abort()
        self._sockets.discard(tcp)


def proved_node(muxed: Any) -> NodeId:
    """Return the node at the other end; raises UsageError for a key that is not of our kind."""
    try:
        return NodeId.parse(str(muxed.peer_id))
    except UsageError:
        muxed.tcp.abort()
        raise
