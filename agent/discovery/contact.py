"""A node and one address of it, as lookups, the routing table and the wire know it. A core.

It has the attributes that kademlia's table asks of its nodes, without the library's freedom: the id
follows from the node's key and cannot be chosen.
"""

from __future__ import annotations

from agent.discovery.dhtkeys import node_key
from agent.discovery.messages import pack_address, unpack_address
from agent.discovery.reach import scope_of
from agent.identity.keys import NodeId


class Contact:
    """A node at an address. `id` is its 20-byte DHT id, `long_id` the same as a number.

    `scope` says from where the address can be reached (see `reach.py`), `packed` is how the contact
    crosses the wire and is saved (key 32 | port 2 | address 4 or 16), and `heard` is the loop time
    (s) of the last datagram from there, 0 for never.
    """

    __slots__ = ("heard", "id", "ip", "long_id", "node", "packed", "port", "scope")

    def __init__(self, mesh_id: bytes, node: NodeId, host: str, port: int) -> None:
        self.node = node
        self.id = node_key(mesh_id, node)
        self.long_id = int.from_bytes(self.id, "big")
        self.ip = host
        self.port = port
        self.packed = node.ed25519 + pack_address(host, port)
        self.scope = scope_of(host)
        self.heard = 0.0

    @property
    def address(self) -> tuple[str, int]:
        """The IP address and UDP port."""
        return self.ip, self.port

    @property
    def place(self) -> tuple[bytes, str, int]:
        """The id with the address: what can be dead, since one node may have several addresses."""
        return self.id, self.ip, self.port

    @classmethod
    def unpack(cls, mesh_id: bytes, packed: bytes) -> Contact | None:
        """Return the contact, or None for bytes that name nobody who can be reached."""
        if len(packed) not in (38, 50):
            return None
        address = unpack_address(packed[32:])
        return None if address is None else cls(mesh_id, NodeId(packed[:32]), *address)
