"""What one end of a pair tells the other about a relay's allocation, in a signal. A core.

    ticket = allocation 8 | the receiver's UDP port there 2 | the relay's TCP tunnel port 2 (or 0)

The relay's node and address stand beside it in the offer (agent/paths/messages.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from agent.errors import PeerError
from agent.relay.messages import ID_BYTES

_FORM = struct.Struct(f">{ID_BYTES}sHH")


@dataclass(frozen=True)
class RelayTicket:
    """One end's way into an allocation: its id, that end's port, and the relay's tunnel port."""

    allocation: bytes
    port: int
    tunnel_port: int | None

    def encode(self) -> bytes:
        """Return it as bytes."""
        return _FORM.pack(self.allocation, self.port, self.tunnel_port or 0)

    @classmethod
    def decode(cls, raw: bytes) -> RelayTicket:
        """Read one; raises PeerError for what is none."""
        if len(raw) != _FORM.size:
            raise PeerError("a relay's ticket makes no sense")
        allocation, port, tunnel_port = _FORM.unpack(raw)
        if not port:
            raise PeerError("a relay's ticket makes no sense")
        return cls(allocation, port, tunnel_port or None)
