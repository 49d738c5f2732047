"""Whom a node knows: kademlia's routing table of `Contact`s.

Used by `protocol.py`. It sends nothing; the protocol decides who is admitted
(a certificate that verifies, and an answer from that very address).

What is changed against the library: `nearest` returns the truly nearest (the library stops at the
first k that it meets); a full bucket puts the newcomer among the replacements and leaves pinging to
the protocol (the library starts a task that nobody owns); a few replacements are kept for a bucket
and not five times its size, since nobody asks them whether they are still there; and only the
bucket around this node's own id is split, as in the paper (the library goes five levels deeper
everywhere, which makes 800 contacts to look after of 10,000 nodes, where 160 do).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from kademlia.routing import KBucket, RoutingTable

from agent.discovery.contact import Contact

REPLACEMENTS = 4


class Table(RoutingTable):  # type: ignore[misc]  # kademlia has no types
    """Kademlia's buckets of `Contact`s. `version` grows whenever one comes or goes."""

    version = 0
    _everyone: list[Contact] | None = None
    _size: float | None = None

    def flush(self) -> None:
        """Forget everyone."""
        self._use([KBucket(0, 2**160 - 1, self.ksize)])

    def split_bucket(self, index: int) -> None:
        """Put two buckets in the place of one."""
        one, two = self.buckets[index].split()
        self._use([*self.buckets[:index], one, two, *self.buckets[index + 1 :]])

    def get(self, key: bytes) -> Contact | None:
        """Return the contact with this id, if it is in a bucket (not a replacement)."""
        found: Contact | None = self._bucket(int.from_bytes(key, "big")).nodes.get(key)
        return found

    def known_as(self, contact: Contact) -> Contact:
        """Return this node's contact as it stands in a bucket, or the one given."""
        found: Contact = self._bucket(contact.long_id).nodes.get(contact.id, contact)
        return found

    def contacts(self) -> list[Contact]:
        """Return everyone in the buckets. Asked for each second: put together when it changed."""
        if self._everyone is None:
            self._everyone = [c for bucket in self.buckets for c in bucket.nodes.values()]
        return list(self._everyone)

    def add_contact(self, node: Contact) -> bool:
        """Admit a contact, or keep it as a replacement when its bucket is full; say which."""
        bucket = self._bucket(node.long_id)
        while not bucket.add_node(node):
            if not bucket.has_in_range(self.node):
                return False
            self.split_bucket(self.buckets.index(bucket))
            bucket = self._bucket(node.long_id)
        self._changed()
        return True

    def has_room(self, contact: Contact) -> bool:
        """Say whether this contact would be kept, in a bucket or among its replacements."""
        bucket = self._bucket(contact.long_id)
        return (
            len(bucket.nodes) < self.ksize
            or len(bucket.replacement_nodes) < REPLACEMENTS
            or bucket.has_in_range(self.node)
        )

    def remove_place(self, place: tuple[bytes, str, int]) -> bool:
        """Drop a contact if it is known at this very address; say whether it was."""
        contact = self.get(place[0])
        if contact is None or contact.place != place:
            return False
        self.remove_contact(contact)
        self._changed()
        return True

    def remove_all(self, refused: Callable[[Contact], bool]) -> list[Contact]:
        """Drop all contacts and replacements that are refused; return the contacts."""
        for bucket in self.buckets:
            for key in [k for k, c in bucket.replacement_nodes.items() if refused(c)]:
                del bucket.replacement_nodes[key]
        gone = [contact for contact in self.contacts() if refused(contact)]
        for contact in gone:
            self.remove_contact(contact)
            self._changed()
        return gone

    def nearest(
        self, key: bytes, count: int, fit: Callable[[Contact], bool] | None = None
    ) -> list[Contact]:
        """Return the `count` contacts nearest to a key, nearest first, of those that fit."""
        target = int.from_bytes(key, "big")
        found: list[Contact] = []
        # The buckets are the leaves of a binary tree: whoever is in one is nearer than all in the
        # next, in this order.
        for bucket in sorted(self.buckets, key=lambda b: b.range[0] ^ target):
            near = sorted(bucket.nodes.values(), key=lambda c: c.long_id ^ target)
            found += filter(fit, near) if fit else near
            if len(found) >= count:
                break
        return found[:count]

    def size(self) -> float:
        """Estimate how many others the mesh has: by how close the nearest lie to this node.

        Whom a node knows far away is chance, and mostly full buckets; its own neighbourhood it
        knows whole, soon after it came.
        """
        if self._size is None:
            near = self.nearest(self.node.id, self.ksize)
            self._size = float(len(near))
            if len(near) == self.ksize:
                self._size *= 2**160 / (near[-1].long_id ^ self.node.long_id)
        return self._size

    def get_bucket_for(self, node: Contact) -> int:
        """Return the index of the bucket whose range holds the node (the ends are in the range)."""
        return bisect_left(self._ends, node.long_id)

    def _bucket(self, number: int) -> KBucket:
        return self.buckets[bisect_left(self._ends, number)]

    def _changed(self) -> None:
        self.version += 1
        self._everyone = self._size = None

    def _use(self, buckets: list[KBucket]) -> None:
        self.buckets, self._everyone, self._size = buckets, None, None
        for bucket in buckets:
            bucket.max_replacement_nodes = REPLACEMENTS
        self._ends = [bucket.range[1] for bucket in buckets]
