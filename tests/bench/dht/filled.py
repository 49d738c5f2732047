"""Routing tables as they are in a mesh that has stood for long, without its growth.

Ten thousand nodes that come one after another send three million datagrams before the first lookup,
and remember each other's keys and replay windows. What they end with is known: each bucket holds
CONTACTS_MAX random nodes of its range, or all where there are fewer, so a node's own neighbourhood
is whole. That is put into the real tables here, by the table's own rules; who lies is in them like
anyone else, and so are a few who have died since they were last heard.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

from agent.discovery.contact import Contact
from agent.discovery.messages import CONTACTS_MAX
from agent.discovery.routing import Table

_BITS = 160
_FIELDS = Contact.__slots__


def fill(tables: Sequence[tuple[Contact, Table]], now: float, rng: random.Random) -> None:
    """Fill the tables of these nodes, each given with what others know it by, at loop time now."""
    everyone = sorted((contact for contact, _ in tables), key=lambda c: c.long_id)
    ids = [contact.long_id for contact in everyone]
    for own, table in tables:
        for depth in range(_BITS):
            width = 1 << (_BITS - 1 - depth)
            # The half beside this node's own, of the range that both are in.
            low = (own.long_id ^ width) // width * width
            begin, end = bisect_left(ids, low), bisect_left(ids, low + width)
            count = min(end - begin, CONTACTS_MAX)
            for at in rng.sample(range(begin, end), count):
                table.add_contact(_twin(everyone[at], now))
            mine = own.long_id // width * width
            if bisect_left(ids, mine + width) - bisect_left(ids, mine) == 1:
                break


def _twin(contact: Contact, heard: float) -> Contact:
    """Return a contact of another node's table: the same, but for when it was heard."""
    twin = Contact.__new__(Contact)
    for name in _FIELDS:
        setattr(twin, name, getattr(contact, name))
    twin.heard = heard
    return twin
