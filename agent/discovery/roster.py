"""Who has proved to be a member here, and to whom this node has. A core.

Used by `protocol.py`. Time is unix seconds. A node is known by the certificate that it showed;
while the network key changes, also by the key that it last spoke under.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agent.discovery.record import Verifier
from agent.discovery.seal import SENDERS_MAX
from agent.identity.keys import NodeId


@dataclass
class _Known:
    certificate: bytes
    generation: int


class Roster:
    """The members that one node knows by their certificates, SENDERS_MAX at most."""

    def __init__(self, verifier: Verifier, certificate: bytes) -> None:
        self._verifier = verifier
        self._known: OrderedDict[NodeId, _Known] = OrderedDict()
        self._introduced: set[NodeId | None] = set()
        self.certificate = certificate

    def __len__(self) -> int:
        return len(self._known)

    def set_certificate(self, certificate: bytes) -> None:
        """Use a new certificate of our own, and show it to everyone again."""
        if certificate != self.certificate:
            self.certificate = certificate
            self._introduced.clear()

    # -- others

    def learn(self, sender: NodeId, certificate: bytes, generation: int, now: float) -> bool:
        """Keep the sender's certificate; False when it is refused, or none is known that stands.

        Empty bytes mean that it shows none now.
        """
        known = self._known.get(sender)
        if known is not None:
            certificate = certificate or known.certificate
        if not certificate or self._verifier.member(certificate, now) != sender:
            return False
        if known is not None:
            known.certificate, known.generation = certificate, generation
            self._known.move_to_end(sender)
            return True
        if len(self._known) >= SENDERS_MAX:
            self._known.popitem(last=False)
        self._known[sender] = _Known(certificate, generation)
        return True

    def knows(self, node: NodeId) -> bool:
        """Say whether the node has shown a certificate."""
        return node in self._known

    def is_member(self, node: NodeId, now: float) -> bool:
        """Say whether the node has shown a certificate that stands now."""
        known = self._known.get(node)
        return known is not None and self._verifier.member(known.certificate, now) == node

    def generation(self, node: NodeId | None) -> int | None:
        """Return the network key that the node last spoke under, or None."""
        known = None if node is None else self._known.get(node)
        return None if known is None else known.generation

    def recheck(self, now: float) -> None:
        """Forget those whose certificates stand no more."""
        gone = [node for node in self._known if not self.is_member(node, now)]
        for node in gone:
            del self._known[node]
            self._introduced.discard(node)

    # -- ourselves

    def has_ours(self, node: NodeId | None) -> bool:
        """Say whether the node is known to have our certificate."""
        return node in self._introduced

    def showed(self, node: NodeId) -> None:
        """Note that the node has our certificate."""
        if len(self._introduced) >= SENDERS_MAX:
            self._introduced.clear()
        self._introduced.add(node)

    def lacks_ours(self, node: NodeId | None) -> None:
        """Note that the node may not have our certificate: it is shown again."""
        self._introduced.discard(node)
