"""Tables that are filled for a simulation look like those of a mesh that has stood for long."""

from __future__ import annotations

import random
from types import SimpleNamespace

from dht.filled import fill

from agent.discovery.contact import Contact
from agent.discovery.messages import CONTACTS_MAX
from agent.discovery.routing import Table
from agent.identity.keys import NodeId


def test_each_bucket_is_full_or_holds_everyone_in_its_range() -> None:
    rng, mesh_id = random.Random(1), bytes(32)
    tables = []
    for number in range(500):
        contact = Contact(mesh_id, NodeId(rng.randbytes(32)), f"20.0.0.{number % 250}", 4001)
        node = SimpleNamespace(id=contact.id, long_id=contact.long_id)
        tables.append((contact, Table(None, CONTACTS_MAX, node)))
    fill(tables, 7.0, rng)
    everyone = [contact for contact, _ in tables]
    for own, table in tables:
        others = [c for c in everyone if c is not own]
        for bucket in table.buckets:
            low, high = bucket.range
            there = sum(low <= c.long_id <= high for c in others)
            assert len(bucket.nodes) == min(there, CONTACTS_MAX)
        assert all(c.heard == 7.0 and c not in everyone for c in table.contacts())
        assert 150 < table.size() < 1700
