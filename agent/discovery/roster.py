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
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # by Ed25519 key
        self._introduced: set[bytes] = set()
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
        key = sender.ed25519
        known = self._known.get(key)
        if known is not None:
            certificate = certificate or known.certificate
        if not certificate or self._verifier.member(certificate, now) != sender:
            return False
        if known is not None:
            known.certificate, known.generation = certificate, generation
            self._known.move_to_end(key)
            return True
        if len(self._known) >= SENDERS_MAX:
            self._known.popitem(last=False)
        self._known[key] = _Known(certificate, generation)
        return True

    def knows(self, node: NodeId) -> bool:
        """Say whether the node has shown a certificate."""
        return node.ed25519 in self._known

    def is_member(self, node: NodeId, now: float) -> bool:
        """Say whether the node has shown a certificate that stands now."""
        known = self._known.get(node.ed25519)
        return known is not None and self._verifier.member(known.certificate, now) == node

    def generation(self, node: NodeId | None) -> int | None:
        """Return the network key that the node last spoke under, or None."""
        known = None if node is None else self._known.get(node.ed25519)
        return None if known is None else known.generation

    def recheck(self, now: float) -> None:
        """Forget those whose certificates stand no more."""
        gone = [key for key in self._known if not self.is_member(NodeId(key), now)]
        for key in gone:
            del self._known[key]
            self._introduced.discard(key)

    # -- ourselves

    def has_ours(self, node: NodeId | None) -> bool:
        """Say whether the node is known to have our certificate."""
        return node is not None and node.ed25519 in self._introduced

    def showed(self, node: NodeId) -> None:
        """Note that the node has our certificate."""
        if len(self._introduced) >= SENDERS_MAX:
            self._introduced.clear()
        self._introduced.add(node.ed25519)

    def lacks_ours(self, node: NodeId | None) -> None:
        """Note that the node may not have our certificate: it is shown again."""
        if node is not None:
            self._introduced.discard(node.ed25519)
