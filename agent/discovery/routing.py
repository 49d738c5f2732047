"""Whom a node knows: kademlia's routing table with contacts whose id follows from their key.

Used by `protocol.py` and `lookup.py`. It sends nothing; the protocol decides who is admitted
(a certificate that verifies, and an answer from that very address).

What is changed against the library: a contact's id cannot be chosen; `find_neighbors` returns the
truly nearest (the library stops at the first k that it meets); a full bucket drops the newcomer to
the replacements and leaves pinging to the protocol (the library starts a task that nobody owns).
"""

from __future__ import annotations

import heapq

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from agent.discovery.messages import pack_address, unpack_address
from agent.discovery.record import node_key
from agent.identity.keys import NodeId


class Contact(Node):  # type: ignore[misc]  # kademlia has no types
    """A node and one address of it. `heard` is loop time (s) of its last answer, 0 for never."""

    def __init__(self, mesh_id: bytes, node: NodeId, host: str, port: int) -> None:
        super().__init__(node_key(mesh_id, node), host, port)
        self.node = node
        self.heard = 0.0

    @property
    def address(self) -> tuple[str, int]:
        """The IP address and UDP port."""
        return self.ip, self.port

    @property
    def place(self) -> tuple[bytes, str, int]:
        """The id with the address: what can be dead, since one node may have several addresses."""
        return self.id, self.ip, self.port

    def pack(self) -> bytes:
        """Return the contact as it crosses the wire and is saved: key 32 | port 2 | address."""
        return self.node.ed25519 + pack_address(self.ip, self.port)

    @classmethod
    def unpack(cls, mesh_id: bytes, packed: bytes) -> Contact | None:
        """Return the contact, or None for bytes that name nobody who can be reached."""
        if len(packed) not in (38, 50):
            return None
        address = unpack_address(packed[32:])
        return None if address is None else cls(mesh_id, NodeId(packed[:32]), *address)

    def __lt__(self, other: Contact) -> bool:
        return bool(self.place < other.place)


class Table(RoutingTable):  # type: ignore[misc]  # kademlia has no types
    """Kademlia's buckets of `Contact`s."""

    def get(self, key: bytes) -> Contact | None:
        """Return the contact with this id, if it is in a bucket (not a replacement)."""
        found: Contact | None = self._bucket(key)[key]
        return found

    def contacts(self) -> list[Contact]:
        """Return everyone in the buckets."""
        return [contact for bucket in self.buckets for contact in bucket.get_nodes()]

    def add_contact(self, node: Contact) -> bool:
        """Admit a contact, or keep it as a replacement when its bucket is full; say which."""
        bucket = self._bucket(node.id)
        while not bucket.add_node(node):
            if not (bucket.has_in_range(self.node) or bucket.depth() % 5):
                return False
            self.split_bucket(self.buckets.index(bucket))
            bucket = self._bucket(node.id)
        return True

    def remove_place(self, place: tuple[bytes, str, int]) -> bool:
        """Drop a contact if it is known at this very address; say whether it was."""
        contact = self.get(place[0])
        if contact is None or contact.place != place:
            return False
        self.remove_contact(contact)
        return True

    def find_neighbors(
        self, node: Node, k: int | None = None, exclude: Node | None = None
    ) -> list[Contact]:
        """Return the `k` contacts nearest to `node`, nearest first, without `exclude`'s id."""
        others = (c for c in self.contacts() if exclude is None or c.id != exclude.id)
        return heapq.nsmallest(k or self.ksize, others, key=node.distance_to)

    def get_bucket_for(self, node: Node) -> int:
        """Return the index of the bucket whose range holds the node (the ends are in the range)."""
        return next(i for i, bucket in enumerate(self.buckets) if node.long_id <= bucket.range[1])

    def _bucket(self, key: bytes) -> KBucket:
        return self.buckets[self.get_bucket_for(Node(key))]
