"""Whom a node knows: kademlia's routing table of `Contact`s.

Used by `protocol.py`. It sends nothing; the protocol decides who is admitted
(a certificate that verifies, and an answer from that very address).

What is changed against the library: `find_neighbors` returns the truly nearest (the library stops
at the first k that it meets); a full bucket puts the newcomer among the replacements and leaves
pinging to the protocol (the library starts a task that nobody owns).
"""

from __future__ import annotations

import heapq

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from agent.discovery.contact import Contact


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
